"""The prepared data set: an item keeps its category all the way to a batch, and equal settings share one folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import (
    DataConfig,
    EventColumns,
    EventFileConfig,
    Exclude,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    Refresh,
    SyntheticConfig,
    TargetsPerUser,
    TemporalConfig,
)
from deepinterest.data import sources, store
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.store import STAGES, Store, prepare
from deepinterest.errors import UserError

SMALL = SyntheticConfig(users=120, events_per_user=12)


def prepared(data: DataConfig, protocol: ProtocolConfig, cache: Path) -> Store:
    return store.load(store.prepare(data, protocol, str(cache)))


def module(data: DataConfig, protocol: ProtocolConfig, cache: Path, **more: Any) -> InteractionData:
    return InteractionData(
        data, protocol, **{"batch_size": 64, "eval_batch_size": 100, "seed": 1, **more}, cache=str(cache)
    )


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def vocabulary(values: list[str], least: int = 1) -> list[str | None]:
    """Raw values by id: 0 is unknown, then by falling count, then by value."""
    counts = Counter(value for value in values if value is not None)
    return [None, *sorted((v for v, n in counts.items() if n >= least), key=lambda v: (-counts[v], v))]


def own_file(
    folder: Path, last_but_one: dict[int, tuple[str, str]], users: int = 20, events: int = 6
) -> EventFileConfig:
    """A file in which `last_but_one[user]` = (item, category) replaces that user's event before the last."""
    rows = []
    for user in range(users):
        for step in range(events):
            number = (user * 3 + step * 5) % 16
            item, category = f"i{number}", f"c{number % 3}"
            if step == events - 2:
                item, category = last_but_one.get(user, (item, category))
            rows.append((f"u{user}", item, 1_700_000_000 + 1000 * step + user, category))
    path = folder / "clicks.csv"
    pl.DataFrame(rows, ["user", "item", "timestamp", "category"], orient="row").write_csv(path)
    return EventFileConfig(path=str(path), columns=EventColumns(category="category"))


@pytest.mark.parametrize("protocol", [LeaveLastOutConfig(), TemporalConfig()])
@pytest.mark.parametrize("data", [SMALL, replace(SMALL, min_item_count=3), replace(SMALL, limit_users=60)])
def test_category_of_every_item_in_every_batch(data: DataConfig, protocol: ProtocolConfig, tmp_path: Path) -> None:
    auxiliary = NegativesConfig(exclude=Exclude.positive)
    loaders = module(data, protocol, tmp_path, auxiliary=auxiliary)
    held = loaders.store
    frame = sources.load(data).frame  # the raw events, read on their own
    truth = {str(item): category for item, category in frame.select("item", "category").iter_rows()}
    names = held.item_names()
    learned = [names[row] for row in held.log.item[held.seen]]
    categories = vocabulary([truth[name] for name in learned])
    # ids of items: raw integers, so ties go by number
    items = [None, *(str(i) for i in vocabulary([int(name) for name in learned], data.min_item_count)[1:])]  # type: ignore[misc, arg-type]
    assert held.sizes == [len(items), len(categories)]

    met = set()
    for loader in (loaders.train_dataloader(), loaders.val_dataloader(), loaders.test_dataloader()):
        for batch in loader:
            met |= set(batch.history.tolist()) | set(batch.candidates.tolist())
            if batch.auxiliary_negatives is not None:
                met |= set(batch.auxiliary_negatives.ravel().tolist())
    assert 0 not in met
    known = set(categories)
    for row in met:
        own, category = held.catalogue[row]
        assert categories[category] == (truth[names[row]] if truth[names[row]] in known else None)
        assert items[own] == (names[row] if names[row] in items else None)
    if data.min_item_count > 1:
        assert any(held.catalogue[row, 0] == 0 and held.catalogue[row, 1] > 0 for row in met)


def test_batches_are_the_raw_events(tmp_path: Path) -> None:
    loaders = module(SMALL, LeaveLastOutConfig(), tmp_path)
    held, frame = loaders.store, sources.load(SMALL).frame
    of_user = {
        str(user): [str(i) for i in rows["item"]] for (user,), rows in frame.group_by("user", maintain_order=True)
    }
    names, users = held.item_names(), [str(user) for user in held.user_names()]
    for batch in loaders.test_dataloader():
        for group, user in enumerate((batch.user - 1).tolist()):
            mine = of_user[users[user]]
            assert [names[i] for i in batch.history[batch.offsets[group] : batch.offsets[group + 1]]] == mine[:-1][-50:]
            rows = batch.history_index == group
            assert [names[i] for i in batch.candidates[rows & (batch.label == 1)]] == mine[-1:]


def test_unseen_item_keeps_its_category(tmp_path: Path) -> None:
    # Before the last: it is a validation target, so training does not learn from it, but test histories hold it.
    data = own_file(tmp_path, {0: ("new", "c2"), 1: ("newer", "never")})
    loaders = module(data, LeaveLastOutConfig(), tmp_path / "cache")
    held = loaders.store
    names = held.item_names()
    new, newer, plain = names.index("new"), names.index("newer"), names.index("i2")
    assert held.catalogue[new].tolist() == [0, held.catalogue[plain, 1]]
    assert held.catalogue[plain, 1] > 0
    assert held.catalogue[newer].tolist() == [0, 0]
    history = np.concatenate([batch.history.numpy() for batch in loaders.test_dataloader()])
    assert {new, newer} <= set(history.tolist())
    assert held.card["categories"] == 3
    assert held.card["dropped: validation targets unseen in training"] == 2


def test_file_without_categories(tmp_path: Path) -> None:
    data = replace(own_file(tmp_path, {}), columns=EventColumns())
    held = prepared(data, LeaveLastOutConfig(), tmp_path / "cache")
    assert held.catalogue.shape == (17, 1)
    assert held.card["categories"] == 0


def test_min_item_count_counts_training_events(tmp_path: Path) -> None:
    held = prepared(replace(SMALL, min_item_count=3), LeaveLastOutConfig(), tmp_path)
    count = np.bincount(held.log.item[held.seen], minlength=held.log.items)
    assert ((held.catalogue[:, 0] > 0) == (count >= 3)).all()
    assert held.sizes[0] == (count >= 3).sum() + 1


def test_equal_settings_share_a_folder(tmp_path: Path) -> None:
    first = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    assert store.prepare(replace(SMALL), LeaveLastOutConfig(), str(tmp_path)) == first
    elsewhere = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path / "other"))
    cards = [json.loads((folder / "card.json").read_text()) for folder in (first, elsewhere)]
    assert cards[0] == cards[1]


def test_each_setting_has_a_folder(tmp_path: Path) -> None:
    changed: list[tuple[DataConfig, ProtocolConfig]] = [
        (SMALL, LeaveLastOutConfig()),
        (replace(SMALL, seed=1), LeaveLastOutConfig()),
        (replace(SMALL, limit_users=50), LeaveLastOutConfig()),
        (replace(SMALL, min_item_count=2), LeaveLastOutConfig()),
        (SMALL, TemporalConfig()),
        (SMALL, LeaveLastOutConfig(targets_per_user=TargetsPerUser(train=2))),
        (SMALL, LeaveLastOutConfig(negatives=NegativesConfig(per_positive=2))),
        (SMALL, LeaveLastOutConfig(negatives=NegativesConfig(exclude=Exclude.history))),
    ]
    held = [prepared(data, protocol, tmp_path) for data, protocol in changed]
    assert len(folders(tmp_path)) == len(changed)
    hashes = [one.card["split_hash"] for one in held]
    assert hashes[0] == hashes[3]  # the vocabulary differs, the samples do not
    assert len(set(hashes)) == len(changed) - 1
    assert held[0].vocabulary_hash != held[3].vocabulary_hash


def test_changed_file_is_prepared_anew(tmp_path: Path) -> None:
    first = prepared(own_file(tmp_path, {}), LeaveLastOutConfig(), tmp_path / "cache")
    second = prepared(own_file(tmp_path, {0: ("new", "c2")}), LeaveLastOutConfig(), tmp_path / "cache")
    assert first.folder != second.folder
    assert first.card["items"] + 1 == second.card["items"]


def test_limit_users(tmp_path: Path) -> None:
    held = prepared(replace(SMALL, limit_users=50), LeaveLastOutConfig(), tmp_path)
    assert held.card["users"] == len(held.user_names()) == 50
    assert set(held.user_names()) < set(range(120))
    assert prepared(replace(SMALL, limit_users=500), LeaveLastOutConfig(), tmp_path).card["users"] == 120


def rows_of_an_epoch(loader: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """(user, positive) and (user, positive, negative), sorted."""
    rows = []
    for batch in loader:
        user = batch.user[batch.history_index].reshape(-1, 2)[:, 0]
        assert (batch.label.reshape(-1, 2) == batch.label.new_tensor([1, 0])).all()
        rows += [(u, *pair) for u, pair in zip(user.tolist(), batch.candidates.reshape(-1, 2).tolist(), strict=True)]
    return sorted(row[:2] for row in rows), sorted(rows)


@pytest.mark.parametrize("refresh", list(Refresh))
def test_refresh(refresh: Refresh, tmp_path: Path) -> None:
    protocol = LeaveLastOutConfig(negatives=NegativesConfig(refresh=refresh))
    loader = module(SMALL, protocol, tmp_path).train_dataloader()
    (positives, first), (again, second) = rows_of_an_epoch(loader), rows_of_an_epoch(loader)
    assert positives == again
    assert (first == second) == (refresh is Refresh.once)
    fresh = module(SMALL, protocol, tmp_path)
    assert rows_of_an_epoch(fresh.train_dataloader())[1] == first
    tests = [np.concatenate([batch.candidates.numpy() for batch in fresh.test_dataloader()]) for _ in range(2)]
    assert (tests[0] == tests[1]).all()


def test_failed_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = np.save, []

    def full(path: Path, values: np.ndarray) -> None:
        saved.append(path)
        if len(saved) > 3:
            raise OSError(28, "No space left on device")
        save(path, values)

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*paths\.cache"):
        store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    assert folders(tmp_path) == []
    monkeypatch.undo()
    assert prepared(SMALL, LeaveLastOutConfig(), tmp_path).card["users"] == 120


def test_no_user_with_enough_events(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 3 events or more, which protocol=leave_last_out needs"):
        store.prepare(own_file(tmp_path, {}, events=2), LeaveLastOutConfig(), str(tmp_path / "cache"))
    assert folders(tmp_path / "cache") == []


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from deepinterest.config import *; from deepinterest.data import store\n"
        "data = SyntheticConfig(users=3000, events_per_user=30)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(store.prepare(data, LeaveLastOutConfig(), sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    (folder,) = folders(tmp_path)
    assert {output.strip() for output, _ in answers} == {str(folder)}
    assert store.load(folder).card["users"] == 3000


def test_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Callable[[str], Path] = lambda name: tmp_path / name  # noqa: E731
    monkeypatch.setattr(store, "user_cache_path", taken)
    assert store.prepare(SMALL, LeaveLastOutConfig(), None).parent == tmp_path / "deepinterest"


def test_every_stage_of_preparing_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    prepare(SMALL, LeaveLastOutConfig(), str(tmp_path), told.append)
    assert told == list(STAGES)
    prepare(SMALL, LeaveLastOutConfig(), str(tmp_path), told.append)
    assert len(told) == len(STAGES)  # the second time it is there already
