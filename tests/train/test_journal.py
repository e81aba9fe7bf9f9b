import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spiritlevel.errors import RecordsError
from spiritlevel.train.journal import METRICS, Journal


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def written(folder, *, step=0, epochs=0, until=6):
    journal = Journal(folder, step=step, epochs=epochs)
    for n in range(step + 1, until + 1):
        journal.write("train", n, loss=1.0 / n)
        if n % 2 == 0:
            journal.write("validation", n, epoch=n // 2, accuracy=n / 10)
    journal.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_line_and_an_event_each(tmp_path):
    written(tmp_path)
    assert lines(tmp_path)[:3] == [
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "train", "step": 2, "loss": 0.5},
        {"kind": "validation", "step": 2, "epoch": 1, "accuracy": 0.2},
    ]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("validation/accuracy")[0].value == pytest.approx(0.2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_best_and_last_weights_have_a_curve_each(tmp_path):
    journal = Journal(tmp_path, step=0, epochs=0)
    journal.write("test", 6, weights="best", loss=0.5)
    journal.write("test", 6, weights="last", loss=0.7)
    journal.close()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for name, loss in (("best", 0.5), ("last", 0.7)):
        (found,) = events.Scalars(f"test/{name}/loss")
        assert found.value == pytest.approx(loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_came_after_the_checkpoint_is_written_anew(tmp_path):
    written(tmp_path)
    whole = lines(tmp_path)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "test", "step": 6}\n{"kind": "train", "st')
    written(tmp_path, step=3, epochs=1)
    assert lines(tmp_path) == whole
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_validation_that_was_not_kept_is_written_anew(tmp_path):
    written(tmp_path, until=4)
    Journal(tmp_path, step=4, epochs=1).close()
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "validation"] == [2]


def test_a_full_disk_is_told(tmp_path):
    journal = Journal(tmp_path, step=0, epochs=0)
    journal._file.close()
    journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(RecordsError, match=r"No space left on device while writing .*by --resume"):
        journal.write("train", 1, loss=1.0)
    journal.close()


@pytest.mark.slow
def test_without_tensorboard_there_is_one_warning(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path; from spiritlevel.train.journal import Journal\n"
        f"j = Journal(Path({str(tmp_path)!r}), step=0, epochs=0); j.write('train', 1, loss=1.0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("got no tensorboard") == 1
    assert len(lines(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_begun_anew_has_no_event_twice(tmp_path):
    written(tmp_path)
    written(tmp_path)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_of_events_is_told(tmp_path):
    journal = Journal(tmp_path, step=0, epochs=0)

    class Full:
        def add_scalar(self, *_):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    journal.writer.close()
    journal.writer = Full()
    with pytest.raises(RecordsError, match=r"No space left on device while writing .*events"):
        journal.write("train", 1, loss=1.0)
    journal.close()
