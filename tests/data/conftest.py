"""A folder of real image files, and tensors as Images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import write_image
from torch import Tensor

from spiritlevel.data import Images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, not yet there; and no folder of data named."""
    folder = tmp_path_factory.mktemp("home") / "cache"
    monkeypatch.setenv("SPIRITLEVEL_CACHE", str(folder))
    monkeypatch.delenv("SPIRITLEVEL_DATA", raising=False)
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of ten grey images, each image of one value: cats 10 to 19, dogs 110 to 119."""
    root = tmp_path / "pets"
    for i in range(10):
        write_image(root / "cats" / f"{i}.png", 10 + i)
        write_image(root / "dogs" / f"{i}.png", 110 + i)
    return root


@pytest.fixture
def as_images() -> Callable[..., Images]:
    """Images of two classes from uint8 tensors (N, C, S, S)."""

    def build(train_x: Tensor, test_x: Tensor | None = None) -> Images:
        test_x = train_x[:1] if test_x is None else test_x
        return Images(
            name="made",
            train_x=train_x,
            train_y=torch.arange(len(train_x)) % 2,
            test_x=test_x,
            test_y=torch.arange(len(test_x)) % 2,
            classes=("even", "odd"),
            origin="made by a test",
            licence="none",
            notes=(),
        )

    return build
