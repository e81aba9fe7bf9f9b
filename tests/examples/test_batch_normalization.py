"""examples/04_batch_normalization.ipynb: run in a kernel, with its solutions; and as it is kept."""

from __future__ import annotations

import re

import nbformat
import pytest
from example_module import EXAMPLES, loaded
from nbclient import NotebookClient

LESSON = EXAMPLES / "04_batch_normalization.ipynb"
tool = loaded(EXAMPLES.parent / "tools/notebook.py")

SOLUTION = re.compile(
    r"<details><summary>Solution</summary>.*?```python\n(.*?)```.*?</details>", re.DOTALL
)
STRICT = """\
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")  # of its own way to end
"""


def lesson():
    return nbformat.read(LESSON, as_version=4)


def text(cell):
    """All that a cell has shown, without markup."""
    parts = [o.get("text") or o.data.get("text/html") or "" for o in cell.outputs]
    return re.sub(r"<[^>]+>", " ", re.sub(r"<wbr>|\x1b\[[\d;]*m", "", "".join(parts)))


def after(cells, word):
    """What the one cell with `word` in its code has shown."""
    (cell,) = [one for one in cells if one.cell_type == "code" and word in one.source]
    return text(cell)


def test_what_is_kept_was_shown_by_this_code():
    """`python tools/notebook.py` runs it anew."""
    found = lesson()
    nbformat.validate(found)
    assert found.metadata["spiritlevel"]["sources"] == tool.sources(found)
    assert LESSON.stat().st_size < tool.LIMIT
    kept = LESSON.read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|work)/|Traceback", kept)
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_what_the_prose_says_is_what_was_shown():
    cells = lesson().cells
    shown = after(cells, "RATES, SEEDS =")
    for rate in ("0.1", "0.5", "1.0"):
        none, batch = (
            [
                float(n)
                for n in re.search(rf"rate {rate}, {norm}: test accuracy (.*)", shown)[1].split()
            ]
            for norm in ("none ", "batch")
        )
        assert all(b > a for a, b in zip(none, batch, strict=True)), rate
    table = after(cells, "found = sl.study")
    assert re.search(r"keeps the inputs of layers steady.*?inconclusive", table, re.DOTALL)
    assert re.search(r"\s([\d.]+) to \1×", table), "an interval without any width"
    two = re.search(r"of   2: mixed ([\d.]+), sorted ([\d.]+)", after(cells, "by_kind"))
    mixed, sorted_ = two.groups()
    assert float(mixed) > 0.95
    assert float(sorted_) < float(mixed)


def test_its_links_lead_somewhere():
    prose = "\n".join(cell.source for cell in lesson().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\s*\((?!https:)([^)]+)\)", prose.replace("\n", " "))
    assert links
    assert all((LESSON.parent / link.partition("#")[0]).exists() for link in links)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Its cells and, after each, the solutions folded beneath it; a warning is an error."""
    book = lesson()
    cells, solutions = [nbformat.v4.new_code_cell(STRICT)], []
    for cell in book.cells:
        cells.append(cell)
        found = SOLUTION.findall(cell.source) if cell.cell_type == "markdown" else []
        solutions += [nbformat.v4.new_code_cell(code) for code in found]
        cells += solutions[len(solutions) - len(found) :]
    (study,) = [one for one in cells if "found = sl.study" in one.source]
    book.cells = [*cells, nbformat.v4.new_code_cell(study.source)]  # as in class, after a trial
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("lesson"))}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    return cells, solutions


@pytest.mark.slow
def test_it_runs_and_so_does_each_solution(taught):
    cells, solutions = taught
    assert len(solutions) == 5
    assert solutions[1].outputs[0].text.startswith("He start: 0.9")
    assert "0.1 44\n0.001 4603" in solutions[2].outputs[0].text
    ran = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))


@pytest.mark.slow
def test_by_hand_by_the_command_and_by_torch_are_the_same(taught):
    cells, _ = taught
    assert "normalized: [-1.2247, 0.0, 1.2247]" in after(cells, "by_hand = [")
    assert "√(3/2)    1.2247" in after(cells, '"explain"')
    assert float(after(cells, "by_torch =").rpartition(":")[2]) < 1e-5
    assert float(after(cells, "theirs =").rpartition(":")[2]) < 1e-5


@pytest.mark.slow
def test_the_two_modes_are_told_apart(taught):
    cells, _ = taught
    train, evaluate = re.findall(r"differ by up to ([\d.]+)", after(cells, "one = torch.cat"))
    assert float(train) > 0.1
    assert float(evaluate) < 1e-5
    assert after(cells, "a batch of one").count("-> [-1.0, 1.0]") == 2


@pytest.mark.slow
def test_the_planted_bug_is_found_and_cured(taught):
    cells, _ = taught
    before = after(cells, "train_and_look(patient)")
    look, use = map(float, re.findall(r"(?:look|use): +([\d.]+)", before))
    assert look - use > 0.3
    found = after(cells, "diagnosis = sl.check")
    assert {"SL401", "SL301", "SL316"} <= set(re.findall(r"SL\d{3}", found))
    again = after(cells, "sl.recalibrate(patient")
    assert float(re.search(r"in use: +([\d.]+)", again)[1]) > 0.9
    assert "nothing found" in again


@pytest.mark.slow
def test_objects_show_themselves_as_tables(taught):
    cells, _ = taught
    assert "100 steps, 20 of them read (every 5)" in after(cells, "as probe:\n    train(model")
    assert "75 %" not in after(cells, "GhostModule(16")
    assert "BN layers: 80, in Ghost modules: 64" in after(cells, "norms = [")
    verdicts = after(cells, "found = sl.study")
    assert "keeps the inputs of layers steady" in verdicts
    assert verdicts.count("inconclusive") >= 1
