"""Files that are opened and run, as whoever gets them will run them.

A `Runtime` is a file that was opened. `run` takes CPU tensors by position, in the order of the
parameters of the model's forward (that of `Example.tensors`), and gives the outputs that are
tensors as CPU tensors, in the order of the model's. `name` says what runs it, with its version.
`precision` says how its numbers are judged: "float32" within rounding of the model's, others
("bfloat16", "int8") by the accuracy that is left.

What writes a format is a file of this room with one function,

    write(folded, path, given, meta, ...) -> Runtime

`folded` being the model in eval without its batch norms, on the CPU; `path` the name that the file
will have, in a temporary folder beside its place; `given` the example, of batch 2 or more; `meta`
what the file is to tell of itself, to which it adds its own versions. `openvino` is called with
`precision=`, too, and `int8` with `calibration=`, inputs as `run` takes them, batch after batch.

It raises ExportError where it cannot write. All files in that folder are the result: they are
verified, then moved, the one of `path` last; so what is needed on the way, such as an ONNX file,
goes elsewhere or is removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from spiritlevel.errors import ExportError, require

__all__ = ["Runtime", "as_arrays", "open_onnx", "open_program"]


class Runtime(Protocol):
    """As this file's head has it."""

    name: str
    precision: str

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for the inputs, each by its position."""
        ...


def as_arrays(inputs: Sequence[Tensor]) -> list[Any]:
    """As runtimes beside torch take them: NumPy arrays."""
    return [each.detach().cpu().contiguous().numpy() for each in inputs]


class _Onnx:
    def __init__(self, path: Path, threads: int | None, precision: str) -> None:
        ort = require("onnxruntime", extra="onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it warns of constants it has folded
        if threads is not None:
            options.intra_op_num_threads = threads
        self.name = f"ONNX Runtime {ort.__version__}"
        self.precision = precision
        self._session: Any = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._declared = [(each.name, each.shape) for each in self._session.get_outputs()]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        fed = dict(zip(self._inputs, as_arrays(inputs), strict=True))
        outputs = self._session.run(None, fed)
        for (name, declared), found in zip(self._declared, outputs, strict=True):
            # ONNX Runtime itself only warns.
            if len(declared) != found.ndim or any(
                isinstance(told, int) and told != length
                for told, length in zip(declared, found.shape, strict=True)
            ):
                raise ExportError(
                    f"got {name} of shape {found.shape} from a file that declares {declared}; "
                    "wanted what it declares, which others rely on. Where an input of forward is "
                    "called as a weight of the model is, rename it: the exporter takes the one's "
                    "shape for the other's"
                )
        return [torch.from_numpy(each) for each in outputs]


def open_onnx(path: Path, *, threads: int | None = None, precision: str = "float32") -> Runtime:
    """An .onnx file in ONNX Runtime, on the CPU. Raises MissingExtra."""
    return _Onnx(path, threads, precision)


class _Program:
    precision = "float32"

    def __init__(self, path: Path) -> None:
        self.name = f"torch.export {torch.__version__}"
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.load(path)
        self._module = program.module()
        self._spec = program.call_spec.in_spec

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = tree_unflatten(list(inputs), self._spec)
        with torch.no_grad():
            outputs = self._module(*args, **kwargs)
        return [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]


def open_program(path: Path) -> Runtime:
    """A .pt2 file, loaded by torch. Only for files of our own: see `program`."""
    return _Program(path)
