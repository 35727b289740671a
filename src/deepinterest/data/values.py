"""Columns of an event file as ids and as features."""

from __future__ import annotations

import polars as pl

from deepinterest.data.where import Where
from deepinterest.errors import UserError

EXACT = 2**53  # whole numbers below it are told apart by a float


def ids(values: pl.Series, where: Where, called: str) -> pl.Series:
    """Ids as Int64 or String; raises UserError for types that cannot be ids."""
    dtype = values.dtype
    if dtype == pl.Null:
        return values.cast(pl.String)
    if dtype == pl.String and where.text:
        numbers = values.cast(pl.Int64, strict=False)
        same = (numbers.cast(pl.String) == values) | values.is_null()
        return numbers if same.fill_null(False).all() else values
    if dtype.is_float():  # integers with gaps often arrive as floats
        values = values.fill_nan(None)
        odd = ((values.abs() >= EXACT) | (values != values.floor())).fill_null(False)
        if odd.any():
            row = int(odd.arg_max() or 0)
            raise UserError(
                f"{where}: {called} holds {values[row]} in {where.row(row)}: use whole numbers below 2**53, as this "
                "column holds floats, or text."
            )
        return values.cast(pl.Int64)
    if dtype.is_integer():
        wide = values.cast(pl.Int64, strict=False)
        return wide if wide.null_count() == values.null_count() else values.cast(pl.String)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    raise UserError(f"{where}: {called} is of type {dtype}: use whole numbers or text.")


def feature(values: pl.Series, where: Where, numeric: bool) -> pl.Series:
    """A quantity as Float64, a category as Int64 or String; raises UserError with the row of what is neither."""
    called = f"column {values.name!r}"
    if values.dtype.is_nested() or values.dtype in (pl.Object, pl.Binary):
        raise UserError(f"{where}: {called} is of type {values.dtype}: features are numbers or text.")
    if not numeric and not values.dtype.is_float():
        if values.dtype == pl.Boolean or values.dtype.is_temporal() or values.dtype.is_decimal():
            return values.cast(pl.String)
        return ids(values, where, called)
    text = values.str.strip_chars() if values.dtype == pl.String else values
    numbers = text.cast(pl.Float64, strict=False)
    wrong = numbers.is_null() & values.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]!r} in {where.row(row)}, which is no number: mend it, leave it "
            "empty, or take the column out of data.columns.numeric."
        )
    return numbers
