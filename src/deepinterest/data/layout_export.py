"""Rows, events and vocabularies of a prepared data set in the published file layout."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl

from deepinterest.data import layout
from deepinterest.data.samples import Samples
from deepinterest.data.store import Store
from deepinterest.errors import UserError

log = logging.getLogger(__name__)


def export(store: Store, folder: Path) -> None:
    """Write the seven files; rows of train and validation together are the training file.

    Features but the category have no place in the layout: a warning names them.

    Raises UserError where the protocol isn't last_event, and where a group isn't a pair of a positive and a negative.
    """
    if store.card["protocol"] != "last_event":
        raise UserError(
            f"protocol={store.card['protocol']} has no published layout: its files hold one target for each user. "
            "Set protocol=last_event."
        )
    items, users = store.item_features(), store.user_names()
    if "category" in items.columns:
        categories = store.vocabulary("category").values
    else:  # a source without categories
        items = items.with_columns(category=pl.lit(None, pl.String))
        categories = pl.Series(dtype=pl.String)
    features = [
        store.card[f"{kind} features"] for kind in ("item", "user", "context") if f"{kind} features" in store.card
    ]
    if features:
        log.warning("The published layout has no place for %s: left out.", ", ".join(features))
    items = items.select("item", "category")
    touched = items[store.log.item - 1]
    layout.write(
        folder,
        touched.select(
            users.gather(store.log.user).alias("user"), "item", pl.Series("timestamp", store.log.time), "category"
        ),
        train=_rows(store, store.samples["train"].merged(store.samples["validation"]), users, items["item"]),
        test=_rows(store, store.samples["test"], users, items["item"]),
        vocabularies={
            "user": store.vocabulary("user").values,
            "item": store.vocabulary("item").values,
            "category": categories,
        },
        items=items,
    )


def _rows(store: Store, samples: Samples, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """user, item, label and length of history of each row, the negative of a pair first."""
    counts = np.diff(samples.candidate_offsets)
    group = np.repeat(np.arange(len(samples)), counts)
    positives = np.bincount(group, samples.label, minlength=len(samples))
    if (counts != 2).any() or (positives != 1).any():
        raise UserError(
            f"The published code reads pairs of a negative and a positive, and here a positive has "
            f"{counts.max() - 1} negatives: set protocol.negatives.per_positive=1."
        )
    order = np.lexsort((samples.label, group))
    history = samples.history_end - store.log.user_offsets[samples.user]
    return pl.DataFrame(
        {
            "user": users.gather(samples.user[group]),
            "item": items.gather(samples.candidates[order] - 1),
            "label": samples.label[order],
            "history": history[group],
        }
    )
