"""Batch renormalization is the paper's: formula, what is not differentiated, schedule."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import nn

from spiritlevel import nn as snn
from spiritlevel.errors import UsageError
from spiritlevel.kernels import use
from spiritlevel.nn.observe import observing

SHAPES = {1: (6, 5), 2: (4, 5, 3, 6), 3: (2, 5, 3, 4, 2)}
# Two orders of float64 sums.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class Paper:
    """Algorithm 1 in float64, channel by channel; moving statistics as torch keeps them."""

    def __init__(self, channels, eps=1e-5, momentum=0.1, r_max=3.0, d_max=5.0):
        self.mu, self.square = [0.0] * channels, [1.0] * channels
        self.eps, self.momentum, self.r_max, self.d_max = eps, momentum, r_max, d_max

    def __call__(self, x, weight=None, bias=None):
        outputs = []
        self.r, self.d = [], []
        for c in range(x.shape[1]):
            values = x[:, c]
            mu_b = values.mean()
            sigma_b = ((values - mu_b).pow(2).mean() + self.eps).sqrt()
            sigma = math.sqrt(self.square[c] + self.eps)
            r = min(max(sigma_b.item() / sigma, 1 / self.r_max), self.r_max)
            d = min(max((mu_b.item() - self.mu[c]) / sigma, -self.d_max), self.d_max)
            y = (values - mu_b) / sigma_b * r + d
            y = y if weight is None else y * weight[c]
            outputs.append(y if bias is None else y + bias[c])
            self.mu[c] += self.momentum * (mu_b.item() - self.mu[c])
            unbiased = values.var(correction=1).item()
            self.square[c] += self.momentum * (unbiased - self.square[c])
            self.r.append(r)
            self.d.append(d)
        return torch.stack(outputs, 1)


def layer_of(dim, channels=5, **options):
    layer = getattr(snn, f"BatchRenorm{dim}d")(channels, **({"warmup": 0} | options)).double()
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 2)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def batch(shape, seed, scale=2.0, mean=1.0):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (x * scale + mean).requires_grad_()


def same_as_paper(layer, paper, shape, seeds=(1, 2, 3, 4), **distribution):
    """Outputs, gradients and running statistics, batch by batch."""
    for seed in seeds:
        x, z = (batch(shape, seed, **distribution) for _ in range(2))
        y, expected = layer(x), paper(z, layer.weight, layer.bias)
        torch.testing.assert_close(y, expected, **CLOSE)
        towards = torch.randn_like(y)
        got = torch.autograd.grad(y, [x, *layer.parameters()], towards)
        wanted = torch.autograd.grad(expected, [z, *layer.parameters()], towards)
        torch.testing.assert_close(got, wanted, **CLOSE)
        torch.testing.assert_close(layer.running_mean.tolist(), paper.mu, **CLOSE)
        torch.testing.assert_close(layer.running_var.tolist(), paper.square, **CLOSE)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"bias": False}, {"eps": 0.1, "momentum": 0.5}],
    ids=str,
)
def test_the_papers_algorithm(dim, options):
    torch.manual_seed(0)
    given = {key: options[key] for key in ("eps", "momentum") if key in options}
    same_as_paper(layer_of(dim, **options), Paper(5, **given), SHAPES[dim])


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_other_kernels_give_the_same(backend):
    with use(backend):
        same_as_paper(layer_of(2), Paper(5), SHAPES[2])


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_our_kernels_give_the_same(memory):
    pytest.importorskip("numba", reason="the kernels of `cpu` need the extra cpu")
    shape, torch_says = (8, 24, 30, 31), layer_of(2, 24)
    ours = copy.deepcopy(torch_says)
    for seed in (1, 2, 3):
        x, z = (batch(shape, seed) for _ in range(2))
        with use("cpu"):
            y = ours(x.contiguous(memory_format=memory))
        with use("aten"):
            expected = torch_says(z)
        assert y.is_contiguous(memory_format=memory)
        torch.testing.assert_close(y, expected, **CLOSE)
        towards = torch.randn(shape, dtype=torch.float64)
        y.backward(towards)
        expected.backward(towards)
        torch.testing.assert_close(x.grad, z.grad, **CLOSE)
        for p, q in zip(ours.parameters(), torch_says.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.state_dict(), torch_says.state_dict(), **CLOSE)


@pytest.mark.parametrize(
    ("scale", "mean", "r", "d"),
    [
        (30.0, 0.0, 3.0, None),  # the batch is far wider than what was seen
        (0.01, 0.0, 1 / 3, None),
        (1.0, 50.0, None, 5.0),
        (1.0, -50.0, None, -5.0),
    ],
)
def test_both_bounds_hold(scale, mean, r, d):
    paper = Paper(5)
    same_as_paper(layer_of(2), paper, SHAPES[2], seeds=(1,), scale=scale, mean=mean)
    assert r is None or paper.r == [r] * 5
    assert d is None or paper.d == [d] * 5


def test_unclipped_training_gives_what_eval_gives():
    layer = layer_of(2, r_max=1e6, d_max=1e6)
    layer(batch(SHAPES[2], 1))
    x = batch(SHAPES[2], 2, scale=9.0, mean=-40.0)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_at_r_1_and_d_0_it_is_batch_normalization_exactly():
    layer, plain = snn.BatchRenorm2d(5, r_max=1, d_max=0, warmup=0), nn.BatchNorm2d(5)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    layer.load_state_dict(plain.state_dict())
    for seed in (1, 2):
        x = batch(SHAPES[2], seed).detach().float()
        assert torch.equal(layer(x), plain(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(layer.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_the_gradient_is_of_the_batch_with_r_and_d_held(scale):
    """gradcheck moves x, and r and d must not move with it."""
    layer = layer_of(1, 3)
    layer(batch((6, 3), 1))
    x, params = batch((6, 3), 2, scale=scale), tuple(layer.parameters())
    r, d = layer._corrections(x, "aten")
    assert torch.all(r == 3) == (scale == 40.0)

    def run(x, weight, bias):
        same = copy.deepcopy(layer)
        same._corrections = lambda *_: (r, d)
        return torch.func.functional_call(same, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, *params))


STEPS = [  # batches before and with this one, r_max, d_max: the paper's section 4
    (1, 1.0, 0.0),
    (5_000, 1.0, 0.0),
    (15_000, 1 + 2 * 10 / 35, 2.5),
    (25_000, 1 + 2 * 20 / 35, 5.0),
    (40_000, 3.0, 5.0),
    (10**7, 3.0, 5.0),
]


@pytest.mark.parametrize(("step", "r_max", "d_max"), STEPS)
@pytest.mark.parametrize("warmup", [5000, 50])
def test_the_bounds_follow_the_papers_schedule_or_a_shorter_one(step, r_max, d_max, warmup):
    layer = layer_of(2, warmup=warmup)
    step = max(1, step * warmup // 5000)
    layer.num_batches_tracked.fill_(step - 1)
    x = batch(SHAPES[2], 1, scale=1e3, mean=1e5)
    expected = Paper(5, r_max=r_max, d_max=d_max)(x, layer.weight, layer.bias)
    # The bounds are float32.
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    assert int(layer.num_batches_tracked) == step


def test_the_first_step_after_the_warm_up_differs_from_batch_normalization():
    layer, plain = snn.BatchRenorm2d(5, warmup=2), nn.BatchNorm2d(5)
    x = batch(SHAPES[2], 1).detach().float()
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer(x), plain(x))
    assert not torch.allclose(layer(x), plain(x), rtol=1e-3)


def test_without_a_momentum_all_batches_count_alike():
    layer, plain = layer_of(2, momentum=None), nn.BatchNorm2d(5, momentum=None).double()
    for seed in (1, 2, 3):
        x = batch(SHAPES[2], seed).detach()
        layer(x), plain(x)
    torch.testing.assert_close(layer.running_mean, plain.running_mean, **CLOSE)
    torch.testing.assert_close(layer.running_var, plain.running_var, **CLOSE)


def test_without_variance_the_mean_is_all_that_is_left():
    layer = layer_of(2)
    y = layer(torch.full((3, 5, 2, 2), 4.0, dtype=torch.float64))
    d = 4 / math.sqrt(1 + 1e-5)
    expected = (d * layer.weight + layer.bias).detach().view(1, 5, 1, 1).expand_as(y)
    torch.testing.assert_close(y.detach(), expected, **CLOSE)


@pytest.mark.parametrize(
    ("dim", "shape"),
    [(1, (2,)), (2, (2, 5)), (3, (2, 5, 3, 3)), (2, (1, 5, 1, 1))],
    ids=str,
)
def test_errors_are_torchs(dim, shape):
    with pytest.raises(ValueError, match=r".") as expected:
        getattr(nn, f"BatchNorm{dim}d")(5)(torch.ones(shape))
    with pytest.raises(ValueError, match=r".") as got:
        getattr(snn, f"BatchRenorm{dim}d")(5, warmup=0)(torch.ones(shape))
    assert str(got.value) == str(expected.value)


def test_a_wrong_count_of_channels_is_torchs_error():
    with pytest.raises(RuntimeError) as expected:
        nn.BatchNorm2d(5)(torch.ones(2, 4, 3, 3))
    with pytest.raises(RuntimeError) as got:
        snn.BatchRenorm2d(5, warmup=0)(torch.ones(2, 4, 3, 3))
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"r_max": 0.5}, "got r_max=0.5, d_max=5.0, warmup=5000; wanted a finite r_max of 1 or"),
        ({"r_max": math.inf}, "got r_max=inf"),
        ({"d_max": -1}, "got r_max=3.0, d_max=-1"),
        ({"d_max": math.nan}, "got r_max=3.0, d_max=nan"),
        ({"warmup": -1}, "warmup=-1; wanted"),
        ({"track_running_stats": False}, "got track_running_stats=False; batch renorm"),
    ],
    ids=str,
)
def test_what_is_refused(options, told):
    with pytest.raises(UsageError) as caught:
        snn.BatchRenorm2d(5, **options)
    assert str(caught.value).startswith(told) or told in str(caught.value)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_it_is_torchs_class_and_state(dim):
    ours, theirs = (getattr(room, f"Batch{n}{dim}d") for room, n in ((snn, "Renorm"), (nn, "Norm")))
    assert issubclass(ours, theirs)
    assert ours(5).state_dict().keys() == theirs(5).state_dict().keys()
    parameters = inspect.signature(ours).parameters
    assert list(parameters)[:-3] == list(inspect.signature(theirs).parameters)
    assert repr(ours(5)).endswith("r_max=3.0, d_max=5.0, warmup=5000)")


def test_copies_and_pickles():
    layer = layer_of(2, r_max=2.0)
    layer(batch(SHAPES[2], 1))
    x = batch(SHAPES[2], 2)
    others = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))  # noqa: S301
    y = layer(x)
    for other in others:
        assert torch.equal(other(x), y)


def test_autocast_keeps_the_type_and_takes_the_corrections_in_float32():
    torch.manual_seed(0)
    layer, convolution = snn.BatchRenorm2d(5, warmup=0), nn.Conv2d(5, 5, 3)
    exact = copy.deepcopy(layer)
    x = torch.randn(4, 5, 9, 9) * 3 + 40
    with torch.autocast("cpu", torch.bfloat16):
        z = convolution(x)
        y = layer(z)
    assert z.dtype is y.dtype is torch.bfloat16
    # bfloat16 has 8 bits: 2^-9 of y.
    torch.testing.assert_close(y.float(), exact(z.float()), rtol=4e-3, atol=4e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # as torch imports its own compiler
def test_compiled_whole_it_trains_as_it_does_eagerly():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), snn.BatchRenorm2d(8, warmup=2), nn.ReLU())
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 9, 9)
    for _ in range(5):  # through the warm-up and beyond
        for each, run in ((model, compiled), (eager, eager)):
            each.zero_grad()
            run(x).square().sum().backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 5000])
def test_who_listens_is_told_the_moments_of_the_batch(warmup):
    layer, x, told = layer_of(2, warmup=warmup), batch(SHAPES[2], 1, mean=30.0), []
    with observing(lambda who, shape, values, found: told.append((who, *values(), found))):
        layer(x)
        layer.eval()(x)
    (who, given, _, statistics), (*_, none) = told
    assert who is layer
    assert given is x
    assert none is None
    mean, var = statistics()
    expected_var, expected_mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, **CLOSE)
    torch.testing.assert_close(var.double(), expected_var, **CLOSE)


def test_in_float64_the_bounds_grow_in_float64():
    layer = snn.BatchRenorm1d(1, d_max=3.0, r_max=2.0, warmup=7, affine=False).double()
    layer.num_batches_tracked.fill_(9)
    x = torch.tensor([[9.0], [11.0], [10.0]], dtype=torch.float64)  # d is at its bound
    layer.train()(x)
    assert layer._grown(5, torch.float64).item() == (10 - 7) / (4 * 7)


def test_in_float64_the_bounds_are_those_that_were_given():
    layer = snn.BatchRenorm1d(1, r_max=1.2, d_max=0.1, warmup=0, affine=False).double()
    x = torch.tensor([[9.0], [11.0], [10.0]], dtype=torch.float64)  # far from 0 and 1: r, d at most
    xhat = (x - 10) / x.var(0, correction=0).add(1e-5).sqrt()
    r = min(x.var(correction=0).add(1e-5).sqrt().item() / (1 + 1e-5) ** 0.5, 1.2)
    torch.testing.assert_close(layer(x), xhat * max(r, 1 / 1.2) + 0.1, rtol=0, atol=1e-14)
