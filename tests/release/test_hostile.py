"""Files of anyone's that are read as data: whatever is in them, an error of the user's comes of it.

What each reader refuses is tested beside it; here is what all of them are held to.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import zeros

from spiritlevel.cli import main
from spiritlevel.doctor import baseline, config
from spiritlevel.errors import UsageError
from spiritlevel.export import read_metadata as metadata_of_export
from spiritlevel.export.metadata import PREFIX
from spiritlevel.models import create_model, read_metadata
from spiritlevel.study.records import RecordFile, read_json
from spiritlevel.train.config import parse_toml

DEEP = "[" * 100_000
"""Deeper than a reader may go."""


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("records.jsonl", RecordFile.read),
        ("config.json", read_json),
        ("baseline.json", baseline.read),
        ("pyproject.toml", lambda path: config.settings(path.parent)),
        ("config.toml", lambda path: parse_toml(path.read_text(), path)),
    ],
)
def test_text_nested_too_deep(name, read, tmp_path):
    text = f"a = {DEEP}" if name.endswith(".toml") else f"{DEEP}\n{DEEP}\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        read(tmp_path / name)


def test_weights_that_name_code_as_their_model(tmp_path):
    """What a file tells of its model is looked up among ours; nothing is imported for it."""
    (tmp_path / "named.py").write_text("raise SystemExit('imported')")
    file = tmp_path / "weights.safetensors"
    file.write_bytes(save({"x": zeros(1)}, {"model": '{"name": "named:build"}'}))
    told = read_metadata(file)["model"]
    with pytest.raises(UsageError, match="got model 'named:build'; wanted one of"):
        create_model(**told, num_classes=10)


def test_a_program_whose_texts_unpack_beyond_all_bounds(tmp_path):
    file = tmp_path / "net.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"net/extra/{PREFIX}classes.txt", bytes(17 * 2**20))
    assert file.stat().st_size < 100_000
    with pytest.raises(UsageError, match="unpacks to more than 16,777,216 bytes"):
        metadata_of_export(file)


def test_openvino_texts_that_name_files_or_multiply(tmp_path):
    file, line = tmp_path / "net.xml", '<net><rt_info><a value="{}"/>{}</rt_info></net>'
    file.write_text(f'<!DOCTYPE n [<!ENTITY e SYSTEM "{__file__}">]>' + line.format("", "&e;"))
    with pytest.raises(UsageError, match="cannot be read"):
        metadata_of_export(file)
    grown = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    file.write_text(f'<!DOCTYPE n [<!ENTITY e0 "e">{grown}]>' + line.format("&e11;", ""))
    with pytest.raises(UsageError, match="cannot be read"):
        metadata_of_export(file)


ROOT = Path(__file__).parents[2]
STEERS = "\x1b]0;owned\x07"
"""Would rename a terminal's window."""


@pytest.fixture
def run_of_others(tmp_path, monkeypatch):
    """A run's folder whose network is code beside it, and whose records would steer a terminal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    run = tmp_path / "run"
    run.mkdir()
    told = json.loads((ROOT / "docs/standard/config.json").read_text())
    told["plan"]["networks"] = ["evil_module:build", "small_vgg"]
    (run / "config.json").write_text(json.dumps(told))
    (run / "environment.json").write_bytes((ROOT / "docs/standard/environment.json").read_bytes())
    failed = {"key": f"a{STEERS}", "task": "sweep", "settings": {}, "result": None}
    line = json.dumps(failed | {"error": f"RuntimeError: {STEERS}"})
    (run / "records.jsonl").write_text(f"{line}\n{STEERS} torn")
    return run


def test_a_run_of_others_is_drawn_without_its_code_or_its_control_characters(run_of_others, capsys):
    assert main(["report", str(run_of_others)]) == 1
    out, err = capsys.readouterr()
    assert "evil_module" not in sys.modules
    assert r"RuntimeError: \x1b]0;owned\x07" in err
    assert r"\x1b]0;owned\x07 torn" in err
    assert not {"\x1b", "\x07"} & set(out + err)
    assert (run_of_others / "report.html").is_file()


def calls_in_the_source():
    """(file, function, whole call) of all that loads; their lines are few, so text comes first."""
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if not re.search(r"\.load|Unpickler", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                yield file.name, ast.unparse(node.func), ast.unparse(node)


def test_no_line_of_the_source_unpickles_what_it_is_given():
    found = list(calls_in_the_source())
    tensors = [call for _, name, call in found if name == "torch.load"]
    assert len(tensors) >= 4
    assert all("weights_only=True" in call for call in tensors)
    arrays = [call for _, name, call in found if name == "np.load"]
    assert len(arrays) >= 2
    assert all("allow_pickle=False" in call for call in arrays)
    pickles = {(file, name) for file, name, _ in found if "pickle" in name and "load" in name}
    # A function, from our own client.
    assert pickles == {("cluster.py", "pickle.loads")}
    assert not [name for _, name, _ in found if name.endswith("Unpickler")]


UNPICKLES = (
    r"(jit\.load|joblib\.load|(pd|pandas)\.read_pickle|dill\.loads?|marshal\.loads?|shelve\.open)$"
)


def test_nor_by_another_name():
    """`from torch import load`, or what else ends in a pickle."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
                *("torch", "numpy", "pandas", "joblib", "pickle", "cloudpickle", "dill"),
            ):
                taken = {name.name for name in node.names}
                assert not taken & {"load", "loads", "read_pickle", "Unpickler"}, file
            if isinstance(node, ast.Call):
                assert not re.search(UNPICKLES, ast.unparse(node.func)), file
