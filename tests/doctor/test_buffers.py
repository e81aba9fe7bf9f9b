"""SL2xx beside the book: what is only told (info), what is not said, and the numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from case_book import batches, blobs, small_net, train
from torch import nn

from spiritlevel.doctor import beginnings
from spiritlevel.doctor.case import Case
from spiritlevel.doctor.check import RULES


def found(rule, model):
    return list(RULES[rule](Case(model)))


def told(rule, model):
    return [(each.severity, each.module) for each in found(rule, model)]


def trained(epochs=3):
    model = train(small_net(), batches(*blobs()), epochs)
    model.zero_grad()
    return model


# ---- SL203
def test_frozen_norms_after_weights_that_learn_are_only_told():
    model = trained()
    for norm in (model[1], model[4]):
        norm.requires_grad_(False)
    assert told("SL203", model) == [("info", "1")]


def test_a_frozen_model_is_only_told():
    assert told("SL203", trained().requires_grad_(False)) == [("info", "1")]


def test_what_had_a_gradient_is_only_told():
    model = train(small_net(), batches(*blobs()), epochs=1)
    model[3:6].requires_grad_(False)
    assert told("SL203", model) == [("info", "4")]
    model.zero_grad()
    assert told("SL203", model) == [("warning", "4")]


def test_a_backbone_frozen_in_the_process_that_trained_it():
    model = train(small_net(), batches(*blobs()), epochs=1)
    model[:6].requires_grad_(False)
    assert model[1].weight.grad is not None
    assert told("SL203", model) == [("warning", "1")]


def test_a_discriminator_before_its_generator_is_no_backbone():
    class Gan(nn.Module):
        def __init__(self):
            super().__init__()
            self.discriminator, self.generator = small_net(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.discriminator(self.generator(x))

    model = Gan()
    model(blobs()[0]).mean().backward()
    model.discriminator.requires_grad_(False)
    assert told("SL203", model) == [("info", "discriminator.1")]


def test_a_norm_before_all_weights_goes_with_those_after_it():
    def model():
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    part = model()
    part[:2].requires_grad_(False)
    assert told("SL203", part) == [("warning", "0")]
    norm = model()
    norm[0].requires_grad_(False)
    assert told("SL203", norm) == [("info", "0")]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(8, affine=False),
        nn.BatchNorm1d(8, momentum=0.0),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.LayerNorm(8),
    ],
)
def test_norms_that_no_batch_moves_are_not_frozen_wrongly(norm):
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2))
    model[:2].requires_grad_(False)
    assert told("SL203", model) == []


def test_all_frozen_layers_are_in_the_evidence():
    model = trained()
    model[:6].requires_grad_(False)
    (finding,) = found("SL203", model)
    assert finding.evidence["layers"] == ["1", "4"]
    assert "1 more layer alike" in finding.message


# ---- SL204, SL205
def test_the_channels_are_counted():
    model = small_net()
    model[4].running_mean[2] = float("nan")
    model[4].running_var[5] = float("inf")
    model[4].running_var[6:] = torch.tensor([-0.25, -3.0])
    (broken,), (negative,) = found("SL204", model), found("SL205", model)
    assert (broken.module, broken.evidence["channels"], broken.evidence["first"]) == ("4", 2, 2)
    assert "2 of 8 channels" in broken.message
    assert (negative.module, negative.evidence["channels"]) == ("4", 2)
    assert "2 of 8 channels is negative, -3 at the least" in negative.message


def test_frozen_kinds_and_instance_norms_can_be_broken_too():
    from spiritlevel.nn import FrozenBatchNorm

    for norm in (FrozenBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)):
        norm.running_var[0] = -1.0
        assert told("SL205", nn.Sequential(norm)) == [("error", "0")]


# ---- SL206
def without_buffers(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return model


def test_random_gammas_and_betas_are_only_told():
    """RepVGG starts like this."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(6)])
    for block in model:
        nn.init.normal_(block[1].weight, 0.1, 0.1)
        nn.init.normal_(block[1].bias, 0.0, 0.1)
    assert told("SL206", model) == [("info", "0.1")]
    for block in model:
        nn.init.zeros_(block[1].bias)
    assert told("SL206", model) == []


def test_how_often_chance_is_taken_for_training():
    """Of 100 networks of 2 to 20 layers as they are drawn, next to none."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for number in range(100):
        norms = {str(i): nn.BatchNorm1d(8 + number % 40) for i in range(2 + number % 19)}
        for norm in norms.values():
            with torch.no_grad():
                norm.weight.normal_(1.0, 0.02, generator=generator)
                norm.bias.uniform_(-0.1, 0.1, generator=generator)
        ratio, limit = beginnings._apart(norms)
        wrong += ratio > limit
    assert wrong <= 2


def test_the_f_ratio_is_that_of_analysis_of_variance():
    groups = [[1.0, 2.0, 6.0], [4.0, 8.0], [9.0, 10.0, 11.0, 12.0]]
    every = [value for group in groups for value in group]
    means = [sum(group) / len(group) for group in groups]
    between = sum(len(g) * (m - sum(every) / 9) ** 2 for g, m in zip(groups, means, strict=True))
    within = sum((v - m) ** 2 for g, m in zip(groups, means, strict=True) for v in g)
    ratio = beginnings._f_ratio([torch.tensor(group).double() for group in groups])
    assert ratio == pytest.approx((between / 2) / (within / 6))


def test_a_layer_kept_in_eval_while_the_model_trains_is_only_told():
    model = without_buffers(trained(5))
    assert told("SL206", model.eval()) == [("warning", "1")]
    model.train()
    assert told("SL206", model) == [("warning", "1")]
    model[1].eval()
    model[4].eval()
    assert told("SL206", model) == [("info", "1")]


# ---- SL207
def test_more_than_three_batches_are_training():
    model = small_net()
    for number in range(4):
        model(torch.randn(4, 3, 6, 6))
        assert bool(found("SL207", model)) is (number < 3)


def test_zero_initialised_gammas_are_as_they_start():
    model = small_net()
    nn.init.zeros_(model[4].weight)
    model(torch.randn(4, 3, 6, 6))
    assert told("SL207", model) == [("info", "1")]


@pytest.mark.parametrize(
    ("momentum", "left"), [(0.1, 0.81), (0.03, 0.9409), (None, 0.0), (1.0, 0.0)]
)
def test_constants_leave_a_power_of_the_momentum(momentum, left):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum))
    for _ in range(2):
        model(torch.zeros(4, 4))
    (finding,) = found("SL207", model)
    assert finding.severity == "warning"
    assert finding.evidence["running_var"] == pytest.approx(left)
    assert torch.allclose(model[1].running_var, torch.tensor(left), atol=1e-6)
    assert "2 batches" in finding.message


def test_gradients_tell_of_training():
    model = small_net()
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    assert told("SL207", model) == []


# ---- SL208, SL210
def test_a_counter_that_is_none_is_needed_by_the_mean_only():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None))
    for norm in model:
        norm.num_batches_tracked = None
    assert told("SL208", model) == [("info", "0"), ("error", "1")]
    before = model[1].running_mean.clone()
    model(torch.randn(8, 4) + 3)
    assert torch.equal(model[1].running_mean, before)  # it never moves


def test_a_counter_that_is_not_there_breaks_training():
    model = nn.Sequential(nn.BatchNorm1d(4))
    del model[0].num_batches_tracked
    assert told("SL208", model) == [("error", "0")]
    with pytest.raises(AttributeError, match="num_batches_tracked"):
        model(torch.randn(8, 4))


def test_casts_of_the_model_leave_the_counter():
    for cast in ("half", "double", "bfloat16"):
        assert told("SL210", getattr(small_net(), cast)()) == []
    cast = small_net()._apply(lambda tensor: tensor.float())
    assert told("SL210", cast) == [("warning", "1")]


def test_a_half_precision_counter_stops():
    for dtype, last in ((torch.float16, 2048), (torch.bfloat16, 256)):
        count = torch.tensor(float(last), dtype=dtype)
        assert count + 1 == count


# ---- SL211
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = trained()
        self.teacher = copy.deepcopy(self.student)


def test_the_distance_is_that_of_the_weights():
    model = Pair()
    with torch.no_grad():
        for weight in model.teacher.parameters():
            weight *= 1.1
    without_buffers(model.teacher)
    (finding,) = found("SL211", model)
    assert (finding.module, finding.evidence["twin"]) == ("teacher", "student")
    assert finding.evidence["distance"] == pytest.approx(0.1, rel=1e-4)
    assert told("SL206", model) == []  # said once


def test_networks_that_were_started_apart_are_no_twins():
    model = Pair()
    torch.manual_seed(1)
    for module in model.teacher.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    without_buffers(model.teacher)
    assert told("SL211", model) == []


def test_twins_with_a_shared_weight_are_none():
    model = Pair()
    model.teacher[0].weight = model.student[0].weight
    without_buffers(model.teacher)
    assert told("SL211", model) == []


def test_twins_that_were_not_trained_are_silent():
    model = Pair()
    without_buffers(model)
    assert told("SL211", model) == []
    model.student.train()
    for norm in (model.teacher[1], model.teacher[4]):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    model.student(blobs()[0])
    assert told("SL211", model) == []  # it does not follow yet
