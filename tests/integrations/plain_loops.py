"""A network, its images and a loop of one's own, which the loops of libraries are held to."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.probe.watch import Probe


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )


def images(n=64):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 4


class Classifier(nn.Module):
    """What the Trainer of Hugging Face wants: a loss when there are labels."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def run_example(heading, folder, monkeypatch):
    """Run, in a folder, the code below a heading of docs/integrations.md."""
    page = Path(__file__).parents[2] / "docs" / "integrations.md"
    (part,) = re.findall(
        rf"^## {heading}\n```python\n(.*?)```",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    monkeypatch.chdir(folder)
    exec(compile(part, heading, "exec"), {})


def plain(model, *, every, epochs=2, size=8, accumulate=1, validate=True, optimizer=None):
    """Trained in a loop under a probe: the probe."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = images()
    parts = list(zip(x.split(size), y.split(size), strict=True))
    with Probe(model, optimizer=optimizer, every=every) as probe:
        for _ in range(epochs):
            for number, (some, labels) in enumerate(parts):
                (model(some, labels)["loss"] / accumulate).backward()
                if (number + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            if validate:
                model.eval()
                with torch.no_grad():
                    for some, _ in parts:
                        model(some)
                model.train()
    return probe


def assert_read_alike(found, wanted):
    """Two probes have read and counted the same, to the last bit."""
    assert found.readings.steps == wanted.readings.steps
    assert [each.path for each in found.readings.layers] == [
        each.path for each in wanted.readings.layers
    ]
    for metric in wanted.readings.metrics:
        np.testing.assert_array_equal(
            found.readings.matrix(metric), wanted.readings.matrix(metric), err_msg=metric
        )
    for name in (
        "steps",
        "forwards",
        "skipped",
        "backwards",
        "perturbed",
        "per_step",
        "per_backward",
    ):
        assert getattr(found.counts, name) == getattr(wanted.counts, name), name
    for path, layer in wanted.counts.layers.items():
        for name in ("forwards", "writes", "per_step", "batch_sizes", "recomputed"):
            assert getattr(found.counts.layers[path], name) == getattr(layer, name), name


def assert_same_state(one, other):
    other = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other[key]), key


def hooks(model):
    """How many there are: on the model's modules and parameters, and on all optimizers."""
    from torch.optim import optimizer as optim

    held = [optim._global_optimizer_pre_hooks, optim._global_optimizer_post_hooks]
    for module in model.modules():
        held += [module._forward_hooks, module._forward_pre_hooks]
    for parameter in model.parameters():
        held += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return sum(len(each) for each in held if each)
