"""The files of a user's network, as Python itself imports them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spiritlevel.study.imports import own_files

FILES = {
    "mine/__init__.py": "",
    "mine/models.py": (
        "import math\nimport beside\nfrom . import blocks\nfrom .inner import sizes, deep\n"
        "def build():\n    import late\n    from spaced.out import thing\n"
    ),
    "mine/blocks.py": "from mine import helpers as h\nfrom .inner.deep import *\n",
    "mine/helpers.py": "import mine.models\n",
    "mine/inner/__init__.py": "from ..top import TOP\n",
    "mine/inner/sizes.py": "WIDTH = 1\n",
    "mine/inner/deep.py": "",
    "mine/top.py": "TOP = 1\n",
    "mine/unused.py": "",
    "beside.py": "",
    "late.py": "",
    "spaced/out.py": "thing = 1\n",  # a folder without __init__.py
    "other.py": "",
}
CODE = """
import json, sys
from pathlib import Path
import mine.models
mine.models.build()
root = Path.cwd()
files = [Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
print(json.dumps(sorted(str(f.relative_to(root)) for f in files if f.is_relative_to(root))))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_they_are_those_that_python_imports(folder):
    found = [str(path.relative_to(folder)) for path in own_files("mine.models", folder)]
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True, check=True
    )
    assert found == json.loads(done.stdout)
    assert len(found) == len(FILES) - 2


def test_a_file_that_cannot_be_parsed_is_still_one(folder):
    (folder / "beside.py").write_text("def (\n")
    (folder / "late.py").write_bytes(b"\xff\x00")
    names = {path.name for path in own_files("mine.models", folder)}
    assert {"beside.py", "late.py"} <= names


def test_a_module_from_elsewhere_has_none(folder):
    assert own_files("torch.nn", folder) == []
