"""Events of logs that no machine holds: read file by file, cut by user, put together as numbers.

Three steps of tasks, each a Polars plan over a part, with small tables merged in between:

1. *read*, a task a file: its events go to partitions by a hash of their user.
2. *count*, a task a partition: its users, and how often each item and each value of an item's feature occurs in it.
   Merged: the users with their places in the log, the items, and an item's features, which all its events settle.
3. *order*, a task a partition: users and items become numbers, each user's events get their order.
   Put together: the log as three numbers an event. All that follows is as for a log of one machine (data/prepare.py).

The result is that of one process, array for array, however many partitions there are: what is drawn hangs on an
event's place in the whole log. Tasks run one after the other here, or on Ray. They meet in a folder, which every
machine must see under one path. A task writes its files beside their place and renames them, so that one that died is
simply run again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deepinterest.config import Engine, EventFileConfig, Repeats, Ties
from deepinterest.data.events import (
    COUNT,
    KINDS,
    LABEL,
    NOT_SAMPLED,
    REPEATS,
    REQUIRED,
    Events,
    in_order,
    most_frequent,
    one_value_per,
    quantity,
    refuse_one_label,
    sample_users,
    value_counts,
)
from deepinterest.data.samples import ranges
from deepinterest.data.sources import event_file
from deepinterest.data.text_file import TextFile
from deepinterest.data.where import Where
from deepinterest.errors import UserError

log = logging.getLogger(__name__)
RETRIES = 3  # of a task whose machine or process died

Types = dict[str, pl.DataType]
Task = Callable[..., dict[str, Any]]
Each = Callable[[Task, Sequence[tuple[Any, ...]]], Iterator[tuple[int, dict[str, Any]]]]
Run = Callable[[str, Task, Sequence[tuple[Any, ...]]], list[dict[str, Any]]]


@dataclass
class CodedEvents(Events):
    """Events whose `user` and `item` are rows of `users` and `items`, both sorted; features of either stand there."""

    users: pl.DataFrame = field(default_factory=pl.DataFrame)  # user and its features
    items: pl.DataFrame = field(default_factory=pl.DataFrame)  # item and its features

    def catalogues(self, items: pl.Series, users: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Raw items and users with their features, of the given rows: what `catalogue.raw` gives of other events."""
        return self.items[items.to_numpy()], self.users[users.to_numpy()]


def load(config: EventFileConfig, scratch: Path) -> CodedEvents:
    """The events that `event_file.load` gives, as numbers; raises UserError as it does.

    Args:
        scratch: a folder for parts, made if it isn't there. What a killed run left in it is gone on with; the caller
            removes it.
    """
    paths, columns = event_file.files(config), config.columns
    scratch.mkdir(parents=True, exist_ok=True)
    with _engine(config, scratch) as run:
        read = run(
            "read", _read, [(path, number, config, scratch, len(paths) > 1) for number, path in enumerate(paths)]
        )
        held = [number for number, answer in enumerate(read) if answer["types"]]
        event_file.refuse_all_empty(config, len(held))
        schemas = [{name: _type(kind) for name, kind in read[number]["types"].items()} for number in held]
        types = {name: kind.__class__.__name__ for name, kind in _common(schemas, [paths[n] for n in held]).items()}

        count = run("count", _count, [(part, held, types, config, scratch) for part in range(config.partitions)])
        ones, rows = (sum(answer[key] for answer in count) for key in ("ones", "rows"))
        if LABEL in types:
            refuse_one_label(ones, rows, Path(config.path).name, f"column {LABEL!r}")
        notes: dict[str, int] = {}
        items, several = _items(config, scratch)
        for owner, features, counts in (
            ("item", event_file.item_features(config), several),
            ("user", columns.user_features, [sum(a["several"][n] for a in count) for n in columns.user_features]),
        ):
            notes |= {f"{owner}s with several values of {n}": s for n, s in zip(features, counts, strict=True) if s}
        users = _users(config, scratch)
        repeated = int((users["__rows"] - users["__distinct"]).sum())
        dropped = {NOT_SAMPLED: rows - int(users["__rows"].sum())}
        (dropped if config.repeats is Repeats.drop else notes)[REPEATS] = repeated

        run("order", _order, [(part, held, types, config, scratch) for part in range(config.partitions)])
    frame = _together(config, scratch, users)
    return CodedEvents(
        frame,
        event_file.item_features(config),
        Path(config.path).name,
        {reason: lost for reason, lost in dropped.items() if lost},
        {note: seen for note, seen in notes.items() if seen},
        user_features=list(columns.user_features),
        context_features=list(columns.context_features),
        users=users.select("user", *columns.user_features),
        items=items,
    )


def partition_of(users: pl.Series, partitions: int) -> pl.Series:
    """(n,) which partition each user is in, by the CRC-32 of its text: the same on every machine."""
    known = users.unique()
    number = [zlib.crc32(str(user).encode()) % partitions for user in known.to_list()]
    table = pl.DataFrame({"user": known, "partition": pl.Series(number, dtype=pl.UInt32)})
    return users.alias("user").to_frame().join(table, on="user", how="left", maintain_order="left")["partition"]


# --------------------------------------------------------------------------------------------------------------- tasks


def _read(path: Path, number: int, config: EventFileConfig, scratch: Path, one_of_many: bool) -> dict[str, Any]:
    """Write the file's events of each partition; a file's row comes along where it decides the order."""
    frame = event_file.read(path, config, one_of_many)
    if frame is None:
        return {"types": {}}
    where = Where(str(path), TextFile.of(path, config))
    frame = frame.with_columns(quantity(frame[name], where) for name in frame.columns if name not in REQUIRED)
    types = {name: kind.__class__.__name__ for name, kind in event_file.types_of(frame).items()}
    if config.ties is Ties.file:
        frame = frame.with_row_index("__row")
    frame = frame.with_columns(partition_of(frame["user"], config.partitions).alias("__part"))
    for (part,), rows in frame.partition_by("__part", as_dict=True, include_key=False).items():
        _write(rows, scratch / f"read-{number}-{part}.parquet")
    return {"types": types}


def _count(part: int, held: list[int], types: dict[str, str], config: EventFileConfig, scratch: Path) -> dict[str, Any]:
    """Write users with their features and events, and the counts of items and of their features."""
    frame, features = _events(part, held, types, scratch), config.columns.user_features
    several = {}
    for feature in features:
        frame, several[feature] = one_value_per("user", frame, feature)
    touch = pl.col(LABEL).cast(pl.Int64) if LABEL in frame.columns else pl.lit(1, pl.Int64)
    number = pl.len().cast(pl.Int64)
    users = (
        frame.lazy()
        .with_columns(touch.alias("__ones"))
        .group_by("user", "item", "timestamp")
        .agg(
            number.alias("__rows"),
            pl.col("__ones").sum(),
            pl.col("__ones").max().alias("__touched"),
            pl.col(features).first(),
        )
        .group_by("user")
        .agg(number.alias("__distinct"), pl.col("__rows", "__ones", "__touched").sum(), pl.col(features).first())
        .collect()
    )
    events, touches = ("__distinct", "__touched") if config.repeats is Repeats.drop else ("__rows", "__ones")
    users = users.with_columns(pl.col(events).alias("__events"), pl.col(touches).alias("__touches"))
    _write(users, scratch / f"users-{part}.parquet")
    _write(frame.select(pl.col("item").unique()), scratch / f"items-{part}.parquet")
    for place, feature in enumerate(event_file.item_features(config)):
        counts = value_counts("item", frame, feature).collect(engine="streaming")
        _write(counts, scratch / f"item-feature-{place}-{part}.parquet")
    return {"rows": frame.height, "ones": int(users["__ones"].sum()), "several": several}


def _order(part: int, held: list[int], types: dict[str, str], config: EventFileConfig, scratch: Path) -> dict[str, Any]:
    """Write the events of the users that are kept, as numbers and in order: item, timestamp, context and label."""
    context = config.columns.context_features
    users = pl.read_parquet(scratch / f"kept-{part}.parquet", glob=False)  # by rising row
    items = pl.read_parquet(scratch / "items.parquet", columns=["item"], glob=False).with_row_index("__item")
    frame = _events(part, held, types, scratch)
    frame = frame.join(users.select("user").with_row_index("__user"), on="user").join(items, on="item")
    further = [name for name in ("__file", "__row", LABEL) if name in frame.columns]
    frame = frame.select(pl.col("__user").cast(pl.Int64).alias("user"), pl.col("__item").alias("item"), "timestamp",
                         *context, *further)  # fmt: skip
    if config.ties is Ties.file:
        frame = frame.sort("__file", "__row")
    if frame.height:
        before = (users["__touches_before"].to_numpy(), users["__others_before"].to_numpy())
        frame = frame[in_order(frame, config.ties, config.repeats, config.seed, context, before)[0]]
    _write(frame.drop("user", "__file", "__row", strict=False), scratch / f"ordered-{part}.parquet")
    return {}


def _events(part: int, held: list[int], types: dict[str, str], scratch: Path) -> pl.DataFrame:
    """A partition's events of all files, in the files' order."""
    schema = {name: _type(kind) for name, kind in types.items()}
    paths = [(number, scratch / f"read-{number}-{part}.parquet") for number in held]
    frames = [
        pl.scan_parquet(path, glob=False).with_columns(
            *(pl.col(name).cast(kind) for name, kind in schema.items()), pl.lit(number, pl.UInt32).alias("__file")
        )
        for number, path in paths
        if path.is_file()
    ]
    return pl.concat(frames).collect() if frames else pl.DataFrame(schema={**schema, "__file": pl.UInt32})


# -------------------------------------------------------------------------------------------------------------- merges


def _common(schemas: Sequence[Types], paths: Sequence[Path]) -> Types:
    if len(schemas) == 1:  # as event_file.load has it
        return {name: pl.String() if kind == pl.Null else kind for name, kind in schemas[0].items()}
    return event_file.common(schemas, [str(path) for path in paths])


def _items(config: EventFileConfig, scratch: Path) -> tuple[pl.DataFrame, list[int]]:
    """Write and return all items with their features; also how many had several values of each."""
    items = _all("items", config, scratch).unique().sort("item")
    several = []
    for place, feature in enumerate(event_file.item_features(config)):
        counts = (
            _all(f"item-feature-{place}", config, scratch).lazy().group_by("item", feature).agg(pl.col(COUNT).sum())
        )
        chosen = most_frequent("item", counts, feature)
        several.append(int((chosen[KINDS] > 1).sum()))
        items = items.join(chosen.drop(KINDS), on="item", how="left", maintain_order="left")
    _write(items, scratch / "items.parquet")
    return items, several


def _users(config: EventFileConfig, scratch: Path) -> pl.DataFrame:
    """The users that are kept, with their events and the place of their first; each partition gets its own."""
    users = pl.concat(
        [
            pl.read_parquet(scratch / f"users-{part}.parquet", glob=False).with_columns(
                pl.lit(part, pl.UInt32).alias("__part")
            )
            for part in range(config.partitions)
        ]
    ).sort("user")
    if config.limit_users is not None:
        kept = sample_users(users.filter(pl.col("__touches") > 0)["user"], config.limit_users, config.seed)
        if kept is not None:
            users = users.join(kept.to_frame(), on="user", how="semi", maintain_order="left")
    others = pl.col("__events") - pl.col("__touches")
    users = users.with_columns(
        (pl.col("__events").cum_sum() - pl.col("__events")).alias("__before"),
        (pl.col("__touches").cum_sum() - pl.col("__touches")).alias("__touches_before"),
        (others.cum_sum() - others + pl.col("__touches").sum()).alias("__others_before"),
    )
    for part in range(config.partitions):
        own = users.filter(pl.col("__part") == part)
        _write(own.select("user", "__touches_before", "__others_before"), scratch / f"kept-{part}.parquet")
    return users


def _together(config: EventFileConfig, scratch: Path, users: pl.DataFrame) -> pl.DataFrame:
    """All events, each partition's at the places of its users."""
    events = users["__events"].to_numpy()
    columns: dict[str, Any] = {"user": np.repeat(np.arange(len(users), dtype=np.int32), events)}
    total = len(columns["user"])
    for part in range(config.partitions):
        mine = (users["__part"] == part).to_numpy()
        places, _ = ranges(users["__before"].to_numpy()[mine], events[mine])
        own = pl.read_parquet(scratch / f"ordered-{part}.parquet", glob=False)
        for name in own.columns:
            if name in config.columns.context_features:  # may be text
                columns.setdefault(name, []).append((places, own[name]))
            else:
                values = own[name].to_numpy()
                columns.setdefault(name, np.empty(total, values.dtype))[places] = values
    for name in config.columns.context_features:
        parts = columns[name]
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        columns[name] = pl.concat([values for _, values in parts]).gather(order)
    return pl.DataFrame(columns)


def _all(name: str, config: EventFileConfig, scratch: Path) -> pl.DataFrame:
    return pl.concat(
        [pl.read_parquet(scratch / f"{name}-{part}.parquet", glob=False) for part in range(config.partitions)]
    )


def _write(frame: pl.DataFrame, path: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(beside)
    os.replace(beside, path)


def _type(name: str) -> pl.DataType:
    """Of a file's column: numbers, text, or nothing."""
    kind: pl.DataType = getattr(pl, name)()
    return kind


# ------------------------------------------------------------------------------------------------------------- engines


@contextmanager
def _engine(config: EventFileConfig, scratch: Path) -> Iterator[Run]:
    """What runs the tasks of a step and gives their answers in order; an answer that is on disk needs no task."""
    with _on_ray(config.ray_address) if config.engine is Engine.ray else nullcontext(_here) as each:

        def run(step: str, task: Task, jobs: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
            answers = [scratch / f"{step}-{number}.json" for number in range(len(jobs))]
            missing = [number for number, path in enumerate(answers) if not path.is_file()]
            for done, place in enumerate(each(task, [jobs[number] for number in missing]), start=1):
                number, answer = missing[place[0]], place[1]
                beside = scratch / f".{step}-{number}.json"
                beside.write_text(json.dumps(answer))
                os.replace(beside, answers[number])
                log.info("%s: %d of %d parts are done", step, len(jobs) - len(missing) + done, len(jobs))
            return [json.loads(path.read_text()) for path in answers]

        yield run


def _here(task: Task, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, job in enumerate(jobs):
        yield number, task(*job)


@contextmanager
def _on_ray(address: str | None) -> Iterator[Each]:
    """Tasks of one CPU each on a cluster, or on a Ray that starts on this machine and ends with the preparation."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError('data.engine=ray needs its package: pip install -e ".[ray]"') from error
    started = not ray.is_initialized()
    if started:
        try:
            local = {} if address else {"include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, logging_level="warning", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"data.ray_address={address}: Ray could not be reached or started ({reason}).") from error

    def each(task: Task, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, dict[str, Any]]]:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(task)
        waiting = {remote.remote(*job): number for number, job in enumerate(jobs)}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            try:
                yield waiting.pop(ready), ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, UserError | OSError) else error) from error
            except ray.exceptions.RayError as error:  # a machine or a worker died, again and again
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"data.engine=ray: a task was lost {RETRIES + 1} times ({reason}). Where it ran out of memory, "
                    f"take more partitions; the same command goes on with what is done."
                ) from error

    try:
        yield each
    finally:
        if started:
            ray.shutdown()
