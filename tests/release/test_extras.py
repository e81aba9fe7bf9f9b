"""Every extra is optional: without its packages the rest works, and what needs it says so."""

import json
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Modules with another name than what pip installs.
MODULES = {
    "myst-parser": "myst_parser",
    "pillow": "PIL",
    "pytorch-ignite": "ignite",
    "scikit-learn": "sklearn",
    "tomli-w": "tomli_w",
}
BROUGHT = {"lightning": "pytorch_lightning"}
"""Another name of the same, which pip installs along."""
# torch depends on it, so that no installation lacks it.
ALWAYS_THERE = {"jinja2"}
SETS = {"all", "dev", "docs"}
"""Of other extras, or of tools that no module imports."""
FOR_OTHERS = {"zoo"}
"""Packages of networks that it is tested on."""


def packages(extra):
    """The names of what an extra installs."""
    for line in EXTRAS[extra]:
        name = line.partition(";")[0].strip()
        if name.startswith("spiritlevel["):
            for other in name[len("spiritlevel[") : -1].split(","):
                yield from packages(other)
        else:
            yield name.split(">")[0].split("=")[0]


def modules(*extras):
    found = {MODULES.get(name, name) for extra in extras for name in packages(extra)}
    found |= {other for name, other in BROUGHT.items() if name in found}
    return sorted(found - ALWAYS_THERE)


@cache
def without(part, *extras):
    """What a fresh interpreter says of `part` where these extras are not installed."""
    script = Path(__file__).with_name("blocked.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, part, *modules(*extras)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OF_USERS = tuple(sorted(set(EXTRAS) - SETS))


def test_what_is_blocked_is_what_would_be_imported():
    """A name that no package has would block nothing."""
    asked = modules(*set(OF_USERS) - {"zoo", "timm", "triton"})
    assert asked, "no extra has a package"
    assert [name for name in asked if find_spec(name) is None] == []


def lacking(extras, failed):
    """The modules that did not import, by the package that they missed."""
    by = {}
    for name, why in failed.items():
        if why is not None:
            kind, _, text = why.partition(": ")
            assert kind == "ModuleNotFoundError", f"{name} without {extras}: {why}"
            by.setdefault(text.removeprefix("No module named ").strip("'"), set()).add(name)
    return by


def held_to_their_place(by):
    """Kernels may need what compiles them, the cluster its engine; nothing else anything."""
    assert all(name.startswith("spiritlevel.kernels.") for name in by.pop("numba", ()))
    gpu = "spiritlevel.kernels.gpu"
    assert all(name.startswith(gpu) for name in by.pop("triton", ()))
    clusters = by.pop("joblib", set()) | by.pop("distributed", set())
    assert clusters <= {"spiritlevel.study.cluster"}
    assert by == {}


def test_every_module_imports_without_all_extras_but_for_the_kernels():
    failed = without("imports", *OF_USERS)
    assert len(failed) > 300
    by = lacking(OF_USERS, failed)
    assert "spiritlevel.kernels.cpu" in by["numba"]  # else nothing was blocked
    assert "spiritlevel.kernels.gpu" in by["triton"]
    held_to_their_place(by)


@pytest.mark.slow
@pytest.mark.parametrize("extra", OF_USERS)
def test_every_module_imports_without_one_extra(extra):
    held_to_their_place(lacking([extra], without("imports", extra)))


@pytest.mark.slow
def test_every_verb_but_the_study_works_without_extras():
    works = without("works", *OF_USERS)
    verbs = ["list_models", "Probe", "check", "fuse", "recalibrate", "convert", "fold", "export"]
    assert list(works) == verbs
    assert all(works.values())


@pytest.mark.slow
def test_what_needs_an_extra_says_which():
    told = without("needs", *OF_USERS)
    assert [
        (extra, text) for extra, text in told if f"'spiritlevel[{extra}]'" not in str(text)
    ] == []
    assert {extra for extra, _ in told} == set(OF_USERS) - FOR_OTHERS
