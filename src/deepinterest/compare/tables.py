"""A comparison as tables: one set of cells for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from deepinterest.compare.groups import OF_THE_HISTORY, Block, Group
from deepinterest.compare.runs import Run
from deepinterest.compare.scoring import Findings
from deepinterest.errors import visible

QUALITY = {"AUC": "test/auc", "GAUC": "test/gauc", "logloss": "test/logloss", "ECE": "test/ece"}
COST = {
    "seconds": "seconds",
    "samples/s": "samples_per_s",
    "parameters": "parameters",
    "GiB": "memory_gib",
    "GPU GiB": "gpu_memory_gib",
}
DIGITS = {"seconds": 1, "samples/s": 0, "parameters": 0, "GiB": 2, "GPU GiB": 2}
PARTS = {"history_length": "AUC by history length", "item_popularity": "AUC by the item's events in training"}
SEVERAL = "AUC less the baseline"  # where rows have baselines of their own
MEANING = (
    "Mean ± standard deviation over the seeds. Seconds are of whole runs, samples/s of training; GiB is the highest "
    "memory of the process."
)


@dataclass(frozen=True)
class Cells:
    """A table as text; the first column names the rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def spread(runs: Iterable[Run], name: str, digits: int = 4) -> str:
    """Mean ± sample standard deviation; the mean alone of one run, n/a where a run lacks the number."""
    return _spread(np.array([_value(run, name) for run in runs]), digits)


def _spread(values: np.ndarray, digits: int) -> str:
    if np.isnan(values).any():
        return "n/a"
    mean = f"{values.mean():,.{digits}f}"
    # A number of parameters is the same for all seeds, and ± 0 says nothing.
    if len(values) == 1 or (digits == 0 and np.ptp(values) < 0.5):
        return mean
    return f"{mean} ± {values.std(ddof=1):,.{digits}f}"


def _value(run: Run, name: str) -> float:
    """A metric of a run; what a test alone costs is not what the row costs."""
    timed = name in COST.values() and name != "parameters"
    return float("nan") if timed and not run.trained else run.metrics.get(name, float("nan"))


def main_table(block: Block, findings: Findings) -> Cells:
    """Quality, the difference to the baseline, and cost; a column that no row has is left out."""
    columns: dict[str, list[str]] = {}
    for title, name in QUALITY.items():
        columns[title] = [spread(group.runs, name) for group in block.groups]
    if block.baselines:
        bases = {base.label for base in block.baselines.values()}
        title = f"AUC less {bases.pop()}" if len(bases) == 1 else SEVERAL
        columns[title] = [_difference(group, findings) for group in block.groups]
        columns["verdict"] = [_verdict(group, block, findings) for group in block.groups]
        if title == SEVERAL:
            columns["baseline"] = [b.label if (b := block.baselines.get(g.label)) else "" for g in block.groups]
    for title, name in COST.items():
        columns[title] = [spread(group.runs, name, DIGITS[title]) for group in block.groups]
    columns = {t: cells for t, cells in columns.items() if t not in (*QUALITY, *COST) or set(cells) != {"n/a"}}
    columns["seeds"] = [", ".join(map(str, group.seeds)) for group in block.groups]
    rows = [[group.label, *cells] for group, *cells in zip(block.groups, *columns.values(), strict=True)]
    return Cells(block.title, ["", *columns], rows)


def _difference(group: Group, findings: Findings) -> str:
    found = findings.differences.get(group.label)
    if found is None or not found.seeds:
        return ""
    interval = "" if np.isnan(found.low) else f" [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.value:+.4f}{interval}"


def _verdict(group: Group, block: Block, findings: Findings) -> str:
    if group.label not in findings.differences:
        return "baseline" if group in block.baselines.values() else ""
    return findings.differences[group.label].verdict


def part_tables(block: Block, findings: Findings) -> list[Cells]:
    """AUC by history length and by popularity, a column a range."""
    tables = []
    for name, bins in findings.bins.items():
        head = ["", *bins.labels]
        rows = [["rows", *(f"{count:,}" for count in bins.rows)]]
        for group in block.groups:
            aucs = part_aucs(group, findings, name)
            if aucs is not None:
                rows.append([group.label, *(_spread(column, 4) for column in aucs.T)])
        tables.append(Cells(PARTS[name], head, rows))
    return tables


def part_aucs(group: Group, findings: Findings, name: str) -> np.ndarray | None:
    """(runs, bins) AUCs of the group's runs whose predictions have the column; None where none has."""
    found = [findings.runs[run.folder] for run in group.runs if run.folder in findings.runs]
    aucs = [scored.parts[name] for scored in found if name in scored.parts]
    return np.array(aucs) if aucs else None


def remarks(block: Block, findings: Findings) -> list[str]:
    """The sentences below a table."""
    lines = [MEANING]
    if block.baselines:
        lines.append(
            "Differences are averaged over common seeds; the 95 % interval is a paired bootstrap over users on the "
            "saved predictions, widened by the spread over seeds (Student's t). Each stands for itself: of twenty rows "
            "without any difference one is expected to look different."
        )
        if any(len(found.seeds) == 1 for found in findings.differences.values()):
            lines.append("Where there is one seed, the interval holds the chance of the users alone.")
    if probes := _probes(block.runs):
        lines.append(f"Probes, AUC without a model: {probes}.")
    return [*lines, *block.notes, *findings.notes]


def _probes(runs: list[Run]) -> str:
    """`popularity 0.6123, …`; those that look into the history are told for each length of it."""
    parts = []
    for name in sorted({name for run in runs for name in run.probes}):
        found: dict[str, set[str]] = {}
        for run in runs:
            if name in run.probes:
                length = run.settings.get("protocol.max_history", "")
                found.setdefault(f"{run.metrics[name]:.4f}", set()).add(length if name in OF_THE_HISTORY else "")
        values = [
            value if len(found) == 1 else f"{value} (max_history={' or '.join(sorted(lengths))})"
            for value, lengths in sorted(found.items())
        ]
        parts.append(f"{name.removeprefix('probe/').removesuffix('_auc').replace('_', ' ')} {' and '.join(values)}")
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------------------ renderers


def markdown(parts: list[tuple[Block, Findings]], apart: list[str]) -> str:
    """All of it as one Markdown text."""
    lines = [*map(_plain, apart), ""] if apart else []
    for block, findings in parts:
        lines += [f"### {_plain(block.title)}", "", *_markdown(main_table(block, findings)), ""]
        for remark in remarks(block, findings):
            lines += [_plain(remark), ""]
        for cells in part_tables(block, findings):
            lines += [f"**{cells.title}**", "", *_markdown(cells), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown(cells: Cells) -> list[str]:
    def row(texts: list[str]) -> str:
        return "| " + " | ".join(_plain(text).replace("|", r"\|") for text in texts) + " |"

    return [row(cells.head), "|---|" + "---:|" * (len(cells.head) - 1), *map(row, cells.rows)]


def _plain(text: str) -> str:
    """A text that Markdown shows as it is: names of runs and settings hold whatever their files say."""
    for sign, shown in {"&": "&amp;", "<": "&lt;", ">": "&gt;", "](": r"]\(", "`": r"\`"}.items():
        text = text.replace(sign, shown)
    return visible(text)


def escape(text: str) -> str:
    """A text that the terminal shows as it is."""
    return escape_markup(visible(text))


def show(console: Console, parts: list[tuple[Block, Findings]], apart: list[str]) -> None:
    """All of it in the terminal."""
    for sentence in apart:
        console.print(escape(sentence), soft_wrap=True)
    for block, findings in parts:
        main = main_table(block, findings)
        # A terminal is narrow: cost stands below quality.
        quality, cost = _columns(main, lambda name: name not in COST), _columns(main, lambda name: name in COST)
        for cells in (quality, replace(cost, title="Cost"), *part_tables(block, findings)):
            table = Table(title=escape(cells.title), title_justify="left")
            for number, name in enumerate(cells.head):
                table.add_column(escape(name), justify="right" if number else "left", overflow="fold")
            for row in cells.rows:
                table.add_row(*map(escape, row))
            console.print(table)
        for remark in remarks(block, findings):
            console.print(escape(remark), soft_wrap=True)


def _columns(cells: Cells, wanted: Callable[[str], bool]) -> Cells:
    kept = [0, *(number for number, name in enumerate(cells.head) if number and wanted(name))]
    return Cells(cells.title, [cells.head[i] for i in kept], [[row[i] for i in kept] for row in cells.rows])
