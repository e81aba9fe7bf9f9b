"""Of docs: probe, check, recalibrate, weights, export, predict: code runs; what is named is."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from spiritlevel.cli import main
from spiritlevel.data import Preprocessing, load, prepare
from spiritlevel.doctor.config import settings
from spiritlevel.export import FORMATS
from spiritlevel.export.compare import MOST_LOST, TIE, TOLERANCE
from spiritlevel.lent.feeding import MOST_BYTES
from spiritlevel.models import create_model, read_metadata, save_weights
from spiritlevel.probe.columns import METRICS
from spiritlevel.probe.reading import MOST_SORTED, MOST_VALUES
from spiritlevel.probe.table import MOST_STEPS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "probe.md").read_text(encoding="utf-8")
WEIGHTS = (DOCS / "weights.md").read_text(encoding="utf-8")
EXPORT = (DOCS / "export.md").read_text(encoding="utf-8")
PREDICT = (DOCS / "predict.md").read_text(encoding="utf-8")
CHECK = (DOCS / "check.md").read_text(encoding="utf-8")
RECALIBRATE = (DOCS / "recalibrate.md").read_text(encoding="utf-8")


def run(text, capsys):
    """What all its code says; what a notebook would display is the last of it."""
    given = {"display": lambda value: print(value._repr_html_())}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(code, "example", "exec"), given)
    return capsys.readouterr().out


def test_the_example_of_the_probe_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = run(TEXT, capsys)
    assert "3 steps, 1 read; overhead" in told
    assert "层" in told
    assert (tmp_path / "probe.html").stat().st_size > 100_000


def test_the_example_of_the_check_runs(capsys):
    told = run(CHECK, capsys)
    assert "rules asked" in told
    assert "怎么办" in told


def test_the_example_of_recalibrating_runs(capsys):
    whole, first, *_, furthest = run(RECALIBRATE, capsys).splitlines()
    assert whole.startswith("recalibrated: all layers at once")
    assert "8 batches; accuracy 0." in whole
    assert first.startswith("recalibrated ")
    assert furthest.startswith("('")
    assert f"up to {MOST_BYTES >> 30} GiB" in RECALIBRATE


def test_the_examples_of_weights_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights(create_model("ghostnet_100"), "state_dict_73.98.pth")
    given: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", WEIGHTS, flags=re.DOTALL):
        exec(compile(code, "example", "exec"), given)
    assert "'epochs': 240" in capsys.readouterr().out
    made = create_model(**read_metadata("mine.safetensors")["model"], weights="mine.safetensors")
    assert torch.equal(made.classifier.weight, given["model"].classifier.weight)


def test_the_examples_of_export_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", EXPORT, flags=re.DOTALL):
        exec(compile(code, "example", "exec"), given)
    told = capsys.readouterr().out
    assert "the data     64     359" in told
    assert "('0', '1', '2'" in told
    assert given["report"].ok


def test_the_example_of_predicting_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = load("digits")
    told = Preprocessing.of(prepare(images), images).to_dict()
    model = create_model("small_vgg", 10, in_chans=1, stem="cifar")
    Path("runs/digits").mkdir(parents=True)
    save_weights(model, "runs/digits/best.safetensors", preprocessing=told)
    (code,) = re.findall(r"```python\n(.*?)```", PREDICT, flags=re.DOTALL)
    exec(compile(code, "example", "exec"), {"images": images.test_x[:2]})
    assert capsys.readouterr().out.strip() in images.classes


def test_the_options_of_eval_and_predict_are_options(capsys):
    assert [main([name, "--help"]) for name in ("eval", "predict", "train")] == [0, 0, 0]
    told = capsys.readouterr().out
    for option in set(re.findall(r"(?<!-)--[a-z][a-z-]+", PREDICT)):
        assert option in told, option


def test_what_is_said_of_export_is_so():
    told = " ".join(EXPORT.split())
    assert f"within {TIE:.0e}".replace("e-0", "e-") in told
    assert f"more than {TOLERANCE[torch.float32]:.0e}".replace("e-0", "e-") in told
    assert f"it may cost {100 * MOST_LOST:g} point" in told
    rows = re.findall(r"^\| `(\w+)` \| `(\.\w+)`", EXPORT, flags=re.MULTILINE)
    assert dict(rows) == FORMATS


def test_the_settings_shown_are_settings(tmp_path):
    (toml,) = re.findall(r"```toml\n(.*?)```", CHECK, flags=re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(toml)
    found = settings(tmp_path)
    assert (found.ignore, found.fail_on) == (("SL106",), "warning")


def test_the_options_named_are_options(capsys):
    assert main(["check", "--help"]) == 0
    told = capsys.readouterr().out
    for option in set(re.findall(r"(?<!-)--[a-z][a-z-]+", CHECK)):
        assert option in told, option


def test_each_column_is_explained():
    rows = re.findall(r"^\| (`.*?) \|", TEXT, flags=re.MULTILINE)
    named = {name.strip("`") for row in rows for name in row.split(", ")}
    ends = {name.removeprefix("output_") for name in METRICS if name.startswith("output_")}
    for metric in METRICS:
        shortened = re.sub(r"^(gamma|beta)_(mean|max)$", "…_\\2", metric)
        shortened = shortened.replace("log_var_ratio_worst", "…_worst")
        if metric.startswith("output_"):
            assert metric.removeprefix("output_") in ends
            assert "output_…" in named
        elif metric.startswith("beta_"):
            assert "beta_…" in named
        else:
            assert metric in named or shortened in named, metric


def test_its_numbers_are_the_codes():
    told = " ".join(TEXT.split())
    assert f"At most {MOST_STEPS} sampled steps are kept" in told
    assert f"at most {MOST_SORTED:,} values" in told
    assert f"with about {MOST_VALUES:,} values" in told
    megabytes = 200 * MOST_STEPS * len(METRICS) * 8 / 1e6
    assert f"({megabytes:.0f} MB for 200 layers)" in told
