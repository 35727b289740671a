"""Where a run speaks: tables of results on standard output, everything else on standard error."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 160  # of a file, which has none of its own


def results(quiet: bool = False) -> Console:
    """For tables of results; `python run.py > results.txt` keeps them, whole lines each."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, quiet=quiet)


def progress(quiet: bool = False) -> Console:
    """For what passes: bars and what is being done."""
    return Console(stderr=True, quiet=quiet)
