"""The canonical workload: a made-up log of the size of Amazon Books, as flat arrays that the product's loader serves.

Every user has a history and one event after it, the target. An epoch shows each user once, so users of a batch are all
different. Items follow Zipf's law; names of items are shuffled, so frequent rows do not lie side by side. Users have no
taste: the log serves for speed, not for quality.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from deepinterest.config import (
    DIENConfig,
    DINConfig,
    DNNConfig,
    EvaluationConfig,
    Exclude,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
)
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.models import build
from deepinterest.nn.embedding import Features
from deepinterest.training.module import ClickModel

ZIPF = 1.05  # exponent of item popularity
MEDIAN, P95, LONGEST = 14, 100, 100  # events of a history
ROWS = 8_000_000  # candidates kept at most: where a history has very many, an epoch shows fewer users
MODELS: dict[str, type[ModelConfig]] = {"dien": DIENConfig, "din": DINConfig, "dnn": DNNConfig}


@dataclass
class Size:
    """Of the tables: those of Amazon Books, which the published code was measured on."""

    users: int = 543_060
    items: int = 367_983
    categories: int = 1_601


@dataclass
class Workload:
    """A log, its samples and what is known of its items and users; all ids count from 1, 0 is the unknown one."""

    log: Log
    samples: Samples
    features: Features

    def loader(
        self, batch_size: int, auxiliary: bool = True, prefetch: bool = False, rank: int = 0, world: int = 1
    ) -> BatchLoader:
        """The product's loader over it; `auxiliary` draws one negative a step of a history."""
        config = NegativesConfig(exclude=Exclude.positive)
        sampler = NegativeSampler(self.log, np.ones(len(self.log), dtype=bool), config) if auxiliary else None
        return BatchLoader(
            self.log,
            self.samples,
            batch_size=batch_size,
            max_history=LONGEST,
            seed=0,
            shuffle=True,
            auxiliary=sampler,
            prefetch=prefetch,
            rank=rank,
            world=world,
        )

    def model(self, name: str, hidden: int = 36) -> ClickModel:
        """A network with its loss and optimiser: the published sizes, the published users' table, Adam at 1e-3."""
        return click_model(self.features, name, hidden)


def click_model(features: Features, name: str, hidden: int = 36) -> ClickModel:
    """See `Workload.model`."""
    config = MODELS[name](use_user=True)
    if isinstance(config, DIENConfig):
        config.hidden = hidden
    network = build(features, config)
    weight = config.aux_weight if isinstance(config, DIENConfig) else 0.0
    return ClickModel(network, OptimizerConfig(lr=1e-3), EvaluationConfig(), aux_weight=weight, name=name)


def history_lengths(rng: np.random.Generator, users: int, lengths: str) -> np.ndarray:
    """(users,) int64 events of each history: `realistic`, `full`, or a number for all. Raises UserError."""
    if lengths == "realistic":
        spread = np.log(P95 / MEDIAN) / 1.6448536  # the normal distribution's 95th percentile
        drawn = np.rint(rng.lognormal(np.log(MEDIAN), spread, users))
        return np.clip(drawn, 1, LONGEST).astype(np.int64)
    number = str(LONGEST) if lengths == "full" else lengths
    if not number.isdecimal() or not 1 <= int(number) <= LONGEST:
        raise UserError(f"--lengths {lengths} is not possible: realistic, full, or a number from 1 to {LONGEST}.")
    return np.full(users, int(number), dtype=np.int64)


def items_by_popularity(rng: np.random.Generator, events: int, items: int) -> np.ndarray:
    """(events,) int32 items from 1 on, independent of each other."""
    chance = np.arange(1, items + 1, dtype=np.float64) ** -ZIPF
    counts = rng.multinomial(events, chance / chance.sum())
    drawn = np.repeat(rng.permutation(items).astype(np.int32) + np.int32(1), counts)
    rng.shuffle(drawn)
    return drawn


def make(size: Size, lengths: str = "realistic", candidates: int = 1, seed: int = 0) -> Workload:
    """Args:
    candidates: of a history. One: the target or a negative, at even odds. More: the target and negatives.
    """
    rng = np.random.default_rng([seed, candidates])
    users = min(size.users, max(1, ROWS // candidates))
    length = history_lengths(rng, users, lengths)
    offsets = np.concatenate([[0], np.cumsum(length + 1)])
    item = items_by_popularity(rng, int(offsets[-1]), size.items)
    log = Log(item, np.broadcast_to(np.int64(0), len(item)), offsets, size.items + 1)

    target = offsets[1:] - 1
    row = np.repeat(item[target][:, None], candidates, axis=1)
    label = np.zeros(row.shape, dtype=np.uint8)
    label[:, 0] = rng.integers(2, size=users) if candidates == 1 else 1
    negative = label == 0
    row[negative] = item[rng.integers(len(item), size=int(negative.sum()))]
    samples = Samples(
        user=np.arange(users, dtype=np.int32),
        history_end=target,
        candidate_offsets=np.arange(users + 1, dtype=np.int64) * candidates,
        candidates=row.reshape(-1),
        label=label.reshape(-1),
        position=target,
    )
    return Workload(log, samples, features(size, rng))


def features(size: Size, rng: np.random.Generator) -> Features:
    """An item is itself and its category, drawn at even odds; a user is itself."""
    catalogue = np.zeros((size.items + 1, 2), dtype=np.int64)
    catalogue[1:, 0] = np.arange(1, size.items + 1)
    catalogue[1:, 1] = rng.integers(1, size.categories + 1, size=size.items)
    return Features(
        catalogue=torch.from_numpy(catalogue),
        sizes=[size.items + 1, size.categories + 1],
        user_catalogue=torch.arange(size.users + 1).unsqueeze(1),
        user_sizes=[size.users + 1],
    )
