from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.errors import RecordsError
from spiritlevel.study.config import PRESETS
from spiritlevel.study.records import (
    Cell,
    Record,
    RecordFile,
    Records,
    finite,
    read_json,
    write_json,
)
from spiritlevel.study.run import all_cells


def record(seed: int = 1, task: str = "train", result=None, error=None, **settings) -> Record:
    cell = Cell(task, {"seed": seed, **settings})
    made = {"final_loss": seed / 7, "loss": [2.3, 0.5]} if result is None else result
    return Record(cell.key, task, dict(cell.settings), None if error else made, error, 0.25, 1)


ONE, TWO, THREE = record(1), record(2), record(3, error="ValueError: made up")
LINES = [(r.to_json() + "\n").encode() for r in (ONE, TWO, THREE)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


def write(path: Path, *records: Record) -> None:
    file = RecordFile.open(path)
    for each in records:
        file.append(each)
    file.close()


# Cells and their keys


def test_a_key_reads_as_the_cell():
    cell = Cell("noise", {"seed": 10, "sizes": (4, 8), "lr": 0.1, "norm": "group:8", "on": False})
    assert cell.key == "noise/lr=0.1,norm=group:8,on=False,seed=10,sizes=4x8"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cells_of_a_study_have_keys_of_their_own(preset):
    cells = all_cells(PRESETS[preset])
    assert len({cell.key for cell in cells}) == len(cells) > 40
    assert len({(c.task, tuple(sorted(c.settings.items()))) for c in cells}) == len(cells)


def test_smoke_runs_every_kind_of_cell_that_the_default_runs():
    """So that a fault of the default's is seen in half a minute, too."""

    def kinds(preset):
        plan = replace(PRESETS[preset], norms=("none", "batch"))
        return {
            (cell.task, name, value if isinstance(value, str) else type(value))
            for cell in all_cells(plan)
            for name, value in cell.settings.items()
        }

    assert kinds("smoke") == kinds("quick")


plain = st.integers(-99, 99) | st.floats(-9, 9) | st.sampled_from(["he", "he*2", "group:8"])
some_settings = st.dictionaries(st.sampled_from("abcdefg"), plain, max_size=4)


@given(some_settings, st.randoms())
def test_a_key_does_not_depend_on_the_order_of_settings(settings, draw):
    items = list(settings.items())
    draw.shuffle(items)
    assert Cell("t", dict(items)).key == Cell("t", settings).key


@given(some_settings, some_settings)
def test_distinct_settings_have_distinct_keys(one, other):
    same = {n: str(v) for n, v in one.items()} == {n: str(v) for n, v in other.items()}
    assert (Cell("t", one).key == Cell("t", other).key) == same
    assert Cell("t", one).key != Cell("u", one).key


def test_a_record_read_back_has_the_key_of_its_cell():
    """Though JSON has lists only and no tuples."""
    cell = Cell("noise", {"sizes": (4, 8), "seed": 1})
    back = Record(**json.loads(Record(cell.key, cell.task, cell.settings, {}).to_json()))
    assert Cell(back.task, back.settings).key == back.key == cell.key


# One record


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_line_is_strict_json(odd):
    made = record(result={"a": odd, "b": [1.5, odd, {"c": (odd, 2)}]}, lr=0.1)
    line = made.to_json()
    assert "\n" not in line
    back = Record(**json.loads(line, parse_constant=pytest.fail))
    assert back.result == {"a": None, "b": [1.5, None, {"c": [None, 2]}]}
    assert back.settings == made.settings


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
nested = st.recursive(
    leaves | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), nested, max_size=3))
def test_what_is_finite_comes_back_as_it_was(result):
    assert Record(**json.loads(record(result=result).to_json())).result == result


def test_finite_leaves_finite_numbers_alone():
    value = {"a": [1, 2.5, True, None, "x"], 3: (1e308, 5e-324)}
    assert finite(value) == {"a": [1, 2.5, True, None, "x"], "3": [1e308, 5e-324]}


# Records in memory


def test_a_later_record_of_a_cell_replaces_an_earlier():
    records = Records([record(1, error="KeyError: x"), record(2)])
    assert records.done() == {record(2).key}
    assert [r.key for r in records.failed()] == [record(1).key]
    records.add(record(1))
    assert records.done() == {record(1).key, record(2).key}
    assert records.failed() == []
    assert len(records) == 2
    assert records.seconds() == pytest.approx(0.5)


def test_select_by_task_and_settings_in_order_of_seed():
    runs = [record(seed, lr=lr) for seed in (3, 1, 2) for lr in (0.1, 1.0)]
    records = Records([*runs, record(4, lr=0.1, error="x"), record(1, task="drift", lr=0.1)])
    assert [r.settings["seed"] for r in records.select("train", lr=0.1)] == [1, 2, 3]
    assert records.select("train", lr=0.1, norm="batch") == []
    assert records.select("none such") == []
    assert records.by_seed("train", lr=1.0).keys() == {1, 2, 3}
    assert records.values("train", "lr") == [0.1, 1.0]
    assert records.values("train", "lr", seed=2) == [0.1, 1.0]
    assert records.values("train", "norm") == []


def test_those_of_a_network_and_those_of_none():
    """A record without a network is of every one."""
    small, large = record(1, network="small"), record(1, network="large")
    single = record(1, task="invariance")
    records = Records([single, small, large])
    assert list(records.of("small")) == [single, small]
    assert list(records.of("large")) == [single, large]
    assert list(records.of("none such")) == [single]
    assert list(records) == [single, small, large]
    assert list(records.of("small").of("large")) == [single]


def test_a_record_is_numbered_by_where_it_stands_in_the_whole_run():
    runs = [
        record(seed, network=network, norm=norm)
        for network in ("small", "large")
        for seed in (3, 1, 2)
        for norm in ("none", "batch")
    ]
    records = Records([record(1, task="depth"), *runs])
    assert [records.number(r) for r in records] == list(range(13))
    assert records.numbers("train", network="small", norm="batch") == [4, 6, 2]  # by seed
    assert records.numbers("train", seed=2) == [5, 6, 11, 12]
    assert records.numbers("none such") == []
    large = records.of("large")
    assert large.numbers("train", norm="none") == [9, 11, 7]
    assert [large.number(r) for r in large] == [0, 7, 8, 9, 10, 11, 12]
    assert large.of("large").numbers("train", norm="none") == [9, 11, 7]


def test_a_record_without_a_result_has_a_number_and_is_not_among_those_read():
    records = Records([record(1), record(2, error="KeyError: x"), record(3)])
    assert records.numbers("train") == [0, 2]
    assert records.number(record(2)) == 1


def test_a_cell_done_again_keeps_its_place():
    records = Records([record(1, error="KeyError: x"), record(2), record(1)])
    assert records.numbers("train") == [0, 1]
    assert [r.settings["seed"] for r in records] == [1, 2]


def test_a_record_that_comes_later_has_a_number_too():
    records = Records([record(1)])
    assert records.numbers("train") == [0]
    records.add(record(2))
    assert records.numbers("train") == [0, 1]


# The file


def test_what_was_appended_is_read_back(path):
    write(path, ONE, TWO)
    write(path, THREE)
    assert path.read_bytes() == b"".join(LINES)
    file = RecordFile.read(path)
    assert list(file.records) == [ONE, TWO, THREE]
    assert file.torn is None


def test_an_appended_record_is_on_the_disk_at_once_and_in_memory(path):
    file = RecordFile.open(path)
    file.append(ONE)
    assert path.read_bytes() == LINES[0]
    assert list(file.records) == [ONE]
    file.close()


def test_no_file_holds_no_records_and_reading_makes_none(path):
    assert len(RecordFile.read(path).records) == 0
    assert not path.exists()


def torn(path: Path, tail: bytes) -> None:
    """After two whole lines, `tail` is noticed, left alone by read, dropped by open, and gone."""
    path.write_bytes(LINES[0] + LINES[1] + tail)
    before = path.stat().st_mtime_ns
    for _ in range(2):
        seen = RecordFile.read(path)
        assert list(seen.records) == [ONE, TWO]
        assert (seen.torn is None) == (tail == b"")
    assert path.read_bytes() == LINES[0] + LINES[1] + tail
    assert path.stat().st_mtime_ns == before
    file = RecordFile.open(path)
    assert list(file.records) == [ONE, TWO]
    assert file.torn == seen.torn
    assert path.read_bytes() == LINES[0] + LINES[1]
    file.append(THREE)
    file.close()
    assert path.read_bytes() == b"".join(LINES)
    assert RecordFile.read(path).torn is None


@pytest.mark.parametrize("cut", range(len(LINES[2])))
def test_a_last_line_cut_anywhere_is_dropped(path, cut):
    torn(path, LINES[2][:cut])


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b'{"key": "train/seed=3", "task"\n', id="half a line"),
        pytest.param(b"\0" * 64, id="zeros"),
        pytest.param(b"\0" * 64 + b"\n", id="a line of zeros"),
        pytest.param(LINES[2][:20] + b"\0" * 512, id="a beginning and zeros"),
        pytest.param(b"\xff\xfe\xfd\n", id="no text"),
        pytest.param(LINES[2][:-1] + b" trailing\n", id="more than a record"),
        pytest.param(b'{"key": "train/seed=3"}\n', id="less than a record"),
        pytest.param(b'{"another": "object"}\n', id="another object"),
        pytest.param(b"[1, 2]\n", id="no object"),
        pytest.param(b"   ", id="blanks"),
        pytest.param(b"   \n", id="a line of blanks"),
        pytest.param(b"\n", id="an empty line"),
    ],
)
def test_a_last_line_that_is_no_record_is_dropped(path, tail):
    torn(path, tail)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\0\0\n", b"\n"], ids=["none", "torn", "zeros", "empty"]
)
def test_a_file_of_nothing_but_a_torn_line(path, content):
    path.write_bytes(content)
    assert (RecordFile.read(path).torn is None) == (content == b"")
    write(path, ONE)
    assert path.read_bytes() == LINES[0]


@pytest.mark.parametrize(
    "broken",
    [b"\n", b"{}\n", b"\0\0\n", LINES[1][:-9] + b"\n"],
    ids=["empty", "no record", "zeros", "torn"],
)
@pytest.mark.parametrize(
    ("number", "end"), [(1, b""), (2, b""), (3, b""), (1, b'{"to'), (3, b'{"to'), (4, b'{"to')]
)
def test_a_broken_line_before_the_last_is_named_and_nothing_is_changed(path, broken, number, end):
    lines = [*LINES]
    lines.insert(number - 1, broken)
    content = b"".join(lines) + end
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=rf"got line {number} of .*records\.jsonl"):
        RecordFile.read(path)
    assert path.read_bytes() == content


def test_a_broken_line_is_named_by_open_too_and_the_file_let_go(path):
    content = LINES[0] + b"{}\n" + LINES[1]
    path.write_bytes(content)
    with pytest.raises(RecordsError, match="got line 2"):
        RecordFile.open(path)
    assert path.read_bytes() == content
    path.write_bytes(LINES[0] + LINES[1])
    write(path, THREE)
    assert path.read_bytes() == b"".join(LINES)


# Other processes and full disks

OPENER = """
import os, sys
from pathlib import Path
from spiritlevel.errors import RecordsError
from spiritlevel.study.records import Record, RecordFile
path = Path(sys.argv[1])
try:
    RecordFile.open(path)
    print("not refused", flush=True)
except RecordsError as error:
    print(error, flush=True)
sys.stdin.readline()
file = RecordFile.open(path)
file.append(Record("k", "t", {}, {}))
print("holds it", flush=True)
sys.stdin.readline()
"""


def test_one_process_at_a_time(path):
    """A second is told so; when the first lets go, or is killed, the next one gets the file."""
    file = RecordFile.open(path)
    file.append(ONE)
    with subprocess.Popen(
        [sys.executable, "-c", OPENER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as other:
        refused = other.stdout.readline()
        assert "to which another process is writing" in refused
        assert str(path) in refused
        assert list(RecordFile.read(path).records) == [ONE]  # reading is free to all
        file.append(TWO)
        file.close()
        other.stdin.write("\n")
        assert other.stdout.readline() == "holds it\n"
        with pytest.raises(RecordsError, match="to which another process is writing"):
            RecordFile.open(path)
        other.kill()
    file = RecordFile.open(path)
    assert [r.key for r in file.records] == [ONE.key, TWO.key, "k"]
    file.close()


FILLER = """
import resource, signal, sys
from pathlib import Path
from spiritlevel.errors import RecordsError
from spiritlevel.study.records import Record, RecordFile
file = RecordFile.open(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    for seed in range(1000):
        file.append(Record(f"t/seed={seed}", "t", {"seed": seed}, {"loss": [seed / 7] * 50}))
except RecordsError as error:
    print(error)
print(len(file.records))
file.close()
print("closed")
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A process that wrote records until the file could not grow."""
    pytest.importorskip("resource", reason="limits of files are POSIX")
    path = tmp_path_factory.mktemp("full") / "records.jsonl"
    command = [sys.executable, "-c", FILLER, path]
    return path, subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_full_disk_is_told(full):
    path, done = full
    message, written, *_ = done.stdout.splitlines()
    assert message.startswith("got File too large while writing")
    assert str(path) in message
    assert "What was written before is safe" in message
    assert int(written) == path.read_bytes().count(b"\n") > 0


def test_a_file_on_a_full_disk_closes(full):
    _, done = full
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("closed\n")


def test_what_was_written_before_a_full_disk_is_whole_and_goes_on(full):
    path, _ = full
    before = path.read_bytes()
    assert not before.endswith(b"\n")  # the disk took a part of the last line
    file = RecordFile.open(path)
    assert file.torn
    count = len(file.records)
    assert [r.settings["seed"] for r in file.records] == list(range(count))
    file.append(ONE)
    file.close()
    whole = before[: before.rfind(b"\n") + 1]
    assert path.read_bytes() == whole + LINES[0]
    assert len(RecordFile.read(path).records) == count + 1


# Whole files


def test_json_is_written_strictly_and_read_back(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"name": "Müller", "rates": (0.1, math.nan), "n": 3})
    assert read_json(path) == {"name": "Müller", "rates": [0.1, None], "n": 3}
    assert "Müller" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_who_reads_the_old_file_is_not_disturbed_by_the_new(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"old": 1})
    with path.open() as reader:
        write_json(path, {"new": list(range(100))})
        assert json.load(reader) == {"old": 1}
    assert read_json(path)["new"][-1] == 99


def test_an_error_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"new": list(range(5000)), "bad": object()})
    assert path.read_bytes() == before
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_an_error_half_way_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "config.json", {"bad": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json; wanted the folder of a run"),
        (b'{"a": ', "which is not JSON"),
        (b"\xff\xfe", "which is not JSON"),
        (b"[1]", "which holds no JSON object"),
    ],
    ids=["missing", "torn", "no text", "no object"],
)
def test_a_file_that_is_no_json_object_is_told(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordsError, match=message):
        read_json(path)


def test_a_file_instead_of_a_folder_is_told(tmp_path):
    (tmp_path / "report.html").write_text("")
    with pytest.raises(RecordsError, match="wanted the folder of a run"):
        read_json(tmp_path / "report.html" / "config.json")


def test_settings_that_hold_commas_and_equals_signs_do_not_collide():
    one, two = Cell("task", {"a": "1,b=2"}), Cell("task", {"a": 1, "b": 2})
    assert one.key == "task/a=1%2Cb%3D2"
    assert one.key != two.key
    assert (
        Cell("task", {"norm": "group:8", "init": "he*0.5"}).key == "task/init=he*0.5,norm=group:8"
    )


def test_each_record_is_synced_before_it_counts(path, monkeypatch):
    file = RecordFile.open(path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.read_bytes()))
    file.append(ONE)
    file.append(TWO)
    file.close()
    assert [content.count(b"\n") for content in synced] == [1, 2]


@pytest.mark.parametrize("odd", ['"result": "x"', '"settings": [1]', '"key": 7'])
def test_a_line_of_the_wrong_kind_is_no_record(path, odd):
    whole = {"key": '"key": "a"', "settings": '"settings": {}', "result": '"result": {}'}
    whole[odd.split('"')[1]] = odd
    path.write_text("{" + ", ".join([*whole.values(), '"task": "t"']) + "}\n" + LINES[0].decode())
    with pytest.raises(RecordsError, match="got line 1"):
        RecordFile.read(path)
