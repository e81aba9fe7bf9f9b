"""Models that fold must not believe: what is true of the example is not true of all inputs."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fold_cases import lived
from test_fold import left, norms, same
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.errors import UsageError

IMAGES = (2, 8, 6, 6)


def net(run, layers):
    """A module whose forward is this function, with its arguments."""
    made = type("Net", (nn.Module,), {"forward": run})()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


def conv(**options):
    return nn.Conv2d(8, 8, 3, padding=1, **options)


def made(run, **layers):
    layers = {"conv": conv(), "bn": nn.BatchNorm2d(8)} | layers
    torch.manual_seed(0)
    return lived(net(run, layers))


def padded(x, multiple=2):
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))


def up_and_beside(m, x):
    """A U-Net's decoder: what was pooled away is padded on again."""
    y = m.up(F.max_pool2d(x, 2))
    y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
    return m.bn(torch.cat([m.conv(x), y], 1))


def written_after(m, x):
    y = m.bn(x)
    F.relu_(x)
    return m.a(y) + x


def without(m, x, act=None):
    y = m.conv(x)
    return m.bn(F.relu(y) if act is None else y)


def skipped(m, x, skip=None):
    y = m.conv(x)
    return m.bn(y) + (y if skip is None else skip)


def checked(m, x):
    y = m.conv(x)
    if isinstance(y, torch.Tensor):
        y = y.clamp(-20, 20)
    return m.bn(y)


LINEAR = {"conv": nn.Linear(5, 8), "bn": nn.BatchNorm1d(8)}
PAIR = {"a": nn.Conv2d(8, 8, 1), "conv": nn.Identity()}
SIZES = {
    "padded to a multiple, after": (
        made(lambda m, x: m.bn(padded(m.conv(x)))),
        (torch.randn(IMAGES),),
        (torch.randn(2, 8, 7, 7),),
    ),
    "padded to a multiple, before": (
        made(lambda m, x: m.a(padded(m.bn(x))), **PAIR),
        (torch.randn(IMAGES),),
        (torch.randn(2, 8, 7, 7),),
    ),
    "a decoder": (
        made(up_and_beside, up=nn.ConvTranspose2d(8, 8, 2, 2), bn=nn.BatchNorm2d(16)),
        (torch.randn(IMAGES),),
        (torch.randn(2, 8, 7, 9),),
    ),
    "a length of 1": (
        made(lambda m, x: m.bn(m.conv(x).reshape(x.shape[0], 8, -1)), **LINEAR),
        (torch.randn(3, 1, 5),),
        (torch.randn(3, 4, 5),),
    ),
    "turned by the batch": (
        made(lambda m, x: m.bn(m.conv(x).roll(x.shape[0], 1))),
        (torch.randn(8, 8, 6, 6),),
        (torch.randn(3, 8, 6, 6),),
    ),
    "divided by a number of its own": (
        made(
            lambda m, x: m.bn(m.pool(m.conv(x))),
            pool=nn.AvgPool2d(2, ceil_mode=True, divisor_override=4),
        ),
        (torch.randn(IMAGES),),
        (torch.randn(2, 8, 7, 7),),
    ),
    "an option, not given later": (
        made(without),
        (torch.randn(IMAGES), 1),
        (torch.randn(IMAGES),),
    ),
    "a tensor, not given later": (
        made(skipped),
        (torch.randn(IMAGES), torch.randn(IMAGES)),
        (torch.randn(IMAGES),),
    ),
    "a number that slices": (
        made(lambda m, x, k: m.bn(m.conv(x)[:, k : k + 4]), bn=nn.BatchNorm2d(4)),
        (torch.randn(IMAGES), 0),
        (torch.randn(IMAGES), 2),
    ),
    "its input is written later": (
        made(written_after, **PAIR),
        (torch.rand(IMAGES),),
        (torch.randn(IMAGES),),
    ),
    "asks whether it is a tensor": (
        made(checked),
        (torch.randn(IMAGES),),
        (100 * torch.randn(IMAGES),),
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_another_size_another_argument_another_value(name):
    model, example, other = SIZES[name]
    folded = sl.fold(
        model, tuple(each.clone() if hasattr(each, "clone") else each for each in example)
    )
    wanted = model(*(each.clone() if hasattr(each, "clone") else each for each in other))
    assert norms(folded) == ["bn"]
    assert torch.equal(folded(*other), wanted)
    assert left(folded)["bn",]


class Skips(nn.BatchNorm2d):
    def forward(self, x):
        return x if x.size(0) == 1 else super().forward(x)


class Clamps(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-50, 50)


class Called(nn.BatchNorm2d):
    def __call__(self, x):
        return super().__call__(x).clamp(-50, 50)


@pytest.mark.parametrize("kind", [Skips, Clamps, Called])
def test_a_norm_that_is_one_only_on_some_inputs(kind):
    model = made(lambda m, x: m.bn(m.conv(x)), bn=kind(8))
    folded = sl.fold(model, torch.randn(IMAGES))
    assert norms(folded) == ["bn"]
    for x in (torch.randn(1, 8, 6, 6), 1000 * torch.randn(IMAGES)):
        assert torch.equal(folded(x), model(x))


def calls(owner, _module, given, *rest):
    """A hook that runs a layer where the data ask for it."""
    (x,) = given
    return owner.conv(x) if x.mean() > 0.5 else None


def by_partial(model):
    model.last.register_forward_pre_hook(partial(calls, model))


def by_closure(model):
    model.last.register_forward_pre_hook(lambda *given: calls(model, *given))


def by_its_root(model):
    model.register_forward_pre_hook(lambda m, given: calls(m, m, given))


@pytest.mark.parametrize("hook", [by_partial, by_closure, by_its_root])
def test_a_hook_may_call_what_it_can_reach(hook):
    model = made(lambda m, x: m.last(m.bn(m.conv(x))), last=nn.Conv2d(8, 8, 1))
    hook(model)
    folded = sl.fold(model, torch.randn(IMAGES))
    assert hook is by_closure or "hook" in left(folded)["bn",]  # a copied closure has the original
    x = torch.rand(IMAGES) + 0.5
    assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["hook", "forward"])
def test_what_stands_between_may_have_been_changed(change):
    model = made(lambda m, x: m.bn(m.drop(m.conv(x))), drop=nn.Dropout())
    if change == "hook":
        model.drop.register_forward_hook(lambda _m, _x, y: y.clamp(-20, 20))
    else:
        model.drop.forward = lambda x: x.clamp(-20, 20)
    folded = sl.fold(model, torch.randn(IMAGES))
    assert norms(folded) == ["bn"]


@pytest.mark.parametrize("keeper", [lambda m: SimpleNamespace(it=m), lambda m: {"it": [m]}])
def test_what_a_closed_module_keeps_stays(keeper):
    def run(m, x):
        gate = m.gate(x)
        return m.bn(m.conv(x)) * gate

    def gates(m, x):
        layer = m.held["it"][0] if isinstance(m.held, dict) else m.held.it
        return layer(x).mean() if x.mean() > 0.5 else 1.0

    model = made(run, gate=net(gates, {}))
    model.gate.held = keeper(model.conv)
    folded = sl.fold(model, torch.randn(IMAGES))
    assert "conv is kept by a hook, or by another module" in left(folded)["bn",]


def test_one_norm_of_several_is_left():
    model = made(
        lambda m, x: m.bns[m.domain](m.conv(x)),
        bns=nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)]),
        bn=nn.Identity(),
    )
    model.domain = 0
    folded = sl.fold(model, torch.randn(IMAGES))
    assert left(folded)["bns.0",] == "is one of several, of which its model chooses"


def test_beside_a_linear_layer_another_rank_raises_as_the_norm_did():
    model = lived(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()))
    folded = sl.fold(model, torch.randn(4, 5))
    same(model, folded, torch.randn(4, 5))
    for other in (torch.randn(4, 8, 5), torch.randn(5)):
        with pytest.raises(ValueError, match=r"expected 2D input \(got [31]D input\)"):
            folded(other)
    assert torch.fx.symbolic_trace(folded)(torch.ones(2, 5)).shape == (2, 8)
    exported = torch.export.export(folded, (torch.randn(4, 5),))
    assert torch.allclose(exported.module()(torch.ones(4, 5)), folded(torch.ones(4, 5)))


class Out:
    def __init__(self, it):
        self.it = it


@pytest.mark.parametrize(
    ("run", "example"),
    [
        (lambda m, x: Out(m.bn(m.conv(x))), torch.randn(IMAGES)),
        (lambda m, x: m.bn(m.conv(x)), torch.randn(0, 8, 6, 6)),
        (lambda m, x: m.bn(m.conv(x)), torch.full(IMAGES, float("nan"))),
    ],
)
def test_nothing_to_compare_is_no_proof(run, example):
    with pytest.raises(UsageError, match="no finite number"):
        sl.fold(made(run), example)


def test_an_output_of_whole_numbers_is_compared_at_the_layers(monkeypatch):
    model = made(lambda m, x: m.bn(m.conv(x)).flatten(1).argmax(1))
    assert norms(sl.fold(model, torch.randn(IMAGES))) == []
    module = __import__("sys").modules[sl.fold.__module__]
    right = module.merge_after
    monkeypatch.setattr(module, "merge_after", lambda m, f, s: right(m, f, s + 1))
    with pytest.raises(UsageError, match="first in what bn gives"):
        sl.fold(model, torch.randn(IMAGES))


class Either(nn.Module):
    def __init__(self):
        super().__init__()
        shared = conv()
        self.body = nn.Sequential(shared, nn.BatchNorm2d(8))
        self.other = nn.Sequential(shared, nn.ReLU())

    def forward(self, x):
        return self.body(x) if x.mean() < 0.5 else self.other(x)


def test_a_layer_of_two_names_in_what_is_no_graph():
    model = lived(Either())
    folded = sl.fold(model, torch.randn(IMAGES))
    assert "0 is shared: it has 2 names" in left(folded)["body.1",]
    x = torch.rand(IMAGES) + 1
    assert torch.equal(folded(x), model(x))


def test_another_call_with_other_channels():
    model = made(
        lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(x).flip(1)),
    )
    folded = sl.fold(model, torch.randn(IMAGES))
    assert "conv has other channels of it in another call" in left(folded)["bn",]


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"stride": 2, "padding": 1}, {"output_padding": 1, "dilation": 2}],
)
def test_a_transposed_convolution_that_misses_positions(options):
    layer = nn.ConvTranspose2d(8, 8, 1, **options)
    model = lived(nn.Sequential(nn.BatchNorm2d(8), layer))
    folded = sl.fold(model, torch.randn(IMAGES))
    assert "it is transposed" in left(folded)["0",]


def test_a_sample_without_a_batch():
    model = lived(nn.Sequential(nn.Conv1d(8, 4, 3), nn.Flatten(0), nn.Unflatten(0, (4, 4))))
    model.append(nn.BatchNorm1d(4)).eval()
    lived(model)
    folded = sl.fold(model, torch.randn(8, 6))
    assert norms(folded) == ["3"]  # its channels are positions


def test_a_weight_that_is_a_buffer_stays_one():
    model = made(lambda m, x: m.bn(m.conv(x)), conv=conv(bias=False))
    weight = model.conv.weight.detach()
    del model.conv.weight
    model.conv.register_buffer("weight", weight)
    folded = sl.fold(model, torch.randn(IMAGES))
    assert norms(folded) == []
    assert "weight" in dict(folded.conv.named_buffers())
    x = torch.randn(IMAGES)
    assert torch.allclose(folded(x), model(x), atol=1e-4)


def test_what_cannot_be_copied_or_has_no_numbers():
    model = made(lambda m, x: m.bn(m.conv(x)))
    with pytest.raises(UsageError, match="on the device meta"):
        sl.fold(made(lambda m, x: m.bn(m.conv(x))).to("meta"), torch.randn(IMAGES))
    model.lock = __import__("threading").Lock()
    with pytest.raises(UsageError, match="while copying Net"):
        sl.fold(model, torch.randn(IMAGES))
