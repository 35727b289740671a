"""`training --parts`: where a step's time goes, each part against its own floor.

A stopwatch is switched from part to part while training goes on: by hooks around each block's forward, and by identity
functions at a block's inputs and outputs, whose backward tells when autograd enters and leaves it. (Autograd runs what
was made last first, so the nodes of a block come one after the other.) The switches cost some microseconds a step. One
thread is timed by its CPU time, so that other work on the machine doesn't count.

A floor is what this machine must take at least: the matrix products a part can't do without, at the rate measured for
just these shapes; or the bytes it can't but move, at the bandwidth measured: that of a stream, and for rows of the
tables that of scattered rows. Sigmoids and the like are not in it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from deepinterest.benchmark import measure as measuring
from deepinterest.benchmark.training import Settings, loss, precision, run
from deepinterest.benchmark.workload import Workload
from deepinterest.config import DIENConfig, DINConfig, KernelName
from deepinterest.data.batch import Batch
from deepinterest.kernels import using
from deepinterest.kernels.dense import product
from deepinterest.training.module import ClickModel

BLOCKS = {  # attribute of a network -> part
    "items": "embedding",
    "users": "embedding",
    "extraction": "GRU",
    "auxiliary": "auxiliary net",
    "attention": "attention",
    "evolution": "AUGRU",
    "head": "MLP",
}
REST = "rest"  # sums of histories, pairs, losses, autograd's own work
NAMES = (*dict.fromkeys(BLOCKS.values()), REST, "optimiser", "loader", "Lightning")
FORWARD, BACKWARD = "forward", "backward"
PAIRS = 3  # of runs within Lightning and without
FLOAT = 4  # bytes
Shape = tuple[int, int, int]  # (rows, inner, outer) of a matrix product


class Stopwatch:
    """Seconds of each (part, direction)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._clock = measuring.clock(device)
        self._now = (REST, FORWARD)
        self._since = self._clock()

    def switch(self, part: str, direction: str) -> tuple[str, str]:
        """From now on time is this part's; the result is whose it was."""
        measuring.synchronize(self.device)
        now, before = self._clock(), self._now
        self.seconds[before] += now - self._since
        self._now, self._since = (part, direction), now
        return before


class _Mark(torch.autograd.Function):
    """The identity, whose backward switches the stopwatch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, watch: Stopwatch, part: str) -> Tensor:
        ctx.watch, ctx.part = watch, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.watch.switch(ctx.part, BACKWARD)
        return grads[0], None, None


def _marked(values: Any, watch: Stopwatch, part: str) -> Any:
    """The same, with a mark at each tensor that a gradient will pass."""
    if isinstance(values, Tensor):
        return _Mark.apply(values, watch, part) if values.requires_grad else values
    if isinstance(values, tuple | list):
        return type(values)(_marked(value, watch, part) for value in values)
    return values


def _watch_block(module: nn.Module, part: str, watch: Stopwatch) -> list[Any]:
    before: list[tuple[str, str]] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> Any:
        before.append(watch.switch(part, FORWARD))
        return _marked(args, watch, REST)

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output = _marked(output, watch, part)
        watch.switch(*before.pop())
        return output

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _watch_table(table: nn.Embedding, watch: Stopwatch) -> list[Any]:
    """What the optimiser does before rows are read is the optimiser's."""
    before: list[tuple[str, str]] = []

    def enter(*_: Any) -> None:
        before.append(watch.switch("optimiser", FORWARD))

    def leave(*_: Any) -> None:
        watch.switch(*before.pop())

    return [table.register_forward_pre_hook(enter, prepend=True), table.register_forward_pre_hook(leave)]


@contextmanager
def watched(model: ClickModel, watch: Stopwatch) -> Iterator[None]:
    """Time the model's blocks; its optimiser must have been made before."""
    handles = []
    for name, part in BLOCKS.items():
        module = getattr(model.network, name, None)
        if module is not None:
            handles += _watch_block(module, part, watch)
    for table in model.network.embeddings:
        handles += _watch_table(table, watch)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def times(settings: Settings, workload: Workload) -> tuple[dict[tuple[str, str], float], list[Batch], ClickModel]:
    """Seconds a step of each (part, direction), some of the batches, and the model."""
    model = workload.model(settings.model, settings.hidden)
    model.to(settings.device).train()
    optimizer: Any = model.configure_optimizers()["optimizer"]
    watch = Stopwatch(settings.device)
    batches: list[Batch] = []
    steps = 0
    feed = measuring.endless(settings.loader(workload))
    begin, warm = time.perf_counter(), True
    with watched(model, watch), using(KernelName(settings.kernel)):
        while True:
            now = time.perf_counter()
            if warm and steps >= measuring.WARM_STEPS and now - begin >= min(measuring.WARM_SECONDS, settings.seconds):
                watch.seconds.clear()
                begin, warm, steps = now, False, 0
            if not warm and now - begin >= settings.seconds and steps:
                break
            watch.switch("loader", FORWARD)
            batch = next(feed).to(settings.device)
            watch.switch(REST, FORWARD)
            with precision(settings):
                value = loss(model, batch)
            watch.switch("optimiser", BACKWARD)
            optimizer.zero_grad(set_to_none=True)
            watch.switch(REST, BACKWARD)
            value.backward()
            watch.switch("optimiser", BACKWARD)
            optimizer.step()
            watch.switch(REST, FORWARD)
            steps += 1
            if len(batches) < 20:
                batches.append(batch)
    return {key: seconds / steps for key, seconds in watch.seconds.items()}, batches, model


# --------------------------------------------------------------------------------------------------------------- floors


@dataclass
class Work:
    """What a part can't do without: matrix products forward, and bytes read or written, (forward, backward)."""

    products: list[Shape] = field(default_factory=list)
    streamed: tuple[float, float] = (0.0, 0.0)
    scattered: tuple[float, float] = (0.0, 0.0)  # rows of tables


@cache
def flops_per_second(shape: Shape, device: str) -> float:
    """Of one matrix product in float32, by torch or by our kernel, whichever is faster."""
    rows, inner, outer = shape
    a, b = torch.rand(rows, inner, device=device), torch.rand(inner, outer, device=device)
    out = torch.empty(rows, outer, device=device)
    ways = (lambda: torch.mm(a, b, out=out), lambda: product(a, b))
    return 2 * rows * inner * outer / min(measuring.seconds_of(way, 0.05, device) for way in ways)


@cache
def bytes_per_second(device: str) -> float:
    """Of a + b into c over arrays that no cache holds (the stream benchmark's add)."""
    size = 1 << 25
    a, b, c = (torch.ones(size, device=device) for _ in range(3))
    return 3 * FLOAT * size / measuring.seconds_of(lambda: torch.add(a, b, out=c), 0.3, device)


@cache
def scattered_bytes_per_second(device: str) -> float:
    """Of reading random rows of a table as wide as an embedding, too large for the caches."""
    table, rows = torch.ones(1 << 20, 18, device=device), torch.randint(1 << 20, (1 << 16,), device=device)
    out = torch.empty(len(rows), 18, device=device)
    seconds = measuring.seconds_of(lambda: torch.index_select(table, 0, rows, out=out), 0.05, device)
    return FLOAT * out.numel() / seconds


def work(model: ClickModel, config: Any, batch: Batch) -> dict[str, Work]:
    """Counted for one batch, without products that the algebra of `nn/` saves. N events, M pairs, P next steps."""
    network: Any = model.network
    lengths = batch.offsets.diff()
    N, B, D = len(batch.history), len(batch), network.item_width
    M = int(lengths.index_select(0, batch.history_index).sum())
    P = int((lengths - 1).clamp(min=0).sum())
    width = next(layer for layer in network.head.layers if isinstance(layer, nn.Linear)).in_features
    found = {"MLP": Work(_chain(B, [width, *config.mlp, 2]))}
    E = D
    if isinstance(config, DIENConfig):
        E = H = network.extraction.hidden
        found["GRU"] = Work([(N, D, 3 * H), (N, H, 3 * H)])
        found["AUGRU"] = Work([(N, H, 3 * H), (M, H, 3 * H)])
        if batch.auxiliary_negatives is not None:
            first, pairs = config.aux_net[0], P * (1 + batch.auxiliary_negatives.shape[1])
            found["auxiliary net"] = Work([(P, H, first), (pairs, D, first), *_chain(pairs, [*config.aux_net, 1])])
    if isinstance(config, DINConfig | DIENConfig):
        first = config.attention[0]
        shapes = [(B, E, first), (N, E, first), (M, E, first), *_chain(M, [*config.attention, 1])]
        found["attention"] = Work([(B, D, E), *shapes] if isinstance(config, DIENConfig) else shapes)

    negatives = batch.auxiliary_negatives
    read = [batch.history, batch.candidates, *([] if negatives is None else [negatives.flatten()])]
    rows = [*((torch.cat(read).unique(), table.embedding_dim) for table in network.items.tables)]
    rows += [(batch.user.unique(), table.embedding_dim) for table in (network.users.tables if network.users else ())]
    touched = FLOAT * sum(len(which) * dim for which, dim in rows)
    given = FLOAT * (sum(len(part) for part in read) * D + len(batch.user) * config.embedding_dim)
    tables = {id(table.weight) for table in network.embeddings}
    dense = FLOAT * sum(weight.numel() for weight in model.parameters() if id(weight) not in tables)
    found["embedding"] = Work(streamed=(given, touched + given), scattered=(touched, 0))
    # Catching up reads and writes weight and both moments, a step the same and reads the gradient.
    found["optimiser"] = Work(streamed=(0, touched + 7 * dense), scattered=(6 * touched, 6 * touched))
    ids = sum(len(part) for part in (*read, batch.user, batch.history_index, batch.label))
    found["loader"] = Work(streamed=((8 + FLOAT) * ids, 0))
    return found


def _chain(rows: int, widths: list[int]) -> list[Shape]:
    return [(rows, inputs, outputs) for inputs, outputs in pairwise(widths)]


def floor(of: Work, direction: str, device: str) -> float:
    """Seconds. Backward each product becomes two, for both of its factors."""
    if of.products:
        once = sum(2 * a * b * c / flops_per_second((a, b, c), device) for a, b, c in of.products)
        if direction == FORWARD:
            return once
        turned = [shape for a, b, c in of.products for shape in ((a, c, b), (b, a, c))]
        return sum(2 * a * b * c / flops_per_second((a, b, c), device) for a, b, c in turned)
    at = (FORWARD, BACKWARD).index(direction)
    return of.streamed[at] / bytes_per_second(device) + of.scattered[at] / scattered_bytes_per_second(device)


# -------------------------------------------------------------------------------------------------------------- results


def measure(settings: Settings, workload: Workload) -> dict[str, Any]:
    """Milliseconds a step of each part, forward and backward, with their floors."""
    found, batches, model = times(settings, workload)
    batch = sorted(batches, key=lambda each: len(each.history))[len(batches) // 2]
    counted = work(model, _config(model), batch)
    result: dict[str, Any] = {}
    for part in NAMES:
        line: dict[str, float] = {}
        for direction in (FORWARD, BACKWARD):
            if (part, direction) in found:
                line[direction] = 1e3 * found[part, direction]
                if part in counted and (least := floor(counted[part], direction, settings.device)):
                    line[f"{direction}_floor"] = 1e3 * least
        if line:
            result[part] = line
    if settings.through_lightning:
        result["Lightning"] = {FORWARD: 1e3 * lightning(settings, workload)}
    return result


def lightning(settings: Settings, workload: Workload) -> float:
    """Seconds a step that Lightning adds: the median difference of pairs of runs, within it and without."""
    bare = replace(settings, through_lightning=False)
    taken = [[settings.batch_size / run(each, workload).median for each in (settings, bare)] for _ in range(PAIRS)]
    return median(within - without for within, without in taken)


def _config(model: ClickModel) -> Any:
    from deepinterest.benchmark.workload import MODELS

    return MODELS[model.name](use_user=True)


def table(settings: Settings, parts: dict[str, Any]) -> Table:
    """One line a part, and their sum."""
    total: dict[str, float] = defaultdict(float)
    for line in parts.values():
        for key, value in line.items():
            total[key] += value
    rows = [_row(part, line) for part, line in [*parts.items(), ("together", total)]]
    columns = ("part", "forward ms", "floor", "x", "backward ms", "floor", "x", "ms", "floor", "x")
    title = f"{settings.model}, {settings.lengths}, batch {settings.batch_size}: milliseconds a step"
    return measuring.table(title, columns, rows)


def _row(part: str, line: dict[str, float]) -> list[str]:
    cells = [part]
    keys: list[Callable[[str], float | None]] = [
        lambda end: line.get(f"{FORWARD}{end}"),
        lambda end: line.get(f"{BACKWARD}{end}"),
        lambda end: line.get(f"{FORWARD}{end}", 0.0) + line.get(f"{BACKWARD}{end}", 0.0) or None,
    ]
    for get in keys:
        taken, least = get(""), get("_floor")
        cells += [
            "" if taken is None else f"{taken:.2f}",
            "" if least is None else f"{least:.{2 if least >= 0.01 else 3}f}",
            "" if taken is None or least is None else f"{taken / least:.1f}",
        ]
    return cells
