"""SL3xx: statistics on data."""

from __future__ import annotations

import torch
from case_book import batches, blobs, case, small_net, train
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def settled() -> nn.Sequential:
    """A small net whose moving averages have long forgotten where they began."""
    model = small_net()
    model[1].momentum = model[4].momentum = 0.2
    return train(model, few(), epochs=13)


def few():
    return batches(*blobs(64, size=4), size=8)


# ---- SL301
@case("SL301", "1")
def images_on_another_scale():
    return dict(model=settled(), batches=[(x * 255, y) for x, y in few()])


@images_on_another_scale.twin
def _():
    return dict(model=settled(), batches=few())


@case("SL301", "4", severity="info")
def momentum_of_tensorflow():
    model = small_net()
    model[4].momentum = 0.001  # written for a framework where this is the share of the old
    return dict(model=train(model, batches(*blobs())), batches=batches(*blobs()))


@momentum_of_tensorflow.twin
def _():
    return dict(model=train(small_net(), batches(*blobs())), batches=batches(*blobs()))


# ---- SL302
@case("SL302", "1", severity="warning")
def statistics_of_the_batch_at_test_time():
    model = settled()
    model[1].track_running_stats = False
    model[1].running_mean = model[1].running_var = model[1].num_batches_tracked = None
    return dict(model=model, batches=few())


@statistics_of_the_batch_at_test_time.twin
def _():
    return dict(model=settled(), batches=few())


class AlwaysTraining(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


@case("SL302", "1")
def norm_that_eval_does_not_reach():
    model = small_net()
    model[1] = AlwaysTraining(8)
    return dict(model=train(model, few()), batches=few())


@norm_that_eval_does_not_reach.twin
def _():
    model = small_net()
    model[1] = nn.BatchNorm2d(8)
    return dict(model=train(model, few()), batches=few())


class Whitening(nn.Module):
    """A norm of one's own that knows no eval mode."""

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


@case("SL302", "1", severity="info")
def norm_of_ones_own_without_eval():
    model = small_net()
    model[1] = Whitening()
    return dict(model=train(model, batches(*blobs())), batches=batches(*blobs()))


@norm_of_ones_own_without_eval.twin
def _():
    return dict(model=train(small_net(), batches(*blobs())), batches=batches(*blobs()))


# ---- SL303
def pooled_first() -> nn.Sequential:
    """The norm comes behind the pooling: one value a sample."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, nn.BatchNorm1d(8), nn.Linear(8, 3))


@case("SL303", "4")
def two_values_a_channel():
    x, y = blobs(64)
    return dict(model=train(pooled_first(), batches(x, y, 2)), batches=batches(x, y, 2))


@two_values_a_channel.twin
def _():
    x, y = blobs(64)
    return dict(model=train(pooled_first(), batches(x, y, 32)), batches=batches(x, y, 32))


# ---- SL304
@case("SL304", "4")
def one_sample_is_left_over():
    x, y = blobs(97)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    return dict(model=pooled_first(), batches=loader)


@one_sample_is_left_over.twin
def _():
    x, y = blobs(97)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, drop_last=True)
    return dict(model=pooled_first(), batches=loader)


# ---- SL305
def seasons():
    """Images that are the brighter, the higher their class."""
    x, y = blobs()
    return x + 3 * y[:, None, None, None], y


@case("SL305", "1")
def sorted_by_class():
    x, y = seasons()
    order = y.argsort(stable=True)
    pairs = batches(x[order], y[order])
    return dict(model=train(small_net(), pairs), batches=pairs)


@sorted_by_class.twin
def _():
    pairs = batches(*seasons())
    return dict(model=train(small_net(), pairs), batches=pairs)


# ---- SL306
@case("SL306", "1")
def real_and_generated_take_turns():
    x, _ = blobs()
    pairs = [(b + 4 * (-1) ** i, torch.full((32,), i % 2)) for i, b in enumerate(x.split(32))]
    return dict(model=train(small_net(), pairs), batches=[b for b, _ in pairs])


@real_and_generated_take_turns.twin
def _():
    x, _ = blobs()
    real = torch.arange(256) % 2  # half of each batch
    pairs = batches(x + 4 * (1 - 2 * real[:, None, None, None]), real)
    return dict(model=train(small_net(), pairs), batches=[b for b, _ in pairs])


# ---- SL307
class TwoLevels(nn.Module):
    """A head shared by two levels of a pyramid, with one norm for both or one for each."""

    def __init__(self, norms: int):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(norms)])
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        levels = x, 3 * F.avg_pool2d(x, 2) + 2
        fed = zip(levels, [self.norms[0], self.norms[-1]], strict=True)
        return self.head(torch.cat([norm(self.conv(x)).mean((2, 3)) for x, norm in fed], 1))


@case("SL307", "norms.0")
def one_norm_for_two_levels():
    pairs = batches(*blobs())
    return dict(model=train(TwoLevels(norms=1), pairs), batches=[x for x, _ in pairs])


@one_norm_for_two_levels.twin
def _():
    pairs = batches(*blobs())
    return dict(model=train(TwoLevels(norms=2), pairs), batches=[x for x, _ in pairs])


# ---- SL308
def sequences(padded: bool):
    """(N, C, L) with mean 3, and zeros behind the end of each where they are padded."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 4, 20, generator=generator) + 3
    if padded:
        lengths = torch.randint(4, 18, (128, 1, 1), generator=generator)
        x = x * (torch.arange(20) < lengths)
    return list(x.split(16))


def listener() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 1))


@case("SL308", "1")
def padding_is_counted():
    return dict(model=listener(), batches=sequences(padded=True))


@padding_is_counted.twin
def _():
    return dict(model=listener(), batches=sequences(padded=False))


# ---- SL309
class Tokens(nn.Module):
    """(N, 8 steps, 4) -> 8 features of unlike scales; the norm wants them on axis 1."""

    def __init__(self, transpose: bool):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.act, self.norm = nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8)
        self.embed.weight.data *= torch.logspace(-1, 1, 8)[:, None]
        self.transpose = transpose

    def forward(self, x):
        x = self.act(self.embed(x))
        return self.norm(x.transpose(1, 2)).transpose(1, 2) if self.transpose else self.norm(x)


@case("SL309", "norm")
def steps_taken_for_channels():
    return dict(model=Tokens(transpose=False), batches=list(torch.randn(64, 8, 4).split(16)))


@steps_taken_for_channels.twin
def _():
    return dict(model=Tokens(transpose=True), batches=list(torch.randn(64, 8, 4).split(16)))


# ---- SL310
class LogFirst(nn.Module):
    def __init__(self, floor: float):
        super().__init__()
        self.body, self.floor = small_net(), floor

    def forward(self, x):
        return self.body(x.clamp(min=self.floor).log())


@case("SL310", "body.1")
def log_of_zero():
    x, y = blobs()
    return dict(model=LogFirst(floor=0.0), batches=batches(x, y))


@log_of_zero.twin
def _():
    x, y = blobs()
    return dict(model=LogFirst(floor=0.01), batches=batches(x, y))


# ---- SL311
@case("SL311", "1")
def eps_above_the_variance():
    x, y = blobs()
    pairs = batches(x / 1000, y)  # a signal in volts, of millivolts
    return dict(model=train(small_net(), pairs), batches=pairs)


@eps_above_the_variance.twin
def _():
    pairs = batches(*blobs())
    return dict(model=train(small_net(), pairs), batches=pairs)


# ---- SL312
def with_dropout(first: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norm, drop = nn.BatchNorm1d(16), nn.Dropout(0.5)
    order = [drop, norm] if first else [norm, drop]
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), *order, nn.Linear(16, 3))


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    return batches(x, x[:, :3].argmax(1))


@case("SL312", "3")
def dropout_before_the_norm():
    return dict(model=train(with_dropout(first=True), rows()), batches=[x for x, _ in rows()])


@dropout_before_the_norm.twin
def _():
    return dict(model=train(with_dropout(first=False), rows()), batches=[x for x, _ in rows()])


# ---- SL313
def in_bfloat16(momentum: float):
    """Running means that have come to 4, of inputs whose mean is 9.93."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum), nn.Conv2d(4, 2, 1)).bfloat16()
    model[0].running_mean.fill_(4)
    model[0].num_batches_tracked.fill_(10_000)
    return model, [x.bfloat16() for x in (torch.randn(128, 4, 5, 5) + 9.93).split(16)]


@case("SL313", "0")
def steps_lost_in_bfloat16():
    model, pairs = in_bfloat16(momentum=0.001)
    return dict(model=model, batches=pairs)


@steps_lost_in_bfloat16.twin
def _():
    model, pairs = in_bfloat16(momentum=0.001)
    model, pairs = model.float(), [x.float() for x in pairs]
    model[0].momentum = 0.1
    for x in pairs * 20:
        model(x)
    return dict(model=model, batches=pairs)


# ---- SL314
def synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(small_net())


@case("SL314", "1", severity="info")
def loader_that_may_end_unevenly():
    data = TensorDataset(*blobs(250))
    return dict(model=synchronized(), batches=DataLoader(data, batch_size=16, shuffle=True))


@loader_that_may_end_unevenly.twin
def _():
    data = TensorDataset(*blobs(250))
    loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=True)
    return dict(model=small_net(), batches=loader)


# ---- SL315
@case("SL315", "1")
def synchronized_though_batches_are_large():
    return dict(model=synchronized(), batches=batches(*blobs(), size=64))


@synchronized_though_batches_are_large.twin
def _():
    return dict(model=small_net(), batches=batches(*blobs(), size=64))


# ---- SL316
@case("SL316", "1")
def statistics_of_other_images():
    model = settled()
    with torch.no_grad():
        for x, _ in few():
            model.train()(x * 2 - 3)  # statistics taken over images that were not normalized
    return dict(model=model, batches=few())


@statistics_of_other_images.twin
def _():
    model = settled()
    with torch.no_grad():
        for x, _ in few():
            model.train()(x)
    return dict(model=model, batches=few())
