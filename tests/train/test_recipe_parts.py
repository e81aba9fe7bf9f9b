import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, deploy
from spiritlevel.nn import norm_layer
from spiritlevel.train import Recipe, init_, loss, optimizer, parameter_groups
from spiritlevel.train.rmsprop import RMSpropTF


def recipe(**options):
    return Recipe(**({"lr": 0.1, "epochs": 3, "batch_size": 8} | options))


def names(groups):
    """Those with weight decay, those without."""
    found = {0.0: set(), 0.5: set()}
    for group in groups:
        found[group["weight_decay"]] |= {name for name, _ in group["params"]}
    return found[0.5], found[0.0]


def groups_of(model):
    decayed, spared = names(parameter_groups(model, 0.5))
    assert not decayed & spared
    assert decayed | spared == dict(model.named_parameters()).keys()
    return decayed, spared


# What is decayed, by the published names alone: (convolutions and linear layers) x their count.
GHOSTNET = {
    r"conv_stem": 1,
    r"blocks\.\d\.\d\.ghost[12]\.primary_conv\.0": 32,
    r"blocks\.\d\.\d\.conv_dw": 4,
    r"blocks\.\d\.\d\.shortcut\.[02]": 10,
    r"blocks\.\d\.\d\.se\.conv_(reduce|expand)": 14,
    r"blocks\.9\.0\.conv|conv_head|classifier": 3,
}
GHOSTNETV3 = {
    r"conv_stem": 1,
    r"blocks\.\d\.\d\.ghost[12]\.primary_rpr_conv\.[012]\.conv": 96,
    r"blocks\.\d\.\d\.ghost1\.short_conv\.[024]": 42,
    r"blocks\.\d\.\d\.dw_rpr_conv\.[012]\.conv": 12,
    r"blocks\.\d\.\d\.dw_rpr_scale\.conv": 4,
    r"blocks\.\d\.\d\.shortcut\.[02]": 10,
    r"blocks\.\d\.\d\.se\.conv_(reduce|expand)": 14,
    r"blocks\.9\.0\.conv|conv_head|classifier": 3,
}
DEPLOYED = {
    r"conv_stem": 1,
    r"blocks\.\d\.\d\.ghost[12]\.primary_conv\.0": 32,
    r"blocks\.\d\.\d\.ghost1\.short_conv\.[024]": 42,
    r"blocks\.\d\.\d\.conv_dw": 4,
    r"blocks\.\d\.\d\.shortcut\.[02]": 10,
    r"blocks\.\d\.\d\.se\.conv_(reduce|expand)": 14,
    r"blocks\.9\.0\.conv|conv_head|classifier": 3,
}
GHOST_VGG = {r"features\.0\.0\.conv": 1, r".*\.primary_conv\.0": 12, r"classifier": 1}
VGG = {r"features\.\d\.\d\.conv": 13, r"classifier": 1}


@pytest.mark.parametrize(
    ("name", "options", "deployed", "expected"),
    [
        ("ghostnet_100", {}, False, GHOSTNET),
        ("ghostnet_100", {"norm": "group:4"}, False, GHOSTNET),
        ("ghostnet_100", {"placement": "none"}, False, GHOSTNET),
        ("ghostnet_100", {"placement": "both"}, False, GHOSTNET),
        ("ghostnetv3_050", {}, False, GHOSTNETV3),
        ("ghostnetv3_050", {}, True, DEPLOYED),
        ("ghost_vgg16", {}, False, GHOST_VGG),
        ("ghost_vgg16", {"s": 5, "d": 1}, False, GHOST_VGG),
        ("vgg16", {}, False, VGG),
    ],
)
def test_what_is_decayed(name, options, deployed, expected):
    with torch.device("meta"):
        model = create_model(name, 10, **options)
    if deployed:
        model = deploy(model)
    decayed, spared = groups_of(model)
    for pattern, count in expected.items():
        found = {one for one in decayed if re.fullmatch(f"({pattern})\\.weight", one)}
        assert len(found) == count, pattern
        decayed -= found
    assert decayed == set()
    assert any(".cheap_" in one for one in spared) is ("ghost" in name)


@pytest.mark.parametrize(
    "spec",
    ["batch", "ghost:2", "renorm", "group:2", "layer", "instance", "noisy-batch"],
)
@pytest.mark.parametrize("dim", [2, 3])
def test_no_norm_of_ours_is_decayed(spec, dim):
    model = nn.Sequential(nn.Linear(4, 4), norm_layer(spec, dim=dim)(4))
    assert groups_of(model)[0] == {"0.weight"}


def test_no_norm_of_torch_is_decayed():
    model = nn.ModuleDict(
        {
            "batch": nn.BatchNorm1d(4),
            "sync": nn.SyncBatchNorm(4),
            "group": nn.GroupNorm(2, 4),
            "layer": nn.LayerNorm((3, 4, 4)),  # a weight of three dimensions
            "instance": nn.InstanceNorm2d(4, affine=True),
            "rms": nn.RMSNorm((4, 4)),
            "linear": nn.Linear(4, 4),
            "slope": nn.PReLU(4),
        }
    )
    assert groups_of(model)[0] == {"linear.weight"}


def test_frozen_are_left_out_and_shared_come_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    decayed, spared = names(parameter_groups(model, 0.5))
    assert (decayed, spared) == ({"0.weight"}, {"0.bias", "1.bias"})
    with pytest.raises(UsageError, match="no parameter learns"):
        parameter_groups(model.requires_grad_(False), 0.5)


def test_a_kernel_that_is_cheap_in_one_place_is_spared_in_both():
    with torch.device("meta"):
        model = create_model("ghostnet_050")
    model.again = model.blocks[0][0].ghost1.cheap_operation[0]
    assert "blocks.0.0.ghost1.cheap_operation.0.weight" in groups_of(model)[1]


def test_a_model_of_one_group_has_no_empty_one():
    (group,) = parameter_groups(nn.Linear(3, 3, bias=False), 0.5)
    assert [name for name, _ in group["params"]] == ["weight"]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("adamw", torch.optim.AdamW, {"eps": 1e-6}),
        ("rmsprop", RMSpropTF, {"momentum": 0.8, "eps": 1e-6}),
    ],
)
def test_the_optimizer_has_the_recipes_figures_and_the_names(name, kind, settings):
    model = create_model("small_vgg", 3, widths=(4, 8))
    made = optimizer(model, recipe(optimizer=name, weight_decay=0.25, **settings))
    assert type(made) is kind
    for group, decay in zip(made.param_groups, (0.25, 0.0), strict=True):
        assert (group["lr"], group["weight_decay"]) == (0.1, decay)
        assert settings.items() <= group.items()
        for one, p in zip(group["param_names"], group["params"], strict=True):
            assert model.get_parameter(one) is p


def rmsprop_by_hand(p, gradients, *, lr, momentum, rho, eps, decay):
    s, m = torch.ones_like(p), torch.zeros_like(p)
    for rate, g in zip(lr, gradients, strict=True):
        g = g + decay * p
        s = s + (1 - rho) * (g * g - s)
        m = momentum * m + rate * g / torch.sqrt(s + eps)
        p = p - m
    return p


def test_rmsprop_is_tensorflows():
    p = torch.randn(5, dtype=torch.float64)
    gradients = torch.randn(4, 5, dtype=torch.float64)
    rates = [0.1, 0.2, 0.2, 0.05]
    ours = nn.Parameter(p.clone())
    unused = nn.Parameter(torch.ones(2))
    made = RMSpropTF([ours, unused], lr=9.0, momentum=0.8, rho=0.7, eps=1e-3, weight_decay=0.1)
    for rate, g in zip(rates, gradients, strict=True):
        made.param_groups[0]["lr"] = rate
        ours.grad = g.clone()
        made.step()
    expected = rmsprop_by_hand(p, gradients, lr=rates, momentum=0.8, rho=0.7, eps=1e-3, decay=0.1)
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-12, atol=1e-12)
    assert unused.tolist() == [1, 1]


def test_rmsprop_calls_a_closure_with_gradients_on():
    p = nn.Parameter(torch.ones(1))

    def closure():
        value = (p**2).sum()
        value.backward()
        return value

    assert RMSpropTF([p], lr=0.1).step(closure) == 1
    assert p < 1


def test_the_loss_smooths_labels():
    logits, y = torch.randn(6, 4), torch.arange(6) % 4
    target = 0.9 * F.one_hot(y, 4) + 0.1 / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(recipe(label_smoothing=0.1))(logits, y), expected)


def test_starting_weights():
    def state(init):
        torch.manual_seed(0)
        model = create_model("ghost_vgg16", 10, width=0.25)
        assert init_(model, recipe(init=init)) is model
        return model

    torch.manual_seed(0)
    plain = create_model("ghost_vgg16", 10, width=0.25)
    torch.testing.assert_close(state("torch").state_dict(), plain.state_dict(), rtol=0, atol=0)
    he = state("he")
    cheap = torch.cat(
        [p.detach().flatten() for n, p in he.named_parameters() if ".cheap_operation.0" in n]
    )
    assert len(cheap) > 4000
    assert cheap.std().item() == pytest.approx(
        (2 / 9) ** 0.5, rel=0.05
    )  # of 9 inputs, not 9 * channels


class TheirGhostModule(nn.Module):
    """With the names that published models have."""

    def __init__(self):
        super().__init__()
        self.primary_conv = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)
        )
        self.strided = nn.Conv2d(4, 4, 3, 2, groups=4, bias=False)


def test_cheap_kernels_of_other_ghost_modules_are_spared():
    decayed, spared = groups_of(nn.Sequential(TheirGhostModule()))
    assert decayed == {"0.primary_conv.0.weight", "0.strided.weight"}
    assert "0.cheap_operation.0.weight" in spared
