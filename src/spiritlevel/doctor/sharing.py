"""Rules on who shares statistics: calls of one layer, and processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from spiritlevel.doctor.case import Case
from spiritlevel.doctor.drift import SHIFT, harmless, shift_between_calls
from spiritlevel.doctor.finding import Finding
from spiritlevel.doctor.rule import Rule, rule
from spiritlevel.doctor.running import SYNCED

__all__: list[str] = []

ENOUGH = 32
"""Samples a process from which the statistics of one's own batch do (Wu and He 2018, figure 1)."""


@rule(
    "SL307",
    "shared-over-distributions",
    "warning",
    needs=("data",),
    threads=("open-mmlab/mmdetection#6515", "rwightman/efficientdet-pytorch#53"),
)
def shared_over_distributions(rule: Rule, case: Case) -> Iterator[Finding]:
    """One batch norm is called several times a pass, on inputs of different distributions.

    In training each call takes its own batch's statistics; the running ones are a mixture of all,
    near the last call's, so in eval mode some calls are shifted. Heads shared by pyramid levels and
    norms shared by time steps are the known cases.

    Told where the means of two calls are more than half a deviation apart in the middle channel.
    Silent where the calls are fed the same distribution; info before the first training step, and
    where targets show that eval mode loses nothing.
    """
    for path, layer in case.data.layers.items():
        shift = shift_between_calls(layer)
        if shift is None or layer.train is None:
            continue
        fresh = layer.batches_tracked == 0
        mild = fresh or harmless(case)
        yield rule.found(
            path,
            f"{layer.train.calls} calls a pass, whose inputs have means up to {shift:.2f} "
            f"deviations apart (at most {SHIFT}), in the middle channel",
            fix="give each call its own batch norm, or one that takes no batch statistics "
            "(GroupNorm)",
            severity="info" if mild else None,
            shift=shift,
            threshold=SHIFT,
            calls=layer.train.calls,
        )


@rule(
    "SL314",
    "sync-uneven-batches",
    "warning",
    needs=("data",),
    threads=("pytorch/pytorch#38174", "pytorch/pytorch#91872", "pytorch/pytorch#36530"),
)
def sync_uneven_batches(rule: Rule, case: Case) -> Iterator[Finding]:
    """Synchronized batch norms wait for every process, and processes may have unlike many batches.

    `SyncBatchNorm` gathers statistics from all processes in each forward pass. One that has run out
    of batches no longer answers, and the others hang.

    Told for a DataLoader without `drop_last` and without `DistributedSampler`, which gives each
    process as many samples: as a warning where several processes run, else as info.
    """
    sync = [path for path, norm in case.norms.items() if isinstance(norm, SYNCED)]
    loader = case.loader
    if not sync or loader is None or loader.drop_last or loader.distributed:
        return
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = several and torch.distributed.get_world_size() > 1
    kind = "a stream" if loader.iterable else f"a {loader.sampler}"
    yield rule.found(
        sync[0],
        f"{len(sync)} SyncBatchNorm layers, and a loader over {kind} without drop_last: it does "
        "not make sure that each process has as many batches",
        fix="DataLoader(..., sampler=DistributedSampler(dataset), drop_last=True), or "
        "spiritlevel.train.in_step, which gives empty batches to a process that has no more; "
        "DistributedDataParallel's join does not answer for these layers",
        severity=None if several else "info",
        layers=len(sync),
        threshold=0,
    )


@rule(
    "SL315",
    "sync-unneeded",
    "info",
    needs=("data",),
    threads=(
        "pytorch/pytorch#50549",
        "pytorch/pytorch#88021",
        "NVIDIA/apex#980",
        "HuangJunJie2017/BEVDet#147",
    ),
)
def sync_unneeded(rule: Rule, case: Case) -> Iterator[Finding]:
    """Synchronized batch norms cost time where each process has samples enough of its own.

    Each layer waits for all processes, forward and backward; a quarter of an epoch has been
    measured. With 32 samples in a process its own statistics serve as well.
    """
    sync = [path for path, norm in case.norms.items() if isinstance(norm, SYNCED)]
    size = sorted(case.data.sizes)[len(case.data.sizes) // 2]
    if sync and size >= ENOUGH:
        yield rule.found(
            sync[0],
            f"{len(sync)} SyncBatchNorm layers, with {size} samples a process (enough: {ENOUGH})",
            fix="BatchNorm does; it is what SyncBatchNorm was converted from",
            samples=size,
            threshold=ENOUGH,
            layers=len(sync),
        )
