"""Without a library its callback says which extra brings it, and the room itself needs none."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spiritlevel.errors import MissingExtra
from spiritlevel.integrations.watching import Watching

PACKAGES = {
    "lightning": ("lightning", "pytorch_lightning"),
    "transformers": ("transformers",),
    "ignite": ("ignite",),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_extra_is_named(monkeypatch, name):
    for package in PACKAGES[name]:
        for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"spiritlevel.integrations.{name}", raising=False)
    with pytest.raises(MissingExtra) as caught:
        importlib.import_module(f"spiritlevel.integrations.{name}")
    assert str(caught.value) == (
        f"{name} is not installed; it comes with the extra '{name}'. "
        f"Install it: pip install 'spiritlevel[{name}]'"
    )


def test_what_the_page_says_to_install_runs_its_example():
    """Each has a `report`, and that needs more than the library."""
    page = Path(__file__).parents[2] / "docs/integrations.md"
    parts = page.read_text(encoding="utf-8").split("\n## ")[1 : len(PACKAGES) + 1]
    assert all("report=" in part for part in parts)
    told = [re.findall(r"pip install 'spiritlevel\[(.*?)]'", part) for part in parts]
    assert told == [[f"{name},probe"] for name in PACKAGES]


@pytest.mark.parametrize("missing", ["jinja2", "plotly"])
def test_a_page_that_cannot_be_drawn_is_refused_at_once(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    Watching()
    with pytest.raises(MissingExtra, match=r"pip install 'spiritlevel\[probe\]'"):
        Watching(report="probe.html")


def test_the_room_imports_none_of_them():
    code = "import spiritlevel.integrations, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", *(each for many in PACKAGES.values() for each in many)})
