"""`task=probe`: what the AUC of a trained model is made of.

Three questions are put to the test rows. What do single counts reach, without a network? What does a small network
reach on those counts alone? What does the model lose without its history, with another user's, or with the order mixed
up? `../docs/protocols.md` says how to read the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.probes import _touches, probe_scores
from deepinterest.data.samples import Samples, ranges
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.report import plots, run_folder
from deepinterest.training import scores
from deepinterest.training.module import ClickModel
from deepinterest.training.scores import Difference, WeightedAuc, auc_difference

TRAINING_ROWS, VALIDATION_ROWS = 200_000, 50_000  # at most, of the network on features alone
HIDDEN, BATCH_SIZE, LEARNING_RATE, EPOCHS, PATIENCE = 32, 1024, 3e-3, 30, 3  # of that network
CHUNK = 20_000  # groups at a time

HISTORIES = {  # what is done to the history -> what the model has above it
    "shuffle_history": "the order of the history",
    "no_history": "having a history",
    "random_history": "the user's own history rather than another's",
}


@dataclass
class Features:
    """What is known of each row (R,) without any id; each is a score too: more of it should mean a likelier touch."""

    values: dict[str, np.ndarray]  # name -> (R,) float64, at least 0
    floors: dict[str, float]  # name -> what is added before the logarithm

    def matrix(self) -> np.ndarray:
        """(R, F) float32, logarithms."""
        columns = [np.log(value + self.floors[name]) for name, value in self.values.items()]
        return np.stack(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Result:
    """An AUC on the test rows, and how much more the model has."""

    auc: float
    model_adds: Difference  # by a paired bootstrap over users


# -------------------------------------------------------------------------------------------------- histories tampered


Change = Callable[[np.ndarray, Batch], Batch]  # groups (G,) and their batch -> the batch to score


def shuffle_history(rng: np.random.Generator) -> Change:
    """The events of each history in a random order."""

    def change(groups: np.ndarray, batch: Batch) -> Batch:
        history = np.repeat(np.arange(len(groups)), batch.offsets.diff().numpy())
        order = np.lexsort((rng.random(len(history)), history))
        return replace(batch, history=batch.history[torch.from_numpy(order)])

    return change


def no_history(groups: np.ndarray, batch: Batch) -> Batch:
    """Every history empty."""
    return replace(batch, history=batch.history[:0], offsets=torch.zeros_like(batch.offsets))


def random_history(loader: BatchLoader, rng: np.random.Generator) -> Change:
    """Each group with the history of another user's group; every history is used once.

    Raises UserError where one user has more than half of the groups.
    """
    partner = other_users(loader.samples.user, rng)

    def change(groups: np.ndarray, batch: Batch) -> Batch:
        other = loader.batch(partner[groups])
        return replace(batch, history=other.history, offsets=other.offsets)

    return change


def other_users(user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) users -> a random permutation of the groups that gives each the group of another user."""
    most = int(np.bincount(user).max())
    if 2 * most > len(user):
        raise UserError(
            f"One user has {most:,} of {len(user):,} test targets, so the others have too few histories for "
            "random_history; set protocol.targets_per_user.test to a smaller number."
        )
    # Users one after the other in a random order: whoever is a user's largest number of groups further is another one.
    place = rng.permutation(int(user.max()) + 1)[user]
    order = np.lexsort((rng.random(len(user)), place))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, -most)
    return partner


@torch.inference_mode()
def predict(model: ClickModel, data: InteractionData, change: Change | None = None) -> np.ndarray:
    """Probability (R,) float32 of each test row, in the store's order; `change` alters each batch before it is scored.

    Batches are those of the test, so that a model whose scores depend on the batch gives the test's scores.
    """
    loader = data.test_dataloader()
    samples = loader.samples
    order = loader.row_order() if data.quirks.length_sorted else np.arange(len(samples))  # then a row is a group
    step = max(1, round(data.eval_batch_size * len(samples) / samples.rows))
    probability = np.empty(samples.rows, dtype=np.float32)
    model.eval()
    for groups in np.split(order, range(step, len(order), step)):
        batch = loader.batch(groups)
        if change is not None:
            batch = change(groups, batch)
        first = samples.candidate_offsets[groups]
        rows, _ = ranges(first, samples.candidate_offsets[groups + 1] - first)
        probability[rows] = model(batch.to(model.device)).float().cpu().numpy()
    return probability


# ---------------------------------------------------------------------------------------------- features alone


def features(log: Log, seen: np.ndarray, samples: Samples, category: np.ndarray | None, max_history: int) -> Features:
    """What can be counted before each row's time: never its target event itself, nor anything later.

    popularity_before is the item's share of all events before; hour and day count its touches in that time;
    in_history is 0 or 1; category_count counts the history's events of the candidate's category; item_recency and
    category_recency are 1 / (steps back to its last event in the history), 0 where there is none.
    """
    values = probe_scores(log, seen, samples, category, max_history)
    wanted = ("popularity_hour_before", "popularity_day_before", "in_history", "category_count")
    counts = {name: values[name] for name in wanted if name in values}
    length = np.minimum(samples.history_end - log.user_offsets[samples.user], max_history)
    recency = _recency(log, samples, category, max_history)
    of_row = np.repeat(length, np.diff(samples.candidate_offsets)).astype(np.float64)
    share, floor = _popularity_before(log, samples)
    found = {"popularity_before": share, **counts, **recency, "history_length": of_row}
    floors = dict.fromkeys(found, 1.0) | dict.fromkeys(recency, 0.5 / max_history) | {"popularity_before": floor}
    return Features(found, floors)


def _popularity_before(log: Log, samples: Samples) -> tuple[np.ndarray, float]:
    """(R,) share of an item among all events before the row's time; and the share of one event in the whole log."""
    time = samples.row_time(log)
    whole = int(time.max() - log.time.min()) + 1
    (touches,) = _touches(log, samples.candidates, time, (whole,))
    events = np.searchsorted(np.sort(log.time), time)
    return touches / np.maximum(events, 1), 1 / len(log)


def _recency(log: Log, samples: Samples, category: np.ndarray | None, max_history: int) -> dict[str, np.ndarray]:
    item = np.zeros(samples.rows)
    same = np.zeros(samples.rows)
    counts = np.diff(samples.candidate_offsets)
    for begin in range(0, len(samples), CHUNK):
        groups = np.arange(begin, min(begin + CHUNK, len(samples)))
        end = samples.history_end[groups]
        start = np.maximum(log.user_offsets[samples.user[groups]], end - max_history)
        rows = np.arange(samples.candidate_offsets[groups[0]], samples.candidate_offsets[groups[-1] + 1])
        # Each row with each event of its history.
        length = np.repeat(end - start, counts[groups])
        events, _ = ranges(np.repeat(start, counts[groups]), length)
        row = np.repeat(rows, length)
        steps = np.repeat(np.repeat(end, counts[groups]), length) - events
        touched, candidate = log.item[events], samples.candidates[row]
        hit = touched == candidate
        np.maximum.at(item, row[hit], 1 / steps[hit])
        if category is not None:
            hit = (category[touched] == category[candidate]) & (category[candidate] > 0)
            np.maximum.at(same, row[hit], 1 / steps[hit])
    return {"item_recency": item} if category is None else {"item_recency": item, "category_recency": same}


class FeatureNetwork(nn.Module):
    """One hidden layer on standardised features: (R, F) -> logits (R,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, train: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", train.mean(0))
        deviation = train.std(0, correction=0)
        self.register_buffer("scale", torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))
        self.layers = nn.Sequential(nn.Linear(train.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, rows: Tensor) -> Tensor:
        logit: Tensor = self.layers((rows - self.mean) / self.scale).squeeze(1)
        return logit


def fit_features(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on (R, F) features and (R,) labels, keeps the epoch best on validation; returns features -> probability.

    Random numbers outside are left as they are.
    """
    rows, label = torch.from_numpy(train[0]), torch.from_numpy(train[1].astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureNetwork(rows)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

        @torch.inference_mode()
        def probability(matrix: np.ndarray) -> np.ndarray:
            return network(torch.from_numpy(matrix)).sigmoid().numpy()

        best, kept, waited = -1.0, network.state_dict(), 0
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(rows)).split(BATCH_SIZE):
                loss = nn.functional.binary_cross_entropy_with_logits(network(rows[chosen]), label[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            reached = scores.auc(validation[1], probability(validation[0]))
            waited += 1
            if reached > best:
                best, waited = reached, 0
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            if waited == PATIENCE:
                break
    network.load_state_dict(kept)
    return probability


def _sampled(samples: Samples, rows: int, rng: np.random.Generator) -> Samples:
    """Whole groups with about so many rows, at most."""
    if samples.rows <= rows:
        return samples
    groups = np.sort(rng.choice(len(samples), max(1, len(samples) * rows // samples.rows), replace=False))
    return samples.take(groups)


def _features_alone(store: Store, max_history: int, seed: int) -> tuple[np.ndarray, Features, int]:
    """Probability (R,) by the network on features alone, the test rows' features, and how many rows it learned from."""
    category = store.category()
    rng = np.random.default_rng([seed, 9])
    used = {
        "train": _sampled(store.samples["train"], TRAINING_ROWS, rng),
        "validation": _sampled(store.samples["validation"], VALIDATION_ROWS, rng),
        "test": store.samples["test"],
    }
    found = {name: features(store.log, store.seen, part, category, max_history) for name, part in used.items()}
    train, validation = ((found[name].matrix(), np.asarray(used[name].label)) for name in ("train", "validation"))
    probability = fit_features(train, validation, seed)
    return probability(found["test"].matrix()), found["test"], used["train"].rows


# ------------------------------------------------------------------------------------------------------ the whole


def run(model: ClickModel, data: InteractionData, folder: Path, seed: int) -> dict[str, Any]:
    """Probes a trained model on the test rows; writes probes.json and probes.png. Returns the content of probes.json.

    Raises UserError where the test rows can't be probed, or the folder can't be written.
    """
    store = data.store
    samples = store.samples["test"]
    users, user = np.unique(np.repeat(samples.user, np.diff(samples.candidate_offsets)), return_inverse=True)
    label = np.asarray(samples.label)
    changes = {
        "shuffle_history": shuffle_history(np.random.default_rng([seed, 7])),
        "no_history": no_history,
        "random_history": random_history(data.test_dataloader(), np.random.default_rng([seed, 8])),
    }
    probability = predict(model, data)
    weighted = WeightedAuc(user, label, probability)

    def result(other: np.ndarray) -> Result:
        pair = (weighted, WeightedAuc(user, label, other))
        return Result(scores.auc(label, other), auc_difference([pair], len(users)))

    histories = {name: result(predict(model, data, change)) for name, change in changes.items()}
    alone, found, learned = _features_alone(store, data.protocol.max_history, seed)
    counted = replace(
        store, probes={**{n: v for n, v in found.values.items() if n != "history_length"}, **store.probes}
    )
    single = {
        key.removeprefix("probe/").removesuffix("_auc"): value for key, value in run_folder.probes(counted).items()
    }
    auc, network = scores.auc(label, probability), result(alone)
    content: dict[str, Any] = {
        "model": {"name": model.name, "auc": auc, "test_rows": samples.rows, "test_users": len(users)},
        "histories": {name: asdict(value) for name, value in histories.items()},
        "features_network": {**asdict(network), "features": list(found.values), "training_rows": learned},
        "scores": dict(sorted(single.items(), key=lambda entry: -entry[1])),
        "summary": summary(auc, network, histories),
    }
    run_folder.write_findings(folder, "probes", content, plots.probes(content))
    return content


def summary(auc: float, network: Result, histories: dict[str, Result]) -> str:
    """What the AUC is made of, in sentences; differences with their 95 % intervals."""
    parts = [_adds(what, histories[name].model_adds) for name, what in HISTORIES.items() if name in histories]
    more = network.model_adds
    if not _matters(more):
        beyond = f"the model shows no significant difference to that ({more.value:+.4f} {_interval(more)})"
    else:
        beyond = f"the model has {abs(more.value):.4f} {_interval(more)} {'more' if more.value > 0 else 'less'}"
    if auc > 0.5:
        begin = (
            f"Of the model's AUC above one half ({auc - 0.5:.4f}), a small network on plain features alone reaches "
            f"{(network.auc - 0.5) / (auc - 0.5):.0%} (AUC {network.auc:.4f}): {beyond}."
        )
    else:
        begin = f"The model's AUC, {auc:.4f}, is not above one half; features alone reach {network.auc:.4f}."
    return f"{begin} To this model, as trained, {'; '.join(parts)}."


def _adds(what: str, difference: Difference) -> str:
    if not _matters(difference):
        return f"{what} makes no significant difference ({difference.value:+.4f} {_interval(difference)})"
    word = "adds" if difference.value > 0 else "costs"
    return f"{what} {word} {abs(difference.value):.4f} {_interval(difference)}"


def _matters(difference: Difference) -> bool:
    """Significant, and not just the rounding of a sum in another order."""
    return difference.significant and abs(difference.value) >= 0.00005


def _interval(difference: Difference) -> str:
    """Of the absolute value where that is significant, so that signs agree."""
    low, high = difference.low, difference.high
    if difference.high < 0:
        low, high = -high, -low
    return f"[{low:.4f}, {high:.4f}]"


def table(content: dict[str, Any]) -> Table:
    """The content of probes.json for the terminal."""
    shown = Table(title=f"Probes of {content['model']['name'] or 'the model'}")
    shown.add_column("on the test rows")
    shown.add_column("AUC", justify="right")
    shown.add_column("the model has more by, 95 % interval", justify="right")
    shown.add_row("model", f"{content['model']['auc']:.4f}", "", end_section=True)
    compared = {**content["histories"], "features alone": content["features_network"]}
    for number, (name, value) in enumerate(compared.items(), 1):
        adds = Difference(**value["model_adds"])
        shown.add_row(
            f"model, {name}" if name in content["histories"] else "small network on features alone",
            f"{value['auc']:.4f}",
            f"{adds.value:+.4f} [{adds.low:+.4f}, {adds.high:+.4f}]{'' if _matters(adds) else ', not significant'}",
            end_section=number == len(compared),
        )
    for name, auc in content["scores"].items():
        shown.add_row(name, f"{auc:.4f}", "")
    return shown


def metrics(content: dict[str, Any]) -> dict[str, float]:
    """The AUCs of probes.json by name."""
    return {
        "test/auc": content["model"]["auc"],
        **{f"probe/{name}_auc": value["auc"] for name, value in content["histories"].items()},
        "probe/features_network_auc": content["features_network"]["auc"],
        **{f"probe/{name}_auc": value for name, value in content["scores"].items()},
    }
