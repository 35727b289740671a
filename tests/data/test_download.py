"""The downloader, against a local server that breaks off, ignores ranges, changes its file, or isn't there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from deepinterest.data import download
from deepinterest.data.download import fetch, raw_folder
from deepinterest.errors import UserError

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at every path but /absent; `breaks` are the bytes after which the next answers end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.breaks: list[int] = []
        self.ranges, self.version, self.lengths = True, True, True
        self.asked: list[str | None] = []  # the Range of each request
        self.sent: list[int] = []  # bytes of each answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/log.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        content, begin = server.content, 0
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if self.path == "/absent":
            self.send_error(404)
            return
        if wanted and server.ranges and self.headers.get("If-Range", tag) == tag:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.version:
            self.send_header("ETag", tag)
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        body = content[begin:]
        if server.breaks:
            body = body[: server.breaks.pop(0)]
        server.sent.append(len(body))
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def sentence(url: str, target: Path, sha256: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        fetch(url, target, sha256)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.suffix != ".lock"}


def test_fetches_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "raw" / "log.zip"
    assert fetch(server.url, target, SHA256) == target
    assert target.read_bytes() == CONTENT
    fetch(server.url, target, SHA256)
    assert server.asked == [None]
    assert left(target.parent) == {"log.zip"}


def test_jobs_side_by_side_fetch_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fetch(server.url, tmp_path / "log.zip"), range(4)))
    assert len(server.asked) == 1
    assert all(path.read_bytes() == CONTENT for path in results)


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_goes_on_after_a_break(server: Server, tmp_path: Path, sha256: str | None) -> None:
    server.breaks = [500_000, 300_000]
    fetch(server.url, tmp_path / "log.zip", sha256)
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=500000-", "bytes=800000-"]
    assert sum(server.sent) == len(CONTENT)  # not a byte twice
    assert left(tmp_path) == {"log.zip"}


def test_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.breaks = [400_000, 0, 0, 0]
    text = sentence(server.url, tmp_path / "log.zip")
    for word in (server.url, "400,000 bytes are kept in log.zip.part", f"put it at {tmp_path / 'log.zip'}"):
        assert word in text
    assert not (tmp_path / "log.zip").exists()
    fetch(server.url, tmp_path / "log.zip")
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=400000-"


def test_server_that_ignores_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.breaks = [700_000]
    fetch(server.url, tmp_path / "log.zip", SHA256)
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    assert server.sent == [700_000, len(CONTENT)]


def test_pieces_of_unknown_versions_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.version = False
    server.breaks = [600_000]
    fetch(server.url, tmp_path / "log.zip")
    assert server.asked == [None, None]
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    server.breaks, server.asked = [600_000], []  # with a checksum they may be: it would tell
    fetch(server.url, tmp_path / "other.zip", SHA256)
    assert server.asked == [None, "bytes=600000-"]
    assert (tmp_path / "other.zip").read_bytes() == CONTENT


def test_changed_file_starts_anew(server: Server, tmp_path: Path) -> None:
    server.breaks = [400_000, 0, 0, 0]
    sentence(server.url, tmp_path / "log.zip")
    server.content = CONTENT[::-1]
    fetch(server.url, tmp_path / "log.zip")
    assert (tmp_path / "log.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("kept", "requests"), [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_nothing_left_to_fetch(server: Server, tmp_path: Path, kept: bytes, requests: int) -> None:
    (tmp_path / "log.zip.part").write_bytes(kept)
    fetch(server.url, tmp_path / "log.zip", SHA256)
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    assert len(server.asked) == requests


def test_break_without_a_length_is_seen_by_the_checksum(server: Server, tmp_path: Path) -> None:
    server.lengths = False
    fetch(server.url, tmp_path / "log.zip", SHA256)
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    server.breaks = [10]
    assert "sha256" in sentence(server.url, tmp_path / "other.zip", SHA256)


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    text = sentence(server.url, tmp_path / "log.zip", "0" * 64)
    for word in (server.url, SHA256, "0" * 64, str(tmp_path / "log.zip")):
        assert word in text
    assert left(tmp_path) == set()


def test_absent_file_and_absent_server(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("/log.zip", "/absent")
    text = sentence(url, tmp_path / "log.zip")
    assert url in text and "404" in text and str(tmp_path / "log.zip") in text
    assert len(server.asked) == 1  # no use to ask again
    text = sentence("http://127.0.0.1:9/log.zip", tmp_path / "log.zip")
    assert "http://127.0.0.1:9/log.zip" in text and "refused" in text and str(tmp_path / "log.zip") in text
    assert left(tmp_path) == set()


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = sentence(server.url, tmp_path / "file" / "log.zip")
    assert str(tmp_path / "file") in text and "data.folder" in text


def test_raw_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert raw_folder("movielens", str(tmp_path)) == tmp_path
    monkeypatch.setattr(download, "user_cache_path", lambda name: tmp_path / name)
    assert raw_folder("movielens") == tmp_path / "deepinterest" / "raw" / "movielens"
