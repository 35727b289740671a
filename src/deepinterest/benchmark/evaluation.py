"""`evaluation`: exact AUC and GAUC of very many scores, and the rows a model scores a second."""

from __future__ import annotations

import time

import numpy as np

from deepinterest.benchmark import measure
from deepinterest.benchmark.training import Settings, describe
from deepinterest.benchmark.training import run as rates_of
from deepinterest.config import GaucWeights
from deepinterest.training.scores import auc, gauc

USERS_PER_SCORE = 20  # 500,000 users of 10 million scores


def made_up(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User (n,), label (n,) and probability (n,): half of them clicks, with ties as float32 sigmoids have them."""
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=rows)
    logit = rng.normal(label - 0.5, 1.0).astype(np.float32)
    return rng.integers(max(1, rows // USERS_PER_SCORE), size=rows), label, 1 / (1 + np.exp(-logit))


def run(settings: Settings, scores: int) -> None:
    user, label, probability = made_up(scores)
    seconds, values = {}, {}
    for name, work in (
        ("auc", lambda: auc(label, probability)),
        ("gauc", lambda: gauc(user, label, probability, GaucWeights.impressions).value),
    ):
        begin = time.perf_counter()
        values[name] = work()
        seconds[name] = time.perf_counter() - begin
    rates = rates_of(settings)
    title = measure.title(settings.device, settings.threads)
    rows = [(f"{name.upper()} of {scores:,} scores, seconds", f"{taken:.2f}") for name, taken in seconds.items()]
    rows.append((f"{settings.model} scoring, rows/s in batches of {settings.batch_size:,}", str(rates)))
    measure.show(measure.table(title, ("what", "value"), rows))
    named = {f"{name}_seconds": taken for name, taken in seconds.items()}
    measure.tell(
        describe(settings) | {"benchmark": "evaluation", "scores": scores} | values | named | rates.plain("rows_per_s")
    )
