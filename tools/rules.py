"""tools/rules.py: docs/rules/ from the rules, and from the bugs and twins of tests/doctor.

Each page shows the bug, what `check` says of it, and the cure. cases.json has every bug and twin
with what was found, by spiritlevel and by torch-audit.
"""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/rules"
sys.path[:0] = [str(ROOT / "tests/doctor"), str(ROOT / "tools")]

from outcomes import CASES, Entry, diagnosed, false_alarms, is_hit  # noqa: E402

from spiritlevel.doctor.check import RULES  # noqa: E402
from spiritlevel.doctor.diagnosis import told  # noqa: E402
from spiritlevel.doctor.fixes import FIXES  # noqa: E402
from spiritlevel.doctor.rule import Rule  # noqa: E402

LEFT_OUT = {
    "A pretext task solved through the batch's statistics (facebookresearch/moco#46)": "it is seen "
    "in that task's loss with and without the batch-mates, which only its own code has",
    "Slow batch norms (pytorch/pytorch#52011)": "a time that a checker takes is noise; "
    "`spiritlevel bench norms` measures it",
    "vmap and per-sample gradients through a batch norm (pytorch/pytorch#85533)": "torch raises "
    "by itself, and says what to do",
    "A gap of n/(n-1), of biased and unbiased variance (pytorch/pytorch#19902)": "it is as it "
    "should be, and no rule fires on it",
    "The variance of eval mode's loss from one batch of training to the next, as a share of the "
    "new batch that is too large makes it": "SL101 tells it from the momentum alone",
    "The share of time that synchronised norms take": "a time is noise in a checker, and needs "
    "the cluster; `spiritlevel bench norms` measures a layer",
    "zip(parameters()), load_state_dict(strict=False) and averaging code, as text": "no source "
    "is read: SL211 and SL504 see the buffers that it leaves behind, SL210 the counters that it "
    "averages",
    "Dropout that is on while statistics are taken anew": "nothing of it is left in the model; "
    "SL505 sees frozen norms that were taken anew with the rest",
}
PARTLY = {
    "Counters that are missing from files, or averaged into fractions (pytorch/pytorch#8430, "
    "espnet/espnet#2283)": "SL208 and SL210 read them in the model; `--weights` loads a file "
    "without them, as torch does",
    "Compiled models that differ or are slow (pytorch/pytorch#187444)": "SL502 compares one with "
    "its reference; what it costs is not timed",
    "Several domains in one norm (TransNorm, DSBN)": "SL306 and SL307 see kinds of batches and of "
    "calls; labels of domains within a batch are not asked for",
    "Hangs of synchronised norms (pytorch/pytorch#38174)": "SL314 reads in the loader that they "
    "may come; nothing waits for one",
    "Exported files that train (pytorch/pytorch#75252)": "SL201 and SL202 read the model before "
    "it is exported, not the file",
}


def main() -> None:
    torch.set_num_threads(1)
    if "--rank" in sys.argv:
        return of_rank(*sys.argv[sys.argv.index("--rank") + 1 :])
    for file in (ROOT / "tests/doctor").glob("cases_*.py"):
        text_of(file)  # as it was imported, whatever is written meanwhile
    outcomes = [outcome(entry) for entry in CASES]
    PAGES.mkdir(parents=True, exist_ok=True)
    for old in PAGES.glob("SL*.md"):
        old.unlink()
    for id, rule in sorted(RULES.items()):
        mine = [(e, o) for e, o in zip(CASES, outcomes, strict=True) if e.rule == id]
        (PAGES / f"{id}.md").write_text("\n".join(page(rule, mine)).rstrip() + "\n")
    kept = [{k: v for k, v in each.items() if k != "shown"} for each in outcomes]
    (PAGES / "cases.json").write_text(json.dumps(kept, indent=1) + "\n")
    (PAGES / "README.md").write_text("\n".join(overview(kept)) + "\n")


# ---- running -------------------------------------------------------------------------------------


def outcome(entry: Entry) -> dict[str, Any]:
    """What is found in the bug and in its twin."""
    print(entry.rule, entry.name, file=sys.stderr)
    told_of = {"rule": entry.rule, "case": entry.name, "module": entry.module}
    if entry.ranks > 1:
        return {**told_of, **in_processes(entry), "torch_audit": None}
    from beside import warned

    bug, twin = warned(entry.bug), warned(entry.clean)
    beside = {"bug": bug, "twin": twin, "apart": bool(set(bug) - set(twin))}
    return {**told_of, **of(entry), "torch_audit": beside}


def of(entry: Entry) -> dict[str, Any]:
    bug, twin = diagnosed(entry.bug), diagnosed(entry.clean)
    own = [each for each in bug.findings if each.rule == entry.rule]
    shown = "\n\n".join("\n".join(told(each)) for each in own)
    return {"hit": is_hit(entry, bug), "alarms": false_alarms(entry, twin), "shown": shown}


def in_processes(entry: Entry) -> dict[str, Any]:
    """As `of`, by rank 0 of as many processes as the case wants."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(rank), entry.name, folder],
            )
            for rank in range(entry.ranks)
        ]
        if any(each.wait() for each in ranks):
            raise RuntimeError(f"{entry.name} failed")
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
        return found


def of_rank(rank: str, name: str, folder: str) -> None:
    (entry,) = (entry for entry in CASES if entry.name == name)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=entry.ranks
    )
    found = of(entry)
    torch.distributed.barrier()
    if rank == "0":
        (Path(folder) / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


# ---- writing -------------------------------------------------------------------------------------


def page(rule: Rule, cases: list[tuple[Entry, dict[str, Any]]]) -> Iterator[str]:
    yield f"# {rule.id} {rule.name}\n"
    needs = f"; needs {', '.join(rule.needs)}" if rule.needs else ""
    yield f"**{rule.severity}**{needs}. {rule.summary}\n"
    yield f"{rule.why}\n"
    if rule.id in FIXES:
        yield f"`--fix` and `diagnosis.apply()` do it: {FIXES[rule.id].what}.\n"
    for entry, found in cases:
        yield f"## {entry.name.replace('_', ' ').capitalize()}\n"
        yield "The bug:\n"
        yield f"```python\n{source(entry.bug)}\n```\n"
        yield "The proof, as `check` prints it:\n"
        yield f"```text\n{found['shown']}\n```\n"
        yield "The cure, of which nothing is said:\n"
        yield f"```python\n{source(entry.clean)}\n```\n"
    shared = ", ".join(f"`{name}`" for name in helpers(cases))
    yield f"{shared}: see [case_book.py](../../tests/doctor/case_book.py).\n"
    if rule.threads:
        yield "## Where people met it\n"
        yield from (f"- {link(thread)}" for thread in rule.threads)


def link(thread: str) -> str:
    place, hash, number = thread.partition("#")
    if thread.startswith("http") or not hash:
        return thread
    return f"[{thread}](https://github.com/{place}/issues/{number})"


def source(function: Any) -> str:
    """The function, after whatever else of its file it uses."""
    assert isinstance(function, FunctionType)
    text = text_of(Path(inspect.getsourcefile(function) or ""))
    lines, tree = text.splitlines(), ast.parse(text)
    places = {name: node for node in tree.body for name in defined(node)}
    own = next(n for n in tree.body if inside(n, function.__code__.co_firstlineno))
    used, todo = {own}, [own]
    while todo:
        for name in names(todo.pop()):
            node = places.get(name)
            if node is not None and node not in used:
                used.add(node)
                todo.append(node)
    parts = sorted(used - {own}, key=lambda node: node.lineno)
    return "\n\n".join("\n".join(lines[first(n) - 1 : n.end_lineno]) for n in [*parts, own])


@cache
def text_of(file: Path) -> str:
    return file.read_text()


def first(node: Any) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])


def inside(node: Any, line: int) -> bool:
    return first(node) <= line <= (node.end_lineno or 0)


def defined(node: ast.stmt) -> list[str]:
    """The names it gives a meaning to; a case's own is nobody's helper."""
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return []
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = [name for target in node.targets for name in ast.walk(target)]
        return [name.id for name in targets if isinstance(name, ast.Name)]
    return []


def names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def helpers(cases: list[tuple[Entry, dict[str, Any]]]) -> list[str]:
    """What the sources take from case_book."""
    import case_book

    shared = {name for name in vars(case_book) if callable(vars(case_book)[name])}
    shared &= {"case", "blobs", "small_net", "batches", "train"}
    used = [source(build) for entry, _ in cases for build in (entry.bug, entry.clean)]
    return sorted(name for name in shared if any(f"{name}(" in text for text in used))


def overview(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    yield "# The rules of `spiritlevel check`\n"
    yield (
        "Written by `python tools/rules.py` from the rules and from the bugs and clean twins in "
        "[tests/doctor](../../tests/doctor), which it runs. `spiritlevel rule SL203` prints a "
        "rule; `select`, `ignore` and a baseline choose among them.\n"
    )
    yield "| rule | | gravest | needs | what is wrong |\n|---|---|---|---|---|"
    for id, rule in sorted(RULES.items()):
        needs = ", ".join(rule.needs)
        yield f"| [{id}]({id}.md) | {rule.name} | {rule.severity} | {needs} | {rule.summary} |"
    yield "\n## Hits and false alarms\n"
    yield from table(outcomes)
    yield "\n## What is left out\n"
    for trouble, why in LEFT_OUT.items():
        yield f"- {trouble}: {why}."
    yield "\nIn part:\n"
    for trouble, why in PARTLY.items():
        yield f"- {trouble}: {why}."


def table(outcomes: list[dict[str, Any]]) -> Iterator[str]:
    hits = sum(each["hit"] for each in outcomes)
    alarms = sum(bool(each["alarms"]) for each in outcomes)
    beside = [each["torch_audit"] for each in outcomes if each["torch_audit"] is not None]
    apart, loud = (sum(bool(each[key]) for each in beside) for key in ("apart", "twin"))
    yield (
        f"Of {len(outcomes)} bugs {hits} are found, at the module; {alarms} of as many clean twins "
        f"get a warning or an error. torch-audit 0.3.0, which checks much else beside norms, was "
        f"run on {len(beside)} of the pairs ([cases.json](cases.json)): in {apart} it says "
        f"something of the bug that it does not say of the twin; {loud} of the twins get a warning "
        "or an error. Its hints on speed, TA200 and TA201, are not counted.\n"
    )
    theirs = "torch-audit: told apart | torch-audit: alarms"
    yield f"| rule | bugs | found | alarms at twins | {theirs} |"
    yield "|---|---|---|---|---|---|"
    for id in sorted(RULES):
        mine = [each for each in outcomes if each["rule"] == id]
        theirs = [each["torch_audit"] for each in mine if each["torch_audit"] is not None]
        found = sum(each["hit"] for each in mine)
        alarms = sum(bool(each["alarms"]) for each in mine)
        cells = [sum(bool(each[key]) for each in theirs) for key in ("apart", "twin")]
        shown = " | ".join(map(str, cells)) if theirs else "– | –"
        yield f"| {id} | {len(mine)} | {found} | {alarms} | {shown} |"


if __name__ == "__main__":
    main()
