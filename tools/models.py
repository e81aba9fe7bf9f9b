"""tools/models.py: docs/models.md, from the models as they are counted and what is published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from spiritlevel.catalogue import say
from spiritlevel.models import create_model
from spiritlevel.models.counts import Counts
from spiritlevel.models.published import Accuracy, Published
from spiritlevel.models.table import Row, model_table

PAGE = Path(__file__).parents[1] / "docs/models.md"
NAMES = {"ghost_vgg16": "Ghost-VGG-16", "vgg16": "VGG-16", "ghost_resnet50": "Ghost-ResNet-50"}
NAMES |= {"ghost_resnet56": "Ghost-ResNet-56 with d = 3", "ghostnetv3_130": "GhostNetV3 1.3x"}
MEASURED = "ghostnet_100"
"""Of which 141 and 151 million multiply-adds are told."""


def main() -> None:
    PAGE.write_text(page(model_table()))


def page(rows: Sequence[Row]) -> str:
    return "\n".join([*head(), *table(rows), *apart(rows), *question(rows)]) + "\n"


def head() -> Iterator[str]:
    yield "# The models, counted"
    yield ""
    yield (
        "Written by `python tools/models.py`. `spiritlevel models` prints the same for any size, "
        "number of classes and norm;"
    )
    yield (
        "`spiritlevel.models.counts.count(model, image_size)` counts any model, as it is, without "
        "running it on numbers."
    )
    yield ""
    yield (
        "For one image in eval: 224 px and 1000 classes for networks of ImageNet, 32 px and 10 "
        "for VGG-16, ResNet-56 and the small networks."
    )
    yield (
        "Multiply-adds are those of convolutions and linear layers by `torch.utils.flop_counter`, "
        "whose flops are twice those; *with BN* each number"
    )
    yield (
        "that a norm puts out adds one, by the same counter. *Paper* is what papers print: "
        "parameters and multiply-adds in millions, and top-1"
    )
    yield (
        "(top-5) in per cent. GhostNet: Han et al. 2020, "
        "[1911.11907](https://arxiv.org/abs/1911.11907); GhostNetV2: Tang et al. 2022,"
    )
    yield (
        "[2211.12905](https://arxiv.org/abs/2211.12905); GhostNetV3: Liu et al. 2024, "
        "[2404.11202](https://arxiv.org/abs/2404.11202); timm: its own"
    )
    yield "evaluation of the published weights. All are with batch normalization."
    yield ""


# ---- the table -----------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| model | parameters | paper | multiply-adds, M | paper | with BN, M | BN layers "
        "| BN parameters | BN elements an image | accuracy |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    for row in rows:
        counts, told = counted(row), row.published
        cells = (
            made(told),
            f"{counts.parameters:,}",
            number(told.parameters),
            millions(counts.multiply_adds),
            number(told.multiply_adds),
            millions(counts.multiply_adds_with_norms),
            counts.norm_layers,
            f"{counts.norm_parameters:,}",
            f"{counts.norm_elements:,}",
            "; ".join(map(accuracy, told.accuracies)),
        )
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def counted(row: Row) -> Counts:
    assert row.counts is not None, row.refused
    return row.counts


def made(told: Published) -> str:
    options = ", ".join(f"{key}={value}" for key, value in told.options.items())
    name = f"`{told.model}`"
    return f"{name} {options}".rstrip() + (", deployed" if told.deployed else "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def millions(value: int) -> str:
    return f"{value / 1e6:,.2f}"


def accuracy(one: Accuracy) -> str:
    top5 = "" if one.top5 is None else f" ({one.top5})"
    return f"{one.top1}{top5}, {one.source}"


# ---- where ours are not the paper's --------------------------------------------------------------


def apart(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Where our counts are not the paper's"
    yield ""
    models: dict[str, list[str]] = {}
    for row in rows:
        if row.published.apart:
            names = models.setdefault(row.published.apart, [])
            names += [] if NAMES[row.name] in names else [NAMES[row.name]]
    for why, names in models.items():
        yield f"- {', '.join(names)}: {say(f'models.apart.{why}')}."
    yield ""
    yield "Elsewhere they are the paper's, which rounds, at times down."
    yield ""


# ---- 141 or 151 million --------------------------------------------------------------------------


def readings(counts: Counts) -> list[tuple[str, int]]:
    """What the usual counters add to the convolutions of GhostNet 1.0x, and what that gives."""
    own, norms = counts.multiply_adds, counts.norm_elements
    relu, pooled = elementwise()
    return [
        ("convolutions and linear layers: the paper's figure", own),
        ("and 1 for each BN element, y = a x + b: *with BN* above", own + norms),
        ("and 2 for each BN element", own + 2 * norms),
        (
            "and 2 for each BN element, 1 for each ReLU's, 1 for each value that is averaged",
            own + 2 * norms + relu + pooled,
        ),
        ("and 3 for each BN element: subtract, multiply, add", own + 3 * norms),
        ("and 4 for each BN element", own + 4 * norms),
    ]


def elementwise() -> tuple[int, int]:
    """Numbers that activations put out, and that averages over positions take in, by torch's
    counter."""
    aten = torch.ops.aten

    def of_output(*_: Any, out_shape: Any, **__: Any) -> int:
        return torch.Size(out_shape).numel()

    def of_input(shape: Any, *_: Any, **__: Any) -> int:
        return torch.Size(shape).numel()

    with torch.device("meta"):
        model = create_model(MEASURED).eval()
    mapping = {aten.relu: of_output, aten.mean: of_input}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    found = counter.get_flop_counts()["Global"]
    return found[aten.relu], found[aten.mean]


def question(rows: Sequence[Row]) -> Iterator[str]:
    (counts,) = (counted(row) for row in rows if row.name == MEASURED)
    found = readings(counts)
    yield "## 141 or 151 million?"
    yield ""
    yield (
        "GhostNet 1.0x takes 141 million multiply-adds in the paper, and 0.1512 GMac by the "
        "counter of a user who asked why"
    )
    yield (
        "([Efficient-AI-Backbones#55](https://github.com/huawei-noah/Efficient-AI-Backbones/"
        "issues/55)). The answer there is batch normalization,"
    )
    yield "which a deployed model folds into its convolutions. Counted, it is most of the answer:"
    yield ""
    yield "| what is counted | millions |"
    yield "|---|--:|"
    for what, total in found:
        yield f"| {what} | {millions(total)} |"
    yield ""
    own, norms = found[0][1], 2 * counts.norm_elements
    above = found[3][1] - own
    yield (
        f"The fourth line is that 0.1512, by the rules of ptflops: of its {millions(above)} "
        f"million above the paper, {millions(norms)} are BN's, the rest"
    )
    yield (
        "those of activations and pooling. Three operations an element, of BN alone, come near it "
        "by chance; thop counts four. As the one"
    )
    yield (
        f"multiply-add an element that BN is in eval, it adds "
        f"{millions(counts.norm_elements)} million, which is "
        f"{100 * counts.norm_elements / own:.1f} %."
    )


if __name__ == "__main__":
    main()
