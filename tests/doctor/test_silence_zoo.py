"""No error and no warning on other people's architectures as they are built."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from quiet import aloud, changed, snapshot

sys.path.insert(0, str(Path(__file__).parents[1] / "surgery"))  # before tools/zoo.py
from zoo import PACKAGES, architectures

pytestmark = pytest.mark.slow

SWAPPED = {"SL101"}  # momentum=0.997, 0.999 and 0.99, taken over from TensorFlow: they are wrong
KNOWN = {
    ("transformers", name): SWAPPED
    for name in ("MobileNetV1", "MobileNetV2", "MobileNetV2 DeepLabV3+", "EfficientNet")
}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in PACKAGES.items() for name in names]
)
def test_an_architecture_as_built(package, name):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'spiritlevel[zoo]'")
    (architecture,) = (each for each in architectures(package) if each.name == name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own code
        model, example = architecture.build()
        before = snapshot(model)
        found = [*aloud(model), *aloud(model, example=example)]
        assert changed(before, snapshot(model)) == []
        found += aloud(model.eval())
    known = KNOWN.get((package, name), set())
    assert [each for each in found if each.split()[0] not in known] == []
    assert {each.split()[0] for each in found} == known
