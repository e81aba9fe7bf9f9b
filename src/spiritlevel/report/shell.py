"""What every page has around its own: its files, its scripts, and the policy that guards it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from spiritlevel.catalogue import keys, sentence, spoken
from spiritlevel.errors import require
from spiritlevel.report.words import plain, say

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "deflated",
    "environment",
    "file",
    "hash_of",
    "plotly",
    "policy",
    "script",
    "styles",
    "texts",
]


def environment(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Templates of web/, which escape whatever is filled in and fail on what is not there."""
    jinja2 = require("jinja2", extra="study")
    found: Environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    found.filters |= {"say": say, "plain": plain, **filters}
    return found


@cache
def file(name: str) -> str:
    """A file of web/."""
    return resources.files("spiritlevel.report").joinpath("web", name).read_text(encoding="utf-8")


def styles(*names: str) -> list[str]:
    """These style sheets of web/, and what the language spoken adds to them, if anything."""
    own = f"{spoken()}.css"
    there = resources.files("spiritlevel.report").joinpath("web", own).is_file()
    return [file(f"{name}.css") for name in names] + ([file(own)] if there else [])


@cache
def script(names: tuple[str, ...]) -> str:
    """These scripts of web/ as one, in this order; the last one starts it all."""
    parts = "\n".join(file(f"{name}.js") for name in names)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


@cache
def plotly() -> dict[str, str]:
    """Plotly's script, deflated and in base64, and the hash of it whole."""
    whole = require("plotly.offline", extra="study").get_plotlyjs()
    return {"deflated": deflated(whole), "hash": hash_of(whole)}


def deflated(text: str) -> str:
    """In base64; web/ has the way back."""
    return base64.b64encode(zlib.compress(text.encode(), level=9)).decode()


def hash_of(script: str) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def policy(hashes: Sequence[str]) -> str:
    """A content security policy: these scripts run, no other does, and nothing is fetched."""
    allowed = " ".join(f"'sha256-{one}'" for one in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def texts(table: str) -> dict[str, str]:
    """A table's sentences with their placeholders unfilled: the scripts fill them."""
    start = f"{table}."
    return {key.removeprefix(start): sentence(key) for key in keys() if key.startswith(start)}
