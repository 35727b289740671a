"""What a data card gives reason to change in the settings."""

from __future__ import annotations

from typing import Any

from deepinterest.config import Exclude, LeaveLastOutConfig, ProtocolConfig, TemporalConfig


def advice(card: dict[str, Any], protocol: ProtocolConfig) -> list[str]:
    """A sentence for each; of the card of a prepared data set."""
    said = []
    items, categories = card["items"], card["categories"]
    if categories == 1 and items > 1:
        said.append(
            f"All {items:,} items have the same category, or none, so the category tells nothing: is "
            "data.columns.category the right column?"
        )
    if categories == items > 1:
        said.append(
            f"Each of the {items:,} items has a category of its own, so the category tells no more than the item: is "
            "data.columns.category the right column?"
        )
    exclude = protocol.negatives.exclude
    drawn = isinstance(protocol, TemporalConfig | LeaveLastOutConfig)
    if drawn and exclude is not Exclude.history and card["repeat_events"] == 0:
        said.append(
            "No user ever touches an item again, and negatives may be items that the user has touched "
            f"(protocol.negatives.exclude={exclude.name}): protocol.negatives.exclude=history fits this log better."
        )
    return said
