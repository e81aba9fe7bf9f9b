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
    for file in _FILES:
        try:
            return Path(hub.hf_hub_download(match["repository"], file, revision=match["revision"]))
        except errors.LocalEntryNotFoundError as error:  # also an EntryNotFoundError
            raise _refusal(name, error) from error
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # of the hub's, of its HTTP client's, by version
            raise _refusal(name, error) from error
    raise UsageError(
        f"got weights {name}, where there is none of {', '.join(_FILES)}; wanted the weights of a "
        "model. Fetch its file yourself and give its path"
    )


def _refusal(name: str, error: Exception) -> UsageError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UsageError(
        f"got weights {name}, which the Hugging Face hub did not hand out ({first[:200]}); check "
        "the name and the connection"
    )
