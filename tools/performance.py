"""tools/performance.py: docs/performance.md and .svg, from docs/bench/ghost.json, stages.json."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

import spiritlevel as sl
from spiritlevel.models.ghost import GhostModule

ROOT = Path(__file__).parents[1]
PLAIN, OURS, ACTIVATIONS = (3, 46), (3, 13), 10
"""Numbers that a Ghost module moves in a step, of its input and of a half of its output: the sums
of the table in docs/performance.md, and what both activations are of that."""
DUE = {224: {"timm": (1.6, 2.1, 3.0), "bfloat16": (1.3,), "resnet18": (3.0, 4.0)}}
DUE |= {32: {"timm": (2.5, 5.0)}}
"""Times as fast: due, good or the goal."""
MEMORY_DUE = 0.6
NAMED = {
    "timm": "timm's best form over ours",
    "plain": "torch's kernels in our model over ours",
    "resnet18": "ResNet-18 over ours",
    "mobilenet_v3": "MobileNetV3 over ours",
    "bfloat16": "ours in float32 over ours in bfloat16",
    "floor": "ours over the floor",
}
HEAD = "\n## Measured\n"


def main() -> None:
    page = ROOT / "docs/performance.md"
    page.write_text(performed(page.read_text()))
    (ROOT / "docs/performance.svg").write_text(picture())


def record(name: str) -> Any:
    return json.loads((ROOT / f"docs/bench/{name}.json").read_text())


def performed(before: str) -> str:
    """docs/performance.md, with the figures anew."""
    found, stages = record("ghost"), record("stages")
    lines = [HEAD.strip()]
    for case in found["cases"]:
        lines += ["", *steps(case)]
    lines += ["", *passes(stages)]
    return before.split(HEAD)[0].rstrip() + "\n\n" + "\n".join(lines) + "\n"


def steps(case: dict[str, Any]) -> list[str]:
    size, floor = case["size"], case["floor"]
    lines = [
        f"A step of {case['model']}, {case['batch']} images of {size}×{size}, two threads, from "
        "[ghost.json](bench/ghost.json) (`spiritlevel bench ghost`):",
        "",
        "| subject | ms | peak memory, MB | where the time goes |",
        "|---|--:|--:|---|",
    ]
    for name, peak in case["peak_bytes"].items():
        share = sorted(case["shares"][name].items(), key=lambda item: -item[1])[:4]
        where = ", ".join(f"{kind} {100 * part:.0f} %" for kind, part in share)
        lines.append(
            f"| {name} | {1e3 * case['seconds'][name]['median']:.0f} | {peak / 1e6:.0f} | {where} |"
        )
    lines += ["", "| times as fast | measured (95 % interval) | wanted |", "|---|--:|--:|"]
    for name, ratio in case["ratios"].items():
        wanted = " / ".join(f"{w:g}" for w in DUE[size].get(name, ())) or "–"
        lines.append(
            f"| {NAMED[name]} | {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) "
            f"| {wanted} |"
        )
    peaks = case["peak_bytes"]
    eager = peaks["ours"] / min(peaks[n] for n in peaks if n in ("timm", "timm channels-last"))
    least = peaks["ours"] / min(peaks[n] for n in peaks if n.startswith("timm"))
    lines += [
        "",
        f"Peak memory is {eager:.2f} of timm's, {least:.2f} of its least, compiled form (at most "
        f"{MEMORY_DUE:g} is wanted). The floor: {floor['flops'] / 1e9:.1f} Gflop at "
        f"{floor['gflop_per_second']:.0f} Gflop/s take {1e3 * floor['seconds_of_flops']:.0f} ms, "
        f"{floor['bytes'] / 1e9:.2f} GB at {floor['copy_gb_per_second']:.0f} GB/s "
        f"{1e3 * floor['seconds_of_bytes']:.0f} ms.",
    ]
    return lines


def passes(stages: dict[str, Any]) -> list[str]:
    """Each pass over all Ghost modules of a step, beside its floor."""
    lines = [
        f"The passes of all Ghost modules of {stages['model'].replace('x', '×')}, each alone, from "
        "[stages.json](bench/stages.json) (`python tools/stages.py`),",
        f"against {stages['gflop_per_second']:.0f} Gflop/s and "
        f"{stages['copy_gb_per_second']:.0f} GB/s:",
        "",
        "| pass | ms | floor, ms | times the floor |",
        "|---|--:|--:|--:|",
    ]
    for i, name in enumerate(stages["passes"]):
        taken, floor = (
            1e3 * sum(row["modules"] * row[key][i] for row in stages["modules"])
            for key in ("seconds", "floor")
        )
        lines.append(f"| {name} | {taken:.0f} | {floor:.0f} | {taken / floor:.2f} |")
    return [*lines, "", *halved(stages["halving"])]


def halved(rows: list[dict[str, Any]]) -> list[str]:
    """The depthwise convolutions that halve a map, by ours and by torch's kernels."""
    lines = [
        f"The {len(rows)} depthwise convolutions of that network which halve a map, from the "
        "same file; the floor is their bytes:",
        "",
        "| pass | ours, ms | torch, ms | floor, ms |",
        "|---|--:|--:|--:|",
    ]
    for i, name in enumerate(("forward", "backward")):
        each = (1e3 * sum(row[key][i] for row in rows) for key in ("ours", "torch", "floor"))
        lines.append(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in each)} |")
    return lines


def moved() -> list[tuple[str, float, float]]:
    """A Ghost module's name, and the MB that it moves in a step of 32 images: plain, ours."""
    found: list[tuple[str, int, int, bool]] = []
    model = sl.create_model("ghostnet_100").eval()
    for name, module in model.named_modules():
        if isinstance(module, GhostModule):
            module.register_forward_hook(
                lambda m, given, y, name=name: found.append(
                    (name, given[0].numel(), y.numel() // 2, isinstance(m.primary_conv[2], nn.ReLU))
                )
            )
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    each = 32 * 4 / 1e6
    rows = []
    for name, x, half, acts in found:
        plain = PLAIN[0] * x + (PLAIN[1] - ACTIVATIONS * (not acts)) * half
        ours = OURS[0] * x + OURS[1] * half
        rows.append((name.removeprefix("blocks."), each * plain, each * ours))
    return rows


def picture() -> str:
    """Bars, the plain path's behind ours, in colours that either theme shows."""
    rows = moved()
    left, wide, step, top = 110, 560, 17, 46
    scale = wide / max(plain for _, plain, _ in rows)
    height = top + step * len(rows) + 30
    total = [sum(row[i] for row in rows) / 1e3 for i in (1, 2)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 {height}" font-size="11" '
        'font-family="sans-serif" role="img">',
        "<title>Bytes that each Ghost module moves in a training step</title>",
        "<style>text{fill:#57606a}.a{fill:#d0814f}.b{fill:#2f7fb8}"
        "@media(prefers-color-scheme:dark){text{fill:#a8b1ba}}</style>",
        f'<rect class="a" x="{left}" y="8" width="12" height="12"/><text x="{left + 18}" y="18">'
        f"layer by layer: {total[0]:.1f} GB</text>",
        f'<rect class="b" x="{left + 220}" y="8" width="12" height="12"/>'
        f'<text x="{left + 238}" y="18">one operation: {total[1]:.1f} GB</text>',
        f'<text x="{left}" y="38">MB moved by each Ghost module of GhostNet 1.0×, 32 images of '
        "224×224, forward and backward</text>",
    ]
    for i, (name, plain, ours) in enumerate(rows):
        y = top + step * i
        parts += [
            f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="a" x="{left}" y="{y}" width="{scale * plain:.1f}" height="13"/>',
            f'<rect class="b" x="{left}" y="{y + 3}" width="{scale * ours:.1f}" height="7"/>',
            f'<text x="{left + scale * plain + 4:.1f}" y="{y + 11}">'
            f"{plain:.0f} → {ours:.0f}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
