"""How right a network is on images, class by class, on one process or spread over many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from spiritlevel.data import Pixels
from spiritlevel.errors import UsageError
from spiritlevel.lent.guard import undisturbed
from spiritlevel.lent.norms import batch_norms
from spiritlevel.lent.score import output_of, wilson
from spiritlevel.lent.together import ranks, together
from spiritlevel.nn.sync import alone

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network answered to images of C classes."""

    confusion: Tensor
    """int64 (C, C): images of the row's class that it took for the column's."""
    unanswered: Tensor
    """int64 (C,): images of each class to which its logits are no answer, as NaN: they are wrong.

    That is, whose log-sum-exp is not finite, so that no probabilities follow."""
    loss: float
    """Mean cross-entropy in nats of the answered images; NaN without one."""

    @property
    def count(self) -> int:
        return int(self.support.sum())

    @property
    def not_finite(self) -> int:
        """Images without an answer."""
        return int(self.unanswered.sum())

    @property
    def right(self) -> int:
        return int(self.confusion.diagonal().sum())

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson)."""
        return wilson(self.right, self.count)

    @property
    def support(self) -> Tensor:
        """int64 (C,): images of each class."""
        return self.confusion.sum(1) + self.unanswered

    @property
    def recall(self) -> Tensor:
        """float64 (C,): the share of a class's images that were taken for it; NaN without one."""
        return self.confusion.diagonal().double() / self.support

    @property
    def precision(self) -> Tensor:
        """float64 (C,): the share of right ones among a class's answers; NaN without one."""
        return self.confusion.diagonal().double() / self.confusion.sum(0)

    def confused(self, most: int = 5) -> list[tuple[int, int, int]]:
        """(class, answer, images) of the most frequent mistakes, the most frequent first."""
        mistakes = self.confusion - self.confusion.diagonal().diag()
        pairs = mistakes.nonzero().tolist()
        pairs.sort(key=lambda pair: (-int(mistakes[pair[0], pair[1]]), *pair))
        return [(row, column, int(mistakes[row, column])) for row, column in pairs[:most]]


def evaluate(
    model: nn.Module,
    x: Tensor | Pixels,
    y: Tensor,
    *,
    num_classes: int,
    batch_size: int = 250,
    training: bool = False,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    keep_going: Callable[[], object] | None = None,
) -> Evaluation:
    """The model on all of x (N, C, H, W) float32 and y (N,) int64, left as it was.

    `training=True` has the batch norms alone in training mode: they normalise by the statistics of
    each batch, while dropout stays off. Batches are of nearly equal length, at most `batch_size`.
    Each is moved to `device`, by default where the model is, and runs under `autocast`'s dtype
    where one is given. `keep_going` is called after each and may raise to stop.

    In a process group all ranks must call it with all of x and y. Each evaluates a share of its
    own, of lengths that differ by at most one, and all get the sums, by one collective: what is
    raised on one rank (an Exception) is an error on all. Raises UsageError.
    """
    _refuse(x, y, num_classes, batch_size)
    held = next((t for t in (*model.parameters(), *model.buffers())), None)
    place = torch.device(device if device is not None else "cpu" if held is None else held.device)
    rows = _share(len(y))

    def work() -> Tensor:
        found = torch.zeros(num_classes * (num_classes + 1) + 1, dtype=torch.float64)
        with _lent(model, training, place):
            for part in _parts(rows, batch_size):
                with torch.autocast(place.type, autocast) if autocast else nullcontext():
                    output = model(x[part].to(place))
                found += _answers(output, y[part], num_classes)
                if keep_going is not None:
                    keep_going()
        return found

    total = together(work, num_classes * (num_classes + 1) + 1).sum(0)
    counts = total[:-1].round().long().view(num_classes, num_classes + 1)
    answered = int(counts[:, :-1].sum())
    loss = float(total[-1]) / answered if answered else math.nan
    return Evaluation(counts[:, :-1].contiguous(), counts[:, -1].contiguous(), loss)


def _refuse(x: Tensor | Pixels, y: Tensor, num_classes: int, batch_size: int) -> None:
    if len(x) != len(y) or not len(y):
        raise UsageError(
            f"got {len(x)} images and {len(y)} labels to evaluate on; wanted one label an image, "
            "and one image at least"
        )
    if batch_size < 1:
        raise UsageError(f"got batch size {batch_size}; wanted 1 or more")
    wrong = ((y < 0) | (y >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UsageError(
            f"got label {int(y[row])} at row {row}; wanted 0 to {num_classes - 1}, for "
            f"{num_classes} classes. Give the labels of the classes that the model was trained on"
        )


def _share(n: int) -> range:
    """The rows of this rank."""
    rank, count = (dist.get_rank(), ranks()) if ranks() > 1 else (0, 1)
    return range(rank * n // count, (rank + 1) * n // count)


def _parts(rows: range, size: int) -> Iterator[slice]:
    """Of nearly equal length: a single image left over would have no statistics."""
    if not rows:
        return
    for part in torch.tensor(rows).tensor_split(-(-len(rows) // size)):
        yield slice(int(part[0]), int(part[-1]) + 1)


@contextmanager
def _lent(model: nn.Module, training: bool, device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        if device.type == "cuda":  # the CPU's random state is put back by `undisturbed`
            stack.enter_context(torch.random.fork_rng([device]))
        stack.enter_context(undisturbed(model, parameters=training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(alone())  # ranks have unlike many batches, and none waits
        model.eval()
        for norm in batch_norms(model).values() if training else ():
            norm.train()
        yield


def _answers(output: Any, y: Tensor, num_classes: int) -> Tensor:
    """Of one batch, float64: (C, C + 1) counts, the last column without an answer; then the loss.

    Raises UsageError.
    """
    logits = output_of(output)
    if logits is None or logits.shape != (len(y), num_classes):
        got = f"a {type(output).__name__}" if logits is None else f"{tuple(logits.shape)}"
        raise UsageError(
            f"got {got} from the model for {len(y)} images; wanted logits "
            f"{(len(y), num_classes)}, one a class. Give a model of as many classes"
        )
    logits = logits.double().cpu()
    answered = logits.logsumexp(1).isfinite()
    answer = torch.where(answered, logits.argmax(1), num_classes)
    cells = torch.bincount(y * (num_classes + 1) + answer, minlength=num_classes**2 + num_classes)
    loss = F.cross_entropy(logits[answered], y[answered], reduction="sum")
    return torch.cat([cells.double(), loss.view(1)])
