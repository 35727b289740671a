"""`python -m deepinterest.reference check|import|export …`: beside the published TensorFlow graph."""

from __future__ import annotations

from deepinterest import ctrl_c

if __name__ == "__main__":  # before anything slow is imported
    ctrl_c.quit_at_once()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepinterest.errors import UserError
from deepinterest.reference import golden, names
from deepinterest.reference.weights import export_weights, import_weights

WIDTH = 140  # columns that the table of `check` needs


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
    """A line a file with the largest deviation of each quantity, and a sentence for each that is over its tolerance."""
    checked = {path: golden.check(path, model, optimizer) for path in files}
    (first, *_) = checked.values()
    tolerances = {one.quantity: one.tolerance for one in first}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("file", no_wrap=True)
    for quantity in tolerances:
        table.add_column(quantity, justify="right", min_width=7)
    for path, found in checked.items():
        cells = []
        for quantity in tolerances:
            both = [one for one in found if one.quantity == quantity]
            worst = max(both, key=lambda one: (not one.fine, one.largest))
            cells.append(f"{worst.largest:.1e}" if worst.fine else f"[bold red]{worst.largest:.1e}[/]")
        table.add_row(escape(path.name), *cells)
    table.add_section()
    table.add_row("tolerance", *(f"{tolerance:.0e}" for tolerance in tolerances.values()))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)

    over = [(path, one) for path, found in checked.items() for one in found if not one.fine]
    for path, one in over:
        form = f" with {one.optimizer} Adam" if one.optimizer else ""
        place = f" at {one.where}" if one.where else ""
        print(f"OVER: {path.name}, {one.quantity}{form}: {one.largest:.1e}{place}; {one.tolerance:.0e} is allowed")
    count = sum(map(len, checked.values()))
    print(f"{count - len(over)} of {count} comparisons are within their tolerance.")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
