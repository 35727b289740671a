"""`task=explain`: test rows as a trained model sees them, as pictures and as one page.

Each row is drawn for two items: the row's own, and another that the same history could have led to. Shown are the
attention to each event, the path of the evolved state (the DIEN paper's figure of interest evolution), and the
probability after each event of the history. `../docs/explain.md` says how to read them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure

from deepinterest.atomic import beside
from deepinterest.compare.figures import as_svg
from deepinterest.compare.page import STYLE, escape
from deepinterest.config import ExplainConfig
from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.loader import BatchLoader
from deepinterest.data.samples import Samples
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.models.network import AttentionNetwork
from deepinterest.report import plots
from deepinterest.training.module import ClickModel

MOST_PREFIXES = 100  # lengths of a history that are scored
PAGE = "explain.html"
UNITS = {"years": 365 * 86_400, "days": 86_400, "hours": 3_600, "minutes": 60}  # seconds
MORE_STYLE = """
.figure { width: 100%; max-width: none; }
.bar { display: inline-block; height: .7em; margin-left: .4em; vertical-align: baseline; }
details { margin: .75rem 0 2rem; }
summary { cursor: pointer; }
.text { text-align: left; white-space: normal; }
"""


@dataclass(frozen=True)
class Item:
    """One of a row's two items."""

    name: str
    label: int | None  # None: it was never shown to this user
    probability: float


@dataclass(frozen=True)
class Explained:
    """A test row of T events, oldest first, for its item (0) and for another (1)."""

    row: int  # of predictions.parquet, from 0
    user: str
    items: tuple[Item, Item]
    events: list[str]
    categories: list[str] | None  # None where the source has none
    seconds: np.ndarray  # (T,) float64 between each event and the row
    weights: np.ndarray | None  # (2, T) attention; None: the network has none
    states: np.ndarray | None  # (3, T, H) for both items, and without a target; None: nothing is recurrent
    read: np.ndarray  # (P,) int64 numbers of events, the first 0, the last T
    probability: np.ndarray  # (2, P) if the history ended after so many


# ------------------------------------------------------------------------------------------------------ which rows


def chosen(loader: BatchLoader, config: ExplainConfig, seed: int) -> np.ndarray:
    """(n,) numbers of test rows: those asked for, or drawn among touches with a history, as far as there are any.

    Raises UserError for a number that no row has.
    """
    samples = loader.samples
    if config.rows is not None:
        for place, row in enumerate(config.rows):
            if row >= samples.rows:
                raise UserError(
                    f"explain.rows[{place}]={row} is no test row: those of predictions.parquet are 0 to "
                    f"{samples.rows - 1}."
                )
        return np.array(config.rows, dtype=np.int64)
    touched = np.flatnonzero(samples.label)
    group = np.searchsorted(samples.candidate_offsets, touched, side="right") - 1
    # A history of one event has nothing to tell; where there are no others, such rows are drawn all the same.
    rows = touched[samples.history_end[group] - loader.log.user_offsets[samples.user[group]] >= 2]
    rows = rows if len(rows) else touched if len(touched) else np.arange(samples.rows)
    return np.sort(np.random.default_rng([seed, 7]).choice(rows, min(config.count, len(rows)), replace=False))


def another(samples: Samples, row: int, rng: np.random.Generator) -> int:
    """The row whose item is compared with that of `row`.

    It is a row of the same history, if possible with the other label; where that has no further item, a random row;
    where all rows are of one item, `row` itself.
    """
    group = int(np.searchsorted(samples.candidate_offsets, row, side="right")) - 1
    near = np.arange(samples.candidate_offsets[group], samples.candidate_offsets[group + 1])
    near = near[samples.candidates[near] != samples.candidates[row]]
    if len(near):
        return int(near[np.argmax(samples.label[near] != samples.label[row])])
    for further in rng.permutation(samples.rows)[:1000]:
        if samples.candidates[further] != samples.candidates[row]:
            return int(further)
    return row


class Names:
    """How items are called: by a table's names, else as in the log; their categories where the source has them."""

    def __init__(self, store: Store, path: str | None) -> None:
        """Raises UserError where the table can't be read or knows none of the items."""
        self.items = store.item_names()
        features = store.item_features()
        self.categories: list[str] | None = None
        if "category" in features.columns:
            self.categories = ["unknown", *features["category"].cast(pl.String).fill_null("unknown")]
        if path is not None:
            called = _names(Path(path).expanduser())
            if not any(item in called for item in self.items[1:]):
                raise UserError(
                    f"explain.names={path} knows none of the items: its first column begins with "
                    f"{next(iter(called), '')!r}, the data set's items with {self.items[1]!r}."
                )
            self.items = [called.get(item, item) for item in self.items]


def _names(path: Path) -> dict[str, str]:
    readers: dict[str, Any] = {
        ".csv": lambda: pl.read_csv(path, infer_schema=False, glob=False),
        ".tsv": lambda: pl.read_csv(path, infer_schema=False, glob=False, separator="\t", quote_char=None),
        ".parquet": lambda: pl.read_parquet(path, glob=False),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"explain.names={path} is no table of names: use .csv, .tsv or .parquet.")
    try:
        table = readers[path.suffix.lower()]()
        if table.width < 2:
            raise UserError(f"explain.names={path} has one column where two are needed: the item and its name.")
        item, name = (column.cast(pl.String) for column in table.get_columns()[:2])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"explain.names={path} can't be read ({str(error).splitlines()[0]}).") from error
    return {key: value for key, value in zip(item, name, strict=True) if key and value}


# ------------------------------------------------------------------------------------------------------ what it sees


@torch.inference_mode()
def explain(
    model: ClickModel, loader: BatchLoader, names: Names, users: pl.Series, row: int, rng: np.random.Generator
) -> Explained:
    """What the model makes of a test row; users: raw values by index."""
    samples, log = loader.samples, loader.log
    other = another(samples, row, rng)
    group, other_group = (
        int(np.searchsorted(samples.candidate_offsets, which, side="right")) - 1 for which in (row, other)
    )
    whole = loader.batch(np.array([group]))
    context = whole.context
    if context is not None:  # a row of another history is asked in this row's context
        places = [which - samples.candidate_offsets[group] if g == group else None for which, g in
                  ((row, group), (other, other_group))]  # fmt: skip
        context = context[[places[0] if place is None else place for place in places]]
    label = [int(samples.label[row]), int(samples.label[other]) if other_group == group else None]
    batch = replace(
        whole,
        candidates=torch.from_numpy(samples.candidates[[row, other]].astype(np.int64)),
        history_index=torch.zeros(2, dtype=torch.int64),
        label=torch.from_numpy(samples.label[[row, other]].astype(np.float32)),
        context=context,
    )
    T = len(batch.history)
    model.eval()
    read, probability = _by_prefix(model, batch)
    weights = states = None
    if isinstance(model.network, AttentionNetwork) and T:
        found = model.network.evolve(batch.to(model.device))
        weights = found.weights.float().cpu().numpy().reshape(2, T)
        if found.states is not None and found.without_target is not None:
            both = found.states.float().cpu().numpy().reshape(2, T, -1)
            states = np.concatenate([both, found.without_target.float().cpu().numpy()[None, :T]])
    end = int(samples.history_end[group])
    shown = batch.history.tolist()
    time = samples.row_time(log, slice(group, group + 1))[row - samples.candidate_offsets[group]]
    first, second = (
        Item(names.items[item], label[place], float(probability[place, -1]))
        for place, item in enumerate(batch.candidates.tolist())
    )
    return Explained(
        row=row,
        user=str(users[int(samples.user[group])]),
        items=(first, second),
        events=[names.items[item] for item in shown],
        categories=None if names.categories is None else [names.categories[item] for item in shown],
        seconds=(time - log.time[end - T : end]) / 1000,
        weights=weights,
        states=states,
        read=read,
        probability=probability,
    )


def _by_prefix(model: ClickModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (P,) and probabilities (2, P) of the batch's two items if its history ended after so many events."""
    T = len(batch.history)
    read = np.unique(np.linspace(0, T, min(T, MOST_PREFIXES) + 1).round().astype(np.int64))  # (P,)
    P = len(read)
    prefixes = Batch(
        history=torch.cat([batch.history[:length] for length in read]),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(read)])),
        user=batch.user.expand(P),
        candidates=batch.candidates.repeat(P),
        history_index=torch.arange(P).repeat_interleave(2),
        label=batch.label.repeat(P),
        context=None if batch.context is None else batch.context.repeat(P, 1),
    )
    probability = model(prefixes.to(model.device))  # (2P,)
    return read, probability.float().cpu().numpy().reshape(P, 2).T


# -------------------------------------------------------------------------------------------------------------- written


def run(
    model: ClickModel, data: InteractionData, folder: Path, config: ExplainConfig, seed: int
) -> tuple[list[Explained], Path]:
    """Draw the rows into `folder`, a PNG each, and the page; raises UserError for wrong rows, names or a full disk."""
    store, loader = data.store, data.test_dataloader()
    names, users = Names(store, config.names), store.user_names()
    rows = [
        explain(model, loader, names, users, int(row), np.random.default_rng([seed, 8, int(row)]))
        for row in chosen(loader, config, seed)
    ]
    figures = [draw(found, config.events) for found in rows]
    try:
        for found, figure in zip(rows, figures, strict=True):
            plots.save(figure, folder / f"explain_{found.row}.png")
        with beside(folder / PAGE) as own:
            own.write_text(page(model.name, rows, figures, remarks(model)), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Pictures could not be written to {folder}: {error.strerror or error}. Make room and run again."
        ) from error
    return rows, folder / PAGE


def remarks(model: ClickModel) -> list[str]:
    """What has to be known of this network to read its pictures, in sentences."""
    network, name = model.network, model.name or "this network"
    told = []
    if not isinstance(network, AttentionNetwork):
        told.append(
            f"{name} has no attention and reads the history as a sum, so there are no weights and no path to draw: "
            "what can be seen is its probability after each event."
        )
    elif not hasattr(network, "evolution"):
        told.append(f"{name} sums the events up by their attention; it has no state that evolves, so no path is drawn.")
    elif model.name == "gru_attention":
        told.append(f"{name} reads the history without regard to the item, so its path is the same for both.")
    if model.quirks.batch_dice:
        told.append("With quirks.batch_dice a probability depends on its batch: here all are of one row's batch.")
    if model.calibration is not None:
        told.append("Probabilities are calibrated.")
    return told


def draw(found: Explained, events: int) -> Figure:
    """The row's picture, with bars for the `events` most recent events."""
    bars = None if found.weights is None else (found.events[-events:], found.weights[:, -events:])
    hidden = len(found.events) - events
    return plots.evolution(
        title=f"row {found.row}, user {plots.short(found.user)}: {len(found.events)} events",
        legend=[describe(item) for item in found.items],
        bars=bars,
        hidden=max(0, hidden),
        states=found.states,
        read=found.read,
        probability=found.probability,
    )


def describe(item: Item) -> str:
    outcome = {None: "not shown to this user", 0: "not clicked", 1: "clicked"}[item.label]
    return f"{plots.short(item.name)} ({outcome}, {item.probability:.3f})"


def page(name: str, rows: list[Explained], figures: list[Figure], told: list[str]) -> str:
    """One HTML page that needs nothing else."""
    remarks = "".join(f"<p>{escape(line)}</p>\n" for line in told)
    parts = "".join(_section(found, figure) for found, figure in zip(rows, figures, strict=True))
    title = f"What {name or 'the model'} sees in {len(rows)} test row{'s' if len(rows) != 1 else ''}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{remarks}{parts}</main>
</body>
</html>
"""


def _section(found: Explained, figure: Figure) -> str:
    first, second = (escape(item.name) for item in found.items)
    return f"""<h2>Row {found.row}, user {escape(found.user)}</h2>
<p>{_outcome(found.items[0])}, beside {_outcome(found.items[1])}; {len(found.events)} events before.</p>
<div class="scroll" tabindex="0" role="region" aria-label="figure">
<img class="figure" src="{as_svg(figure)}" alt="Attention, path of the state and probability for {first} and {second}"
style="min-width:{figure.get_figwidth() * 3.4:.0f}rem"></div>
<details>
<summary>The history, most recent first</summary>
{_table(found)}</details>
"""


def _outcome(item: Item) -> str:
    outcome = {None: "not shown to this user", 0: "not clicked", 1: "clicked"}[item.label]
    return f"<b>{escape(item.name)}</b> ({outcome}, predicted {item.probability:.3f})"


def _table(found: Explained) -> str:
    head = ["event", "item", *(["category"] if found.categories else []), "before"]
    if found.weights is not None:
        head += [f"attention for {plots.short(item.name)}" for item in found.items]
    lines = []
    for event in reversed(range(len(found.events))):
        cells = [f'<td class="text">{escape(found.events[event])}</td>']
        if found.categories:
            cells.append(f'<td class="text">{escape(found.categories[event])}</td>')
        cells.append(f"<td>{_ago(found.seconds[event])}</td>")
        if found.weights is not None:
            highest = found.weights.max()
            cells += [
                f'<td>{weight:.4f}<span class="bar" style="width:{4 * weight / highest:.2f}em;background:{colour}">'
                "</span></td>"
                for weight, colour in zip(found.weights[:, event], (plots.BLUE, plots.RED), strict=True)
            ]
        lines.append(f'<tr><th scope="row">{event + 1}</th>{"".join(cells)}</tr>\n')
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="history">\n<table>\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n</div>\n"
    )


def _ago(seconds: float) -> str:
    for unit, length in UNITS.items():
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
