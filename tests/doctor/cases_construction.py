"""SL1xx: constants, types and places of norms."""

from __future__ import annotations

from functools import partial

import torch
from case_book import batches, blobs, case, small_net, train
from torch import nn


def conv_net(norm=nn.BatchNorm2d, bias=False):
    """conv 0, norm 1, ReLU 2, conv 3, norm 4, ReLU 5, pool, flatten, head 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=bias), norm(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


# ---- SL101
@case("SL101", "1", severity="warning")
def momentum_as_keras_counts_it():
    return dict(model=conv_net(partial(nn.BatchNorm2d, momentum=0.99)))


@momentum_as_keras_counts_it.twin
def _():
    return dict(model=conv_net(partial(nn.BatchNorm2d, momentum=1 - 0.99)))


@case("SL101", "4")
def momentum_in_per_cent():
    model = conv_net()
    model[4].momentum = 10  # per cent, was meant
    return dict(model=model)


@momentum_in_per_cent.twin
def _():
    model = conv_net()
    model[4].momentum = None  # the mean over all batches
    return dict(model=model)


# ---- SL102
@case("SL102", "1")
def no_momentum():
    return dict(model=conv_net(partial(nn.BatchNorm2d, momentum=0.0)))


@no_momentum.twin
def _():
    model = conv_net(partial(nn.BatchNorm2d, momentum=0.0))
    for norm in (model[1], model[4]):  # frozen, and says so
        norm.eval()
        norm.requires_grad_(False)
    return dict(model=model)


@case("SL102", "1", severity="info")
def no_momentum_but_statistics():
    model = train(conv_net(), batches(*blobs()), epochs=1)
    model[1].momentum = 0.0
    return dict(model=model)


@no_momentum_but_statistics.twin
def _():
    return dict(model=train(conv_net(), batches(*blobs()), epochs=1))


# ---- SL103
@case("SL103", "1")
def eps_of_keras_on_dim_images():
    x, y = blobs()
    model = conv_net(partial(nn.BatchNorm2d, eps=1e-3))
    return dict(model=train(model, batches(0.05 * x, y)))


@eps_of_keras_on_dim_images.twin
def _():
    x, y = blobs()
    model = conv_net(partial(nn.BatchNorm2d, eps=1e-3))
    return dict(model=train(model, batches(x, y)))


# ---- SL104
@case("SL104", "1")
def all_in_bfloat16():
    return dict(model=conv_net().bfloat16())


@all_in_bfloat16.twin
def _():
    model = conv_net().bfloat16()
    for norm in (model[1], model[4]):
        norm.float()
    return dict(model=model)


@case("SL104", "1")
def scales_in_float16():
    model = conv_net()
    model[1].weight.data = model[1].weight.data.half()
    model[1].bias.data = model[1].bias.data.half()
    return dict(model=model)


@scales_in_float16.twin
def _():
    return dict(model=conv_net().half().eval())  # a model that is only used


# ---- SL105
@case("SL105", "2")
def dropout_then_norm():
    return dict(
        model=nn.Sequential(
            nn.Linear(4, 16, bias=False), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3)
        )
    )


@dropout_then_norm.twin
def _():
    return dict(
        model=nn.Sequential(
            nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)
        )
    )


class DropsBetween(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        x = nn.functional.dropout(x, self.p, self.training)
        return self.norm(self.conv(x).relu())


@case("SL105", "norm")
def dropout_as_a_function_two_layers_before():
    return dict(model=DropsBetween(0.2))


@dropout_as_a_function_two_layers_before.twin
def _():
    return dict(model=DropsBetween(0.0))


# ---- SL106
@case("SL106", "0")
def biased_convolutions():
    return dict(model=conv_net(bias=True))


@biased_convolutions.twin
def _():
    return dict(model=conv_net(bias=False))


# ---- SL107
class Tokens(nn.Module):
    """Normalizes the features of each token, (N, 10 tokens, 16 features)."""

    def __init__(self, norm):
        super().__init__()
        self.linear = nn.Linear(6, 16, bias=False)
        self.norm = norm

    def forward(self, x):
        x = self.linear(x)
        if self.norm.num_features == x.shape[1]:
            return self.norm(x)
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


@case("SL107", "1", severity="info")
def channels_taken_from_time():
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(10), nn.ReLU())
    return dict(model=model, batches=[torch.randn(32, 10, 6) for _ in range(4)])


@channels_taken_from_time.twin
def _():
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(32, 10, 6, generator=generator) for _ in range(4)]
    model = Tokens(nn.BatchNorm1d(16))
    for x in 16 * given:
        model(x)
    return dict(model=model, batches=given)


class Words(nn.Module):
    """(N, 10 words) -> (N, 10, 16 features), which the norm takes as they come or transposed."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.linear = nn.Embedding(50, 6), nn.Linear(6, 16, bias=False)
        self.norm = norm

    def forward(self, x):
        x = self.linear(self.embed(x))
        if self.norm.num_features == 10:
            return self.norm(x)
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


@case("SL107", "norm")
def words_taken_for_channels():
    return dict(model=Words(nn.BatchNorm1d(10)))


@words_taken_for_channels.twin
def _():
    return dict(model=Words(nn.BatchNorm1d(16)))


# ---- SL108
@case("SL108", "1")
def synchronised_on_a_cpu():
    return dict(model=nn.SyncBatchNorm.convert_sync_batchnorm(conv_net()))


@synchronised_on_a_cpu.twin
def _():
    return dict(model=conv_net())


# ---- SL109
class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x):
        return (x + self.branch(x)).relu()


@case("SL109", "branch.1")
def zeros_for_every_norm():
    model = Residual()
    for norm in (model.branch[1], model.branch[4]):
        nn.init.zeros_(norm.weight)
    return dict(model=model)


@zeros_for_every_norm.twin
def _():
    model = Residual()
    nn.init.zeros_(model.branch[4].weight)  # the block starts as the identity
    return dict(model=model)


@case("SL109", "4")
def all_channels_pruned():
    model = train(small_net(), batches(*blobs()), epochs=1)
    model[4].weight.data.zero_()
    return dict(model=model)


@all_channels_pruned.twin
def _():
    model = train(small_net(), batches(*blobs()), epochs=1)
    model[4].weight.data[:6] = 0.0
    return dict(model=model)
