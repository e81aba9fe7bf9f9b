"""Real training on real images to a stated accuracy."""

import json

import pytest

from spiritlevel.cli import main

pytestmark = pytest.mark.slow


def test_mnist5k_above_97_percent(tmp_path):
    words = ["small_vgg", "--data", "mnist5k", "--epochs", "6", "--batch-size", "64", "--no-check"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["best"]["accuracy"] > 0.97
    assert result["test"]["last"]["accuracy"] > 0.97
