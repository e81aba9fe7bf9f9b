"""A stand-in for the Hugging Face hub on this machine, asked by a process of its own."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spiritlevel.errors import UsageError
from spiritlevel.models import create_model, save_weights

pytest.importorskip("huggingface_hub", reason="the hub needs the extra hub")

ADDRESS = re.compile(r"/someone/([\w.-]+)/resolve/([\w.]+)/([\w.]+)")
CODE = """
import sys
from spiritlevel.errors import UsageError
from spiritlevel.models import create_model
for name in sys.argv[1:]:
    try:
        model = create_model("ghostnet_050", 10, weights=name)
        print(name, "gave", round(model.classifier.bias.double().sum().item(), 6))
    except UsageError as error:
        print(error)
"""


class Owned:
    def __reduce__(self):
        return print, ("owned",)


class Hub(http.server.BaseHTTPRequestHandler):
    """Has the file `folder/REPOSITORY/REVISION/NAME`."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        match = ADDRESS.fullmatch(self.path)
        repository = self.folder / match[1] if match else None
        if repository is None or not repository.is_dir():
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
        path = repository / match[2] / match[3]
        if not path.parent.is_dir():
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        commit = {"X-Repo-Commit": hashlib.sha1(match[2].encode()).hexdigest()}
        if not path.is_file():
            return self.send(404, {"X-Error-Code": "EntryNotFound", **commit}, b"", body)
        content = path.read_bytes()
        tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.send(200, commit | tag, content, body)

    def send(self, code: int, headers: dict[str, str], content: bytes, body: bool) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def hub(tmp_path) -> Iterator[type[Hub]]:
    handler = type("Here", (Hub,), {"folder": tmp_path / "hub", "asked": []})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{listening.server_port}"
    handler.stop = listening.shutdown
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield handler
    listening.shutdown()
    listening.server_close()


def loaded(hub: type[Hub], home: Path, *names: str) -> list[str]:
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.splitlines()


def placed(path: Path, seed: int) -> float:
    """A file of a small GhostNet's weights, and the sum that tells which."""
    torch.manual_seed(seed)
    model = create_model("ghostnet_050", 10)
    path.parent.mkdir(parents=True)
    save_weights(model, path)
    return round(model.classifier.bias.double().sum().item(), 6)


@pytest.mark.slow
def test_weights_by_name(hub, tmp_path):
    """One process for all, since it starts slowly."""
    new = placed(hub.folder / "ghost.in1k" / "main" / "model.safetensors", 1)
    earlier = placed(hub.folder / "ghost.in1k" / "v1" / "model.safetensors", 2)
    old = placed(hub.folder / "old" / "main" / "pytorch_model.bin", 3)
    (hub.folder / "empty" / "main").mkdir(parents=True)
    (hub.folder / "evil" / "main").mkdir(parents=True)
    torch.save({"a": Owned()}, hub.folder / "evil" / "main" / "pytorch_model.bin")
    names = ["ghost.in1k", "ghost.in1k@v1", "old", "empty", "evil", "none", "ghost.in1k@gone"]
    found = loaded(hub, tmp_path / "home", *(f"hf:someone/{name}" for name in names))
    assert found[:3] == [
        f"hf:someone/ghost.in1k gave {new}",
        f"hf:someone/ghost.in1k@v1 gave {earlier}",
        f"hf:someone/old gave {old}",
    ]
    assert len({new, earlier, old}) == 3
    assert "there is none of model.safetensors, pytorch_model.bin" in found[3]
    assert "pickles may run code, so they are not loaded" in found[4]
    assert "hf:someone/none, which the Hugging Face hub did not hand out (404" in found[5]
    assert (
        "hf:someone/ghost.in1k@gone, which the Hugging Face hub did not hand out (404" in found[6]
    )
    assert "owned" not in found
    # A second time the file is here, also where the hub is not.
    asked = len(hub.asked)
    assert loaded(hub, tmp_path / "home", "hf:someone/ghost.in1k") == found[:1]
    assert [line for line in hub.asked[asked:] if "GET /someone" in line] == []


@pytest.mark.slow
def test_weights_where_the_hub_cannot_be_reached(hub, tmp_path):
    """What was fetched before is here; for the rest, the hub's client tries for half a minute."""
    value = placed(hub.folder / "ghost.in1k" / "main" / "model.safetensors", 1)
    found = [f"hf:someone/ghost.in1k gave {value}"]
    assert loaded(hub, tmp_path / "home", "hf:someone/ghost.in1k") == found
    hub.stop()
    hub.url = "http://127.0.0.1:9"
    assert loaded(hub, tmp_path / "home", "hf:someone/ghost.in1k") == found
    (gone,) = loaded(hub, tmp_path / "elsewhere", "hf:someone/ghost.in1k")
    assert "check the name and the connection" in gone


@pytest.mark.parametrize(
    "name", ["hf:", "hf:ghostnet", "hf:a/b/c", "hf:a/b@", "hf:../../etc/passwd"]
)
def test_a_name_that_is_none(name):
    with pytest.raises(UsageError, match="wanted hf:OWNER/NAME"):
        create_model("ghostnet_050", 10, weights=name)
