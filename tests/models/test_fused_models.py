"""Whole models whose Ghost modules are one operation each, in what else users do with them."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import several
import torch
from behind import last, nodes
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import spiritlevel as sl
from spiritlevel.kernels import remade
from spiritlevel.models.ghost import GhostBottleneck, GhostModule
from spiritlevel.models.layers import Layers

FAMILIES = ["ghostnet_050", "ghostnetv2_100", "ghost_vgg16", "ghost_resnet56"]


def made(name="ghostnet_050", classes=5):
    torch.manual_seed(0)
    return sl.create_model(name, classes, stem="cifar", drop_rate=0.0)


def images(n=4, side=32, chs=3):
    return torch.randn(n, chs, side, side, generator=torch.Generator().manual_seed(1))


def bottleneck(in_chs=16, out_chs=16, **options):
    torch.manual_seed(0)
    return GhostBottleneck(in_chs, 48, out_chs, Layers.of("batch"), **options)


def count(y, name):
    return sum(name in each for each in nodes(y))


def step(model, x, y, kernels="auto"):
    model.zero_grad()
    with sl.kernels.use(kernels):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_ghost_module_of_a_family_is_one_operation(name):
    model = made(name)
    modules = sum(isinstance(m, GhostModule) for m in model.modules())
    y = model(images())
    assert count(y, "_Halves") == modules > 0
    assert count(y, "CatBackward") == 0
    assert count(model.intermediates(images())[-1], "_Halves") == modules
    with sl.kernels.use("aten"):
        assert count(model(images()), "_Halves") == 0


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        "resnet56",
        "ghostnetv3_100",
        pytest.param("ghost_resnet50", marks=pytest.mark.slow),
    ],
)
def test_outputs_gradients_and_statistics_are_the_layers_own(name):
    """As near to float64 as torch's layers come in float32, which is what rounding leaves."""
    model = made(name)
    twin, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    x, y = images(), torch.tensor([0, 1, 2, 3])
    step(model, x, y)
    step(twin, x, y, "aten")
    step(exact, x.double(), y, "aten")

    def off(one):
        each = [*zip(one.parameters(), exact.parameters(), strict=True)]
        grads = [((p.grad - q.grad).norm() / (q.grad.norm() + 1e-9)).item() for p, q in each]
        buffers = [*zip(one.buffers(), exact.buffers(), strict=True)]
        return torch.tensor(grads).median().item(), max(
            ((b - c).abs().max() / (c.abs().max() + 1e-9)).item() for b, c in buffers
        )

    (grads, buffers), (theirs, of_theirs) = off(model), off(twin)
    assert grads < 3 * theirs + 1e-6
    assert buffers < 3 * of_theirs + 1e-5


def test_a_bottleneck_adds_its_shortcut_within():
    block, x = bottleneck(), last(images(chs=16))
    y = block(x)
    assert count(y, "AddBackward") == 0
    assert count(y, "_Halves") == 2
    with sl.kernels.use("aten"):
        torch.testing.assert_close(copy.deepcopy(block)(x), y)


@pytest.mark.parametrize("gate", ["", "hard"])
def test_what_only_the_second_module_reads_is_made_again_to_the_bit(gate, monkeypatch):
    block, x = bottleneck(gate=gate), last(images(chs=16)).requires_grad_()
    made, make = [], remade._Remade.__call__

    def noted(way):
        made.append(make(way))
        return made[-1]

    monkeypatch.setattr(remade._Remade, "__call__", noted)
    inputs = []
    block.ghost2.register_forward_pre_hook(lambda _m, given: inputs.append(given[0].detach()))
    twin = copy.deepcopy(block)
    twin.ghost2._forward_pre_hooks.clear()
    block(x).square().sum().backward()  # its hook sees the input, which is then kept
    assert not made
    grads, x.grad = [x.grad, *[p.grad for p in block.parameters()]], None
    twin(x).square().sum().backward()
    assert len(made) == 1
    assert torch.equal(made[0], inputs[0])
    for one, other in zip(grads, [x.grad, *[p.grad for p in twin.parameters()]], strict=True):
        assert torch.equal(one, other)


def test_what_is_made_again_is_not_kept():
    block, x, seen = bottleneck(), last(images(chs=16)), []
    block.ghost1.register_forward_hook(lambda _m, _x, y: seen.append(weakref.ref(y)))
    y = block(x)
    assert y.requires_grad
    assert seen[0]() is None


def test_a_step_before_the_backward_pass_is_an_error_as_torch_has_it():
    for name in (
        "ghost1.cheap_operation.1",
        "ghost2.primary_conv.0",
        "ghost2.cheap_operation.0",
        "ghost2.cheap_operation.1",
    ):
        block, x = bottleneck(), last(images(chs=16))
        y = block(x)
        with torch.no_grad():
            block.get_submodule(name).weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_second_derivatives_go_through_what_is_made_again():
    x = last(images(n=2, side=8, chs=16)).requires_grad_()
    found = []
    for kernels in ("auto", "aten"):
        block = bottleneck()
        with sl.kernels.use(kernels):
            (grad,) = torch.autograd.grad(block(x).pow(3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(grad.square().sum(), [x, *block.parameters()]))
    for one, other in zip(*found, strict=True):
        assert ((one - other).norm() / other.norm().clamp(min=1e-3)).item() < 1e-3


def test_a_hook_on_a_whole_module_sees_its_output_which_stays_one_operation():
    block, x, seen = bottleneck(), last(images(chs=16)), []
    plain = copy.deepcopy(block)(x)
    block.ghost2.register_forward_hook(lambda _m, _x, y: seen.append(y))
    y = block(x)
    torch.testing.assert_close(seen[0] + x, y)
    torch.testing.assert_close(y, plain)
    assert count(y, "_Halves") == 2


def test_a_hook_on_a_layer_gets_gradients_for_grad_cam():
    model, seen = made(), {}
    layer = model.blocks[8][0].ghost2.primary_conv[0]
    layer.register_forward_hook(lambda _m, _x, y: seen.update(y=y))
    layer.register_full_backward_hook(lambda _m, _x, grads: seen.update(grad=grads[0]))
    with pytest.warns(UserWarning, match="slower, for a hook on a Conv2d in it"):
        y = model(images())
    y[:, 0].sum().backward()
    assert seen["grad"].shape == seen["y"].shape
    assert seen["grad"].abs().sum() > 0
    assert count(y, "_Halves") == sum(isinstance(m, GhostModule) for m in model.modules()) - 1


def test_a_model_whose_norms_took_their_activations_in_runs_as_before():
    model = made()
    twin = sl.fuse(copy.deepcopy(model)).train()
    x, y = images(), torch.tensor([0, 1, 2, 3])
    assert torch.equal(step(model, x, y), step(twin, x, y))
    assert count(model(x), "_Halves") == count(twin(x), "_Halves")
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


def test_checkpoints_are_those_of_the_plain_path():
    x, y = images(), torch.tensor([0, 1, 2, 3])
    model, twin = made(), made()
    step(model, x, y)
    with sl.kernels.use("aten"):
        twin.load_state_dict(model.state_dict())
        model.eval(), twin.eval()
        assert torch.equal(model(x), twin(x))


def test_images_of_any_layout_are_brought_to_one_and_grow_no_copy_of_it():
    model = made()
    twin, x = copy.deepcopy(model), images()
    assert torch.equal(model(x), twin(last(x)))
    model.eval()
    assert model.stem(x).is_contiguous()  # nobody's layout is changed where nothing is won


def test_torch_compiles_a_training_bottleneck_whole():
    block, x = bottleneck(), last(images(chs=16))
    plain = copy.deepcopy(block)(x)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, plain)
    assert count(y, "_Halves") == 0


def test_export_and_fx_see_the_layers():
    model = made()
    graph = torch.export.export(model, (images(),), strict=False).graph
    called = [str(node.target) for node in graph.nodes]
    assert any("cat" in name for name in called)
    traced = torch.fx.symbolic_trace(bottleneck())
    assert "ghost1.primary_conv.0" in {n.target for n in traced.graph.nodes}


def test_multiply_adds_are_counted():
    model = made()
    with FlopCounterMode(display=False) as ours:
        model(images())
    with sl.kernels.use("aten"), FlopCounterMode(display=False) as theirs:
        model(images())
    assert ours.get_total_flops() == theirs.get_total_flops() > 1e6


@pytest.mark.filterwarnings("ignore:some of a network runs layer by layer")
def test_pruned_weights_stay_zero_while_training():
    model = made()
    conv = model.blocks[4][0].ghost1.primary_conv[0]
    prune.l1_unstructured(conv, "weight", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model, images(), torch.tensor([0, 1, 2, 3]))
        optimizer.step()
    model(images())
    assert (conv.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    prune.remove(conv, "weight")
    assert (conv.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_functional_call_takes_parameters_from_outside():
    model = made()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = images()
    expected = copy.deepcopy(model)(x)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for p in state.values():
        p.requires_grad_()
    y = torch.func.functional_call(model, state, (x,))
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert all(p.grad is not None for p in state.values())
    assert all(p.grad is None for p in model.parameters())


def test_checkpointing_gives_the_same_bits():
    model, spared = made(), made()
    spared.checkpointing = True
    x, y = images(), torch.tensor([0, 1, 2, 3])
    assert torch.equal(step(model, x, y), step(spared, x, y))
    for p, q in zip(model.parameters(), spared.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for b, c in zip(model.buffers(), spared.buffers(), strict=True):
        assert torch.equal(b, c)


def test_frozen_weights_have_no_gradient():
    model = made()
    model.blocks[4].requires_grad_(False)
    step(model, images(), torch.tensor([0, 1, 2, 3]))
    assert all(p.grad is None for p in model.blocks[4].parameters())
    assert all(p.grad is not None for p in model.blocks[3].parameters())


def test_evaluation_is_untouched():
    model = made().eval()
    x = images()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        ours = model(x)
        with sl.kernels.use("aten"):
            torch.testing.assert_close(model(x), ours, rtol=1e-4, atol=1e-5)
    assert count(model(x.requires_grad_()), "_Halves") == 0


def test_a_probe_reads_what_it_reads_of_layers_and_stays_out_of_the_way():
    x, y = images(), torch.tensor([0, 1, 2, 3])
    read = []
    for kernels in ("auto", "aten"):
        model = made()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with sl.kernels.use(kernels), sl.Probe(model, optimizer=optimizer, every=1) as probe:
            output = model(x)
            F.cross_entropy(output, y).backward()
            optimizer.step()
        assert (count(output, "_Halves") > 0) is (kernels == "auto")
        assert not probe.unseen
        assert all(sum(c.per_step.elements()) == 1 for c in probe.counts.layers.values())
        read.append(probe.readings.to_pandas())
    ours, theirs = read
    assert list(ours.layer) == list(theirs.layer)
    for column in ("input_mean", "input_var", "output_mean", "output_var", "dead_share"):
        close = torch.tensor((ours[column] - theirs[column]).abs().to_numpy())
        scale = torch.tensor(theirs[column].abs().to_numpy()).clamp(min=0.1)
        assert ours[column].isna().equals(theirs[column].isna())
        assert (close / scale).nan_to_num(0).max() < 0.01, column


def trained(rank, world):
    """Two steps of a Ghost network, its gradients averaged by DistributedDataParallel."""
    model = nn.parallel.DistributedDataParallel(made())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = images(8), torch.arange(8) % 5
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(x[mine])
        F.cross_entropy(output, y[mine]).backward()
        optimizer.step()
    return count(output, "_Halves"), [p.detach().clone() for p in model.parameters()]


def test_processes_average_their_gradients(tmp_path):
    (ones, first), (_, second) = several.run(2, "test_fused_models.trained", tmp_path)
    assert ones == 32
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    alone = [made(), made()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in alone]
    x, y = images(8), torch.arange(8) % 5
    for _ in range(2):
        for rank, model in enumerate(alone):
            step(model, x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4])
        for p, q in zip(alone[0].parameters(), alone[1].parameters(), strict=True):
            p.grad = q.grad = (p.grad + q.grad) / 2
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(first, alone[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def losses(kernels, layout, steps=200):
    model = made(classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(256) % 10
    data = torch.randn(256, 3, 32, 32, generator=draw) + labels.reshape(-1, 1, 1, 1) / 5
    found = []
    for _ in range(steps):
        batch = torch.randint(256, (32,), generator=draw)
        x = data[batch].contiguous(memory_format=layout)
        found.append(step(model, x, labels[batch], kernels))
        optimizer.step()
    return torch.stack(found).double()


@pytest.mark.slow
def test_two_hundred_steps_go_where_the_plain_path_goes():
    """No farther from it than it is from itself with its sums in another order of memory."""
    plain = losses("aten", torch.contiguous_format)
    other = losses("aten", torch.channels_last)
    ours = losses("auto", torch.channels_last)
    assert plain[-20:].mean() < plain[:20].mean() - 1  # it learns
    torch.testing.assert_close(ours[:5], plain[:5], rtol=1e-4, atol=1e-4)
    apart, rounding = (ours - plain).abs(), (other - plain).abs()
    for fifty in apart.split(50), rounding.split(50):
        assert max(each.mean() for each in fifty) < 0.05
    assert apart.mean() < 3 * rounding.mean() + 1e-3
