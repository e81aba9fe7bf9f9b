"""`ProbeHandler` in engines of PyTorch-Ignite, beside a loop of one's own."""

import pickle
import re

import pytest
import torch
from plain_loops import (
    Classifier,
    assert_read_alike,
    assert_same_state,
    hooks,
    images,
    net,
    plain,
    run_example,
)
from torch import nn
from torch.nn import functional as F

import spiritlevel as sl
from spiritlevel.errors import UsageError
from spiritlevel.probe.counting import Mode


@pytest.fixture(scope="module", autouse=True)
def _library():
    """Imported here alone: every process of a test run collects this file."""
    global Engine, Events, ProbeHandler
    pytest.importorskip("ignite", reason="ignite is not installed")
    from ignite.engine import Engine, Events

    from spiritlevel.integrations.ignite import ProbeHandler


def batches(size=8):
    x, y = images()
    return list(zip(x.split(size), y.split(size), strict=True))


def engine(model, optimizer=None, *, before=lambda number: None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)

    def update(trainer, batch):
        before(trainer.state.iteration)
        loss = model(*batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Engine(update)


def validating(trainer, model, *, evaluating=True):
    def evaluate(_, batch):
        model.train(not evaluating)
        with torch.no_grad():
            model(batch[0])

    evaluator = Engine(evaluate)

    @trainer.on(Events.EPOCH_COMPLETED)
    def run():
        evaluator.run(batches())
        model.train()

    return trainer


def test_it_reads_what_a_loop_of_ones_own_gives_and_changes_nothing(tmp_path, capsys):
    losses = {}

    def trained(watched):
        model = Classifier()
        trainer = validating(engine(model), model)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda e: losses.setdefault(watched, []).append(e.state.output),
        )
        handler = ProbeHandler(model, every=2, report=tmp_path / "probe.html", check=True)
        if watched:
            handler.attach(trainer)
            handler.attach(trainer)  # is once: it prints once
        trainer.run(batches(), max_epochs=2)
        return model, handler

    model, handler = trained(True)
    without, _ = trained(False)
    assert_same_state(model, without)
    assert losses[True] == losses[False]
    own = Classifier()
    assert_read_alike(handler.probe, plain(own, every=2))
    assert_same_state(model, own)
    assert hooks(model) == 0
    assert "Classifier" in (tmp_path / "probe.html").read_text()
    assert sl.check(model, probe=handler.probe).ok
    assert capsys.readouterr().out.count("Classifier: nothing found; ") == 1
    assert handler.diagnosis.findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("handled", [False, True])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_no_hooks_and_is_whose_it_was(tmp_path, handled, kind):
    def before(number):
        if number == 4:
            raise kind("here")

    model = Classifier()
    trainer = engine(model, before=before)
    told = []
    if handled:
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: told.append(error))
    handler = ProbeHandler(model, every=1, report=tmp_path / "probe.html")
    handler.attach(trainer)
    if handled:
        trainer.run(batches())
        assert [type(error) for error in told] == [kind]
    else:
        with pytest.raises(kind, match="here"):
            trainer.run(batches())
    assert hooks(model) == 0
    assert handler.probe.readings.steps == [0, 1, 2]
    assert (tmp_path / "probe.html").exists()


@pytest.mark.slow
def test_each_run_has_a_probe_and_an_interrupted_one_goes_on():
    model = Classifier()
    trainer = engine(model)
    handler = ProbeHandler(model, every=1)
    handler.attach(trainer)
    trainer.run(batches(), max_epochs=1)
    first = handler.probe

    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), Engine.interrupt)
    trainer.run(batches(), max_epochs=1)
    second = handler.probe
    assert hooks(model) > 0
    stop.remove()
    trainer.run()
    assert handler.probe is second
    assert (first.counts.steps, second.counts.steps, hooks(model)) == (8, 8, 0)

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda e: e.terminate(skip_completed=True)
    )
    trainer.run(batches(), max_epochs=1)
    assert (handler.probe.counts.steps, hooks(model)) == (2, 0)


@pytest.mark.slow
def test_validation_in_train_mode_is_found_and_printed(capsys):
    model = Classifier()
    trainer = validating(engine(model), model, evaluating=False)
    handler = ProbeHandler(model, check=True)
    handler.attach(trainer)
    trainer.run(batches(), max_epochs=2)
    assert [each.rule for each in handler.diagnosis.findings] == ["SL401"]
    assert "16 of 32 passes that wrote" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_skipped_step_of_a_scaler_is_none():
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=2.0**4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(trainer, batch):
        x, y = batch
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss * (float("inf") if trainer.state.iteration == 3 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()

    trainer = Engine(update)
    handler = ProbeHandler(model, optimizer=optimizer, every=1)
    handler.attach(trainer)
    trainer.run(batches())
    counts = handler.probe.counts
    assert (counts.steps, counts.skipped, counts.per_step) == (7, 1, {1: 7})
    assert counts.layers["1"].writes == {Mode(True, True): 8}


@pytest.mark.slow
def test_scalars_go_to_the_logger_of_ignite(tmp_path):
    from ignite.handlers.tensorboard_logger import TensorboardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = Classifier()
    trainer = engine(model)
    with TensorboardLogger(log_dir=str(tmp_path)) as logger:
        handler = ProbeHandler(model, every=2, writer=logger)
        handler.attach(trainer)
        trainer.load_state_dict({"iteration": 8, "max_epochs": 2, "epoch_length": 8})
        trainer.run(batches())
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("z_median/net.1")
    assert [event.step for event in scalars] == [8, 10, 12, 14]  # it goes on where it was
    wanted = handler.probe.readings.of("net.1", "z_median")
    assert [event.value for event in scalars] == pytest.approx(wanted)


@pytest.mark.slow
def test_a_page_that_cannot_be_written_hides_no_error(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()

    def before(number):
        if number == 2:
            folder.rmdir()
            raise ZeroDivisionError("here")

    model = Classifier()
    trainer = engine(model, before=before)
    ProbeHandler(model, report=folder / "probe.html").attach(trainer)
    told = pytest.warns(UserWarning, match="the probe's page was not written: UsageError: ")
    with told, pytest.raises(ZeroDivisionError, match="here"):
        trainer.run(batches())
    assert hooks(model) == 0


@pytest.mark.slow
def test_a_copy_watches_nothing():
    model = Classifier()
    handler = ProbeHandler(model, every=3)

    def copied(number):
        if number == 4:
            copies.append(pickle.loads(pickle.dumps(handler)))  # noqa: S301

    copies = []
    trainer = engine(model, before=copied)
    handler.attach(trainer)
    trainer.run(batches())
    (copy,) = copies
    assert (copy.probe, copy.every) == (None, 3)
    copy.close()  # has nothing to close
    copy.attach(again := engine(copy.model))
    again.run(batches())
    assert (handler.probe.counts.steps, copy.probe.counts.steps) == (8, 8)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 0}, "got every=0; wanted 1 or more steps from sample to sample"),
        ({"writer": True}, "got bool; wanted a writer with add_scalar(tag, value, step)"),
        ({"report": "nowhere/probe.html"}, "got report='nowhere/probe.html'; wanted the file of a"),
    ],
)
def test_what_cannot_be_is_refused_before_the_training(options, text):
    with pytest.raises(UsageError, match=re.escape(text)):
        ProbeHandler(net(), **options)


def test_only_an_engine_is_attached_to():
    with pytest.raises(UsageError, match=r"got list to attach to; wanted the ignite\.engine"):
        ProbeHandler(net()).attach([])


@pytest.mark.parametrize("model", [None, "x", lambda x: x])
def test_only_a_module_is_watched(model):
    text = f"got {type(model).__name__} as the model; wanted the torch.nn.Module that the engine"
    with pytest.raises(UsageError, match=re.escape(text)):
        ProbeHandler(model)


def test_a_second_engine_is_refused_and_the_first_is_read():
    model = Classifier()
    trainer = engine(model)
    handler = ProbeHandler(model)
    handler.attach(trainer)
    with pytest.raises(UsageError, match="got a second engine to attach to; wanted the one"):
        handler.attach(Engine(lambda *_: None))
    trainer.run(batches())
    assert handler.probe.counts.steps == 8


def test_an_engine_that_runs_is_refused_and_another_is_taken():
    model = Classifier()
    handler = ProbeHandler(model)

    def attach(number):
        if number == 2:
            handler.attach(trainer)

    trainer = engine(model, before=attach)
    with pytest.raises(UsageError, match="got an engine that runs already; wanted one whose"):
        trainer.run(batches())
    assert (handler.probe, hooks(model)) == (None, 0)
    handler.attach(later := engine(model))
    later.run(batches())
    assert handler.probe.counts.steps == 8


def test_another_model_than_the_engine_trains_is_told():
    trainer = engine(Classifier())
    ProbeHandler(net()).attach(trainer)
    with pytest.warns(UserWarning, match="got 8 iterations in which the Sequential of this"):
        trainer.run(batches())


def test_who_is_attached_to_a_run_that_was_interrupted_is_told():
    model = Classifier()
    trainer, handler = engine(model), ProbeHandler(model)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), Engine.interrupt)
    trainer.run(batches())
    stop.remove()
    handler.attach(trainer)
    with pytest.warns(UserWarning, match="got 5 iterations of a run that had begun before this"):
        trainer.run()
    assert (handler.probe, hooks(model)) == (None, 0)
    trainer.run(batches())
    assert handler.probe.counts.steps == 8
    trainer.add_event_handler(Events.STARTED, Engine.terminate)
    trainer.run(batches())  # in which nothing runs, and nothing is missed


def test_a_model_whose_parameters_alone_are_used_is_no_other():
    model = nn.Linear(3, 4)
    trainer = Engine(lambda *_: model.weight.square().sum().backward())
    handler = ProbeHandler(model)
    handler.attach(trainer)
    trainer.run(batches())
    assert (handler.probe.counts.forwards.total(), handler.probe.counts.backwards) == (0, 8)


def test_a_training_that_has_not_come_to_a_step_is_no_other_models():
    model = Classifier()
    accumulating = Engine(lambda _, batch: model(*batch)["loss"].backward())
    of_a_part = Engine(torch.no_grad()(lambda _, batch: model.net(batch[0])))
    stopping = Engine(lambda *_: None)
    stopping.add_event_handler(Events.STARTED, Engine.terminate)
    for trainer in (accumulating, of_a_part, stopping):
        handler = ProbeHandler(model)
        handler.attach(trainer)
        trainer.run(batches())
        assert hooks(model) == 0


@pytest.mark.slow
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    run_example("ignite", tmp_path, monkeypatch)
    assert "SmallResNet: " in capsys.readouterr().out
    assert (tmp_path / "ignite.html").stat().st_size > 100_000
