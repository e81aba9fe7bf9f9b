"""SL101 to SL104, SL108: batch norms whose constants, types or places cannot be right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import counted, listed, momentum, running, spared
from spiritlevel.surgery.statistics import type_name

__all__: list[str] = []

SWAPPED = 0.5
"""Share of the newest batch. Above it one batch outweighs all before it together, which no training
wants; what TensorFlow calls momentum is 0.9 to 0.999."""
EPS_SHARE = 0.01
"""Of the variance. At 1 % the output is scaled by 0.995; below, eps is no part of the model."""
EPS_CHANNELS = 0.1
"""Share of a layer's channels. A few that have died have no variance in most trained networks."""
_HALVES = (torch.float16, torch.bfloat16)


@rule(
    "SL101",
    "momentum-swapped",
    "error",
    threads=(
        "pytorch/vision#8250",
        "affinelayer/pix2pix-tensorflow#126",
        "kazuto1011/deeplab-pytorch#79",
        "huggingface/transformers#19454",
        "https://discuss.pytorch.org/t/11955",
        "https://stackoverflow.com/questions/48345857",
    ),
)
def momentum_swapped(rule: Rule, case: Case) -> Iterator[Finding]:
    """Momentum is above 0.5, as in TensorFlow, where it is the share that is kept.

    In torch momentum is the new batch's share: running = (1 - momentum) running + momentum batch.
    With TensorFlow's 0.99 the running statistics are those of the last batch, and eval() jumps from
    one to the next. An error where it is outside of 0 to 1: then they need not even be statistics,
    and the variance may turn negative. Info on layers of other libraries, which may count as
    TensorFlow does. Silent on frozen layers, which move nothing, and on layers without running
    statistics.
    """
    found: dict[tuple[float, bool], list[str]] = {}
    for path, norm in _moving(case).items():
        share = momentum(norm)
        if share is not None and not 0 <= share <= SWAPPED:
            found.setdefault((share, isinstance(norm, _NormBase)), []).append(path)
    for (share, torchs), paths in found.items():
        path, more = listed(paths)
        outside = not 0 <= share <= 1
        meant = f"{1 - share:.6g}" if 0 < share < 1 else "0.1"
        what = (
            "is no share of anything; wanted 0 to 1"
            if outside
            else f"is the new batch's share in torch, so the last batch makes {100 * share:.4g} % "
            f"of the running statistics; wanted {SWAPPED:g} at most"
        )
        yield rule.found(
            path,
            f"momentum={share:.6g}{more} {what}",
            fix=f"write momentum={meant}"
            + (": what TensorFlow and Keras call momentum is 1 - torch's" if not outside else ""),
            severity="info" if not torchs else "error" if outside else "warning",
            momentum=share,
            threshold=SWAPPED,
            layers=paths,
        )


@rule("SL102", "momentum-zero", "warning", threads=("Cadene/pretrained-models.pytorch#5",))
def momentum_zero(rule: Rule, case: Case) -> Iterator[Finding]:
    """Momentum is 0, so no batch ever reaches the running statistics.

    Training goes on the batch's statistics, eval() on those that the layer was built or loaded
    with. Info where these are no longer 0 and 1, since they may be kept on purpose. Silent on
    frozen layers, for which eval() says the same more plainly.
    """
    built: list[str] = []
    loaded: list[str] = []
    for path, norm in _moving(case).items():
        if momentum(norm) == 0:
            statistics = running(norm)
            fresh = statistics is None or bool(
                (statistics[0] == 0).all() & (statistics[1] == 1).all()
            )
            (built if fresh else loaded).append(path)
    for paths, what in ((built, "mean 0 and variance 1"), (loaded, "what was loaded")):
        if paths:
            path, more = listed(paths)
            yield rule.found(
                path,
                f"momentum=0{more}: the running statistics stay {what} however long it trains; "
                "wanted above 0",
                fix="write momentum=0.1, or norm.eval() if the layer is to be frozen",
                severity="warning" if paths is built else "info",
                momentum=0.0,
                threshold=0.0,
                layers=paths,
            )


@rule(
    "SL103",
    "eps-against-variance",
    "info",
    threads=("tensorflow/tensorflow#42605", "gzuidhof/nn-transfer#3"),
)
def eps_against_variance(rule: Rule, case: Case) -> Iterator[Finding]:
    """eps is no longer small beside the running variance.

    The output then has a variance below 1, by eps / (var + eps), and depends on eps: another
    library's default, 1e-3 for 1e-5, changes what the model computes. Told where a tenth of a
    layer's channels or more have eps above 1 % of their variance. Only for layers that have counted
    batches.
    """
    shares: dict[str, tuple[float, float]] = {}
    for path, norm in case.batch_norms.items():
        statistics, eps = running(norm), getattr(norm, "eps", None)
        if statistics is None or not counted(norm) or not isinstance(eps, float) or eps <= 0:
            continue
        var = statistics[1]
        share = float((eps > EPS_SHARE * var).double().mean())
        if share >= EPS_CHANNELS and bool(var.isfinite().all()):
            shares[path] = (share, float(eps / var.median().clamp_min(1e-300)))
    if not shares:
        return
    worst = max(shares, key=lambda path: shares[path])
    share, ratio = shares[worst]
    more = f" ({len(shares) - 1} more layers alike)" if len(shares) > 1 else ""
    eps = case.batch_norms[worst].eps
    yield rule.found(
        worst,
        f"eps={eps:g} is above {EPS_SHARE:.0%} of the running variance in {share:.0%} of the "
        f"channels{more}, {ratio:.2g} of it in the median; wanted less in {1 - EPS_CHANNELS:.0%}",
        fix="keep this eps wherever these weights go; before a new training, scale the input of "
        "the layer, or take a smaller eps",
        eps=eps,
        median_ratio=ratio,
        channels=share,
        threshold=EPS_SHARE,
        threshold_channels=EPS_CHANNELS,
        layers=list(shares),
    )


@rule(
    "SL104",
    "half-precision-statistics",
    "warning",
    threads=("pytorch/pytorch#88929", "NVIDIA/apex#133", "pytorch/pytorch#126525"),
)
def half_precision_statistics(rule: Rule, case: Case) -> Iterator[Finding]:
    """A batch norm in training keeps running statistics or parameters in half precision.

    A step of the running average that is below its last digit is lost. bfloat16 has eight
    binary digits, so with momentum 0.001 a variance of 1 stays 1 while the true one is 4. float16
    also ends at 65504. Mixed precision keeps norms in float32, and so does torch.autocast. Silent
    in eval(), where nothing moves.
    """
    found: dict[tuple[torch.dtype, float | None], list[str]] = {}
    for path, norm in case.batch_norms.items():
        halves = [t for t in _numbers(norm) if t.dtype in _HALVES]
        if halves and norm.training:
            keeps = any(t is norm._buffers.get("running_var") for t in halves)
            share = momentum(norm) or None if keeps else None
            found.setdefault((halves[-1].dtype, share), []).append(path)
    for (dtype, share), paths in found.items():
        path, more = listed(paths)
        digit = torch.finfo(dtype).eps  # not half of it: torch rounds both terms and their sum
        lost = f"a step below {digit:.2%} of a value may be lost"
        if share is not None:
            lost += f", so at momentum {share:g} the average may stop {digit / share:.1%} away"
        name = type_name(dtype)
        what = "its parameters" if share is None else "its running statistics"
        yield rule.found(
            path,
            f"trains with {what} in {name}{more}: {lost}; wanted float32",
            fix="keep norms in float32: norm.float() after model.to(...), and torch.autocast for "
            "the rest",
            dtype=name,
            momentum=share,
            lost_step=digit,
            layers=paths,
        )


@rule(
    "SL108",
    "sync-norm-on-cpu",
    "warning",
    threads=(
        "open-mmlab/mmsegmentation#387",
        "open-mmlab/mmsegmentation#2147",
        "open-mmlab/mmocr#398",
        "OpenGVLab/InternImage#296",
        "open-mmlab/mmagic#133",
    ),
)
def sync_norm_on_cpu(rule: Rule, case: Case) -> Iterator[Finding]:
    """A SyncBatchNorm of torch's that trains is on the CPU, where it raises in a distributed run.

    torch synchronises on accelerators only: on a CPU the forward pass raises ValueError as soon as
    a process group is there, even of one process. Info where this machine has an accelerator, to
    which the model may yet be moved. Silent in eval(), which works anywhere, and for the layer of
    spiritlevel.nn, which synchronises on CPUs, too.
    """
    paths = [
        path
        for path, norm in case.norms.items()
        if isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and (tensors := _numbers(norm))
        and all(t.device.type == "cpu" for t in tensors)
    ]
    if paths:
        path, more = listed(paths)
        waits = torch.accelerator.is_available()
        yield rule.found(
            path,
            f"a SyncBatchNorm on the CPU{more}: training raises ValueError once a process group is "
            "there; wanted an accelerator",
            fix="move the model to the accelerator; to synchronise on CPUs use "
            "spiritlevel.convert(model, 'sync'), else torch's plain BatchNorm",
            severity="info" if waits else "warning",
            device="cpu",
            norms=len(paths),
            layers=paths,
        )


def _moving(case: Case) -> dict[str, nn.Module]:
    """Layers with a running mean that training would move: without the frozen ones."""
    layers = {**case.norms, **case.batch_norms}
    return {
        path: norm
        for path, norm in layers.items()
        if norm._buffers.get("running_mean") is not None and not _frozen(case.model, norm)
    }


def _frozen(model: nn.Module, norm: nn.Module) -> bool:
    """In eval while the model trains, or in eval and without grad."""
    return not norm.training and (model.training or spared(norm))


def _numbers(norm: nn.Module) -> list[Tensor]:
    """Parameters, then buffers, but for the counter."""
    own = (*norm._parameters.values(), *norm._buffers.values())
    return [t for t in own if t is not None and t.is_floating_point()]
