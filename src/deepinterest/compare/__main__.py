"""`python -m deepinterest.compare FOLDER… [--by SETTINGS] [--baseline SETTING=VALUE]`: results of runs side by side."""

from __future__ import annotations

from deepinterest import ctrl_c

if __name__ == "__main__":  # before anything slow is imported
    ctrl_c.quit_at_once()

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from deepinterest.compare.groups import arrange
from deepinterest.compare.page import page
from deepinterest.compare.runs import collect, unfinished
from deepinterest.compare.scoring import examine
from deepinterest.compare.tables import markdown, show
from deepinterest.errors import UserError

WIDTH = 170  # columns where no terminal says how many


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and writes OUT.md and OUT.html; returns 1 after a sentence on stderr for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m deepinterest.compare",
        description="Results of runs side by side: terminal, Markdown and a page with plots.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="searched, with all below it, for runs")
    parser.add_argument(
        "--by",
        metavar="SETTING,…",
        help="what names the rows, as model,protocol.max_history; default: all that differs",
    )
    parser.add_argument(
        "--baseline", metavar="SETTING=VALUE|FOLDER", help="compare each AUC with this row's, as model=din"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/compare"),
        metavar="PATH",
        help="writes PATH.md, PATH.html [%(default)s]",
    )
    parser.add_argument(
        "--resamples", type=_count, default=1000, metavar="N", help="draws of users for the intervals [%(default)s]"
    )
    options = parser.parse_args(arguments)
    try:
        runs = collect(options.folders)
        blocks, apart = arrange(runs, options.by, options.baseline)
        if left := unfinished(options.folders):
            apart.append(f"Unfinished, so left out: {', '.join(map(str, left))}.")
        total = sum(len(block.runs) for block in blocks)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("Reading predictions", total=total)
            parts = [(b, examine(b, options.resamples, lambda: bar.advance(task))) for b in blocks]
        written = [options.out.with_name(options.out.name + ending) for ending in (".md", ".html")]
        for path, text in zip(written, (markdown(parts, apart), page(parts, apart)), strict=True):
            write(path, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(Console(width=None if sys.stdout.isatty() else WIDTH), parts, apart)
    for path in written:
        print(f"written: {path}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text} is not possible: a whole number of at least 100")
    return int(text)


def write(path: Path, text: str) -> None:
    """Beside its place, then renamed; raises UserError where there is no room."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
