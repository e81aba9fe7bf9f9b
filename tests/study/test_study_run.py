"""A whole study, small, as a user runs it: child processes, real signals, files on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spiritlevel.study import Study
from spiritlevel.study.claims import CLAIMS, STATUSES, rules
from spiritlevel.study.config import PRESETS, Plan
from spiritlevel.study.run import all_cells

COMMAND = [sys.executable, "-m", "spiritlevel"]
SMOKE = ["study", "--preset", "smoke", "--jobs", "2"]


def spiritlevel(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


def results(folder: Path) -> dict[str, dict]:
    """key -> what the cell measured, without how long it took."""
    return {record.key: record.result for record in Study.load(folder).records}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, spiritlevel(*SMOKE, "--out", folder)


def test_it_prints_five_verdicts_four_examples_and_the_page(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if any(s in line for s in STATUSES)]
    verdicts = [line for line in lines if not line.startswith(" ")]  # not those of a network
    examples = re.findall(r"^\([a-d]\) ", done.stdout, re.M)
    assert len(verdicts) == len(CLAIMS) == 5
    assert examples == ["(a) ", "(b) ", "(c) ", "(d) "]
    assert str(folder / "report.html") in done.stdout
    assert 1e6 < (folder / "report.html").stat().st_size < 6e6  # Plotly is inlined


def test_progress_in_a_pipe_is_plain_lines_on_stderr(whole):
    _, done = whole
    lines = done.stderr.splitlines()
    assert 2 <= len(lines) < 30
    assert "\x1b" not in done.stderr + done.stdout
    total = len(all_cells(PRESETS["smoke"]))
    assert f"{total}/{total}" in lines[-2]
    assert lines[-1] == "drawing the page"


def test_every_cell_has_a_record_and_none_failed(whole):
    folder, _ = whole
    study = Study.load(folder)
    assert study.records.done() == {cell.key for cell in all_cells(PRESETS["smoke"])}
    assert not study.records.failed()


def test_plan_rules_data_and_environment_are_written_down(whole):
    folder, _ = whole
    config = json.loads((folder / "config.json").read_text())
    assert Plan.from_json(config["plan"]) == PRESETS["smoke"]
    assert config["rules"] == rules()
    assert {"name", "licence", "origin", "fingerprint"} <= config["data"].keys()
    environment = json.loads((folder / "environment.json").read_text())
    assert {"torch", "python", "processor", "workers", "threads a cell"} <= environment.keys()


def test_ghostnet_is_among_its_cells(whole):
    folder, _ = whole
    norms = Study.load(folder).records.values("train", "norm", network="ghostnet_050")
    assert norms == ["batch", "none"]


def test_report_redraws_the_same_page_from_records_alone(whole, tmp_path):
    folder, _ = whole
    page = tmp_path / "again.html"
    done = spiritlevel("report", folder, "--out", page, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [verdict["claim"] for verdict in told["verdicts"]] == list(CLAIMS)
    assert page.read_bytes() == (folder / "report.html").read_bytes()


def test_a_second_run_does_not_overwrite_the_first(whole):
    folder, _ = whole
    before = (folder / "records.jsonl").read_bytes()
    done = spiritlevel(*SMOKE, "--out", folder)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "records.jsonl").read_bytes() == before


def test_resume_refuses_another_plan(whole):
    folder, _ = whole
    done = spiritlevel("study", "--resume", "--out", folder, "--seed", "4")
    assert done.returncode == 2
    assert "got seed together with resume" in done.stderr


def children(pid: int) -> set[int]:
    """Processes whose parent is `pid`."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def hears_ctrl_c() -> None:
    """Also where the tests run in a shell's background, which has its processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, records: int) -> subprocess.Popen[str]:
    """A run in a process group of its own, once it has written a few records."""
    process = subprocess.Popen(
        [*COMMAND, *SMOKE, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )
    file = folder / "records.jsonl"
    begun = wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= records, 120)
    assert begun
    assert process.poll() is None
    return process


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")


@needs_proc
@pytest.mark.slow  # three runs, a minute
def test_kill_9_and_resume_loses_nothing(whole, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder, records=5)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    assert wait_until(lambda: not alive(workers), 10), "orphaned workers keep computing"

    kept = results(folder)
    total = len(all_cells(PRESETS["smoke"]))
    assert 5 <= len(kept) < total
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"key": "train/torn by the ki')

    done = spiritlevel("study", "--resume", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "torn" in done.stderr
    assert f"{len(kept)} of {total} runs are on disk" in done.stderr
    assert results(folder) == results(whole[0])


@needs_proc
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path, number):
    """Of the whole group; what asks a process to end asks it alone."""
    folder = tmp_path / "stopped"
    process = start(folder, records=1)
    workers = children(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert not (folder / ".images.pt").exists()
    assert f"--resume --out {folder}" in stderr
    assert "Traceback" not in stderr
    assert wait_until(lambda: not alive(workers), 10)


@pytest.mark.browser
def test_the_page_of_a_real_run_draws_every_chart(whole, browser):
    """The story that the study builds, in a real Chromium, on a phone."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((whole[0] / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length > 0")
    page.wait_for_timeout(2000)
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(
            plot => plot.querySelectorAll('.trace, .hm image, .points path').length)"""
    )
    assert len(drawn) >= 15
    assert min(drawn) > 0
    assert faults == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    page.close()
