"""`spiritlevel bench`: norms, fuse, ghost, allocator, probe, deploy and scale."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spiritlevel.catalogue import say
from spiritlevel.cli import ended

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure speed and memory here, ours beside torch's.",
)

Out = Annotated[Path | None, typer.Option(help="Save all of it as JSON in this file.")]
Threads = Annotated[int | None, typer.Option(help="Torch's threads. (default: torch's choice)")]
_STEP_SHARE = 0.25
"""Of the bar, for the first training steps."""


@app.command("norms")
def norms(
    out: Out = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Such as 32x64x56x56; may be repeated. (default: eight shapes)"),
    ] = None,
    act: Annotated[str, typer.Option(help="The activation after the norm.")] = "relu",
    add: Annotated[
        bool | None,
        typer.Option("--add/--no-add", help="Only with, or only without, an addition between."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each subject.")] = 30,
    threads: Threads = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave torch.compile out.")
    ] = False,
    no_first_step: Annotated[
        bool, typer.Option("--no-first-step", help="Leave GhostNet's first steps out.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where: cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or, on a GPU, float16.")
    ] = "float32",
) -> int:
    """Batch norm, addition, activation: ratios, distance from the floor, memory, first steps."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench

        first_step = device == "cpu" and not no_first_step
        of_norms = 1.0 - _STEP_SHARE if first_step else 1.0
        found = bench.norms(
            shapes=shape or None,
            act=act,
            adds=(False, True) if add is None else (add,),
            rounds=rounds,
            threads=threads,
            compiled=not no_compile,
            device=device,
            dtype=dtype,
            progress=lambda share, what: tell(share * of_norms, what),
        )
        if first_step:
            found["first_step"] = bench.first_step(
                threads=found["settings"]["threads"],
                progress=lambda share, what: tell(of_norms + share * _STEP_SHARE, what),
            )
        return found

    return _run(measure, out)


@app.command("fuse")
def fuse(
    out: Out = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="resnet18 or mobilenet_v2; may be repeated. (default: both)"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 32,
    size: Annotated[int, typer.Option(help="Their height and width.")] = 224,
    rounds: Annotated[int, typer.Option(help="Steps of each subject.")] = 10,
    threads: Threads = None,
) -> int:
    """Whole training steps of ResNet-18 and MobileNetV2, before and after fuse."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench
        from spiritlevel.bench.nets import NETS

        return bench.fuse(
            models=model or tuple(NETS),
            batch=batch,
            size=size,
            rounds=rounds,
            threads=threads,
            progress=tell,
        )

    return _run(measure, out)


@app.command("ghost")
def ghost(
    out: Out = None,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Height and width of images; may be repeated. (default: 224 and 32)"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images of a step. (default: 32 at 224, 64 at 32)")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Steps of each subject. (default: 10)")] = None,
    threads: Threads = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave torch.compile out.")
    ] = False,
    no_bfloat16: Annotated[
        bool, typer.Option("--no-bfloat16", help="Leave ours under autocast out.")
    ] = False,
    no_scale: Annotated[
        bool, typer.Option("--no-scale", help="Leave ResNet-18 and MobileNetV3 out.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="By default 16 images of 32 px, 3 steps, GhostNets alone."),
    ] = False,
    device: Annotated[
        str,
        typer.Option(help="cpu, or cuda or cuda:N: 256 images of 224 px, autocast to bfloat16."),
    ] = "cpu",
) -> int:
    """Whole training steps of GhostNet, ours beside timm's and other networks."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench
        from spiritlevel.errors import UsageError

        asked = {
            "sizes": tuple(size) if size else None,
            "batch": batch,
            "rounds": rounds,
            "compiled": False if no_compile else None,
            "half": False if no_bfloat16 else None,
            "scale": False if no_scale else None,
        }
        if device != "cpu":
            if size or threads or quick or no_bfloat16:
                raise UsageError(
                    f"got --device {device} with --size, --threads, --quick or --no-bfloat16, "
                    "which are for the processor; wanted --batch, --rounds, --no-compile and "
                    "--no-scale alone"
                )
            return bench.ghost_on_gpu(
                device=device,
                batch=batch,
                rounds=10 if rounds is None else rounds,
                compiled=not no_compile,
                scale=not no_scale,
                progress=tell,
            )
        given: dict[str, Any] = dict(bench.QUICK) if quick else {}
        given |= {name: value for name, value in asked.items() if value is not None}
        return bench.ghost(**given, threads=threads, progress=tell)

    return _run(measure, out)


@app.command("allocator")
def allocator(
    out: Out = None,
    shape: Annotated[str, typer.Option(help="Such as 32x64x56x56.")] = "32x64x56x56",
    rounds: Annotated[int, typer.Option(help="Pairs of processes.")] = 5,
    threads: Threads = None,
) -> int:
    """What it is worth to let glibc keep freed memory, in fresh processes that take turns."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench

        return bench.allocator(shape=shape, rounds=rounds, threads=threads, progress=tell)

    return _run(measure, out)


@app.command("probe")
def probe(
    out: Out = None,
    size: Annotated[
        list[int] | None,
        typer.Option(help="Height and width of images; may be repeated. (default: 32 and 224)"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images of a step. (default: 64 at 32, 32 at 224)")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps from sample to sample.")] = 50,
    rounds: Annotated[int, typer.Option(help="Steps of each subject.")] = 20,
    threads: Threads = None,
) -> int:
    """What the probe costs a GhostNet's training, beside a logger of histograms."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench

        return bench.probe(
            sizes=tuple(size or bench.SIZES),
            batch=batch,
            every=every,
            rounds=rounds,
            threads=threads,
            progress=tell,
        )

    return _run(measure, out)


@app.command("deploy")
def deploy(
    out: Out = None,
    model: Annotated[str, typer.Option(help="A name of `spiritlevel models`.")] = "ghostnet_100",
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 224,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Images of a call; may be repeated. (default: 1 and 32)"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Calls of the largest batch; others get more.")] = 20,
    threads: Threads = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave torch.compile out.")
    ] = False,
) -> int:
    """A network at inference: eager, folded, compiled, ONNX Runtime, OpenVINO, int8."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench

        return bench.deploy(
            model=model,
            size=size,
            batches=tuple(batch or bench.BATCHES),
            rounds=rounds,
            threads=threads,
            compiled=not no_compile,
            progress=tell,
        )

    return _run(measure, out)


@app.command("scale")
def scale(
    out: Out = None,
    model: Annotated[str, typer.Option(help="A name of `spiritlevel models`.")] = "ghostnet_100",
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 64,
    batch: Annotated[int, typer.Option(help="Images of a process and step.")] = 32,
    processes: Annotated[
        list[int] | None, typer.Option(help="May be repeated. (default: 1 and 2)")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Steps of each norm.")] = 20,
) -> int:
    """A training step on several processes, with a batch norm of each and a synced one."""

    def measure(tell: Callable[[float, str], None]) -> dict[str, Any]:
        from spiritlevel import bench

        return bench.scale(
            model=model,
            size=size,
            batch=batch,
            processes=tuple(processes or (1, 2)),
            rounds=rounds,
            progress=tell,
        )

    return _run(measure, out)


def _run(
    measure: Callable[[Callable[[float, str], None]], dict[str, Any]], out: Path | None
) -> int:
    """Measures, saves, prints; 1 where outputs differ, as nothing was timed then."""
    from rich.console import Console

    from spiritlevel.bench import Mismatch
    from spiritlevel.bench.report import tables
    from spiritlevel.cli.progress import Share
    from spiritlevel.files import refuse_unwritable, write_whole

    if out is not None:
        refuse_unwritable(out)
    with Share() as bar:

        def tell(share: float, what: str) -> None:
            bar.tell(share, what)
            if ended:
                raise KeyboardInterrupt

        try:
            found = measure(tell)
        except Mismatch as mistake:
            bar.say(f"spiritlevel: {mistake}")
            return 1
    if out is not None:
        write_whole(out, json.dumps(found, indent=1) + "\n")
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    for part in tables(found):
        console.print(part)
        console.print()
    hint = say("terminal.bench.saved", path=out) if out else say("terminal.bench.not_saved")
    print(hint, file=sys.stderr)
    return 0
