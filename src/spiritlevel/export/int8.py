"""An ONNX file in int8, by ONNX Runtime's static quantization.

Weights are int8, one scale an output channel; activations uint8, one scale a tensor, from the
smallest and largest value on calibration data. A tensor whose channels differ much in range leaves
the small ones a few of its 256 steps. Where plain int8 loses more than `compare.MOST_LOST` on the
calibration data, ranges are equalised first (see `equalise`), and the better of both is kept. If
that loses more as well, or outputs that are no logits are more than `MOST_OFF` off, no file is.

Weights are held to 7 bits. Processors without VNNI, as every AVX2 one, add pairs of products of
uint8 and int8 in 16 bits, which 8-bit weights overflow without a word.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spiritlevel.errors import ExportError, UsageError, require
from spiritlevel.export import onnx
from spiritlevel.export.calibration import Inputs, are_classes, refuse_calibration
from spiritlevel.export.compare import MOST_CHANGED, MOST_LOST, is_logits
from spiritlevel.export.equalise import equalised
from spiritlevel.export.example import Example
from spiritlevel.export.metadata import Metadata
from spiritlevel.export.quiet import quiet
from spiritlevel.export.runtimes import Runtime, as_arrays, open_onnx

__all__ = ["MOST_OFF", "Quantized", "Trial", "quantized", "write"]

MOST_OFF = 0.1
"""Of outputs that are no logits: the root of the mean square of what differs, as a share."""


@dataclass(frozen=True)
class Trial:
    """How one form of the network does on the calibration data."""

    form: str
    """float32, plain int8, or equalised int8."""
    accuracy: float | None
    """Share of the samples it gets right; None without targets."""
    agreement: float | None
    """Share of the samples with float32's top-1; None where the output is no logits."""
    error: float
    """Root of the mean square of what differs from float32's outputs, as a share of theirs."""


class Quantized:
    """The file as it runs, with what was tried on the way to it."""

    precision = "int8"

    def __init__(self, path: Path, trials: tuple[Trial, ...], equalised: tuple[str, ...]) -> None:
        self._runtime = open_onnx(path, precision=self.precision)
        self.name = self._runtime.name
        self.trials = trials
        self.equalised = equalised
        """The convolutions whose ranges were equalised in the file that was kept."""

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """As `Runtime` has it."""
        return self._runtime.run(inputs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was tried and kept, in words."""
        kept = "equalised" if self.equalised else "plain"
        told = "; ".join(_told(each) for each in self.trials)
        ranges = f", {len(self.equalised)} convolutions equalised" if self.equalised else ""
        return (f"on the calibration data: {told}", f"kept: {kept} int8{ranges}")


def write(
    folded: nn.Module,
    path: Path,
    given: Example,
    meta: Metadata,
    *,
    calibration: Sequence[Inputs],
    targets: Sequence[Tensor | None] = (),
    on_batch: Callable[[str, int, int], object] = lambda what, done, total: None,
    keep: bool = False,
) -> Quantized:
    """An .onnx file in int8, with `meta` and how it was made as its metadata.

    `calibration` is inputs of the model, `targets` the class of each sample where they are known:
    int8 is then held against float32 by accuracy, else by its top-1, else by its outputs. As
    `compare` has it, targets that are no class of each sample, whole numbers (N,), do not count.
    `on_batch` is called as the batches go through; `keep` keeps the file whatever int8 loses.

    Raises UsageError for calibration data of no use and for weights that are not finite,
    ExportError where int8 loses too much, MissingExtra.
    """
    require("onnxruntime", extra="onnx")
    refuse_calibration(calibration, targets, given)
    _refuse_weights(folded)
    with tempfile.TemporaryDirectory(prefix="int8-", dir=path.parent) as folder:
        bench = _Bench(Path(folder), folded, given, calibration, targets, on_batch)
        best = plain = bench.quantized(folded, "plain int8")
        paths: tuple[str, ...] = ()
        if bench.lost(plain) > MOST_LOST:
            other = equalised(folded, calibration)
            log = getattr(other, "spiritlevel_log", ())
            found = tuple(p for each in log if each.action == "equalised" for p in each.paths)
            if found:
                second = bench.quantized(other, "equalised int8")
                if bench.lost(second) < bench.lost(plain):
                    best, paths = second, found
        if not keep:
            bench.refuse(best)
        meta = _described(meta, calibration, paths)
        _finish(bench.file(best), path, meta)
    return Quantized(path, tuple(bench.trials), paths)


class _Bench:
    """Makes forms of a network and holds them against float32."""

    def __init__(
        self,
        folder: Path,
        folded: nn.Module,
        given: Example,
        calibration: Sequence[Inputs],
        targets: Sequence[Tensor | None],
        on_batch: Callable[[str, int, int], object],
    ) -> None:
        self.folder, self.folded, self.given, self.calibration = folder, folded, given, calibration
        self.targets, self.on_batch = targets, on_batch
        self.trials: list[Trial] = []
        self.source = folder / "float32.onnx"
        float32 = onnx.write(folded, self.source, given, Metadata())
        self.expected = [float32.run(inputs)[0] for inputs in calibration]
        self._hold("float32", float32)

    def file(self, trial: Trial) -> Path:
        return self.folder / f"{trial.form}.onnx"

    def quantized(self, network: nn.Module, form: str) -> Trial:
        source = self.source
        if network is not self.folded:
            source = self.folder / "source.onnx"
            onnx.write(network, source, self.given, Metadata())
        path = self.folder / f"{form}.onnx"
        total = len(self.calibration)
        with quiet(network, "int8"):
            quantized(
                source,
                path,
                self.calibration,
                on_batch=lambda done: self.on_batch(f"calibrating {form}", done, total),
            )
        return self._hold(form, open_onnx(path, precision="int8"))

    def lost(self, trial: Trial) -> float:
        """How much worse than float32: by accuracy, else by top-1, else by the outputs."""
        float32 = self.trials[0]
        if trial.accuracy is not None and float32.accuracy is not None:
            return float32.accuracy - trial.accuracy
        return trial.error if trial.agreement is None else 1 - trial.agreement

    def refuse(self, best: Trial) -> None:
        """Raises ExportError for a form that loses too much."""
        what, allowed = "of the outputs", MOST_OFF
        if best.accuracy is not None:
            what, allowed = "of the samples", MOST_LOST
        elif best.agreement is not None:
            what, allowed = "of the samples", MOST_CHANGED
        if self.lost(best) <= allowed:
            return
        raise ExportError(
            f"int8 loses {self.lost(best):.1%} {what} on the calibration data, of {allowed:.0%} "
            f"allowed: {'; '.join(_told(each) for each in self.trials)}. Nothing was written. Give "
            "it calibration data like what it is to run on, a few hundred samples, or export in "
            "float32"
        )

    def _hold(self, form: str, runtime: Runtime) -> Trial:
        square = total = 0.0
        alike = right = samples = judged = 0
        targets = [*self.targets, *[None] * (len(self.calibration) - len(self.targets))]
        for inputs, expected, target in zip(self.calibration, self.expected, targets, strict=True):
            found = runtime.run(inputs)[0]
            finite = expected.isfinite()  # it may be of masks, which are -inf in both
            square += float((found - expected)[finite].double().square().sum())
            total += float(expected[finite].double().square().sum())
            if is_logits(expected):
                top = found.argmax(1)
                samples += len(top)
                alike += int((top == expected.argmax(1)).sum())
                if target is not None and are_classes(target, len(top)):
                    judged += len(top)
                    right += int((top == target.cpu()).sum())
        trial = Trial(
            form,
            right / judged if judged else None,
            alike / samples if samples else None,
            math.sqrt(square / total) if total else float(square > 0),
        )
        self.trials.append(trial)
        return trial


def quantized(
    source: Path,
    path: Path,
    calibration: Sequence[Inputs],
    *,
    on_batch: Callable[[int], object] = lambda done: None,
) -> None:
    """The float32 file `source` in int8, as this file's head has it. Raises whatever it raises."""
    quantization = require("onnxruntime.quantization", extra="onnx")
    quantization.quantize_static(
        source,
        path,
        _Reader(source, calibration, on_batch),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


class _Reader:
    """What ONNX Runtime takes calibration data from, a batch at a time."""

    def __init__(
        self, source: Path, batches: Sequence[Inputs], on_batch: Callable[[int], object]
    ) -> None:
        ort = require("onnxruntime", extra="onnx")
        session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
        self._names = [each.name for each in session.get_inputs()]
        self._batches, self._on_batch = enumerate(batches), on_batch

    def get_next(self) -> dict[str, Any] | None:
        """The inputs by name; None after the last."""
        done, inputs = next(self._batches, (0, None))
        if inputs is None:
            return None
        self._on_batch(done + 1)
        return dict(zip(self._names, as_arrays(inputs), strict=True))


def _refuse_weights(folded: nn.Module) -> None:
    """Raises UsageError for weights that have no range."""
    weights = folded.named_parameters()
    wrong = [name for name, each in weights if not bool(each.isfinite().all())]
    if wrong:
        raise UsageError(
            f"got NaN or infinite values in {', '.join(wrong[:5])}, of which no range can be "
            "taken; wanted finite numbers. Take weights from before the training diverged"
        )


def _described(meta: Metadata, calibration: Sequence[Inputs], paths: tuple[str, ...]) -> Metadata:
    how = {
        "weights": "int8, 7 bits, one scale an output channel",
        "activations": "uint8, one scale a tensor",
        "calibration": "smallest and largest value",
        "samples": sum(len(inputs[0]) for inputs in calibration),
        "equalised": list(paths),
    }
    described = replace(meta, recipe={**meta.recipe, "quantization": how})
    return described.with_versions(
        onnxruntime=require("onnxruntime", extra="onnx").__version__, opset=onnx.OPSET
    )


def _finish(made: Path, path: Path, meta: Metadata) -> None:
    """With its metadata, and in its place."""
    package = require("onnx", extra="onnx")
    model = package.load(made)
    package.helper.set_model_props(
        model, {each.key: each.value for each in model.metadata_props} | meta.to_strings()
    )
    package.save(model, made)
    os.replace(made, path)


def _told(trial: Trial) -> str:
    shares = {"accuracy": trial.accuracy, "top-1 of float32": trial.agreement}
    told = [f"{name} {value:.2%}" for name, value in shares.items() if value is not None]
    if trial.form == "float32":
        told = told[:1] if trial.accuracy is not None else ["the reference"]
    else:
        told.append(f"outputs {trial.error:.1%} off")
    return f"{trial.form}: {', '.join(told)}"
