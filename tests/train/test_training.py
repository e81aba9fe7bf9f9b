"""Runs in their folders, on one process. Killed ones are in tests/cli/test_train_command.py."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import spiritlevel as sl
from spiritlevel.data import load
from spiritlevel.data.preprocessing import Preprocessing
from spiritlevel.errors import RecordsError, TrainingError, UsageError
from spiritlevel.models import load_weights, read_metadata
from spiritlevel.train import Recipe, learning_rate
from spiritlevel.train.config import Config
from spiritlevel.train.group import Group
from spiritlevel.train.progress import Stopped
from spiritlevel.train.start import run
from spiritlevel.train.training import Training

RECIPE = Recipe(
    lr=0.05, epochs=2, batch_size=256, nesterov=True, ema_decay=0.9, label_smoothing=0.1
)
CONFIG = Config(
    "small_vgg", "digits", RECIPE, image_size=16, save_every=1e9, check=False, augment="crop"
)


class Dropping(torch.nn.Module):
    """Draws from each of the generators that a run has to keep."""

    def forward(self, x):
        import random

        import numpy as np

        scale = 1 + 0.1 * (random.random() + np.random.rand())
        return torch.nn.functional.dropout(x, 0.3, self.training) * scale


def dropping(config, images):
    model = sl.create_model("small_vgg", len(images.classes), config.norm, in_chans=images.channels)
    return torch.nn.Sequential(model, Dropping()).train()


def weights(folder, name="last"):
    return load_file(folder / f"{name}.safetensors")


def alike(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def lines(folder, *names):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(name) for name in ("kind", "step", *names)] for line in found]


class Killed(Exception):
    pass


def killed_at(step):
    """As `kill -9` does: nothing more is done, wherever the run is."""

    def tell(progress):
        if progress.note is None and progress.step == step:
            raise Killed

    return tell


def at_the_start(folder, config=CONFIG):
    """A run before its first update."""
    return Training(config, folder, Group())


def stopped_after(calls):
    left = iter(range(calls))
    return lambda: 0 if next(left, None) is not None else 15


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
    config = replace(CONFIG, save_every=0.0)
    run(config, tmp_path / "whole", build=dropping)
    for step in (1, 3, 5, 6, 9):  # 5 updates an epoch
        folder = tmp_path / str(step)
        with pytest.raises(Killed):
            run(config, folder, build=dropping, tell=killed_at(step))
        run(config, folder, resume=True, build=dropping)
        for name in ("last", "best"):
            assert alike(weights(folder, name), weights(tmp_path / "whole", name)), step
        told = ("loss", "accuracy", "learning_rate", "gradient_norm", "epoch")
        assert lines(folder, *told) == lines(tmp_path / "whole", *told)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_first(tmp_path):
    run(CONFIG, tmp_path / "whole")
    for calls in (0, 2, 5, 7):
        folder = tmp_path / str(calls)
        with pytest.raises(Stopped) as stopped:
            run(CONFIG, folder, stop=stopped_after(calls))
        # Of the sixth call on, which is in the validation, the seventh is after the sixth update.
        assert (stopped.value.number, stopped.value.step) == (15, {0: 1, 2: 3, 5: 5, 7: 7}[calls])
        (newest,) = sorted(folder.glob("checkpoints/*.pt"))[-1:]
        assert newest.name.startswith(f"{stopped.value.step:08}-")
        run(CONFIG, folder, resume=True)
        assert alike(weights(folder), weights(tmp_path / "whole"))
        assert lines(folder, "loss") == lines(tmp_path / "whole", "loss")


@pytest.mark.slow
def test_a_lost_checkpoint_costs_the_time_since_the_one_before(tmp_path):
    config = replace(CONFIG, save_every=0.0)
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "torn", tell=killed_at(7))
    old, new = sorted((tmp_path / "torn" / "checkpoints").iterdir())
    new.write_bytes(new.read_bytes()[:1000])
    notes = []
    run(config, tmp_path / "torn", resume=True, tell=lambda p: notes.append(p.note))
    assert any(note and note.startswith(f"{new}: got 1,000 bytes that are not") for note in notes)
    assert alike(weights(tmp_path / "torn"), weights(tmp_path / "whole"))
    assert old.name != new.name


def test_the_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    config = replace(CONFIG, save_every=0.0)
    other = replace(config, norm="group:8")
    for name, each in (("own", config), ("other", other)):
        with pytest.raises(Killed):
            run(each, tmp_path / name, tell=killed_at(4))
    (theirs,) = sorted((tmp_path / "other" / "checkpoints").iterdir())[-1:]
    foreign = tmp_path / "own" / "checkpoints" / theirs.name.replace("00000003", "00000008")
    foreign.write_bytes(theirs.read_bytes())
    notes = []
    run(config, tmp_path / "own", resume=True, tell=lambda p: notes.append(p.note))
    told = next(note for note in notes if note)
    why = "got the checkpoint of another run: norm = 'group:8', not 'batch'"
    assert told == f"{foreign}: {why}"
    assert foreign.with_name(f"{foreign.name}.refused").exists()


def test_images_that_changed_are_no_run_to_go_on_with(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, stop=stopped_after(1))
    from spiritlevel.train import sets

    fewer = load("digits", seed=1, image_size=16)
    monkeypatch.setattr(sets, "load", lambda *_args, **_kwargs: fewer)
    with pytest.raises(RecordsError, match="none can be gone on from"):
        run(CONFIG, tmp_path, resume=True)


def test_what_a_run_leaves(tmp_path):
    outcome = run(replace(CONFIG, check=True, probe=2), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == outcome.result
    assert result["steps"] == 10
    assert result["images"] == {"train": 1295, "validation": 143}
    assert result["test"]["last"]["images"] == 359
    assert Config.from_dict(_toml(tmp_path)) == replace(CONFIG, check=True, probe=2)
    assert {line[0] for line in lines(tmp_path)} == {"train", "validation", "test"}
    assert (tmp_path / "check.json").read_text() == outcome.diagnosis.to_json()
    assert len(outcome.probe.readings.steps) == 5
    assert "<html" in (tmp_path / "probe.html").read_text()[:200]
    assert list((tmp_path / "events").iterdir())
    told = read_metadata(tmp_path / "best.safetensors")
    assert Recipe.from_dict(told["recipe"]) == RECIPE
    assert Preprocessing.from_dict(told["preprocessing"]).size == 16
    model = sl.create_model(**told["model"])
    load_weights(model, tmp_path / "best.safetensors")


def _toml(folder):
    import tomllib

    return tomllib.loads((folder / "config.toml").read_text())


@pytest.mark.slow
def test_the_probe_changes_no_bit(tmp_path):
    for name, probe in (("with", 2), ("without", 0)):
        run(replace(CONFIG, probe=probe), tmp_path / name)
    assert alike(weights(tmp_path / "with"), weights(tmp_path / "without"))


@pytest.mark.slow
def test_what_is_scored_is_what_is_saved(tmp_path):
    from spiritlevel.train.sets import Sets

    outcome = run(CONFIG, tmp_path)
    sets = Sets.of(CONFIG, torch.device("cpu"))
    told = read_metadata(tmp_path / "last.safetensors")
    for name in ("last", "best"):
        model = sl.create_model(**told["model"]).eval()
        load_weights(model, tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            right = (model(sets.test_x[:]).argmax(1) == sets.test_y).double().mean().item()
        assert outcome.result["test"][name]["accuracy"] == pytest.approx(right)


def test_no_image_is_in_two_sets():
    from spiritlevel.train.sets import Sets

    sets = Sets.of(replace(CONFIG, validation=0.25), torch.device("cpu"))
    assert sorted([*sets.rows.tolist(), *sets.validation.tolist()]) == list(range(len(sets.y)))
    share = len(sets.validation) / len(sets.y)
    assert share == pytest.approx(0.25, abs=0.01)
    counts = torch.bincount(sets.y[sets.validation]).tolist()
    assert max(counts) - min(counts) <= 3
    test = {image.numpy().tobytes() for image in sets.images.test_x}
    assert not test & {image.numpy().tobytes() for image in sets.images.train_x}


def test_the_test_images_are_not_looked_at_before_the_end(tmp_path, monkeypatch):
    from spiritlevel.train import training

    looked = []
    evaluate = training.evaluate

    def watched(model, x, y, **options):
        looked.append(len(y))
        return evaluate(model, x, y, **options)

    monkeypatch.setattr(training, "evaluate", watched)
    run(CONFIG, tmp_path)
    assert looked == [143, 143, 359, 359]


def test_without_validation_the_best_are_the_last(tmp_path):
    outcome = run(replace(CONFIG, validation=0.0), tmp_path)
    assert alike(weights(tmp_path, "best"), weights(tmp_path))
    assert outcome.result["images"] == {"train": 1438, "validation": 0}


def test_a_loss_that_is_nan_names_the_layer(tmp_path):
    class Breaks(torch.nn.Module):
        passes = 0

        def forward(self, x):
            Breaks.passes += self.training and torch.is_grad_enabled()
            return x / (Breaks.passes < 4)

    def build(config, images):
        model = dropping(config, images)
        model[0].stages[1][0].act = torch.nn.Sequential(Breaks(), torch.nn.ReLU())
        return model

    config = replace(CONFIG, save_every=0.0)
    layer = r"0\.stages\.1\.0\.act\.0 \(Breaks\), whose input is finite and whose output is not"
    with pytest.raises(TrainingError, match=f"got loss nan in step 4 .*is {layer}.*smaller --lr"):
        run(config, tmp_path, build=build)
    assert [path.name[:8] for path in sorted(tmp_path.glob("checkpoints/*"))][-1] == "00000003"


class Steep(torch.autograd.Function):
    """Its gradient is infinite."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


class Steeply(torch.nn.Module):
    def forward(self, x):
        return Steep.apply(x)


def steep(config, images):
    return torch.nn.Sequential(dropping(config, images)[0], Steeply())


def test_a_gradient_that_is_infinite_stops_before_the_weights_are(tmp_path):
    with pytest.raises(TrainingError, match=r"got gradient norm nan in step 1 .*the gradient of 0"):
        run(CONFIG, tmp_path, build=steep)


@pytest.mark.slow  # half precision is slow on most CPUs
@pytest.mark.filterwarnings("ignore:batch normalization runs on torch")
def test_in_float16_it_stops_once_no_scale_helps(tmp_path):
    """An update is left out and the scale halved, from 2**16 to 2**-14."""
    long = replace(CONFIG, amp="fp16", recipe=replace(RECIPE, epochs=40))
    with pytest.raises(TrainingError, match=r"got gradient norm nan in step 31 "):
        run(long, tmp_path, build=steep)


@pytest.mark.slow  # half precision is slow on most CPUs
@pytest.mark.filterwarnings("ignore:batch normalization runs on torch")
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns(tmp_path, amp):
    config = replace(CONFIG, amp=amp, recipe=replace(RECIPE, epochs=3))
    run(config, tmp_path)
    losses = [loss for kind, _, loss in lines(tmp_path, "loss") if kind == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert {value.dtype for value in weights(tmp_path).values()} <= {torch.float32, torch.int64}


def test_a_folder_belongs_to_one_run(tmp_path):
    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, stop=stopped_after(0))
    with pytest.raises(RecordsError, match=f"got {tmp_path}, which holds a run already; go on"):
        run(CONFIG, tmp_path)
    other = replace(CONFIG, seed=1)
    with pytest.raises(RecordsError, match=r"\(seed = 0, not 1\); wanted what its config\.toml"):
        run(other, tmp_path, resume=True)

    def second(progress):
        with pytest.raises(RecordsError, match="in which another process trains"):
            run(CONFIG, tmp_path, resume=True)
        raise Killed

    with pytest.raises(Killed):
        run(CONFIG, tmp_path, resume=True, tell=second)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"model": "ghostnet"}, "got model 'ghostnet'"),
        ({"norm": "bitch"}, "got norm 'bitch'"),
        ({"recipe": replace(RECIPE, batch_size=2000)}, "wanted at most 1295"),
        ({"device": "tpu"}, "got device 'tpu'; wanted auto, cpu, cuda"),
        ({"recipe": replace(RECIPE, dropout=0.1)}, "got option 'drop_rate' for small_vgg"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, wrong, told):
    with pytest.raises(UsageError, match=told):
        run(replace(CONFIG, **wrong), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_is_the_recipes_not_the_models(rate, tmp_path):
    config = replace(CONFIG, model="ghostnet_050", recipe=replace(RECIPE, dropout=rate))
    assert at_the_start(tmp_path, config).model.dropout.p == rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_it_learns_the_same(tmp_path):
    for name, compile in (("eager", False), ("compiled", True)):
        run(replace(CONFIG, compile=compile), tmp_path / name)
    eager, compiled = (
        [loss for kind, _, loss in lines(tmp_path / name, "loss") if kind == "train"]
        for name in ("eager", "compiled")
    )
    assert compiled[:5] == pytest.approx(eager[:5], rel=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "eager").keys()


def test_the_journal_tells_what_was(tmp_path):
    outcome = run(CONFIG, tmp_path / "run")
    fresh = at_the_start(tmp_path / "again")
    (part,) = fresh.feed.parts(0)
    logits = fresh.model.train()(part.x)
    smoothing = RECIPE.label_smoothing
    loss = torch.nn.functional.cross_entropy(logits, part.y, label_smoothing=smoothing)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in fresh.model.parameters()]).norm().item()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    told = [json.loads(line) for line in text.splitlines()]
    first = told[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert first["accuracy"] == (logits.argmax(1) == part.y).float().mean().item()
    updates = [line for line in told if line["kind"] == "train"]
    rates = [learning_rate(RECIPE, step, 5) for step in range(10)]
    assert [line["learning_rate"] for line in updates] == pytest.approx(rates)
    assert [line["epoch"] for line in updates] == pytest.approx([n / 5 for n in range(1, 11)])
    took = sum(256 / line["images_per_second"] for line in updates)
    assert outcome.result["seconds"] == pytest.approx(took, abs=0.1)


@pytest.mark.slow
def test_the_best_are_those_of_the_best_epoch(tmp_path):
    config = replace(CONFIG, recipe=replace(RECIPE, epochs=6, ema_decay=0.0, lr=1.0))
    files = {}

    def tell(progress):
        if progress.note:
            files[progress.note.split(":")[0]] = progress.note

    outcome = run(config, tmp_path, tell=tell)
    told = [line[2:] for line in lines(tmp_path, "accuracy", "epoch") if line[0] == "validation"]
    best = max(told, key=lambda line: (line[0], -line[1]))
    assert [outcome.result["best"][name] for name in ("accuracy", "epoch")] == best
    assert len(files) == 6
    assert len({accuracy for accuracy, _ in told}) > 1


def test_the_average_is_what_is_saved(tmp_path):
    training = at_the_start(tmp_path)
    training.learner.average.update_parameters(training.model)
    with torch.no_grad():
        for p in training.model.parameters():
            p.add_(1)
    training._write("last")
    saved = weights(tmp_path)
    assert alike(saved, dict(training.learner.average.module.state_dict()))
    assert not alike(saved, dict(training.model.state_dict()))


@pytest.mark.slow
def test_what_a_killed_process_left_of_the_weights_is_mended(tmp_path):
    """Killed between a checkpoint and the files of weights, or after those of a lost epoch."""
    run(CONFIG, tmp_path / "whole")
    run(CONFIG, tmp_path / "run")
    for name in ("best", "last"):
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    outcome = run(CONFIG, tmp_path / "run", resume=True)
    last = weights(tmp_path / "run")
    assert alike(last, weights(tmp_path / "whole"))
    assert alike(last, weights(tmp_path / "run", "best"))
    assert outcome.result["best"]["epoch"] == 2
    other = tmp_path / "run" / "best.safetensors"
    config = replace(CONFIG, save_every=0.0)
    with pytest.raises(Killed):
        run(config, tmp_path / "late", tell=killed_at(7))
    late = tmp_path / "late" / "best.safetensors"
    late.write_bytes(other.read_bytes())
    notes = []
    outcome = run(config, tmp_path / "late", resume=True, tell=lambda p: notes.append(p.note))
    assert any(note and note.startswith(f"{late} is not of epoch 1: the best is") for note in notes)
    assert outcome.result["best"]["epoch"] == 2


def test_the_state_of_the_loss_scale_is_kept(tmp_path):
    first, second = (at_the_start(tmp_path, replace(CONFIG, amp="fp16")).learner for _ in range(2))
    state = first.state_dict()
    state["scaler"] = {**state["scaler"], "scale": 128.0, "_growth_tracker": 7}
    second.load_state_dict(state, done=3)
    assert second.state_dict()["scaler"] == state["scaler"]


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision_is_what_is_computed_in(tmp_path, amp, dtype):
    training = at_the_start(tmp_path, replace(CONFIG, amp=amp))
    (part,) = training.feed.parts(0)
    few = replace(part, x=part.x[:8], y=part.y[:8])
    assert training.learner.passed(few)[0].dtype == dtype


def test_images_and_kernels_are_channels_last(tmp_path):
    training = at_the_start(tmp_path)
    seen = []
    conv = training.model.stages[1][0].conv
    conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training.learner.gradients(training.feed.parts(0))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()


def test_a_first_update_that_is_refused_leaves_no_run(tmp_path):
    config = replace(CONFIG, recipe=replace(RECIPE, batch_size=1), model="mlp")
    with pytest.raises(UsageError, match=r"more than 1 value per channel.*wanted two or more"):
        run(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    run(replace(config, recipe=RECIPE), tmp_path)


def test_a_run_without_its_configuration_is_not_gone_on_with_unasked(tmp_path):
    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, stop=stopped_after(2))
    (tmp_path / "config.toml").unlink()
    with pytest.raises(RecordsError, match="which holds a run already"):
        run(CONFIG, tmp_path)


@pytest.mark.slow
def test_what_decides_no_number_may_change(tmp_path):
    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, stop=stopped_after(2))
    changed = replace(CONFIG, probe=2, save_every=3.0, device="cpu")
    outcome = run(changed, tmp_path, resume=True)
    assert Config.from_dict(_toml(tmp_path)) == changed
    assert outcome.probe.counts.steps == 7
    assert (tmp_path / "probe-00000003.html").exists()
    again = run(changed, tmp_path, resume=True)
    assert again.result["test"] == outcome.result["test"]
    assert sorted(path.name for path in tmp_path.glob("probe*")) == ["probe-00000003.html"]


@pytest.mark.parametrize("change", ["shape", "order"])
def test_a_model_that_changed_is_not_gone_on_with(tmp_path, change):
    def build(changed):
        def made(config, images):
            width = 6 if changed and change == "shape" else 4
            layers = [torch.nn.Conv2d(1, width, 3), torch.nn.BatchNorm2d(width)]
            model = torch.nn.Module()
            names = ["a", "b"][:: -1 if changed and change == "order" else 1]
            kept = dict(zip(["a", "b"], layers, strict=True))
            for name in names:
                setattr(model, name, kept[name])
            model.head = torch.nn.Linear(width, 10)
            model.forward = lambda x: model.head(model.b(model.a(x)).mean((2, 3)))
            return model

        return made

    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, build=build(False), stop=stopped_after(1))
    notes = []
    with pytest.raises(RecordsError, match="none can be gone on from"):
        run(CONFIG, tmp_path, build=build(True), resume=True, tell=lambda p: notes.append(p.note))
    wanted = "is (4, 1, 3, 3) there, (6, 1, 3, 3) here" if change == "shape" else "another order"
    assert any(note and wanted in note for note in notes)


@pytest.mark.parametrize(
    "where", ["the parent", pytest.param("mixed precision", marks=pytest.mark.slow)]
)
def test_the_layer_is_the_one_that_broke(tmp_path, where):
    class Parent(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            y = self.inner(x)
            return y / 0 * 0 if where == "the parent" else y

    class Large(torch.nn.Module):
        def forward(self, x):
            return (x + 1).half() * 60000 * 2 if x.dtype != torch.float32 else x

    def build(config, images):
        model = dropping(config, images)
        if where == "mixed precision":
            model[0].stages[0].append(Large())
        return torch.nn.Sequential(Parent(model))

    config = CONFIG if where == "the parent" else replace(CONFIG, amp="bf16")
    named = r"0 \(Parent\)" if where == "the parent" else r"\(Large\)"
    with pytest.raises(
        TrainingError, match=rf"the first that is not finite is \S*\s?{named}, whose"
    ):
        run(config, tmp_path, build=build)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events", "best.safetensors", "result.json"])
def test_what_is_no_runs_is_not_written_over(tmp_path, name):
    (tmp_path / name).mkdir() if name == "events" else (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(RecordsError, match=f"which holds {name} and no checkpoint"):
            run(CONFIG, tmp_path, resume=resume)
    assert name == "events" or (tmp_path / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", name}


def test_a_run_that_has_ended_is_not_begun_anew(tmp_path):
    import shutil

    run(replace(CONFIG, recipe=replace(RECIPE, epochs=1)), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(RecordsError, match="and no checkpoint of a run to go on with"):
        run(replace(CONFIG, recipe=replace(RECIPE, epochs=1)), tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_torn_weights_do_not_end_a_run(tmp_path):
    with pytest.raises(Killed):
        run(replace(CONFIG, save_every=0.0), tmp_path, tell=killed_at(7))
    best = tmp_path / "best.safetensors"
    best.write_bytes(best.read_bytes()[:100])
    outcome = run(replace(CONFIG, save_every=0.0), tmp_path, resume=True)
    assert outcome.result["best"]["epoch"] == 2


def test_a_first_update_that_is_interrupted_leaves_no_run(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path, stop=interrupted)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    run(replace(CONFIG, recipe=replace(RECIPE, epochs=1)), tmp_path)
