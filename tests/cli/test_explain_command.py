"""`spiritlevel explain` as a user runs it: arguments, files, pipes, a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spiritlevel.catalogue import keys
from spiritlevel.cli import explain as command
from spiritlevel.cli import main

ARTICLE = """\
Batch normalization of 3 numbers, step by step

1  The mean: the sum, divided by how many there are
   mean = (1 + 3 + 5) / 3 = 3

2  The difference of each from the mean, and its square
   x   x - mean   (x - mean)²
   1         -2             4
   3          0             0
   5          2             4

3  The variance: the mean of the squares
   variance = (4 + 0 + 4) / 3 = 8/3 ≈ 2.6667

4  The standard deviation: the square root of the variance
   deviation = √variance = √(8/3) ≈ 1.6330

5  Normalized: each difference, divided by the standard deviation
   x     exact   rounded
   1   -√(3/2)   -1.2247
   3         0    0.0000
   5    √(3/2)    1.2247
   Check: the results have mean 0 and variance 1, exactly.

   Why you may read 1.23 where this says 1.2247
"""


@pytest.fixture
def explain(capsys):
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        code = main(["explain", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def child(*arguments, **options):
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "spiritlevel", "explain", *map(str, arguments)],
        capture_output=True,
        timeout=60,
        **options,
    )


def save(folder, array):
    path = folder / "array.npy"
    np.save(path, array)
    return path


class TestNumbers:
    def test_the_article(self, explain):
        code, out, err = explain(1, 3, 5)
        assert (code, err) == (0, "")
        assert out.startswith(ARTICLE)
        assert "With the deviation rounded to 1.63 first, 2 / 1.63 = 1.2270 becomes 1.23" in out
        assert "the variance of the results is 1.0037 instead of 1." in out
        assert "every result 0.00019 % smaller" in out
        assert "unbiased variance = (4 + 0 + 4) / 2 = 4\n" in out
        assert "running mean      = 0.9 * 0 + 0.1 * 3 = 0.3\n" in out
        assert "running variance  = 0.9 * 1 + 0.1 * 4 = 1.3\n" in out

    def test_negative_numbers_are_no_options(self, explain):
        code, out, _ = explain(-1, 2, "-3e2", "-.5")
        assert code == 0
        assert "mean = (-1 + 2 - 300 - 0.5) / 4 = -74.875\n" in out

    def test_scale_and_shift(self, explain):
        _, out, _ = explain(1, 3, 5, "--gamma", -2, "--beta", 1)
        assert "y = -2 * normalized + 1\n" in out
        assert re.search(r"√\(3/2\)   -√6 \+ 1   -1\.4495\n", out)
        assert "mean beta = 1 and variance gamma² times the one above: 4." in out

    def test_eps(self, explain):
        _, out, _ = explain(1, 3, 5, "--eps", 1)
        assert "deviation = √(variance + 1) = √(11/3) ≈ 1.9149\n" in out
        assert "mean 0 and variance 0.7273, short of 1 because of eps." in out

    def test_a_constant(self, explain):
        _, out, _ = explain(2, 2, 2)
        assert "0/0 has no value" in out
        assert "No eps can make a spread" in explain(2, 2, 2, "--eps", 1)[1]

    def test_one_number(self, explain):
        _, out, _ = explain(7)
        assert out.startswith("Batch normalization of one number")
        assert "torch therefore refuses to train on one value per channel" in out

    def test_small_variance_makes_eps_matter(self, explain):
        _, out, _ = explain(0.001, 0.002)
        assert "every result would be 84 % smaller, and their variance 0.024390, not 1." in out

    def test_many_numbers_are_cut_in_the_middle(self, explain):
        _, out, _ = explain(*range(1, 101))
        assert "mean = 5050 / 100 = 50.5\n" in out
        assert out.count("88 more") == 2
        assert "\n         8 " in out
        assert "\n         9 " not in out
        assert "\n        97 " in out

    def test_too_long_fractions_are_told_rounded(self, explain):
        _, out, _ = explain("0.123456789", "9.87654321", "-3.1415926535")
        assert re.search(r"variance = \S.* / 3 ≈ \d+\.\d{4}\n", out)
        assert "exact" not in out.splitlines()[18:21]

    def test_json(self, explain):
        code, out, _ = explain(1, 3, 5, "--json")
        told = json.loads(out)
        assert code == 0
        assert told["normalized"]["results"][0]["exact"] == "-√(3/2)"
        assert told["normalized"]["variance"] == {"exact": "1", "value": 1.0}


class TestArray:
    @pytest.fixture
    def small(self, tmp_path):
        array = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
        return save(tmp_path, array)

    def test_which_numbers_are_averaged(self, explain, small):
        code, out, err = explain(small)
        assert (code, err) == (0, "")
        assert "array, 2 x 3 x 2 x 2 (N x C x H x W)" in out
        assert (
            "over N, H and W. Channels: 3. Values that enter the mean of each: 2 x 2 x 2 = 8" in out
        )
        assert "        0    0   1   2   3  12  13  14  15\n" in out
        assert "        0    7.5000           37.2500             42.5714\n" in out

    def test_running_average(self, explain, small):
        _, out, _ = explain(small, "--momentum", 0.5)
        table = dict(re.findall(r"^ +(\d+|in the end) {2,}(.*)$", out.split("eval()  =")[1], re.M))
        assert list(table) == ["0", "1", "2", "5", "10", "50", "in the end"]
        train = -7.5 / 37.25001**0.5
        assert table["1"].split() == ["3.7500", "21.7857", "-0.8034", f"{train:.4f}"]
        assert table["in the end"].split()[2] == f"{-7.5 / (37.25 * 8 / 7 + 1e-5) ** 0.5:.4f}"
        assert re.search(r"After \d+ steps, eval\(\) gives each value of channel 0", out)
        assert "the unbiased variance is 8/7 of the biased one" in out

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--momentum", 0], "With momentum 0 the running average never moves"),
            (["--momentum", "1e-9"], "After 1,000,000 steps, eval() is still not within 1 %"),
            (["--gamma", 2, "--beta", -1], "eval()  = 2 * (x - running mean) / √("),
        ],
    )
    def test_settings(self, explain, small, arguments, sentence):
        code, out, _ = explain(small, *arguments)
        assert code == 0
        assert sentence in out

    def test_constant_and_lonely_channels(self, explain, tmp_path):
        _, out, _ = explain(save(tmp_path, np.ones((3, 2))), "--eps", 0)
        assert "A channel of equal numbers has no result without eps: 0/0" in out
        assert "In the end this is 0/0, too" in out
        assert "torch refuses to train" in explain(save(tmp_path, np.ones((1, 2))))[1]

    def test_already_normalized_settles_at_once(self, explain, tmp_path):
        _, out, _ = explain(save(tmp_path, np.tile([[1.0], [-1.0]], (500, 1))))
        assert "From the start, eval() gives" in out

    def test_many_channels_and_values(self, explain, tmp_path):
        _, out, _ = explain(save(tmp_path, np.random.default_rng(0).normal(size=(5, 20, 3, 3))))
        assert "Values that enter the mean of each: 5 x 3 x 3 = 45." in out
        assert "8 more" in out
        assert "values that enter" not in out

    def test_json(self, explain, small):
        told = json.loads(explain(small, "--json")[1])
        assert told["channels"][0]["mean"] == 7.5
        assert told["running"][-1]["step"] is None


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([1, "abc", 3], "got 'abc' at position 2, wanted a number such as 3, -0.5 or 1e3"),
            ([1, "--foo"], "got the option --foo, which explain does not have; it has --eps"),
            ([1, "--gama=2"], "got the option --gama, which explain does not have"),
            ([1, "-x"], "got the option -x, which explain does not have"),
            ([1, "-inf"], "got '-inf' at position 2, wanted a finite number"),
            (["nan"], "got 'nan' at position 1, wanted a finite number"),
            (["1,abc"], "got 'abc' at position 2, wanted a number"),
            (["missing.txt"], "got 'missing.txt', wanted numbers such as 1 3 5, or a file"),
            (["."], "got '.', wanted numbers such as 1 3 5, or a file of them: Is a directory"),
            ([1, 2, "--eps", -1], "got eps = -1, wanted 0 or more"),
            ([1, 2, "--gamma", "x"], "got 'x' for --gamma, wanted a number"),
            ([1, 2, "--momentum", 2], "got momentum = 2, wanted 0 to 1"),
            ([""], "got no numbers"),
        ],
    )
    def test_one_line_and_exit_2(self, explain, arguments, message):
        code, out, err = explain(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"spiritlevel: {message}")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.txt", b"", "got no numbers"),
            ("x.txt", b"1 2 x", "got 'x' at position 3"),
            ("x.bin", b"1\0" * 9, "got binary data from"),
            ("x.png", b"\x89PNG\r\n", "got binary data from"),
            ("x.txt", b"1 " * 600_000, "got more than 1,000,000 bytes from"),
            ("x.npy", b"1 3 5", "a .npy file that cannot be used"),
            ("x.npy", b"", "a .npy file that cannot be used"),
        ],
    )
    def test_files(self, explain, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        code, _, err = explain(tmp_path / name)
        assert code == 2
        assert message in err


class TestFiles:
    @pytest.mark.parametrize("content", [b"1 3 5", b"1,3\n5,\n", b"\xef\xbb\xbf1\r\n3\r\n5\r\n"])
    def test_text(self, explain, tmp_path, content):
        (tmp_path / "numbers.txt").write_bytes(content)
        assert explain(tmp_path / "numbers.txt")[1].startswith(ARTICLE)

    def test_a_number_wins_over_a_file_of_that_name(self, explain, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("7").write_text("1 3 5")
        assert explain(7)[1].startswith("Batch normalization of one number")

    def test_an_array_is_known_by_its_first_bytes(self, explain, tmp_path):
        save(tmp_path, np.ones((2, 2))).rename(tmp_path / "array.dat")
        assert "N x C" in explain(tmp_path / "array.dat")[1]


class TestProcess:
    @pytest.mark.parametrize("arguments", [[], ["-"]])
    def test_pipe(self, arguments):
        done = child(*arguments, input=b"1 3 5\n")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode().startswith(ARTICLE)

    def test_no_numbers_at_all(self):
        done = child(stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"spiritlevel: got no numbers, wanted at least one")

    def test_a_pipe_gets_plain_unwrapped_text_in_any_locale(self):
        narrow = os.environ | {"COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
        out = child(1, 3, 5, env=narrow).stdout.decode("utf-8")
        assert out.startswith(ARTICLE)
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) > 80

    def test_torch_stays_out(self):
        code = (
            "import sys; from spiritlevel.cli import main; main(['explain', '1', '3', '5']); "
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)

    def test_a_terminal_gets_colours_and_lines_that_fit(self, tmp_path):
        text = in_terminal(80, save(tmp_path, np.arange(24.0).reshape(2, 3, 2, 2)))
        assert "\x1b[1m" in text
        lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
        assert len(lines) > 40
        assert max(map(len, lines)) <= 80


def in_terminal(columns, *arguments):
    """What the command writes to a terminal of that width."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "spiritlevel", "explain", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    chunks = []
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode()


def test_every_sentence_is_used_and_every_used_one_is_there():
    files = Path(command.__file__).parent.glob("*.py")
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r'"(?:explain\.)?(\w+)"', source))
    named |= {f"{table}_{name}" for table in ("column", "name") for name in named}
    there = {key.removeprefix("explain.") for key in keys() if key.startswith("explain.")}
    assert there - named == set()
    assert set(re.findall(r'"explain\.(\w+)"', source)) <= there
