"""Our batch norms are torch's in class, number, buffer, error and file; what follows is fused."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import shutil
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.kernels.activations import ACTIVATIONS, activation
from spiritlevel.nn import BatchRenorm2d, GhostBatchNorm2d, NoisyBatchNorm2d
from spiritlevel.nn import batch as snn
from spiritlevel.nn.observe import observing, tells

pytestmark = pytest.mark.slow  # kernels are compiled
SHAPES = {1: (6, 5), 2: (4, 5, 3, 6), 3: (2, 5, 3, 4, 2)}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # two orders of float32 sums


@pytest.fixture(params=["cpu", "aten", "reference"])
def on(request):
    if request.param == "cpu":
        pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    with backend.use(request.param):
        before = backend.ran[request.param]
        yield request.param
        assert backend.ran[request.param] > before


def pair(dim, **options):
    """Ours and torch's, with the same uncommon weights."""
    ours = getattr(snn, f"BatchNorm{dim}d")(5, **options)
    theirs = getattr(nn, f"BatchNorm{dim}d")(5, **options)
    torch.manual_seed(0)
    if ours.affine:
        nn.init.normal_(theirs.weight, 1, 0.3)
    if ours.bias is not None:
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(dim, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(SHAPES[dim], generator=generator) * 3 + 1).requires_grad_()


def same(ours, theirs, dim, seeds=(1, 2, 3)):
    """In training for some batches, then in eval: outputs, all gradients, buffers."""
    for seed in (*seeds, None):
        if seed is None:
            ours.eval()
            theirs.eval()
        x, z = images(dim, seed or 9), images(dim, seed or 9)
        y, expected = ours(x), theirs(z)
        torch.testing.assert_close(y, expected, **CLOSE)
        upstream = torch.randn_like(y)
        for each in (ours, theirs):
            each.zero_grad()
        y.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-4)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **CLOSE)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": 0.1, "momentum": 0.3},
        {"momentum": None},
        {"momentum": 0.0},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"momentum": None, "track_running_stats": False},
    ],
    ids=str,
)
@pytest.mark.usefixtures("on")
def test_numbers_are_torchs_batch_by_batch(dim, options):
    same(*pair(dim, **options), dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_they_are_torchs_classes_with_torchs_constructor(dim):
    ours, theirs = (getattr(room, f"BatchNorm{dim}d") for room in (snn, nn))
    assert issubclass(ours, theirs)
    assert issubclass(getattr(snn, f"BatchNormAct{dim}d"), theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert repr(ours(5, momentum=None)) == repr(theirs(5, momentum=None))


WRONG = [(1, (2,)), (1, (2, 5, 3, 3)), (2, (2, 5)), (2, (5, 3, 3)), (3, (2, 5, 3, 3))]


@pytest.mark.parametrize(("dim", "shape"), [*WRONG, (2, (1, 5, 1, 1))], ids=str)
@pytest.mark.parametrize("backend_name", ["auto", "aten", "reference"])
def test_errors_are_torchs(dim, shape, backend_name):
    ours, theirs = pair(dim)
    with pytest.raises(ValueError, match=r".") as expected:
        theirs(torch.ones(shape))
    with backend.use(backend_name), pytest.raises(ValueError, match=r".") as got:
        ours(torch.ones(shape))
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [4, 6])
def test_a_wrong_count_of_channels_is_an_error(channels, training):
    ours, theirs = pair(2)
    ours.train(training)
    theirs.train(training)
    with pytest.raises(RuntimeError) as expected:
        theirs(torch.ones(2, channels, 3, 3))
    with pytest.raises(RuntimeError) as got:
        ours(torch.ones(2, channels, 3, 3))
    assert str(got.value) == str(expected.value)


@pytest.mark.usefixtures("on")
def test_values_that_do_not_vary_and_single_positions():
    ours, theirs = pair(2)
    for x in (torch.full((3, 5, 2, 2), 3.0), torch.randn(7, 5, 1, 1), torch.randn(1, 5, 1, 2)):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **CLOSE)


@pytest.mark.parametrize("act", [*ACTIVATIONS, "leaky_relu:0.2"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.usefixtures("on")
def test_what_follows_is_fused(dim, act):
    fused = getattr(snn, f"BatchNormAct{dim}d")(5, act)
    plain = getattr(nn, f"BatchNorm{dim}d")(5)
    residual, same_residual = images(dim, 7), images(dim, 7)
    for training in (True, False):
        fused.train(training)
        plain.train(training)
        x, z = images(dim), images(dim)
        y = fused(x, residual)
        expected = activation(act)(plain(z) + same_residual)
        torch.testing.assert_close(y, expected, **CLOSE)
        torch.testing.assert_close(fused(x.detach()), activation(act)(plain(z)))
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(residual.grad, same_residual.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), **CLOSE)


def test_an_activation_stands_in_the_repr_and_a_wrong_one_is_refused():
    assert repr(snn.BatchNormAct2d(4, "leaky_relu:0.2")).endswith("act=leaky_relu:0.2)")
    with pytest.raises(UsageError, match="got activation 'swish'; wanted one of identity, relu"):
        snn.BatchNormAct2d(4, "swish")


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_lazy_ones_take_their_features_from_the_first_input(dim):
    lazy = getattr(snn, f"LazyBatchNorm{dim}d")()
    _, theirs = pair(dim)
    theirs.reset_parameters()
    x = images(dim).detach()
    torch.testing.assert_close(lazy(x), theirs(x), **CLOSE)
    assert type(lazy) is getattr(snn, f"BatchNorm{dim}d")
    torch.testing.assert_close(lazy(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("act", [None, "silu"])
def test_copies_pickles_and_files(act):
    def make():
        return snn.BatchNormAct2d(5, act) if act else snn.BatchNorm2d(5)

    layer = make()
    x = images(2).detach()
    layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    layer.eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded.eval()):  # noqa: S301
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))


def test_an_old_checkpoint_without_num_batches_tracked():
    ours, theirs = pair(2)
    for layer in (ours, theirs):
        old = theirs.state_dict()
        del old["num_batches_tracked"]
        old._metadata[""]["version"] = 1
        layer.load_state_dict(old)
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def test_on_the_meta_device_and_in_other_types():
    layer = snn.BatchNormAct2d(5, device="meta")
    for shape in ((2, 5, 3, 3), (16, 5, 64, 64)):  # that which auto gives to torch, and to ours
        assert layer(torch.empty(shape, device="meta")).shape == shape
    double = snn.BatchNorm2d(5).double()
    x = images(2).detach().double()
    torch.testing.assert_close(double(x), nn.BatchNorm2d(5).double()(x))


def test_autocast_gives_the_type_that_torchs_gives():
    ours, theirs = pair(2)
    x = images(2).detach()
    convolution = nn.Conv2d(5, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(convolution(x)), theirs(convolution(x))
    assert y.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-2, atol=1e-2)


def test_a_tensor_without_strides_goes_to_torchs_kernels():
    layer, x = snn.BatchNorm2d(16), torch.randn(4, 16, 32, 33)
    y = layer(x.to_mkldnn())
    torch.testing.assert_close(y.to_dense(), nn.BatchNorm2d(16)(x))


@pytest.mark.parametrize("lost", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_half_of_the_running_statistics_is_refused_where_torch_does(lost, training):
    x = torch.randn(4, 16, 32, 33)
    told = []
    for kind in (snn.BatchNorm2d, nn.BatchNorm2d):
        layer = kind(16).train(training)
        setattr(layer, lost, None)
        try:
            layer(x)
            told.append(None)
        except (RuntimeError, ValueError) as error:
            told.append(str(error))
    assert told[0] == told[1] is not None


def test_an_eps_below_zero_is_answered_as_torch_does():
    x, told = torch.randn(4, 16, 32, 33), []
    for kind in (snn.BatchNorm2d, nn.BatchNorm2d):
        try:
            kind(16, eps=-0.5).eval()(x)
            told.append(None)
        except (RuntimeError, ValueError) as error:
            told.append(str(error))
    assert told[0] == told[1]


def gaps(shape, layout):
    """(N, C, *): half of the channels of a larger tensor, or its axes in another order."""
    if layout == "order":
        return torch.randn(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
    larger = torch.randn(shape[0], 2 * shape[1], *shape[2:])
    if layout == "channels-last":
        larger = larger.contiguous(memory_format=torch.channels_last)
    return larger.chunk(2, 1)[0]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "order"])
def test_compiled_it_takes_what_has_gaps(layout):
    x = gaps((4, 16, 32, 33), layout)
    found = []
    for kind in (snn.BatchNorm2d, nn.BatchNorm2d):
        torch._dynamo.reset()
        layer, z = kind(16), x.detach().requires_grad_()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it goes to torch's kernels: see test_backend
            y = compiled(z)
        (grad,) = torch.autograd.grad(y.square().sum(), z)
        found.append((y.detach(), grad, layer.running_var))
    torch.testing.assert_close(*found)


def block():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        snn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        snn.BatchNormAct2d(8, "hardswish"),
    )


def parts_of(model):
    """The same of torch's own parts."""
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
    )
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # as torch imports its own compiler
@pytest.mark.parametrize(
    ("compiler", "momentum"), [("aot_eager", 0.1), ("aot_eager", None), ("inductor", 0.1)]
)
def test_compiled_whole_it_trains_as_it_does_eagerly(compiler, momentum, tmp_path, monkeypatch):
    if compiler == "inductor" and shutil.which("g++") is None:
        pytest.skip("Inductor needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what it once made of another
    torch._dynamo.reset()
    model = block()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    x = torch.randn(4, 3, 9, 9)
    for _ in range(2):
        for each, run in ((model, compiled), (eager, eager)):
            each.zero_grad()
            run(x).square().sum().backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), **CLOSE)
    model.eval()
    torch.testing.assert_close(compiled(x), eager.eval()(x), **CLOSE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("residual", [torch.ones(4, 8, 1, 1), torch.ones(4, 8, 5, 5).double()])
def test_compiled_a_residual_unlike_the_input_is_added_as_torch_does(residual):
    torch._dynamo.reset()
    layer = snn.BatchNormAct2d(8)
    x = torch.randn(4, 8, 5, 5)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual), layer(x, residual), **CLOSE)


@pytest.mark.parametrize("training", [False, True])
def test_exported_it_is_torchs_own_operations(training):
    model = block().train(training)
    x = torch.randn(4, 3, 9, 9)
    exported = torch.export.export(model, (x,))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("batch_norm" in name for name in names)
    assert not any("spiritlevel" in name for name in names)
    if not training:
        torch.testing.assert_close(exported.module()(x), parts_of(model).eval()(x), **CLOSE)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_an_onnx_file_needs_nothing_of_ours():
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    model, x = block().eval(), torch.randn(2, 3, 9, 9)
    file = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    assert {node.domain for node in file.graph.node} == {""}  # ONNX's own operations
    (y,) = evaluator(file).run(None, {file.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), parts_of(model).eval()(x), **CLOSE)


def test_traced_it_needs_nothing_of_ours():
    model = block().eval()
    x = torch.randn(4, 3, 9, 9)
    with pytest.deprecated_call():  # of trace itself
        traced = torch.jit.trace(model, x)
    operations = {node.kind() for node in traced.inlined_graph.nodes()}
    assert all(name.startswith(("aten::", "prim::")) for name in operations)
    assert "aten::batch_norm" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), parts_of(model).eval()(x), **CLOSE)


def test_torch_fx_sees_one_node():
    model = block()
    graph = torch.fx.symbolic_trace(model)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 5
    x = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(graph.eval()(x), model.eval()(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # within torch.func.jvp
def test_functional_transforms_and_forward_mode_see_plain_operations():
    ours, theirs = pair(2, track_running_stats=False)
    x = images(2).detach()

    def loss(parameters, layer):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    got, expected = (
        torch.func.grad(loss)(dict(layer.named_parameters()), layer) for layer in (ours, theirs)
    )
    torch.testing.assert_close(got, expected)
    tangent = torch.ones_like(x)
    _, got = torch.func.jvp(ours, (x,), (tangent,))
    _, expected = torch.func.jvp(theirs, (x,), (tangent,))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("layer", "dropped"),
    [
        (snn.BatchNormAct2d(8), r"activation \(relu\)"),
        (GhostBatchNorm2d(8, group_size=4), "groups"),
        (BatchRenorm2d(8), "correction"),
        (NoisyBatchNorm2d(8), "noise"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_torchs_conversion_to_sync_never_drops_what_is_not_torchs(layer, dropped):
    with pytest.raises(
        UsageError, match=rf"in torch's convert_sync_batchnorm.* drop its {dropped}"
    ):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))


def test_torchs_conversion_to_sync_takes_a_plain_one():
    plain = nn.Sequential(snn.BatchNorm2d(8))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(plain)[0]) is nn.SyncBatchNorm


def test_a_qconfig_may_be_set_as_on_any_module():
    layer = snn.BatchNormAct2d(8)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = "mine"
    assert layer.qconfig == "mine"


@pytest.mark.usefixtures("on")
def test_who_listens_is_told_what_the_layer_took():
    layer = snn.BatchNormAct2d(5)
    x = images(2)
    told = []
    with observing(lambda who, shape, values, found: told.append((who, *values(), found))):
        layer(x)
        layer.eval()(x)
    layer.train()(x)
    assert tells(layer)
    (who, given, y, statistics), (_, _, y_eval, none) = told
    assert who is layer
    assert given is x
    assert none is None
    mean, var = statistics()
    assert not mean.requires_grad
    assert y.min() == y_eval.min() == 0
    expected_var, expected_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.float(), expected_mean, **CLOSE)
    torch.testing.assert_close(var.float(), expected_var, **CLOSE)


def test_an_observer_is_gone_when_its_block_raises():
    told = []
    with pytest.raises(ZeroDivisionError), observing(lambda *_: told.append(1)):
        raise ZeroDivisionError
    snn.BatchNorm2d(5)(images(2))
    assert told == []


def test_update_bn_and_frozen_weights_work_on_them():
    model = block()
    loader = [torch.randn(4, 3, 9, 9) for _ in range(3)]
    torch.optim.swa_utils.update_bn(loader, model)
    assert int(model[1].num_batches_tracked) == 3
    model[1].weight.requires_grad_(False)
    model(loader[0]).sum().backward()
    assert model[1].weight.grad is None
    assert model[1].bias.grad is not None


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (16, 5, 40, 40)], ids=["small", "large"])
@pytest.mark.parametrize("kernels", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("ours", [snn.BatchNorm2d, partial(GhostBatchNorm2d, group_size=64)])
def test_the_running_statistics_may_be_read_by_what_is_walked_back_later(shape, kernels, ours):
    """Torch does not tell autograd that they are written; its users read them before a step."""
    x = torch.randn(shape, requires_grad=True)
    grads = []
    for kind in (ours, nn.BatchNorm2d):
        layer = kind(5)
        y = F.batch_norm(x, layer.running_mean, layer.running_var)
        with backend.use(kernels):
            grads += torch.autograd.grad(layer(y).pow(4).sum(), x)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
