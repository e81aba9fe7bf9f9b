"""The published GhostNets against timm's: from numbers it gave, and itself where it is."""

import json
from pathlib import Path

import golden
import pytest
import torch

from spiritlevel.bench.theirs import timm
from spiritlevel.models import create_model

NUMBERS = json.loads(Path(__file__).with_name("golden.json").read_text())


def ours(name):
    return create_model(name, golden.CLASSES, drop_rate=0.0, norm=torch.nn.BatchNorm2d)


@pytest.mark.parametrize("name", golden.MODELS)
def test_keys_order_and_shapes_are_timms(name):
    assert golden.keys(ours(name)) == NUMBERS[name]["keys"]
    assert [NUMBERS[name]["keys"]["count"] for name in golden.MODELS] == [512, 764, 1956]


@pytest.mark.parametrize("name", golden.MODELS)
def test_numbers_that_timm_gave(name):
    """In float64, so that what is left is the ten digits that were written down."""
    for what, values in golden.numbers(ours(name)).items():
        expected = torch.tensor(NUMBERS[name][what], dtype=torch.float64)
        got = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda m, w=what: w + m)
        assert expected.abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ghostnet_100", "ghostnetv2_100", "ghostnetv3_100"])
def test_the_same_as_timm_itself(name):
    if timm() is None:
        pytest.skip("timm does not import here")
    torch.manual_seed(0)
    theirs = timm().create_model(name, num_classes=golden.CLASSES, drop_rate=0.0)
    model = create_model(name, golden.CLASSES, drop_rate=0.0)
    model.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64)
    for mode in (True, False):
        found = []
        for each in (theirs.train(mode), model.train(mode)):
            each.zero_grad()
            y = each(x)
            y.square().sum().backward()
            gradients = torch.cat([p.grad.flatten() for p in each.parameters()])
            found.append((y.detach(), gradients / gradients.norm()))
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    # Variances of a deep layer's 16 values: sums of squares in another order.
    torch.testing.assert_close(model.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-4)
