"""OpenVINO IR: two files, in float32, with any batch, and nothing sent anywhere."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from spiritlevel.errors import ExportError, UsageError
from spiritlevel.export import openvino, read_metadata
from spiritlevel.export.example import read_example
from spiritlevel.export.metadata import Metadata, Normalization
from spiritlevel.export.place import drafted

META = Metadata(
    classes=("cat", 'a "dog"\n<&>'),
    normalization=Normalization((0.5,), (0.25,), size=8),
    recipe={"folded": 2},
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 2)
    ).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("ir") / "net.xml"
    model = network()
    runtime = openvino.write(model, path, read_example(model, torch.randn(2, 3, 8, 8)), META)
    return model, path, runtime


def test_two_files_that_run_at_any_batch(written):
    model, path, runtime = written
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.bin", "net.xml"]
    assert runtime.precision == "float32"
    assert runtime.name.startswith("OpenVINO 20")
    again = openvino.open_openvino(path, threads=1)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = model(x)
        for each in (runtime, again):
            (found,) = each.run([x])
            assert found.shape == (batch, 2)
            assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_float32_on_disk(written):
    model, path, _ = written
    weights = sum(p.nbytes for p in model.parameters())
    assert path.with_suffix(".bin").stat().st_size >= weights  # not halved to float16


def test_metadata(written):
    found = read_metadata(written[1])
    assert (found.classes, found.normalization, found.recipe) == (
        META.classes,
        META.normalization,
        META.recipe,
    )
    assert found.versions["openvino"].count(".") == 2


def test_bfloat16_is_what_the_processor_has(written):
    model, path, _ = written
    has = "BF16" in openvino.library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has:
        runtime = openvino.open_openvino(path, precision="bfloat16")
    else:
        with pytest.warns(UserWarning, match="has no bfloat16: OpenVINO computes in float32"):
            runtime = openvino.open_openvino(path, precision="bfloat16")
    assert runtime.precision == ("bfloat16" if has else "float32")
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    error = float((runtime.run([x])[0] - expected).abs().max() / expected.abs().max())
    assert (1e-5 < error < 5e-2) if has else (error <= 1e-6)


def test_both_files_or_none(tmp_path):
    class Bad(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    given = read_example(Bad(), torch.randn(2, 3, 3))
    target = tmp_path / "net.xml"
    target.write_text("old"), target.with_suffix(".bin").write_text("old weights")
    with pytest.raises(ExportError), drafted(target) as draft:
        openvino.write(Bad().eval(), draft, given, META)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "net.xml": "old",
        "net.bin": "old weights",
    }


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("no.xml", None, "Could not open the file"), ("bad.xml", "<net>", "Unable to read the model")],
)
def test_files_that_are_none(tmp_path, name, content, why):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=why) as caught:
        openvino.open_openvino(path)
    assert "wanted a whole .xml with its .bin beside it. Export it anew" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_ir_without_its_weights(written, tmp_path):
    lonely = tmp_path / "net.xml"
    lonely.write_bytes(written[1].read_bytes())
    with pytest.raises(UsageError, match="which OpenVINO cannot open"):
        openvino.open_openvino(lonely)


def test_precisions_by_name(written):
    with pytest.raises(UsageError, match="got precision 'int4'; wanted one of: float32, bfloat16"):
        openvino.open_openvino(written[1], precision="int4")


CODE = """
import sys
seen = []
watched = ("socket.", "subprocess.", "os.fork", "os.posix_spawn")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(watched) else None)
from pathlib import Path
import torch
from spiritlevel.export.openvino import library, open_openvino
assert "openvino" not in sys.modules
baseline = len(seen)
runtime = open_openvino(Path(sys.argv[1]))
runtime.run([torch.zeros(1, 3, 8, 8)])
library().save_model(library().Core().read_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)
assert "openvino_telemetry" not in sys.modules
print(seen[baseline:])
"""


def test_nothing_is_sent(written, tmp_path):
    """`import openvino` reports itself, but on a CI machine: here it must not, anywhere."""
    pytest.importorskip("openvino_telemetry")
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    home = tmp_path / "home"  # where the reporter would keep its marks
    home.mkdir()
    words = [sys.executable, "-c", CODE, str(written[1]), str(tmp_path / "again.xml")]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=env | {"HOME": str(home)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert not (home / "intel").exists()


SIGNALLED = """
import faulthandler, os, signal, sys
from pathlib import Path
from spiritlevel.export.openvino import open_openvino
from spiritlevel.export.signals import signal_stack
faulthandler.enable()  # gives this thread a stack for signals, on which Python takes all of its own
caught = []
signal.signal(signal.SIGCHLD, lambda number, _frame: caught.append(number))
before = signal_stack()
models = [open_openvino(Path(sys.argv[1])) for _ in range(3)]
while models:
    del models[0]  # the oldest first: each takes back a stack that the next one stands on
assert signal_stack() == before, (signal_stack(), before)
assert os.waitstatus_to_exitcode(os.system("true")) == 0
signal.raise_signal(signal.SIGCHLD)  # to this thread: the child's may have gone to any
assert signal.SIGCHLD in caught
"""


@pytest.mark.skipif(sys.platform != "linux", reason="stacks of signals are read on Linux alone")
def test_signals_still_reach_a_process_that_has_had_models(written):
    words = [sys.executable, "-c", SIGNALLED, str(written[1])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
