"""The results table of the README: eight models, five seeds, three tasks, by one command.

    python -m benchmarks.results --data completejourney --write
    python -m benchmarks.results --data completejourney,globo_time_matched,globo_popularity --globo clicks.parquet

Each task is a sweep in a folder of its own, seeds outermost; a command that was cut off goes on when given again, and
more `--seeds` go on from fewer. The table is what `deepinterest.compare` finds in the run folders: means over seeds,
and differences to DIN with intervals over users and seeds. A seed counts once all models have run with it.
`--show` runs nothing. `--write` puts the table into the README, between its marks of the task.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT
from deepinterest.compare.__main__ import write as write_whole
from deepinterest.compare.groups import Block, Group, arrange
from deepinterest.compare.runs import Run, collect
from deepinterest.compare.scoring import Findings, examine
from deepinterest.compare.tables import spread
from deepinterest.errors import UserError

MODELS = {
    "dnn": "DNN",
    "wide_deep": "Wide&Deep",
    "pnn": "PNN",
    "din": "DIN",
    "gru_attention": "GRU + attention",
    "aigru": "AIGRU",
    "agru": "AGRU",
    "augru": "AUGRU",
    "dien": "DIEN",
}
TABLE = [name for name in MODELS if name != "gru_attention"]
BASELINE = "din"
RESAMPLES = 1000
QUALITY = {"AUC": "test/auc", "GAUC": "test/gauc", "logloss": "test/logloss"}


@dataclass(frozen=True)
class Task:
    """What makes a task of a run: overrides, and whether they read the file of `--globo`."""

    overrides: tuple[str, ...] = ()
    globo: bool = False


TASKS = {
    "completejourney": Task(),
    "globo_time_matched": Task(("experiment=globo_time_matched",), globo=True),
    "globo_popularity": Task(("experiment=globo_popularity",), globo=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what hasn't run, prints the tables; returns 1 after a sentence on stderr where something failed."""
    options = _options(arguments)
    failed = False
    try:
        for name in options.data:
            if not options.show:
                failed |= run(name, options) != 0
        for name in options.data:
            text = table(options.folder / name, options.models, options.seeds)
            print(f"## {name}\n\n{text}")
            if options.write:
                write(options.readme, name, text)
                print(f"written: {options.readme}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(failed)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results",
        description="Trains and tests all models with several seeds, and makes the results table of the README.",
    )
    tasks, models = _names(TASKS), _names(MODELS)
    parser.add_argument("--data", type=tasks, default=[*TASKS], metavar="TASK,…", help=f"of {', '.join(TASKS)} [all]")
    parser.add_argument("--models", type=models, default=TABLE, metavar="MODEL,…", help=f"[{','.join(TABLE)}]")
    parser.add_argument("--seeds", type=_count, default=5, metavar="N", help="the seeds 1 to N [%(default)s]")
    parser.add_argument("--globo", metavar="PATH", help="data.path of the tasks on globo")
    parser.add_argument("--folder", type=Path, default=Path("outputs/results"), help="of the sweeps [%(default)s]")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is there")
    parser.add_argument("--write", action="store_true", help="put the tables into the README")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="[%(default)s]")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="of all runs, such as trainer=gpu")
    return parser.parse_args(arguments)


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads `a,b`: names that are known, each once."""

    def read(text: str) -> list[str]:
        names = [*dict.fromkeys(text.split(","))]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not possible: of {', '.join(known)}")
        return names

    return read


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible: a whole number of at least 1")
    return int(text)


# ---------------------------------------------------------------------------------------------------------------- sweep


def command(name: str, options: argparse.Namespace) -> list[str]:
    """The sweep of a task; it goes on where its folder holds one."""
    task, folder = TASKS[name], options.folder / name
    path = [f"data.path={options.globo}"] if task.globo and options.globo else []
    usual = ["trainer.threads=1", "logger=none"]
    given = {word.partition("=")[0] for word in options.overrides}
    begun = (folder / "multirun.yaml").is_file()
    return [
        *(sys.executable, str(ROOT / "run.py"), "-m"),
        f"seed={','.join(str(seed) for seed in range(1, options.seeds + 1))}",
        f"model={','.join(options.models)}",
        *(*task.overrides, *path, *(word for word in usual if word.partition("=")[0] not in given), *options.overrides),
        f"{'sweep.resume' if begun else 'hydra.sweep.dir'}={folder}",
    ]


def run(name: str, options: argparse.Namespace) -> int:
    """Run a task's sweep, or what of it hasn't run; its exit status: 1 where a job failed."""
    words = command(name, options)
    print(f"$ {' '.join(['python run.py', *words[2:]])}", flush=True)
    status = subprocess.run(words, check=False).returncode
    if status < 0 or status > 1:  # killed, or stopped by Ctrl-C: no table
        raise UserError(f"the sweep in {options.folder / name} was stopped; the same command goes on with it")
    return status


# ---------------------------------------------------------------------------------------------------------------- table


def table(folder: Path, models: Sequence[str], seeds: int) -> str:
    """The Markdown table of a sweep's folder, and the line of its probes.

    Raises UserError where no seed has run with all models, and where the runs are not of one task.
    """
    runs = [run for run in collect([folder]) if run.model in models and run.seed <= seeds]
    whole = [seed for seed in range(1, seeds + 1) if {run.model for run in runs if run.seed == seed} == {*models}]
    if not whole:
        raise UserError(f"{folder}: no seed has run with all of {', '.join(models)} yet.")
    blocks, apart = arrange(
        [run for run in runs if run.seed in whole], "model", f"model={BASELINE}" if BASELINE in models else None
    )
    if len(blocks) > 1:
        raise UserError(f"{folder}: these runs can't share a table. {' '.join(apart)}")
    (block,) = blocks
    findings = examine(block, RESAMPLES)
    groups = sorted(block.groups, key=lambda group: models.index(group.values["model.name"]))
    lines = [_about(block.runs[0], whole), "", *_rows(groups, block, findings), "", _probes(block.runs[0])]
    return "\n".join(lines) + "\n"


def _about(run: Run, seeds: list[int]) -> str:
    card = run.card
    told = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    if seeds != [*range(seeds[0], seeds[-1] + 1)]:
        told = f"seeds {', '.join(map(str, seeds))}"
    rows = f"{card['test_rows']:,} test rows, " if "test_rows" in card else ""
    return f"`{run.settings['data.name']}`, `{card['protocol']}`, {rows}split {card['split_hash']}, {told}."


def _rows(groups: list[Group], block: Block, findings: Findings) -> list[str]:
    best = max(groups, key=lambda group: _mean(group, "test/auc"))
    head = ["model", *QUALITY, *([f"AUC less {MODELS[BASELINE]}'s", "verdict"] if block.baselines else []), "seconds"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for group in groups:
        auc, *others = (_short(spread(group.runs, name)) for name in QUALITY.values())
        cells = [MODELS[group.values["model.name"]], f"**{auc}**" if group is best else auc, *others]
        if block.baselines:
            found = findings.differences.get(group.label)
            cells += ["", ""] if found is None else [_difference(found.value, found.low, found.high), found.verdict]
        lines.append(f"| {' | '.join([*cells, _rough(_mean(group, 'seconds'))])} |")
    return lines


def _mean(group: Group, name: str) -> float:
    return sum(run.metrics[name] for run in group.runs) / len(group.runs)


def _short(text: str) -> str:
    """`-0.0082 ± 0.0025` -> the same without leading zeros and with a minus sign."""
    return re.sub(r"(?<!\d)0\.", ".", text).replace("-", "\N{MINUS SIGN}")


def _difference(value: float, low: float, high: float) -> str:
    return _short(f"{value:+.4f}" + ("" if low != low else f" [{low:+.4f}, {high:+.4f}]"))


def _rough(seconds: float) -> str:
    """One digit: how long a run takes depends on what else the machine does."""
    return f"{float(f'{seconds:.0e}'):,.0f}" if seconds >= 1 else "1"


def _probes(run: Run) -> str:
    """What simple counts reach, the best first."""
    found = sorted(((value, name) for name, value in run.metrics.items() if name.startswith("probe/")), reverse=True)
    told = (f"{name[6:].removesuffix('_auc').replace('_', ' ')} {_short(f'{value:.3f}')}" for value, name in found)
    return f"Without a model: {', '.join(told)}."


# --------------------------------------------------------------------------------------------------------------- README


def write(path: Path, name: str, text: str) -> None:
    """Put a task's table between its two marks. Raises UserError where the file or its marks are missing."""
    begin, end = f"<!-- results: {name} -->", "<!-- /results -->"
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise UserError(f"{path} has no place for {name}: a line {begin} and, below it, a line {end}.")
    write_whole(path, f"{before}{begin}\n{text}{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
