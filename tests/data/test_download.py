"""Against a real server on this machine; the public addresses are never asked."""

from __future__ import annotations

import gc
import gzip
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from set_files import IDX_FILES, cifar_members, write_idx_set, write_tar

from spiritlevel.data import cifar
from spiritlevel.data.download import download
from spiritlevel.data.mnist import FASHION_MNIST, MNIST, read_idx_set
from spiritlevel.errors import DataError


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]
    folder: Path

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, directory=str(self.folder), **kwargs)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        content = (self.folder / self.path.removeprefix("/cut/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_args) -> None:
        pass


# The server cuts connections on purpose; what is left of one is closed when Python sees fit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[type[Handler]]:
    """What lies in its `folder` is served at its `url`; `cut/` before a name sends half of it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Here", (Handler,), {"asked": [], "folder": folder})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{listening.server_port}"
    listening.daemon_threads = False  # so that closing waits for them
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield handler
    listening.shutdown()
    listening.server_close()
    gc.collect()  # here, where their warnings are expected, and not in a later test


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_is_fetched_once_and_kept(server, cache):
    (server.folder / "a.bin").write_bytes(b"content")
    wanted = sha256(server.folder / "a.bin")
    for _ in range(2):
        path = download(f"{server.url}/a.bin", wanted, folder="set")
        assert path == cache / "downloads" / "set" / "a.bin"
        assert path.read_bytes() == b"content"
    assert server.asked == ["/a.bin"]


def test_a_kept_file_that_was_damaged_is_fetched_again(server):
    (server.folder / "a.bin").write_bytes(b"content")
    wanted = sha256(server.folder / "a.bin")
    path = download(f"{server.url}/a.bin", wanted, folder="set")
    path.write_bytes(b"conten")
    assert download(f"{server.url}/a.bin", wanted, folder="set").read_bytes() == b"content"
    assert len(server.asked) == 2


def refusal(url: str, wanted: str) -> str:
    with pytest.raises(DataError) as caught:
        download(url, wanted, folder="set")
    return str(caught.value)


def test_another_sha256(server, cache):
    (server.folder / "a.bin").write_bytes(b"evil")
    wanted = hashlib.sha256(b"good").hexdigest()
    assert refusal(f"{server.url}/a.bin", wanted) == (
        f"got no usable {server.url}/a.bin (its sha256 is another); wanted the file of sha256 "
        f"{wanted}; check the connection, or put the file into {cache / 'downloads' / 'set'}"
    )
    assert everything(cache) == []


def test_a_connection_that_is_cut(server, cache):
    (server.folder / "a.bin").write_bytes(b"content" * 100_000)
    message = refusal(f"{server.url}/cut/a.bin", sha256(server.folder / "a.bin"))
    assert message.startswith(f"got no usable {server.url}/cut/a.bin (")
    assert server.asked == ["/cut/a.bin"]
    assert everything(cache) == []


def test_a_file_that_is_not_there(server, cache):
    message = refusal(f"{server.url}/gone.bin", "0" * 64)
    assert message.startswith(f"got no usable {server.url}/gone.bin (404")
    assert everything(cache) == []


def test_a_server_that_does_not_answer(server, cache):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        port = other.server_port  # closed again: nobody listens there
    message = refusal(f"http://127.0.0.1:{port}/a.bin", "0" * 64)
    assert "refused" in message
    assert everything(cache) == []


def test_a_set_is_fetched_from_its_address(server):
    write_idx_set(server.folder)
    sums = {f"{name}.gz": sha256(server.folder / f"{name}.gz") for name in IDX_FILES}
    which = replace(MNIST, url=server.url, sha256=sums)
    for _ in range(2):
        assert len(read_idx_set(which, None, seed=0, image_size=None).train_y) == 40
    assert server.asked == [f"/{name}.gz" for name in IDX_FILES]


def test_a_set_whose_server_hands_out_another_file_leaves_the_good_ones_only(server, cache):
    write_idx_set(server.folder)
    sums = {f"{name}.gz": sha256(server.folder / f"{name}.gz") for name in IDX_FILES}
    (server.folder / f"{IDX_FILES[2]}.gz").write_bytes(gzip.compress(b"another"))
    which = replace(MNIST, url=server.url, sha256=sums)
    with pytest.raises(DataError, match="its sha256 is another"):
        read_idx_set(which, None, seed=0, image_size=None)
    kept = {path.name: sha256(path) for path in everything(cache)}
    assert kept == {f"{name}.gz": sums[f"{name}.gz"] for name in IDX_FILES[:2]}


def test_cifar10_is_fetched_from_its_address(server, monkeypatch):
    path = write_tar(server.folder / "cifar-10-python.tar.gz", *cifar_members())
    monkeypatch.setattr(cifar, "_URL", f"{server.url}/cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "_SHA256", sha256(path))
    assert len(cifar.read_cifar10(None, seed=0, image_size=None).train_y) == 100


@pytest.mark.parametrize("sums", [FASHION_MNIST.sha256, MNIST.sha256, {"cifar": cifar._SHA256}])
def test_every_public_file_has_a_sha256_of_its_own(sums):
    assert all(len(value) == 64 and int(value, 16) for value in sums.values())
    assert len(set(sums.values())) == len(sums) in (1, 4)


FULL = """
import resource, signal, sys
from spiritlevel.data.download import download
from spiritlevel.errors import DataError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    download(*sys.argv[1:], folder="set")
except DataError as error:
    print(error)
"""


def test_a_download_for_which_there_is_no_room(server, cache):
    (server.folder / "a.bin").write_bytes(b"content" * 1000)
    command = [sys.executable, "-c", FULL, f"{server.url}/a.bin", sha256(server.folder / "a.bin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == (
        f"got 'File too large' while keeping images in {cache / 'downloads/set'}; wanted room for "
        "them; make room, or name a folder on another disk in SPIRITLEVEL_CACHE\n"
    ), done.stderr
    assert everything(cache) == []
