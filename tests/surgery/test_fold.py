"""fold: right in every combination, or the layer that stays is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import spiritlevel as sl
from spiritlevel.surgery.in_eval import is_norm

pytestmark = pytest.mark.filterwarnings("ignore:.*lazy.*:UserWarning")


def lived(model, seed=0):
    """The model with statistics and weights as of some training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            for name, middle in (("weight", 1.0), ("bias", 0.0)):
                held = getattr(module, name, None)
                if held is not None:
                    held.data.normal_(middle, 0.5, generator=generator)
    return model.eval()


def norms(model):
    return [path for path, module in model.named_modules() if is_norm(module)]


def left(model):
    return {entry.paths: entry.why for entry in model.spiritlevel_log if entry.action == "left"}


def same(model, folded, x):
    """In float64 the algebra alone is seen."""
    wide = sl.fold(copy.deepcopy(model).double(), x.double())
    expected = copy.deepcopy(model).double().eval()(x.double())
    assert (wide(x.double()) - expected).abs().max() <= 1e-12 * expected.abs().max()
    y = model.eval()(x)
    assert (folded(x) - y).abs().max() <= 1e-5 * y.abs().max()


CONVS = {
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), (2, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "conv3d": (nn.Conv3d(6, 8, 3, dilation=2), nn.BatchNorm3d(8), (2, 6, 6, 6, 6)),
    "no bias": (nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), (2, 6, 5, 5)),
    "same, reflected": (
        nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        (2, 6, 5, 5),
    ),
    "transposed 1d": (nn.ConvTranspose1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 5)),
    "transposed 2d": (nn.ConvTranspose2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(6, 8, 2), nn.BatchNorm3d(8), (2, 6, 3, 3, 3)),
    "transposed, square": (nn.ConvTranspose2d(8, 8, 3), nn.BatchNorm2d(8), (2, 8, 5, 5)),
    "transposed, grouped": (
        nn.ConvTranspose2d(6, 9, 3, stride=2, padding=1, output_padding=1, groups=3, dilation=2),
        nn.BatchNorm2d(9),
        (2, 6, 5, 5),
    ),
    "transposed 4 to 4 in 2 groups": (
        nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False),
        nn.BatchNorm2d(4),
        (2, 4, 5, 5),
    ),
    "linear": (nn.Linear(6, 8), nn.BatchNorm1d(8), (4, 6)),
    "linear without bias": (nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), (4, 6)),
    "affine=False": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=False), (2, 6, 5, 5)),
    "momentum=None": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, momentum=None), (2, 6, 5, 5)),
    "bias=False of the norm": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, bias=False), (2, 6, 5, 5)),
    "sync": (nn.Conv2d(6, 8, 3), nn.SyncBatchNorm(8), (2, 6, 5, 5)),
    "instance norm with statistics": (
        nn.Conv2d(6, 8, 3),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        (2, 6, 5, 5),
    ),
    "ours": (nn.Conv2d(6, 8, 3), sl.nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "ours with ReLU": (nn.Conv2d(6, 8, 3), sl.nn.BatchNormAct2d(8), (2, 6, 5, 5)),
    "ours with leaky ReLU": (
        nn.Conv1d(6, 8, 3),
        sl.nn.BatchNormAct1d(8, act="leaky_relu:0.2"),
        (2, 6, 5),
    ),
    "ghost batches": (nn.Conv2d(6, 8, 3), sl.nn.GhostBatchNorm2d(8, 2), (4, 6, 5, 5)),
    "renorm": (nn.Conv2d(6, 8, 3), sl.nn.BatchRenorm2d(8), (4, 6, 5, 5)),
    "frozen": (nn.Conv2d(6, 8, 3), sl.nn.FrozenBatchNorm(8), (4, 6, 5, 5)),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_norm_goes_into_the_layer_before_it(name):
    layer, norm, shape = CONVS[name]
    model, x = lived(nn.Sequential(layer, norm)), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    assert left(folded) == {}
    same(model, folded, x)
    if type(norm) is nn.BatchNorm2d and norm.bias is not None and type(layer) is nn.Conv2d:
        torchs = fuse_conv_bn_eval(layer, norm)
        assert torch.allclose(folded[0].weight, torchs.weight, rtol=1e-5, atol=1e-6)
        assert torch.allclose(folded[0].bias, torchs.bias, rtol=1e-5, atol=1e-5)


AHEAD = {
    "conv without padding": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3), (2, 6, 5, 5)),
    "grouped": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, groups=2, bias=False), (2, 6, 5, 5)),
    "1d": (nn.BatchNorm1d(6), nn.Conv1d(6, 8, 3, dilation=2), (2, 6, 9)),
    "3d": (nn.BatchNorm3d(6), nn.Conv3d(6, 8, 2), (2, 6, 3, 3, 3)),
    "circular": (
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
        (2, 6, 5, 5),
    ),
    "replicate": (
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 3, padding="same", padding_mode="replicate"),
        (2, 6, 5, 5),
    ),
    "same, of one position": (nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, padding="same"), (2, 6, 5, 5)),
    "transposed, of one position": (
        nn.BatchNorm2d(6),
        nn.ConvTranspose2d(6, 8, 1, groups=2),
        (2, 6, 5, 5),
    ),
    "linear": (nn.BatchNorm1d(6), nn.Linear(6, 8), (4, 6)),
}


@pytest.mark.parametrize("name", AHEAD)
def test_a_norm_goes_into_the_layer_after_it(name):
    norm, layer, shape = AHEAD[name]
    model, x = lived(nn.Sequential(norm, layer)), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)


def test_a_norm_that_only_scales_goes_into_what_pads_with_zeros():
    norm = lived(nn.BatchNorm2d(6, affine=False))
    norm.running_mean.zero_()
    for layer in (
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1, groups=2),
    ):
        model, x = nn.Sequential(norm, layer).eval(), torch.randn(2, 6, 5, 5)
        folded = sl.fold(model, x)
        assert norms(folded) == []
        same(model, folded, x)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), "1 follows it: it pads with zeros, which are not shifted"),
        (nn.Conv2d(6, 8, 3, padding="same"), "it pads with zeros"),
        (nn.ConvTranspose2d(6, 8, 3), "it is transposed"),
        (nn.ReLU(), "1 follows it"),
    ],
)
def test_where_the_shift_would_miss_the_padding_the_norm_stays(layer, why):
    model, x = lived(nn.Sequential(nn.BatchNorm2d(6), layer)), torch.randn(2, 6, 5, 5)
    folded = sl.fold(model, x)
    assert norms(folded) == ["0"]
    assert why in left(folded)["0",]
    assert torch.equal(folded(x), model(x))


class Net(nn.Module):
    """Layers, and a function that says what is done with them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return STEPS[self.run](self, x)


STEPS = {
    "concat": lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)),
    "concat, one slice": lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)[:, :7]),
    "tokens": lambda m, x: m.bn(m.fc(x).transpose(1, 2)),
    "flat tokens": lambda m, x: m.bn(m.fc(x).reshape(-1, 8)),
    "shuffle": lambda m, x: m.bn(F.channel_shuffle(m.conv(x), 2)),
    "pooled": lambda m, x: m.bn(F.avg_pool2d(m.conv(x), 2)),
    "mean": lambda m, x: m.bn(m.conv(x).mean((2, 3))),
    "upsampled": lambda m, x: m.bn(F.interpolate(m.conv(x), scale_factor=2)),
    "dropout": lambda m, x: m.bn(F.dropout(m.conv(x), 0.5, m.training)),
    "by size": lambda m, x: m.bn((y := m.conv(x)).view(y.size(0), 8, -1)),
    "flattened after": lambda m, x: m.fc(torch.flatten(m.bn(x), 1)),
    "twice the pair": lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(x * 2)),
    "one norm, two convs": lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)),
    "norm after norm": lambda m, x: m.two(m.bn(m.conv(x))),
    "residual": lambda m, x: F.relu(m.bn(m.conv(x)) + x),
    "two read the norm": lambda m, x: (y := m.bn(m.conv(x))) + F.relu(y),
    "fused residual": lambda m, x: m.bn(m.conv(x), x),
    "fused residual by name": lambda m, x: m.bn(m.conv(x), residual=x),
    # What must stay.
    "shared conv": lambda m, x: m.bn(m.conv(x)) + m.two(m.conv(x)),
    "two read the conv": lambda m, x: m.bn(y := m.conv(x)) + y,
    "norm of an input, two readers": lambda m, x: m.a(y := m.bn(x)) + m.b(y),
    "conv elsewhere": lambda m, x: m.bn(m.conv(x)) + F.relu(m.conv(x)),
    "weight elsewhere": lambda m, x: m.bn(m.conv(x)) * m.conv.weight.mean(),
    "norm's weight elsewhere": lambda m, x: m.bn(m.conv(x)) * m.bn.weight.mean(),
    "max": lambda m, x: m.bn(F.max_pool2d(m.conv(x), 2)),
    "padded": lambda m, x: m.bn(F.pad(m.conv(x), (1, 1, 1, 1))),
    "padded pooling": lambda m, x: m.bn(F.avg_pool2d(m.conv(x), 3, 1, 1)),
    "always dropout": lambda m, x: m.bn(F.dropout(m.conv(x), 0.0)),
    "channels mixed": lambda m, x: m.bn(m.conv(x).reshape(x.shape[0], 8, -1, 2).sum(3)),
    "positions for channels": lambda m, x: m.bn(m.fc(x)),
    "scrambled": lambda m, x: m.bn(m.fc(x).reshape(-1, 8, 8)),
    "residual is the input": lambda m, x: m.bn(y := m.conv(x), y),
    "flattened": lambda m, x: m.bn(m.conv(x).flatten(1)),
    "input in the concat": lambda m, x: m.bn(torch.cat([m.conv(x), x], 1)),
    "functional": lambda m, x: F.batch_norm(
        m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias
    ),
}


IMAGES = (2, 8, 6, 6)
CONV = {"conv": lambda: nn.Conv2d(8, 8, 3, padding=1), "bn": lambda: nn.BatchNorm2d(8)}
PAIR = {"a": lambda: nn.Conv2d(8, 4, 1), "b": lambda: nn.Conv2d(8, 4, 1)}
FUSED = {**CONV, "bn": lambda: sl.nn.BatchNormAct2d(8, act="hardswish")}
TOKENS = {"fc": lambda: nn.Linear(5, 8), "bn": lambda: nn.BatchNorm1d(8)}
RIGHT = {
    "concat": ({**PAIR, "bn": CONV["bn"]}, IMAGES),
    "concat, one slice": ({**PAIR, "bn": lambda: nn.BatchNorm2d(7)}, IMAGES),
    "tokens": (TOKENS, (3, 8, 5)),
    "flat tokens": (TOKENS, (3, 8, 5)),
    "shuffle": (CONV, IMAGES),
    "pooled": (CONV, IMAGES),
    "mean": ({**CONV, "bn": lambda: nn.BatchNorm1d(8)}, IMAGES),
    "upsampled": (CONV, IMAGES),
    "dropout": (CONV, IMAGES),
    "by size": ({**CONV, "bn": lambda: nn.BatchNorm1d(8)}, IMAGES),
    "flattened after": ({"fc": lambda: nn.Linear(8 * 36, 3), "bn": CONV["bn"]}, IMAGES),
    "twice the pair": (CONV, IMAGES),
    "one norm, two convs": (
        {"a": CONV["conv"], "b": lambda: nn.Conv2d(8, 8, 1), "bn": CONV["bn"]},
        IMAGES,
    ),
    "norm after norm": ({**CONV, "two": CONV["bn"]}, IMAGES),
    "residual": (CONV, IMAGES),
    "two read the norm": (CONV, IMAGES),
    "fused residual": (FUSED, IMAGES),
    "fused residual by name": (FUSED, IMAGES),
}


def net(name, layers):
    torch.manual_seed(3)
    return lived(Net(name, **{key: make() for key, make in layers.items()}))


@pytest.mark.parametrize("name", RIGHT)
def test_what_only_moves_or_averages_may_lie_between(name):
    layers, shape = RIGHT[name]
    model, x = net(name, layers), torch.randn(shape)
    folded = sl.fold(model, x)
    assert norms(folded) == []
    same(model, folded, x)
    other = torch.randn(5, *shape[1:])
    y = model(other)
    assert (folded(other) - y).abs().max() <= 1e-5 * y.abs().max()


STAYS = {
    "shared conv": ({**CONV, "two": CONV["bn"]}, IMAGES, "conv is shared: it is called elsewhere"),
    "two read the conv": (CONV, IMAGES, "the output of conv goes to other places, too"),
    "norm of an input, two readers": (
        {**PAIR, "bn": CONV["bn"]},
        IMAGES,
        "its output is read in several places",
    ),
    "conv elsewhere": (CONV, IMAGES, "conv is shared: it is called elsewhere, too"),
    "weight elsewhere": (CONV, IMAGES, "conv has its weights used beside its call"),
    "norm's weight elsewhere": (CONV, IMAGES, "has its weights used beside its call"),
    "max": (CONV, IMAGES, "max_pool2d() comes before it"),
    "padded": (CONV, IMAGES, "its channels are not those of the layer"),
    "padded pooling": (CONV, IMAGES, "its channels are not those of the layer"),
    "always dropout": (CONV, IMAGES, "dropout() comes before it"),
    "channels mixed": ({**CONV, "bn": lambda: nn.BatchNorm1d(8)}, IMAGES, "sum() comes before it"),
    "positions for channels": (TOKENS, (3, 8, 5), "its channels are not those of the layer"),
    "scrambled": (TOKENS, (3, 8, 5), "its channels are not those of the layer"),
    "residual is the input": (FUSED, IMAGES, "is given its input as its residual"),
    "flattened": (
        {**CONV, "bn": lambda: nn.BatchNorm1d(8 * 36)},
        IMAGES,
        "gives one channel to several of its own",
    ),
    "input in the concat": (
        {**CONV, "bn": lambda: nn.BatchNorm2d(16)},
        IMAGES,
        "the output of x (an input) goes to other places, too",
    ),
    "functional": (CONV, IMAGES, "is called in no graph of the model"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_merged_stays_and_is_named(name):
    layers, shape, why = STAYS[name]
    model, x = net(name, layers), torch.randn(shape)
    folded = sl.fold(model, x)
    assert any(why in each for each in left(folded).values()), left(folded)
    assert ("bn",) in left(folded)
    assert torch.equal(folded(x), model(x))


def test_a_function_that_normalizes_is_named():
    model = net("functional", CONV)
    log = left(sl.fold(model, torch.randn(IMAGES)))
    assert log["",] == "1 calls of a batch norm function, which is no module"
