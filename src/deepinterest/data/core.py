"""The k-core of a log: only users and items with enough events each."""

from __future__ import annotations

import numpy as np

from deepinterest.data.events import Events
from deepinterest.errors import UserError


def keep_core(events: Events, core: int) -> Events:
    """Keep users and items with at least `core` events each, again and again until none falls out.

    Events that fell out are counted in `dropped`, their users and items in `notes`. Raises UserError where nothing is
    left, and where the source fixes its rows.
    """
    if core <= 1:
        return events
    if events.rows is not None:
        raise UserError(
            f"data.core={core} is not possible with {events.name}: its labelled rows are fixed, and events can't be "
            "taken from them. Set data.core=1."
        )
    frame = events.frame
    user, item = (frame[column].rank("dense").to_numpy().astype(np.int64) for column in ("user", "item"))
    kept = np.arange(len(user))
    while True:
        enough = (np.bincount(user[kept]) >= core)[user[kept]] & (np.bincount(item[kept]) >= core)[item[kept]]
        if enough.all():
            break
        kept = kept[enough]
        if len(kept) == 0:
            raise UserError(
                f"data.core={core} leaves no event of {events.name}, which has {frame.height:,}: take a smaller core."
            )
    if len(kept) < frame.height:
        for name, codes in (("users", user), ("items", item)):
            events.notes[f"{name} outside the {core}-core"] = len(np.unique(codes)) - len(np.unique(codes[kept]))
        events.dropped[f"outside the {core}-core"] = frame.height - len(kept)
        events.frame = frame[kept]
    return events
