"""Ghost modules as one operation: when they are, what they give, and whom they step aside for."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from behind import last
from torch import nn
from torch.nn.utils import parametrizations

import spiritlevel as sl
from spiritlevel.models import fused
from spiritlevel.models.aside import layer_by_layer
from spiritlevel.models.attention import SqueezeExcite
from spiritlevel.models.ghost import GhostModule
from spiritlevel.models.layers import Layers
from spiritlevel.nn.observe import observing


def made(in_chs=24, out_chs=36, **options):
    torch.manual_seed(0)
    module = GhostModule(in_chs, out_chs, Layers.of("batch"), **options)
    for norm in (module.primary_conv[1], module.cheap_operation[1]):
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return module


def images(chs=24, size=10, n=4):
    return last(torch.randn(n, chs, size, size, generator=torch.Generator().manual_seed(1)) + 1)


def run(module, x, residual=None):
    """By its operation where there is one, else by its layers."""
    y = fused.ghost_module(module, x, residual)
    if y is None:
        y = module(x) if residual is None else module(x) + residual()
    return y


def is_one(y):
    """Whether a Ghost module's operation made it, or what a concatenation made."""
    return "Halves" in type(y.grad_fn).__name__


def gradients(module, x, kernels, residual=None):
    """Output, gradients of input and parameters, and buffers after one pass."""
    module = copy.deepcopy(module)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with sl.kernels.use(kernels):
        y = run(module, x, residual)
        y.square().mean().backward()
    return [y.detach(), x.grad, *[p.grad for p in module.parameters()], *module.buffers()]


def close(found, exact, off=2e-5):
    """In units of the largest number; a gradient is the difference of larger ones."""
    for one, other in zip(found, exact, strict=True):
        scale = other.double().abs().max().clamp(min=1e-2)
        assert ((one.double() - other.double()).abs().max() / scale).item() < off


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("adds", [False, True])
def test_the_numbers_of_its_layers(act, kernel, adds):
    module, x = made(act=act, kernel=kernel), images()
    assert is_one(run(module, x))
    added = images(36) if adds else None
    exact = gradients(
        module.double(), x.double(), "aten", (lambda: added.double()) if adds else None
    )
    close(gradients(module.float(), x, "auto", (lambda: added) if adds else None), exact)


def test_a_residual_of_another_shape_or_type_is_added_as_torch_does():
    module, x = made(), images()
    plain = run(copy.deepcopy(module), x)
    for residual in (2.0, torch.ones(4, 36, 1, 1), images(36).double()):
        found = run(copy.deepcopy(module), x, lambda: residual)  # noqa: B023
        torch.testing.assert_close(found, plain + residual)


def test_autocast_keeps_bfloat16():
    module, x = made(), images()
    with torch.autocast("cpu", torch.bfloat16):
        y = run(module, x)
    assert y.dtype is torch.bfloat16
    assert is_one(y)
    with torch.autocast("cpu", torch.bfloat16), sl.kernels.use("aten"):
        plain = run(copy.deepcopy(module), x)
    assert ((y - plain).float().norm() / plain.float().norm()).item() < 0.02
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda module, x: (module.eval(), x),
        lambda module, x: (module.double(), x.double()),
        lambda module, x: (module, x.contiguous()),
        lambda module, x: (module.primary_conv[1].eval() and module, x),
    ],
    ids=["eval", "float64", "contiguous", "a norm in eval"],
)
def test_where_it_is_not_one_its_layers_run_without_a_word(change):
    module, x = change(made(), images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_one(run(module, x))


@pytest.mark.parametrize("norm", ["group:2", "none", "ghost:2", "instance", "renorm"])
def test_other_norms_run_as_they_are(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_one(run(GhostModule(24, 36, Layers.of(norm)), images()))


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("half", ["primary_conv", "cheap_operation"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_a_hook_on_a_layer_is_called_and_one_warning_says_what_it_costs(half, at, kind):
    module, x, called = made(), images().requires_grad_(), []
    layer = getattr(module, half)[at]
    handle = getattr(layer, f"register_{kind}")(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="layer by layer, slower, for a hook on a"):
        run(module, x).sum().backward()
    assert called == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(module, x).sum().backward()
        assert called == [1, 1]
        handle.remove()
        assert is_one(run(module, x))


def test_layer_by_layer_is_what_a_hook_on_a_norm_leads_to_without_a_word():
    module, x = made(), images()
    hooked = copy.deepcopy(module)
    hooked.cheap_operation[1].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="for a hook on a BatchNorm2d in it"):
        y = run(hooked, x)
    with warnings.catch_warnings(), layer_by_layer():
        warnings.simplefilter("error")
        found = run(module, x)
    assert not is_one(found)
    assert torch.equal(found, y)
    with pytest.raises(ZeroDivisionError), layer_by_layer():
        raise ZeroDivisionError
    assert is_one(run(module, x))


def test_a_parametrized_layer_runs_as_it_stands():
    module, x = made(), images()
    parametrizations.weight_norm(module.primary_conv[0])
    with pytest.warns(UserWarning, match="for a ParametrizedConv2d in it"):
        y = run(module, x)
    y.sum().backward()
    assert module.primary_conv[0].parametrizations.weight.original0.grad is not None


def test_a_layer_in_the_place_of_another_is_run():
    module, x = made(), images()
    module.cheap_operation[2] = nn.Hardtanh(0, 0.5)
    with pytest.warns(UserWarning, match="for a Hardtanh in it"):
        assert run(module, x)[:, 18:].max() <= 0.5


def test_other_shapes_of_the_cheap_convolution_are_run():
    module, x = made(), images()
    module.cheap_operation[0] = nn.Conv2d(18, 18, 3, padding=1, bias=False)
    assert not is_one(run(module, x))


def test_who_observes_is_told_of_both_norms_and_changes_no_bit():
    module, x, told = made(), images(), []
    other = copy.deepcopy(module)
    with observing(lambda layer, shape, values, found: told.append((layer, *values(), found))):
        y = run(module, x)
    told = [(layer, x, y, found()) for layer, x, y, found in told if found]
    assert is_one(y)
    assert torch.equal(y, run(other, x))
    assert [layer for layer, *_ in told] == [module.primary_conv[1], module.cheap_operation[1]]
    for layer, given, output, (mean, var) in told:
        exact = given.double()
        torch.testing.assert_close(mean, exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var, exact.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
        copied = copy.deepcopy(layer)
        with sl.kernels.use("aten"):
            torch.testing.assert_close(output, copied(given), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.relu(told[0][2]), y[:, :18].detach(), rtol=1e-5, atol=1e-6)


def test_momentum_counts_and_buffers_are_the_layers_own():
    module, x = made(), images()
    norm = module.primary_conv[1]
    norm.momentum = 0.5
    run(module, x)
    run(module, x)
    assert norm.num_batches_tracked.item() == 2
    with torch.no_grad():
        mean = module.primary_conv[0](x).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.75 * mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("half", "at", "layer"),
    [
        ("primary_conv", 0, lambda: nn.Sequential(nn.Conv2d(24, 4, 1), nn.Conv2d(4, 18, 1))),
        ("cheap_operation", 0, lambda: nn.Sequential(nn.Conv2d(18, 18, 3, padding=1))),
        ("cheap_operation", 2, lambda: nn.Hardtanh(0, 0.5)),
    ],
)
def test_what_stands_in_the_place_of_another_is_called(half, at, layer):
    module, x, called = made(), images(), []
    getattr(module, half)[at] = layer()
    module.primary_conv[0].register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="layer by layer, slower, for a .* in it"):
        assert not is_one(run(module, x))
    assert called == [1]


def narrow(module):
    module.primary_conv[1] = sl.nn.BatchNorm2d(8)


def fewer(module):
    module.cheap_operation[0] = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)


@pytest.mark.parametrize("change", [narrow, fewer])
def test_layers_that_do_not_fit_are_told_by_torch(change):
    module = made()
    change(module)
    with pytest.raises(RuntimeError):
        run(module, images())


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: setattr(norm, "running_mean", None) or setattr(norm, "running_var", None),
        lambda norm: setattr(norm, "momentum", None),
        lambda norm: setattr(norm, "track_running_stats", False),
        lambda norm: setattr(norm.bias, "data", norm.bias.data.double()),
        lambda norm: setattr(norm, "weight", nn.Parameter(torch.ones(36)[::2])),
    ],
    ids=["no statistics", "cumulative", "untracked", "another type", "with gaps"],
)
def test_a_norm_that_our_kernels_cannot_take_is_left_to_its_layer(change):
    module = made()
    change(module.cheap_operation[1])
    assert fused.ghost_module(module, images()) is None


def test_float16_is_left_to_the_layers():
    module, x = made(), images()
    with torch.autocast("cpu", torch.float16):
        assert fused.ghost_module(module, x) is None
    assert module.primary_conv[1].num_batches_tracked.item() == 0


def test_who_observes_under_autocast_is_told():
    module, x, told = made(), images(), []
    with (
        torch.autocast("cpu", torch.bfloat16),
        observing(lambda layer, shape, values, found: told.append([v.dtype for v in values()])),
    ):
        assert is_one(run(module, x))
    assert told == [[torch.bfloat16, torch.bfloat16]] * 4


@pytest.mark.parametrize("gate", ["hard", "clamped"])
def test_squeeze_excitation(gate):
    torch.manual_seed(0)
    module, x = SqueezeExcite(24, gate), images()
    y = fused.squeeze_excite(module, x)
    torch.testing.assert_close(y, module(x))
    assert fused.squeeze_excite(module.eval(), x) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "conv_expand", nn.Conv2d(8, 1, 1)),
        lambda module: setattr(module, "conv_reduce", nn.Conv2d(24, 8, 3, padding=1)),
        lambda module: setattr(module, "conv_expand", nn.Conv2d(8, 24, 1, groups=2)),
    ],
)
def test_other_convolutions_squeeze_and_excite_as_they_are(change):
    module = SqueezeExcite(24, reduced_chs=8)
    change(module)
    assert fused.squeeze_excite(module, images()) is None
