"""The weights that a command is given, the model they are of, and how it was fed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritlevel.cli.lines import tell
from spiritlevel.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from spiritlevel.cli.subject import Fed, Subject
    from spiritlevel.data import Preprocessing

__all__ = ["IN_A_RUN", "Weights", "moved"]

IN_A_RUN = ("best.safetensors", "last.safetensors")


@dataclass(frozen=True)
class Weights:
    """A file of weights, and what it tells beside its numbers."""

    given: str
    """As the user has it."""
    file: Path | None
    """None: they are on the hub."""
    told: dict[str, Any]
    """What `read_metadata` gave."""

    @classmethod
    def of(cls, given: str, names: Sequence[str] = IN_A_RUN) -> Weights:
        """A file, or the first of `names` that is in the folder of a run. Raises UsageError."""
        from spiritlevel.models import read_metadata

        file = _file(given, names)
        return cls(given, file, {} if file is None else read_metadata(file))

    @property
    def recipe(self) -> Any:
        """None where it tells none. A run that diverged tells of NaN, which JSON has not."""
        from spiritlevel.study.records import finite

        return finite(self.told.get("recipe"))

    @property
    def preprocessing(self) -> Preprocessing | None:
        """None where it tells none."""
        from spiritlevel.data import Preprocessing

        told = self.told.get("preprocessing")
        return None if told is None else Preprocessing.from_dict(told)

    @property
    def told_by(self) -> str:
        """What tells how the model is fed, for an error."""
        return "images" if self.preprocessing is None else "preprocessing beside them"

    def model(self, spec: str | None, fed: Fed, told_by: str) -> Subject:
        """With these weights: `spec`, else what they tell, for what it is `fed`, as `told_by`.

        Raises UsageError.
        """
        from spiritlevel.cli import subject
        from spiritlevel.models import load_weights

        if spec is not None:
            builder = subject.builder(spec)
            if (code := builder.told()) is not None:
                tell(code)
            built = builder.build(fed)
        elif "model" in self.told:
            built = _told_by_weights(self.told["model"], self.given, fed, told_by)
        else:
            raise UsageError(
                f"got weights {self.file or self.given} that do not tell their model; wanted "
                "--model, its name or pkg.module:factory, or weights that spiritlevel saved as "
                ".safetensors"
            )
        load_weights(built.model, self.file or self.given)
        return built


def _file(given: str, names: Sequence[str]) -> Path | None:
    from spiritlevel.models.weights import refuse_suffix

    if given.startswith("hf:"):
        return None
    path = Path(given)
    if os.path.isdir(path):  # False for names beyond a file system
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            lacks = f"neither {' nor '.join(names)}" if len(names) > 1 else f"no {names[0]}"
            raise UsageError(
                f"got the folder {path}, which holds {lacks}; wanted "
                "that of a run, or a file of weights"
            )
        return found
    if not os.path.exists(path):
        raise UsageError(f"got {path}, which is not there; wanted a run or a file of weights")
    refuse_suffix(path)
    if not path.is_file():
        raise UsageError(f"got {path}, which is no file; wanted a run or a file of weights")
    return path


def _told_by_weights(options: dict[str, Any], given: str, fed: Fed, told_by: str) -> Subject:
    from spiritlevel.cli.subject import Subject
    from spiritlevel.models import create_model

    options = {name: each for name, each in options.items() if name not in ("weights", "new_head")}
    try:
        model = create_model(**options)
    except (UsageError, TypeError) as error:
        raise UsageError(
            f"got weights {given} of a model that cannot be made ({error}); wanted one of ours. "
            "Name it by --model"
        ) from error
    for name, value in {"num_classes": fed.num_classes, "in_chans": fed.channels}.items():
        own = options.get(name, value)
        if own != value:
            raise UsageError(
                f"got weights {given} of a model with {name}={own}, and {told_by} with "
                f"{value}; wanted the same. Give the data that it was trained on"
            )
    return Subject(model, options["name"])


def moved(model: nn.Module, device: str | None) -> torch.device:
    """To `--device`, by default an accelerator that torch finds. Raises UsageError."""
    import torch

    from spiritlevel.cli.subject import moved

    if device in (None, "auto"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return moved(model, device, "--device")
