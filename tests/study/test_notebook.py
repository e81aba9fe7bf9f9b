"""A study in a real notebook: a kernel runs its cells, and what it sends is what a reader sees."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from spiritlevel.study import Study
from spiritlevel.study.claims import CLAIMS
from spiritlevel.study.notebook import progress_html, study_html, watch
from spiritlevel.study.records import Record
from spiritlevel.study.run import Progress

CELLS = (
    """\
import spiritlevel as sl
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, in_chans, norm):
        super().__init__()
        make = sl.nn.norm_layer(norm)
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 8, 3, padding=1), make(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), make(8), nn.ReLU(),
        )
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

def build(num_classes, in_chans, norm):
    return Net(num_classes, in_chans, norm)
""",
    'found = sl.study(model=build, preset="smoke", jobs=2, out={out!r})',
    "found",
)


class Reader(NotebookClient):
    """Keeps all that an output has shown, not only the last."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            data = msg["content"]["data"]
            name = msg["content"]["transient"].get("display_id")
            self.shown.append((name, data.get("text/html", "")))
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory) -> Iterator[tuple[Reader, Path]]:
    """Its cells, executed; and the run's folder."""
    folder = tmp_path_factory.mktemp("notebook") / "run"
    cells = [
        nbformat.v4.new_code_cell(cell.replace("{out!r}", repr(str(folder)))) for cell in CELLS
    ]
    reader = Reader(nbformat.v4.new_notebook(cells=cells), timeout=300, kernel_name="python3")
    reader.shown = []
    reader.execute()
    return reader, folder


def text(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


@pytest.mark.slow
def test_progress_is_drawn_in_place(notebook):
    reader, folder = notebook
    names = {name for name, _ in reader.shown}
    assert len(names) == 1, "one output, updated"
    assert None not in names
    assert len(reader.nb.cells[1].outputs) == 1
    shares = [
        float(found[1])
        for _, markup in reader.shown
        if (found := re.search(r'<progress value="([\d.]+)"', markup))
    ]
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    cells = len(Study.load(folder).records)
    assert len(shares) < cells, "not once a record"


@pytest.mark.slow
def test_while_it_runs_the_latest_results_are_shown(notebook):
    reader, _ = notebook
    middle = text(reader.shown[len(reader.shown) // 2][1])
    assert re.search(r"\d+/\d+ runs", middle)
    assert re.search(r"norm (none|batch)", middle)
    assert re.search(r"\d\.\d\ss", middle)


@pytest.mark.slow
def test_it_says_whose_code_it_runs(notebook):
    reader, _ = notebook
    line = CELLS[0].splitlines().index("def build(num_classes, in_chans, norm):") + 1
    told = f"runs your code: build in In[1], line {line} (__main__:build)"
    assert all(told in text(markup) for _, markup in reader.shown)
    assert text(reader.shown[0][1]).strip().endswith("(__main__:build)"), "before it has run"


@pytest.mark.slow
def test_a_function_of_a_cell_is_trained_in_other_processes(notebook):
    _, folder = notebook
    study = Study.load(folder)
    assert study.records.failed() == []
    assert study.config["plan"]["networks"] == ["__main__:build"]


@pytest.mark.slow
def test_at_the_end_there_is_a_table_of_verdicts(notebook):
    reader, folder = notebook
    last = text(reader.shown[-1][1])
    for claim in CLAIMS:
        assert Study.load(folder).verdicts[claim].status in last
    assert "keeps the inputs of layers steady" in last
    assert "(a) 1, 3, 5" in last


@pytest.mark.slow
def test_a_study_shows_itself_as_that_table(notebook):
    reader, folder = notebook
    (output,) = reader.nb.cells[2].outputs
    assert output["data"]["text/html"] == study_html(Study.load(folder))


@pytest.mark.slow
def test_no_markup_of_ours_runs_or_loads_anything(notebook):
    reader, _ = notebook
    for _, markup in reader.shown:
        assert not re.search(r"<(script|img|iframe|link|style)|\son\w+=|javascript:|url\(", markup)


def test_what_comes_from_records_is_text():
    attack = '</td><script>alert("x")</script>'
    settings = {"norm": attack, "seed": 1}
    for record in (
        Record("k", attack, settings, {"final_loss": 0.1234}, None, 1.0),
        Record("k", attack, settings, None, attack, 1.0),
    ):
        markup = progress_html(Progress(Path(attack), 1, 2, 0.5, record), 61.0, [record], [attack])
        assert "<script" not in markup
        assert attack in text(markup).replace("  ", " ") or html.escape(attack) in markup
        assert "1/2 runs, 1:01 left" in markup


def test_a_run_that_diverged_says_so():
    record = Record("k", "sweep", {"lr": 3.0}, {"final_loss": None, "diverged_at": 7}, None, 1.0)
    assert "diverged at step 7" in progress_html(
        Progress(Path("x"), 1, 2, 0.5, record), None, [record], []
    )


def test_a_script_is_no_notebook():
    assert watch(None) is None


def test_ipython_in_a_terminal_is_no_notebook():
    """It has no HTML to show."""
    import subprocess
    import sys

    code = "from spiritlevel.study.notebook import watch; print('watch:', watch(None))"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "watch: None" in done.stdout, done.stderr
