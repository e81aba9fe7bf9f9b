"""A whole step of a known network, timed for three subjects that agree."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spiritlevel.bench import Mismatch, fuse
from spiritlevel.bench.nets import NETS
from spiritlevel.errors import UsageError

SMALL = {"models": ["mobilenet_v2"], "batch": 16, "size": 32, "rounds": 3, "threads": 1}


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("mobilenet_v2", 3_504_872)]
)
def test_networks_have_the_published_counts(name, parameters):
    net = NETS[name]()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.zeros(1, 3, 32, 32).expand(2, -1, -1, -1)).shape == (2, 1000)


@pytest.mark.slow
def test_a_step_of_three_subjects():
    result = json.loads(json.dumps(fuse(**SMALL, by=lambda net, example: net)))
    (row,) = result["cases"]
    assert list(row["seconds"]) == ["eager", "eager channels-last", "fused channels-last"]
    assert row["passes_of_our_kernels"] == 0, "the stand-in fuses nothing, and it shows"
    seconds = {name: one["median"] for name, one in row["seconds"].items()}
    fused = seconds["fused channels-last"]
    for name, one in row["ratios"].items():
        assert one["value"] == pytest.approx(seconds[name] / fused)
        assert result["figures"][name]["value"] == pytest.approx(one["value"])
    assert row["peak_ratio"] == pytest.approx(1, rel=1e-3)
    assert min(row["peak_bytes"].values()) > 4 * 3_504_872, "with the gradients"


def test_a_fusion_that_changes_the_numbers_is_never_timed():
    def wrong(net, _example):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.1
        return net

    with pytest.raises(Mismatch, match="got the logits from fused channels-last at mobilenet_v2"):
        fuse(**SMALL, by=wrong)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"models": ["resnet50"]}, "got model 'resnet50'"),
        ({"models": []}, "got model none"),
        ({"batch": 2}, "got batch=2, size=32"),
        ({"size": 16}, "got batch=16, size=16"),
        ({"rounds": 0}, "got 0 rounds"),
    ],
)
def test_what_cannot_be_measured(given, told):
    with pytest.raises(UsageError, match=told):
        fuse(**{**SMALL, **given}, by=lambda net, example: net)
