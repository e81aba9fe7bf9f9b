"""A stand-in for the Hugging Face hub on this machine, asked by a process of its own."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_hub import TEST, TRAIN, odd, write_typed

SHA = "a" * 40
ADDRESS = re.compile(rf"(?:/api)?/datasets/someone/(\w+)(?:/(tree)/{SHA}|/resolve/{SHA}/(.+))?")
CODE = """
import sys
from spiritlevel.data import load
from spiritlevel.errors import DataError
for name in sys.argv[1:]:
    try:
        print(load(f"hf:someone/{name}").describe())
    except DataError as error:
        print(error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for the data sets `someone/NAME`, of which each is a folder in `folder`."""

    folder: Path

    def do_GET(self) -> None:
        found = ADDRESS.match(self.path)
        if not found or not (folder := self.folder / found[1]).is_dir():
            return self.send(404, b"")
        if found[3]:
            content = (folder / found[3]).read_bytes()
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            return self.send(206, content[first : last + 1])
        sizes = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in folder.rglob("*")
            if file.is_file()
        }
        if found[2]:
            rows = [{"type": "file", "path": n, "size": s, "oid": SHA} for n, s in sizes.items()]
            return self.answer(rows)
        siblings = [{"rfilename": name} for name in sizes]
        return self.answer({"id": f"someone/{found[1]}", "sha": SHA, "siblings": siblings})

    def answer(self, value: object) -> None:
        self.send(200, json.dumps(value).encode())

    def send(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def hub(tmp_path) -> Iterator[type[Hub]]:
    handler = type("Here", (Hub,), {"folder": tmp_path / "hub"})
    handler.folder.mkdir()
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{listening.server_port}"
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield handler
    listening.shutdown()
    listening.server_close()


@pytest.mark.slow
def test_data_sets_of_the_hub(hub, tmp_path):
    """One process for all, since it starts slowly: a good one, one of code only, and none."""
    folder = hub.folder / "pictures"
    write_typed(folder / "data" / "train-0.parquet", "img", "label", TRAIN, odd(TRAIN))
    write_typed(folder / "data" / "test-0.parquet", "img", "label", TEST, odd(TEST))
    for name in ("pictures", "scripts"):
        (hub.folder / name).mkdir(exist_ok=True)
        (hub.folder / name / f"{name}.py").write_text("raise SystemExit('its code ran')")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "h"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "pictures@main", "scripts", "nothing"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    good, scripts, nothing = done.stdout.splitlines()
    assert "'name': 'hf:someone/pictures'" in good
    assert "'counts': {'train': 10, 'test': 6}" in good
    assert "'classes': ['cat', 'dog']" in good
    assert scripts == (
        "got data set 'someone/scripts' of the Hugging Face hub without a parquet file; "
        "wanted parquet; try hf:someone/scripts@refs/convert/parquet"
    )
    assert nothing.startswith(
        "got 'someone/nothing' for hf, which is no folder here, and the Hugging Face hub did not "
        "hand it out ("
    )
    assert "404" in nothing
    assert nothing.endswith("); check the name and the connection")
