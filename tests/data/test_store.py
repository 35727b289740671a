"""The prepared data set: an item keeps its category all the way to a batch, and equal settings share one folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
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
    LastEventConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    ReferenceDataConfig,
    Refresh,
    SyntheticConfig,
    TargetsPerUser,
    TemporalConfig,
    Ties,
)
from deepinterest.data import sources, store
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.events import Events, PublishedRows
from deepinterest.data.layout_export import export
from deepinterest.data.prepare import save
from deepinterest.data.samples import Samples
from deepinterest.data.store import SPLITS, STAGES, Store, prepare
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
    assert (held.card["categories"], held.card["categories_known"]) == (4, 3)  # "never" is in the log alone
    assert (held.card["items"], held.card["items_known"]) == (len(names) - 1, int(held.catalogue[:, 0].max()))
    assert held.card["dropped targets: validation, unseen in training"] == 2


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
    saved = []

    def full(path: Path, values: np.ndarray) -> None:
        saved.append(path)
        if len(saved) > 3:
            raise OSError(28, "No space left on device")
        save(path, values)

    monkeypatch.setattr("deepinterest.data.prepare.save", full)
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


# ---------------------------------------------------------------------------------------------------------- last_event


def test_vocabularies_of_last_event_are_those_of_the_rows(tmp_path: Path) -> None:
    """Occurrences in rows of train and validation, histories counted on each row; test users are unknown."""
    rows = [
        (f"u{u}", f"i{(u * u + 7 * t) % 23}", 1000 * t + u, f"c{(u * u + 7 * t) % 23 % 4}")
        for u in range(20)
        for t in range(5)
    ]
    rows += [("lone", "i-lone", 1, "c-lone")]  # one event: no row, but a negative of the whole pool
    path = tmp_path / "clicks.csv"
    pl.DataFrame(rows, ["user", "item", "timestamp", "category"], orient="row").write_csv(path)
    data = EventFileConfig(path=str(path), columns=EventColumns(category="category"))
    negatives = NegativesConfig(exclude=Exclude.positive, per_positive=2, whole_pool=True)
    held = prepared(data, LastEventConfig(test_share=0.3, negatives=negatives), tmp_path / "cache")
    category = {item: category for _, item, _, category in rows}
    names, users = held.item_names(), held.user_names()
    items, categories, met = [], [], []
    for samples in (held.samples["train"], held.samples["validation"]):
        for group in range(len(samples)):
            end, begin = samples.history_end[group], held.log.user_offsets[samples.user[group]]
            for row in range(samples.candidate_offsets[group], samples.candidate_offsets[group + 1]):
                mine = [names[samples.candidates[row]], *(names[item] for item in held.log.item[begin:end])]
                items += mine
                categories += [category[item] for item in mine]
                met.append(users[int(samples.user[group])])
    assert held.vocabulary("item").values.to_list() == vocabulary(items)[1:]
    assert held.vocabulary("category").values.to_list() == vocabulary(categories)[1:]
    assert held.vocabulary("user").values.to_list() == sorted(set(met))
    assert held.sizes == [len(set(items)) + 1, len(set(categories)) + 1] and held.user_sizes == [len(set(met)) + 1]
    assert (held.user_catalogue[held.samples["test"].user + 1] == 0).all()
    assert (held.user_catalogue[held.samples["validation"].user + 1] > 0).all()
    drawn = np.concatenate([samples.candidates for samples in held.samples.values()])
    assert held.card["events"] == len(rows) and len(held.samples["test"]) == 6
    assert "lone" not in met and names.index("i-lone") in held.log.item
    assert drawn.min() > 0


def test_a_lone_event_is_drawn_from_the_whole_pool_only(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{t}", 1000 * t) for u in range(40) for t in range(2)] + [
        (f"lone{n}", "rare", n) for n in range(30)
    ]
    path = tmp_path / "clicks.csv"
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv(path)
    for whole in (False, True):
        negatives = NegativesConfig(exclude=Exclude.positive, whole_pool=whole)
        held = prepared(EventFileConfig(path=str(path)), LastEventConfig(negatives=negatives), tmp_path / "cache")
        rare = held.item_names().index("rare")
        assert any(rare in samples.candidates for samples in held.samples.values()) == whole
        assert ("among all events" in held.card["negatives"]) == whole


def test_best_reachable_probe_knows_the_pool(tmp_path: Path) -> None:
    """Negatives of the whole pool: the likelihood ratio divides by shares of all events."""
    negatives = NegativesConfig(exclude=Exclude.none, whole_pool=True)
    held = prepared(SMALL, LastEventConfig(negatives=negatives, test_share=0.5), tmp_path)
    samples, log = held.samples["test"], held.log
    raw = np.concatenate([[-1], held.item_features()["item"].to_numpy()])
    share = np.bincount(log.item, minlength=log.items) / len(log)
    for group in range(5):
        begin, end = log.user_offsets[samples.user[group]], samples.history_end[group]
        rows = samples.candidates[2 * group : 2 * group + 2]
        touch = sources.synthetic.next_item_probability(SMALL, raw[log.item[begin:end]], raw[rows])
        np.testing.assert_allclose(held.probes["best_reachable"][2 * group : 2 * group + 2], touch / share[rows])


# ---------------------------------------------------------------------------------------------------------------- core


def test_core_by_hand(tmp_path: Path) -> None:
    """Item z has one event; without it user c has one, and without that item y."""
    events = [
        ("a", "x"),
        ("a", "w"),
        ("b", "x"),
        ("b", "w"),
        ("b", "y"),
        ("c", "y"),
        ("c", "z"),
        ("d", "w"),
        ("d", "w"),
    ]
    path = tmp_path / "clicks.csv"
    rows = [(user, item, 1000 + n) for n, (user, item) in enumerate(events)]
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv(path)
    held = prepared(EventFileConfig(path=str(path), core=2), LastEventConfig(), tmp_path / "cache")
    kept = list(zip(held.user_names()[held.log.user], (held.item_names()[i] for i in held.log.item), strict=True))
    assert kept == [pair for pair in events if pair[1] in "xw"]
    assert held.card["rows_read"] == 9 and held.card["dropped: outside the 2-core"] == 3
    assert (held.card["note: users outside the 2-core"], held.card["note: items outside the 2-core"]) == (1, 2)
    assert not any("core" in key for key in prepared(SMALL, LastEventConfig(), tmp_path / "cache").card)
    with pytest.raises(UserError, match=r"data\.core=4 leaves no event of clicks\.csv, which has 9"):
        store.prepare(EventFileConfig(path=str(path), core=4), LastEventConfig(), str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------------ published rows


def published(**changes: Any) -> Events:
    """Eight users of four events each; the rows' users, order and vocabularies are not those we would make."""
    rows = [(f"u{u}", f"a{(u + 2 * t) % 9}", 1_700_000_000_000 + 1000 * t) for u in range(8) for t in range(4)]
    frame = pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row")
    frame = frame.with_columns(category=pl.lit("c") + (pl.col("item").str.slice(1).cast(pl.Int64) % 3).cast(pl.String))
    target = {u: f"a{(u + 6) % 9}" for u in range(8)}

    def pairs(users: list[int]) -> pl.DataFrame:
        lines = [(f"u{u}", item, label, 3) for u in users for item, label in ((f"a{(u + 3) % 9}", 0), (target[u], 1))]
        schema = {"user": pl.String, "item": pl.String, "label": pl.UInt8, "history": pl.Int64}
        return pl.DataFrame(lines, schema, orient="row")

    rows_of = PublishedRows(
        **{
            "train": pairs([6, 2, 5, 0, 7, 3]),
            "test": pairs([4, 1]),
            "vocabularies": {
                "user": pl.Series(["u7", "u0", "u2", "u3", "u5", "u6"]),
                "item": pl.Series(["a4", "a8", "a0", "a1", "a2", "a3"]),  # the others are unknown
                "category": pl.Series(["c2", "c0", "c1"]),
            },
            **changes,
        }
    )
    events = Events.build(frame, ["category"], "published", ties=Ties.file)
    events.rows = rows_of
    return events


def prepared_rows(
    events: Events, protocol: ProtocolConfig, cache: Path, monkeypatch: pytest.MonkeyPatch, **data: Any
) -> Store:
    monkeypatch.setattr(sources, "load", lambda config: events)
    monkeypatch.setattr(sources, "fingerprint", lambda config: {})
    return prepared(ReferenceDataConfig(path="published", **data), protocol, cache)


def raw_rows(held: Store, samples: Samples) -> list[tuple[str, str, int, int]]:
    """user, item, label and length of history of each row."""
    names, users = held.item_names(), held.user_names()
    group = np.repeat(np.arange(len(samples)), np.diff(samples.candidate_offsets))
    history = samples.history_end - held.log.user_offsets[samples.user]
    return [
        (users[int(samples.user[g])], names[item], int(label), int(history[g]))
        for g, item, label in zip(group, samples.candidates, samples.label, strict=True)
    ]


def test_published_rows_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = published()
    rows = events.rows
    assert rows is not None
    held = prepared_rows(events, LastEventConfig(validation_share=0.3), tmp_path, monkeypatch)
    train, validation = held.samples["train"], held.samples["validation"]
    assert (len(train), len(validation), len(held.samples["test"])) == (4, 2, 2)
    assert raw_rows(held, held.samples["test"]) == rows.test.rows()
    assert raw_rows(held, train.merged(validation)) == rows.train.rows()  # both together are the file, in its order
    training = {user for user, *_ in raw_rows(held, train)}
    assert {user for user, *_ in raw_rows(held, validation)} == {"u6", "u2", "u5", "u0", "u7", "u3"} - training
    assert set(held.user_names()[held.log.user[held.seen]]) == training

    users, names = held.user_names().to_list(), held.item_names()
    user_ids = {"u7": 1, "u0": 2, "u2": 3, "u3": 4, "u5": 5, "u6": 6, "u4": 0, "u1": 0}
    assert {user: held.user_catalogue[users.index(user) + 1, 0] for user in users} == user_ids
    item_ids = {"a4": 1, "a8": 2, "a0": 3, "a1": 4, "a2": 5, "a3": 6}
    category_ids = {"c2": 1, "c0": 2, "c1": 3}
    for row, name in enumerate(names[1:], start=1):
        assert held.catalogue[row].tolist() == [item_ids.get(name, 0), category_ids[f"c{int(name[1:]) % 3}"]]
    assert held.sizes == [7, 4] and held.user_sizes == [7]
    assert held.card["negatives"] == "those of the published rows"
    assert [held.card[f"{name}_rows"] for name in ("train", "validation", "test")] == [8, 4, 4]


def test_the_seed_decides_which_published_users_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        set(prepared_rows(published(), LastEventConfig(), tmp_path, monkeypatch, seed=seed).samples["validation"].user)
        for seed in range(8)
    ]
    assert len({tuple(users) for users in chosen}) > 1


def test_earlier_targets_beside_the_published_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published_only = prepared_rows(published(), LastEventConfig(), tmp_path, monkeypatch)
    more = prepared_rows(published(), LastEventConfig(train_targets=3), tmp_path, monkeypatch)
    rows = raw_rows(more, more.samples["train"])
    assert [row for row in rows if row[3] == 3] == raw_rows(published_only, published_only.samples["train"])
    of_user = [[row[2:] for row in rows if row[0] == user] for user in dict.fromkeys(user for user, *_ in rows)]
    # Events 1 and 2, positive first as all drawn rows; then the file's pair.
    assert of_user == [[(1, 1), (0, 1), (1, 2), (0, 2), (0, 3), (1, 3)]] * 5
    names, users = more.item_names(), more.user_names().to_list()
    for user, item, label, history in rows:
        touched = names[more.log.item[more.log.user_offsets[users.index(user)] + history]]
        assert (item == touched) == (label == 1)
    for name in ("validation", "test"):
        assert raw_rows(more, more.samples[name]) == raw_rows(published_only, published_only.samples[name])


def test_other_protocols_take_published_events_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = prepared_rows(published(), LeaveLastOutConfig(), tmp_path, monkeypatch)
    assert held.card["train_rows"] == 2 * 8 and held.card["negatives"].startswith("popularity")


def test_a_negative_without_events_keeps_its_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = published(items=pl.DataFrame({"item": ["a90", "a0", "a90"], "category": ["c1", "c0", "c2"]}))
    assert events.rows is not None
    negatives = pl.Series(["a90", "a1", "a91", "a4"])  # nobody touched a90, and nothing is known of a91
    events.rows.test = events.rows.test.with_columns(item=negatives)
    held = prepared_rows(events, LastEventConfig(), tmp_path, monkeypatch)
    assert [item for _, item, _, _ in raw_rows(held, held.samples["test"])] == negatives.to_list()
    names = held.item_names()
    assert held.catalogue[names.index("a90")].tolist() == [0, held.catalogue[names.index("a4"), 1]]
    assert held.catalogue[names.index("a91")].tolist() == [0, 0]


def test_published_rows_refuse_what_would_change_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data\.core=2 is not possible with published.*Set data\.core=1"):
        prepared_rows(published(), LastEventConfig(), tmp_path, monkeypatch, core=2)
    with pytest.raises(UserError, match=r"data\.min_item_count=3 is not possible with reference"):
        prepared_rows(published(), LastEventConfig(), tmp_path, monkeypatch, min_item_count=3)


def test_published_row_without_a_target_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = published()
    assert events.rows is not None
    events.rows.test = events.rows.test.with_columns(history=pl.Series([3, 3, 4, 4]))
    with pytest.raises(UserError, match=r"Row 3 of the published rows has a history of 4 events of user u1"):
        prepared_rows(events, LastEventConfig(), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["train", "test"])
def test_published_file_without_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = published()
    assert events.rows is not None
    setattr(events.rows, name, events.rows.train.clear())
    with pytest.raises(UserError, match=rf"protocol=last_event leaves no {name} target"):
        prepared_rows(events, LastEventConfig(), tmp_path, monkeypatch)


# -------------------------------------------------------------------------------------------------------------- export


def pairs_of(rows: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(rows[::2], rows[1::2], strict=True))


def read_back(folder: Path, protocol: ProtocolConfig, cache: Path) -> Store:
    return prepared(ReferenceDataConfig(path=str(folder)), protocol, cache)


@pytest.mark.parametrize("category", ["category", None])
def test_exported_rows_read_back_are_the_same(category: str | None, tmp_path: Path) -> None:
    data = replace(own_file(tmp_path, {2: ("i15", "")}, users=30), columns=EventColumns(category=category))
    protocol = LastEventConfig(test_share=0.3, validation_share=0.2)
    held = prepared(data, protocol, tmp_path / "cache")
    export(held, tmp_path / "layout")
    again = read_back(tmp_path / "layout", protocol, tmp_path / "cache")

    def negatives_first(samples: Samples) -> list[tuple[str, str, int, int]]:
        return sum(([rows[1], rows[0]] for rows in pairs_of(raw_rows(held, samples))), [])

    together = held.samples["train"].merged(held.samples["validation"])
    assert raw_rows(again, again.samples["train"].merged(again.samples["validation"])) == negatives_first(together)
    assert raw_rows(again, again.samples["test"]) == negatives_first(held.samples["test"])
    assert again.item_names() == held.item_names()
    assert (again.log.item == held.log.item).all() and (again.log.time == held.log.time).all()
    names = ["item", "user", *([category] if category else [])]
    for name in names:
        assert again.vocabulary(name).values.to_list() == held.vocabulary(name).values.to_list()
    assert (again.catalogue[:, : len(held.sizes)] == held.catalogue).all() and (
        again.user_catalogue == held.user_catalogue
    ).all()
    text = (tmp_path / "layout" / "local_test_splitByUser").read_text().splitlines()
    tested = {line.split("\t")[1] for line in text}
    assert len(tested) == 9 and not tested & set(held.vocabulary("user").values)
    for first, second in pairs_of(text):
        assert first[0] == "0" and second[0] == "1"  # the negative precedes
        assert first.split("\t")[4:] == second.split("\t")[4:]


def test_published_files_survive_reading_and_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = published(items=pl.DataFrame({"item": ["a90"], "category": ["c1"]}))
    frame = events.frame
    rows = events.rows
    assert rows is not None
    rows.test = rows.test.with_columns(item=pl.when(pl.col("label") == 0).then(pl.lit("a90")).otherwise("item"))
    export(prepared_rows(events, LastEventConfig(), tmp_path / "cache", monkeypatch), tmp_path / "layout")
    monkeypatch.undo()
    back = sources.load(ReferenceDataConfig(path=str(tmp_path / "layout")))
    assert back.rows is not None
    assert back.frame.equals(frame)
    assert back.rows.train.equals(rows.train) and back.rows.test.equals(rows.test)
    for name, values in rows.vocabularies.items():
        assert back.rows.vocabularies[name].to_list() == values.to_list()


def test_export_refuses_what_the_layout_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protocol=leave_last_out has no published layout.*Set protocol=last_event"):
        export(prepared(SMALL, LeaveLastOutConfig(), tmp_path / "cache"), tmp_path / "layout")
    several = LastEventConfig(negatives=NegativesConfig(per_positive=3))
    with pytest.raises(UserError, match=r"here a positive has 3 negatives: set protocol\.negatives\.per_positive=1"):
        export(prepared(SMALL, several, tmp_path / "cache"), tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


# --------------------------------------------------------------------------------- the published pipeline, on real data

GLOBO = Path(__file__).parents[3] / "shared" / "data" / "globo"


@pytest.mark.skipif(not GLOBO.is_dir(), reason="the click log of ../shared/data/globo is not here")
def test_last_event_agrees_with_the_published_pipeline(tmp_path: Path) -> None:
    """Its files were made from the same log by the published scripts: only what is drawn may differ."""
    with tarfile.open(GLOBO / "reference_layout.tar.xz") as archive:
        wanted = ("local_train_splitByUser", "local_test_splitByUser", "mid_voc.pkl", "cat_voc.pkl")
        files = {
            Path(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive  # in the archive's order: going back would unpack anew
            if Path(member.name).name in wanted
        }
    columns = ["label", "user", "item", "category", "items", "categories"]
    train, test = (
        pl.read_csv(files[f"local_{name}_splitByUser"], separator="\t", has_header=False, new_columns=columns)
        for name in ("train", "test")
    )
    data = EventFileConfig(
        path=str(GLOBO / "clicks.parquet"),
        columns=EventColumns(category="category"),
        category_missing="-1",
        core=5,
        ties=Ties.file,
    )
    negatives = NegativesConfig(exclude=Exclude.positive, whole_pool=True)
    held = prepared(data, LastEventConfig(negatives=negatives), tmp_path)
    card, log = held.card, held.log
    assert (card["events"], card["users"], card["items"]) == (2_520_171, 158_323, 12_005)
    assert card["categories"] == 124  # and c-1, which to the published code is one more

    # Users: the same ones have rows, a pair each; which are tested is drawn with probability 1/10 there.
    published_rows = pl.concat([train, test])
    assert card["train_rows"] + card["validation_rows"] + card["test_rows"] == published_rows.height == 316_646
    four_sigma = 4 * np.sqrt(158_323 * 0.1 * 0.9)
    assert abs(card["test_rows"] / 2 - 15_832) < 1 and abs(test.height / 2 - 15_832) < four_sigma

    # Every user's positive, history and its categories are the same.
    names = "a" + held.item_features()["item"].cast(pl.String)
    of_item = "c" + held.item_features()["category"].cast(pl.String).fill_null("-1")
    event = pl.DataFrame(
        {
            "user": "u" + held.user_names().cast(pl.String).gather(log.user),
            "item": names.gather(log.item - 1),
            "category": of_item.gather(log.item - 1),
        }
    )
    ours = event.group_by("user", maintain_order=True).agg(
        pl.col("item").last(),
        pl.col("category").last(),
        pl.col("item").slice(0, pl.len() - 1).str.join("\x02").alias("items"),
        pl.col("category").slice(0, pl.len() - 1).str.join("\x02").alias("categories"),
    )
    for name in SPLITS:
        samples = held.samples[name]
        assert (samples.history_end == log.user_offsets[samples.user + 1] - 1).all()
    positives, negative = (published_rows.filter(pl.col("label") == label).drop("label") for label in (1, 0))
    assert positives.sort("user").equals(ours.sort("user"))
    histories = ["user", "items", "categories"]
    assert negative.select(histories).sort("user").equals(ours.select(histories).sort("user"))

    # Negatives are as popular: the mean log count of the items drawn agrees within four standard errors.
    count = np.bincount(log.item, minlength=log.items)
    drawn = np.concatenate([s.candidates[s.label == 0] for s in held.samples.values()])
    row = pl.DataFrame({"item": names}).with_row_index("row", offset=1)
    theirs = negative.join(row, on="item", how="left")["row"].to_numpy()
    popularity = [np.log(count[items]) for items in (drawn, theirs)]
    error = np.sqrt(sum(values.var() / len(values) for values in popularity))
    assert abs(popularity[0].mean() - popularity[1].mean()) < 4 * error

    # An item is missing from a vocabulary if its users all are test users and it is never drawn in training rows: for
    # each item of m users with a probability below 0.1^m, nearly a Poisson number altogether.
    users_of = event.group_by("item").agg(pl.col("user").n_unique())["user"].to_numpy()
    missing = (0.1**users_of).sum()
    spread = missing + 4 * np.sqrt(missing) + 1
    ids = {name: files[f"{name}_voc.pkl"].count(b"\nsV") for name in ("mid", "cat")}  # text keys, less the default
    assert 12_005 - spread <= ids["mid"] <= 12_005 and 12_005 - spread <= held.sizes[0] - 1 <= 12_005
    assert abs(ids["cat"] - 1 - (held.sizes[1] - 1)) <= spread
    assert held.user_sizes == [(card["train_rows"] + card["validation_rows"]) // 2 + 1]


def test_preparing_needs_no_torch() -> None:
    code = "import sys, deepinterest.data.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (100_001,), (40_000, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float64, np.bool_])
def test_saved_as_numpy_saves(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    """In pieces; also of columns of a wider table, and of a transposed one."""
    values = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(dtype)
    for number, given in enumerate((values, values[::2], np.asfortranarray(values))):
        save(tmp_path / f"{number}.npy", given)
        np.save(tmp_path / "numpy.npy", np.ascontiguousarray(given))
        assert (tmp_path / f"{number}.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
