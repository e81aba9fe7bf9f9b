"""How a run begins and resumes: what is refused, and that nothing is left half-begun."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from torch import nn

from spiritlevel.errors import DataError, RecordsError, UsageError
from spiritlevel.nn import norm_layer
from spiritlevel.study import Study
from spiritlevel.study.config import PRESETS
from spiritlevel.study.factory import as_factory, load_factory
from spiritlevel.study.records import Record, read_json, write_json
from spiritlevel.study.run import all_cells, begin, resume

SMOKE = PRESETS["smoke"]


def folder_of_images(path, count: int):
    for label in ("a", "b"):
        (path / label).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (32, 32), index % 256).save(path / label / f"{index}.png")
    return path


def test_too_few_images_are_refused_before_anything_is_written(tmp_path):
    few = folder_of_images(tmp_path / "few", 5)
    with pytest.raises(DataError, match=r"got 8 training images .* wanted at least 500"):
        begin(replace(SMOKE, data=f"folder:{few}"), tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


def test_kernels_that_cannot_be_had_are_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRITLEVEL_KERNELS", "fast")
    with pytest.raises(UsageError, match="got SPIRITLEVEL_KERNELS 'fast'; wanted one of auto"):
        begin(SMOKE, tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    begin(SMOKE, tmp_path, "")
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(RecordsError, match="holds a run already"):
        begin(replace(SMOKE, seeds=(5,)), tmp_path, "")
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordsError, match="wanted a folder to write to"):
        begin(SMOKE, tmp_path / "file" / "run", "")


def test_resume_without_a_run_is_told(tmp_path):
    with pytest.raises(RecordsError, match=r"holds no config\.json"):
        resume(tmp_path)


def test_resume_refuses_images_that_changed(tmp_path):
    begin(SMOKE, tmp_path, "")
    config = read_json(tmp_path / "config.json")
    config["data"]["fingerprint"] = "0" * 64
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RecordsError, match="differ from those this run began with"):
        resume(tmp_path)


def test_resume_follows_the_plan_of_the_run(tmp_path):
    plan = replace(SMOKE, seeds=(5, 6), lrs=(0.2,))
    begin(plan, tmp_path, "")
    assert resume(tmp_path).plan == plan


@pytest.mark.parametrize("plan", PRESETS.values(), ids=PRESETS)
def test_each_cell_stands_once_and_every_norm_gets_as_many(plan):
    cells = all_cells(plan)
    assert len({cell.key for cell in cells}) == len(cells)
    trained = [c.settings for c in cells if c.task == "train"]
    for network in {s["network"] for s in trained} - {"ghostnet_050"}:  # which has rates by arm
        counts = {
            norm: sum((s["network"], s["norm"]) == (network, norm) for s in trained)
            for norm in ("none", "batch")
        }
        assert counts["none"] == counts["batch"] > 0
    ghostnet = [s["norm"] for s in trained if s["network"] == "ghostnet_050"]
    assert ghostnet.count("none") >= ghostnet.count("batch") > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("plan", None), ("plan", {}), ("data", "x"), ("began", 5), ("rules", None), ("cells", "many")],
)
def test_a_config_that_was_edited_is_told(tmp_path, name, value):
    begin(SMOKE, tmp_path, "")
    config = read_json(tmp_path / "config.json") | {name: value}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RecordsError):
        resume(tmp_path)
    with pytest.raises(RecordsError):
        Study.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 5),
        ("seeds", "abc"),
        ("depth", 10**30),
        ("depth", "8"),
        ("lrs", [-1.0]),
        ("data", 1),
    ],
)
def test_a_plan_that_was_edited_is_told(tmp_path, name, value):
    begin(SMOKE, tmp_path, "")
    config = read_json(tmp_path / "config.json")
    config["plan"][name] = value
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RecordsError, match=f"got a plan whose {name}"):
        resume(tmp_path)


def test_records_without_what_was_measured_are_told(tmp_path):
    begin(SMOKE, tmp_path, "")
    cell = next(c for c in all_cells(SMOKE) if c.task == "train")
    record = Record(cell.key, cell.task, cell.settings, {})
    (tmp_path / "records.jsonl").write_text(record.to_json() + "\n")
    with pytest.raises(RecordsError, match="this version cannot read"):
        _ = Study.load(tmp_path).verdicts


NETWORK = """
from torch import nn
from spiritlevel.nn import norm_layer

def build(num_classes, in_chans, norm):
    layers = [nn.Conv2d(in_chans, 4, 3), norm_layer(norm)(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


def test_resume_notices_that_the_users_network_has_changed(tmp_path, monkeypatch):
    (tmp_path / "changing.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    factory = load_factory("changing:build")
    begin(replace(SMOKE, networks=(factory.spec,)), tmp_path / "run", "", factory=factory)
    assert resume(tmp_path / "run").factory is not None
    (tmp_path / "changing.py").write_text(NETWORK + "# another\n")
    with pytest.raises(RecordsError, match="has changed since this run of changing:build began"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("changed", ["mine_a/blocks.py", "mine_a/inner/sizes.py", "beside_a.py"])
def test_resume_notices_a_change_in_whatever_of_theirs_the_network_imports(
    tmp_path, monkeypatch, changed
):
    network = "from .blocks import WIDTH\nimport beside_a, torch.nn.functional\n" + NETWORK
    files = {
        "mine_a/__init__.py": "",
        "mine_a/models.py": network,
        "mine_a/blocks.py": "from mine_a.inner import sizes\nWIDTH = sizes.WIDTH\n",
        "mine_a/inner/__init__.py": "",
        "mine_a/inner/sizes.py": "WIDTH = 4\n",
        "beside_a.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    factory = load_factory("mine_a.models:build")
    begin(replace(SMOKE, networks=(factory.spec,)), tmp_path / "run", "", factory=factory)
    (tmp_path / "unused.py").write_text("# another\n")
    assert resume(tmp_path / "run").factory is not None
    (tmp_path / changed).write_text(files[changed] + "# another\n")
    with pytest.raises(RecordsError, match=r"models\.py, or a file that it imports, which has cha"):
        resume(tmp_path / "run")


def test_a_network_that_cannot_take_every_norm_is_told_before_anything_is_run(tmp_path):
    def build(num_classes, norm):
        if norm not in ("none", "batch"):
            raise KeyError(norm)
        layers = [nn.Flatten(), nn.Linear(14 * 14, 4), norm_layer(norm, dim=1)(4)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(4, num_classes))

    with pytest.raises(UsageError, match=r"KeyError: .*norm='noisy-batch'"):
        begin(SMOKE, tmp_path / "run", "", factory=as_factory(build))
    assert not (tmp_path / "run").exists()


def test_a_study_is_told_in_a_line(tmp_path):
    begin(SMOKE, tmp_path, "")
    (tmp_path / "records.jsonl").touch()
    told = repr(Study.load(tmp_path))
    assert told.startswith("Study(")
    assert "stabilises inconclusive" in told
    assert "\n" not in told
    assert len(told) < 300
