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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deepinterest.config import AmazonConfig, ItemCategory
from deepinterest.data.download import fetch, raw_folder
from deepinterest.data.events import Events
from deepinterest.data.sources import json_lines
from deepinterest.data.sources.json_lines import Field
from deepinterest.errors import UserError

SITE_2014 = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
SITE_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
SITE_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
YEARS = (2014, 2018, 2023)
NEEDS = "data=amazon needs data.reviews=PATH and, for categories, data.metadata=PATH; or data.category=Books"
ONLY_2014, ONLY_2018 = {"helpful"}, {"verified", "vote", "style", "image"}  # fields of reviews
MAX_MS = 253_402_300_800_000  # the year 10000
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

    frame = pl.concat(json_lines.read(reviews, reviewed.fields))
    time = _milliseconds(frame, reviews, reviewed.fields["time"].key)
    frame = frame.select("user", "item", time)
    rows = frame.height
    frame = _without_repeats(frame)
    dropped = {"repeat of a review": rows - frame.height}
    found = f"amazon {reviewed.year}, {reviews.name}"
    if metadata is None or described is None:
        return Events.build(frame, [], found, dropped, config.seed, config.limit_users, config.ties)

    items = frame["item"].unique()
    category = _categories(metadata, described, items)
    notes = {
        "items without metadata": len(items) - category.height,
        "items of which metadata name no category": category["category"].null_count(),
    }
    if category.is_empty():
        raise UserError(
            f"{metadata} describes none of the {len(items):,} items of {reviews}: are they of one category and year?"
        )
    frame = frame.join(category, on="item", how="left", maintain_order="left")
    found += f" with {described.year} metadata, category: {config.item_category.value}"
    events = Events.build(frame, ["category"], found, dropped, config.seed, config.limit_users, config.ties)
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
    path = Path(given).expanduser()
    if path.is_dir():
        raise UserError(f"{key} is {str(path)!r}, a folder: give one file.")
    if not path.is_file():
        raise UserError(f"{key} is {str(path)!r}, and there is no such file: correct the path.")
    return path


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
        raise UserError(f"{path} holds metadata ({_some(keys)}), no reviews: give it by data.metadata={path.name}.")
    raise UserError(
        f"{path} holds no reviews: line 1 and those after it have {_some(keys)}, "
        "and neither reviewerID (2014, 2018) nor user_id and parent_asin (2023): correct data.reviews."
    )


def _metadata_format(path: Path, records: list[dict[str, Any]], which: ItemCategory) -> Format:
    """Of the first records; raises UserError if they are no metadata."""
    keys = set().union(*records)
    if keys & {"reviewerID", "user_id"}:
        raise UserError(f"{path} holds reviews ({_some(keys)}), no metadata: give it by data.reviews={path.name}.")
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
    return ", ".join(sorted(map(str, keys))[:12]) or "no fields"


# -------------------------------------------------------------------------------------------------------------- values


def _milliseconds(frame: pl.DataFrame, path: Path, key: str) -> pl.Series:
    """`timestamp` (Int64) of the column `time`: numbers of s, ms, us or ns, told by the middle one, or ISO 8601 text.

    Raises UserError, with the line, for what is no time or lies beyond the year 9999.
    """
    text = frame["time"].str.strip_chars()
    numbers = text.cast(pl.Int64, strict=False)
    if numbers.null_count():  # 1.4e9
        decimals = text.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
        numbers = pl.select(pl.coalesce(numbers, decimals)).to_series()
    middle = numbers.median()
    unit, factor = next((unit, ms) for limit, unit, ms in UNITS if not isinstance(middle, float) or middle < limit)
    beyond = (numbers.cast(pl.Float64).abs() * factor >= MAX_MS).fill_null(False)
    if beyond.any():
        row = int(beyond.arg_max() or 0)
        raise UserError(
            f"{path}, line {frame['line'][row]}: {key!r} holds {text[row]}, which in {unit} lies beyond the year 9999 "
            "(the file's middle value tells the unit): mend the line."
        )
    result = (numbers * int(factor) if factor >= 1 else numbers // round(1 / factor)).alias("timestamp")
    odd = numbers.is_null()
    if not odd.any():
        return result
    milliseconds = []
    for line, value in frame.filter(odd).select("line", "time").iter_rows():
        try:
            time = datetime.fromisoformat(value.strip())
        except ValueError:
            raise UserError(
                f"{path}, line {line}: {key!r} holds {value!r}, which is no time: use numbers or text such as "
                "2014-05-31T18:30:00."
            ) from None
        milliseconds.append(round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000))
    return result.scatter(odd.arg_true(), milliseconds)


def _without_repeats(frame: pl.DataFrame) -> pl.DataFrame:
    """Each row once, the first of equal ones; leaner than `unique`, which groups all rows though few are repeats."""
    code = frame.select(pl.col("user").hash() * 3 + pl.col("item").hash() * 5 + pl.col("timestamp").hash()).to_series()
    ordered = code.sort()
    shared = ordered.filter(ordered == ordered.shift()).unique()
    if shared.is_empty():
        return frame
    doubtful = frame.with_row_index("row").filter(code.is_in(shared.implode()))
    repeats = doubtful.filter(~pl.struct(frame.columns).is_first_distinct())["row"]
    kept = np.ones(frame.height, bool)
    kept[repeats.to_numpy()] = False
    return frame.filter(kept)


def _categories(path: Path, found: Format, items: pl.Series) -> pl.DataFrame:
    """item and category of those of `items` that the file describes; of an item described twice, the first category."""
    wanted = items.to_frame()
    parts = [part.join(wanted, on="item", how="semi") for part in json_lines.read(path, found.fields)]
    category = pl.col("category").str.strip_chars()
    image = category.str.extract(r"""^<img .*alt="([^"]*)""")  # of main_cat: its name is written as a picture
    named = pl.coalesce(image, category)
    return (
        pl.concat(parts)
        .with_columns(pl.when(named != "").then(named).alias("category"))
        .group_by("item", maintain_order=True)
        .agg(pl.col("category").drop_nulls().first())
    )
