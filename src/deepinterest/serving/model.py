"""`deepinterest.load`: a trained model that takes raw values, as in the log, and answers with probabilities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from deepinterest import models
from deepinterest.config import ExperimentConfig
from deepinterest.data.batch import Batch
from deepinterest.data.samples import ranges
from deepinterest.data.values import feature
from deepinterest.data.vocabulary import Buckets
from deepinterest.data.where import Where
from deepinterest.errors import UserError
from deepinterest.models.network import Network
from deepinterest.nn.embedding import Features
from deepinterest.serving import checkpoint, vocabulary
from deepinterest.serving.checkpoint import Checkpoint
from deepinterest.serving.vocabulary import Known
from deepinterest.training.calibration import Calibration
from deepinterest.training.losses import probability
from deepinterest.training.scores import refuse_numbers

log = logging.getLogger(__name__)

FROM_PYTHON = Where("context")
BATCH_QUIRKS = ("batch_dice", "padded_sum")  # with them a score depends on the rows beside it
Context = Mapping[str, Sequence[Any]]  # name of a context feature -> a value for each candidate


def load(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """The model of a checkpoint in its run's folder, ready to score.

        model = load("outputs/runs/RUN/best.ckpt")
        model.score(["i1", "i2"], ["i3", "i4"])  # what was touched, oldest first; what to score

    Raises UserError for a file that is no checkpoint, or whose vocabulary is missing or another one.
    """
    return Model.of(checkpoint.read(path), device)


class Model:
    """A network with its vocabulary and its calibration. `config` holds the settings it was trained with."""

    def __init__(
        self,
        network: Network,
        known: Known,
        config: ExperimentConfig,
        calibration: Calibration | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network, self.device = network.to(device).eval(), torch.device(device)
        self.known, self.config, self.calibration = known, config, calibration
        self.max_history = None if config.quirks.truncate_training_only else config.protocol.max_history
        self.batch_size: int = config.trainer.eval_batch_size

    @classmethod
    def of(cls, read: Checkpoint, device: str | torch.device = "cpu") -> Model:
        """Of a checkpoint; raises UserError as `load` does."""
        config = read.config()
        known = vocabulary.read(read.path.parent)
        if known.hash != read.vocabulary_hash:
            raise UserError(
                f"checkpoint={read.path} was trained with another vocabulary ({read.vocabulary_hash}) than the one "
                f"beside it ({known.hash}): take a checkpoint from the folder of its own run."
            )
        features = Features(
            torch.from_numpy(known.catalogue),
            known.sizes,
            torch.from_numpy(known.user_catalogue),
            known.user_sizes,
            [len(values) for values in known.context.values()],
        )
        if config.quirks.first_user_for_unknown and known.users is not None:
            features = features.without_unknown_user()
        part = "network."

        def build() -> Network:
            return models.build(features, config.model, config.quirks)

        checkpoint.refuse_misfit(read, build, part)
        network = build()
        weights = {name: weight for name, weight in read.weights.items() if name.startswith(part)}
        network.load_state_dict({name.removeprefix(part): weight for name, weight in weights.items()})
        quirks = [name for name in BATCH_QUIRKS if getattr(config.quirks, name)]
        if quirks:
            log.warning(
                "With quirks.%s=true a score depends on the rows it is scored with, as in the published code.",
                " and quirks.".join(quirks),
            )
        return cls(network, known, config, read.calibration, device)

    def knows(self, items: Sequence[Any]) -> np.ndarray:
        """(n,) bool: which items have an embedding of their own; the others are scored as unknown ones."""
        return self.learned(self.known.items.rows(_series(items, "items")))

    def learned(self, rows: np.ndarray) -> np.ndarray:
        """(n,) catalogue rows -> whether training knew the item itself."""
        return self.known.catalogue[rows, 0] > 0

    def score(
        self, history: Sequence[Any], candidates: Sequence[Any], *, user: Any = None, context: Context | None = None
    ) -> np.ndarray:
        """Probability (n,) float32 that whoever touched `history` touches each of the n `candidates` next.

        Args:
            history: raw items, oldest first; the latest `max_history` are read. It may be empty.
            user: raw user, for a network that reads users; None is the unknown one.
            context: a value for each candidate, by name, for a network that reads context features.
        Raises UserError for values that can't be items, and for context that is missing.
        """
        (answer,) = self.score_many([history], [candidates], users=[user], contexts=context)
        return answer

    def score_many(
        self,
        histories: Sequence[Sequence[Any]],
        candidates: Sequence[Sequence[Any]],
        *,
        users: Sequence[Any] | None = None,
        contexts: Context | None = None,
    ) -> list[np.ndarray]:
        """As `score`, for many histories at once, each with its candidates; the answers in the same order.

        Args:
            contexts: a value for each candidate, those of the first history first.
        """
        for called, given in (("histories", histories), ("candidates", candidates)):
            if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
                raise UserError(f"{called} is {given!r}: give a list with a list for each history.")
        if contexts is not None and not isinstance(contexts, Mapping):
            raise UserError(f"context is {contexts!r}: give the values of each feature by its name.")
        users = [None] * len(histories) if users is None else users
        if not len(histories) == len(candidates) == len(users):
            raise UserError(
                f"There are {len(histories)} histories, {len(candidates)} lists of candidates and {len(users)} users: "
                "give as many of each."
            )
        events, event_offsets = _flat(histories, "history")
        asked, offsets = _flat(candidates, "candidates")
        answer = self.score_rows(
            self.known.items.rows(events),
            event_offsets,
            self.user_rows(_series(users, "user")),
            self.known.items.rows(asked),
            np.repeat(np.arange(len(candidates)), np.diff(offsets)),
            self.context_rows({name: _series(values, name) for name, values in (contexts or {}).items()}, len(asked)),
        )
        return np.split(answer, offsets[1:-1])

    def user_rows(self, users: pl.Series) -> np.ndarray:
        """(n,) raw users -> (n,) int64 rows of the user catalogue."""
        return np.zeros(len(users), dtype=np.int64) if self.known.users is None else self.known.users.rows(users)

    def context_rows(self, values: Mapping[str, pl.Series], rows: int, where: Where = FROM_PYTHON) -> np.ndarray | None:
        """(rows, C) int64 ids of the context features, from a series (rows,) of each; None where there are none.

        Args:
            where: they come from, for errors; of a text file, numbers are written as text.
        """
        columns = []
        for name, known in self.known.context.items():
            if name not in values:
                raise UserError(f"{where} has no {name!r}, which the model reads with each candidate: add it.")
            if len(values[name]) != rows:
                raise UserError(f"{where}: {name!r} has {len(values[name])} values for {rows} candidates.")
            columns.append(known.encode(feature(values[name].alias(name), where, isinstance(known, Buckets))))
        return np.stack(columns, axis=1).astype(np.int64) if columns else None

    def score_rows(
        self,
        history: np.ndarray,
        offsets: np.ndarray,
        user: np.ndarray,
        candidates: np.ndarray,
        history_index: np.ndarray,
        context: np.ndarray | None = None,
    ) -> np.ndarray:
        """Probability (B,) float32 of rows that are catalogue rows already; shapes as in `Batch`, numpy int64.

        Histories may be longer than max_history. Scored in batches of the size of an evaluation batch.
        Raises UserError for arrays that don't fit each other, and rows that the catalogues don't have.
        """
        whole = Batch(
            history=_tensor(history),
            offsets=_tensor(offsets),
            user=_tensor(user),
            candidates=_tensor(candidates),
            history_index=_tensor(history_index),
            label=torch.zeros(len(candidates)),
            context=None if context is None else _tensor(context),
        )
        self.network.check(whole)
        start, end = offsets[:-1], offsets[1:]
        if self.max_history is not None:
            start = np.maximum(start, end - self.max_history)
        answer = np.empty(len(candidates), dtype=np.float32)
        for first in range(0, len(candidates), self.batch_size):
            rows = slice(first, first + self.batch_size)
            index = history_index[rows]
            groups = slice(index[0], index[-1] + 1)
            events, event_offsets = ranges(start[groups], end[groups] - start[groups])
            answer[rows] = self._score(
                Batch(
                    history=torch.from_numpy(history[events]),
                    offsets=torch.from_numpy(event_offsets),
                    user=torch.from_numpy(user[groups]),
                    candidates=torch.from_numpy(candidates[rows]),
                    history_index=torch.from_numpy(index - index[0]),
                    label=torch.zeros(len(index)),
                    context=None if context is None else torch.from_numpy(context[rows]),
                )
            )
        return answer

    @torch.inference_mode()
    def _score(self, batch: Batch) -> np.ndarray:
        logit = self.network(batch.to(self.device)).logit
        answer: np.ndarray = probability(logit, self.config.quirks, self.network.epsilon).float().cpu().numpy()
        answer = answer if self.calibration is None else self.calibration(answer)
        refuse_numbers(answer)
        return answer


def _tensor(array: Any) -> torch.Tensor:
    """The same memory, where torch may have it."""
    if not isinstance(array, np.ndarray) or array.dtype != np.int64:
        raise UserError(f"Rows must be numpy arrays of int64, and {array!r:.80} isn't one.")
    return torch.from_numpy(np.require(array, requirements="W"))


def _series(values: Sequence[Any], called: str) -> pl.Series:
    """Raw values as integers or text; raises UserError for what is no list, and for mixed types."""
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        raise UserError(f"{called} is {values!r}: give a list of raw values, such as [{values!r}].")
    try:
        series = pl.Series(called, values if isinstance(values, np.ndarray | pl.Series) else list(values))
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        first = next(iter(values), None)
        other = next((value for value in values if type(value) is not type(first)), first)
        raise UserError(
            f"{called} holds {first!r} and {other!r}, values of several types: give whole numbers, or texts."
        ) from None
    if series.dtype == pl.Object or series.dtype.is_nested():
        raise UserError(f"{called} is of type {series.dtype}: give a list of whole numbers or of texts.")
    return series


def _flat(lists: Sequence[Sequence[Any]], called: str) -> tuple[pl.Series, np.ndarray]:
    """Raw values one list after the other, and the offsets (n+1,) of each list; raises UserError for a null."""
    series = [_series(values, called) for values in lists]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in series])]).astype(np.int64)
    filled = [one for one in series if len(one)]
    if len({one.dtype for one in filled}) > 1:
        filled = [one.cast(pl.String) for one in filled]
    flat = pl.concat(filled) if filled else pl.Series(called, [], dtype=pl.Int64)
    if flat.null_count():
        number = int(np.searchsorted(offsets, int(flat.is_null().arg_max() or 0), side="right"))
        raise UserError(f"{called} number {number} holds None: leave it out, or name an item.")
    if flat.dtype.is_float():
        raise UserError(f"{called} holds {flat[0]}, a number with a point: give items as whole numbers or texts.")
    return flat, offsets
