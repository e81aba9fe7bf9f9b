"""Architectures of other packages, where they are installed; all of them: `tools/zoo.py`."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from zoo import PACKAGES, architectures
from zoo_check import check

pytestmark = pytest.mark.slow

ACT, SUM, ADD, ALONE = "activation", "add, activation", "add", "alone"
PICKED = {
    "monai": {
        "UNet 3D": {ALONE: 9},
        "AttentionUnet": {SUM: 2, ALONE: 12},
        "DynUNet": {},
        "SegResNetDS": {ACT: 24},
        "HighResNet": {ACT: 21},
        "ResNet bottleneck 1D": {ACT: 9, SUM: 4, ALONE: 4},
        "FlexibleUNet": {ACT: 5, SUM: 4, ALONE: 13},
    },
    "transformers": {
        "RegNet": {ACT: 11, SUM: 1, ALONE: 8},
        "MobileViTV2": {ACT: 16, ADD: 1, ALONE: 8},
        "SwiftFormer": {ACT: 2, ALONE: 12},
        "SegFormer": {ACT: 1},
    },
    "pytorchcv": {
        "resnet_cifar.resnet20_cifar10": {ACT: 10, SUM: 9, ALONE: 2},
        "sepreresnet_cifar.sepreresnet20_cifar10": {ACT: 19},
        "shakedropresnet_cifar.shakedropresnet20_cifar10": {ACT: 10, ALONE: 11},
    },
}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in PICKED.items() for name in names]
)
def test_it_is_right(package, name):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'spiritlevel[zoo]'")
    (architecture,) = (each for each in architectures(package) if each.name == name)
    row = check(architecture)
    assert (row.wrong, row.refused) == ([], [])
    assert row.with_example == PICKED[package][name]


def test_those_picked_are_there():
    for package, names in PICKED.items():
        assert names.keys() <= PACKAGES[package].keys()
