"""Small models in which a batch norm stands beside other layers, by what is done with them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl


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
                    held.data.normal_(middle, 1.0, generator=generator)
    return model.eval()


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
    "linear, affine=False": (nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), (4, 6)),
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
    "tokens, and back": lambda m, x: m.bn((y := m.fc(x)).flatten(0, 1)).reshape_as(y),
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
    "tokens, and back": (TOKENS, (3, 8, 5)),
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


def net(name, layers):
    torch.manual_seed(3)
    return lived(Net(name, **{key: make() for key, make in layers.items()}))
