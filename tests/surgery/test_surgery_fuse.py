"""A fused model computes, trains, copies and is read as it was."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from surgery_models import (
    CLOSE,
    MODELS,
    BasicBlock,
    Functional,
    ResNet,
    ResUnit,
    assert_same,
    images,
    log_of,
    made,
    sequence,
    twin_of,
    why_of,
)
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import ACTIVATIONS
from spiritlevel.nn import batch


def fused_layers(model):
    kinds = (batch.BatchNormAct1d, batch.BatchNormAct2d, batch.BatchNormAct3d)
    return [m for m in model.modules() if type(m) in kinds]


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_to_the_same_weights_in_both_modes(name, with_example):
    model, fused = made(name)
    twin = twin_of(model)
    assert sl.fuse(model, images() if with_example else None) is model
    assert len(fused_layers(model)) == fused
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
    assert [e.action for e in model.spiritlevel_log].count("left") == 0
    assert_same(model, twin)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_buffers_and_the_optimizer_stay_the_same_objects(name):
    model, _ = made(name)
    twin = twin_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    other = torch.optim.Adam(twin.parameters(), 0.01)
    average = torch.optim.swa_utils.AveragedModel(model)
    before = [*model.named_parameters(), *model.named_buffers()]
    sl.fuse(model)
    after = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, _ in before] == [name for name, _ in after]
    assert all(a is b for (_, a), (_, b) in zip(before, after, strict=True))
    for _ in range(3):
        for each, its in ((model, optimizer), (twin, other)):
            torch.manual_seed(5)
            its.zero_grad()
            each(images()).square().mean().backward()
            its.step()
    average.update_parameters(model)
    for averaged, p in zip(average.parameters(), model.parameters(), strict=True):
        assert torch.equal(averaged, p)  # its first update is a copy
    # Adam divides by the root of tiny squares, which widens rounding.
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_pickles_compute_the_same_and_share_a_class(name):
    model, _ = made(name)
    sl.fuse(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = (
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301
        torch.load(file, weights_only=False),
    )
    expected = model.eval()(images())
    for other in copies:
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert torch.equal(other.eval()(images()), expected)
        assert other.spiritlevel_log == model.spiritlevel_log


def test_a_copy_has_weights_of_its_own():
    model, _ = made("pytorchcv")
    sl.fuse(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].body.conv2.bn.bias.add_(100)
    assert not torch.equal(other.eval()(images()), model.eval()(images()))


@pytest.mark.parametrize("name", MODELS)
def test_torch_fx_traces_it_and_torch_compile_takes_it_whole(name):
    model, fused = made(name)
    sl.fuse(model)
    graph = torch.fx.symbolic_trace(model.eval())
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert sum(type(model.get_submodule(n)) in FUSED_KINDS for n in names) == fused
    torch.testing.assert_close(graph(images()), model(images()))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for training in (False, True):
        model.train(training)
        torch.manual_seed(0)
        expected = twin_of(model)(images())
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(images()), expected, **CLOSE)


FUSED_KINDS = (batch.BatchNormAct1d, batch.BatchNormAct2d, batch.BatchNormAct3d)


@pytest.mark.parametrize("name", MODELS)
def test_torchs_conversion_to_sync_raises_rather_than_drop_an_activation(name):
    model, _ = made(name)
    sl.fuse(model)
    with pytest.raises(UsageError, match="convert_sync_batchnorm, which would drop"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def test_torchs_replicas_compute_the_same():
    model, _ = made("torchvision")
    sl.fuse(model)
    block = model.layer1[1].eval()
    replica = block._replicate_for_data_parallel()
    x = images(channels=6)
    assert torch.equal(replica(x), block(x))


def test_a_rewritten_module_is_what_it_was_but_for_its_forward():
    model = ResNet()
    block = model.layer1[1]
    sl.fuse(model)
    assert isinstance(block, BasicBlock)
    assert type(block).__name__ == "BasicBlock"
    assert type(block).__module__ == BasicBlock.__module__
    assert inspect.signature(block.forward) == inspect.signature(BasicBlock(2, 2).forward)
    assert isinstance(block.relu, nn.Identity)


def test_its_class_makes_new_ones_that_are_not_fused():
    model = ResNet()
    sl.fuse(model)
    new = type(model.layer1[0])(3, 3)
    assert type(new) is BasicBlock
    assert type(new.bn2) is nn.BatchNorm2d


def test_classes_that_register_their_subclasses_see_none():
    sl.fuse(nn.Sequential(Registered()))
    assert Registered.known == []


class Registered(nn.Module):
    known = []  # noqa: RUF012

    def __init_subclass__(cls, **options):
        Registered.known.append(cls)

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.bn(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_each_module_was_in_stays(training):
    model, _ = made("functional")
    model.train(training)
    model.convs[1].train(not training)
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    sl.fuse(model, images())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_goes_by_the_mode_of_the_part_that_it_stands_in():
    model, _ = made("nested")
    twin = twin_of(model)
    sl.fuse(model)
    for each in (model, twin):
        each.eval()
        each.part.training = True
    outputs = []
    for each in (model, twin):
        torch.manual_seed(3)
        outputs.append(each(images()))
    torch.testing.assert_close(*outputs, **CLOSE)
    assert not torch.equal(model(images()), outputs[0])


def test_the_log_tells_what_was_done_and_grows():
    model = nn.Sequential(ResUnit(3, 5), nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5))
    keys = list(model.state_dict())
    sl.fuse(model)
    assert list(model.state_dict()) == keys
    assert [str(entry) for entry in model.spiritlevel_log] == [
        "rewritten 0: its forward calls the fused layers, past 0.identity_conv",
        "fused 0.body.conv1.bn, 0.body.conv1.activ: batch norm -> relu",
        "replaced 0.body.conv2.bn: alone: its sum is merged into the batch norm that it is added "
        "to",
        "fused 0.identity_conv.bn, 0.activ: batch norm + add -> relu",
        "replaced 2: alone: neither an activation nor a sum follows",
    ]
    count = len(model.spiritlevel_log)
    sl.fuse(model)
    (last,) = model.spiritlevel_log[count:]
    assert str(last) == "left: there is no batch norm that is not fused already"


def test_a_second_call_changes_nothing():
    model, _ = made("torchvision")
    sl.fuse(model)
    kinds = [type(m) for m in model.modules()]
    sl.fuse(model, images())
    assert [type(m) for m in model.modules()] == kinds


ACTS = {
    "relu": (nn.ReLU, lambda x: F.relu(x), lambda x: x.relu(), torch.relu),
    "relu6": (nn.ReLU6, lambda x: F.relu6(x), lambda x: F.hardtanh(x, 0.0, 6.0)),
    "leaky_relu:0.3": (lambda: nn.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.3)),
    "silu": (nn.SiLU, lambda x: F.silu(x, inplace=True)),
    "hardswish": (nn.Hardswish, lambda x: F.hardswish(x)),
    "hardsigmoid": (nn.Hardsigmoid, lambda x: F.hardsigmoid(x)),
    "gelu": (nn.GELU, lambda x: F.gelu(x)),
}


class Ends(nn.Module):
    def __init__(self, function, kind=nn.BatchNorm2d):
        super().__init__()
        self.bn = kind(3)
        self.function = function

    def forward(self, x):
        return self.function(self.bn(x))


@pytest.mark.parametrize(("act", "way"), [(a, w) for a in ACTS for w in range(len(ACTS[a]))])
def test_every_activation_in_every_form(act, way):
    form = ACTS[act][way]
    model = Ends(form if way else form()).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert str(model.bn.act) == act
    assert_same(model, twin)


def test_the_forms_above_are_all_activations_that_there_are():
    assert {name.partition(":")[0] for name in ACTS} == set(ACTIVATIONS) - {"identity"}


@pytest.mark.parametrize(
    "act", [nn.GELU("tanh"), nn.Hardtanh(), nn.Tanh(), lambda x: F.gelu(x, approximate="tanh")]
)
def test_other_activations_stay(act):
    model = Ends(act).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.bn) is batch.BatchNorm2d
    assert_same(model, twin)


@pytest.mark.parametrize("dim", [1, 3])
def test_other_numbers_of_axes(dim):
    kind = getattr(nn, f"BatchNorm{dim}d")
    model = Ends(F.relu, kind).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model.bn) is getattr(batch, f"BatchNormAct{dim}d")
    x = images()
    assert_same(model, twin, x.flatten(2) if dim == 1 else x[..., None])


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_batch_norms_without_weights_or_statistics(options):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, **options), nn.ReLU()).double()
    twin = twin_of(model)
    sl.fuse(model)
    assert type(model[1]) is batch.BatchNormAct2d
    assert_same(model, twin)


def test_one_activation_in_several_places_of_a_sequential():
    act = nn.SiLU()
    model = nn.Sequential(nn.BatchNorm2d(3), act, nn.Conv2d(3, 3, 1), act, nn.BatchNorm2d(3), act)
    model = model.double()
    twin = twin_of(model)
    sl.fuse(model)
    assert [type(m).__name__ for m in model] == [
        "BatchNormAct2d",
        "Identity",
        "Conv2d",
        "SiLU",
        "BatchNormAct2d",
        "Identity",
    ]
    assert_same(model, twin)


def test_hooks_on_what_is_not_fused_still_run():
    model, _ = made("pytorchcv")
    heard = []
    for module in (model, model[1], model[1].body.conv2.conv):
        module.register_forward_hook(lambda module, *_: heard.append(module))
    sl.fuse(model)
    model(images())
    assert heard == [model[1].body.conv2.conv, model[1], model]


@pytest.mark.slow  # kernels are compiled
def test_what_our_kernels_give_may_be_written_into():
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    model = nn.Sequential(nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.5, inplace=True))
    twin = twin_of(model)
    sl.fuse(model)
    for each in (model, twin):
        torch.manual_seed(0)
        x = torch.randn(8, 8, 40, 40)
        assert x.numel() >= backend.SMALL
        each(x).square().mean().backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad, rtol=1e-4, atol=1e-4)


def test_it_wants_a_module():
    with pytest.raises(UsageError, match=r"got function to fuse; wanted a torch\.nn\.Module"):
        sl.fuse(sequence)


def test_a_batch_norm_by_itself_becomes_ours():
    model = nn.BatchNorm2d(3)
    assert sl.fuse(model) is model
    assert type(model) is batch.BatchNorm2d
    assert log_of(model) == [("replaced", "", "alone: no graph shows what follows it")]


@pytest.mark.parametrize("example", [images(), (images(),), {"x": images()}], ids=["t", "()", "{}"])
def test_an_example_is_a_tensor_a_tuple_or_a_dict(example):
    model, fused = made("functional")
    sl.fuse(model, example)
    assert len(fused_layers(model)) == fused


def test_a_graph_module_is_rewritten_as_a_graph():
    model, fused = made("functional")
    graph = torch.fx.symbolic_trace(model.eval())
    twin = twin_of(graph)
    sl.fuse(graph)
    assert len(fused_layers(graph)) == fused
    torch.testing.assert_close(graph(images()), twin(images()), **CLOSE)
    other = pickle.loads(pickle.dumps(graph))  # noqa: S301
    torch.testing.assert_close(other(images()), twin(images()), **CLOSE)


def test_a_wrapped_model_is_fused_inside():
    model, fused = made("torchvision")
    wrapped = nn.DataParallel(model)
    sl.fuse(wrapped)
    assert len(fused_layers(wrapped)) == fused
    assert why_of(wrapped, "") == "it wraps another module"


def test_functional_models_have_their_dropout():
    model = Functional()
    sl.fuse(model)
    assert not torch.equal(model(images().float()), model(images().float()))
