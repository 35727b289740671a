"""The numbers of a data card add up, from the rows of the file to the targets; and what they give reason to advise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import (
    EventColumns,
    EventFileConfig,
    Exclude,
    HistoryTies,
    LabelledConfig,
    LastEventConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    TargetsPerUser,
    TemporalConfig,
)
from deepinterest.data import store
from deepinterest.data.advice import advice

FEW = TargetsPerUser(train=5, validation=1, test=2)


def log(path: Path, rows: int = 600) -> pl.DataFrame:
    """Baskets with repeats; users 0 to 4 have one event each, and user 5 touches nothing."""
    rng = np.random.default_rng(0)
    user = np.concatenate([np.arange(5), rng.integers(5, 40, rows - 5)])
    frame = pl.DataFrame(
        {
            "user": user,
            "item": rng.integers(0, 20, rows),
            "timestamp": 1_600_000_000 + 60 * rng.integers(0, 40, rows),
            "click": np.where(user == 5, 0, np.where(user < 5, 1, rng.integers(0, 2, rows))),
            "category": [f"c{n % 3}" for n in range(rows)],
        }
    )
    frame.write_csv(path)
    return frame


@pytest.mark.parametrize("ties", HistoryTies)
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize(
    ("name", "label", "more"),
    [
        ("temporal", False, {}),
        ("leave_last_out", True, {"core": 2}),
        ("leave_last_out", False, {"limit_users": 25}),
        ("last_event", True, {"limit_users": 20}),
        ("labelled", True, {"limit_users": 25, "core": 3}),
    ],
)
def test_rows_read_are_events_and_what_was_dropped(
    name: str, label: bool, more: dict[str, Any], partitions: int, ties: HistoryTies, tmp_path: Path
) -> None:
    frame = log(tmp_path / "log.csv")
    protocols: dict[str, ProtocolConfig] = {
        "temporal": TemporalConfig(targets_per_user=FEW, ties=ties),
        "leave_last_out": LeaveLastOutConfig(targets_per_user=FEW, ties=ties),
        "last_event": LastEventConfig(ties=ties),
        "labelled": LabelledConfig(targets_per_user=FEW),
    }
    columns = EventColumns(label="click" if label else None)
    data = EventFileConfig(path=str(tmp_path / "log.csv"), columns=columns, partitions=partitions, **more)
    held = store.load(store.prepare(data, protocols[name], str(tmp_path / "cache")))
    card = held.card
    dropped = {key.partition(": ")[2]: count for key, count in card.items() if key.startswith("dropped: ")}
    kept = card["impressions"] if name == "labelled" else card["events"]
    assert card["rows_read"] == frame.height == kept + sum(dropped.values())
    assert card["events"] == len(held.log)
    if not more:
        assert dropped["repeats of user, item and time"] == frame.height - frame.n_unique(["user", "item", "timestamp"])
        assert dropped["of users with fewer than 2 events"] == card["note: users with fewer than 2 events"] == 5
        assert (card["first_time"], card["last_time"]) == ("2020-09-13 12:26:40 UTC", "2020-09-13 13:05:40 UTC")
    if label and name != "labelled" and not more.get("limit_users"):
        assert card["note: users lost, all of whose rows have label 0"] == 1
    if "limit_users" in more:
        assert dropped["of users that data.limit_users leaves out"] > 0
    targets = {key: count for key, count in card.items() if key.startswith("dropped targets: ")}
    rows = sum(card[f"{split}_rows"] for split in ("train", "validation", "test"))
    if name == "labelled":
        assert card["impressions"] == rows + sum(targets.values())
    elif name != "last_event":
        assert card["events"] == rows // 2 + sum(targets.values())
    pairs = {(u, i) for u, i in zip(held.log.user.tolist(), held.log.item.tolist(), strict=True)}
    assert card["repeat_events"] == len(held.log) - len(pairs)


def test_share_of_targets_with_history_of_their_own_time(tmp_path: Path) -> None:
    log(tmp_path / "log.csv")
    data = EventFileConfig(path=str(tmp_path / "log.csv"))
    for ties in HistoryTies:
        held = store.load(store.prepare(data, TemporalConfig(ties=ties), str(tmp_path / "cache")))
        samples, time = held.samples["test"], held.log.time
        same = time[samples.history_end - 1] == time[samples.positive]
        assert held.card["history_ties"] == ties.name
        assert held.card["test_same_time_history"] == round(float(np.mean(same)), 4)
        assert (held.card["test_same_time_history"] > 0.02) == (ties is HistoryTies.order)
    lengths = held.samples["train"].history_end - held.log.user_offsets[held.samples["train"].user]
    shown = {key: value for key, value in held.card.items() if key.startswith("history_length")}
    cut = np.minimum(lengths, 50)
    assert shown == {f"history_length_quantile_{share}": int(np.quantile(cut, share)) for share in (0.05, 0.5, 0.95)}


@pytest.mark.parametrize(
    ("categories", "again", "exclude", "said"),
    [
        ("abc", True, Exclude.same_time, []),
        ("a", True, Exclude.same_time, ["All 30 items have the same category"]),
        ("own", True, Exclude.same_time, ["Each of the 30 items has a category of its own"]),
        ("abc", False, Exclude.same_time, ["No user ever touches an item again", "exclude=history fits"]),
        ("abc", False, Exclude.history, []),
    ],
)
def test_advice(categories: str, again: bool, exclude: Exclude, said: list[str], tmp_path: Path) -> None:
    user, place = (part.ravel() for part in np.meshgrid(np.arange(40), np.arange(8), indexing="ij"))
    item = (user * 3 + place % (4 if again else 8)) % 30
    frame = pl.DataFrame(
        {
            "user": user,
            "item": item,
            "timestamp": 1_600_000_000 + place * 60 + user,
            "category": [f"{n}" if categories == "own" else categories[n % len(categories)] for n in item],
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    data = EventFileConfig(path=str(tmp_path / "log.csv"), columns=EventColumns(category="category"))
    protocol = TemporalConfig(negatives=NegativesConfig(exclude=exclude))
    found = advice(store.load(store.prepare(data, protocol, str(tmp_path / "cache"))).card, protocol)
    assert len(found) == bool(said)
    assert all(words in found[0] for words in said)
