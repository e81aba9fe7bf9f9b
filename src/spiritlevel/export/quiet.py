"""Exporters print, warn and log while they work; what matters of it is in what they raise."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from torch import nn

from spiritlevel.errors import ExportError, SpiritlevelError
from spiritlevel.files import is_full
from spiritlevel.lent.blame import innermost

__all__ = ["quiet"]

_LONGEST = 400
"""Characters of an exporter's text, of which a message shows the beginning."""
_OPERATION = re.compile(r"torch\.ops\.([\w.]+)|OpOverload\(op='([\w.]+)'")


@contextmanager
def quiet(model: nn.Module, what: str) -> Iterator[None]:
    """Nothing said within is heard, and what is raised becomes an ExportError in one line,
    but for a full disk.

    It names the innermost module at work, or the operation that has no form in the file.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    except SpiritlevelError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        raise ExportError(
            f"got {type(error).__name__} from {_where(model, error)} on the way to {what}: "
            f"{_text(error)}. Wanted a model that torch.export follows for any batch, of "
            "operations that such a file has; change that part of it"
        ) from error
    finally:
        logging.disable(disabled)


def _text(error: BaseException) -> str:
    """The first sentences of the innermost cause, on one line."""
    lines = [line.strip() for line in str(_cause(error)).splitlines()]
    text = " ".join(line for line in lines if line)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return text.rstrip(".") or "no text"


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _where(model: nn.Module, error: BaseException) -> str:
    each: BaseException | None = error
    while each is not None:
        if (found := innermost(each)) is not None:
            module, _ = found
            path = next((path for path, m in model.named_modules() if m is module), None)
            if path or path is None:
                return f"{path or 'a module'} ({type(module).__name__})"
        if named := _OPERATION.search(str(each)):
            return named[1] or named[2]
        each = each.__cause__
    return type(model).__name__
