"""Two models side by side: whether they agree, where they part, and that nothing is left behind."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
from spiritlevel.probe import compare as module
from spiritlevel.probe.compare import compare, unwrapped

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def warmed(dtype=torch.float32):
    """A residual network whose running statistics are those of X, with gammas that differ."""
    torch.manual_seed(0)
    model = create_model("small_resnet", num_classes=5).to(dtype)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    model(X.to(dtype))
    return model


def folded(model):
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        children = list(parent._modules.items())
        for (one, conv), (two, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[one] = fuse_conv_bn_eval(conv, norm)
                parent._modules[two] = nn.Identity()
    return model


def by_hand(model, reference):
    """The largest difference of the outputs in eval, as a share of the largest output."""
    model, reference = copy.deepcopy(model).eval(), copy.deepcopy(reference).eval()
    with torch.no_grad():
        a, b = model(X), reference(X)
    same = (a.argmax(1) == b.argmax(1)).float().mean().item()
    return ((a - b).abs().max() / b.abs().max()).item(), same


def test_it_is_what_one_computes_by_hand():
    model, reference = warmed(), warmed()
    with torch.no_grad():
        model.classifier.weight.mul_(torch.tensor([[-1.0], [2.0], [1.0], [1.0], [1.0]]))
    found = compare(model, reference, [X])
    relative, agreement = by_hand(model, reference)
    assert found.relative == pytest.approx(relative, rel=1e-5)
    assert (found.agreement, found.samples) == (pytest.approx(agreement), 6)
    assert (found.agrees, found.first) == (False, "classifier")


@pytest.mark.parametrize("change", [copy.deepcopy, folded, lambda m: sl.fuse(copy.deepcopy(m))])
def test_what_computes_the_same_agrees(change):
    model = warmed()
    found = compare(change(model), model, [X])
    assert found.agrees, found
    assert (found.agreement, found.first) == (1.0, None)


@pytest.mark.parametrize("change", [copy.deepcopy, folded, lambda m: sl.fuse(copy.deepcopy(m))])
@pytest.mark.parametrize("path", ["stages.2.0.conv1", "stages.1.0.conv2", "stages.1.0.shortcut.0"])
def test_the_one_layer_that_is_wrong_is_named(change, path):
    """Though folding and fusing change what most layers give."""
    model = warmed()
    other = change(model)
    with torch.no_grad():
        other.get_submodule(path).weight.mul_(1.5)
    found = compare(other, model, [X])
    assert not found.agrees
    assert found.first == path
    assert found.at_first > 0.01


def test_a_changed_constant_is_found():
    model = warmed()
    other = copy.deepcopy(model)
    other.stages[1][0].norm2.eps = 0.1
    assert compare(other, model, [X]).first == "stages.1.0.norm2"


def test_wrappers_do_not_hide_the_paths():
    model = warmed()
    other = copy.deepcopy(model)
    other.stages[0][0].norm1.eps = 0.1
    wrapped = torch.optim.swa_utils.AveragedModel(other)
    assert unwrapped(nn.DataParallel(wrapped))[1] == "module.module."
    assert compare(wrapped, model, [X]).first == "module.stages.0.0.norm1"


def test_other_shapes_and_nan_are_an_infinite_difference():
    model = warmed()
    found = compare(create_model("small_resnet", num_classes=3), model, [X])
    assert (found.relative, found.shapes) == (float("inf"), ("(6, 3)", "(6, 5)"))
    other = copy.deepcopy(model)
    other.stages[0][0].norm1.running_var[0] = -1.0
    found = compare(other, model, [X])
    assert (found.relative, found.first) == (float("inf"), "stages.0.0.norm1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_tolerance_is_that_of_the_coarsest_type(dtype):
    model = warmed()
    found = compare(copy.deepcopy(model).to(dtype), model, [X])
    assert found.agrees
    assert found.tolerance == (module.COARSE if dtype is torch.bfloat16 else 1e-4)


def test_models_that_draw_random_numbers_draw_the_same():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    assert compare(Noisy(), Noisy(), [X]).relative == 0.0


def test_tuples_dicts_and_forward_are_fed():
    model = warmed()
    for batch in ((X, torch.zeros(6)), {"x": X, "labels": torch.zeros(6)}):
        assert compare(copy.deepcopy(model), model, [batch]).samples == 6
    found = compare(model, model, [{"image": X}], forward=lambda m, batch: m(batch["image"]))
    assert found.samples == 6


def test_the_models_are_left_as_they_were():
    model, reference = warmed(), warmed()
    with torch.no_grad():
        model.classifier.weight.add_(1.0)  # so that both passes are made
    model.stages[0].eval()
    states = [copy.deepcopy(each.state_dict()) for each in (model, reference)]
    modes = [[m.training for m in each.modules()] for each in (model, reference)]
    random = torch.get_rng_state()
    compare(model, reference, [X])
    for each, state, mode in zip((model, reference), states, modes, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in each.state_dict().items())
        assert [m.training for m in each.modules()] == mode
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in each.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_a_pass_that_raises_names_the_model_and_the_layer():
    model = warmed()
    with pytest.raises(UsageError, match=r"the reference could not be compared: 'conv'.*\(6, 3"):
        compare(model, create_model("small_resnet", in_chans=1), [X])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_a_compiled_model_is_compared_as_it_is_compiled():
    """By a compiler that doubles what each graph gives."""

    def doubling(graph, _inputs):
        return lambda *given: tuple(2 * each for each in graph(*given))

    model = warmed()
    assert compare(torch.compile(model, backend="eager"), model, [X]).agrees
    found = compare(torch.compile(copy.deepcopy(model), backend=doubling), model, [X])
    assert found.relative == pytest.approx(1.0, rel=1e-3)
    assert found.first is None  # layer by layer it is run without the compiler
