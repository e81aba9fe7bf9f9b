"""A norm, a sum and an activation in one pass: when, what they give, and who is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from behind import last, nodes
from torch import nn

import spiritlevel as sl
from spiritlevel.models import aside
from spiritlevel.models.layers import ConvNormAct, Layers
from spiritlevel.models.normed import normed
from spiritlevel.nn import BatchNorm2d
from spiritlevel.nn.observe import observing

ACTS = [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), None]


def made(chs=12, side=40):
    torch.manual_seed(0)
    norm = BatchNorm2d(chs)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return norm, last(torch.randn(4, chs, side, side)) + 1, last(torch.randn(4, chs, side, side))


def by_layers(norm, act, x, residual=None):
    y = norm(x)
    y = y if residual is None else residual + y
    return y if act is None else act(y)


def found(way, norm, act, x, residual):
    """Output, gradients and buffers."""
    norm = copy.deepcopy(norm)
    given = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual)]
    y = way(norm, act, *given)
    y.square().mean().backward()
    grads = [t.grad for t in (*given, *norm.parameters())]
    return y, [y.detach(), *grads, *norm.buffers()]


def is_one(y):
    return type(y.grad_fn).__name__ == "_BatchNormActBackward"


@pytest.mark.parametrize("act", ACTS, ids=str)
def test_one_pass_is_what_the_layers_give(act):
    norm, x, residual = made()
    y, ours = found(normed, norm, act, x, residual)
    theirs, exact = found(by_layers, norm, act, x, residual)
    assert is_one(y)
    assert act is None or isinstance(act, nn.Identity) or not is_one(theirs)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    with sl.kernels.use("aten"):
        assert not is_one(normed(norm, act, x.requires_grad_(), residual))


def test_layers_alone_are_joined_too_and_nothing_is_without_either():
    norm, x, _ = made()
    x.requires_grad_()
    assert is_one(normed(norm, nn.ReLU(), x))
    torch.testing.assert_close(normed(norm, nn.ReLU(), x), torch.relu(norm(x)))
    torch.testing.assert_close(normed(norm, None, x), norm(x))


@pytest.mark.parametrize("act", [None, nn.ReLU()])
def test_layers_that_run_one_by_one_add_too(act):
    norm, x, residual = made()
    norm.eval()
    torch.testing.assert_close(
        normed(norm, act, x, residual), by_layers(norm, act, x, residual), rtol=0, atol=0
    )
    assert not torch.equal(normed(norm, act, x, residual), normed(norm, act, x))


def test_layers_run_where_they_are_others_or_somebody_looks():
    norm, x, _ = made()
    x.requires_grad_()
    assert not is_one(normed(norm, nn.Tanh(), x))
    assert not is_one(normed(nn.BatchNorm2d(12), nn.ReLU(), x))
    assert not is_one(normed(copy.deepcopy(norm).eval(), nn.ReLU(), x))
    with warnings.catch_warnings(), aside.layer_by_layer():
        warnings.simplefilter("error")
        assert not is_one(normed(norm, nn.ReLU(), x))
    for hooked in (0, 1):
        layers, called = [copy.deepcopy(norm), nn.ReLU()], []
        layers[hooked].register_forward_hook(lambda *_, called=called: called.append(1))
        with pytest.warns(UserWarning, match="some of a network runs layer by layer, slower"):
            assert not is_one(normed(*layers, x))
        assert called == [1]


@pytest.mark.parametrize("with_residual", [False, True])
def test_observers_are_told_of_both_layers_and_change_no_bit(with_residual):
    norm, x, residual = made()
    act, told = nn.ReLU(), []
    residual = residual if with_residual else None
    twin = copy.deepcopy(norm)
    with observing(lambda layer, shape, values, stats: told.append((layer, values(), stats))):
        y = normed(norm, act, x, residual)
        plain = by_layers(twin, nn.ReLU(), x, residual)
    assert torch.equal(y, normed(copy.deepcopy(norm), act, x, residual))
    (first, of_norm, found), (second, of_act, none), (_, of_twin, exact) = told
    assert (first, second, none) == (norm, act, None)
    torch.testing.assert_close(of_norm, of_twin, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found(), exact())
    before = of_twin[1] if residual is None else residual + of_twin[1]
    torch.testing.assert_close(of_act, (before, plain), rtol=1e-5, atol=1e-6)


def v3(**changes):
    torch.manual_seed(0)
    block = sl.create_model("ghostnetv3_100", 5, drop_rate=0.0).blocks[1][0]
    for name, value in changes.items():
        setattr(block, name, value)
    return block, last(torch.randn(2, 16, 64, 64))


def test_branches_are_summed_within_their_norms():
    block, x = v3()
    kinds = nodes(block.ghost1(x))
    assert not {"AddBackward0", "ReluBackward0"} & {*kinds}
    twin, exact = v3()[0], v3()[0].double()
    block(x).square().mean().backward()
    with sl.kernels.use("aten"):
        assert {"AddBackward0", "ReluBackward0"} <= {*nodes(twin.ghost1(x))}
        exact(x.double()).square().mean().backward()
    for one, other in zip(block.parameters(), exact.parameters(), strict=True):
        off = (one.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-3)
        assert off.item() < 1e-3


def test_a_hooked_branch_is_called():
    block, x = v3()
    called = []
    branch = block.ghost1.primary_rpr_conv[1]
    y = copy.deepcopy(block)(x)
    branch.register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="slower, for a hook on a ConvNormAct in it"):
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-4)
    assert called == [1]


class Doubled(ConvNormAct):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_branch_of_another_class_is_called():
    block, x = v3()
    block.ghost1.primary_rpr_conv[1].__class__ = Doubled
    with pytest.warns(UserWarning, match="slower, for a Doubled in it"):
        y = copy.deepcopy(block)(x)
    with sl.kernels.use("aten"):
        torch.testing.assert_close(y, block(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet56", "ghost_resnet56"])
def test_a_residual_unit_adds_within(name):
    torch.manual_seed(0)
    unit = sl.create_model(name, 5, stem="cifar", drop_rate=0.0).layer1[0]
    y = unit(last(torch.randn(8, 16, 32, 32)))
    assert "AddBackward0" not in nodes(y)
    with sl.kernels.use("aten"):
        assert "AddBackward0" in nodes(unit(last(torch.randn(8, 16, 32, 32))))


@pytest.mark.parametrize("name", ["resnet56", "ghost_resnet56", "vgg16", "ghostnet_050"])
def test_models_join_norm_and_activation(name):
    torch.manual_seed(0)
    options = {} if "vgg" in name else {"stem": "cifar"}
    model = sl.create_model(name, 5, drop_rate=0.0, **options)
    x = last(torch.randn(16, 3, 32, 32))
    kinds = nodes(model.stages()[0](model.stem(x)) if name == "vgg16" else model.stem(x))
    assert "_BatchNormActBackward" in kinds
    assert "ReluBackward0" not in kinds


def test_a_convolution_with_its_norm_and_activation():
    torch.manual_seed(0)
    unit = ConvNormAct(3, 12, Layers.of("batch"), 3)
    assert is_one(unit(last(torch.randn(4, 3, 40, 40))))
