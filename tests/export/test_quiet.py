"""Exporters are not heard, and what they raise is one line."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
from torch import nn

from spiritlevel.errors import ExportError, UsageError
from spiritlevel.export.quiet import quiet


def test_nothing_within_is_heard_and_all_is_put_back(capfd, caplog):
    with quiet(nn.Identity(), "m.onnx"):
        print("printed")
        print("printed", file=sys.stderr)
        warnings.warn("warned", stacklevel=1)
        logging.getLogger("torch").error("logged")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    print("after")
    logging.getLogger("torch").error("after")
    assert capfd.readouterr().out == "after\n"
    assert len(caplog.records) == 1


def test_what_is_raised_is_one_line_that_says_where_to():
    long = "first line\n\n  second line" + " and more" * 200
    with pytest.raises(ExportError) as caught, quiet(nn.Identity(), "m.onnx"):
        raise RuntimeError(long)
    told = str(caught.value)
    assert told.startswith("got RuntimeError from Identity on the way to m.onnx: first line second")
    assert "\n" not in told
    assert len(told) < 700
    assert caught.value.report is None


@pytest.mark.parametrize("kind", [UsageError, KeyboardInterrupt])
def test_our_own_errors_and_an_end_go_through(kind):
    with pytest.raises(kind, match="as it is"), quiet(nn.Identity(), "m.onnx"):
        raise kind("as it is")
    assert logging.root.manager.disable == logging.NOTSET
