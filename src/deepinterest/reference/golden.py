"""The golden check: what the published graph computed from fixed weights, beside what these networks compute.

A golden file holds the weights (`init/*`), three batches (`batch<k>/*`), and what TensorFlow made of them: scores,
losses and gradient norms of batch 0 (`forward/*`, `gradient_norm/*`), the losses of some Adam steps (`training/*`), and
scores and the item table after these (`trained/*`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deepinterest.config import DIENConfig
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.models.network import Network
from deepinterest.reference import names
from deepinterest.reference.weights import read_npz
from deepinterest.training.losses import probability, total_loss
from deepinterest.training.optimizers import DeferredAdam

Form = Literal["deferred", "dense"]
FORMS: tuple[Form, ...] = ("deferred", "dense")

TOLERANCE = 5e-6  # absolute: of probabilities, losses and accuracy
# Absolute, of the item table after Adam's steps. A step is lr·m / (√v + eps): where a gradient is as small as eps
# (1e-8), the rounding of a few bits in it changes the quotient, and the entry moves by another part of lr (1e-3).
TABLE_TOLERANCE = 2e-5
# Of a gradient norm p: relative to p + NORM_FLOOR, so that a norm of 0 is held to 1e-8, float32's noise in these sums.
NORM_TOLERANCE = 1e-3
NORM_FLOOR = 1e-5

BATCHES = 3
BETAS, EPS = (0.9, 0.999), 1e-8  # the published optimizer's; the file gives the learning rates


@dataclass(frozen=True)
class Deviation:
    """The largest deviation of one quantity, where it is, and what is allowed; nan where ours isn't finite."""

    quantity: str
    optimizer: Form | None  # None before any step
    largest: float
    tolerance: float
    where: str  # a row, a step or a variable

    @property
    def fine(self) -> bool:
        return self.largest <= self.tolerance  # false for nan


class Golden:
    """One golden file, checked for completeness, with its batches over a catalogue of the pairs they hold.

    Raises UserError for a missing or broken file, a missing key, a wrong shape, or an id without an embedding.
    """

    def __init__(self, path: Path, model: str | None = None) -> None:
        self.path = path
        self.arrays = read_npz(path)
        self.model = names.ours(model) if model else names.of_file(path)
        self.weights = {k.removeprefix("init/"): a for k, a in self.arrays.items() if k.startswith("init/")}
        for name in ("uid_embedding_var", "mid_embedding_var", "cat_embedding_var"):
            self.get(f"init/{name}", None, None)
        self.catalogue, self.batches = self._batches()

    def get(self, key: str, *shape: int | None) -> np.ndarray:
        """The array of `key`, of the given shape; None stands for any length."""
        if key not in self.arrays:
            raise UserError(f"{self.path} has no {key}: it is not a complete golden file.")
        array = self.arrays[key]
        if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise UserError(f"{key} in {self.path} has the shape {array.shape}; expected is ({expected}).")
        if array.dtype.kind not in "fiu":
            raise UserError(f"{key} in {self.path} holds {array.dtype}, not numbers.")
        return array

    def network(self) -> Network:
        """A fresh network with the file's starting weights."""
        return names.network(self.model, self.weights, str(self.path), self.catalogue)[0]

    def _ids(self, key: str, table: str, *shape: int | None) -> Tensor:
        array = self.get(key, *shape)
        height = len(self.weights[table])
        if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() >= height)):
            raise UserError(f"{key} in {self.path} must hold whole numbers from 0 to {height - 1}, rows of {table}.")
        return torch.from_numpy(array.astype(np.int64))

    def _batches(self) -> tuple[Tensor, list[Batch]]:
        """The catalogue (I, 2) of all pairs of item and category, row 0 being (0, 0); and the batches of its rows."""
        categories = len(self.weights["cat_embedding_var"])
        drafts = []
        for k in range(BATCHES):
            at = f"batch{k}"
            label = self.get(f"{at}/label", None)
            B = len(label)
            T = self.get(f"{at}/history_items", B, None).shape[1]
            length = self.get(f"{at}/length", B).astype(np.int64)
            if B == 0 or length.min() < 0 or length.max() != T or not np.isin(label, (0, 1)).all():
                raise UserError(
                    f"{at} in {self.path} must have rows, labels of 0 and 1, and "
                    f"lengths that aren't negative and reach its width, {T}."
                )
            if self.get(f"{at}/negative_items", B, T, None).shape[2] == 0:
                raise UserError(f"{at}/negative_items in {self.path} has no negatives.")
            # A pair is one number until the catalogue is known.
            candidates, history, negatives = (
                self._ids(f"{at}/{items}", "mid_embedding_var", *shape) * categories
                + self._ids(f"{at}/{kinds}", "cat_embedding_var", *shape)
                for items, kinds, shape in (
                    ("item", "category", (B,)),
                    ("history_items", "history_categories", (B, T)),
                    ("negative_items", "negative_categories", (B, T, None)),
                )
            )
            real = torch.arange(T) < torch.from_numpy(length)[:, None]  # (B, T)
            drafts.append(
                Batch(
                    history=history[real],  # (N,)
                    offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(length)])),
                    user=self._ids(f"{at}/user", "uid_embedding_var", B),
                    candidates=candidates,
                    history_index=torch.arange(B),  # every row has its own history
                    label=torch.from_numpy(label.astype(np.float32)),
                    auxiliary_negatives=negatives[real][
                        :, :1
                    ].contiguous(),  # (N, 1) the published graph reads the first only
                )
            )
        held = [pairs.flatten() for b in drafts for pairs in (b.history, b.candidates, b.auxiliary_negatives)]  # type: ignore[union-attr]
        keys = torch.cat([torch.zeros(1, dtype=torch.int64), *held]).unique()
        for batch in drafts:
            assert batch.auxiliary_negatives is not None
            batch.history = torch.searchsorted(keys, batch.history)
            batch.candidates = torch.searchsorted(keys, batch.candidates)
            batch.auxiliary_negatives = torch.searchsorted(keys, batch.auxiliary_negatives)
        return torch.stack([keys // categories, keys % categories], dim=1), drafts


def check(path: Path | str, model: str | None = None, optimizer: Form | Literal["both"] = "both") -> list[Deviation]:
    """Compare everything a golden file holds; a list with one entry for each quantity, and for each optimizer.

    Args:
        model: our name or the published one; without it that of the file's name.
        optimizer: how the embedding tables are trained, deferred (sparse gradients) or dense.
    """
    golden = Golden(Path(path), model)
    found = list(_forward(golden))
    for form in FORMS if optimizer == "both" else (optimizer,):
        found += _training(golden, form)
    return found


def _forward(golden: Golden) -> Iterator[Deviation]:
    """Scores, losses and gradients of batch 0 at the starting weights."""
    network, batch = golden.network(), golden.batches[0]
    yield _worst(
        "click probability", "row", _scores(network, batch), golden.get("forward/click_probability", len(batch))
    )
    network.train()
    loss, auxiliary, logit = _losses(network, batch)
    loss.backward()
    yield _worst("loss", "", _numpy(loss), golden.get("forward/loss"))
    yield _worst("auxiliary loss", "", _numpy(auxiliary), golden.get("forward/auxiliary_loss"))
    # Of both columns, as published: each is rounded, half to even, and compared with its target.
    columns = torch.stack([probability(z, names.ALL_QUIRKS, network.epsilon) for z in (logit, -logit)], dim=1)
    targets = torch.stack([batch.label, 1 - batch.label], dim=1)
    yield _worst("accuracy", "", _numpy((columns.round() == targets).double().mean()), golden.get("forward/accuracy"))

    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in network.named_parameters()
    }
    ratios = {}
    for name, gradient in names.exported(golden.model, gradients).items():
        published = float(golden.get(f"gradient_norm/{name}"))
        norm = float(np.linalg.norm(gradient.astype(np.float64)))
        ratios[name] = abs(norm - published) / (published + NORM_FLOOR)
    worst = list(ratios)[int(np.argmax(list(ratios.values())))]  # argmax takes nan for the largest
    yield Deviation("gradient norms, relative", None, ratios[worst], NORM_TOLERANCE, worst)


def _training(golden: Golden, form: Form) -> Iterator[Deviation]:
    """The file's Adam steps, and what they end in."""
    order, rates = golden.get("training/batch_order", None), golden.get("training/learning_rate", None)
    if not 0 < len(order) == len(rates) or order.dtype.kind not in "iu" or not np.isin(order, range(BATCHES)).all():
        raise UserError(
            f"training/batch_order in {golden.path} must hold numbers from 0 to {BATCHES - 1}, at least one, "
            f"and as many as there are learning rates, {len(rates)}."
        )
    network = golden.network()
    if form == "dense":
        for table in network.embeddings:
            table.sparse = False
    optimizer = DeferredAdam(network.parameters(), lr=1e-3, betas=BETAS, eps=EPS, form="tensorflow")
    if form == "deferred":
        for table in network.embeddings:
            optimizer.watch(table)
    steps = []
    network.train()
    for number, rate in zip(order, rates, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss, auxiliary, _ = _losses(network, golden.batches[number])
        loss.backward()
        optimizer.step()
        steps.append([loss.item(), auxiliary.item()])
    losses = np.array(steps).reshape(-1, 2)  # (steps, 2)
    yield _worst("losses of the steps", "step", losses[:, 0], golden.get("training/loss", len(order)), form)
    yield _worst(
        "auxiliary losses of the steps", "step", losses[:, 1], golden.get("training/auxiliary_loss", len(order)), form
    )
    published = [golden.get(f"trained/click_probability{k}", len(b)) for k, b in enumerate(golden.batches)]
    scores = [_scores(network, batch) for batch in golden.batches]
    yield _worst("trained click probability", "row", np.concatenate(scores), np.concatenate(published), form)
    if form == "deferred":
        optimizer.flush()
    items = network.get_parameter("items.tables.0.weight")
    published_table = golden.get("trained/item_embedding", *items.shape)
    yield _worst("trained item table", "item", _numpy(items), published_table, form, TABLE_TOLERANCE)


def _losses(network: Network, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, auxiliary loss (0 where the model has none) and logit (B,)."""
    prediction = network(batch)
    loss, _ = total_loss(prediction, batch.label, names.ALL_QUIRKS, network.epsilon, DIENConfig.aux_weight)
    auxiliary = prediction.auxiliary_loss
    return loss, loss.new_zeros(()) if auxiliary is None else auxiliary, prediction.logit


@torch.no_grad()
def _scores(network: Network, batch: Batch) -> np.ndarray:
    network.eval()
    return _numpy(probability(network(batch).logit, names.ALL_QUIRKS, network.epsilon))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def _worst(
    quantity: str,
    unit: str,
    own: np.ndarray,
    published: np.ndarray,
    form: Form | None = None,
    tolerance: float = TOLERANCE,
) -> Deviation:
    """The largest absolute difference, and in which `unit` (the first axis) it is."""
    apart = np.atleast_1d(np.abs(own - published.astype(np.float64)))
    place = int(np.argmax(apart)) // max(1, apart[:1].size)  # argmax takes nan for the largest
    return Deviation(quantity, form, float(apart.max()), tolerance, f"{unit} {place}" if unit else "")
