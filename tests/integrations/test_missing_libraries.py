"""Without a library its callback says which extra brings it, and the room itself needs none."""

import importlib
import subprocess
import sys

import pytest

from spiritlevel.errors import MissingExtra

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


def test_the_room_imports_none_of_them():
    code = "import spiritlevel.integrations, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"torch", *(each for many in PACKAGES.values() for each in many)})
