"""Weights that the Hugging Face hub has, by name."""

from __future__ import annotations

import re
from pathlib import Path

from spiritlevel.errors import UsageError, require

__all__ = ["fetched"]

_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ("model.safetensors", "pytorch_model.bin")


def fetched(name: str) -> Path:
    """The file of `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, from the hub or from its cache here.

    Raises UsageError and MissingExtra.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"got weights {name!r}; wanted hf:OWNER/NAME or hf:OWNER/NAME@REVISION, as "
            "hf:timm/ghostnet_100.in1k"
        )
    hub = require("huggingface_hub", extra="hub")
    errors = require("huggingface_hub.errors", extra="hub")
    unreached = None
    for file in _FILES:
        try:
            return Path(hub.hf_hub_download(match["repository"], file, revision=match["revision"]))
        except errors.LocalEntryNotFoundError as error:  # no connection, and not kept here
            unreached = error
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # of the hub's, of its HTTP client's, by version
            raise UsageError(
                f"got weights {name}, which the Hugging Face hub did not hand out "
                f"({_first_line(error)}); {_advice(type(error).__name__)}"
            ) from error
    if unreached is not None:
        raise UsageError(
            f"got weights {name}, which are not kept here, and the Hugging Face hub was not "
            f"reached ({_first_line(unreached)}); check the name and the connection"
        ) from unreached
    raise UsageError(
        f"got weights {name}, where there is none of {', '.join(_FILES)}; wanted the weights of a "
        "model. Fetch its file yourself and give its path"
    )


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:200]


def _advice(kind: str) -> str:
    if kind == "GatedRepoError":
        return "accept its terms on its page, and log in: hf auth login"
    if kind == "RepositoryNotFoundError":
        return "there is none of this name, or it is private: check the name, or log in"
    if kind == "RevisionNotFoundError":
        return "it has no such revision: check what stands after the @"
    return "check the name and the connection"
