"""What `spiritlevel eval` found: a record, and the record as a reader sees it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from spiritlevel.catalogue import say

if TYPE_CHECKING:
    from spiritlevel.data import Preprocessing
    from spiritlevel.train import Evaluation

__all__ = ["print_evaluation", "record"]

_MOST = 20
"""Classes up to which the confusion matrix is printed."""


def record(
    running: Evaluation, batch: Evaluation | None, *, fed: Preprocessing, batch_size: int
) -> dict[str, Any]:
    """Ready for JSON; None is what is not a number, as the recall of a class without images."""
    told = _whole(running)
    told["classes"] = [
        {"name": name, **row} for name, row in zip(fed.classes, _rows(running), strict=True)
    ]
    told["confused"] = [
        {"class": fed.classes[row], "answer": fed.classes[column], "images": images}
        for row, column, images in running.confused()
    ]
    told["confusion"] = running.confusion.tolist()
    told["batch_statistics"] = None
    if batch is not None:
        told["batch_statistics"] = {
            "batch_size": batch_size,
            **_whole(batch),
            "apart": _apart(running.interval, batch.interval),
        }
    told["preprocessing"] = fed.to_dict()
    return told


def _whole(found: Evaluation) -> dict[str, Any]:
    return {
        "images": found.count,
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "loss": _number(found.loss),
        "not_finite": found.not_finite,
    }


def _rows(found: Evaluation) -> list[dict[str, Any]]:
    from spiritlevel.lent.score import wilson

    rows = []
    right = found.confusion.diagonal()
    for hits, images, recall, precision in zip(
        *map(Tensor.tolist, (right, found.support, found.recall, found.precision)), strict=True
    ):
        interval = list(wilson(hits, images)) if images else None
        rows.append(
            {
                "images": images,
                "right": hits,
                "recall": _number(recall),
                "interval": interval,
                "precision": _number(precision),
            }
        )
    return rows


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] > b[1] or b[0] > a[1]


def print_evaluation(told: dict[str, Any]) -> None:
    """On stdout, at any width."""
    from spiritlevel.cli.tables import console, one_line, print_table

    screen = console()

    def line(key: str, **values: Any) -> None:
        screen.print(say(f"terminal.eval.{key}", **values), soft_wrap=not screen.is_terminal)

    low, high = told["interval"]
    data = one_line(told["data"])
    split = say(f"terminal.eval.splits.{told['split']}")
    line("accuracy", low=low, high=high, data=data, split=split, **_of(told, "accuracy", "images"))
    line("loss", loss=_shown(told["loss"]))
    if told["not_finite"]:
        line("not_finite", count=told["not_finite"])
    screen.print()
    names = [one_line(each["name"], 24) for each in told["classes"]]
    head = [say(f"terminal.eval.{name}") for name in ("class", "images", "recall", "precision")]
    rows = [
        [name, f"{each['images']:,}", _recall(each), _share(each["precision"])]
        for name, each in zip(names, told["classes"], strict=True)
    ]
    print_table(screen, head, rows)
    if told["confused"]:
        screen.print()
        line("confused")
        pairs = [
            [one_line(each["class"], 24), one_line(each["answer"], 24), f"{each['images']:,}"]
            for each in told["confused"]
        ]
        head = [say(f"terminal.eval.{name}") for name in ("class", "taken_for", "images")]
        print_table(screen, head, pairs)
    _print_matrix(told["confusion"], names)
    if told["batch_statistics"] is not None:
        screen.print()
        batch = told["batch_statistics"]
        low, high = batch["interval"]
        line("batch", accuracy=batch["accuracy"], low=low, high=high, size=batch["batch_size"])
        better = batch["accuracy"] > told["accuracy"]
        line("within" if not batch["apart"] else "better" if better else "worse")


def _print_matrix(confusion: list[list[int]], names: list[str]) -> None:
    """Where it fits: a table of it in blocks tells nothing."""
    from rich.cells import cell_len

    from spiritlevel.cli.tables import console, print_table

    screen = console()
    if len(names) > _MOST:
        screen.print()
        screen.print(say("terminal.eval.large"), soft_wrap=not screen.is_terminal)
        return
    head = ["", *map(str, range(len(names)))]
    same = [str(i) for i in range(len(names))] == names
    rows = [
        [name if same else f"{i} {name}", *map(str, row)]
        for i, (name, row) in enumerate(zip(names, confusion, strict=True))
    ]
    widths = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    screen.print()
    if screen.is_terminal and sum(widths) + 2 * len(widths) - 2 > screen.width:
        screen.print(say("terminal.eval.narrow"))
        return
    screen.print(say("terminal.eval.matrix"), soft_wrap=not screen.is_terminal)
    print_table(screen, head, rows)


def _of(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: told[name] for name in names}


def _shown(value: float | None) -> str:
    return say("terminal.eval.none") if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return say("terminal.eval.none") if value is None else f"{value:.1%}"


def _recall(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return _share(None)
    low, high = row["interval"]
    return say("terminal.eval.share", share=row["recall"], low=100 * low, high=100 * high)
