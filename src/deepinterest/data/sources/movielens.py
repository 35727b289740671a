"""MovieLens: ratings of films, in each of the three formats it has been published in, told apart by their files.

- u.data (tab) and u.item (`|`, Latin-1): 100k
- ratings.dat and movies.dat (`::`; Latin-1 in 1m, UTF-8 in 10m): 1m, 10m
- ratings.csv and movies.csv: 20m, 25m, 32m, latest-small
"""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from deepinterest.config import MovieLensConfig
from deepinterest.data import paths
from deepinterest.data.download import fetch, raw_folder
from deepinterest.data.events import Events
from deepinterest.data.sources import raw_files
from deepinterest.data.sources.raw_files import Column, RawFile, RawFiles, Table
from deepinterest.errors import UserError

SITE = "https://files.grouplens.org/datasets/movielens"
# As tensorflow_datasets records them. 10m and 32m aren't among them, latest-small changes; a zip has checks of its own.
SHA256 = {
    "100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
}
UNPACKED = {"10m": "ml-10M100K"}  # folders called otherwise than ml-VERSION

NO_GENRE = ("(no genres listed)", "unknown", "")
GENRES = (  # of u.item's flags, in their order
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip

FIRST_TIME = 788_918_400  # 1995-01-01 UTC, in seconds: older than any rating
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
LABEL = re.compile(rf"\s*rating\s*({'|'.join(COMPARE)})\s*(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True)
class Format:
    ratings: str
    movies: str
    separator: str
    header: tuple[str, str, str, str] | None  # of ratings: user, item, rating, time
    genres: Callable[[RawFile], dict[int, str | None]]


def load(config: MovieLensConfig) -> Events:
    """Ratings as events, or with `label` as impressions; raises UserError for a bad file, line or setting."""
    compare = _label(config.label)
    path = _path(config)
    with RawFiles(path) as files:
        form = _format(files)
        ratings = files.file(form.ratings)
        user, item, rating, time = form.header or ("user", "item", "rating", "timestamp")
        remark = ", before or long after the years of MovieLens: seconds since 1970 are expected"
        wanted = [
            Column(user, pl.Int32),
            Column(item, pl.Int32),
            Column(rating, pl.Float32, low=0.5, high=5.0, remark=", outside 0.5 to 5"),
            Column(time, pl.Int64, low=FIRST_TIME, high=FIRST_TIME + 3_200_000_000, remark=remark),
        ]
        columns = raw_files.header(ratings, wanted) if form.header else wanted
        frame, blank = Table([ratings], columns, form.separator, header=form.header is not None).collect()
        genres = form.genres(files.file(form.movies))

    known = pl.DataFrame(
        {"item": list(genres), "category": list(genres.values())}, {"item": pl.Int32, "category": pl.String}
    )
    chosen = [
        pl.col(user).alias("user"),
        pl.col(item).alias("item"),
        (pl.col(time) * 1000).alias("timestamp"),
        *([compare(pl.col(rating)).cast(pl.UInt8).alias("label")] if compare else []),
    ]
    events = frame.select(chosen).join(known, on="item", how="left", maintain_order="left")
    result = Events.build(
        events,
        ["category"],
        f"{path.name} ({form.ratings})",
        {"blank lines": blank},
        config.seed,
        config.limit_users,
        config.ties,
        label="label" if compare else None,
        label_key="data.label",
    )
    without = result.frame.filter(pl.col("category").is_null())["item"].n_unique()
    if without:
        result.notes["films without a genre"] = without
    return result


def fingerprint(config: MovieLensConfig) -> dict[str, Any]:
    """Of the files that `load` reads, which are fetched if need be; raises UserError if they can't be."""
    _label(config.label)
    known = [name for form in FORMATS for name in (form.ratings, form.movies)]
    path = paths.file_or_folder(_path(config), "data.path")
    return raw_files.fingerprint(path, config.name, lambda name: name in known)


def _path(config: MovieLensConfig) -> Path:
    """The zip or folder to read; fetched where only a version is named."""
    if config.path is not None:
        if config.version is not None:
            raise UserError(
                f"data.path={config.path} and data.version={config.version.value} name the data twice: set one "
                "of them to null."
            )
        return Path(config.path).expanduser()
    if config.version is None:
        raise UserError(
            f"data=movielens needs data.version={'|'.join(SHA256)}|10m|32m|latest-small, which is fetched, or "
            "data.path=ZIP_OR_FOLDER."
        )
    version = config.version.value
    folder = raw_folder("movielens", config.folder)
    zipped = folder / f"ml-{version}.zip"
    if not zipped.exists():
        for name in (f"ml-{version}", UNPACKED.get(version, "")):
            if name and (folder / name).is_dir():
                return folder / name
    return fetch(f"{SITE}/{zipped.name}", zipped, SHA256.get(version))


def _format(files: RawFiles) -> Format:
    """The one format of which both files are there."""
    whole = [form for form in FORMATS if form.ratings in files and form.movies in files]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise UserError(
            f"{files.path} holds {' and '.join(form.ratings for form in whole)}: name the folder of one by data.path."
        )
    for form in FORMATS:
        for there, missing in ((form.ratings, form.movies), (form.movies, form.ratings)):
            if there in files:
                raise UserError(f"{files.path} holds {there} and no {missing}: put {missing} beside it.")
    pairs = ", ".join(f"{form.ratings} with {form.movies}" for form in FORMATS)
    raise UserError(
        f"{files.path} holds no ratings of MovieLens ({pairs}): data.path must name a zip as published, or its folder."
    )


def _label(text: str | None) -> Callable[[pl.Expr], pl.Expr] | None:
    """The comparison that data.label writes, as a function of the rating."""
    if text is None:
        return None
    match = LABEL.fullmatch(text)
    if match is None:
        raise UserError(
            f"data.label={text} is not possible: write rating, one of {' '.join(COMPARE)}, and a number, as in "
            "'data.label=\"rating>=4\"'."
        )
    compare, limit = COMPARE[match[1]], float(match[2])
    return lambda rating: compare(rating, limit)


# --------------------------------------------------------------------------------------------------------------- genres


def _refuse(file: RawFile, line: int, fault: str) -> UserError:
    return UserError(f"{file.where}, line {line}: {fault}. Fetch the file anew or mend the line.")


def _film(file: RawFile, line: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise _refuse(file, line, f"the film's id is {text[:60]!r} and no whole number below 2**31")
    return int(text)


def _first(genres: str) -> str | None:
    first = genres.split("|")[0].strip()
    return None if first in NO_GENRE else first


def _genres_of_flags(file: RawFile) -> dict[int, str | None]:
    """Of u.item: id | title | release | video release | URL | a flag for each of GENRES."""
    found: dict[int, str | None] = {}
    for number, line in raw_files.lines_of(file):
        fields = line.split("|")
        flags = [flag.strip() for flag in fields[5:]]
        if len(flags) != len(GENRES) or not set(flags) <= {"0", "1"}:
            raise _refuse(
                file,
                number,
                f"{len(fields)} columns where {5 + len(GENRES)} are expected, the last {len(GENRES)} 0 or 1",
            )
        first = GENRES[flags.index("1")] if "1" in flags else ""
        found[_film(file, number, fields[0])] = _first(first)
    return found


def _genres_of_dat(file: RawFile) -> dict[int, str | None]:
    """Of movies.dat: id::title::genres."""
    found: dict[int, str | None] = {}
    for number, line in raw_files.lines_of(file):
        fields = line.split("::")
        if len(fields) < 3:  # more: a title may hold the separator
            raise _refuse(
                file, number, f"{len(fields)} columns where 3 are expected (id, title, genres): {line[:60]!r}"
            )
        found[_film(file, number, fields[0])] = _first(fields[-1])
    return found


def _genres_of_csv(file: RawFile) -> dict[int, str | None]:
    """Of movies.csv: movieId, title, genres."""
    raw_files.header(file, [Column("movieId"), Column("genres")])
    found: dict[int, str | None] = {}
    with file.path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines)
        names = [name.strip() for name in next(reader)]
        film, genres = names.index("movieId"), names.index("genres")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                said = f"{len(fields)} columns where {len(names)} are expected ({', '.join(names)})"
                raise _refuse(file, reader.line_num, said)
            found[_film(file, reader.line_num, fields[film])] = _first(fields[genres])
    return found


FORMATS = (
    Format("u.data", "u.item", "\t", None, _genres_of_flags),
    Format("ratings.dat", "movies.dat", "::", None, _genres_of_dat),
    Format("ratings.csv", "movies.csv", ",", ("userId", "movieId", "rating", "timestamp"), _genres_of_csv),
)
