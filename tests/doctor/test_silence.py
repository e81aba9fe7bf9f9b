"""No error and no warning on our own models, as they are built and after a short training."""

from __future__ import annotations

import pytest
import torch
from case_book import batches, blobs, train
from quiet import aloud
from torch import nn

import spiritlevel as sl

# Not every width can be divided by 4.
pytestmark = pytest.mark.filterwarnings("ignore:norm 'group")

NORMS = ("batch", "ghost:16", "renorm", "group:4", "layer", "instance", "frozen", "none")
FLAT = ("linear_net", "mlp", "residual_mlp")
CONTROLS = (*FLAT, "small_resnet", "small_vgg")
SIZE = 16


def pairs_of(pattern: str) -> list[tuple[str, str]]:
    """Model and norm, without instance norms of (N, C), where a channel is one value."""
    both = [(name, norm) for name in sl.list_models(pattern) for norm in NORMS]
    return [(name, norm) for name, norm in both if norm != "instance" or name not in FLAT]


SMALL = [pair for name in CONTROLS for pair in pairs_of(name)]
LARGE = [(name, norm) for name, norm in pairs_of("*") if name not in CONTROLS]


def build(name: str, norm: str, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    options = {"image_size": SIZE} if name in FLAT else {}
    return sl.create_model(name, num_classes=classes, norm=norm, stem="cifar", **options)


# ---- the models of spiritlevel.models
@pytest.mark.parametrize(("name", "norm"), SMALL)
def test_as_built(name, norm):
    model = build(name, norm)
    assert aloud(model) == []
    assert aloud(model.eval()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), LARGE)
def test_a_published_model_as_built(name, norm):
    model = build(name, norm)
    assert aloud(model) == []
    assert aloud(model.eval()) == []


def after_training(name: str, norm: str) -> None:
    """Checked in train(), in eval(), with and without the data."""
    model, steps = build(name, norm), 30 if name in CONTROLS else 16
    # An instance norm wants more than the one value that a GhostNet's last layers have of 16 x 16.
    size = 2 * SIZE if (norm, name[:5]) == ("instance", "ghost") else SIZE
    pairs = batches(*blobs(n=steps * 32 // 2, size=size))
    train(model, pairs, epochs=2)
    for training in (True, False):
        model.train(training)
        assert aloud(model) == []
        assert aloud(model, pairs[:8]) == []


@pytest.mark.parametrize(
    ("name", "norm"),
    [("mlp", "batch"), ("small_resnet", "batch"), ("small_vgg", "group:4"), ("mlp", "ghost:16")],
)
def test_after_a_short_training(name, norm):
    after_training(name, norm)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [*SMALL, *pairs_of("ghostnet_050")])
def test_each_after_a_short_training(name, norm):
    after_training(name, norm)
