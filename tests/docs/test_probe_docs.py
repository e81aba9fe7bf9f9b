"""docs/probe.md: its code runs, and it names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from spiritlevel.probe.table import MOST_STEPS
from spiritlevel.probe.watch import METRICS

TEXT = (Path(__file__).parents[2] / "docs/probe.md").read_text(encoding="utf-8")


def test_its_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "probe.md", "exec"), {})
    assert "3 steps, 1 read; overhead" in capsys.readouterr().out
    assert (tmp_path / "probe.html").stat().st_size > 100_000


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
    assert f"At most {MOST_STEPS} sampled steps are kept" in TEXT
