"""Dense Adam for embedding tables at the price of the rows a batch touches.

Under Adam (Kingma and Ba, 2015, algorithm 1) a row without a gradient goes on moving: its momentum fades but is not
zero. `torch.optim.SparseAdam` leaves such rows still, which is another algorithm. `DeferredAdam` keeps the dense
algorithm and only puts the movement off: a row is brought up to date when it is next read. `missed_steps` has the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepinterest.training.exchange import Exchange
from deepinterest.training.missed_steps import MissedSteps
from deepinterest.training.saved_state import check_optimizer

FLUSH_ROWS = 1 << 16  # bounds the temporaries of a flush


class DeferredAdam(torch.optim.Adam):
    """`torch.optim.Adam` that updates watched embedding tables only where they are read.

    Every table with sparse gradients has to be watched, and read through its module alone: the module's hook is what
    brings rows up to date. A watched table moves in every step, as a dense one with a gradient of zeros would, also in
    a step without a gradient for it. Other parameters go to fused Adam. The betas may not change during training.

    `form` is how eps enters, lr_t being the rate with both bias corrections: "torch" and the paper's algorithm 1 have
    lr_t m / (sqrt(v) + eps sqrt(1 - beta2^t)), "tensorflow" and the paper's end of section 2 lr_t m / (sqrt(v) + eps).

    Several processes, each with a replica of the tables, give an `exchange`: a table's gradient is then the mean of
    theirs, and all must step together. A table whose module says `sharded` is its process's own and is left out.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        form: Literal["torch", "tensorflow"] = "torch",
        exchange: Exchange | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self._step_supports_amp_scaling = False  # a scaler is to unscale the tables' gradients as well
        self.form, self.exchange = form, exchange
        self._replicated: list[Tensor] = []  # tables that are exchanged
        self._groups: dict[Tensor, int] = {}  # watched table -> index of its parameter group
        self._places: dict[Tensor, np.ndarray] = {}  # room for the compiled update, of each table
        self._missed: dict[int, MissedSteps] = {}  # by index of the parameter group
        self._handles: list[Any] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("steps", 0)

    def watch(self, embedding: nn.Embedding) -> None:
        """Take over the table of `embedding`: keep what is read from it, and what is saved of it, up to date."""
        table = embedding.weight
        if not embedding.sparse:
            raise ValueError("DeferredAdam can only watch an embedding built with sparse=True.")
        if table not in self._groups:
            found = [i for i, g in enumerate(self.param_groups) if any(p is table for p in g["params"])]
            if not found:
                raise ValueError("The embedding to watch is not among the optimizer's parameters.")
            self._start(table, found[0])
            if not getattr(embedding, "sharded", False):
                self._replicated.append(table)

        # Closures rather than bound methods: a deep copy of the module must not copy the optimizer.
        def save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
            state[f"{prefix}weight"] = self.current(table)

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = args[0] if args else kwargs["input"]
            with torch.inference_mode(False), torch.no_grad():
                self._catch_up(table, rows.reshape(-1).long())

        def flush(*_: Any) -> None:
            self.flush()

        self._handles += [
            embedding.register_forward_pre_hook(read, with_kwargs=True),
            embedding.register_state_dict_post_hook(save),
            # Otherwise the movement put off for the old weights would be added to the loaded ones.
            embedding.register_load_state_dict_pre_hook(flush),
        ]

    def current(self, table: Tensor) -> Tensor:
        """`table` with every row up to date; a copy where rows are behind, so that training isn't changed by a look."""
        state, steps = self._state(table), self.param_groups[self._groups[table]]["steps"]
        stale = (state["last_step"] < steps).nonzero().flatten()
        if len(stale) == 0:
            return table.detach()
        result = table.detach().clone()
        for rows in stale.split(FLUSH_ROWS):
            result.index_copy_(0, rows, self._moved(table, rows)[0])
        return result

    def release(self) -> None:
        """Bring all rows up to date and take the hooks off, so that another optimizer can take over."""
        self.flush()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def flush(self) -> None:
        """Bring every row of every watched table up to date."""
        with torch.inference_mode(False), torch.no_grad():
            for table, index in self._groups.items():
                steps = self.param_groups[index]["steps"]
                stale = (self._state(table)["last_step"] < steps).nonzero().flatten()
                move = self._catch_up if _compiled(table) else self._move
                for rows in stale.split(FLUSH_ROWS):
                    if len(rows):
                        move(table, rows)
            for index, missed in self._missed.items():
                if missed.base < self.param_groups[index]["steps"]:
                    self._restart(index, self.param_groups[index]["steps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; `closure`, if given, computes the loss and the gradients first and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._take_gradients()
        if self.exchange is not None and self._replicated:
            means = self.exchange.mean(self._replicated, [gradients.get(table) for table in self._replicated])
            gradients |= dict(zip(self._replicated, means, strict=True))
        if any(m.ends(self.param_groups[i]["steps"]) for i, m in self._missed.items()):
            self.flush()
        for table, gradient in gradients.items():
            # The hook has done this, unless the gradient is older than the last step or another process's.
            self._catch_up(table, gradient._indices()[0])
        for group in self.param_groups:
            group["steps"] += 1
        rates = {index: self._advance(index) for index in self._missed}
        for table, gradient in gradients.items():
            self._update(table, gradient, rates[self._groups[table]])
        self._step_dense()
        return loss

    def _step_dense(self) -> None:
        """Adam's step of all parameters that still have a gradient."""
        if self.form == "torch":
            super().step()
            return
        eps = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            group["eps"] /= self._correction(group)  # torch will multiply by it
        super().step()
        for group, value in zip(self.param_groups, eps, strict=True):
            group["eps"] = value

    @staticmethod
    def _correction(group: dict[str, Any]) -> float:
        """Root of the second moment's bias correction at the group's current step."""
        return math.sqrt(1 - group["betas"][1] ** group["steps"])

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on to the same bits, as if nothing had been saved.

        Rows stay as far behind as they are: a flush here would round what comes after in another way. So the tables
        themselves are part of the state; a module's `state_dict` has them up to date.
        """
        packed = super().state_dict()
        states = dict(packed["state"])
        for index, table in enumerate(self._parameters()):
            if table in self._groups:
                states[index] = {**states[index], "table": table.detach()}
        missed = {index: missed.state_dict() for index, missed in self._missed.items()}
        return {**packed, "state": states, "missed": missed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, the watched tables as well; ValueError for what doesn't fit."""
        check_optimizer(state_dict, self.param_groups, self._groups, self.form)
        super().load_state_dict(state_dict)
        for index, table in enumerate(self._parameters()):
            if table in self._groups:
                with torch.no_grad():
                    table.copy_(self.state[table].pop("table"))
                # torch has made floats of these.
                last_step = state_dict["state"][index]["last_step"]
                self.state[table]["last_step"] = last_step.to(table.device, torch.int64, copy=True)
        for index in self._missed:
            state = state_dict["missed"][index]
            self._restart(index, state["base"])
            self._missed[index].load_state_dict(state)

    def _parameters(self) -> list[Tensor]:
        """All parameters, in the order in which a state numbers them."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _start(self, table: Tensor, index: int) -> None:
        """Begin to keep the state of `table`, which is in parameter group `index`."""
        group = self.param_groups[index]
        beta1, beta2 = group["betas"]
        if not (0 < beta1 < math.sqrt(beta2) < 1 and group["eps"] > 0):
            raise ValueError("DeferredAdam needs 0 < beta1 < sqrt(beta2) < 1 and eps > 0.")
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            raise ValueError("DeferredAdam offers no weight_decay, amsgrad or maximize.")
        self._groups[table] = index
        self.state[table] = {
            "step": torch.zeros((), device=table.device),  # Adam expects the key when it loads a state
            "exp_avg": torch.zeros_like(table, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(table, requires_grad=False),
            "last_step": torch.full((len(table),), group["steps"], dtype=torch.int64, device=table.device),
        }
        if index not in self._missed:
            self._restart(index, group["steps"])

    def _restart(self, index: int, base: int) -> None:
        """Forget the steps up to `base`; right when no row of the group has missed any of them."""
        self._missed[index] = MissedSteps(tuple(self.param_groups[index]["betas"]), base, self.form == "torch")

    def _state(self, table: Tensor) -> dict[str, Tensor]:
        """The state of `table`, on its device: a trainer may have moved one and not the other."""
        state = self.state[table]
        if state["last_step"].device != table.device:
            state = self.state[table] = {name: value.to(table.device) for name, value in state.items()}
        return state

    def _take_gradients(self) -> dict[Tensor, Tensor]:
        """The sparse gradients, taken off their tables, so that Adam will skip these."""
        gradients = {}
        for table in self._parameters():
            if table.grad is None:
                continue
            if table.grad.is_sparse != (table in self._groups):
                raise ValueError(
                    f"A parameter of shape {tuple(table.shape)} has a sparse gradient and is not watched: "
                    "call watch() with its embedding."
                    if table.grad.is_sparse
                    else f"A watched table of shape {tuple(table.shape)} has a dense gradient: read it only "
                    "through its sparse embedding."
                )
            if table.grad.is_sparse:
                gradients[table] = table.grad
        for table in gradients:
            table.grad = None
        return gradients

    def _advance(self, index: int) -> float:
        """Add the current step of group `index` to its sums; the result is the step's rate b."""
        group, missed = self.param_groups[index], self._missed[index]
        if tuple(group["betas"]) != missed.betas:
            raise ValueError("The betas of a group with watched tables may not change during training.")
        beta1, beta2 = missed.betas
        steps = group["steps"]
        rate = float(group["lr"]) * math.sqrt(1 - beta2**steps) / (1 - beta1**steps)
        missed.advance(steps, rate)
        return rate

    def _catch_up(self, table: Tensor, rows: Tensor) -> None:
        """Bring `rows` (n,) of `table` up to date; they may repeat."""
        state, index = self._state(table), self._groups[table]
        group, missed = self.param_groups[index], self._missed[index]
        if not _compiled(table):
            stale = rows[state["last_step"][rows] < group["steps"]]
            if len(stale):
                self._move(table, stale.unique())
        elif missed.base < group["steps"]:
            kernels = _kernels()
            tables, rules = self._arrays(table), missed.all_rules()
            kernels.catch_up(
                *tables, rows.numpy(), group["steps"], rules.numpy(), missed.base, group["eps"], *missed.betas
            )

    def _move(self, table: Tensor, rows: Tensor) -> None:
        """Make the steps that `rows` (n,), distinct and stale, of `table` have missed."""
        state, steps = self._state(table), self.param_groups[self._groups[table]]["steps"]
        moved, mean, square = self._moved(table, rows)
        table.index_copy_(0, rows, moved)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        state["last_step"].index_fill_(0, rows, steps)

    def _moved(self, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`rows` (n,), distinct and stale, of `table` and its two moments as they are after the steps they missed."""
        state, index = self._state(table), self._groups[table]
        group, missed = self.param_groups[index], self._missed[index]
        beta1, beta2 = missed.betas
        since = state["last_step"][rows]
        rules = missed.rules(since)
        weights, nodes = rules.split(missed.columns, dim=1)
        nodes = nodes * group["eps"]
        mean, square = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        root = square.sqrt()
        reach = weights[:, :1] / (root + nodes[:, :1])
        for column in range(1, missed.columns):
            reach += weights[:, column, None] / (root + nodes[:, column, None])
        moved = table.detach()[rows].addcmul_(reach, mean, value=-1)
        # exp of a product, because beta2 rounded to float32 would be off by 6e-8 in each of the steps.
        gap = (group["steps"] - since).to(root.dtype)[:, None]
        return moved, mean.mul_(torch.exp(gap * math.log(beta1))), square.mul_(torch.exp(gap * math.log(beta2)))

    def _update(self, table: Tensor, gradient: Tensor, rate: float) -> None:
        """Adam's step for the rows of a sparse gradient (I, dim)."""
        state, group = self._state(table), self.param_groups[self._groups[table]]
        beta1, beta2 = group["betas"]
        eps = group["eps"] * (self._correction(group) if self.form == "torch" else 1.0)
        if _compiled(table):
            rows, values = gradient._indices()[0], gradient._values().contiguous()
            if table not in self._places:
                self._places[table] = np.full(len(table), -1, np.int32)
            if not _kernels().update(
                *self._arrays(table), rows.numpy(), values.numpy(), self._places[table], group["steps"], rate, eps,
                beta1, beta2,
            ):  # fmt: skip
                raise IndexError(f"A gradient has the rows {rows.min()} to {rows.max()} of a table of {len(table)}.")
            return
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        table.index_add_(0, rows, mean.div_(square.sqrt_().add_(eps)), alpha=-rate)
        state["last_step"].index_fill_(0, rows, group["steps"])

    def _arrays(self, table: Tensor) -> list[np.ndarray]:
        """Table, both moments and last step, as the compiled functions take them."""
        state = self._state(table)
        return [table.detach().numpy(), *(state[name].numpy() for name in ("exp_avg", "exp_avg_sq", "last_step"))]


def _compiled(table: Tensor) -> bool:
    """Whether rows of this table are the compiled functions' business."""
    return table.device.type == "cpu" and table.dtype is torch.float32


def _kernels() -> Any:
    from deepinterest.kernels import rows  # imported when first used: numba takes a while

    return rows
