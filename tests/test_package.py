import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

import spiritlevel

HEAVY = {"torch", "numpy", "sklearn", "plotly", "jinja2", "joblib"}


def child(code):
    """What a fresh interpreter prints: this one has imported torch long ago."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    ["import spiritlevel", "import spiritlevel; dir(spiritlevel); spiritlevel.errors.require"],
)
def test_importing_it_imports_nothing_heavy(code):
    loaded = child(f"{code}; import sys; print(*sys.modules)")
    assert "spiritlevel" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_numba_waits_for_an_input_that_needs_it():
    code = """
import sys, torch
import spiritlevel as sl
small = sl.nn.BatchNorm2d(3)(torch.randn(2, 3, 4, 4))
sl.kernels.batch_norm_act(small, act="relu")
sl.create_model("ghostnet_050", num_classes=10)
print("numba" in sys.modules)
"""
    assert child(code) == ["False"]


@pytest.mark.parametrize("name", spiritlevel.__all__)
def test_every_public_name_is_there(name):
    value = getattr(spiritlevel, name)
    assert value is getattr(spiritlevel, name)
    assert value.__name__.split(".")[-1] == name


def test_dir_shows_every_public_name():
    shown = child("import spiritlevel; print(*dir(spiritlevel))")
    assert set(spiritlevel.__all__) <= set(shown)
    assert shown == sorted(shown)


def test_study_is_the_function_whatever_was_imported_before():
    code = "import spiritlevel.study.config, spiritlevel; print(callable(spiritlevel.study))"
    assert child(code) == ["True"]


@pytest.mark.parametrize(
    "before", ["import spiritlevel.export.onnx", "from spiritlevel.export import read_metadata"]
)
def test_export_is_the_function_whatever_was_imported_before(before):
    code = f"{before}; import spiritlevel; print(callable(spiritlevel.export))"
    assert child(code) == ["True"]


def test_an_unknown_name():
    with pytest.raises(AttributeError) as caught:
        spiritlevel.levels  # noqa: B018
    assert str(caught.value) == (
        "module 'spiritlevel' has no attribute 'levels'; it has: " + ", ".join(spiritlevel.__all__)
    )


def test_what_another_module_imports_stands_in_all():
    root = Path(spiritlevel.__file__).parent
    shown, imported = {}, set()
    for file in root.rglob("*.py"):
        name = ".".join(("spiritlevel", *file.relative_to(root).with_suffix("").parts))
        text = file.read_text(encoding="utf-8")
        found = re.search(r"^__all__ = (\[.*?\])$", text, re.M | re.S)
        shown[name.removesuffix(".__init__")] = None if found is None else literal_eval(found[1])
        for module, names in re.findall(
            r"^ *from (spiritlevel[\w.]*) import (\(.*?\)|.*?$)", text, re.M | re.S
        ):
            imported |= {
                (module, each) for each in re.findall(r"(?:^|[(,])\s*([A-Za-z]\w*)", names)
            }
    assert len([names for names in shown.values() if names]) > 300
    assert ("spiritlevel.kernels.ops", "OURS") in imported
    hidden = {
        f"{module}.{name}" for module, name in imported if name not in (shown[module] or [name])
    }
    assert hidden - shown.keys() == set()
