"""Amazon 2014 files, made up, prepared for protocol=last_event in four ways: seconds and memory.

    python -m benchmarks.amazon --folder /tmp/amazon

`reviews_Books.json.gz` (2 M reviews with texts of 500 characters, grouped by item) and `meta_Books.json.gz` (one Python
literal a line) have the fields of the published files and the proportions of Books' 5-core; texts are random words.
Each way starts from the two files and ends with labelled rows and vocabularies on disk, in a process of its own; the
ways take turns, so that other work on the machine meets all of them. The others do what the published pipeline does,
without what last_event doesn't need: a negative is drawn for a user's last review, not for every one.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import pickle
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import GIB, ROOT, Stages, memory, show, step
from benchmarks.taobao import power_law

REVIEWS_PER_USER, REVIEWS_PER_ITEM = 14.7, 24.2  # of Books' 5-core: 8,898,041 reviews, 603,668 users, 367,982 items
UNREVIEWED = 0.8  # further items of the metadata, for each reviewed one
CATEGORIES = 1_600
TEXT = 500  # characters
DAY, FIRST, DAYS = 86_400, 946_684_800, 5_300  # seconds; 2000-01-01; days until the middle of 2014


# ------------------------------------------------------------------------------------------------------------ generator


def generate(folder: Path, reviews: int, seed: int = 0) -> None:
    """Write the two files; the metadata are complete, as those of Books are."""
    rng = np.random.default_rng(seed)
    users, items = max(20, int(reviews / REVIEWS_PER_USER)), max(20, int(reviews / REVIEWS_PER_ITEM))
    user, item, day = _draw(rng, reviews, users, items)
    words = ["".join(rng.choice(list("aabcdeeefghiilmnooprsttuvwy"), size)) for size in rng.integers(2, 10, 20_000)]
    words[::50] = [f'\\"{word}\\"' for word in words[::50]]  # a quote in a string of JSON
    pool = " ".join(words[number] for number in rng.integers(len(words), size=300_000))
    asin = [f"B{number:09d}" for number in rng.choice(10**9, size=int(items * (1 + UNREVIEWED)) + 1, replace=False)]
    reviewer = [f"A{number:012X}" for number in rng.choice(16**11, size=users, replace=False)]
    place = rng.integers(len(pool) - TEXT - 100, size=len(user))
    stars = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], p=[0.05, 0.05, 0.1, 0.25, 0.55], size=len(user))
    with gzip.open(folder / "reviews_Books.json.gz", "wt", compresslevel=5) as file:
        for u, i, d, p, s in zip(
            user.tolist(), item.tolist(), day.tolist(), place.tolist(), stars.tolist(), strict=True
        ):
            seconds = FIRST + d * DAY
            file.write(
                f'{{"reviewerID": "{reviewer[u]}", "asin": "{asin[i]}", "reviewerName": "{_text(pool, p, 14)}", '
                f'"helpful": [0, 0], "reviewText": "{_text(pool, p, TEXT)}", "overall": {s}, '
                f'"summary": "{_text(pool, p + 50, 25)}", "unixReviewTime": {seconds}, '
                f'"reviewTime": "{time.strftime("%m %d, %Y", time.gmtime(seconds))}"}}\n'
            )
    category = power_law(rng, len(asin), CATEGORIES, 0.9, 10)
    place = rng.integers(len(pool) - 2 * TEXT, size=len(asin))
    with gzip.open(folder / "meta_Books.json.gz", "wt", compresslevel=5) as file:
        for number in rng.permutation(len(asin)).tolist():
            start, kind = int(place[number]), int(category[number])
            record = {
                "asin": asin[number],
                "description": _text(pool, start, TEXT).replace("\\", ""),
                "title": f"{_text(pool, start, 30)}'s".replace("\\", ""),
                "price": round(kind % 37 + 0.99, 2),
                "salesRank": {"Books": start},
                "related": {"also_viewed": [asin[(number * 31 + step) % len(asin)] for step in range(20)]},
                "categories": [["Books", f"Section {kind % 40}", f"Shelf & Co's {kind}"], ["Books", "All"]],
            }
            file.write(f"{record!r}\n")


def _draw(rng: np.random.Generator, reviews: int, users: int, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and day of each review, grouped by item; nobody reviews an item twice, everybody at least twice."""
    sure = np.repeat(np.arange(users), 3)
    user = np.concatenate([sure, power_law(rng, max(0, int(reviews * 1.1) - len(sure)), users, 0.4, 50)])
    item = power_law(rng, len(user), items, 0.6, 20)
    key = np.unique(user * items + item)
    key = rng.permutation(key)[:reviews]
    user, item = key // items, key % items
    order = np.lexsort((rng.random(len(key)), item))
    return user[order], item[order], rng.integers(DAYS, size=len(key))


def _text(pool: str, start: int, length: int) -> str:
    """A piece of the pool that ends no escape half way."""
    return pool[start : start + length].strip('\\"')


# ----------------------------------------------------------------------------------------------------------- other ways


def line_by_line(folder: Path, out: Path, parse: Callable[[str], Any]) -> None:
    """Lists and dictionaries, a line at a time."""
    draw = random.Random(0)
    by_user: dict[str, list[tuple[int, str]]] = {}
    pool = []
    with gzip.open(folder / "reviews_Books.json.gz", "rt") as file:
        for line in file:
            review = parse(line)
            by_user.setdefault(review["reviewerID"], []).append((review["unixReviewTime"], review["asin"]))
            pool.append(review["asin"])
    category: dict[str, str] = {}
    with gzip.open(folder / "meta_Books.json.gz", "rt") as file:
        for line in file:
            item = ast.literal_eval(line) if parse is json.loads else parse(line)
            category.setdefault(item["asin"], item["categories"][0][-1])
    counts = {"user": Counter[str](), "item": Counter[str](), "category": Counter[str]()}
    with open(out / "train.tsv", "w") as train, open(out / "test.tsv", "w") as test:
        for user, touched in by_user.items():
            if len(touched) < 2:
                continue
            touched.sort(key=lambda event: event[0])
            *history, (_, positive) = touched
            while (negative := draw.choice(pool)) == positive:
                pass
            items = [item for _, item in history]
            kinds = [category.get(item, "unknown") for item in items]
            training = draw.randint(1, 10) != 2
            for label, target in ((0, negative), (1, positive)):
                kind = category.get(target, "unknown")
                row = (str(label), user, target, kind, "\x02".join(items), "\x02".join(kinds))
                (train if training else test).write("\t".join(row) + "\n")
                if training:
                    counts["user"][user] += 1
                    counts["item"].update((*items, target))
                    counts["category"].update((*kinds, kind))
    for name, counted in counts.items():
        ids = {value: number for number, (value, _) in enumerate(counted.most_common(), 1)}
        (out / f"{name}.pkl").write_bytes(pickle.dumps(ids))


def with_pandas(folder: Path, out: Path) -> None:
    """Data frames; rows and vocabularies are written as parquet files."""
    import pandas as pd

    rng = np.random.default_rng(0)
    needed = ["reviewerID", "asin", "unixReviewTime"]
    chunks = pd.read_json(folder / "reviews_Books.json.gz", lines=True, chunksize=100_000, dtype=False)
    reviews = pd.concat([chunk[needed] for chunk in chunks], ignore_index=True)
    with gzip.open(folder / "meta_Books.json.gz", "rt") as file:
        records = (ast.literal_eval(line) for line in file)
        pairs = [(record["asin"], record["categories"][0][-1]) for record in records]
    category = pd.DataFrame(pairs, columns=["asin", "category"]).drop_duplicates("asin").set_index("asin")["category"]
    reviews["category"] = reviews["asin"].map(category).fillna("unknown")
    pool = reviews["asin"].to_numpy()
    reviews = reviews.sort_values(["reviewerID", "unixReviewTime"], kind="stable")
    last = ~reviews.duplicated("reviewerID", keep="last")
    history = reviews[~last].groupby("reviewerID", sort=False).agg(items=("asin", list), categories=("category", list))
    positives = reviews[last].join(history, on="reviewerID", how="inner")
    negatives = positives.copy()
    drawn = pool[rng.integers(len(pool), size=len(negatives))]
    while (same := drawn == positives["asin"].to_numpy()).any():
        drawn[same] = pool[rng.integers(len(pool), size=int(same.sum()))]
    negatives["asin"] = drawn
    negatives["category"] = negatives["asin"].map(category).fillna("unknown")
    rows = pd.concat([negatives.assign(label=0), positives.assign(label=1)]).sort_index(kind="stable")
    users = rows["reviewerID"].unique()
    test = rows["reviewerID"].isin(users[rng.integers(1, 11, size=len(users)) == 2])
    rows[~test].to_parquet(out / "train.parquet")
    rows[test].to_parquet(out / "test.parquet")
    train = rows[~test]
    values = {
        "user": train["reviewerID"],
        "item": pd.concat([train["asin"], train["items"].explode()]),
        "category": pd.concat([train["category"], train["categories"].explode()]),
    }
    for name, value in values.items():
        value.value_counts().rename_axis("value").reset_index(name="count").to_parquet(out / f"{name}.parquet")


def ours(folder: Path, out: Path) -> dict[str, Any]:
    """`data=amazon protocol=last_event`, with the card and the probes."""
    from hydra import compose, initialize_config_dir

    from deepinterest.data import store
    from deepinterest.settings import register, typed

    register()
    overrides = [
        "data=amazon",
        f"data.reviews={folder / 'reviews_Books.json.gz'}",
        f"data.metadata={folder / 'meta_Books.json.gz'}",
        "protocol=last_event",
        f"paths.run={out}",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = typed(compose("config", overrides))
    stages = Stages()
    prepared = store.prepare(config.data, config.protocol, str(out), stages)
    return {**stages.finish(), "card": json.loads((prepared / "card.json").read_text())}


WAYS: dict[str, Callable[[Path, Path], Any]] = {
    "ours": ours,
    "line_by_line_eval": lambda folder, out: line_by_line(folder, out, eval),
    "line_by_line_json": lambda folder, out: line_by_line(folder, out, json.loads),
    "pandas": with_pandas,
}
NAMES = {
    "ours": "`data=amazon`",
    "line_by_line_eval": "line by line, `eval`",  # as the published code reads its files
    "line_by_line_json": "line by line, `json` and `ast`",
    "pandas": "pandas",
}


# ------------------------------------------------------------------------------------------------------------- measures


def measure(folder: Path, reviews: int, seed: int, rounds: int, ways: list[str], limit: float | None) -> dict[str, Any]:
    """Generate (unless the files are there); then each way in turn, `rounds` times."""
    files = folder / f"amazon-{reviews}-{seed}"
    if not files.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".amazon-", dir=folder))
        generate(beside, reviews, seed)
        beside.rename(files)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in ways:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                arguments = ["--folder", str(files), "--out", out, "--step", name]
                results[name].append(step("benchmarks.amazon", arguments, limit))
    sizes = {path.name: path.stat().st_size for path in files.iterdir()}
    return {"reviews": reviews, "rounds": rounds, "files": sizes, "ways": results}


def report(result: dict[str, Any]) -> None:
    ways = result["ways"]
    rows = []
    for name, runs in ways.items():
        seconds = [run["seconds"] for run in runs]
        cpu = statistics.median(run["cpu"] for run in runs)
        peak = max(run["peak"] for run in runs)
        ratios = [run["seconds"] / ours["seconds"] for run, ours in zip(runs, ways.get("ours", runs), strict=True)]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        rows.append((NAMES[name], spread, f"{statistics.median(ratios):.1f}", f"{cpu:.1f}", f"{peak / GIB:.2f}"))
    show(f"{result['reviews']:,} reviews", ("way", "seconds", "times ours", "CPU seconds", "peak GiB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="for the files; a temporary one if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--limit", type=float, help="GiB of memory at which a way is ended")
    parser.add_argument("--step", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        found = WAYS[options.step](options.folder, options.out)
        print(json.dumps({"cpu": time.process_time(), "peak": memory("VmHWM"), **(found or {})}))
        return
    with tempfile.TemporaryDirectory(prefix="amazon-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        result = measure(folder, options.reviews, options.seed, options.rounds, options.ways, options.limit)
    report(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
