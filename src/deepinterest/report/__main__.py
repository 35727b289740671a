"""`python -m deepinterest.report FOLDER… [--baseline MODEL|FOLDER] [--out FILE.md]`: results of runs as Markdown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deepinterest.errors import UserError
from deepinterest.report.table import collect, results_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, writes them to --out too; returns 1 after a sentence on stderr for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m deepinterest.report", description="Results of runs as Markdown.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="searched, with all below it, for runs")
    parser.add_argument("--baseline", metavar="MODEL|FOLDER", help="compare each AUC with this one's")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the Markdown here as well")
    options = parser.parse_args(arguments)
    try:
        text = results_table(collect(options.folders), options.baseline)
        if options.out is not None:
            _write(options.out, text)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def _write(path: Path, text: str) -> None:
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
