"""`ProbeCallback` in the Trainer of Hugging Face, beside a loop of one's own."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_loops import (
    Classifier,
    assert_read_alike,
    assert_same_state,
    hooks,
    images,
    plain,
    run_example,
)
from torch import nn

import spiritlevel as sl
from spiritlevel.probe.counting import Mode


@pytest.fixture(scope="module", autouse=True)
def _library():
    """Imported here alone: every process of a test run collects this file."""
    global transformers, ProbeCallback
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from spiritlevel.integrations.transformers import ProbeCallback


class Failing(Classifier):
    def __init__(self, kind, at):
        super().__init__()
        self.kind, self.left = kind, at

    def forward(self, pixel_values, labels=None):
        self.left -= self.training
        if self.left < 0:
            raise self.kind("here")
        return super().forward(pixel_values, labels)


def trainer_of(model, folder, *callbacks, **options):
    x, y = images()
    rows = [{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)]
    given = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**(given | options)),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=list(callbacks),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
    )


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_it_reads_what_a_loop_of_ones_own_gives_and_changes_nothing(tmp_path):
    model, callback = Classifier(), ProbeCallback(every=2)
    trainer = trainer_of(model, tmp_path, callback)
    trainer.train()
    without = Classifier()
    other = trainer_of(without, tmp_path)
    other.train()
    assert_same_state(model, without)
    assert losses(trainer) == losses(other)
    assert len(losses(trainer)) == 16
    own = Classifier()
    assert_read_alike(callback.probe, plain(own, every=2))
    assert_same_state(model, own)
    assert callback.probe.optimizer is trainer.optimizer.optimizer  # not accelerate's wrapper
    assert hooks(model) == 0
    assert sl.check(model, probe=callback.probe).ok


@pytest.mark.slow
def test_accumulation_in_bfloat16_with_checkpoints(tmp_path):
    model, callback = Classifier(), ProbeCallback(every=2)
    options = {"gradient_accumulation_steps": 2, "bf16": True, "save_strategy": "epoch"}
    trainer_of(model, tmp_path / "a", callback, **options).train()
    without = Classifier()
    trainer_of(without, tmp_path / "b", **options).train()
    assert_same_state(model, without)
    counts = callback.probe.counts
    assert (counts.steps, counts.skipped, counts.per_step) == (8, 0, {2: 8})
    assert counts.layers["net.1"].writes == {Mode(True, True): 16}
    one, other = (tmp_path / run / "checkpoint-8" for run in "ab")
    name = "model.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()
    assert {each.name for each in one.iterdir()} == {each.name for each in other.iterdir()}
    assert not [each.name for each in one.iterdir() if b"spiritlevel" in each.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_no_hooks_and_the_page_is_written(tmp_path, kind):
    model = Failing(kind, 3)
    callback = ProbeCallback(every=1, report=tmp_path / "probe.html")
    trainer = trainer_of(model, tmp_path, callback)
    with pytest.raises(kind, match="here"):
        trainer.train()
    assert hooks(model) == 0
    assert callback.probe.readings.steps == [0, 1, 2]
    assert (tmp_path / "probe.html").exists()


@pytest.mark.slow
def test_a_callback_that_is_added_later_is_closed_by_hand_or_by_the_next_training(tmp_path):
    model, callback = Failing(ZeroDivisionError, 3), ProbeCallback(every=1)
    trainer = trainer_of(model, tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    first = callback.probe
    assert hooks(model) > 0
    model.left = 100
    trainer.train()
    assert (first.counts.steps, callback.probe.counts.steps, hooks(model)) == (3, 16, 0)


@pytest.mark.slow
def test_each_training_has_a_probe_and_its_scalars_go_on_where_it_was_resumed(
    tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    options = {"report_to": "tensorboard", "save_strategy": "epoch"}
    model, callback = Classifier(), ProbeCallback(every=2)
    trainer_of(model, tmp_path, callback, **options, num_train_epochs=1).train()
    first = callback.probe
    trainer_of(model, tmp_path, callback, **options).train(resume_from_checkpoint=True)
    second = callback.probe
    assert (first.counts.steps, second.counts.steps, hooks(model)) == (8, 8, 0)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    scalars = events.Scalars("grad_norm/net.1")
    assert [event.step for event in scalars] == [0, 2, 4, 6, 8, 10, 12, 14]
    wanted = [*first.readings.of("net.1", "grad_norm"), *second.readings.of("net.1", "grad_norm")]
    assert [event.value for event in scalars] == pytest.approx(wanted)


@pytest.mark.slow
def test_a_frozen_norm_that_drifts_is_found_and_printed(tmp_path, capsys):
    model, callback = Classifier(), ProbeCallback(check=True)
    model.net[1].requires_grad_(False)
    trainer_of(model, tmp_path, callback).train()
    assert [each.rule for each in callback.diagnosis.findings] == ["SL403"]
    assert "16 training passes wrote its running" in capsys.readouterr().out
    assert [each.rule for each in sl.check(model, probe=callback.probe).findings] == ["SL403"]


@pytest.mark.slow
def test_a_copy_watches_nothing(tmp_path):
    model, callback = Classifier(), ProbeCallback(every=3)
    trainer_of(model, tmp_path, callback).train()
    copy = pickle.loads(pickle.dumps(callback))  # noqa: S301
    assert (copy.probe, copy.every) == (None, 3)


@pytest.mark.slow
def test_a_network_of_the_library_itself(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config)
    callback = ProbeCallback(every=4)
    trainer_of(model, tmp_path, callback).train()
    norms = [layer for layer in callback.probe.readings.layers if layer.kind == "norm"]
    assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(callback.probe.counts.layers[each.path].per_step == {1: 16} for each in norms)
    assert callback.probe.unseen == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    run_example("Hugging Face", tmp_path, monkeypatch)
    assert "ResNetForImageClassification: " in capsys.readouterr().out
    assert (tmp_path / "transformers.html").stat().st_size > 100_000


SCRIPT = """
import sys
from pathlib import Path
import torch, transformers
from plain_loops import Classifier, images
from spiritlevel.integrations.transformers import ProbeCallback

model, callback = Classifier(), ProbeCallback(every=1, check=True, report="probe.html")
x, y = images()
rows = [{"pixel_values": a, "labels": b} for a, b in zip(x, y)]
arguments = transformers.TrainingArguments("out", num_train_epochs=1, max_grad_norm=0,
    per_device_train_batch_size=8, use_cpu=True, report_to="tensorboard", save_strategy="no")
trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
trainer.train()
probe, name = callback.probe, type(trainer.model_wrapped).__name__
found = probe.counts.steps, probe.readings.of("net.1", "input_mean"), type(probe.model).__name__
Path(f"rank {torch.distributed.get_rank()}").write_text(repr((name, *found)))
"""


@pytest.mark.slow
def test_of_two_processes_each_reads_its_share_and_one_writes(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, before] if before else [here]))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    done = subprocess.run([*command, "script.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert len(re.findall(r"^Classifier: .* rules asked", told, flags=re.MULTILINE)) == 1
    assert "Classifier" in (tmp_path / "probe.html").read_text()
    first, second = ((tmp_path / f"rank {rank}").read_text() for rank in (0, 1))
    for each in (first, second):
        assert each.startswith("('DistributedDataParallel', 4, [")
        assert each.endswith("'Classifier')")
    assert first != second
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("grad_norm/net.1")] == [0, 1, 2, 3]
