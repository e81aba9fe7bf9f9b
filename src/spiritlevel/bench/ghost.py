"""Whole training steps of GhostNet: ours, torch's kernels in our model, timm's, other networks.

| name | what |
|---|---|
| plain | our model on torch's kernels, `kernels.use("aten")` |
| ours | our model as `create_model` makes it, on contiguous images |
| ours bfloat16 | the same, forward and loss under autocast |
| timm | timm's model, where timm is installed, with the same weights |
| resnet18, mobilenet_v3 | as others write them, for scale |

Plain, timm and the networks for scale also in channels-last; timm's also under torch.compile, in
channels-last. No model has dropout, so that all GhostNets compute the same: logits and loss are
compared before anything is timed, and once more after a step, where a subject may be as far from
the first as torch's own channels-last is, times 10, or within the tolerance. Under autocast the
first step alone is compared, and more loosely. The optimizer is SGD with momentum, `fused`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.bench import theirs
from spiritlevel.bench.agree import agree
from spiritlevel.bench.kinds import shares
from spiritlevel.bench.nets import MobileNetV3, ResNet18
from spiritlevel.bench.peers import CHANNELS_LAST
from spiritlevel.bench.roofline import rates, told, work
from spiritlevel.bench.setting import Progress, Setting, first_line, share_of
from spiritlevel.bench.step import Step
from spiritlevel.bench.timing import (
    Ratio,
    Samples,
    Subject,
    best,
    interleaved,
    ratio,
    summaries,
    summary,
)
from spiritlevel.errors import UsageError
from spiritlevel.kernels import backend
from spiritlevel.models import create_model
from spiritlevel.models.layers import stem_stride

__all__ = ["CASES", "HALF_TOLERANCE", "QUICK", "Case", "ghost"]

TOLERANCE = 1e-3
"""Of the largest logit: rounding grows through up to 80 layers."""
HALF_TOLERANCE = 0.2
"""The same under autocast to bfloat16, where some 0.05 is rounding."""
_SETTINGS = {"dtype": "float32", "optimizer": "SGD, momentum 0.9, fused"}
_LEAST = 16
_BUILT = 0.2
"""Of the bar, for what is made and compared before anything is timed."""
_OURS, _HALF, _PLAIN, _TIMM = "ours", "ours bfloat16", "plain", "timm"
_COMPILE = f"{_TIMM} compile"
_SCALE: dict[str, Callable[..., nn.Module]] = {"resnet18": ResNet18, "mobilenet_v3": MobileNetV3}
_OTHERS = (_TIMM, _PLAIN, *_SCALE)
_FIGURES = {
    _TIMM: "the fastest of timm's forms over ours: above 1, ours is faster",
    _PLAIN: "our model on torch's kernels, the faster layout, over ours",
    "resnet18": "ResNet-18, the faster layout, over ours",
    "mobilenet_v3": "MobileNetV3, the faster layout, over ours",
    "bfloat16": "ours in float32 over ours under autocast to bfloat16",
    "floor": "ours over the floor: 1 is as fast as its arithmetic or its bytes allow",
}
"""Name -> what it is, for the JSON and for the reader."""


@dataclass(frozen=True)
class Case:
    """A GhostNet, and the images of its step."""

    model: str
    stem: str
    size: int
    batch: int
    classes: int

    def __str__(self) -> str:
        return f"{self.model} at {self.size}x{self.size}, batch {self.batch}"

    @property
    def last_values(self) -> int:
        """A channel's, in the last norm."""
        return self.batch * (self.size // (16 * stem_stride(self.stem))) ** 2


CASES = {
    224: Case("ghostnet_100", "imagenet", 224, 32, 1000),
    32: Case("ghostnet_050", "cifar", 32, 64, 10),
}
"""Pixels a side -> what is measured there; another size is as the nearer of both."""
QUICK: Mapping[str, Any] = {
    "sizes": (32,),
    "batch": 16,
    "rounds": 3,
    "compiled": False,
    "half": False,
    "scale": False,
}
"""Options of `ghost` that take seconds, to see that it runs."""


def ghost(
    *,
    sizes: Sequence[int] = tuple(CASES),
    batch: int | None = None,
    rounds: int = 10,
    threads: int | None = None,
    compiled: bool = True,
    half: bool = True,
    scale: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON. `scale`: with the networks that stand beside GhostNet.

    Raises UsageError, and Mismatch where outputs differ.
    """
    cases = [_case(size, batch) for size in sizes]
    if not cases:
        raise UsageError("got no size; wanted one or more, such as 224")
    notes: list[str] = []
    with Setting(rounds=rounds, threads=threads) as setting:
        rows = []
        for done, case in enumerate(cases):
            tell = share_of(progress, done / len(cases), 1 / len(cases), str(case))
            steps = _steps(case, compiled=compiled, half=half, scale=scale, notes=notes)
            rows.append(_measure(case, steps, rounds, notes, tell))
        return {
            "command": "bench ghost",
            "settings": setting.told() | _SETTINGS,
            "environment": setting.environment() | {"timm": theirs.version()},
            "tolerance": {"float32": TOLERANCE, "bfloat16": HALF_TOLERANCE},
            "notes": notes,
            "cases": rows,
            "meaning": {name: _FIGURES[name] for row in rows for name in row["ratios"]},
        }


def _case(size: int, batch: int | None) -> Case:
    near = CASES[min(CASES, key=lambda known: abs(known - size))]
    case = Case(near.model, near.stem, size, near.batch if batch is None else batch, near.classes)
    if case.batch < 1 or size < 32 or case.last_values < _LEAST:
        raise UsageError(
            f"got size={size}, batch={case.batch}; wanted images of 32 pixels or more, and "
            f"{_LEAST} values or more a channel in the last norm, where {case.model} has "
            f"{case.last_values}: from fewer, rounding alone drives equal networks apart"
        )
    return case


def _steps(
    case: Case, *, compiled: bool, half: bool, scale: bool, notes: list[str]
) -> dict[str, dict[str, Step]]:
    """Family -> name -> step; those of a family start alike, and its first is what is right."""
    torch.manual_seed(0)
    net = create_model(case.model, case.classes, stem=case.stem, drop_rate=0.0)
    images = torch.randn(case.batch, 3, case.size, case.size)
    labels = torch.randint(case.classes, (case.batch,))
    ours = {_OURS: Step(copy.deepcopy(net), images, labels, fused=True)}
    if half:
        ours[_HALF] = Step(copy.deepcopy(net), images, labels, half=True, fused=True)
    both = _layouts(_PLAIN, net, images, labels, kernels="aten")
    other = theirs.ghostnet(case.model, case.classes, case.stem)
    if other is None:
        _note(notes, theirs.LEFT_OUT)
    else:
        other.load_state_dict(net.state_dict())
        both |= _layouts(_TIMM, other, images, labels)
        if compiled:
            both[_COMPILE] = _compiled(both[f"{_TIMM}{CHANNELS_LAST}"])
    found = {case.model: both | ours}
    for name, build in _SCALE.items() if scale else ():
        beside = build(num_classes=case.classes, stem=case.stem)
        found[name] = _layouts(name, beside, images, labels)
    return found


def _layouts(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, *, kernels: str | None = None
) -> dict[str, Step]:
    last: Any = {"memory_format": torch.channels_last}
    given: Any = {"kernels": kernels, "fused": True}
    laid = copy.deepcopy(net).to(**last)
    return {
        name: Step(copy.deepcopy(net), images, labels, **given),
        f"{name}{CHANNELS_LAST}": Step(laid, images.contiguous(**last), labels, **given),
    }


def _compiled(step: Step) -> Step:
    import torch._dynamo

    torch._dynamo.reset()  # it gives up on code that it has seen with many shapes
    net: Any = torch.compile(copy.deepcopy(step.net), dynamic=False)
    return Step(net, step.images, step.labels, fused=True)


def _note(notes: list[str], told: str) -> None:
    if told not in notes:
        notes.append(told)


def _measure(
    case: Case,
    families: Mapping[str, Mapping[str, Step]],
    rounds: int,
    notes: list[str],
    tell: Callable[[float], None],
) -> dict[str, Any]:
    before, found = backend.ran["cpu"], _Checked(str(case), notes)
    for family in families.values():
        found.family(family)
    steps = found.steps
    ran = backend.ran["cpu"] - before
    tell(_BUILT)
    subjects = [*(Subject(name, step) for name, step in steps.items()), *rates()]
    samples = interleaved(subjects, rounds, lambda share: tell(_BUILT + (1 - _BUILT) * share))
    floor = work(steps[_PLAIN].net, case.batch, case.size)
    halves = floor.seconds(samples)
    bound = max(halves, key=lambda name: summary(halves[name]).median)
    peaks = {name: step.peak_bytes() for name, step in steps.items()}
    return asdict(case) | {
        "passes_of_our_kernels": ran,
        "first_loss": found.losses,
        "largest_difference": found.far,
        "seconds": summaries(samples),
        "floor": asdict(floor)
        | told(samples)
        | {f"seconds_of_{name}": summary(one).median for name, one in halves.items()},
        "best": {name: _name_of_best(samples, name) for name in _OTHERS if name in samples},
        "ratios": {name: one.to_json() for name, one in _ratios(samples, halves[bound]).items()},
        "peak_bytes": peaks,
        "peak_ratio": _peak_ratios(peaks),
        "shares": {name: shares(step) for name, step in steps.items()},
    }


class _Checked:
    """Those that can run, and how far each is from what is right. Raises Mismatch."""

    def __init__(self, where: str, notes: list[str]) -> None:
        self.where, self.notes = where, notes
        self.steps: dict[str, Step] = {}
        self.losses: dict[str, float] = {}
        self.far: dict[str, float] = {}

    def family(self, steps: Mapping[str, Step]) -> None:
        """Takes two steps of each, and holds them to the first one's."""
        first, wanted, after, spread = "", dict[str, Tensor](), dict[str, Tensor](), 0.0
        for name, step in steps.items():
            got = self._first_step(name, step)
            if got is None:
                continue
            self.steps[name], self.losses[name] = step, float(got["the loss"])
            if not first:
                first, wanted, after = name, got, step()
            elif step.half:
                self.far[name] = self._agree(name, got, wanted, HALF_TOLERANCE)
            else:
                self.far[name] = self._agree(name, got, wanted, TOLERANCE)
                plain = name == f"{first}{CHANNELS_LAST}"  # how far rounding alone drives a step
                allowed = float("inf") if plain else max(TOLERANCE, 10 * spread)
                apart = self._agree(name, step(), after, allowed, " after a step")
                spread = apart if plain else spread

    def _first_step(self, name: str, step: Step) -> dict[str, Tensor] | None:
        """None where it does not run and need not: torch.compile wants a C++ compiler."""
        try:
            return step()
        except RuntimeError as error:
            if name != _COMPILE:
                raise
            _note(self.notes, f"{name} is left out: {first_line(error)}")
            return None

    def _agree(
        self,
        name: str,
        got: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        tolerance: float,
        when: str = "",
    ) -> float:
        return agree(name, got, wanted, where=f"{self.where}{when}", tolerance=tolerance)


def _forms(there: Mapping[str, Any], name: str) -> list[str]:
    """All of them but those of another precision."""
    return [form for form in there if form == name or form.startswith(f"{name} ")]


def _name_of_best(samples: Mapping[str, Samples], name: str) -> str:
    return min(_forms(samples, name), key=lambda form: summary(samples[form]).median)


def _ratios(samples: Mapping[str, Samples], floor: Samples) -> dict[str, Ratio]:
    found = {
        name: ratio(best(samples, _forms(samples, name)), samples[_OURS])
        for name in _OTHERS
        if name in samples
    }
    if _HALF in samples:
        found["bfloat16"] = ratio(samples[_OURS], samples[_HALF])
    return found | {"floor": ratio(samples[_OURS], floor)}


def _peak_ratios(peaks: Mapping[str, int]) -> dict[str, float]:
    """Ours over the form of each that needs least."""
    return {
        name: peaks[_OURS] / min(peaks[form] for form in _forms(peaks, name))
        for name in _OTHERS
        if name in peaks
    }
