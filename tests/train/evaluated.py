"""A small network that has learned digits a little, and what `evaluate` says of it."""

from __future__ import annotations

from torch import manual_seed

from spiritlevel.data import load, prepare
from spiritlevel.models import create_model
from spiritlevel.train import evaluate, train


def trained(norm="batch"):
    """With the test images, x (N, 1, 8, 8) and y (N,)."""
    data = prepare(load("digits", image_size=8))
    manual_seed(0)
    model = create_model("mlp", 10, norm, in_chans=1, image_size=8, depth=2, width=16)
    train(model, data.train_x, data.train_y, lr=0.1, steps=30, batch_size=32, seed=0)
    return model, data.test_x[:], data.test_y


def outcome(model, x, y, **options):
    """JSON's own numbers: the confusion matrix, the loss; or the error."""
    try:
        found = evaluate(model, x, y, num_classes=10, **options)
    except (OSError, ValueError) as error:
        return str(error)
    return [found.confusion.tolist(), found.unanswered.tolist(), found.loss]
