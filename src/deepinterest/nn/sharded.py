"""Embedding tables split over processes: row i of a table lies in process i mod W, and nowhere else.

A batch's rows are asked of the processes that hold them (`all_to_all`), and their gradients go back the same way, so
what travels and what is updated are the rows touched. Rows are dealt out singly rather than in blocks because frequent
items often stand side by side. The optimizer sees a table of this process's rows and keeps its state for them alone.

Why not an existing engine: docs/scale.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.errors import UserError

DRAWN = 1 << 20  # numbers drawn at a time; a multiple of 16, so that normal ones come out as if drawn at once
GATHERED = 1 << 18  # rows of each process gathered at a time


class Shard(nn.Embedding):
    """This process's rows of a table of `size` rows; read by `lookup`, whose exchange asks for local rows.

    It has no memory before `split` gives it its rows. Weights loaded meanwhile are remembered, and then copied in part.
    Its initial weights are those that the whole table would have, and so is the state of torch's generator after it.
    """

    sharded = True
    exchange: Exchange | None = None
    base = 0  # of its local rows among those of all tables of the exchange

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim, sparse=True, device="meta")
        self.size = size
        self._whole: Tensor | None = None  # (size, dim) loaded before there was a place for it
        for count in _draws(size * dim):  # what a new nn.Embedding draws, and nobody uses
            torch.empty(count).normal_()
        self.register_load_state_dict_pre_hook(_take_rows)

    def draw(self) -> None:
        """Pass over the numbers of the initial weights, Xavier's uniform ones, and remember where they began."""
        self._random = torch.get_rng_state()
        for count in _draws(self.size * self.embedding_dim):
            torch.empty(count).uniform_()

    def place(self, exchange: Exchange, base: int) -> None:
        """Make room for this process's rows, and fill it."""
        self.exchange, self.base = exchange, base
        rows = slice(exchange.rank, None, exchange.world)
        weight = torch.empty(len(range(self.size)[rows]), self.embedding_dim)
        if self._whole is not None:
            weight.copy_(self._whole[rows])
            self._whole = None
        else:
            generator = torch.Generator()
            generator.set_state(self._random)
            bound = math.sqrt(3.0) * math.sqrt(2.0 / float(self.size + self.embedding_dim))
            many = max(1, DRAWN // self.embedding_dim)
            for first in range(0, self.size, many):
                count = min(many, self.size - first)
                drawn = torch.empty(count, self.embedding_dim).uniform_(-bound, bound, generator=generator)
                own = range(first, first + count)[(exchange.rank - first) % exchange.world :: exchange.world]
                weight[[row // exchange.world for row in own]] = drawn[[row - first for row in own]]
        self.weight = nn.Parameter(weight)


class _Answer(NamedTuple):
    vectors: Tensor  # (n, dim)
    over: bool  # no process has anything left to ask


class Exchange:
    """The tables of a network that are split over the same processes, and the rows that go to and fro.

    Every process takes part in every exchange, though it may ask for nothing. Gradients are the mean over processes of
    what each process's loss gives, as DistributedDataParallel has it for the other parameters.
    """

    def __init__(self, tables: list[Shard]) -> None:
        self.group = _group()
        self.rank, self.world = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.tables = tables
        self.bases = [0]  # of each table's rows among those of a process, the same in each
        for table in tables:
            self.bases.append(self.bases[-1] + -(-table.size // self.world))
            table.place(self, self.bases[-2])
        self.sent = 0  # bytes to other processes so far, those of backward passes included

    def read(self, tables: Iterable[Any], ids: Tensor) -> Tensor:
        """Row ids (R, F), a column for each table -> their vectors side by side (R, F * dim)."""
        tables = list(tables)
        sizes, bases = ids.new_tensor([[table.size, table.base] for table in tables]).T
        if ((ids < 0) | (ids >= sizes)).any():
            raise IndexError(f"Rows reach from {ids.min()} to {ids.max()}; the tables have {sizes.tolist()} rows.")
        total = self.bases[-1]
        keys = ids % self.world * total + bases + ids // self.world  # by process, then by its rows
        distinct, inverse = torch.unique(keys, return_inverse=True)  # (n,), (R, F)
        wanted = torch.bincount(distinct // total, minlength=self.world)
        vectors, _ = self._ask(distinct % total, wanted)
        return vectors.index_select(0, inverse.flatten()).view(len(ids), inverse.shape[1] * vectors.shape[1])

    @torch.no_grad()
    def finish(self) -> None:
        """Answer the other processes until none has anything left to ask; each must call it."""
        nothing = torch.zeros(0, dtype=torch.int64, device=self.tables[0].weight.device)
        over = False
        while not over:
            _, over = self._ask(nothing, nothing.new_zeros(self.world), done=True)

    def _ask(self, rows: Tensor, wanted: Tensor, done: bool = False) -> _Answer:
        """Local rows (n,) of other processes, those of the first process first, `wanted` (W,) of each."""
        header = torch.stack([wanted, torch.full_like(wanted, done)], dim=1)  # (W, 2)
        got = self._send(header, [1] * self.world, [1] * self.world).cpu()
        to, back = wanted.tolist(), got[:, 0].tolist()
        if got[:, 1].all():
            return _Answer(self.tables[0].weight.new_zeros(0, self.tables[0].embedding_dim), True)
        asked = self._send(rows.int(), to, back)
        return _Answer(_Return.apply(self._local(asked.long()), self, back, to), False)

    def _local(self, rows: Tensor) -> Tensor:
        """Vectors (n, dim) of this process's rows (n,), which may repeat."""
        which = torch.bucketize(rows, rows.new_tensor(self.bases[1:-1]), right=True)
        places, vectors = [], []
        for number, table in enumerate(self.tables):
            mine = (which == number).nonzero().flatten()
            if len(mine) or number == 0:  # a process that is asked for nothing takes part in the backward pass too
                places.append(mine)
                vectors.append(table(rows[mine] - table.base))
        if len(places) == 1:
            return vectors[0]
        order = torch.cat(places)
        found = torch.empty_like(order)
        found[order] = torch.arange(len(order), device=order.device)
        return torch.cat(vectors).index_select(0, found)

    def _send(self, parts: Tensor, to: list[int], back: list[int]) -> Tensor:
        """The first to[0] rows of `parts` go to process 0 and so on; the result has back[r] rows of each process r."""
        result = parts.new_empty(sum(back), *parts.shape[1:])
        dist.all_to_all_single(result, parts.contiguous(), back, to, group=self.group)
        self.sent += (len(parts) - to[self.rank]) * parts[:1].numel() * parts.element_size()
        return result

    def gather(self, part: Tensor, size: int) -> Tensor:
        """Each process's rows of a table's (size, ...) -> all rows on the CPU in process 0, a meta tensor elsewhere."""
        whole = torch.empty(size, *part.shape[1:], dtype=part.dtype, device="meta" if self.rank else "cpu")
        for first in range(0, -(-size // self.world), GATHERED):
            count = min(GATHERED, -(-size // self.world) - first)
            piece = torch.zeros(count, *part.shape[1:], dtype=part.dtype)
            own = part[first : first + count]
            piece[: len(own)] = own
            pieces = None if self.rank else [torch.empty_like(piece) for _ in range(self.world)]
            dist.gather(piece, pieces, group=self.group, group_dst=0)
            for rank, rows in enumerate(pieces or []):
                place = whole[first * self.world + rank :: self.world][:count]
                place.copy_(rows[: len(place)])
        return whole


class _Return(torch.autograd.Function):
    """Vectors go where they were asked for; their gradients come back."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, exchange: Exchange, to: list[int], back: list[int]) -> Tensor:
        ctx.exchange, ctx.to, ctx.back = exchange, to, back
        return exchange._send(vectors, to, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.exchange._send(grad, ctx.back, ctx.to) / ctx.exchange.world, None, None, None


def lookup(tables: nn.ModuleList, ids: Tensor) -> Tensor:
    """Row ids (R, F), a column for each table -> their vectors side by side (R, F * dim)."""
    first = tables[0]
    if isinstance(first, Shard):
        if first.exchange is None:
            raise RuntimeError("This network's tables are split over processes, and not yet in place: call split().")
        return first.exchange.read(tables, ids)
    return torch.cat([table(ids[:, f]) for f, table in enumerate(tables)], dim=1)


def shards(module: nn.Module) -> Iterator[tuple[str, Shard]]:
    """The split tables of a module, by name."""
    for name, part in module.named_modules():
        if isinstance(part, Shard):
            yield name, part


def split(network: nn.Module) -> None:
    """Give the split tables of a network their rows; to be called in every process, once these know each other.

    Raises UserError where there is only one process.
    """
    tables = [table for _, table in shards(network)]
    if not tables or tables[0].exchange is not None:
        return
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise UserError(
            "embedding=sharded splits the tables over processes, and here is one: take trainer=ddp or ddp_cpu with "
            "trainer.devices=2 or more, or embedding=replicated."
        )
    Exchange(tables)


def finish(network: nn.Module) -> None:
    """Answer other processes until none has batches left; every process calls it at the end of its batches.

    Does nothing where no table is split.
    """
    for _, table in shards(network):
        if table.exchange is not None:
            table.exchange.finish()
            return


def size(module: nn.Module) -> int:
    """Parameters of a module, the rows in other processes too."""
    elsewhere = sum(table.size * table.embedding_dim - table.weight.numel() for _, table in shards(module))
    return sum(parameter.numel() for parameter in module.parameters()) + elsewhere


def count(table: nn.Module, found: Tensor) -> tuple[int, int]:
    """Of the rows of a table, row 0 aside: those `found` (rows of this process,) bool, and all, of all processes."""
    if not isinstance(table, Shard) or table.exchange is None:
        return int(found[1:].sum()), len(found) - 1
    own = found[1:] if table.exchange.rank == 0 else found
    numbers = torch.tensor([int(own.sum()), len(own)])
    dist.all_reduce(numbers, group=table.exchange.group)
    return int(numbers[0]), int(numbers[1])


def gather(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Replace this process's rows in a checkpoint, of tables and of optimizers, by all rows.

    Only process 0 gets them, which writes; every process calls it. A checkpoint then looks as if no table was split.
    """
    for name, table in shards(module):
        assert table.exchange is not None
        weights = checkpoint["state_dict"]
        weights[f"{name}.weight"] = table.exchange.gather(weights[f"{name}.weight"], table.size)
    for index, table in _numbered(module):
        for optimizer in checkpoint.get("optimizer_states", []):
            state, rows = optimizer["state"].get(index, {}), len(table.weight)
            assert table.exchange is not None
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == rows:
                    optimizer["state"] = {
                        **optimizer["state"],
                        index: {**optimizer["state"][index], key: table.exchange.gather(value, table.size)},
                    }


def scatter(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Leave this process's rows in the optimizers' states of a checkpoint; weights are taken in part as they load."""
    for index, table in _numbered(module):
        assert table.exchange is not None
        rows = slice(table.exchange.rank, None, table.exchange.world)
        for optimizer in checkpoint.get("optimizer_states", []):
            state = optimizer["state"].get(index, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == table.size:
                    state[key] = value[rows].clone()


def _numbered(module: nn.Module) -> list[tuple[int, Shard]]:
    """The split tables with their numbers among the module's parameters, as an optimizer of all of them counts."""
    numbers: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(module.parameters())}
    return [(numbers[table.weight], table) for _, table in shards(module)]


def _take_rows(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: of a whole table keep this process's rows, or remember it until there is a place."""
    assert isinstance(module, Shard)
    whole = state.get(f"{prefix}weight")
    if whole is None or whole.shape != (module.size, module.embedding_dim):
        return
    if module.exchange is None:
        module._whole = whole
        state[f"{prefix}weight"] = torch.empty_like(module.weight)
    else:
        state[f"{prefix}weight"] = whole[module.exchange.rank :: module.exchange.world]


def _draws(count: int) -> Iterator[int]:
    """`count` in parts, the last of at least 16 where there are several: torch draws normal numbers by 16."""
    while count >= DRAWN + 16:
        yield DRAWN
        count -= DRAWN
    yield count


def _group() -> dist.ProcessGroup:
    """The run's processes, to talk beside DDP's sums, so that the order of the two doesn't matter."""
    world = dist.group.WORLD
    assert world is not None
    if world not in _groups:
        nccl = "nccl" in dist.get_backend()
        # After training Lightning moves a model to the CPU, where NCCL can't go.
        _groups[world] = dist.new_group(backend="cpu:gloo,cuda:nccl" if nccl else None)
    return _groups[world]


_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()  # gone when the processes part
