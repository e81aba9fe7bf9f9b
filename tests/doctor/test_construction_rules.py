"""Where the rules on construction and order are silent, or say info, beside the book's cases."""

from __future__ import annotations

import pytest
import torch
from cases_construction import Residual, conv_net
from torch import nn

import spiritlevel as sl
from spiritlevel.doctor.check import check


def told(model, select="SL1"):
    found = check(model, select=select).findings
    return [f"{each.rule} {each.severity} {each.module}" for each in found]


class Takes:
    """A forward of its own that no graph can show."""

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return x + self.parts(x)


class Untraceable(Takes, nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts


class OwnBatchNorm(nn.Module):
    """Of another library, which may take momentum as TensorFlow does."""

    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))


def test_momentum_of_frozen_layers_is_nobodys_business():
    model = conv_net(lambda n: nn.BatchNorm2d(n, momentum=0.99))
    model[1].eval()
    assert told(model) == ["SL101 warning 4"]
    model[4].eval().requires_grad_(False)
    assert told(model) == []
    assert told(conv_net(lambda n: nn.BatchNorm2d(n, 1e-5, 0.99, True, False))) == []


def test_momentum_of_other_libraries_is_info():
    assert told(nn.Sequential(OwnBatchNorm(0.99))) == ["SL101 info 0"]
    assert told(nn.Sequential(OwnBatchNorm(0.5))) == []


def test_one_finding_for_all_layers_of_one_momentum():
    model = conv_net(lambda n: nn.BatchNorm2d(n, momentum=0.99))
    model[4].momentum = -0.1
    first, second = check(model, select="SL101").findings
    assert (first.severity, first.module) == ("error", "4")
    assert first.message == "momentum=-0.1 is no share of anything; wanted 0 to 1"
    assert second.message == (
        "momentum=0.99 is the new batch's share in torch, so the last batch makes 99 % of the "
        "running statistics; wanted 0.5 at most"
    )
    assert second.evidence["layers"] == ["1"]


@pytest.mark.parametrize(
    ("dtype", "momentum", "stops"),
    [(torch.bfloat16, 0.1, 0.078125), (torch.float16, 0.01, 0.0977)],
)
def test_where_an_average_stops_in_half_precision(dtype, momentum, stops):
    """The evidence's bound holds for a layer that is fed one mean for long."""
    norm = nn.BatchNorm1d(1, momentum=momentum).to(dtype)
    x = torch.tensor([[2.0], [4.0]], dtype=dtype)
    for _ in range(round(10 / momentum)):
        norm(x)
    (found,) = check(norm, select="SL104").findings
    reached = abs(float(norm.running_mean) - 3.0) / 3.0
    assert found.evidence["lost_step"] / momentum == pytest.approx(stops, rel=1e-3)
    assert 0 < reached <= stops


def test_ours_synchronise_on_a_cpu():
    assert told(sl.convert(conv_net(), "sync"), "SL108") == []


def test_synchronised_norms_may_be_used_on_a_cpu():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(conv_net())
    assert told(model, "SL108") == ["SL108 warning 1"]
    assert told(model.eval(), "SL108") == []


def test_bias_before_other_norms_is_used():
    assert told(conv_net(lambda n: nn.GroupNorm(4, n), bias=True)) == []
    assert told(conv_net(nn.Identity, bias=True)) == []
    assert told(conv_net(nn.InstanceNorm2d, bias=True)) == ["SL106 info 0"]
    model = conv_net(bias=True)
    model[1].eval()
    assert told(model) == ["SL106 info 3"]
    assert told(sl.fuse(conv_net(bias=True))) == ["SL106 info 0"]


def test_bias_of_a_layer_that_something_else_reads_is_used():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            y = self.linear(x)
            return self.norm(y) + y.abs()

    assert told(Tapped()) == []


def test_features_moved_to_the_second_axis_and_back():
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)

    assert told(Moved()) == ["SL106 info linear"]


def test_dropout_of_no_share_or_behind_another_norm_is_none():
    assert told(nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(4))) == []
    layers = nn.Dropout(0.3), nn.LayerNorm(4), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)
    assert told(nn.Sequential(*layers)) == []
    assert told(nn.Sequential(layers[0], *layers[2:])) == ["SL105 info 2"]


def test_zero_scales_are_info_where_the_sum_is_not_seen():
    branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    nn.init.zeros_(branch[1].weight)
    assert told(branch) == ["SL109 warning 1"]
    assert told(Untraceable(branch)) == ["SL109 info parts.1"]


def test_zero_scales_of_a_class_that_may_add_one_are_info():
    class OnePlus(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, (4,), 1 + self.weight, self.bias)

    model = nn.Sequential(OnePlus(4), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight)
    assert told(model) == ["SL109 info 0"]


def test_zero_scales_at_the_end_of_a_fused_branch_are_meant():
    model = Residual()
    nn.init.zeros_(model.branch[4].weight)
    assert told(sl.fuse(model)) == []
