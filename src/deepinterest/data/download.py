"""Fetching a raw file: with progress, going on where a broken transfer stopped, checked, and renamed when complete."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import requests
import urllib3
from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from deepinterest.errors import UserError

CHUNK = 1 << 18  # bytes
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces
ATTEMPTS = 3  # in a row that bring nothing new
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)


class _RefusedError(Exception):
    """The server answers, but not with the file: another attempt would bring the same."""


def raw_folder(source: str, folder: str | None = None) -> Path:
    """Where raw files of a source lie: `folder`, or raw/SOURCE of the user's cache folder."""
    return Path(folder).expanduser() if folder else user_cache_path("deepinterest") / "raw" / source


def fetch(url: str, target: Path, sha256: str | None = None) -> Path:
    """`target`, fetched from `url` unless it is there; jobs side by side fetch it once.

    What a broken transfer brought stays in TARGET.part. It is gone on with where the server knows ranges and either
    names the version of its file or `sha256` tells that the pieces fit; otherwise the transfer starts anew.
    Raises UserError, which names the URL and the path to put the file by hand, if the network fails, the server
    refuses or the checksum differs, and for a folder that can't be written. A file that is there is not checked.
    """
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_beside(target, ".lock")):
            if not target.is_file():
                _transfer(url, target, sha256)
                _finish(url, target, sha256)
    except (*BROKEN, _RefusedError) as error:  # before OSError: the exceptions of requests are such, too
        part = _beside(target, ".part")
        kept = part.stat().st_size if part.is_file() else 0
        going_on = f" {kept:,} bytes are kept in {part.name}." if kept else ""
        raise UserError(f"{url} could not be fetched ({_reason(error)}).{going_on} {_by_hand(url, target)}") from error
    except OSError as error:
        raise UserError(
            f"{url} could not be written to {target.parent}: {error.strerror or error}. Make room there, or name "
            "another folder by data.folder=FOLDER."
        ) from error
    return target


def _transfer(url: str, target: Path, sha256: str | None) -> None:
    """Bring TARGET.part to its full length; an attempt that brought something doesn't count as failed."""
    part, failed = _beside(target, ".part"), 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress,
        requests.Session() as session,
    ):
        task = progress.add_task(f"fetching {target.name}", total=None)
        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                _attempt(session, url, target, sha256, progress, task)
                return
            except BROKEN:
                after = part.stat().st_size if part.is_file() else 0
                failed = 0 if after > before else failed + 1
                if failed == ATTEMPTS:
                    raise


def _attempt(
    session: requests.Session, url: str, target: Path, sha256: str | None, progress: Progress, task: TaskID
) -> None:
    part, tag = _beside(target, ".part"), _beside(target, ".part.version")
    version = tag.read_text() if tag.is_file() else ""
    begin = part.stat().st_size if part.is_file() and (version or sha256) else 0
    headers = {"Accept-Encoding": "identity"}  # the file's own bytes: ranges count those
    if begin:
        headers["Range"] = f"bytes={begin}-"
        if version:  # another version of the file comes whole
            headers["If-Range"] = version
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing after `begin`: all is there, or the piece is of another file
            if response.headers.get("Content-Range") == f"bytes */{begin}":
                return
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the kept piece doesn't fit the server's file")
        if not response.ok:
            raise _RefusedError(f"the server answers {response.status_code} {response.reason}")
        if response.status_code != 206:
            begin = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server sent another range than was asked for")
        strong = response.headers.get("ETag", "")
        version = strong if strong and not strong.startswith("W/") else response.headers.get("Last-Modified", "")
        if version:
            tag.write_text(version)
        else:
            tag.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length else None
        progress.update(task, total=total, completed=begin)
        with part.open("ab" if begin else "wb") as file:
            for piece in response.raw.stream(CHUNK, decode_content=False):
                file.write(piece)
                progress.update(task, advance=len(piece))
            size = file.tell()
    if total is not None and size != total:
        raise requests.ConnectionError(f"the transfer stopped after {size:,} of {total:,} bytes")


def _finish(url: str, target: Path, sha256: str | None) -> None:
    """Check TARGET.part and give it its name."""
    part = _beside(target, ".part")
    if sha256 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            part.unlink()
            _beside(target, ".part.version").unlink(missing_ok=True)
            raise _RefusedError(
                f"its sha256 is {found} and should be {sha256}: damaged on the way, or changed by its owner"
            )
    os.replace(part, target)
    _beside(target, ".part.version").unlink(missing_ok=True)


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _by_hand(url: str, target: Path) -> str:
    return f"Try again, or fetch {url} by other means and put it at {target}."


def _reason(error: BaseException) -> str:
    """The innermost cause in a line: the chain of libraries around it says nothing to a user."""
    while isinstance(error.args[0] if error.args else None, BaseException):
        error = error.args[0]
    inner = getattr(error, "reason", None)
    text = str(inner if isinstance(inner, BaseException) else error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
