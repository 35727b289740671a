"""`python -m deepinterest.reference check|import|export …`: beside the published TensorFlow graph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepinterest.errors import UserError
from deepinterest.reference import golden, names
from deepinterest.reference.weights import export_weights, import_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a check finds a deviation over its tolerance; 2 after a sentence on stderr for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            return _check(options.files, options.model, options.optimizer)
        if options.command == "import":
            import_weights(options.source, options.model or names.of_file(options.source), options.out)
            print(f"Written {options.out}. Test it: run.py task=test checkpoint={options.out} reference=true …")
        else:
            export_weights(options.checkpoint, options.out, options.model)
            print(f"Written {options.out}.")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deepinterest.reference", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    types = f"{', '.join(names.PUBLISHED)}; or ours, {', '.join(names.PUBLISHED.values())}"

    check = commands.add_parser("check", help="compare these networks with golden files; exit code 1 where they differ")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    check.add_argument("--model", help=f"without it the file's name says it: {types}")
    check.add_argument("--optimizer", choices=[*golden.FORMS, "both"], default="both", help="of the embedding tables")

    load = commands.add_parser("import", help="make a checkpoint of published weights")
    load.add_argument(
        "source", type=Path, metavar="FILE.npz", help="or the prefix of a TensorFlow checkpoint, without .index"
    )
    load.add_argument("--model", help=f"without it the file's name says it: {types}")
    load.add_argument("--out", type=Path, required=True, metavar="FILE.ckpt")

    save = commands.add_parser("export", help="write a checkpoint's weights by their published names")
    save.add_argument("checkpoint", type=Path, metavar="FILE.ckpt")
    save.add_argument("out", type=Path, metavar="OUT.npz")
    save.add_argument("--model", help="without it the checkpoint or the run's config.yaml beside it says it")
    return parser


def _check(files: list[Path], model: str | None, optimizer: golden.Form) -> int:
    table = Table("file", "optimizer", "quantity", "largest deviation", "at", "tolerance", "")
    for column in (3, 5):
        table.columns[column].justify = "right"
    over = 0
    for path in files:
        for found in golden.check(path, model, optimizer):
            over += not found.fine
            table.add_row(
                escape(path.name),
                found.optimizer or "",
                found.quantity,
                f"{found.largest:.1e}",
                found.where,
                f"{found.tolerance:.0e}",
                "ok" if found.fine else "[bold red]OVER[/]",
            )
        table.add_section()
    # Into a file or a pipe as wide as the table needs, so that no word is broken.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    if over:
        console.print(f"Over their tolerance: {over}.")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
