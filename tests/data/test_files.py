"""Names of files that look like patterns, options of text files, and files that aren't what they should be."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from test_sources import WRITERS

from deepinterest.config import EventFileConfig, LeaveLastOutConfig
from deepinterest.data import sources, store

SECOND = 1_700_000_000


def log(user: int, events: int = 4) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [user] * events,
            "item": [n % 4 for n in range(events)],
            "timestamp": [SECOND + n for n in range(events)],
        }
    )


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("extension", WRITERS)
def test_a_name_with_brackets_is_that_file(extension: str, tmp_path: Path) -> None:
    for name, user in (("q[1]", 1), ("q1", 2), ("q2", 3)):
        WRITERS[extension](log(user), tmp_path / f"{name}{extension}")

    def users(name: str) -> list[int]:
        return sources.load(EventFileConfig(path=str(tmp_path / f"{name}{extension}"))).frame["user"].to_list()

    assert users("q[1]") == [1] * 4
    assert users("q[2]") == [3] * 4  # there is no such file: it is a pattern
    assert users("q*") == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("partitions", [1, 2])
def test_folders_with_brackets(partitions: int, tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    folder.mkdir()
    for user in range(1, 9):
        log(user, 8).write_parquet(folder / f"part[{user}].parquet")
    data = EventFileConfig(path=str(tmp_path / "a[[]b]" / "*.parquet"), partitions=partitions)
    prepared = store.load(store.prepare(data, LeaveLastOutConfig(), str(tmp_path / "cache[1]")))
    assert prepared.user_names().to_list() == list(range(1, 9))
    assert len(prepared.log) == 64
