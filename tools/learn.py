"""tools/learn.py: what the records of docs/standard say, into docs/batchnorm.md and its pictures,

and of docs/bench/norms.json what docs/kernels.md quotes.

Between `<!-- NAME -->` and `<!-- end -->` all is written anew; the rest of the page is prose.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from spiritlevel.catalogue import say
from spiritlevel.study import Study
from spiritlevel.study.claims import CLAIMS, Judgement, Part
from spiritlevel.study.claims.judgement import UNASKED, setting
from spiritlevel.study.networks import title
from spiritlevel.study.story import interval_text

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs/batchnorm.md", ROOT / "docs/batchnorm"
KERNELS = ROOT / "docs/kernels.md"
MORE = {
    "stabilises": ("shift_l2",),
    "converges": ("loss_range", "gradient_change", "beta"),
    "gradients": ("activation_none", "activation_batch", "gradient_none", "gradient_batch"),
    "regularises": ("difference", "gap"),
    "decouples": ("cosine_without", "eps", "rate_without"),
}
"""Quantities that are shown beside those that the rule asks for."""
NO_DIFFERENCE = {"regularises": 0.0}
"""Of a headline; 1 for those that are ratios."""
LEFT, WIDE, STEP = 140, 410, 26


def main() -> None:
    study = Study.load(ROOT / "docs/standard")
    PICTURES.mkdir(exist_ok=True)
    for name, verdict in study.verdicts.items():
        (PICTURES / f"{name}.svg").write_text(picture(verdict), encoding="utf-8")
    PAGE.write_text(learned(page(), study), encoding="utf-8")
    KERNELS.write_text(measured(KERNELS.read_text(encoding="utf-8")), encoding="utf-8")


def learned(before: str, study: Study) -> str:
    """docs/batchnorm.md, with what the study found anew."""
    verdicts = {name: found(verdict) for name, verdict in study.verdicts.items()}
    return filled(before, {"summary": summary(study)} | verdicts)


def measured(before: str) -> str:
    """docs/kernels.md, with the ratios of norms.json anew."""
    figures = json.loads((ROOT / "docs/bench/norms.json").read_text(encoding="utf-8"))["figures"]
    lines = [
        "| | eager / ours | eager / ours, channels-last | ours / floor |",
        "|---" + "|--:" * 3 + "|",
    ]
    for each in figures:
        what = f"BN {'+ add ' * each['add']}+ ReLU, {each['mode'].replace('+', ' + ')}"
        ratios = (each["ratios"][name] for name in ("eager", "eager channels-last", "floor"))
        cells = (f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    told = (
        "Two cores, geometric means over eight shapes, with 95 % intervals, from "
        "[norms.json](bench/norms.json); *floor* is that of above:"
    )
    return filled(before, {"layers": "\n".join([told, "", *lines])})


def filled(before: str, written: dict[str, str]) -> str:
    """A page, with each of its marked places written anew."""
    left = dict(written)

    def again(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{left.pop(match[1])}\n<!-- end -->"

    text = re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", again, before, flags=re.S)
    if left:
        raise SystemExit(f"the page has no place for: {', '.join(left)}")
    return text


def summary(study: Study) -> str:
    networks = [title(name) for name in next(iter(study.verdicts.values())).by_network]
    lines = [f"| BN, it is said, | verdict | {' | '.join(networks)} |", "|---" * 5 + "|"]
    for name, verdict in study.verdicts.items():
        cells = " | ".join(one.status for one in verdict.by_network.values())
        said = say(f"terminal.claims.{name}")
        lines.append(f"| [{said}](#{anchor(name)}) | {verdict.status} | {cells} |")
    return "\n".join(lines)


def anchor(claim: str) -> str:
    """Of the claim's heading, as GitHub makes it."""
    found = re.search(rf"^## (.+)\n(?:(?!^## ).*\n)*?<!-- {claim} -->", page(), flags=re.M)
    if found is None:
        raise SystemExit(f"docs/batchnorm.md has no heading over: {claim}")
    return re.sub(r"[^\w\- ]", "", found[1].lower()).replace(" ", "-")


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def found(verdict: Judgement) -> str:
    """The rule, the verdict and what was measured on each network."""
    name, networks = verdict.claim, verdict.by_network
    rule = {key: setting(value) for key, value in CLAIMS[name].RULE.items()}
    done = {"networks": ", ".join(map(title, networks))} | dict(verdict.words)
    verdicts = ", ".join(f"{title(key)}: {one.status}" for key, one in networks.items())
    return "\n".join(
        [
            f"*Measured.* {words(say(f'claims.{name}.measured_on', **done))}",
            "",
            f"*The rule, written down before.* {words(say(f'claims.{name}.rule', **rule))}",
            "",
            f"**Verdict: {verdict.status}** ({verdicts}).",
            "",
            f"![{words(say(verdict.headline.quantity, **verdict.headline.words))}, "
            f"network by network](batchnorm/{name}.svg)",
            "",
            f"| mean (95 % interval over seeds) | {' | '.join(map(title, networks))} |",
            "|---" + "|--:" * len(networks) + "|",
            *rows(verdict),
        ]
    )


def rows(verdict: Judgement) -> Iterator[str]:
    """A quantity, and its figure on each network; in bold where the rule asks for it."""
    table: dict[str, dict[str, Part]] = {}
    asked = set()
    for network, one in verdict.by_network.items():
        for part in one.parts:
            last = part.quantity.rpartition(".")[2]
            if part.holds is not UNASKED or last in MORE[verdict.claim]:
                said = words(say(part.quantity, **part.words))
                table.setdefault(said, {}).setdefault(network, part)
                if part.holds is not UNASKED:
                    asked.add(said)
    for said in sorted(table, key=lambda each: each not in asked):
        figures = (cell(table[said].get(name)) for name in verdict.by_network)
        yield f"| {f'**{said}**' if said in asked else said} | {' | '.join(figures)} |"


def cell(part: Part | None) -> str:
    if part is None or part.value is None:
        return "–"
    within = interval_text(part)
    return part.text if within is None else f"{part.text} ({within})"


def words(sentence: str) -> str:
    """Of the catalogue, whose sentences may carry inline HTML, as Markdown."""
    return re.sub(r"</?em>", "", sentence).replace("|", "\\|")


def picture(verdict: Judgement) -> str:
    """The headline of each network with its interval, beside what no difference would be."""
    none = NO_DIFFERENCE.get(verdict.claim, 1.0)
    heads = {name: one.headline for name, one in verdict.by_network.items()}
    ends = [none]
    for part in heads.values():
        if part.interval is not None:
            ends += [part.interval.low, part.interval.high]
    scale = math.log if none else float
    low, high = (scale(edge) for edge in (min(ends), max(ends)))
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)

    def at(value: float) -> str:
        return f"{LEFT + WIDE * (scale(value) - low) / (high - low):.1f}"

    said = say(verdict.headline.quantity, **verdict.headline.words)
    said, tall = re.sub(r"</?em>", "", said), 40 + STEP * len(heads)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {tall + 22}" font-size="12" '
        'font-family="sans-serif" role="img">',
        f"<title>{escape(said)}</title>",
        "<style>text{fill:#57606a}.i{stroke:#2f7fb8;stroke-width:3}.m{fill:#2f7fb8}"
        ".n{stroke:#8a939c;stroke-dasharray:4 3}"
        "@media(prefers-color-scheme:dark){text{fill:#a8b1ba}}</style>",
        f'<text x="8" y="18" font-weight="bold">{escape(said)}</text>',
        f'<line class="n" x1="{at(none)}" x2="{at(none)}" y1="30" y2="{tall}"/>',
        f'<text x="{at(none)}" y="{tall + 14}" text-anchor="middle">'
        f"{none:g}{'×' if none else ''}: no difference</text>",
    ]
    for i, (name, part) in enumerate(heads.items()):
        y = 44 + STEP * i
        label = f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(title(name))}</text>'
        if part.interval is None or part.value is None:
            parts.append(f'{label}<text x="{LEFT}" y="{y + 4}">not to be told</text>')
            continue
        ends_at = at(part.interval.low), at(part.interval.high)
        parts.append(
            f'{label}<line class="i" x1="{ends_at[0]}" x2="{ends_at[1]}" y1="{y}" y2="{y}"/>'
            f'<circle class="m" cx="{at(part.value)}" cy="{y}" r="5"/>'
            f'<text x="{LEFT + WIDE + 8}" y="{y + 4}">{escape(cell(part))}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
