"""What the package claims of Pythons and torches, and what docs/versions.md says was tested."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def rows():
    """(Pythons, torch, what was run) of each row."""
    for row in text("docs/versions.md").splitlines():
        if row.startswith("| 3."):
            pythons, torch, _, what = (cell.strip() for cell in row.strip("|").split("|"))
            yield pythons.split(", "), torch, what


WHOLE = [(pythons, torch) for pythons, torch, what in rows() if what.startswith("all tests")]


def test_classifiers_name_the_pythons_on_which_all_tests_ran():
    start = "Programming Language :: Python :: "
    named = [each.removeprefix(start) for each in PROJECT["classifiers"] if start in each]
    assert named == [python for pythons, _ in WHOLE for python in pythons]


def test_the_least_python_is_one_that_was_tested_and_is_the_same_everywhere():
    least = PROJECT["requires-python"].removeprefix(">=")
    assert least in WHOLE[0][0]
    assert f"Python {least}+" in text("README.md")
    assert f"Python {least}+" in text("Makefile")
    major, minor = least.split(".")
    assert f"sys.version_info < ({major}, {minor})" in text("tools/setup.sh")
    config = tomllib.loads(text("pyproject.toml"))
    assert config["tool"]["ruff"]["target-version"] == f"py{major}{minor}"


@pytest.mark.slow
def test_what_is_pinned_can_be_had_for_the_first_release_of_the_least_python():
    first = f"{PROJECT['requires-python'].removeprefix('>=')}.0"
    done = subprocess.run(
        [
            *(ROOT / "tools/uv.sh", "pip", "compile", "--quiet", "--python-version", first),
            *("--extra", "dev", "-c", ROOT / "constraints.txt", ROOT / "pyproject.toml"),
        ],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_least_torch_is_one_that_any_part_was_run_with():
    (line,) = (line for line in PROJECT["dependencies"] if line.startswith("torch"))
    torches = [torch for _, torch, _ in rows() if torch != "none"]
    least = min(torches, key=lambda each: [int(part) for part in each.split(".")])
    assert line == f"torch>={least}"


def test_all_tests_run_on_the_torch_that_is_pinned():
    (pinned,) = re.findall(r"^torch==(.*)$", text("constraints.txt"), re.MULTILINE)
    assert [torch for _, torch in WHOLE] == [pinned]
    assert f"torch is there as {pinned}" in text("CONTRIBUTING.md")


def packages(lines):
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}


def test_the_page_says_what_is_not_pinned():
    parts = PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    wanted = packages(line for part in parts for line in part) - {PROJECT["name"]}
    pinned = packages(line for line in text("constraints.txt").splitlines() if line[0] != "#")
    (told,) = re.findall(r"except (\w+), which is not pinned there", text("docs/versions.md"))
    assert wanted - pinned == {told.lower()}


def test_the_version_is_the_same_everywhere():
    import spiritlevel

    assert spiritlevel.__version__ == PROJECT["version"]
    assert re.search(rf"^## {re.escape(PROJECT['version'])}\b", text("CHANGELOG.md"), re.MULTILINE)
