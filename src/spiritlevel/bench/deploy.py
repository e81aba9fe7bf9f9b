"""A network at inference: latency at batch 1 and throughput at 32, one form beside the other.

What torch gives by itself (eager, channels-last, compiled, and its own ONNX export in two runtimes)
and the same after `fold`; then the forms of lower precision. All are compared before they are
timed: those in float32 with eager's logits, the others by how their logits go with eager's from
image to image; one that does not follow them is not named the fastest. The weights are random, so
what less precision costs in accuracy is told by a trained network: examples/02_ship.py.

All run on torch's own kernels, in the threads that torch has. Images that a form wants in
channels-last are laid out before the clock starts, as a loader would; runtimes share the memory of
their inputs.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiritlevel.bench.agree import agree
from spiritlevel.bench.setting import Progress, Setting, share_of
from spiritlevel.bench.timing import Ratio, Samples, Subject, best, interleaved, ratio, summaries
from spiritlevel.errors import UsageError, require
from spiritlevel.kernels import backend

__all__ = ["BATCHES", "deploy"]

BATCHES = (1, 32)
TOLERANCE = 1e-4
"""Of the largest logit."""
FOLLOWS = 0.9
"""Correlation with eager's logits from which on a form counts as the network."""
IMAGES = 64
"""That all forms are compared on, as many at once as are timed."""
_FIGURES = {
    "float32": "the fastest float32 form without fold over the fastest with it",
    "eager": "eager over folded eager",
    "channels-last": "eager channels-last over folded channels-last",
    "compile": "torch.compile, frozen, over the same of the folded network",
    "ONNX Runtime": "torch's own ONNX export over ours, in ONNX Runtime",
    "OpenVINO": "torch's own ONNX export over ours, in OpenVINO",
    "lower precision": "the fastest float32 form of all over the fastest of lower precision",
}
"""Name -> what it is; above 1, the second is faster."""


@dataclass(frozen=True)
class _Form:
    """One way to run the network: images (N, 3, H, W) -> logits (N, K)."""

    name: str
    run: Callable[[Tensor], Tensor]
    folded: bool
    precision: str = "float32"
    last: bool = False
    """Whether it takes channels-last images."""

    def subject(self, images: Tensor) -> Subject:
        given = _last(images) if self.last else images
        return Subject(self.name, lambda: self.run(given))


def deploy(
    *,
    model: str = "ghostnet_100",
    size: int = 224,
    batches: Sequence[int] = BATCHES,
    rounds: int = 20,
    threads: int | None = None,
    compiled: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that was measured, for JSON. `rounds` are of the largest batch; smaller ones have more.

    Raises UsageError, MissingExtra, and Mismatch where outputs differ.
    """
    if size < 28 or not batches or min(batches) < 1:
        raise UsageError(
            f"got {size=}, batches={list(batches)}; wanted images of 28 pixels or more, and one "
            "or more batches of at least one"
        )
    _require()
    with Setting(rounds=rounds, threads=threads) as setting, tempfile.TemporaryDirectory() as kept:
        torch.manual_seed(0)
        tell = share_of(progress, 0.0, _BUILT, "folding and exporting")
        with torch.no_grad():
            net, images = _network(model, size, max(IMAGES, *batches))
            with backend.use("aten"):
                forms = _forms(net, images, Path(kept), compiled, tell)
                rows = []
                for done, batch in enumerate(batches):
                    share = (1 - _BUILT) / len(batches)
                    tell = share_of(progress, _BUILT + share * done, share, f"batch {batch}")
                    rows.append(_measure(forms, images, batch, rounds, max(batches), tell))
        return {
            "command": "bench deploy",
            "settings": setting.told() | {"model": model, "size": size, "dtype": "float32"},
            "environment": setting.environment(),
            "runtimes": _versions(),
            "tolerance": TOLERANCE,
            "cases": rows,
            "meaning": {name: _FIGURES[name] for row in rows for name in row["ratios"]},
        }


def _require() -> None:
    """Before anything takes time. Raises MissingExtra."""
    from spiritlevel.export.openvino import library

    for package in ("onnxruntime", "onnx", "onnxscript"):
        require(package, extra="onnx")
    library()


_BUILT = 0.3
"""Of the bar, for what is made before anything is timed."""
_PAUSE = 0.02
"""Seconds."""
_MOST_ROUNDS = 10
"""How many times the rounds small batches get at most."""


def _network(model: str, size: int, count: int = IMAGES) -> tuple[nn.Module, Tensor]:
    """With the running statistics of random images, so that it tells them apart; and these."""
    from spiritlevel.models import create_model
    from spiritlevel.surgery import recalibrate

    net = create_model(model)
    coarse = torch.randn(count, 3, 4, 4)  # of patterns as large as the image, as photographs have
    images = nn.functional.interpolate(coarse, (size, size)) + 0.1 * torch.randn(
        count, 3, size, size
    )
    return recalibrate(net, list(torch.split(images, 16)), accuracy=False).eval(), images


def _forms(
    net: nn.Module, images: Tensor, folder: Path, compiled: bool, tell: Callable[[float], None]
) -> list[_Form]:
    from spiritlevel.surgery import fold

    folded = fold(net, images[:2])
    tell(0.2)
    pairs = ((net, "", False), (folded, "folded ", True))
    forms = []
    for network, name, is_ours in pairs:
        forms.append(_Form(f"{name}eager", network, is_ours))
        laid = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forms.append(_Form(f"{name}channels-last", laid, is_ours, last=True))
        if compiled:
            forms.append(_Form(f"{name}compile", _compiled(laid), is_ours, last=True))
    tell(0.4)
    return [*forms, *_files(net, folded, images, folder, tell)]


def _compiled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """With its weights as constants, which the first call makes of them."""
    import torch._inductor.config as inductor

    made = torch.compile(net, dynamic=False)
    seen: set[tuple[int, ...]] = set()

    def run(images: Tensor) -> Tensor:
        if images.shape in seen:
            return made(images)  # type: ignore[no-any-return]
        seen.add(tuple(images.shape))
        with inductor.patch(freezing=True):
            return made(images)  # type: ignore[no-any-return]

    return run


def _files(
    net: nn.Module, folded: nn.Module, images: Tensor, folder: Path, tell: Callable[[float], None]
) -> list[_Form]:
    from spiritlevel.export import int8, onnx, openvino
    from spiritlevel.export.example import read_example
    from spiritlevel.export.metadata import Metadata
    from spiritlevel.export.runtimes import open_onnx

    threads = torch.get_num_threads()
    given, nothing = read_example(net, images[:2]), Metadata()
    plain, ours, small = (folder / f"{name}.onnx" for name in ("plain", "folded", "int8"))
    onnx.write(net, plain, given, nothing)
    onnx.write(folded, ours, given, nothing)
    tell(0.7)
    forms = []
    calibration = [[part] for part in torch.split(images, 16)]
    int8.write(folded, small, given, nothing, calibration=calibration, keep=True)
    for path, name, is_ours in ((plain, "", False), (ours, "folded ", True)):
        runtime = open_onnx(path, threads=threads)
        forms.append(_of(f"{name}ONNX Runtime", runtime, is_ours))
        forms.append(_of(f"{name}OpenVINO", openvino.open_openvino(path, threads=threads), is_ours))
    with warnings.catch_warnings(action="ignore"):  # where the processor has none, it is left out
        half = openvino.open_openvino(ours, precision="bfloat16", threads=threads)
    if half.precision == "bfloat16":
        forms.append(_of("folded OpenVINO, bfloat16", half, True))
    forms.append(_of("int8 ONNX Runtime", open_onnx(small, threads=threads), True, "int8"))
    forms.append(_of("int8 OpenVINO", openvino.open_openvino(small, threads=threads), True, "int8"))
    tell(1.0)
    return forms


def _of(name: str, runtime: Any, folded: bool, precision: str | None = None) -> _Form:
    return _Form(name, lambda x: runtime.run([x])[0], folded, precision or runtime.precision)


def _measure(
    forms: Sequence[_Form],
    images: Tensor,
    batch: int,
    rounds: int,
    largest: int,
    tell: Callable[[float], None],
) -> dict[str, Any]:
    compared = _compared(forms, images, batch)
    images = images[:batch].contiguous()
    rounds = rounds * min(_MOST_ROUNDS, max(1, largest // batch))
    samples = interleaved([form.subject(images) for form in forms], rounds, tell, pause=_PAUSE)
    right = [form for form in forms if compared[form.name]["correlation"] >= FOLLOWS]
    seconds = summaries(samples)
    medians = {name: of_form["median"] for name, of_form in seconds.items()}
    return {
        "batch": batch,
        "forms": {
            form.name: {
                "folded": form.folded,
                "precision": form.precision,
                "seconds": seconds[form.name],
                "images_a_second": batch / medians[form.name],
                **compared[form.name],
            }
            for form in forms
        },
        "fastest": {
            "float32": min(_named(forms, precision="float32"), key=medians.__getitem__),
            "of all": min((form.name for form in right), key=medians.__getitem__),
        },
        "ratios": {name: one.to_json() for name, one in _ratios(right, samples).items()},
    }


def _compared(forms: Sequence[_Form], images: Tensor, batch: int) -> dict[str, dict[str, float]]:
    """Of each form, how far it is from eager, and how its logits follow eager's."""

    def logits(form: _Form) -> Tensor:
        parts = [part for part in torch.split(images, batch) if len(part) == batch]
        return torch.cat([form.run(_last(part) if form.last else part) for part in parts])

    wanted, found = logits(forms[0]), {}
    for form in forms:
        got = logits(form)
        within = TOLERANCE if form.precision == "float32" else float("inf")
        where = f"batch {batch}"
        far = agree(form.name, {"logits": got}, {"logits": wanted}, where=where, tolerance=within)
        found[form.name] = {
            "largest_difference": far,
            "same_top1": float((got.argmax(1) == wanted.argmax(1)).double().mean()),
            "correlation": _correlation(got, wanted),
        }
    return found


def _correlation(got: Tensor, wanted: Tensor) -> float:
    """Of logits (N, K), each class from image to image; 0 for what is always the same."""
    a, b = (each.double() - each.double().mean(0) for each in (got, wanted))
    scale = a.norm() * b.norm()
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _ratios(forms: Sequence[_Form], samples: Mapping[str, Samples]) -> dict[str, Ratio]:
    plain, ours = (_named(forms, precision="float32", folded=f) for f in (False, True))
    lower = [form.name for form in forms if form.precision != "float32"]
    found = {"float32": ratio(best(samples, plain), best(samples, ours))}
    for name in ("eager", "channels-last", "compile", "ONNX Runtime", "OpenVINO"):
        if name in samples:
            found[name] = ratio(samples[name], samples[f"folded {name}"])
    if lower:
        found["lower precision"] = ratio(best(samples, plain + ours), best(samples, lower))
    return found


def _named(forms: Sequence[_Form], *, precision: str, folded: bool | None = None) -> list[str]:
    return [
        form.name for form in forms if form.precision == precision and folded in (None, form.folded)
    ]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "onnxruntime", "openvino")}
