"""Ranges are equalised where nothing else changes, and nowhere else."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spiritlevel.export import free_channels
from spiritlevel.export.equalise import equalised
from spiritlevel.models import create_model
from spiritlevel.models.ghost import GhostBottleneck
from spiritlevel.models.layers import Layers


def conv(in_chs, out_chs, kernel=1, **options):
    return nn.Conv2d(in_chs, out_chs, kernel, padding=kernel // 2, **options)


def depthwise(chs, **options):
    return conv(chs, chs, 3, groups=chs, **options)


def spread_(model, decades=3.0, seed=0):
    """Weights whose output channels differ by so many powers of ten, in every convolution."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                shape = (module.out_channels, 1, 1, 1)
                powers = torch.rand(shape, generator=generator) * decades - decades / 2
                module.weight *= 10**powers
    return model.eval()


def done(model):
    log = getattr(model, "spiritlevel_log", ())
    return [path for entry in log if entry.action == "equalised" for path in entry.paths]


def alike(one, other):
    if isinstance(one, tuple):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other)


def spread_of(model, path, x):
    """The largest range of a convolution's channels as a multiple of the smallest, after ReLU."""
    found = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, given, y: found.append(y.relu()))
    with torch.no_grad(), handle:
        model(x)
    found[0] = found[0].amax((0, 2, 3))
    alive = found[0][found[0] > 0]
    return float(alive.max() / alive.min())


class Blocks(nn.Module):
    """A stem, Ghost bottlenecks without norms, a mean and a classifier."""

    def __init__(self, rows, act):
        super().__init__()
        layers = Layers(nn.Identity, True, act)
        self.stem = nn.Sequential(conv(3, 8, 3), layers.activation())
        blocks, chs = [], 8
        for mid, out, stride, gate, s, d, placement in rows:
            options = {"stride": stride, "gate": gate, "s": s, "d": d, "placement": placement}
            blocks.append(GhostBottleneck(chs, mid, out, layers, **options))
            chs = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(chs, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


ROWS = st.tuples(
    st.sampled_from([8, 11, 12]),
    st.sampled_from([8, 10]),
    st.sampled_from([1, 2]),
    st.sampled_from(["", "hard", "clamped"]),
    st.sampled_from([2, 3]),
    st.sampled_from([1, 3]),
    st.sampled_from(["none", "post-concat", "both"]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    act=st.sampled_from(["relu", "leaky_relu:0.2", "relu6", "hardswish", "identity"]),
    seed=st.integers(0, 1000),
)
def test_the_same_numbers_whatever_the_graph(rows, act, seed):
    torch.manual_seed(seed)
    model = spread_(Blocks(rows, act), seed=seed)
    x = torch.randn(3, 3, 12, 12)
    before = copy.deepcopy(model.state_dict())
    other = equalised(model, [(x,)])
    with torch.no_grad():
        # Factors are powers of two: no rounding differs.
        assert torch.equal(other(x), model(x))
        wide, wide_x = other.double(), torch.randn(2, 3, 9, 9).double()
        expected = model.double()(wide_x)
        assert (wide(wide_x) - expected).abs().max() <= 1e-12 * expected.abs().max()
    after = model.float().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    if act in ("relu6", "hardswish"):  # what is left has no activation or ReLU between
        assert not [path for path in done(other) if "ghost1" in path]


def test_a_ghostnet_is_equalised_where_its_channels_are_free():
    torch.manual_seed(0)
    model = create_model("ghostnet_050", num_classes=4, norm="none", stem="cifar").eval()
    paths = set(done(equalised(model, [(torch.randn(2, 3, 32, 32),)])))
    # The primary convolution is read by the cheap one and by what follows the concatenation.
    assert {"blocks.1.0.ghost1.primary_conv.0", "blocks.1.0.ghost1.cheap_operation.0"} <= paths
    assert {"blocks.1.0.conv_dw", "blocks.1.0.shortcut.0", "conv_head"} <= paths
    # A gate is computed from the mean, by convolutions that take the factor.
    assert {"blocks.3.0.conv_dw", "blocks.3.0.se.conv_reduce"} <= paths
    # The second module's features go into a sum; a sigmoid follows the gate's last convolution.
    assert not [path for path in paths if "ghost2" in path or "conv_expand" in path]
    assert "conv_stem" not in paths  # the first shortcut is a sum


def test_ranges_become_alike():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 16, 3), nn.ReLU(), depthwise(16), nn.ReLU(), conv(16, 8))
    x = torch.randn(4, 3, 10, 10)
    spread_(model)
    other = equalised(model, [(x[:2],), (x[2:],)])
    assert done(other) == ["0", "2"]
    assert spread_of(model, "0", x) > 100
    # A depthwise reader costs nothing: all that is left is the rounding to a power of two.
    assert spread_of(other, "0", x) <= 2
    assert spread_of(other, "2", x) < spread_of(model, "2", x) / 4


def test_any_padding():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        model = spread_(nn.Sequential(conv(3, 8), nn.ReLU(), depthwise(8, padding_mode=mode)))
        other = equalised(model, [(x,)])
        assert done(other) == ["0"]
        with torch.no_grad():
            assert torch.equal(other(x), model(x))


class Net(nn.Module):
    """`first`, then what `between` makes of its output and of the rest of the net."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.third = conv(3, 8, 3), depthwise(8), conv(8, 8)
        self.between = between

    def forward(self, x):
        return self.between(self, self.first(x))


def _read_twice(net, y):
    return net.second(y.relu()), net.third(y)


FREE = {
    "ReLU": lambda net, y: net.second(y.relu()),
    "nothing": lambda net, y: net.second(y),
    "leaky ReLU": lambda net, y: net.second(F.leaky_relu(y, 0.3)),
    "two readers": _read_twice,
    "pooling": lambda net, y: net.third(F.max_pool2d(y.relu(), 2)),
    "a number": lambda net, y: net.second(y * 3.0),
    "a slice": lambda net, y: net.third(torch.cat([y, y], 1)[:, :8]),
}

HELD = {
    "ReLU6": lambda net, y: net.second(F.relu6(y)),
    "hard swish": lambda net, y: net.second(F.hardswish(y)),
    "a sigmoid": lambda net, y: net.second(torch.sigmoid(y)),
    "a sum with another": lambda net, y: net.second(y + net.third(y)),
    "a number added": lambda net, y: net.second(y + 1),
    "an addition in place": lambda net, y: net.second(y.add_(1)),
    "itself squared": lambda net, y: net.second(y * y),
    "an output": lambda net, y: (net.second(y), y),
    "another reader": lambda net, y: (net.second(y), torch.softmax(y, 1)),
    "a softmax past ReLU": lambda net, y: (net.second(y.relu()), torch.softmax(y.relu(), 1)),
    "a norm": lambda net, y: net.second(F.layer_norm(y, y.shape[1:])),
    "channels moved": lambda net, y: net.second(y.flip(1)),
    "rows side by side": lambda net, y: net.second(torch.cat([y, y], 2)),
    "a mean of channels": lambda net, y: net.second(y * y.mean(1, keepdim=True)),
    "a layer called twice": lambda net, y: net.second(net.second(y)),
    "weights read apart": lambda net, y: net.second(y) * net.second.weight.sum(),
    "indices": lambda net, y: net.third((F.max_pool2d(y, 1, return_indices=True) * 2)[2]),
    "itself called twice": lambda net, y: net.third(y) + net.first(y[:, :3]),
}


@pytest.mark.parametrize("way", FREE)
def test_what_is_free(way):
    torch.manual_seed(0)
    model = spread_(Net(FREE[way]))
    x = torch.randn(2, 3, 8, 8)
    other = equalised(model, [(x,)])
    assert "first" in done(other), other.spiritlevel_log
    with torch.no_grad():
        got, expected = other(x), model(x)
    assert alike(got, expected)


@pytest.mark.parametrize("way", HELD)
def test_what_is_held(way):
    torch.manual_seed(0)
    model = spread_(Net(HELD[way]))
    x = torch.randn(2, 3, 8, 8)
    other = equalised(model, [(x,)])
    assert "first" not in done(other)
    assert torch.equal(other.first.weight, model.first.weight)
    with torch.no_grad():
        got, expected = other(x), model(x)
    assert alike(got, expected)


def test_hooked_and_tied_layers_are_held():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    hooked = spread_(Net(FREE["ReLU"]))
    hooked.second.register_forward_hook(lambda module, given, y: y + 1)
    tied = spread_(Net(FREE["ReLU"]))
    tied.other = conv(3, 8, 3)
    tied.other.weight = tied.first.weight
    for model in (hooked, tied):
        assert done(equalised(model, [(x,)])) == []


def test_a_model_that_is_no_graph_is_copied_and_told():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 3)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    model = Branching()
    other = equalised(model, [(torch.ones(1, 3, 4, 4),)])
    assert other is not model
    (entry,) = other.spiritlevel_log
    assert (entry.action, entry.why.split(":")[0]) == ("left", "no ranges are equalised")


def test_dead_channels_stay():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), depthwise(8), nn.ReLU(), conv(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -1.0  # never fires
        model[2].weight[3] = 0.0
        model[4].weight[:, 5] = 0.0
    x = torch.randn(2, 3, 8, 8)
    other = equalised(model, [(x,)])
    assert all(bool(p.isfinite().all()) for p in other.parameters())
    assert torch.equal(other[0].bias[2], model[0].bias[2])
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_factors_are_powers_of_two():
    torch.manual_seed(0)
    model = spread_(nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4)))
    other = equalised(model, [(torch.randn(2, 3, 8, 8),)])
    factors = (model[0].weight[:, 0, 0, 0] / other[0].weight[:, 0, 0, 0]).tolist()
    assert all(math.frexp(each)[0] == 0.5 for each in factors)
    assert len(set(factors)) > 2


def test_a_graph_that_does_not_run_is_told():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 3)

        def forward(self, x, flags=None):
            return self.conv(x)

    (entry,) = equalised(Options(), [(torch.ones(1, 4, 4, 4),)]).spiritlevel_log
    assert entry.why.startswith("no ranges are equalised: its graph does not run: ")


class Way(nn.Module):
    """`first`, what `between` makes of its output, `last`."""

    def __init__(self, first, between, last):
        super().__init__()
        self.first, self.between, self.last = first, between, last

    def forward(self, x):
        return self.last(self.between(self.first(x)))


ROW, ROWS_OF_8 = (2, 3, 6), nn.Conv1d(8, 4, 1)
ACROSS = {
    "a 2d maximum of rows": (nn.MaxPool2d((3, 1), 1, (1, 0)), ROWS_OF_8, ROW),
    "a 2d mean of rows": (nn.AvgPool2d(3, 1, 1), ROWS_OF_8, ROW),
    "its function": (lambda y: F.avg_pool2d(y, 3, 1, 1), ROWS_OF_8, ROW),
    "a 1d maximum of points": (
        lambda y: F.max_pool1d(y.mean(2), 3, 1, 1),
        nn.Linear(8, 4),
        ROW,
    ),
    "half of the points": (lambda y: F.max_pool1d(y.mean(2), 2), nn.Linear(4, 4), ROW),
    "a pool of points to 4": (
        lambda y: F.adaptive_avg_pool1d(y.mean(2), 4),
        nn.Linear(4, 4),
        ROW,
    ),
    "one sample's rows": (nn.Identity(), nn.Linear(8, 4), (3, 8)),
    "points as one sample": (lambda y: y.mean(2), nn.Conv1d(2, 4, 1), ROW),
    "a mean of channels": (lambda y: y.mean((1, 2)), nn.Linear(2, 4), ROW),
    "a mean by names from the end": (lambda y: y.mean(-2), nn.Linear(6, 4), ROW),
}


@pytest.mark.parametrize("way", ACROSS)
def test_across_channels_is_held(way):
    torch.manual_seed(0)
    between, last, shape = ACROSS[way]
    model = Way(nn.Conv1d(3, 8, 1), between, last)
    with torch.no_grad():
        model.first.weight *= 10.0 ** torch.linspace(-1.5, 1.5, 8).view(-1, 1, 1)
    x = torch.randn(shape)
    other = equalised(model.eval(), [(x,)])
    # Held by itself, not by the comparison at the end.
    assert [entry.action for entry in getattr(other, "spiritlevel_log", ())] == []
    assert torch.equal(other.first.weight, model.first.weight)


def test_a_module_that_pools_across_channels_is_held():
    model = spread_(nn.Sequential(conv(3, 8), nn.Flatten(1), nn.MaxPool1d(2), nn.Linear(4, 2)))
    other = equalised(model, [(torch.randn(2, 3, 1, 1),)])
    assert getattr(other, "spiritlevel_log", []) == []


def test_one_sample_of_an_image_is_held():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = conv(3, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.conv(x[0]).mean(2))

    other = equalised(spread_(First()), [(torch.randn(2, 3, 8, 8),)])
    assert getattr(other, "spiritlevel_log", []) == []


def test_a_wrong_way_is_found_by_the_outputs(monkeypatch):
    monkeypatch.setattr(free_channels, "_HOMOGENEOUS", ("relu", "relu6"))
    torch.manual_seed(0)
    model = spread_(Net(HELD["ReLU6"]))
    other = equalised(model, [(torch.randn(2, 3, 8, 8),)])
    (entry,) = other.spiritlevel_log
    assert (entry.action, entry.why) == (
        "left",
        "no ranges are equalised: its outputs became others",
    )
    assert torch.equal(other.first.weight, model.first.weight)


def test_weights_in_any_order_of_memory():
    torch.manual_seed(0)
    model = spread_(nn.Sequential(conv(3, 8), nn.ReLU(), nn.Conv2d(8, 4, (3, 2))))
    model[2].weight = nn.Parameter(torch.randn(4, 8, 2, 3).transpose(2, 3))
    x = torch.randn(2, 3, 8, 8)
    other = equalised(model, [(x,)])
    assert done(other) == ["0"]
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_the_product_of_all_rounds_is_bounded():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8, bias=False), nn.ReLU(), conv(8, 4)).eval()
    with torch.no_grad():
        model[0].weight[3] *= 1e-30
    other = equalised(model, [(torch.randn(2, 3, 8, 8),)])
    factor = model[0].weight[3, 0] / other[0].weight[3, 0]
    assert factor.item() == 2.0**-20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_in_range(dtype):
    torch.manual_seed(0)
    model = spread_(nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4)), decades=4.0)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 2e-6, 0.0
        model[2].weight[:, 3] = 4e4
    model, x = model.to(dtype), torch.randn(2, 3, 8, 8).to(dtype)
    other = equalised(model, [(x,)])
    assert done(other) == ["0"]
    assert all(bool(each.isfinite().all()) for each in other.parameters())
    with torch.no_grad():
        got, expected = other(x), model(x)
    # The products of what was too small for the type's whole precision round otherwise.
    assert (got - expected).abs().max() <= 16 * torch.finfo(dtype).eps * expected.abs().max()


def test_a_layer_in_training_ends_the_way():
    torch.manual_seed(0)
    model = spread_(nn.Sequential(conv(3, 8), nn.Dropout(0.0), conv(8, 4)))
    assert done(equalised(model, [(torch.randn(2, 3, 8, 8),)])) == ["0"]
    model[1].train()
    assert done(equalised(model, [(torch.randn(2, 3, 8, 8),)])) == []
