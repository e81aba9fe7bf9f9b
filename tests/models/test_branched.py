"""GhostNetV3's sums of branches as one operation: when, what they give, and who is told."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch
from behind import last, nodes
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import spiritlevel as sl
from spiritlevel.kernels import remade
from spiritlevel.models import branched
from spiritlevel.models.aside import layer_by_layer
from spiritlevel.models.ghost import GhostBottleneck, GhostModule
from spiritlevel.models.layers import Layers
from spiritlevel.nn.observe import observing


def made(in_chs=24, out_chs=36, norm="batch", **options):
    torch.manual_seed(0)
    return scattered(GhostModule(in_chs, out_chs, Layers.of(norm), branches=3, **options))


def bottleneck(stride=2, kernel=5, **options):
    torch.manual_seed(0)
    layers = Layers.of("batch")
    block = GhostBottleneck(16, 40, 24, layers, stride=stride, kernel=kernel, branches=3, **options)
    return scattered(block)


def scattered(module):
    """Its norms with weights and biases as in the middle of a training."""
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
    return module


def images(chs=24, size=10, n=4):
    return last(torch.randn(n, chs, size, size, generator=torch.Generator().manual_seed(1)) + 1)


def is_one(y):
    return {"_BranchedBackward", "AddBackward0"} & {*nodes(y)} == {"_BranchedBackward"}


def stepped(module, x, kernels="auto"):
    """Output, gradients of input and parameters, and buffers after one pass."""
    module = copy.deepcopy(module)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with sl.kernels.use(kernels):
        y = module(x)
        y.float().square().mean().backward()
    return [y.detach(), x.grad, *[p.grad for p in module.parameters()], *module.buffers()]


def off(found, exact):
    """How far each is from what is exact, in units of that, or of a small part of the largest."""
    least = 1e-3 * max(other.double().norm().item() for other in exact[1:])
    each = zip(found, exact, strict=True)
    return max(
        ((a.double() - b).norm() / b.double().norm().clamp(min=least)).item() for a, b in each
    )


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (made(), images()),
        (made(act=False), images()),
        (made(80, 36), images(80)),
        (made(24, 36, d=1), images()),
        (bottleneck(), images(16)),
        (bottleneck(kernel=3, gate="hard", attention=True), images(16, 15)),
        (bottleneck(stride=1), images(16, 12)),
    ],
    ids=["module", "linear", "narrowing", "1x1", "bottleneck", "odd", "no stride"],
)
def test_numbers_gradients_and_statistics_are_the_layers_own(module, x):
    """As near to float64 as torch's layers come in float32."""
    exact = stepped(copy.deepcopy(module).double(), x.double(), "aten")
    ours, plain = off(stepped(module, x), exact), off(stepped(module, x, "aten"), exact)
    assert ours < 3 * plain + 2e-6
    assert ours < 1e-4


def test_each_sum_of_a_network_is_in_one_operation():
    torch.manual_seed(0)
    model = sl.create_model("ghostnetv3_050", 5, stem="cifar", drop_rate=0.0)
    x = torch.randn(4, 3, 32, 32)
    modules = sum(isinstance(m, GhostModule) for m in model.modules())
    strided = sum(isinstance(m, GhostBottleneck) and m.branched for m in model.modules())
    found = nodes(model(x))
    assert found.count("_BranchedBackward") == modules > strided > 0
    assert found.count("_HalvedBackward") == strided
    for way in (sl.kernels.use("aten"), layer_by_layer()):
        with way:
            assert not {"_BranchedBackward", "_HalvedBackward"} & {*nodes(model(x))}


def test_every_norm_follows_the_batch_once_by_its_own_share():
    module, x = bottleneck(), images(16)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for at, norm in enumerate(norms):
        norm.momentum = 0.1 + at / 100
    plain = copy.deepcopy(module)
    for _ in range(2):
        module(x)
        with sl.kernels.use("aten"):
            plain(x)
    for (name, one), other in zip(module.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    assert {norm.num_batches_tracked.item() for norm in norms} == {2}


def told_of(module, x, kernels):
    told = []
    with (
        sl.kernels.use(kernels),
        observing(lambda layer, _, values, found: told.append((layer, values, found))),
    ):
        y = module(x)
    # Values are made when they are asked for.
    return y, {layer: (*values(), *found()) for layer, values, found in told if found}


@pytest.mark.parametrize("stride", [1, 2])
def test_who_observes_is_told_of_each_norm_and_changes_no_bit(stride):
    module, x = bottleneck(stride, gate="hard"), images(16)
    y, told = told_of(module, x, "auto")
    assert torch.equal(y, bottleneck(stride, gate="hard")(x))
    twin = bottleneck(stride, gate="hard")
    _, plain = told_of(twin, x, "aten")
    names = {layer: name for name, layer in [*module.named_modules(), *twin.named_modules()]}
    told, plain = ({names[layer]: v for layer, v in each.items()} for each in (told, plain))
    assert told.keys() == plain.keys()
    for name, values in plain.items():
        for one, other in zip(told[name], values, strict=True):
            torch.testing.assert_close(one.float(), other.float(), rtol=1e-3, atol=1e-4, msg=name)


def test_who_observes_is_told_of_the_activations():
    module, x, told = made(), images(), {}
    with observing(lambda layer, _, values, found: told.update({layer: values})):
        y = module(x)
    for act, half in ((module.primary_activation, y[:, :18]), (module.cheap_activation, y[:, 18:])):
        before, after = told[act]()
        torch.testing.assert_close(after, half.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after, before.relu())


HOOKED = ["primary_rpr_conv.1", "primary_rpr_conv.0.conv", "cheap_rpr_scale.bn1", "cheap_rpr_skip"]
HOOKED += ["cheap_rpr_conv.2.act1", "primary_activation", "cheap_activation"]


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_a_hook_on_a_part_is_called_and_one_warning_says_what_it_costs(name, kind):
    module, x, called = made(), images().requires_grad_(), []
    handle = getattr(module.get_submodule(name), f"register_{kind}")(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="layer by layer, slower, for a hook on a"):
        module(x).sum().backward()
    assert called == [1]
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_one(module(x))


def test_a_hook_on_a_branch_that_halves_is_called():
    module, x, called = bottleneck(), images(16), []
    module.dw_rpr_conv[1].conv.register_forward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="slower, for a hook on a Conv2d in it"):
        y = module(x)
    assert called == [1]
    assert "_HalvedBackward" not in nodes(y)
    assert nodes(y).count("_BranchedBackward") == 2


def dropped(module):
    module.cheap_rpr_conv[0].act1 = nn.Dropout(0.5)


def dropped_whole(module):
    module.cheap_rpr_conv[0] = nn.Sequential(module.cheap_rpr_conv[0], nn.Dropout(0.5))


def skipped(module):
    module.cheap_rpr_skip = nn.Identity()


def weighed(module):
    parametrizations.weight_norm(module.primary_rpr_conv[0].conv)


def bounded(module):
    module.cheap_activation = nn.Hardtanh(0, 0.5)


def bounded_after_both(module):
    module.act = nn.Hardtanh(0, 0.5)


CHANGES = [dropped, dropped_whole, skipped, weighed, bounded, bounded_after_both]


@pytest.mark.parametrize("change", CHANGES)
def test_what_stands_in_the_place_of_another_is_run(change):
    module, x = made(), images()
    change(module)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="layer by layer, slower, for a"):
        y = module(x)
    assert "_BranchedBackward" not in nodes(y)
    torch.manual_seed(0)
    with sl.kernels.use("aten"):
        torch.testing.assert_close(y, module(x), rtol=1e-3, atol=1e-4)


def test_a_branch_less_is_one_operation_still():
    module, x = made(), images()
    del module.cheap_rpr_scale, module.primary_rpr_conv[0]
    assert is_one(module(x))
    exact = stepped(copy.deepcopy(module).double(), x.double(), "aten")
    assert off(stepped(module, x), exact) < 1e-4


UNTRACKED = [
    lambda norm: norm.__dict__.update(momentum=None),
    lambda norm: norm.__dict__.update(track_running_stats=False),
    lambda norm: norm.eval(),
    lambda norm: setattr(norm, "running_mean", None) or setattr(norm, "running_var", None),
    lambda norm: setattr(norm, "weight", nn.Parameter(torch.ones(36)[::2])),
]


@pytest.mark.parametrize("name", ["primary_rpr_conv.1.bn1", "cheap_rpr_skip"])
@pytest.mark.parametrize(
    "change", UNTRACKED, ids=["cumulative", "untracked", "eval", "no statistics", "with gaps"]
)
def test_a_norm_that_our_kernels_cannot_take_is_left_to_its_layer(name, change):
    module, x = made(), images()
    change(module.get_submodule(name))
    plain = copy.deepcopy(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert branched.branched_module(module, x) is None
        y = module(x)
    with sl.kernels.use("aten"):
        torch.testing.assert_close(y, plain(x), rtol=1e-3, atol=1e-4)
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def shared(module):
    module.cheap_rpr_skip = module.cheap_rpr_scale.bn1


def shared_by_both_sums(module):
    module.cheap_rpr_skip = module.primary_rpr_conv[0].bn1


def turned(module):
    module.cheap_rpr_conv.insert(3, module.cheap_rpr_scale)
    module.cheap_rpr_scale = None


def unlike(module):
    module.cheap_activation = nn.Identity()


@pytest.mark.parametrize("change", [shared, shared_by_both_sums, turned, unlike])
def test_sums_that_are_not_as_published_are_run_branch_by_branch(change):
    module, x = made(), images()
    change(module)
    plain = copy.deepcopy(module)
    y = module(x)
    assert "_BranchedBackward" not in nodes(y)
    with sl.kernels.use("aten"):
        torch.testing.assert_close(y, plain(x), rtol=1e-3, atol=1e-4)
    for one, other in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda module, x: (module.eval(), x),
        lambda module, x: (module.double(), x.double()),
        lambda module, x: (module, x.contiguous()),
        lambda module, x: (made(24, 35), x),
        lambda module, x: (made(kernel=3), x),
        lambda module, x: (made(d=5), x),
        lambda module, x: (made(norm="group:2"), x),
        lambda module, x: (made(norm="renorm"), x),
    ],
    ids=["eval", "float64", "contiguous", "odd", "3x3", "5x5", "group", "renorm"],
)
def test_where_it_is_not_one_its_layers_run_without_a_word(change):
    module, x = change(made(), images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "_BranchedBackward" not in nodes(module(x.requires_grad_()))


def test_one_value_for_each_channel_is_an_error_as_torch_has_it():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made()(images(size=1, n=1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bottleneck()(images(16, size=2, n=1))


def test_autocast_keeps_bfloat16_and_float16_is_left_to_the_layers():
    module, x = bottleneck(), images(16)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        found = stepped(module, x)
        assert made()(images()).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        plain = stepped(module, x, "aten")
    assert y.dtype is torch.bfloat16
    assert {"_BranchedBackward", "_HalvedBackward"} <= {*nodes(y)}
    assert ((found[0] - plain[0]).float().norm() / plain[0].float().norm()).item() < 0.02
    for one, other in zip(found, plain, strict=True):
        assert one.dtype is other.dtype
    with torch.autocast("cpu", torch.float16):
        assert branched.branched_module(made(), images()) is None


def test_a_float64_gradient_and_frozen_parameters():
    module, x = bottleneck(), images(16)
    frozen = copy.deepcopy(module).requires_grad_(False)
    assert not frozen(x).requires_grad
    frozen.ghost2.cheap_rpr_scale.conv.weight.requires_grad_()
    frozen(x).sum().backward()
    module(x).sum().backward()
    found = frozen.ghost2.cheap_rpr_scale.conv.weight.grad
    torch.testing.assert_close(found, module.ghost2.cheap_rpr_scale.conv.weight.grad)


def test_second_derivatives_and_functional_transforms_are_those_of_the_layers():
    x = images(16, 6).requires_grad_()
    found = []
    for kernels in ("auto", "aten"):
        block = bottleneck()
        with sl.kernels.use(kernels):
            (grad,) = torch.autograd.grad(block(x).pow(3).mean(), x, create_graph=True)
            found.append(torch.autograd.grad(grad.square().sum(), [x, *block.parameters()]))
    least = max(each.norm().item() for each in found[1]) * 1e-3
    for one, other in zip(*found, strict=True):
        assert ((one - other).norm() / other.norm().clamp(min=least)).item() < 2e-3
    block = bottleneck()
    tensors = {name: p.detach() for name, p in block.named_parameters()}

    def loss(tensors):
        buffers = {name: b.clone() for name, b in block.named_buffers()}
        return functional_call(block, tensors | buffers, (x.detach(),)).square().mean()

    mapped = torch.func.grad(loss)(tensors)
    block(x).square().mean().backward()
    for name, p in block.named_parameters():
        torch.testing.assert_close(mapped[name], p.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_what_only_the_second_module_reads_is_made_again_to_the_bit(monkeypatch):
    block, x, kept, again = bottleneck(stride=1), images(16), [], []
    make = remade._Remade.__call__
    monkeypatch.setattr(
        remade._Remade, "__call__", lambda way: again.append(make(way)) or again[-1]
    )
    block.ghost1.register_forward_hook(lambda _m, _x, y: kept.append((weakref.ref(y), y.clone())))
    y = block(x)
    ((reference, exact),) = kept
    assert reference() is None
    y.sum().backward()
    assert len(again) == 1
    assert torch.equal(again[0], exact)


def test_a_step_before_the_backward_pass_is_an_error_as_torch_has_it():
    for name in (
        "ghost1.cheap_rpr_conv.1.bn1",
        "ghost1.primary_rpr_conv.1.conv",
        "dw_rpr_scale.bn1",
        "ghost2.primary_rpr_conv.0.conv",
        "ghost2.cheap_rpr_conv.1.conv",
        "ghost2.cheap_rpr_skip",
    ):
        block = bottleneck(stride=1 if name.startswith("ghost2") else 2)
        y = block(images(16))
        with torch.no_grad():
            block.get_submodule(name).weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("far", [0.0, 3e3])
def test_a_mean_far_from_zero_goes_back_too(far):
    module = made()
    x = images() + far
    for norm in module.primary_rpr_conv[0].bn1, module.cheap_rpr_skip:
        norm.bias.data += far / 30
    exact = stepped(copy.deepcopy(module).double(), x.double(), "reference")
    ours, plain = off(stepped(module, x), exact), off(stepped(module, x, "aten"), exact)
    assert ours < max(2 * plain, 1e-5)


def test_checkpoints_count_no_batch_twice():
    torch.manual_seed(0)
    model = sl.create_model("ghostnetv3_050", 5, stem="cifar", drop_rate=0.0)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 32, 32)
    twin.checkpointing = True
    for each in (model, twin):
        each(x).square().sum().backward()
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_torch_compiles_a_training_bottleneck_whole():
    block, x = bottleneck(), images(16)
    twin = copy.deepcopy(block)
    y = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, twin(x), rtol=1e-3, atol=1e-4)
    for one, other in zip(block.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
