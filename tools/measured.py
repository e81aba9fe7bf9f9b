"""tools/measured.py: the figures of docs/bench/*.json, into docs/ and README.md."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
LAST = "eager channels-last"
DUE = {"eager": 4.0, LAST: 2.5, "compile": 2.0}
"""Times as fast, BN (+ add) + ReLU, forward and backward."""
STEPS_DUE = {"resnet18": (1.1,), "mobilenet_v2": (1.3, 1.45)}
LARGE = 1.6e7
"""Bytes of a tensor that is called large below."""


def record(name: str) -> Any:
    return json.loads((ROOT / f"docs/bench/{name}.json").read_text())


def main() -> None:
    made_by = {
        "docs/bench.md": page,
        "docs/probe.md": cost,
        "docs/export.md": speed,
        "docs/scale.md": scaled,
        "README.md": quoted,
    }
    for name, made in made_by.items():
        file = ROOT / name
        file.write_text(made(file.read_text()))


def from_on(before: str, heading: str, lines: list[str]) -> str:
    """The page, of which these are the last lines, from that heading on."""
    how = before.split(f"\n## {heading}\n")[0].rstrip()
    return "\n".join([how, "", f"## {heading}", *lines]) + "\n"


def page(before: str) -> str:
    """docs/bench.md, with the figures anew."""
    norms, fuse, allocator = map(record, ("norms", "fuse", "allocator"))
    told = [measured(norms, fuse, allocator), due(norms, fuse), rest(norms)]
    return from_on(before, "Measured", ["\n\n".join(told)])


def cost(before: str) -> str:
    """docs/probe.md, with what the probe costs anew."""
    found = record("probe")
    every = found["settings"]["every"]
    lines = [
        "`probe.overhead` tells it by the probe's own clock. `spiritlevel bench probe` measures it "
        "on a GhostNet 1.0×, beside a forward",
        "hook on each norm that calls TensorBoard's `add_histogram`, both in one step of "
        f"{every}: here on two cores of an AMD EPYC, from",
        "[probe.json](bench/probe.json). By the clock is the time in hooks and of calling them, on "
        "average over all steps, of a step",
        "alone; by the wall are medians of steps with against steps without. Steps here vary by "
        "ten per cent, so the wall cannot show one.",
        "",
        "| images, a step alone | looks | a cheap step | a dear one | by the clock | by the wall |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["cases"]:
        alone = row["seconds"]["alone"]["median"]
        images = f"{row['batch']}×3×{row['size']}×{row['size']}, {1e3 * alone:.0f} ms"
        for name, inside in row["inside"].items():
            wall = row["cost"][name]
            value, low, high = (100 * (wall[key] - 1) for key in ("value", "low", "high"))
            cheap, dear = (f"{1e3 * inside[kind]:.1f} ms" for kind in ("cheap", "dear"))
            lines.append(
                f"| {images} | {name} | {cheap} | {dear} | {100 * inside['share']:.2f} % | "
                f"{value:.1f} % ({low:.1f} to {high:.1f}) |"
            )
    return from_on(before, "What it costs", lines)


WITHIN, BETWEEN = 200e9, 25e9
"""Bytes a second of a GPU, assumed: within a machine by NVLink, between machines by 200 Gb/s."""
ON_PAPER = (
    ("8 GPUs of one machine", 8, 8, 20e-6),
    ("1024 GPUs, synced over all", 1024, 1024, 100e-6),
    ("1024 GPUs, synced over each machine's 8", 1024, 8, 20e-6),
)
"""Name, GPUs, GPUs that a norm is synced over, seconds a collective takes at least (assumed)."""


def scaled(before: str) -> str:
    """docs/scale.md, with what a step costs on several processes anew."""
    found = record("scale")
    first = found["cases"][0]
    return from_on(before, "Measured", [*on_processes(found, first), "", *on_gpus(first)])


def on_processes(found: Any, first: Any) -> list[str]:
    about, layers, channels = found["settings"], len(first["channels"]), sum(first["channels"])
    lines = [
        f"`spiritlevel bench scale`: {about['model']} ({first['parameters']:,} parameters, "
        f"{layers} norms, {channels:,} channels) at {about['size']}×{about['size']}, "
        f"{about['batch']} images a process and",
        "step, one thread each, on two cores of an AMD EPYC, by gloo, from "
        "[scale.json](bench/scale.json), which `python tools/measured.py` put here.",
        "What is sent is the loopback device's counter, with the headers of all protocols.",
        "",
        "| processes | a norm of each, ms | synced, ms | synced / of each | MB sent a process, of "
        "each | synced | by the formula |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["cases"]:
        times = [f"{1e3 * row['seconds'][norm]['median']:.0f}" for norm in ("batch", "sync")]
        seen = [f"{row['bytes_a_process'][norm] / 1e6:.2f}" for norm in ("batch", "sync")]
        formula = row["formula"]
        told = f"{formula['gradients'] / 1e6:.2f}, {sum(formula.values()) / 1e6:.2f}"
        cells = [str(row["processes"]), *times, interval(row["ratio"]), *seen, told]
        lines.append(f"| {' | '.join(cells)} |")
    last = found["cases"][-1]
    added = last["seconds"]["sync"]["median"] - last["seconds"]["batch"]["median"]
    return [
        *lines,
        "",
        f"So synced norms add {1e3 * added:.0f} ms to a step of {last['processes']} processes: "
        f"{1e3 * added / (2 * layers):.1f} ms for each of its {2 * layers} collectives, in which "
        "the processes also wait for",
        "each other, and gloo's threads for the two cores that compute.",
    ]


def on_gpus(first: Any) -> list[str]:
    from spiritlevel.bench.scale import sent

    layers = len(first["channels"])
    lines = [
        "## Carried to GPUs, on paper",
        "With *a* seconds that a collective takes at least and *b* bytes a second of a GPU, both "
        "assumed, not measured, synced norms add",
        "2 L a + (forward + backward bytes) / b to a step: they stand in the way of the layers "
        "after them, while gradients are sent",
        "beside the backward pass.",
        "",
        "| | a | b | norms, MB a GPU | norms add, ms | of it waiting | gradients, MB a GPU | "
        "beside backward, ms |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, gpus, group, least in ON_PAPER:
        norms, all_of = (sent(n, first["parameters"], first["channels"]) for n in (group, gpus))
        bytes_of_norms = norms["forward"] + norms["backward"]
        waiting = 2 * layers * least
        rate, of_gradients = (WITHIN if n == 8 else BETWEEN for n in (group, gpus))
        lines.append(
            f"| {name} | {1e6 * least:.0f} µs | {rate / 1e9:.0f} GB/s | {bytes_of_norms / 1e6:.2f} "
            f"| {1e3 * (waiting + bytes_of_norms / rate):.1f} | {1e3 * waiting:.1f} | "
            f"{all_of['gradients'] / 1e6:.1f} | {1e3 * all_of['gradients'] / of_gradients:.1f} |"
        )
    return lines


def speed(before: str) -> str:
    """docs/export.md, with how fast each form is anew."""
    found, shipped = record("deploy"), json.loads((ROOT / "docs/ship.json").read_text())
    about = found["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in found["runtimes"].items())
    lines = [
        "`spiritlevel bench deploy` runs a network in every form, interleaved in one process, once "
        "their outputs were compared: here",
        f"{about['model']} at {about['size']}×{about['size']} on two cores of an AMD EPYC with "
        f"AVX2, {about['threads']} threads each ({versions}),",
        "from [deploy.json](bench/deploy.json), which `python tools/measured.py` put here. "
        "*Folded* forms are ours; the others are",
        "the same network without `fold`, exported and run in the same way.",
    ]
    for row in found["cases"]:
        lines += ["", *of_forms(row)]
    lines += ["", *aims(found["cases"], shipped["forms"])]
    lines += [
        "",
        "The weights are random, so the correlation of int8's logits says nothing of a trained "
        "network's accuracy; that is measured in",
        "[ship.md](ship.md). This processor has neither VNNI nor bfloat16: int8 gains what AVX2 "
        "gives it.",
    ]
    return from_on(before, "Speed", lines)


def of_forms(row: Any) -> list[str]:
    one, eager = row["batch"] == 1, row["forms"]["eager"]["seconds"]["median"]
    lines = [
        f"| batch {row['batch']} | {'ms' if one else 'images a second'} | eager / this | "
        "largest difference | correlation |",
        "|---|---|---|---|---|",
    ]
    by_time = sorted(row["forms"].items(), key=lambda item: item[1]["seconds"]["median"])
    for name, form in by_time:
        median = form["seconds"]["median"]
        rate = f"{1e3 * median:.1f}" if one else f"{form['images_a_second']:.0f}"
        lines.append(
            f"| {name} | {rate} | {eager / median:.2f} | {form['largest_difference']:.0e} | "
            f"{form['correlation']:.3f} |"
        )
    return lines


def aims(cases: Any, shipped: Any) -> list[str]:
    lines = ["| aimed at | batch | measured | |", "|---|---|---|---|"]
    for row in cases:
        ratio = row["ratios"]["float32"]
        lines.append(
            "| fastest float32 form without `fold` over ours: 0.97 or more | "
            f"{row['batch']} | {interval(ratio)} | {met(ratio['value'] >= 0.97)} |"
        )
        exact, lower = (
            min(
                form["seconds"]["median"]
                for form in row["forms"].values()
                if (form["precision"] == "float32") is is_exact
            )
            for is_exact in (True, False)
        )
        lines.append(
            "| fastest float32 form over the fastest of less precision: 1.4 or more | "
            f"{row['batch']} | {exact / lower:.2f}× | {met(exact / lower >= 1.4)} |"
        )
    int8, full = (shipped[name]["accuracy"] for name in ("ONNX, int8", "ONNX"))
    lost = 100 * (full - int8)
    return [
        *lines,
        f"| int8 costs at most 1 point of accuracy ([shipped](ship.md)) | – | {lost:.2f} points | "
        f"{met(lost <= 1)} |",
    ]


def met(is_met: bool) -> str:
    return "reached" if is_met else "missed"


def interval(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})"


def both_ways(norms: Any, add: bool = False) -> Any:
    (found,) = (
        group["ratios"]
        for group in norms["figures"]
        if group["mode"] == "forward+backward" and group["add"] is add
    )
    return found


def measured(norms: Any, fuse: Any, allocator: Any) -> str:
    lines = [
        "On two cores of an AMD EPYC with AVX2, two threads, float32, torch 2.13.0; ratios with "
        "their 95 % intervals, from",
        "[norms.json](bench/norms.json), [fuse.json](bench/fuse.json) and "
        "[allocator.json](bench/allocator.json), which `python tools/measured.py` put here.",
        "Layers: geometric means over the eight shapes; above 1, ours is faster.",
        "",
        "| | eager / ours | the same, channels-last | compile / ours | ours / floor |",
        "|---|---|---|---|---|",
    ]
    for group in norms["figures"]:
        ratios = group["ratios"]
        name = f"BN {'+ add ' * group['add']}+ ReLU, {group['mode'].replace('+', ' + ')}"
        cells = [interval(ratios[each]) for each in DUE]
        lines.append(f"| {name} | {' | '.join(cells)} | {ratios['floor']['value']:.2f} |")
    for case in fuse["cases"]:
        cells = [interval(case["ratios"][each]) for each in ("eager", LAST)]
        name = f"{NAMES[case['model']]}, a training step by `fuse`"
        lines.append(f"| {name} | {' | '.join(cells)} | – | – |")
    lines += [
        "",
        "Seconds that the first training step of GhostNet 1.0x costs beyond a later one, batch 32 "
        "at 224 px:",
        "",
        "| | torch's layers | ours, nothing on disk | ours, kernels on disk |",
        "|---|---|---|---|",
    ]
    for layout, seconds in norms["first_step"]["seconds"].items():
        cells = [f"{seconds[name]['added']:.1f}" for name in ("torch", "cold", "warm")]
        lines.append(f"| {layout} | {' | '.join(cells)} |")
    gain = {name: interval(ratio) for name, ratio in allocator["ratios"].items()}
    peak = {case["model"]: f"{case['peak_ratio']:.2f}" for case in fuse["cases"]}
    return "\n".join(lines) + (
        f"\n\n- The default allocator takes {gain['ours']} as long as the tuned one for our layers,"
        f"\n  {gain['eager']} for torch's: few pairs, hence wide intervals."
        "\n- Peak memory of a training step, with in-place ReLUs over fused: "
        f"{peak['resnet18']} for ResNet-18, {peak['mobilenet_v2']} for MobileNetV2."
        "\n- torch.compile is slow here at training BN + ReLU alone, in its own generated code; "
        "that ratio says little of other machines."
    )


def due(norms: Any, fuse: Any) -> str:
    lines = [
        "## What was aimed at",
        "| | aim | measured | |",
        "|---|---|---|---|",
    ]

    def line(name: str, aim: float, found: float, at_most: bool = False) -> None:
        is_met = found <= aim if at_most else found >= aim
        sign = "at most " if at_most else ""
        lines.append(f"| {name} | {sign}{aim:g} | {found:.2f} | {met(is_met)} |")

    for add in (False, True):
        for name, aim in DUE.items():
            label = f"BN {'+ add ' * add}+ ReLU, forward + backward: {name} / ours"
            line(label, aim, both_ways(norms, add)[name]["value"])
    for case in fuse["cases"]:
        name = case["model"]
        for aim in STEPS_DUE[name]:
            line(f"{NAMES[name]} by `fuse`: {LAST}", aim, case["ratios"][LAST]["value"])
        peak = 1 / case["peak_ratio"]
        line(f"{NAMES[name]}: peak memory beside in-place ReLU's", 1, round(peak, 3), True)
    large = of_size(norms, lambda size: size >= LARGE)
    line("ours / floor, the slowest of the tensors of 16 MB and more", 1.3, max(large), True)
    for layout, seconds in norms["first_step"]["seconds"].items():
        for name, aim in (("cold", 20), ("warm", 1)):
            label = f"first GhostNet step, {name}, {layout}, s (torch's own takes part of it)"
            line(label, aim, seconds[name]["added"], True)
    return "\n".join(lines)


def of_size(norms: Any, wanted: Any) -> list[float]:
    return [
        case["modes"]["forward+backward"]["ratios"]["floor"]["value"]
        for case in norms["cases"]
        if wanted(case["tensor_bytes"])
    ]


def rest(norms: Any) -> str:
    plain = [c["modes"]["forward+backward"] for c in norms["cases"] if not c["add"]]
    eager = math.exp(
        mean(math.log(m["seconds"]["eager"]["median"] / m["floor"]["seconds"]) for m in plain)
    )
    large, small = (
        of_size(norms, wanted) for wanted in (lambda n: n >= LARGE, lambda n: n < LARGE)
    )
    worst = min(
        norms["cases"],
        key=lambda case: case["modes"]["forward+backward"]["ratios"]["eager"]["value"],
    )
    least = worst["modes"]["forward+backward"]["ratios"]["eager"]["value"]
    first = norms["first_step"]["seconds"].values()
    return WHERE.format(
        eager=eager,
        quarter=eager / 4,
        large=f"{min(large):.2f} to {max(large):.2f}",
        small=f"{min(small):.2f} to {max(small):.2f}",
        slowest=f"{worst['shape']}{', with add' * worst['add']}",
        least=least,
        own=" and ".join(f"{each['torch']['added']:.1f}" for each in first),
    ).strip()


WHERE = """
## Where the rest goes, and what was tried
Here eager torch takes {eager:.1f} times the floor (forward + backward, geometric mean over the
shapes), so four times as fast as eager would be {quarter:.2f} of it. With every byte moved once,
both ways move five tensors where the floor counts eight: 0.63 of it. Forward + backward, tensors
of 16 MB and more run at {large} times the floor, smaller ones at {small}. The slowest
beside eager is {slowest}: {least:.2f}×. Each is the faster of our two layouts.

- *Read once.* A group of channels goes through all its passes while it is in the second cache: so
  contiguous tensors get below the floor. In channels-last a channel's numbers lie apart, and a
  group of channels is parts of lines: x and the gradient come from memory twice.
- *Written past the cache.* What is not read again soon is stored without reading its line first.
- *One call a layer.* All passes are one call into C, on torch's own threads; the first design made
  four, on Numba's.
- *Four rows at a time* in channels-last: sums are read and written once for four numbers.
- *The first step, warm*: torch's own layers take {own} s of it; the rest is mostly to import Numba
  and to load kernels.
- *Small layers.* Python, autograd and the call are a larger share there. Below 65,536 numbers a
  layer is left to torch.
- *Not tried*: groups of channels kept in cache in channels-last, and autograd's part in C.
- *Steps of whole networks*: the convolutions are torch's, and stay as they are.
"""


def quoted(readme: str) -> str:
    """README.md, with the speeds that it quotes anew."""
    layers = both_ways(record("norms"))
    steps = {case["model"]: case["ratios"][LAST]["value"] for case in record("fuse")["cases"]}
    found = [layers["eager"]["value"], layers[LAST]["value"]]
    found += [steps["mobilenet_v2"], steps["resnet18"]]
    pattern = (
        r"(takes torch )[\d.]+( times as long on two cores, )[\d.]+( in channels-last; a training "
        r"step of MobileNetV2 )[\d.]+( times, of ResNet-18 )[\d.]+"
    ).replace(" ", r"\s")  # wherever its lines end
    values = iter(found)
    text, made = re.subn(
        pattern,
        lambda match: "".join(f"{part}{next(values):.2f}" for part in match.groups()),
        readme,
    )
    if made != 1:
        raise SystemExit("README.md has no line with the speeds")
    return text


if __name__ == "__main__":
    main()
