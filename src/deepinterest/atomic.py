"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of this process alone: what is written there takes the place of `path` at the end.

    Where the writing fails, `path` stays as it was and nothing is left beside it.
    """
    own = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield own
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
