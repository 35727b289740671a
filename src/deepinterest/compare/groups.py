"""Which runs may stand in one table, and which of them are one row.

A block holds runs of one task: the same protocol, split, probes and way of measuring. A group is a row of it: runs that
differ in their seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepinterest.compare.runs import MACHINE, Run
from deepinterest.errors import UserError, nearest

# Probes that look into the history, so that they may differ where protocol.max_history does.
OF_THE_HISTORY = ("probe/in_history_auc", "probe/category_count_auc")
UNSET = "unset"
TASK = ("data.", "protocol.", "quirks.", "evaluation.", "reference")  # settings that can make another task
OR = " or "
SHOWN = 4  # names of runs in a sentence


@dataclass(frozen=True, eq=False)
class Group:
    """A row of a table: `runs` by seed, one each; `values` are the settings that tell it from other rows."""

    label: str
    values: dict[str, str]
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Block:
    """Runs of one task. `baselines` says by label which row a row is compared with."""

    title: str
    groups: list[Group]
    baselines: dict[str, Group]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


@dataclass(frozen=True)
class Baseline:
    """What rows are compared with: the runs with these settings, or those of a folder."""

    text: str
    values: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def holds(self, run: Run) -> bool:
        if self.folder is not None:
            return run.folder.is_relative_to(self.folder)
        return all(run.settings.get(key, UNSET) == value for key, value in self.values.items())


def arrange(runs: Sequence[Run], by: str | None = None, baseline: str | None = None) -> tuple[list[Block], list[str]]:
    """The blocks, and what to say of all of them: why runs don't share a table.

    Args:
        by: settings that name the rows, "model,protocol.max_history"; None: the model and whatever else differs.
        baseline: "model=din", further settings after a comma, or a folder of runs.
    Raises UserError for a setting that no run has, a baseline without a run, and runs that differ within a row of `by`.
    """
    keys = None if by is None else [setting(key.strip(), runs, "--by") for key in by.split(",")]
    base = None if baseline is None else _baseline(baseline, runs)
    parts = _tasks(runs)
    blocks = [_block(part, keys, base) for part in parts]
    if len(blocks) > 1:  # tables of one split may differ in their probes: the numbers are those of `_apart`
        blocks = [replace(block, title=f"{number}. {block.title}") for number, block in enumerate(blocks, 1)]
    return blocks, _apart(parts)


def setting(key: str, runs: Sequence[Run], where: str) -> str:
    """The full name of a setting: `model` stands for `model.name`. Raises UserError where no run has it."""
    known = sorted({name for run in runs for name in run.settings})
    for name in (key, f"{key}.name"):
        if name in known:
            return name
    short = [name.removesuffix(".name") for name in known]
    raise UserError(f"{where} names {key!r}, a setting that no run has{nearest(key, short)}.")


def _baseline(text: str, runs: Sequence[Run]) -> Baseline:
    if Path(text).is_dir():
        base = Baseline(text, folder=Path(text).resolve())
    elif all("=" in part for part in text.split(",")):
        pairs = [part.split("=", 1) for part in text.split(",")]
        base = Baseline(text, {setting(key.strip(), runs, "--baseline"): value.strip() for key, value in pairs})
    else:
        raise UserError(
            f"--baseline {text!r} is neither a folder nor of the form SETTING=VALUE; write --baseline model={text}."
        )
    if not any(base.holds(run) for run in runs):
        known = ", ".join(sorted({run.model for run in runs}))
        raise UserError(f"The baseline {text!r} has no run here; the models are {known}.")
    return base


# --------------------------------------------------------------------------------------------------------------- blocks


def _tasks(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each task, in a fixed order."""
    tasks: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        plain = tuple(item for item in run.probes.items() if item[0] not in OF_THE_HISTORY)
        measured = tuple(item for item in sorted(run.settings.items()) if item[0].startswith("evaluation."))
        key = (str(run.card["protocol"]), str(run.card["split_hash"]), plain, measured)
        tasks.setdefault(key, []).append(run)
    parts: list[list[Run]] = []
    for _, found in sorted(tasks.items(), key=lambda item: str(item[0])):
        longest = {(run.settings.get("protocol.max_history"), *_of_the_history(run)) for run in found}
        if len(longest) == len({length for length, *_ in longest}):
            parts.append(found)
        else:  # these probes differ and the length of the history doesn't say why
            whole: dict[tuple[str, ...], list[Run]] = {}
            for run in found:
                whole.setdefault(_of_the_history(run), []).append(run)
            parts += [whole[key] for key in sorted(whole)]
    return parts


def _of_the_history(run: Run) -> tuple[str, ...]:
    return tuple(run.probes.get(name, UNSET) for name in OF_THE_HISTORY)


def _apart(parts: list[list[Run]]) -> list[str]:
    """Why there are several tables: which runs differ in what."""
    if len(parts) == 1:
        return []
    keys = sorted({key for part in parts for run in part for key in run.settings if key.startswith(TASK)})
    told = {key: [_values(part, key) for part in parts] for key in keys if key != "protocol.name"}
    # What varies within a table doesn't tell it from another, and a setting of one protocol alone follows from it.
    differing = [k for k, v in told.items() if len(set(v)) > 1 and not any(UNSET in x or OR in x for x in v)]
    lines = [f"These runs measure {len(parts)} different things, so they don't share a table:"]
    for number, part in enumerate(parts):
        names = [run.name for run in part]
        more = "" if len(names) <= SHOWN else f" and {len(names) - SHOWN} more"
        facts = [f"protocol {part[0].card['protocol']}", f"split {part[0].card['split_hash']}"]
        facts += [f"{key}={told[key][number]}" for key in differing]
        facts += [f"{name} {value}" for name, value in _differing_probes(parts, number)]
        lines.append(f"{number + 1}. {', '.join(facts)}: {', '.join(names[:SHOWN])}{more}")
    if not differing and len({(str(part[0].card["protocol"]), _values(part, "data.name")) for part in parts}) == 1:
        lines.append("Their settings agree, so the data themselves differ, or the program that prepared them.")
    return lines


def _values(runs: Sequence[Run], key: str) -> str:
    return OR.join(sorted({run.settings.get(key, UNSET) for run in runs}))


def _differing_probes(parts: list[list[Run]], number: int) -> list[tuple[str, str]]:
    """Probes of one part that runs of its own protocol and split elsewhere don't agree with."""
    mine = parts[number][0]
    same = [p[0] for p in parts if all(p[0].card[key] == mine.card[key] for key in ("protocol", "split_hash"))]
    names = sorted({name for run in same for name in run.probes})
    return [(n, mine.probes.get(n, "missing")) for n in names if len({run.probes.get(n) for run in same}) > 1]


def _block(runs: Sequence[Run], keys: list[str] | None, base: Baseline | None) -> Block:
    groups, notes = _groups(runs, keys, base)
    baselines: dict[str, Group] = {}
    if base is not None:
        baselines, more = _pair(groups, base)
        notes += more
    data = ", ".join(sorted({run.settings["data.name"] for run in runs}))
    card = runs[0].card
    return Block(
        f"{data}, {card['protocol']}, split {card['split_hash']}", groups, baselines, notes + _cautions(groups)
    )


# --------------------------------------------------------------------------------------------------------------- groups


def _groups(runs: Sequence[Run], keys: list[str] | None, base: Baseline | None) -> tuple[list[Group], list[str]]:
    found: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    models = {run.model for run in runs}
    differing = sorted({key for model in models for key in _differing([run for run in runs if run.model == model])})
    for run in sorted(runs, key=lambda run: (run.model, run.seed, run.name)):
        # What differs within one model tells apart the rows of all that have it.
        names = ["model.name", *(key for key in differing if key in run.settings)] if keys is None else keys
        found.setdefault(tuple((name, run.settings.get(name, UNSET)) for name in names), []).append(run)
    groups, notes = [], []
    for pairs, mine in found.items():
        label = _label(dict(pairs), {} if keys else _usual(mine[0], runs, base))
        mixed = _differing(mine)
        if "model.name" in mixed:  # other models have other settings of their own
            mixed = [key for key in mixed if key == "model.name" or not key.startswith("model.")]
        if mixed:
            told = "; ".join(f"{key}: {', '.join(sorted({r.settings.get(key, UNSET) for r in mine}))}" for key in mixed)
            raise UserError(
                f"The row {label!r} would mix {len(mine)} runs that differ in more than the seed ({told}), as "
                f"{mine[0].name} and {next(r for r in mine if r.meaning != mine[0].meaning).name} do; name that too, "
                f"--by {','.join([*(keys or ()), *mixed])}, or leave --by away."
            )
        # Of a repeated seed the newest counts; a test of the same checkpoint doesn't stand for its training.
        newest = {run.seed: run for run in sorted(mine, key=lambda run: (run.trained, run.written, run.name))}
        groups.append(Group(label, dict(pairs), [newest[seed] for seed in sorted(newest)]))
        if len(newest) < len(mine):
            notes.append(f"{label}: {len(mine) - len(newest)} older run(s) of a repeated seed are left out.")
    return groups, notes


def _differing(runs: Sequence[Run]) -> list[str]:
    keys = sorted({key for run in runs for key in run.meaning})
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def _usual(run: Run, runs: Sequence[Run], base: Baseline | None) -> dict[str, str]:
    """What needs no saying beside a folder that is the baseline: the settings of its runs, of this model if it can."""
    if base is None or base.folder is None:
        return {}
    theirs = [other for other in runs if base.holds(other)]
    return next((other.settings for other in theirs if other.model == run.model), theirs[0].settings if theirs else {})


def _label(values: dict[str, str], usual: dict[str, str]) -> str:
    """`din, lr=0.1`; the whole name of a setting where its last word alone would be of two."""
    last = [key.rpartition(".")[2] for key in values]
    parts = [values["model.name"]] if "model.name" in values else []
    for (key, value), word in zip(values.items(), last, strict=True):
        if key != "model.name" and usual.get(key) != value:
            parts.append(f"{word if last.count(word) == 1 else key}={value}")
    return ", ".join(parts)


def _pair(groups: list[Group], base: Baseline) -> tuple[dict[str, Group], list[str]]:
    """Each row's baseline: the one like it in all that the baseline leaves open, or the only one there is."""
    candidates = [group for group in groups if any(base.holds(run) for run in group.runs)]
    if not candidates:
        return {}, [f"No run of the baseline {base.text} is here, so nothing is compared with it."]
    pairs = {}
    lost = []
    for group in groups:
        if group in candidates:
            continue
        open_values = {key: value for key, value in group.values.items() if key not in base.values}
        like = [c for c in candidates if all(c.values.get(key, value) == value for key, value in open_values.items())]
        match = like if len(like) == 1 else candidates
        if len(match) == 1:
            pairs[group.label] = match[0]
        else:
            lost.append(group.label)
    notes = []
    if lost:
        rows = "; ".join(candidate.label for candidate in candidates)
        notes.append(
            f"The baseline {base.text} has {len(candidates)} rows here ({rows}), so nothing is compared with it for: "
            f"{'; '.join(lost)}."
        )
    return pairs, notes


def _cautions(groups: list[Group]) -> list[str]:
    """What a careful reader must know before believing the table."""
    notes = []
    runs = [run for group in groups for run in group.runs]
    chosen = [g.label for g in groups if any(r.settings.get("quirks.best_of_test") == "true" for r in g.runs)]
    if chosen:
        notes.append(f"Chosen on the test rows (quirks.best_of_test), so too high: {'; '.join(chosen)}.")
    machine = [key for key in MACHINE if len({run.settings.get(key, UNSET) for run in runs if run.trained}) > 1]
    for key, labels in _beside(groups).items():
        told = ", ".join(f"{value} ({'; '.join(names)})" for value, names in labels.items())
        notes.append(f"Beside what names them, rows differ in {key}: {told}.")
    if machine:
        told = "; ".join(f"{key}: {_values(runs, key)}" for key in machine)
        notes.append(f"Seconds and samples/s were not measured alike ({told}).")
    for name in ("commit", "torch"):
        values = sorted({str(run.environment[name])[:40] for run in runs if name in run.environment})
        if len(values) > 1:
            notes.append(f"The runs are of different {name}s: {', '.join(value[:12] for value in values)}.")
    return notes


def _beside(groups: list[Group]) -> dict[str, dict[str, list[str]]]:
    """Labels by value of each setting that all rows have, that differs between them, and that doesn't name them."""
    runs = [run for group in groups for run in group.runs]
    shared = set.intersection(*(set(run.meaning) for run in runs))
    named = {key for group in groups for key in group.values} | {"model.name"}
    found = {}
    for key in sorted(shared - named):
        labels: dict[str, list[str]] = {}
        for group in groups:
            labels.setdefault(group.runs[0].settings[key], []).append(group.label)
        if len(labels) > 1 and not key.startswith("evaluation."):
            found[key] = labels
    return found
