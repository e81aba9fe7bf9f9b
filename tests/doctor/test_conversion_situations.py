"""What a model may be to its reference, and which rules speak: all others of SL5xx are silent."""

from __future__ import annotations

import copy

import pytest
import torch
from case_book import batches, blobs, small_net, train
from cases_conversion import (
    averaged,
    folded,
    frozen_first_half,
    other_images,
    trained,
    upsampling,
    with_activations,
)
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import spiritlevel as sl
from spiritlevel.doctor.check import check

X, Y = blobs(64)
SITUATIONS = {}


def situation(*spoken):
    """Enter a function that gives (model, reference); `spoken` are the findings to be made."""

    def enter(build):
        SITUATIONS[build.__name__] = (build, sorted(spoken))
        return build

    return enter


@situation()
def a_copy():
    model = trained()
    return copy.deepcopy(model), model


@situation()
def a_network_in_training_beside_its_checkpoint():
    checkpoint = trained(epochs=1)
    return train(copy.deepcopy(checkpoint), batches(*blobs()), epochs=2), checkpoint


@situation()
def a_network_tuned_with_norms_in_eval():
    checkpoint = trained(epochs=1)
    model = copy.deepcopy(checkpoint)
    tune(model, freeze=lambda norm: norm.eval())
    return model, checkpoint


@situation("SL506 info")
def a_network_tuned_with_norms_in_eval_then_shipped():
    checkpoint = trained(epochs=1)
    model = copy.deepcopy(checkpoint)
    tune(model, freeze=lambda norm: norm.eval())
    return model.eval(), checkpoint


@situation()
def a_network_tuned_with_norms_frozen_then_shipped():
    checkpoint = trained(epochs=1)
    model = copy.deepcopy(checkpoint)
    tune(model, freeze=lambda norm: norm.eval().requires_grad_(False))
    return model.eval(), checkpoint


@situation()
def a_network_unfrozen_and_tuned():
    checkpoint = frozen_first_half()
    model = copy.deepcopy(checkpoint).requires_grad_(True).train()
    return train(model, other_images(), epochs=1), checkpoint


@situation()
def convolutions_folded():
    model = train(upsampling(), batches(*blobs()), epochs=1)
    return folded(model, transpose=True), model


@situation("SL502 error")
def convolutions_folded_wrongly():
    model = train(upsampling(), batches(*blobs()), epochs=1)
    return folded(model, transpose=False), model


@situation("SL502 error")
def folded_but_the_norm_has_stayed():
    model = trained().eval()
    after = copy.deepcopy(model)
    after[3] = fuse_conv_bn_eval(after[3], after[4])
    return after, model


@situation()
def recalibrated():
    before = trained()
    after = copy.deepcopy(before)
    update_bn(other_images(), after)
    return after, before


@situation("SL505 warning")
def recalibrated_with_a_frozen_part():
    before = frozen_first_half()
    after = copy.deepcopy(before)
    update_bn(other_images(), after)
    return after, before


@situation()
def an_average_of_weights_and_buffers():
    net = small_net()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        train(net, batches(*blobs()), epochs=1)
        average.update_parameters(net)
    return average, net


@situation()
def an_average_that_was_recalibrated():
    average, net = averaged()
    update_bn(batches(*blobs()), average)
    return average, net


@situation("SL506 warning")
def an_average_with_the_buffers_of_its_source():
    return averaged()


@situation("SL504 error")
def an_average_of_parameters_alone():
    net = trained()
    target = small_net().eval()
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), net.parameters(), strict=True):
            mine.lerp_(theirs, 0.9)
    return target, net


@situation()
def another_network_just_built():
    torch.manual_seed(1)
    model = small_net()
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return model, trained()


@situation()
def fused():
    model = trained()
    return sl.fuse(copy.deepcopy(model)), model


@situation("SL502 info")
def batch_norms_to_group_norms():
    model = trained()
    return sl.convert(copy.deepcopy(model), "group:8"), model


@situation("SL502 info")
def batch_norms_taken_out():
    model = trained()
    return sl.convert(copy.deepcopy(model), "none"), model


@situation("SL502 error")
def batch_norms_forgotten_in_a_fold():
    model = trained()
    after = copy.deepcopy(model)
    after[1] = after[4] = nn.Identity()
    return after, model


@situation()
def batch_norms_frozen():
    model = trained()
    return sl.convert(copy.deepcopy(model), "frozen"), model


@situation()
def synchronised():
    model = trained().eval()
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), model


@situation("SL501 error", "SL502 error")
def synchronised_without_the_activations():
    model = train(with_activations(), batches(*blobs()), epochs=1).eval()
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), model


@situation()
def half_precision():
    model = trained().eval()
    return copy.deepcopy(model).bfloat16(), model


@situation("SL502 info")
def quantized():
    model = trained().eval()
    after = copy.deepcopy(model)
    after[8] = AsQuantized(after[8])
    return after, model


@situation("SL502 warning", "SL503 warning")
def another_eps():
    model = trained().eval()
    after = copy.deepcopy(model)
    after[4].eps = 1e-3
    return after, model


@situation("SL503 info")
def another_momentum():
    model = trained()
    after = copy.deepcopy(model)
    after[4].momentum = 0.01
    return after, model


@situation("SL502 error")
def fewer_classes():
    model = trained()
    after = copy.deepcopy(model)
    after[8] = nn.Linear(8, 2)
    return after, model


@situation()
def a_wrapped_copy():
    model = trained()
    return nn.DataParallel(copy.deepcopy(model)), model


class AsQuantized(nn.Module):
    """A Linear layer with weights of four bits, by its module one of torch.ao's."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().max() / 7
        self.register_buffer("levels", (linear.weight.detach() / scale).round())
        self.scale, self.shift = float(scale), linear.bias.detach()

    def forward(self, x):
        return nn.functional.linear(x, self.levels * self.scale, self.shift)


AsQuantized.__module__ = "torch.ao.nn.quantized.dynamic"


def tune(model, freeze):
    """Plain SGD with the norms kept out of train()."""
    model.train()
    for norm in (model[1], model[4]):
        freeze(norm)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for x, y in other_images():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("name", SITUATIONS)
def test_only_what_is_wrong_is_told(name):
    build, spoken = SITUATIONS[name]
    torch.manual_seed(0)
    model, reference = build()
    found = check(model, [(X, Y)], reference=reference, select="SL5").findings
    assert sorted(f"{each.rule} {each.severity}" for each in found) == spoken, found
