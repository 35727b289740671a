"""Amazon reviews as published in 2014, 2018 and 2023: a review is an event, the product's category its category.

    2014  reviews_X.json.gz   reviewerID, asin, unixReviewTime (s)          meta_X.json.gz   Python literals; asin,
                                                                           categories: a list of paths, brand
    2018  X.json.gz           the same, some reviews twice                  meta_X.json.gz   JSON; asin, main_cat,
                                                                           category: one path, brand
    2023  X.jsonl.gz          user_id, parent_asin, timestamp (ms)          meta_X.jsonl.gz  JSON; parent_asin,
                                                                           main_category, categories: one path, store

Which one a file is, its first records tell. The 5-core files are called X_5. Texts are passed over unread.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deepinterest.config import AmazonConfig, ItemCategory
from deepinterest.data import paths
from deepinterest.data.download import fetch, raw_folder
from deepinterest.data.events import Events
from deepinterest.data.sources import json_lines
from deepinterest.data.sources.json_lines import Field
from deepinterest.errors import UserError, some

SITE_2014 = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
SITE_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
SITE_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
YEARS = (2014, 2018, 2023)
NEEDS = "data=amazon needs data.reviews=PATH and, for categories, data.metadata=PATH; or data.category=Books"
ONLY_2014, ONLY_2018 = {"helpful"}, {"verified", "vote", "style", "image"}  # fields of reviews
MIX = 0x5851F42D4C957F2D  # any large odd number
MAX_MS = 253_402_300_800_000  # the year 10000
WHOLE = pl.col("time").str.strip_chars().cast(pl.Int64, strict=False)
DECIMAL = pl.col("time").str.strip_chars().cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)  # 1.4e9
UNITS = ((1e11, "s", 1e3), (1e14, "ms", 1.0), (1e17, "us", 1e-3), (math.inf, "ns", 1e-6))  # below; milliseconds in one


@dataclass(frozen=True)
class Format:
    """What a file was found to be."""

    year: str
    fields: dict[str, Field]


def load(config: AmazonConfig) -> Events:
    """Reviews as events; raises UserError for whatever is wrong with the files, with the line.

    A review that repeats another (user, item and time) is dropped and counted. An item that metadata lack, or for which
    they name no category, has an unknown one; both are counted. Without metadata items have no category.
    """
    reviews, metadata = _files(config)
    reviewed = _reviews_format(reviews, json_lines.sample(reviews))
    described = None
    if metadata is not None:  # before the long work: what is wrong is told at once
        described = _metadata_format(metadata, json_lines.sample(metadata), config.item_category)

    dropped: dict[str, int] = {}
    notes: dict[str, int] = {}
    found = f"amazon {reviewed.year}, {reviews.name}"
    if described is not None:
        found += f" with {described.year} metadata, category: {config.item_category.value}"
    events = Events.build(
        _table(reviews, reviewed, metadata, described, dropped, notes),  # held by nobody else, so that it can go
        ["category"] if described else [],
        found,
        dropped,
        config.seed,
        config.limit_users,
        config.ties,
    )
    events.notes.update({note: count for note, count in notes.items() if count})
    return events


def fingerprint(config: AmazonConfig) -> dict[str, Any]:
    """Path, size (bytes) and time of change (ns) of each file; raises UserError if one is missing."""
    files = [path.resolve() for path in _files(config) if path is not None]
    stats = [path.stat() for path in files]
    return {
        "name": "amazon",
        "path": [str(path) for path in files],
        "size": [stat.st_size for stat in stats],
        "mtime_ns": [stat.st_mtime_ns for stat in stats],
    }


# --------------------------------------------------------------------------------------------------------------- files


def _files(config: AmazonConfig) -> tuple[Path, Path | None]:
    """Reviews and metadata; those of `category` are fetched if they aren't in the folder."""
    if config.category is None:
        if config.reviews is None:
            raise UserError(f"{NEEDS} (Electronics, …) and data.year={'|'.join(map(str, YEARS))}.")
        metadata = None if config.metadata is None else _existing(config.metadata, "data.metadata")
        return _existing(config.reviews, "data.reviews"), metadata
    if config.reviews is not None or config.metadata is not None:
        raise UserError(f"data.category={config.category} names the files itself: leave out either it or the paths.")
    folder = raw_folder("amazon", config.folder)
    reviews, described = _published(config.category, config.year, config.five_core)
    return _found(folder, reviews), _found(folder, described)


def _published(category: str, year: int, five_core: bool) -> tuple[str, str]:
    """Addresses of reviews and metadata."""
    if not category.replace("_", "").isalnum():
        raise UserError(f"data.category={category} is not possible: write it as the files do, as in Movies_and_TV.")
    if five_core and year == 2023:
        raise UserError("data.five_core=true is not possible with data.year=2023: set data.core=5, which makes it.")
    core = "_5" if five_core else ""
    match year:
        case 2014:
            return f"{SITE_2014}/reviews_{category}{core}.json.gz", f"{SITE_2014}/meta_{category}.json.gz"
        case 2018:
            part = f"categoryFilesSmall/{category}_5" if five_core else f"categoryFiles/{category}"
            return f"{SITE_2018}/{part}.json.gz", f"{SITE_2018}/metaFiles2/meta_{category}.json.gz"
        case 2023:
            return (
                f"{SITE_2023}/review_categories/{category}.jsonl.gz",
                f"{SITE_2023}/meta_categories/meta_{category}.jsonl.gz",
            )
    raise UserError(f"data.year={year} is not possible: one of {', '.join(map(str, YEARS))}")


def _found(folder: Path, url: str) -> Path:
    """The file in `folder`, unpacked or not; fetched where it is neither."""
    name = url.rpartition("/")[2]
    plain = folder / name.removesuffix(".gz")
    return plain if plain.is_file() else fetch(url, folder / name)


def _existing(given: str, key: str) -> Path:
    return paths.file(given, key)


# ------------------------------------------------------------------------------------------------------------- formats


def _reviews_format(path: Path, records: list[dict[str, Any]]) -> Format:
    """Of the first records; raises UserError if they are no reviews."""
    keys = set().union(*records)
    if {"user_id", "parent_asin"} <= keys:
        return Format("2023", {"user": Field("user_id"), "item": Field("parent_asin"), "time": Field("timestamp")})
    if "reviewerID" in keys:
        year = "2018" if keys & ONLY_2018 else "2014" if keys & ONLY_2014 else "2014 or 2018"
        return Format(year, {"user": Field("reviewerID"), "item": Field("asin"), "time": Field("unixReviewTime")})
    if keys & {"asin", "parent_asin"}:
        raise UserError(f"{path} holds metadata ({_some(keys)}), no reviews: give it by data.metadata={path}.")
    raise UserError(
        f"{path} holds no reviews: line 1 and those after it have {_some(keys)}, "
        "and neither reviewerID (2014, 2018) nor user_id and parent_asin (2023): correct data.reviews."
    )


def _metadata_format(path: Path, records: list[dict[str, Any]], which: ItemCategory) -> Format:
    """Of the first records; raises UserError if they are no metadata."""
    keys = set().union(*records)
    if keys & {"reviewerID", "user_id"}:
        raise UserError(f"{path} holds reviews ({_some(keys)}), no metadata: give it by data.reviews={path}.")
    if "parent_asin" in keys:
        year, item = "2023", Field("parent_asin")
        paths, main, brand = Field("categories", False, 1), Field("main_category", False), Field("store", False)
    elif "asin" in keys and keys & {"category", "main_cat"}:
        year, item = "2018", Field("asin")
        paths, main, brand = Field("category", False, 1), Field("main_cat", False), Field("brand", False)
    elif "asin" in keys:
        lists = [part for record in records if isinstance(found := record.get("categories"), list) for part in found]
        flat = bool(lists) and not any(isinstance(part, list) for part in lists)
        year, item = "2014", Field("asin")
        paths, brand = Field("categories", False, 1 if flat else 2), Field("brand", False)
        main = replace(paths, path=0, place=0)
    else:
        raise UserError(
            f"{path} holds no metadata: line 1 and those after it have {_some(keys)}, "
            "and neither asin (2014, 2018) nor parent_asin (2023): correct data.metadata."
        )
    match which:
        case ItemCategory.first_path_last:
            category = replace(paths, path=0, place=-1)
        case ItemCategory.last_path_last:
            category = replace(paths, path=-1, place=-1)
        case ItemCategory.main:
            category = main
        case ItemCategory.brand:
            category = brand
    return Format(year, {"item": item, "category": category})


def _some(keys: set[str]) -> str:
    return some(sorted(map(str, keys))) if keys else "no fields"


# -------------------------------------------------------------------------------------------------------------- values


def _table(
    reviews: Path,
    reviewed: Format,
    metadata: Path | None,
    described: Format | None,
    dropped: dict[str, int],
    notes: dict[str, int],
) -> pl.DataFrame:
    """user, item, timestamp and, with metadata, category of all reviews but repeats; fills `dropped` and `notes`."""
    frame, category = _read(reviews, reviewed, metadata, described, dropped)
    if category is None:
        return frame
    items = frame["item"].unique()
    category = category.join(items.to_frame(), on="item", how="semi")
    if category.is_empty():
        raise UserError(
            f"{metadata} describes none of the {len(items):,} items of {reviews}: are they of one category and year?"
        )
    notes["items without metadata"] = len(items) - category.height
    notes["items of which metadata name no category"] = category["category"].null_count()
    return frame.with_columns(_of_items(category, frame["item"]))


def _read(
    reviews: Path, reviewed: Format, metadata: Path | None, described: Format | None, dropped: dict[str, int]
) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """user, item and timestamp of each review; item and category of each item that the metadata describe, if given.

    Both files are read side by side, as a gz can't be unpacked by more than one core. Texts become codes at once.
    """
    read, category, known = _Reviews(), pl.Categorical(pl.Categories.random("category")), []
    of_metadata = json_lines.read(metadata, described.fields) if metadata and described else iter(())
    for part, more in zip_longest(json_lines.read(reviews, reviewed.fields), of_metadata):
        if part is not None:
            read.add(part)
        if more is not None:
            known.append(more.select(pl.col("item").cast(read.item), _named("category").cast(category)))
    frame = read.frame(reviews, reviewed.fields["time"].key, dropped)
    if not known:
        return frame, None
    first = pl.col("category").drop_nulls().first()  # of an item described twice
    return frame, pl.concat(known).group_by("item", maintain_order=True).agg(first)


def _of_items(category: pl.DataFrame, items: pl.Series) -> pl.Series:
    """The category of each of `items`; what a left join gives, with a fifth of its memory."""
    codes, described = items.to_physical().to_numpy(), category["item"].to_physical().to_numpy()
    row = np.full(int(max(codes.max(), described.max())) + 1, category.height, np.uint32)
    row[described] = np.arange(category.height, dtype=np.uint32)
    return category["category"].extend_constant(None, 1).gather(row[codes])


class _Reviews:
    """What has been read so far, 20 bytes a review: in arrays, as polars gives memory back late."""

    def __init__(self) -> None:
        self.user, self.item = (pl.Categorical(pl.Categories.random(name)) for name in ("user", "item"))
        self._codes = pl.Series(dtype=self.user), pl.Series(dtype=self.item)  # codes last as long as a column has them
        self._users, self._items, self._times, self._lines = array("I"), array("I"), array("q"), array("I")
        self._odd: list[pl.DataFrame] = []  # row, line and time of those that are no numbers

    def add(self, part: pl.DataFrame) -> None:
        """Of the columns line, user, item and time, as the file has them."""
        number = part["time"].cast(pl.Int64, strict=False)
        if number.null_count():
            number = part.select(pl.coalesce(number, WHOLE, DECIMAL)).to_series()
            rows = part.select("line", "time").with_row_index("row", len(self._lines))
            self._odd.append(rows.filter(number.is_null()))
            number = number.fill_null(0)
        for held, values in (
            (self._users, part["user"].cast(self.user).to_physical()),
            (self._items, part["item"].cast(self.item).to_physical()),
            (self._times, number),
            (self._lines, part["line"]),
        ):
            held.frombytes(values.to_numpy().tobytes())

    def frame(self, path: Path, key: str, dropped: dict[str, int]) -> pl.DataFrame:
        """user, item and timestamp of each review, repeats left out and counted. For once: it changes what it holds."""
        user, item, time, line = (
            np.frombuffer(held, held.typecode) for held in (self._users, self._items, self._times, self._lines)
        )
        _to_milliseconds(time, line, self._odd, path, key)
        kept = _distinct(user, item, time)
        if kept is not None:
            dropped["repeat of a review"] = len(kept) - int(np.count_nonzero(kept))
            user, item, time = user[kept], item[kept], time[kept]
        users, items = pl.Series("user", user).cat.to(self.user), pl.Series("item", item).cat.to(self.item)
        return pl.DataFrame([users, items, pl.Series("timestamp", time)])


def _to_milliseconds(times: np.ndarray, lines: np.ndarray, odd: list[pl.DataFrame], path: Path, key: str) -> None:
    """Change `times` (int64, in place): numbers of s, ms, us or ns, told by the middle one, or ISO 8601 text.

    Raises UserError, with the line, for what is no time or lies beyond the year 9999.

    Args:
        lines: of each time.
        odd: row, line and time of those that are no numbers; `times` has 0 for them.
    """
    texts = pl.concat(odd) if odd else None
    numbers = times if texts is None else np.delete(times, texts["row"].to_numpy())
    middle = np.median(numbers) if len(numbers) else 0.0
    unit, factor = next((unit, ms) for limit, unit, ms in UNITS if middle < limit)
    if len(numbers) and max(-int(numbers.min()), int(numbers.max())) * factor >= MAX_MS:
        row = int(np.argmax(np.abs(times.astype(np.float64)) * factor >= MAX_MS))
        raise UserError(
            f"{path}, line {lines[row]}: {key!r} holds {times[row]}, which in {unit} lies beyond the year 9999 "
            "(the file's middle value tells the unit): mend the line."
        )
    if factor >= 1:
        times *= int(factor)
    else:
        times //= round(1 / factor)
    if texts is None:
        return
    for row, line, value in texts.iter_rows():
        try:
            time = datetime.fromisoformat(value.strip())
        except ValueError:
            raise UserError(
                f"{path}, line {line}: {key!r} holds {value!r}, which is no time: use numbers or text such as "
                "2014-05-31T18:30:00."
            ) from None
        times[row] = round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _distinct(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray | None:
    """(n,) bool: the first of equal reviews; None where none repeats another.

    Leaner than polars' `unique`, which groups all rows though few are repeats.
    """
    code = user.astype(np.int64)
    code <<= 32
    code += item
    code *= MIX  # beyond 64 bits it begins anew: a hash
    code += time
    ordered = np.sort(code)
    same = ordered[1:] == ordered[:-1]
    if not same.any():
        return None
    doubtful = np.flatnonzero(np.isin(code, ordered[1:][same]))
    reviews = pl.DataFrame({"user": user[doubtful], "item": item[doubtful], "time": time[doubtful]})
    kept = np.ones(len(code), bool)
    kept[doubtful] = reviews.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return kept


def _named(column: str) -> pl.Expr:
    """The name of a category, null for none."""
    category = pl.col(column).str.strip_chars()
    image = category.str.extract(r"""^<img .*alt="([^"]*)""")  # of main_cat: its name is written as a picture
    named = pl.coalesce(image, category)
    return pl.when(named != "").then(named).alias(column)
