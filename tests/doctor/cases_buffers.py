"""SL2xx: modes and buffers."""

from __future__ import annotations

import copy

import torch
from case_book import batches, blobs, case, small_net, train
from torch import nn


# ---- SL201
class ForgetsTheMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small_net()

    def forward(self, x):
        return self.body(x)

    def train(self, mode=True):
        super().train()  # not `mode`: eval() is train(False)
        return self


class PassesTheMode(ForgetsTheMode):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


@case("SL201", "body.1")
def own_train_forgets_the_mode():
    return dict(model=ForgetsTheMode())


@own_train_forgets_the_mode.twin
def _():
    return dict(model=PassesTheMode())


# ---- SL202
@case("SL202", "1")
def built_without_running_statistics():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU())
    return dict(model=model)


@built_without_running_statistics.twin
def _():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    return dict(model=model)


# ---- SL203
@case("SL203", "1")
def frozen_part_in_train():
    pretrained = train(small_net(), batches(*blobs()), epochs=1)
    model = small_net()
    model.load_state_dict(pretrained.state_dict())
    for layer in model[:6]:
        layer.requires_grad_(False)
    model.train()
    return dict(model=model)


@frozen_part_in_train.twin
def _():
    pretrained = train(small_net(), batches(*blobs()), epochs=1)
    model = small_net()
    model.load_state_dict(pretrained.state_dict())
    for layer in model[:6]:
        layer.requires_grad_(False)
    model.train()
    model[:6].eval()
    return dict(model=model)


# ---- SL204
@case("SL204", "1")
def one_infinite_batch():
    model = small_net()
    x, _ = blobs()
    x[0, 0, 0, 0] = float("inf")
    model(x)
    return dict(model=model)


@one_infinite_batch.twin
def _():
    model = small_net()
    x, y = blobs()
    return dict(model=train(model, batches(x, y), epochs=1))


# ---- SL205
@case("SL205", "1")
def extrapolated_checkpoints():
    pairs = batches(*blobs())
    model = train(small_net(), pairs[:1], epochs=1)
    early = copy.deepcopy(model.state_dict())
    late = train(model, pairs, epochs=4).state_dict()
    model.load_state_dict({key: 3 * late[key] - 2 * early[key] for key in late})
    return dict(model=model)


@extrapolated_checkpoints.twin
def _():
    pairs = batches(*blobs())
    model = train(small_net(), pairs[:1], epochs=1)
    early = copy.deepcopy(model.state_dict())
    late = train(model, pairs, epochs=4).state_dict()
    for key, weight in model.named_parameters():
        weight.data = 3 * late[key] - 2 * early[key]
    torch.optim.swa_utils.update_bn(pairs, model)
    return dict(model=model)


# ---- SL206
@case("SL206", "1")
def weights_loaded_without_buffers():
    trained = train(small_net(), batches(*blobs()))
    model = small_net()
    model.load_state_dict(dict(trained.named_parameters()), strict=False)
    return dict(model=model.eval())


@weights_loaded_without_buffers.twin
def _():
    trained = train(small_net(), batches(*blobs()))
    model = small_net()
    model.load_state_dict(trained.state_dict())
    return dict(model=model.eval())


class WithBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = small_net()
        self.auxiliary = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        return self.main(x)


@case("SL206", "auxiliary.1", severity="info")
def branch_that_is_never_run():
    return dict(model=train(WithBranch(), batches(*blobs()), epochs=1))


@branch_that_is_never_run.twin
def _():
    model = WithBranch()
    del model.auxiliary
    return dict(model=train(model, batches(*blobs()), epochs=1))


# ---- SL207
@case("SL207", "1")
def summary_fed_zeros():
    model = small_net()
    model(torch.zeros(2, 3, 6, 6))  # to print the shapes
    return dict(model=model)


@summary_fed_zeros.twin
def _():
    model = small_net()
    model.eval()
    with torch.no_grad():
        model(torch.zeros(2, 3, 6, 6))
    model.train()
    return dict(model=model)


@case("SL207", "1", severity="info")
def summary_fed_noise():
    model = small_net()
    with torch.no_grad():
        model(torch.rand(2, 3, 6, 6))
    return dict(model=model)


@summary_fed_noise.twin
def _():
    model = train(small_net(), batches(*blobs())[:2], epochs=1)
    model.zero_grad()
    return dict(model=model)


# ---- SL208
@case("SL208", "1")
def no_counter_for_the_mean():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU())
    model[1].num_batches_tracked = None
    return dict(model=model)


@no_counter_for_the_mean.twin
def _():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU())
    return dict(model=model)


# ---- SL209, run by two processes
def data_of_this_rank():
    """Half of the images each; those of rank 1 are brighter."""
    rank = torch.distributed.get_rank()
    x, y = blobs()
    return batches(x[rank::2] + rank, y[rank::2])


@case("SL209", "1", ranks=2)
def statistics_of_each_rank():
    model = nn.parallel.DistributedDataParallel(small_net(), broadcast_buffers=False)
    return dict(model=train(model, data_of_this_rank(), epochs=2).module)


@statistics_of_each_rank.twin
def _():
    model = nn.parallel.DistributedDataParallel(small_net(), broadcast_buffers=False)
    train(model, data_of_this_rank(), epochs=2)
    for buffer in model.module.buffers():
        torch.distributed.all_reduce(buffer)
        buffer.div_(2, rounding_mode=None if buffer.is_floating_point() else "floor")
    return dict(model=model.module)


# ---- SL210
@case("SL210", "1")
def mean_of_two_clients():
    one = train(small_net(), batches(*blobs())[:2], epochs=1)
    other = train(small_net(), batches(*blobs())[2:], epochs=1)
    for mine, theirs in zip(one.modules(), other.modules(), strict=True):
        for tensors in (mine._parameters, mine._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensor.data = (tensor.data + getattr(theirs, name).data) / 2
    return dict(model=one)


@mean_of_two_clients.twin
def _():
    one = train(small_net(), batches(*blobs())[:2], epochs=1)
    other = train(small_net(), batches(*blobs())[2:], epochs=1)
    for mine, theirs in zip(one.modules(), other.modules(), strict=True):
        for tensors in (mine._parameters, mine._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = (tensor.data + getattr(theirs, name).data) / 2
    return dict(model=one)


# ---- SL211
class MeanTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = small_net()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x)

    def follow(self, names):
        for name in names:
            for to, of in zip(
                getattr(self.teacher, name)(), getattr(self.student, name)(), strict=True
            ):
                to.data = 0.9 * to.data + 0.1 * of.data if of.is_floating_point() else of.clone()


def taught(*follows):
    model = MeanTeacher()
    for pair in batches(*blobs()) * 3:
        train(model, [pair], epochs=1)
        model.follow(follows)
    model.teacher.eval()
    return model


@case("SL211", "teacher")
def teacher_follows_parameters_only():
    return dict(model=taught("parameters"))


@teacher_follows_parameters_only.twin
def _():
    return dict(model=taught("parameters", "buffers"))
