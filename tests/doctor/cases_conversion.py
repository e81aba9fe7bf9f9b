"""SL5xx: models that were converted, folded, averaged or recalibrated."""

from __future__ import annotations

import copy

import torch
from case_book import batches, blobs, case, small_net, train
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn


def trained(epochs=2):
    return train(small_net(), batches(*blobs()), epochs)


# ---- SL501
class NormAct(nn.BatchNorm2d):
    """A batch norm that ends in an activation, as timm's BatchNormAct2d does."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class SyncNormAct(nn.SyncBatchNorm):
    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def with_activations():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), NormAct(8), nn.Conv2d(8, 8, 3, bias=False), NormAct(8)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


@case("SL501", "1")
def activation_lost_in_synchronising():
    return dict(model=nn.SyncBatchNorm.convert_sync_batchnorm(with_activations()).eval())


@activation_lost_in_synchronising.twin
def _():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(with_activations()).eval()
    for norm in (model[1], model[3]):
        norm.__class__ = SyncNormAct
    return dict(model=model)


# ---- SL502
@case("SL502", "1")
def activation_lost_beside_the_original():
    x, y = blobs()
    before = train(with_activations(), batches(x, y), epochs=2).eval()
    after = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(before))
    return dict(model=after, reference=before, example=x[:32])


@activation_lost_beside_the_original.twin
def _():
    x, y = blobs()
    before = train(with_activations(), batches(x, y), epochs=2).eval()
    after = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(before))
    for norm in (after[1], after[3]):
        norm.__class__ = SyncNormAct
    return dict(model=after, reference=before, example=x[:32])


def upsampling():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


def folded(model, transpose):
    model = copy.deepcopy(model).eval()
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    model[3], model[4] = fuse_conv_bn_eval(model[3], model[4], transpose=transpose), nn.Identity()
    return model


@case("SL502", "3")
def transposed_convolution_folded_as_a_plain_one():
    x, y = blobs()
    before = train(upsampling(), batches(x, y), epochs=2)
    return dict(model=folded(before, transpose=False), reference=before, batches=[(x, y)])


@transposed_convolution_folded_as_a_plain_one.twin
def _():
    x, y = blobs()
    before = train(upsampling(), batches(x, y), epochs=2)
    return dict(model=folded(before, transpose=True), reference=before, batches=[(x, y)])


@case("SL502", "4")
def folded_but_the_norm_is_still_there():
    before = trained().eval()
    after = copy.deepcopy(before)
    after[3] = fuse_conv_bn_eval(after[3], after[4])
    return dict(model=after, reference=before, example=blobs()[0][:32])


@folded_but_the_norm_is_still_there.twin
def _():
    before = trained().eval()
    after = copy.deepcopy(before)
    after[3], after[4] = fuse_conv_bn_eval(after[3], after[4]), nn.Identity()
    return dict(model=after, reference=before, example=blobs()[0][:32])


# ---- SL503
def ported(eps):
    before = trained()
    for norm in (before[1], before[4]):
        norm.eps = 1e-3  # as Keras has it
    after = small_net()
    for norm in (after[1], after[4]):
        norm.eps = eps
    after.load_state_dict(before.state_dict())
    return dict(model=after, reference=before)


@case("SL503", "1")
def eps_left_behind():
    return ported(eps=1e-5)


@eps_left_behind.twin
def _():
    return ported(eps=1e-3)


# ---- SL504
def target_of(online):
    """As a deep Q-network makes it: built alike, then copied."""
    target = small_net()
    for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    return target.eval()


@case("SL504", "1")
def target_network_without_buffers():
    online = trained()
    return dict(model=target_of(online), reference=online)


@target_network_without_buffers.twin
def _():
    online = trained()
    target = target_of(online)
    for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
        mine.copy_(theirs)
    return dict(model=target, reference=online)


# ---- SL505
def frozen_first_half():
    model = trained()
    for layer in model[:3]:
        layer.requires_grad_(False).eval()
    return model


def other_images():
    x, y = blobs(128)
    return batches(2 * x + 1, y)


@case("SL505", "1")
def frozen_norm_recalibrated():
    before = frozen_first_half()
    after = copy.deepcopy(before)
    update_bn(other_images(), after)
    return dict(model=after, reference=before)


@frozen_norm_recalibrated.twin
def _():
    before = frozen_first_half()
    after = copy.deepcopy(before)
    update_bn(other_images(), after)
    after[1] = copy.deepcopy(before[1])
    return dict(model=after, reference=before)


# ---- SL506
def averaged(epochs=6):
    """The mean of the weights of some epochs, beside the network that they come from."""
    net = small_net()
    average = AveragedModel(net)
    for _ in range(epochs):
        train(net, batches(*blobs()), epochs=1)
        average.update_parameters(net)
    return average, net


@case("SL506", "module.1")
def averaged_but_not_recalibrated():
    average, net = averaged()
    return dict(model=average, reference=net)


@averaged_but_not_recalibrated.twin
def _():
    average, net = averaged()
    update_bn(batches(*blobs()), average)
    return dict(model=average, reference=net)


# ---- SL508
class Tapped(nn.Module):
    """The head also gets what the norm gets, or what it gives."""

    def __init__(self, tap):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.tap = tap

    def forward(self, x):
        before = self.conv(x)
        after = self.norm(before)
        return after.relu().mean((2, 3)) + (before if self.tap == "before" else after).amax((2, 3))


@case("SL508", "norm")
def convolution_read_twice():
    x, _ = blobs()
    return dict(model=Tapped("before"), example=x[:32])


@convolution_read_twice.twin
def _():
    x, _ = blobs()
    return dict(model=Tapped("after"), example=x[:32])


@case("SL508", "1")
def as_many_tokens_as_features():
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16))
    return dict(model=model, example=torch.randn(8, 16, 6))


@as_many_tokens_as_features.twin
def _():
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16))
    return dict(model=model, example=torch.randn(128, 6))
