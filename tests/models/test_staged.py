"""Maps by size, and checkpoints that leave running statistics alone."""

import copy

import pytest
import torch
from torch import nn

from spiritlevel.models import create_model


@pytest.mark.parametrize(
    ("name", "stem", "sides", "chs"),
    [
        ("ghostnet_100", "imagenet", [32, 16, 8, 4, 2], [16, 24, 40, 112, 960]),
        ("ghostnetv3_050", "cifar", [64, 32, 16, 8, 4], [8, 12, 20, 56, 480]),
        ("resnet50", "imagenet", [32, 16, 8, 4, 2], [64, 256, 512, 1024, 2048]),
        ("ghost_resnet50", "cifar", [64, 32, 16, 8], [256, 512, 1024, 2048]),
        ("resnet56", "cifar", [64, 32, 16], [16, 32, 64]),
        ("ghost_vgg16", "cifar", [64, 32, 16, 8, 4], [64, 128, 256, 512, 512]),
    ],
)
def test_the_last_map_of_each_size(name, stem, sides, chs):
    with torch.device("meta"):
        model = create_model(name, 10, stem=stem)
        x = torch.randn(2, 3, 64, 64)
    maps = model.intermediates(x)
    assert [m.shape for m in maps] == [(2, c, s, s) for c, s in zip(chs, sides, strict=True)]


def test_the_head_gets_the_last_map():
    model, x = create_model("ghostnet_050", 10).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(model.head(model.intermediates(x)[-1]), model(x))
    model.checkpointing = True
    assert torch.equal(model.head(model.intermediates(x)[-1]), model(x))


def step(model, x):
    torch.manual_seed(1)
    loss = model(x).logsumexp(1).sum()
    loss.backward()
    return loss, [p.grad for p in model.parameters()], dict(model.named_buffers())


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("ghostnet_050", "batch"),
        ("ghostnet_050", "batch:momentum=none"),
        ("ghostnet_050", "renorm"),
        ("ghostnet_050", "noisy-batch"),
        ("ghostnetv2_100", nn.BatchNorm2d),
        pytest.param("ghostnetv3_050", "batch", marks=pytest.mark.slow),
        pytest.param("ghost_resnet56", "batch", marks=pytest.mark.slow),
        pytest.param("ghost_vgg16", "ghost:2", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_change_no_number(name, norm):
    """Loss, gradients, running statistics and counters, and what the next pass does with them."""
    torch.manual_seed(0)
    plain = create_model(name, 4, norm, stem="cifar", drop_rate=0.5)
    spared = copy.deepcopy(plain)
    spared.checkpointing = True
    x = torch.randn(4, 3, 28, 28)
    for _ in range(2):
        torch.testing.assert_close(step(spared, x), step(plain, x), rtol=0, atol=0)
    counters = [b for n, b in spared.named_buffers() if n.endswith("num_batches_tracked")]
    assert counters
    assert all(counter == 2 for counter in counters)


def test_less_is_kept_for_the_backward_pass():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            model(torch.randn(2, 3, 32, 32))
        return sum(sizes)

    plain = create_model("ghostnet_050", 4)
    spared = create_model("ghostnet_050", 4, checkpoint=True)
    weights = sum(p.numel() for p in plain.parameters())
    assert kept(spared) - weights < 0.3 * (kept(plain) - weights)


def test_an_error_in_the_second_run_leaves_the_buffers_in_place():
    model = create_model("ghostnet_050", 4, checkpoint=True)
    own = {n: id(b) for n, b in model.named_buffers()}
    loss = model(torch.randn(2, 3, 32, 32)).sum()

    def fail(*_):
        raise RuntimeError("in the second run")

    handle = model.blocks[4][0].bn_dw.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the second run"):
        loss.backward()
    handle.remove()
    assert {n: id(b) for n, b in model.named_buffers()} == own


def test_one_forward_and_many_passes_back():
    torch.manual_seed(0)
    plain = create_model("ghostnet_050", 4, act="silu")
    spared = copy.deepcopy(plain)
    spared.checkpointing = True
    x, found = torch.randn(4, 3, 32, 32), []
    for model in (plain, spared):
        torch.manual_seed(1)
        logits = model(x)
        each = [
            torch.autograd.grad(y, model.conv_stem.weight, retain_graph=True) for y in logits.sum(0)
        ]
        found.append((each, dict(model.named_buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ghostnet_050", "resnet50", "ghost_vgg16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_intermediates_are_the_maps_of_the_forward_pass(name, checkpointing):
    """Those that go into what halves, and what the head gets."""
    model, seen = create_model(name, 4).eval(), []
    model.checkpointing = checkpointing
    stages = list(model.stages())
    for stage in stages:
        stage.register_forward_pre_hook(lambda _stage, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 64, 64)
    maps, model.checkpointing = model.intermediates(x), False
    seen.clear()
    logits = model(x)
    wanted = [seen[i] for i in model.halvings()]
    assert len(maps) == len(wanted) + 1
    assert all(torch.equal(got, each) for got, each in zip(maps, wanted, strict=False))
    assert torch.equal(model.head(maps[-1]), logits)


def test_without_gradients_nothing_is_run_twice():
    model = create_model("ghostnet_050", 4, checkpoint=True).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        spared = model(x)
        model.checkpointing = False
        assert torch.equal(model(x), spared)
