"""`optimizer`: lookup, gradient and update of the canonical tables under each kind of Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepinterest.benchmark import measure
from deepinterest.benchmark.measure import Clock, Rates
from deepinterest.benchmark.training import Settings
from deepinterest.benchmark.workload import Workload
from deepinterest.nn.embedding import FeatureEmbedding, Features
from deepinterest.training.optimizers import DeferredAdam

EMBEDDING, BATCHES = 18, 200
LR = 1e-3


class Tables(nn.Module):
    """Items and users as a network holds them."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.items = FeatureEmbedding(features.catalogue, features.sizes, EMBEDDING)
        self.users = FeatureEmbedding(features.user_catalogue, features.user_sizes, EMBEDDING)

    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        """A loss whose gradient differs from element to element."""
        (vectors,), (user) = self.items(items), self.users(users)[0]
        return vectors.square().sum() + user.square().sum()


def deferred(tables: Tables) -> Any:
    found = DeferredAdam(tables.parameters(), lr=LR)
    for module in tables.modules():
        if isinstance(module, nn.Embedding):
            found.watch(module)
    return found


def dense(**options: Any) -> Callable[[Tables], Any]:
    def make(tables: Tables) -> Any:
        for module in tables.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = False
        return torch.optim.Adam(tables.parameters(), lr=LR, **options)

    return make


def lazy(tables: Tables) -> Any:
    return torch.optim.SparseAdam(tables.parameters(), lr=LR)


KINDS: dict[str, tuple[Callable[[Tables], Any], bool, str]] = {
    "DeferredAdam, rows fresh": (deferred, False, "yes"),
    "DeferredAdam, rows stale": (deferred, True, "yes"),
    "torch Adam": (dense(), False, "yes"),
    "torch Adam, foreach": (dense(foreach=True), False, "yes"),
    "torch Adam, fused": (dense(fused=True), False, "yes"),
    "torch SparseAdam": (lazy, False, "no"),
}


def rates(
    make: Callable[[Tables], Any], stale: bool, workload: Workload, settings: Settings, batches: list[Any]
) -> Rates:
    """Steps a second.

    stale: every row was touched once before, so that each row read has steps to catch up; fresh rows have never moved.
    """
    tables = Tables(workload.features).to(settings.device)
    optimizer = make(tables)

    def step(items: Tensor, users: Tensor) -> None:
        loss = tables(items, users)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    if stale:
        sizes = (len(workload.features.catalogue), len(workload.features.user_catalogue))
        step(*(torch.arange(size, device=settings.device) for size in sizes))
    clock = Clock(settings.seconds, settings.device)
    while True:
        for items, users in batches:
            step(items, users)
            if clock.tick(1):
                return clock.result()


def run(settings: Settings) -> None:
    workload = settings.workload()
    batches = []
    for batch, _ in zip(workload.loader(settings.batch_size), range(BATCHES), strict=False):
        assert batch.auxiliary_negatives is not None
        read = torch.cat([batch.history, batch.candidates, batch.auxiliary_negatives.flatten()])
        batches.append((read.to(settings.device), batch.user.to(settings.device)))
    rows, results = [], []
    for name, (make, stale, same) in KINDS.items():
        torch.manual_seed(0)
        found = rates(make, stale, workload, settings, batches)
        milliseconds = [1e3 / rate for rate in (found.median, found.values[-1], found.values[0])]
        cpu = 1e3 / found.per_cpu_second
        rows.append((name, same, "{:.2f} ({:.2f} to {:.2f})".format(*milliseconds), f"{cpu:.2f}"))
        results.append({"name": name, "dense_maths": same == "yes", "ms": milliseconds[0], "cpu_ms": cpu})
    columns = ("optimizer", "dense Adam's maths", "lookup, gradient and update, ms", "CPU ms")
    measure.show(measure.table(measure.title(settings.device, settings.threads), columns, rows))
    result = {"benchmark": "optimizer", "batch_size": settings.batch_size, "results": results}
    measure.tell(result | vars(settings.size) | measure.machine(settings.device, settings.threads))
