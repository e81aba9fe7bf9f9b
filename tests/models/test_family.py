"""What holds for every published model: sizes of images, norms, options, the deployed form."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from spiritlevel import fuse
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, deploy, zero_branches_
from spiritlevel.models.attention import SqueezeExcite, halved
from spiritlevel.models.ghost import GhostModule
from spiritlevel.models.layers import ConvNormAct, Layers
from spiritlevel.models.reparam import merged

SMALL = ["ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "ghost_resnet56", "resnet56"]
LARGE = ["ghost_resnet50", "ghost_vgg16", "resnet50", "vgg16"]
NORMS = ["batch", "ghost:2", "renorm", "frozen", "group:4", "layer", "none", "noisy-batch"]
BATCH = Layers(nn.BatchNorm2d)


def unsettle_(model):
    """Running statistics and affine parameters as after a long training."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return model


# ---- images and norms
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_small_images(name, stem):
    model = create_model(name, 3, in_chans=1, stem=stem).eval()
    with torch.no_grad():
        for side in (28, 32, 48):
            assert model(torch.randn(1, 1, side, side)).isfinite().all()
        assert model(torch.randn(1, 1, 31, 45)).shape == (1, 3)


def trains(name, norm, side=28):
    with warnings.catch_warnings(action="ignore"):  # that 4 groups do not divide every width
        model = create_model(name, 3, norm, stem="cifar")
    x = torch.randn(2, 3, side, side)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(x[:1]).shape == (1, 3)


@pytest.mark.parametrize("name", ["ghostnetv2_100", "ghost_resnet56"])
@pytest.mark.parametrize("norm", ["renorm", "group:4", "none"])
def test_a_step_with_other_norms(name, norm):
    trains(name, norm)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_a_step_with_every_norm(name, norm):
    trains(name, norm)


@pytest.mark.parametrize("name", ["ghostnetv3_050", "ghost_resnet56", "resnet56"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_zeroed_branches_leave_the_shortcut(name, norm):
    model = zero_branches_(create_model(name, 3, norm, stem="cifar")).eval()
    stages = model.stages()
    block = stages[0][0]
    x = torch.randn(2, block.get_submodule(_first(block)).in_channels, 7, 7)
    y = block(x)
    shortcut = block.shortcut(x) if hasattr(block, "shortcut") else torch.relu(x)
    assert torch.equal(y, shortcut)


def _first(block):
    return next(n for n, m in block.named_modules() if isinstance(m, nn.Conv2d))


# ---- options
@pytest.mark.parametrize("act", ["silu", "hardswish", "leaky_relu:0.2"])
def test_every_activation_is_the_one_asked_for(act):
    model = create_model("ghostnet_050", 3, act=act)
    kinds = {type(m) for m in model.modules()}
    expected = {"silu": nn.SiLU, "hardswish": nn.Hardswish, "leaky_relu:0.2": nn.LeakyReLU}[act]
    assert expected in kinds
    assert nn.ReLU not in kinds
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"act": "mish"}, "got activation 'mish'; wanted one of identity, relu"),
        ({"s": 1}, "got s=1; wanted 2 or more"),
        ({"d": 2}, "got d=2; wanted an odd kernel"),
        ({"placement": "before"}, "got placement 'before'; wanted one of: per-branch"),
        ({"gate": "soft"}, "got gate 'soft'; wanted one of: hard, clamped"),
    ],
)
def test_options_that_cannot_be(options, text):
    with pytest.raises(UsageError, match=text):
        create_model("ghostnet_050", 3, **options)


def test_branches_have_norms_of_their_own():
    with pytest.raises(UsageError, match="placement='both' for a module with branches"):
        create_model("ghostnetv3_050", 3, placement="both")


@pytest.mark.parametrize(
    ("placement", "norms", "relus", "biased"),
    [
        ("per-branch", 2, 2, False),
        ("post-concat", 1, 1, False),
        ("both", 3, 3, False),
        ("none", 0, 2, True),
    ],
)
def test_where_norms_and_activations_stand(placement, norms, relus, biased):
    module = GhostModule(6, 10, BATCH, s=3, d=5, kernel=3, stride=2, placement=placement)
    kinds = [type(m) for m in module.modules()]
    assert kinds.count(nn.BatchNorm2d) == norms
    assert kinds.count(nn.ReLU) == relus
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert {conv.bias is not None for conv in convs} == {biased}
    assert [tuple(conv.weight.shape) for conv in convs] == [(4, 6, 3, 3), (8, 1, 5, 5)]
    y = module(torch.randn(2, 6, 9, 7))
    assert y.shape == (2, 10, 5, 4)
    if placement == "post-concat":
        torch.testing.assert_close(module.bn.running_mean.shape, torch.Size([10]))


def test_the_clamped_gate():
    hard, clamped = SqueezeExcite(8), SqueezeExcite(8, "clamped")
    clamped.load_state_dict(hard.state_dict())
    x = torch.randn(2, 8, 3, 3)
    z = clamped.conv_expand(torch.relu(clamped.conv_reduce(x.mean((2, 3), keepdim=True))))
    torch.testing.assert_close(clamped(x), x * z.clamp(0, 1))
    torch.testing.assert_close(hard(x), x * (z + 3).clamp(0, 6) / 6)


# ---- GhostNetV2's attention
def test_attention_is_a_gate_from_half_the_map():
    module = GhostModule(4, 8, BATCH, attention=True).eval()
    plain = copy.deepcopy(module)
    plain.attention = False
    x = torch.randn(2, 4, 5, 6)
    gate = torch.sigmoid(module.short_conv(nn.functional.avg_pool2d(x, 2)))
    gate = nn.functional.interpolate(gate, size=(5, 6), mode="nearest")
    torch.testing.assert_close(module(x), plain(x) * gate)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 1), (2, 2)])
def test_a_side_of_one_pixel_is_not_halved(height, width):
    x = torch.randn(2, 3, height, width)
    assert halved(x).shape == (2, 3, max(1, height // 2), max(1, width // 2))
    if (height, width) == (1, 1):
        assert torch.equal(halved(x), x)


# ---- GhostNetV3's branches
@pytest.mark.parametrize("norm", ["batch", "frozen", "renorm", "none", nn.BatchNorm2d])
def test_the_deployed_form_gives_the_same_numbers(norm):
    torch.manual_seed(0)
    model = unsettle_(create_model("ghostnetv3_050", 4, norm)).eval()
    small = deploy(model)
    assert not small.training
    assert not any("rpr" in key for key in small.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        expected = model(x)
        torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_the_model_itself_is_left_as_it_was():
    model = create_model("ghostnetv3_050", 4).train()
    before = copy.deepcopy(model.state_dict())
    assert not any(module.training for module in deploy(model).modules())
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_pruned_and_parametrised_branches_are_merged_as_they_compute():
    torch.manual_seed(0)
    model = unsettle_(create_model("ghostnetv3_050", 4)).eval()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    for i, conv in enumerate(convs):
        if i % 2:
            weight_norm(conv)
        else:
            prune.l1_unstructured(conv, "weight", 0.5)
    calls: list[object] = []
    first = model.blocks[0][0].ghost1.primary_rpr_conv[0].conv
    first.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        expected = model(x)
        calls.clear()
        torch.testing.assert_close(deploy(model)(x), expected, rtol=0, atol=1e-5)
    assert calls == []


def test_a_deployed_model_still_learns():
    model = deploy(create_model("ghostnetv3_050", 4)).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_merged_branches_of_any_geometry():
    """Against the sum itself: groups, a stride, biases, a skip, kernels of two sizes."""
    torch.manual_seed(0)
    layers = Layers(nn.BatchNorm2d, bias=True)
    for groups, stride in ((1, 1), (2, 1), (6, 1), (6, 2)):
        shape = {"groups": groups, "stride": stride, "act": False}
        branches = [ConvNormAct(6, 6, layers, k, **shape) for k in (1, 3, 5)]
        branches += [nn.BatchNorm2d(6)] if stride == 1 else []
        model = unsettle_(nn.ModuleList(branches)).double().eval()
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            nn.init.normal_(conv.bias)
        x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
        torch.testing.assert_close(merged(branches)(x), sum(branch(x) for branch in branches))


@pytest.mark.parametrize("norm", ["group:4", "layer", "instance"])
def test_a_norm_that_is_no_fixed_factor(norm):
    with warnings.catch_warnings(action="ignore"):
        model = create_model("ghostnetv3_050", 4, norm)
    with pytest.raises(
        UsageError, match=r"got \w+Norm\w* after a convolution that is to be merged"
    ):
        deploy(model)


@pytest.mark.slow
def test_a_fused_model_is_deployed_before():
    model = fuse(create_model("ghostnetv3_050", 4))
    with pytest.raises(UsageError, match="Deploy first, then fuse the copy"):
        deploy(model)


# ---- what torch does with them
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ghostnetv2_100", "ghostnetv3_050", "ghost_resnet56", "ghost_vgg16"]
)
def test_channels_last_and_a_compiled_graph(name):
    model, x = create_model(name, 4).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        traced = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(traced, expected)
        y = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(y, expected)
