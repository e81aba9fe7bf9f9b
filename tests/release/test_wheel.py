"""The wheel and the sdist, built from the tracked files and installed where nothing else is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = (
    subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if (ROOT / ".git").exists()
    else []
)
SOURCES = {name.removeprefix("src/") for name in TRACKED if name.startswith("src/")}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TRACKED, reason="no git checkout, which tells what is tracked"),
]


def run(*command, cwd, wanted=0):
    """stdout and stderr, where nothing points at the sources here."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"SPIRITLEVEL_CACHE": str(cwd / ".cache"), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == wanted, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and an sdist; the wheel was built from the sdist."""
    copy = tmp_path_factory.mktemp("clean")
    for name in filter(None, TRACKED):
        if (ROOT / name).exists():  # one that is about to be removed is still tracked
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


def installed(wheel, extra, folder):
    """The scripts of a fresh environment that holds the wheel, with or without an extra."""
    uv = ROOT / "tools" / "uv.sh"
    python = folder / "venv" / "bin" / "python"
    told = {"PYTHON": sys.executable}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | told
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"],
        [
            *(uv, "pip", "install", "--quiet", "--python", python),
            *("-c", ROOT / "constraints.txt", f"spiritlevel{extra} @ {wheel.as_uri()}"),
        ],
        [uv, "pip", "check", "--quiet", "--python", python],
    ):
        subprocess.run([str(part) for part in command], check=True, env=environment)
    return python.parent


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    return installed(wheel, "", tmp_path_factory.mktemp("bare"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == SOURCES
    assert {name.partition("/")[2] for name in about} == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"),
    }
    web = {name.rpartition(".")[2] for name in names if "/web/" in name}
    assert web == {"css", "j2", "js"}
    assert {"spiritlevel/py.typed", "spiritlevel/catalogue_en.toml"} <= names
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_what_builds_the_wheel_and_nothing_else(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"PKG-INFO", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore"}
    assert names == {f"src/{name}" for name in SOURCES} | beside


def test_the_metadata_says_what_is_so(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        told = HeaderParser().parsestr(archive.read(name).decode())
    assert told["Name"] == "spiritlevel"
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["Requires-Python"] == ">=3.11"
    assert told.get_all("Project-URL") is None  # it has no home on the net that could be named
    needs = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    named = {re.split(r"[<>=!~ ]", line)[0] for line in needs}
    assert named == {"filelock", "numpy", "rich", "safetensors", "torch", "typer"}


def test_a_bare_install_explains_in_an_empty_folder(bare, tmp_path):
    told = run(bare / "spiritlevel", "explain", 1, 3, 5, cwd=tmp_path)
    assert "√variance = √(8/3) ≈ 1.6330" in told
    code = "import spiritlevel, sys; print(spiritlevel.__file__, 'torch' in sys.modules)"
    file, torch = run(bare / "python", "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(bare.parent)
    assert torch == "False"
    env = run(bare / "spiritlevel", "env", cwd=tmp_path)
    for extra in ("cpu", "hub", "onnx", "study"):
        assert f"pip install 'spiritlevel[{extra}]'" in env
    assert list(tmp_path.iterdir()) == []


def test_a_bare_install_says_what_a_study_needs(bare, tmp_path):
    told = run(bare / "spiritlevel", "study", "--preset", "smoke", cwd=tmp_path, wanted=2)
    assert "pip install 'spiritlevel[study]'" in told
    assert "Traceback" not in told


USER = """import spiritlevel as sl

model = sl.create_model("small_resnet", num_classes=10)
reveal_type(model)
reveal_type(sl.check(model).ok)
sl.fold(model)
"""


def test_a_type_checker_sees_the_types(bare, tmp_path):
    """Of the installed wheel: it has py.typed, and what it exports is not Any."""
    (tmp_path / "user.py").write_text(USER)
    check = (sys.executable, "-m", "mypy", "--strict", "--python-executable", bare / "python")
    told = run(*check, "user.py", cwd=tmp_path, wanted=1)
    assert 'Revealed type is "torch.nn.modules.module.Module"' in told
    assert 'Revealed type is "bool"' in told or 'Revealed type is "builtins.bool"' in told
    errors = [line for line in told.splitlines() if ": error:" in line]
    assert len(errors) == 1, told
    assert 'user.py:6: error: Missing positional argument "example"' in errors[0]


def test_with_all_extras_a_study_writes_its_page_outside_the_repository(wheel, tmp_path):
    scripts = installed(wheel, "[all]", tmp_path)
    place = tmp_path / "elsewhere"
    place.mkdir()
    run(scripts / "spiritlevel", "study", "--preset", "smoke", "--out", "run", cwd=place)
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('class="claim') >= 5
