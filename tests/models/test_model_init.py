import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.models import (
    create_model,
    init_he_,
    init_normal_,
    init_xavier_,
    zero_branches_,
)
from spiritlevel.models.ghost import GhostBottleneck
from spiritlevel.models.plain import BasicBlock, ResidualBlock
from spiritlevel.models.resnet import ResidualUnit

LAYERS = nn.Linear | nn.Conv2d


def model_of(name, norm="batch"):
    options = {"image_size": 32, "width": 32} if name == "residual_mlp" else {}
    with warnings.catch_warnings(action="ignore"):  # that 8 groups do not divide every width
        return create_model(name, 10, norm, stem="cifar", **options)


def layers(model):
    return [m for m in model.modules() if isinstance(m, LAYERS)]


def fans(weight):
    area = weight[0, 0].numel() if weight.dim() > 2 else 1
    return weight.shape[1] * area, weight.shape[0] * area


def spread(model, expected):
    """Each large weight's deviation over the one expected of it."""
    large = [m.weight for m in layers(model) if m.weight.numel() > 5000]
    assert len(large) > 20
    return torch.stack([weight.std() / expected(*fans(weight)) for weight in large])


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_he(scale):
    model = create_model("ghostnet_100", 10, "none")
    assert init_he_(model, scale) is model
    ratios = spread(model, lambda fan_in, _: scale * (2 / fan_in) ** 0.5)
    # The deviation of 5000 draws is itself off by 1 %.
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=0.05)
    assert not any(m.bias.any() for m in layers(model) if m.bias is not None)


def test_xavier():
    model = create_model("ghostnet_100", 10, "none")
    assert init_xavier_(model) is model
    ratios = spread(model, lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=0.05)
    assert not any(m.bias.any() for m in layers(model))


def test_normal():
    model = create_model("ghostnet_100", 10, "none")
    assert init_normal_(model, 0.01) is model
    ratios = spread(model, lambda *_: 0.01)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=0.05)
    assert not any(m.bias.any() for m in layers(model))


def test_norms_and_gradients_are_left_alone():
    model = init_he_(create_model("small_vgg", 10))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize("norm", ["batch", "ghost:4", "group:8", "frozen", "none"])
def test_a_zeroed_ghost_bottleneck_is_its_shortcut(norm):
    model = zero_branches_(init_he_(model_of("ghostnet_050", norm)))
    checked = []

    def compare(block, inputs, output):
        checked.append(torch.equal(output, block.shortcut(inputs[0])))

    blocks = [m for m in model.modules() if isinstance(m, GhostBottleneck)]
    assert len(blocks) == 16
    for block in blocks:
        block.register_forward_hook(compare)
    model(torch.randn(8, 3, 32, 32))
    assert checked == [True] * 16


@pytest.mark.parametrize("name", ["residual_mlp", "small_resnet"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_branches_of_the_controls(name, norm):
    model = zero_branches_(init_he_(model_of(name, norm)))
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock | BasicBlock)]
    checked = []

    def compare(block, inputs, output):
        shortcut = inputs[0] if name == "residual_mlp" else F.relu(block.shortcut(inputs[0]))
        checked.append(torch.equal(output, shortcut))

    for block in blocks:
        block.register_forward_hook(compare)
    model(torch.randn(4, 3, 32, 32))
    assert checked == [True] * len(blocks)
    assert checked


def steps(model, count, lr):
    """A few SGD steps on one batch; the logits after them."""
    torch.manual_seed(1)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model(x).detach()


@pytest.mark.parametrize(("norm", "lr"), [("batch", 0.01), ("group:8", 0.01), ("none", 0.001)])
def test_both_zeroed_halves_learn(norm, lr):
    model = zero_branches_(init_he_(model_of("ghostnet_050", norm)))
    model.dropout.p = 0.0
    before = steps(model, 0, lr=0.0)
    after = steps(model, 3, lr)
    assert after.isfinite().all()
    assert (after - before).abs().max() > 1e-3
    for block in (m for m in model.modules() if isinstance(m, GhostBottleneck)):
        for half in (block.ghost2.primary_conv, block.ghost2.cheap_operation):
            zeroed = half[0] if norm == "none" else half[1]
            assert zeroed.weight.any()


@pytest.mark.parametrize("name", ["residual_mlp", "small_resnet"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_zeroed_controls_learn(name, norm):
    model = zero_branches_(init_he_(model_of(name, norm)))
    steps(model, 2, lr=0.01)
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            assert block.linear.weight.any()
        if isinstance(block, BasicBlock):
            assert (block.conv2 if norm == "none" else block.norm2).weight.any()


@pytest.mark.parametrize("name", ["resnet56", "ghost_resnet56"])
def test_no_channel_of_a_zeroed_resnet_is_dead(name):
    """The zeros that a shortcut pads with would be, beside a branch of zeros."""
    torch.manual_seed(0)
    model, alive = zero_branches_(create_model(name, 8)), {}
    for stage in ("layer1", "layer2", "layer3"):
        getattr(model, stage).register_forward_hook(
            lambda _m, _x, y, stage=stage: alive.update({stage: y.amax((0, 2, 3)) > 0})
        )
    model(torch.randn(8, 3, 32, 32))
    assert all(each.all() for each in alive.values())
    zeroed = [
        u
        for u in model.modules()
        if isinstance(u, ResidualUnit) and not u.ends()[0][1].weight.any()
    ]
    assert len(zeroed) == 25


def test_a_model_without_branches():
    with pytest.raises(UsageError, match="got SmallVGG, which has no residual branch"):
        zero_branches_(create_model("small_vgg"))
