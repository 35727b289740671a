"""What a run shows: tables of results on standard output, everything else on standard error. It needs no torch."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepinterest.errors import visible

WIDTH = 160  # of a file, which has none of its own
COUNTS = ("test/gauc_users", "test/gauc_users_dropped", "samples_per_s")  # shown as whole numbers


def results(quiet: bool = False) -> Console:
    """For tables of results; `python run.py > results.txt` keeps them, whole lines each."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, quiet=quiet)


def progress(quiet: bool = False) -> Console:
    """For what passes: bars and what is being done."""
    return Console(stderr=True, quiet=quiet)


def shown(text: str) -> Text:
    """A text of the user's for the terminal, as it is: neither rich nor the terminal obeys what it holds."""
    return Text(visible(text))


def card_table(card: dict[str, Any]) -> Table:
    """The data card for the terminal."""
    table = Table(title="Data card", show_header=False)
    for key, value in card.items():
        table.add_row(shown(key), f"{value:,}" if isinstance(value, int) else shown(str(value)))
    return table


def metrics_table(metrics: dict[str, float]) -> Table:
    """Test metrics and probes for the terminal."""
    table = Table(title="Test")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        if key.startswith(("test/", "probe/")) or key in ("seconds", "samples_per_s"):
            digits = 0 if key in COUNTS else 1 if key == "seconds" else 4
            table.add_row(key.removeprefix("test/"), f"{value:,.{digits}f}")
    return table
