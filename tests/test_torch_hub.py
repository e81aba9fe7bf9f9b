"""hubconf.py, as torch.hub reads it where spiritlevel is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import spiritlevel as sl

ROOT = Path(__file__).parents[1]
CODE = """
import importlib.util, json, sys, warnings
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("spiritlevel") is None
import torch
repo, clone = "owner/spiritlevel:main", torch.hub.get_dir() + "/owner_spiritlevel_main"
kept = {"trust_repo": True, "skip_validation": True, "verbose": False}
listed = torch.hub.list(repo, **kept)
model = torch.hub.load(clone, "ghostnet_100", source="local", num_classes=10)
path = sys.path[:]
try:
    torch.hub.load(clone, "ghostnet_100", source="local", pretrained=True)
except ValueError as error:
    told = str(error)
import spiritlevel, spiritlevel.doctor.check
print(json.dumps({
    "listed": listed,
    "help": torch.hub.help(repo, "small_vgg", trust_repo=True, skip_validation=True),
    "classes": model.classifier.out_features,
    "from": spiritlevel.__file__,
    "told": told,
    "grows": sys.path != path,
}))
"""


@pytest.mark.slow
def test_torch_hub_finds_and_makes_every_model_from_a_clone_alone(tmp_path):
    """In the folder where torch.hub keeps what it fetched, so that nothing is."""
    clone = tmp_path / "hub/owner_spiritlevel_main"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", clone / "src", ignore=skipped)
    shutil.copy(ROOT / "hubconf.py", clone)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", CODE, sysconfig.get_path("purelib")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["listed"] == sl.list_models()
    assert found["help"].startswith("The model 'small_vgg': `spiritlevel.create_model('small_vgg'")
    assert found["classes"] == 10
    assert Path(found["from"]) == clone / "src/spiritlevel/__init__.py"
    assert found["told"].startswith("got pretrained=True; wanted weights: a path, or hf:OWNER/NAME")
    assert not found["grows"]
