"""Tables of images, parquet files in a folder or on the Hugging Face hub, through `datasets`.

Only parquet is read, so no code of the data set's ever runs. The image files in the table are
decoded as any others; a row that holds a path in place of bytes is refused.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from spiritlevel.data.cache import kept, stamp
from spiritlevel.data.decode import Files, Member
from spiritlevel.data.images import Images
from spiritlevel.data.raw import Raw
from spiritlevel.errors import DataError, require

__all__ = ["read_hub"]

_MAX_BYTES = 4 * 1024**3
"""Of the table in memory: the image files as they are, and what else stands there."""
_IMAGES, _LABELS = ("img", "image"), ("label", "labels")
_SPLITS = {"train": "train", "test": "test", "validation": "test", "valid": "test", "val": "test"}
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")

_Paths = dict[str, list[str]]
"""Split (train, test) -> its parquet files, or the one split `train`."""


def read_hub(name: str, *, seed: int, image_size: int | None) -> Images:
    """From the folder `name` of parquet files, else from the hub's `name`, or `name@revision`.

    Files called test, else those called validation, are for testing; where there are none, `seed`
    draws a fifth of each class. Raises DataError and MissingExtra.
    """
    require("datasets", extra="hub")
    folder = Path(os.path.expanduser(name))
    if name and os.path.isdir(folder):
        key, paths, short = _local(folder)
    elif os.path.exists(folder) or name.startswith(("/", ".", "~")) or not _NAME.fullmatch(name):
        got = "which is a file" if os.path.isfile(folder) else "which does not exist"
        raise DataError(
            f"got {name!r} for hf, {got}; wanted a folder of parquet files or the name of "
            "a data set on the Hugging Face hub; check the path"
        )
    else:
        key, paths, short = _remote(name)
    return kept(
        ["hf", key],
        lambda: _raw(name, short, paths, image_size),
        seed=seed,
        image_size=image_size,
    )


def _local(folder: Path) -> tuple[Any, _Paths, str]:
    files = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    shown = [file for file in files if not _hidden(file.relative_to(folder).parts)]
    if not shown:
        raise DataError(
            f"got {str(folder)!r} without a parquet file; wanted train.parquet and test.parquet, "
            "or any names with train and test in front; check the path"
        )
    by_split = _by_split([file.relative_to(folder).as_posix() for file in shown])
    paths = {split: [str(folder / name) for name in names] for split, names in by_split.items()}
    key = [[os.path.realpath(file), *stamp(file)] for file in shown]
    return key, paths, Path(os.path.realpath(folder)).name


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _remote(name: str) -> tuple[Any, _Paths, str]:
    """By the commit that the name stands for now."""
    hub = require("huggingface_hub", extra="hub")
    repository, _, revision = name.partition("@")
    try:
        info = hub.HfApi().dataset_info(repository, revision=revision or None, timeout=30)
    except Exception as error:  # of the hub's, of its HTTP client's, by version
        raise DataError(
            f"got {name!r} for hf, which is no folder here, and the Hugging Face hub did not hand "
            f"it out ({_first_line(error)}); check the name and the connection"
        ) from error
    names = sorted(file.rfilename for file in info.siblings or ())
    shown = [file for file in names if file.endswith(".parquet") and not _hidden(file.split("/"))]
    if not shown:
        raise DataError(
            f"got data set {name!r} of the Hugging Face hub without a parquet file; "
            f"wanted parquet; try hf:{repository}@refs/convert/parquet"
        )
    place = f"hf://datasets/{repository}@{info.sha}"
    paths = {split: [f"{place}/{f}" for f in files] for split, files in _by_split(shown).items()}
    return [repository, info.sha], paths, repository


def _by_split(files: Sequence[str]) -> dict[str, list[str]]:
    """The files to train on and to test on; all are `train` where the names tell no split."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        parts = PurePosixPath(file).with_suffix("").parts
        words = [re.split(r"[^a-z]", part.lower())[0] for part in reversed(parts)]
        found[next((word for word in words if word in _SPLITS), "")].append(file)
    if "train" not in found:
        return {"train": list(files)}
    held_out = next((name for name in ("test", "validation", "valid", "val") if name in found), "")
    return {"train": found["train"]} | ({"test": found[held_out]} if held_out else {})


def _raw(name: str, short: str, paths: _Paths, image_size: int | None) -> Raw:
    tables = {split: _Table(name, split, files) for split, files in paths.items()}
    train = tables["train"]
    labels = [label for table in tables.values() for label in table.labels]
    classes, y = _classes(name, train.names, labels)
    members = [member for table in tables.values() for member in table.members]
    return Raw(
        name=f"hf:{short}",
        pixels=Files(members, image_size),
        y=y,
        n_train=len(train.members) if "test" in tables else None,
        classes=classes,
        origin=f"the parquet files of {short}, column {train.image!r}, labels in {train.label!r}",
        licence="terms not known to spiritlevel; see where the files come from",
    )


class _Table:
    """The two columns of a split, in memory."""

    def __init__(self, name: str, split: str, files: Sequence[str]) -> None:
        datasets = require("datasets", extra="hub")
        # It logs what it then raises, which is told once, below.
        logging.getLogger("datasets").setLevel(logging.CRITICAL)
        try:
            # Streamed: nothing is written to the disk.
            rows = datasets.load_dataset(
                "parquet", data_files={split: list(files)}, split=split, streaming=True
            )
            features = dict(rows.features or {})
            self.image = _column(features, _IMAGES, datasets.Image, f"{name!r}", "images")
            self.label = _column(features, _LABELS, datasets.ClassLabel, f"{name!r}", "labels")
            self.names = getattr(features[self.label], "names", None)
            batches = rows.select_columns([self.image, self.label]).with_format("arrow")
            tables, size = [], 0
            for table in batches.iter(batch_size=1000):
                size += table.nbytes
                if size > _MAX_BYTES:
                    raise DataError(
                        f"got {name!r} with more than {_MAX_BYTES:,} bytes in its {split} images; "
                        "wanted fewer; take a part of them"
                    )
                tables.append(table)
        except DataError:
            raise
        except Exception as error:  # of arrow's, of datasets', of the connection's
            raise DataError(
                f"got {name!r}, whose {split} files cannot be read ({_first_line(error)}); "
                "wanted whole parquet files; fetch them again"
            ) from error
        self.labels: list[Any] = [v for t in tables for v in t.column(self.label).to_pylist()]
        cells = [cell for table in tables for cell in table.column(self.image)]
        self.members = [
            Member(f"{name}: {split} row {row}", partial(_bytes, name, split, row, cell))
            for row, cell in enumerate(cells)
        ]


def _column(
    features: dict[str, Any], usual: Sequence[str], kind: type, name: str, what: str
) -> str:
    """The usual name, if it is there, else the first column of this kind."""
    found = [column for column in usual if column in features]
    found += [column for column, feature in features.items() if isinstance(feature, kind)]
    if not found:
        raise DataError(
            f"got {name} with the columns {', '.join(map(repr, features))}, none with {what}; "
            f"wanted {' or '.join(map(repr, usual))}; rename the column"
        )
    return found[0]


def _bytes(name: str, split: str, row: int, cell: Any) -> bytes:
    value = cell.as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DataError(
            f"got row {row} of the {split} images of {name!r} without the bytes of an image file; "
            "wanted them in the table; a path is not followed"
        )
    return content


def _classes(
    name: str, names: Sequence[str] | None, labels: Sequence[Any]
) -> tuple[tuple[str, ...], Tensor]:
    """The names of the classes, and each label's place among them."""
    if names is not None:
        places = {place: place for place in range(len(names))}
    else:
        with suppress(TypeError):  # mixed types have no order; they are refused below
            places = {value: place for place, value in enumerate(sorted(set(labels)))}
            names = [str(value) for value in places]
    if names is None or not all(type(label) in (int, str) for label in labels):
        raise DataError(
            f"got labels in {name!r} that are not all whole numbers or all text; "
            "wanted one label a row; repair the table"
        )
    if stray := [label for label in labels if label not in places]:
        raise DataError(
            f"got label {stray[0]!r} in {name!r}, wanted 0 to {len(names) - 1}; repair the table"
        )
    return tuple(names), torch.tensor([places[label] for label in labels], dtype=torch.int64)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
