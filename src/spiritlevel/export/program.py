"""The graph of a model by torch.export, and the .pt2 file that holds it.

torch.export.load of torch 2.13 reads some weights and constants of a .pt2 by unrestricted pickles,
so a file of unknown origin may run code; `open_program` is for files of our own. `read_metadata`
reads any: it takes the file for the zip archive that it is.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from spiritlevel.export.example import Example, name_of
from spiritlevel.export.metadata import Metadata
from spiritlevel.export.quiet import quiet
from spiritlevel.export.runtimes import Runtime, open_program
from spiritlevel.kernels import backend

__all__ = ["output_names", "traced", "write"]


def traced(folded: nn.Module, given: Example) -> Any:
    """The model as torch.export's program, for any batch. Raises ExportError."""
    with quiet(folded, "a graph"), backend.use("aten"), torch.no_grad():
        return torch.export.export(
            folded,
            given.args,
            given.kwargs,
            dynamic_shapes=given.dynamic_shapes(folded),
            strict=False,
        )


def output_names(program: Any) -> list[str]:
    """Of each tensor: `output`, or by place or key: output_0, output_logits."""
    outputs = [each.arg for each in program.graph_signature.output_specs]
    kinds = [type(each).__name__ for each in outputs]
    tree = tree_unflatten(kinds, program.call_spec.out_spec)
    leaves, _ = tree_flatten_with_path(tree)
    paths = [path for path, kind in leaves if kind == "TensorArgument"]
    return [name_of(f"output{keystr(path)}") for path in paths]


def write(folded: nn.Module, path: Path, given: Example, meta: Metadata) -> Runtime:
    """A .pt2 file, with `meta` as its extra files. Raises ExportError."""
    program = traced(folded, given)
    with quiet(folded, path.name):
        made = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.export.save(program, made, extra_files=meta.to_strings())
        path.write_bytes(made.getbuffer())
        return open_program(path)
