"""`evaluate`, on a network that has learned digits a little, by itself and on two processes."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluated import outcome, trained
from torch import nn
from torch.nn import functional as F

from spiritlevel.errors import UsageError
from spiritlevel.train import Evaluation, evaluate, score


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return trained()


@pytest.fixture(scope="module")
def found(digits):
    model, x, y = digits
    return evaluate(model, x, y, num_classes=10)


def by_hand(model, x, y):
    """Image by image: the confusion matrix and the mean loss."""
    confusion, loss = torch.zeros(10, 10, dtype=torch.int64), 0.0
    model.eval()
    with torch.no_grad():
        for image, label in zip(x, y, strict=True):
            logits = model(image[None])
            confusion[label, logits.argmax()] += 1
            loss += F.cross_entropy(logits.double(), label[None]).item()
    return confusion, loss / len(y)


@pytest.mark.parametrize("size", [1, 7, 250, 10_000])
def test_it_is_what_image_by_image_gives(digits, size):
    model, x, y = digits
    confusion, loss = by_hand(model, x, y)
    told = evaluate(model, x, y, num_classes=10, batch_size=size)
    assert torch.equal(told.confusion, confusion)
    assert told.loss == pytest.approx(loss, rel=1e-6)
    assert (told.count, told.not_finite) == (len(y), 0)
    assert told.accuracy == confusion.diagonal().sum() / len(y) > 0.5  # it has learned


def test_its_shares_and_interval(found):
    matrix = found.confusion.tolist()
    for c in range(10):
        assert found.support[c] == sum(matrix[c])
        assert found.recall[c] == pytest.approx(matrix[c][c] / sum(matrix[c]))
        assert found.precision[c] == pytest.approx(matrix[c][c] / sum(row[c] for row in matrix))
    n, p, z = found.count, found.accuracy, 1.959964
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wilson = ((centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n))
    assert found.interval == pytest.approx(wilson)


def test_what_it_takes_for_another():
    confusion = torch.tensor([[3, 2, 0], [0, 0, 2], [4, 0, 9]])
    found = Evaluation(confusion, torch.tensor([0, 1, 0]), 0.1)
    assert found.confused() == [(2, 0, 4), (0, 1, 2), (1, 2, 2)]
    assert found.confused(1) == [(2, 0, 4)]
    assert (found.count, found.right, found.accuracy) == (21, 12, 12 / 21)
    assert found.support.tolist() == [5, 3, 13]
    assert found.recall.tolist() == [3 / 5, 0.0, 9 / 13]
    assert found.precision.tolist() == [3 / 7, 0.0, 9 / 11]


def test_batch_statistics_are_those_of_training(digits):
    model, x, y = digits
    found = evaluate(model, x, y, num_classes=10, batch_size=50, training=True)
    naive = score(model, x, y, batch_size=50, training=True)
    assert found.accuracy == pytest.approx(naive.accuracy)
    assert found.loss == pytest.approx(naive.loss, rel=1e-6)
    assert found.loss != evaluate(model, x, y, num_classes=10).loss


class Drops(nn.Module):
    """Random in both modes, with a buffer that each pass changes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, nn.Buffer(torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.model(F.dropout(x, 0.1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_model_is_left_as_it_was(digits, training, stopped):
    model, x, y = digits
    model = Drops(model).train()
    model.model.hidden.eval()
    model.model(x[:8]).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [p.grad for p in model.parameters()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    calls = []

    def keep_going():
        calls.append(1)
        if stopped and len(calls) == 2:
            raise OSError("stopped")

    told = outcome(model, x, y, training=training, batch_size=100, keep_going=keep_going)
    assert len(calls) == (2 if stopped else -(-len(y) // 100))
    assert (told == "stopped") is stopped
    assert [module.training for module in model.modules()] == modes
    assert all(a is p.grad for a, p in zip(gradients, model.parameters(), strict=True))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_random_state_of_a_gpu_is_left_as_it_was(digits):
    model, x, y = digits
    random = torch.cuda.get_rng_state()
    evaluate(Drops(copy.deepcopy(model)).cuda(), x, y, num_classes=10)
    assert torch.equal(torch.cuda.get_rng_state(), random)


class Breaks(nn.Module):
    """Answers with these values in the first logit."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, x):
        logits = x.flatten(1)[:, :3].clone()
        logits[: len(self.values), 0] = self.values
        return logits


def test_what_is_not_finite_is_wrong_and_counted():
    x = torch.tensor([[0.0, 1, 2]] * 6)[:, :, None, None]
    y = torch.tensor([0, 1, 0, 2, 2, 1])
    model = Breaks(math.nan, math.nan, math.inf, -math.inf)
    found = evaluate(model, x, y, num_classes=3)
    assert found.unanswered.tolist() == [2, 1, 0]
    assert found.confusion.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert (found.not_finite, found.count, found.accuracy) == (3, 6, 2 / 6)
    assert found.support.tolist() == [2, 2, 2]
    logits = torch.tensor([[-math.inf, 1, 2], [0.0, 1, 2], [0.0, 1, 2]])
    assert found.loss == pytest.approx(F.cross_entropy(logits, y[3:]).item(), rel=1e-6)
    nothing = evaluate(Breaks(*[math.nan] * 6), x, y, num_classes=3)
    assert (nothing.accuracy, nothing.not_finite) == (0.0, 6)
    assert math.isnan(nothing.loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_answers_almost_the_same(digits, found, dtype):
    model, x, y = digits
    low = evaluate(model, x, y, num_classes=10, autocast=dtype)
    assert low.loss != found.loss
    assert low.loss == pytest.approx(found.loss, rel=0.02)
    assert low.accuracy == pytest.approx(found.accuracy, abs=0.02)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y": torch.tensor([0, 10])}, r"got label 10 at row 1; wanted 0 to 9, for 10 classes"),
        ({"y": torch.tensor([-100, 3])}, r"got label -100 at row 0; wanted 0 to 9"),
        ({"y": torch.tensor([1])}, r"got 2 images and 1 labels to evaluate on"),
        ({"x": torch.zeros(0, 1, 8, 8), "y": torch.zeros(0)}, r"got 0 images and 0 labels"),
        ({"batch_size": 0}, r"got batch size 0; wanted 1 or more"),
        (
            {"num_classes": 12},
            r"got \(2, 10\) from the model for 2 images; wanted logits \(2, 12\)",
        ),
        ({"model": nn.Identity()}, r"got \(2, 1, 8, 8\) from the model"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(digits, change, told):
    model, x, y = digits
    given = {"model": model, "x": x[:2], "y": y[:2], "num_classes": 10} | change
    with pytest.raises(UsageError, match=told):
        evaluate(given.pop("model"), given.pop("x"), given.pop("y"), **given)


@pytest.fixture(scope="module")
def two(digits, tmp_path_factory):
    """What each of two processes prints."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("two")
    torch.save(digits, folder / "digits.pt")
    arguments = ("2", folder / "meeting", folder / "digits.pt")
    children = [
        subprocess.Popen(
            [sys.executable, here / "evaluate_on_rank.py", str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=here,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        told = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], told
    return [json.loads(output) for output, _ in told]


@pytest.mark.slow
@pytest.mark.parametrize(("situation", "n"), [("all", None), ("uneven", 101), ("one image", 1)])
def test_two_processes_find_what_one_does(digits, two, situation, n):
    model, x, y = digits
    first, second = (each[situation] for each in two)
    assert first == second  # bit for bit
    confusion, unanswered, loss = outcome(model, x[:n], y[:n])
    assert first[:2] == [confusion, unanswered]  # so no image is counted twice
    assert first[2] == pytest.approx(loss, rel=1e-6)


def test_batch_statistics_of_a_synced_model_are_those_of_each_ranks_own_batches(digits, two):
    """One batch on one rank, two on the other: none may wait for the other's."""
    model, x, y = digits
    batches = [slice(0, 4), slice(4, 7), slice(7, 9)]
    parts = [
        evaluate(model, x[part], y[part], num_classes=10, training=True)  # with plain batch norms
        for part in batches
    ]
    confusion, unanswered, loss = two[0]["batch statistics"]
    assert confusion == sum(each.confusion for each in parts).tolist()
    assert unanswered == [0] * 10
    assert loss == pytest.approx(sum(each.loss * each.count for each in parts) / 9, rel=1e-6)
    assert two[0]["batch statistics"] == two[1]["batch statistics"]


def test_both_stop_where_one_does(two):
    others, its_own = (each["stops"] for each in two)
    assert its_own == "stopped"
    assert others.startswith("got an error on rank 1, which says what it is; all ranks stop")
