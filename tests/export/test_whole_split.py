"""A trained GhostNet, on all test images: folding and exporting change no prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import spiritlevel as sl
from spiritlevel.data import load, prepare
from spiritlevel.export.compare import TIE
from spiritlevel.train import fit, published_recipe


@pytest.fixture(scope="module")
def trained():
    data = prepare(load("mnist5k"))
    torch.manual_seed(0)
    model = sl.create_model("ghostnet_050", 10, in_chans=1, stem="cifar", drop_rate=0.0)
    recipe = replace(
        published_recipe("ghostnet"),
        lr=0.05,
        epochs=1,
        batch_size=64,
        warmup_epochs=0.2,
        dropout=0.0,
        label_smoothing=0.0,
    )
    fit(model, data.train_x, data.train_y, recipe, seed=0)
    fed = [(data.train_x[i : i + 250], data.train_y[i : i + 250]) for i in range(0, 1000, 250)]
    return sl.recalibrate(model, fed, accuracy=False).eval(), data


@pytest.mark.slow
def test_fold_changes_no_prediction_but_ties(trained):
    model, data = trained
    folded = sl.fold(model, data.test_x[:2])
    with torch.no_grad():
        before, after = model(data.test_x[:]), folded(data.test_x[:])
    right = (before.argmax(1) == data.test_y).double().mean()
    assert len(before) == 1000
    assert right > 0.5  # it has learnt something: logits lie apart
    changed = before.argmax(1) != after.argmax(1)
    first, second = before.topk(2, 1).values.unbind(1)
    assert (first - second)[changed].le(TIE).all()
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


@pytest.mark.slow
def test_an_onnx_file_changes_no_prediction_but_ties(trained, tmp_path):
    model, data = trained
    batches = [(data.test_x[i : i + 100], data.test_y[i : i + 100]) for i in range(0, 1000, 100)]
    report = sl.export(model, tmp_path / "net.onnx", data.test_x[:1], batches=batches)
    assert report.samples == 1000
    assert all(each.tie and each.gap <= TIE for each in report.differs)
    assert report.accuracy_file == pytest.approx(
        report.accuracy_model, abs=len(report.differs) / 1000
    )
    assert report.left == ()
