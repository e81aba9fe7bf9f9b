"""An ONNX file by torch's dynamo exporter, with a dynamic batch, in one file."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spiritlevel.errors import ExportError, require
from spiritlevel.export.example import Example
from spiritlevel.export.metadata import Metadata
from spiritlevel.export.program import output_names, traced
from spiritlevel.export.quiet import quiet
from spiritlevel.export.runtimes import Runtime, open_onnx

__all__ = ["OPSET", "write"]

OPSET = 20
"""What torch 2.13 writes by itself; ONNX Runtime from 1.17 and OpenVINO from 2024 read it."""
_MOST_BYTES = 2_000_000_000
"""Of an ONNX file, which is a protobuf message: 2 GiB, and some room for the graph."""


def write(folded: nn.Module, path: Path, given: Example, meta: Metadata) -> Runtime:
    """An .onnx file, with `meta` as its metadata. Raises ExportError and MissingExtra."""
    runtime, *_ = (require(name, extra="onnx") for name in ("onnxruntime", "onnx", "onnxscript"))
    size = sum(t.nbytes for t in (*folded.parameters(), *folded.buffers()))
    if size > _MOST_BYTES:
        raise ExportError(
            f"got a model of {size / 1e9:.1f} GB; wanted at most {_MOST_BYTES / 1e9:.0f} GB, which "
            "is what one ONNX file holds. Export it as .pt2"
        )
    program = traced(folded, given)
    outputs = _distinct(output_names(program), ())
    inputs = _distinct(given.names, outputs)
    with quiet(folded, path.name):
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
        )
        assert made is not None
        proto = made.model_proto
        _name_the_batch(proto.graph, given)
        told = meta.with_versions(opset=OPSET, onnxruntime=runtime.__version__).to_strings()
        for key, value in told.items():
            proto.metadata_props.add(key=key, value=value)
        path.write_bytes(proto.SerializeToString())
        return open_onnx(path)


def _distinct(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """The same, but for a number behind what is taken: x, x_1."""
    found: list[str] = []
    for name in names:
        held = {*names, *taken, *found} if name in found or name in taken else ()
        numbered = (f"{name}_{i}" for i in count(1))
        found.append(next(each for each in chain([name], numbered) if each not in held))
    return found


def _name_the_batch(graph: Any, given: Example) -> None:
    """Axes of the batch are called so, not s77; and 2*batch, not 2*s77."""
    place = given.batched.index(True)
    symbol = re.escape(graph.input[place].type.tensor_type.shape.dim[0].dim_param)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param and symbol:
                axis.dim_param = re.sub(rf"\b{symbol}\b", "batch", axis.dim_param)
