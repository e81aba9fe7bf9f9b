"""What a file that was exported says of itself."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

from spiritlevel.errors import UsageError, require
from spiritlevel.export.metadata import PREFIX, Metadata

__all__ = ["read_metadata"]

_MOST = 16 * 1024**2
"""Bytes of one text beside a program: the names of a million classes."""


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Class names, normalization, recipe and versions of an .onnx, .pt2 or .xml file.

    What the file does not tell is left empty. Nothing in it is run. Raises UsageError for what is
    no such file, and MissingExtra for .onnx without its package.
    """
    path = Path(path)
    readers = {".onnx": _of_onnx, ".pt2": _of_program, ".xml": _of_openvino}
    if path.suffix not in readers:
        raise UsageError(f"got {path}; wanted a name that ends in .onnx, .pt2 or .xml")
    if path.suffix == ".onnx":
        require("onnx", extra="onnx")
    try:
        found = readers[path.suffix](path)
    except Exception as error:  # files of others break readers in many ways
        raise UsageError(
            f"got {path}, which cannot be read ({type(error).__name__}: {error}); wanted a whole "
            f"{path.suffix} file"
        ) from error
    return Metadata.from_strings(found)


def _of_onnx(path: Path) -> dict[str, str]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {each.key: each.value for each in model.metadata_props}


def _of_program(path: Path) -> dict[str, str]:
    """A .pt2 is a zip archive, with the extra files in `extra`."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if f"/extra/{PREFIX}" in name]
        return {
            name.rpartition("/")[2].removesuffix(".txt"): _unpacked(archive, name).decode("utf-8")
            for name in names
        }


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """No more than the bound is unpacked, however little it is packed into."""
    with archive.open(name) as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError(f"{name} unpacks to more than {_MOST:,} bytes")
    return content


def _of_openvino(path: Path) -> dict[str, str]:
    """OpenVINO keeps `rt_info` of a model as elements with a `value`."""
    found: dict[str, str] = {}
    for element in ET.parse(path).iterfind("./rt_info//*[@value]"):
        key = element.get("name", element.tag)
        found[key if key.startswith(PREFIX) else PREFIX + key] = element.get("value", "")
    return found
