"""OpenVINO IR, an .xml and a .bin, by way of ONNX: float32 on disk, run in that or bfloat16.

OpenVINO takes bfloat16 or float16 by itself where the processor has it, so the precision is always
told. Where the processor has no bfloat16, OpenVINO computes in float32 and says nothing; here a
warning does, and the runtime's `precision` is what was truly used.

`import openvino` sends a report of itself to its makers; `library` keeps it from that.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.errors import ExportError, UsageError, require
from spiritlevel.export import onnx
from spiritlevel.export.example import Example
from spiritlevel.export.metadata import PREFIX, Metadata
from spiritlevel.export.runtimes import Runtime, as_arrays
from spiritlevel.export.signals import same_signal_stack

__all__ = ["library", "open_openvino", "write"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_REPORTER = "openvino_telemetry"
_KEY = PREFIX.rstrip(".")


def library() -> ModuleType:
    """The package openvino, which sends nothing. Raises MissingExtra.

    Its import and its converter report to Google Analytics through the package
    openvino_telemetry, and do without where it is not installed.
    """
    if "openvino" in sys.modules or _REPORTER in sys.modules:
        return require("openvino", extra="openvino")
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return require("openvino", extra="openvino")
    finally:
        del sys.modules[_REPORTER]


def write(
    folded: nn.Module, path: Path, given: Example, meta: Metadata, *, precision: str = "float32"
) -> Runtime:
    """An .xml and, beside it, its .bin, by way of ONNX; `meta` is in the IR's rt_info.

    Numbers are float32 on disk; `precision` is that of the runtime. Raises UsageError, ExportError,
    MissingExtra.
    """
    _check(precision)
    ov = library()
    told = meta.with_versions(openvino=_version(ov)).to_strings()
    with tempfile.TemporaryDirectory(prefix="onnx-", dir=path.parent) as folder:
        source = Path(folder) / f"{path.stem}.onnx"
        onnx.write(folded, source, given, meta)
        try:
            model = ov.Core().read_model(source)
            for key, value in told.items():
                model.set_rt_info(value, [_KEY, key.removeprefix(PREFIX)])
            ov.save_model(model, path, compress_to_fp16=False)
            del model  # it holds the file that it was read from
        except RuntimeError as error:
            raise ExportError(
                f"got {_telling(error)} from OpenVINO on the way to {path.name}; wanted a model of "
                "operations that it has. Export it as .onnx"
            ) from error
    return open_openvino(path, precision=precision)


class _OpenVino:
    def __init__(self, path: Path, precision: str, threads: int | None) -> None:
        ov = library()
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _PRECISIONS[precision]}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            with same_signal_stack():
                self._model: Any = ov.Core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            raise UsageError(
                f"got {path}, which OpenVINO cannot open ({_telling(error)}); wanted a whole .xml "
                "with its .bin beside it. Export it anew"
            ) from error
        used = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.name = f"OpenVINO {_version(ov)}"
        self.precision = {short: name for name, short in _PRECISIONS.items()}.get(used, used)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        found = self._model(dict(enumerate(as_arrays(inputs))))
        return [torch.from_numpy(found[output].copy()) for output in self._model.outputs]


def open_openvino(path: Path, *, precision: str = "float32", threads: int | None = None) -> Runtime:
    """An IR or .onnx file in OpenVINO, on the CPU, computing in "float32" or "bfloat16".

    Where the processor has no bfloat16 it computes in float32, with a warning, and the runtime's
    `precision` is "float32". Raises UsageError, MissingExtra.
    """
    _check(precision)
    opened = _OpenVino(path, precision, threads)
    if opened.precision != precision:
        warnings.warn(
            f"got precision {precision!r} on a processor that has no bfloat16: OpenVINO computes "
            f"in {opened.precision}",
            stacklevel=2,
        )
    return opened


def _check(precision: str) -> None:
    if precision not in _PRECISIONS:
        raise UsageError(f"got precision {precision!r}; wanted one of: {', '.join(_PRECISIONS)}")


def _version(ov: ModuleType) -> str:
    """2026.4.1, of 2026.4.1-22982-e213a147257-releases/2026/4."""
    return str(ov.__version__.partition("-")[0])


def _telling(error: Exception) -> str:
    """OpenVINO's text begins with the place in its own code, and says what it was further down."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return (telling or lines or ["no text"])[-1][:200].rstrip(".")
