"""`kernels`: the recurrence alone, by each kernel that this device has, against torch.nn.GRU of the same size.

On a CPU also what else its kernels compute: dense layers, attention and the auxiliary net."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from deepinterest.benchmark import measure
from deepinterest.benchmark.measure import seconds_of
from deepinterest.benchmark.training import Settings
from deepinterest.benchmark.workload import history_lengths
from deepinterest.config import DIENConfig, KernelName, ResetGate
from deepinterest.errors import UserError
from deepinterest.kernels import using
from deepinterest.kernels.choice import GPU_HIDDEN
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.auxiliary import AuxiliaryLoss
from deepinterest.nn.mlp import linear
from deepinterest.nn.ragged import Pairs
from deepinterest.nn.recurrent import GRU, AttentionGRU


@dataclass
class Compared:
    """One line: with input projections and all that a network's block does."""

    kernel: KernelName | None  # None where no kernel of ours acts
    run: Callable[[], Any]
    inputs: list[Tensor]  # that backward gives gradients of

    def call(self) -> Tensor:
        """All states, or what the block gives."""
        found = self.run()
        states = found[0] if isinstance(found, tuple) else found
        return states.data if isinstance(states, PackedSequence) else states


def available(device: str, hidden: int) -> list[KernelName]:
    """The kernels that run there; the oracle isn't meant to be fast."""
    if device == "cpu":
        return [KernelName.cpu, KernelName.torch]
    gpu = importlib.util.find_spec("triton") is not None and hidden <= GPU_HIDDEN
    return [*([KernelName.gpu] if gpu else []), KernelName.torch]


def calls(hidden: int, lengths: np.ndarray, device: str) -> dict[str, Compared]:
    """What is compared, by name."""
    length = torch.from_numpy(lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    x = torch.randn(int(offsets[-1]), hidden)
    padded = nn.utils.rnn.pad_sequence(x.split(lengths.tolist()), batch_first=True).to(device).requires_grad_()
    packed = pack_padded_sequence(padded.detach(), length, batch_first=True, enforce_sorted=False)
    packed.data.requires_grad_()
    x, offsets = x.to(device).requires_grad_(), offsets.to(device)
    attention = torch.rand(len(x), device=device).requires_grad_()
    pairs = Pairs.of(offsets, torch.arange(len(lengths), device=device))
    reference = nn.GRU(hidden, hidden, batch_first=True).to(device)
    weights = [*reference.parameters()]
    found: dict[str, Compared] = {}
    for kernel in available(device, hidden):
        for reset in ResetGate:
            gru = GRU(hidden, hidden, reset).to(device)
            run = partial(gru, x, offsets)
            found[f"{kernel.value}: GRU, reset {reset.value}"] = Compared(kernel, run, [x, *gru.parameters()])
        augru = AttentionGRU(hidden, hidden).to(device)
        run = partial(augru.states, x, attention, pairs)
        found[f"{kernel.value}: AUGRU"] = Compared(kernel, run, [x, attention, *augru.parameters()])
        if device == "cpu":
            found |= blocks(kernel, x, offsets, pairs)
    name = "cuDNN" if device == "cuda" else "torch"
    found[f"{name}: nn.GRU, packed"] = Compared(None, partial(reference, packed), [packed.data, *weights])
    found[f"{name}: nn.GRU, padded"] = Compared(None, partial(reference, padded), [padded, *weights])
    return found


def blocks(kernel: KernelName, x: Tensor, offsets: Tensor, pairs: Pairs) -> dict[str, Compared]:
    """The other blocks that are computed by kernels, of DIEN's sizes but for the width of x."""
    hidden = x.shape[1]
    projection, auxiliary = linear(hidden, 3 * hidden), AuxiliaryLoss(hidden, hidden, DIENConfig().aux_net)
    attention = TargetAttention(hidden, hidden, DIENConfig().attention)
    query, negatives = torch.randn(len(offsets) - 1, hidden), torch.randn(len(x), 1, hidden)
    lines: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        f"dense, {hidden} to {3 * hidden}": (projection, (x,)),
        "attention": (attention, (query.requires_grad_(), x, pairs)),
        "auxiliary net": (auxiliary, (x, x, negatives.requires_grad_(), offsets)),
    }
    found = {}
    for name, (module, arguments) in lines.items():
        inputs = [tensor for tensor in arguments if isinstance(tensor, Tensor) and tensor.requires_grad]
        found[f"{kernel.value}: {name}"] = Compared(
            kernel, partial(module, *arguments), [*inputs, *module.parameters()]
        )
    return found


def compare(settings: Settings, lengths: str, hidden: int) -> list[dict[str, Any]]:
    """Milliseconds of each, forward alone and with backward."""
    drawn = history_lengths(np.random.default_rng(0), settings.batch_size, lengths)
    found = []
    for name, one in calls(hidden, drawn, settings.device).items():
        with using(one.kernel or KernelName.auto):
            grad = torch.randn_like(one.call())

            def forward(one: Compared = one) -> None:
                with torch.no_grad():
                    one.call()

            def both(one: Compared = one, grad: Tensor = grad) -> None:
                torch.autograd.grad(one.call(), one.inputs, grad)

            values = {
                "forward_ms": 1e3 * seconds_of(forward, device=settings.device),
                "both_ms": 1e3 * seconds_of(both, device=settings.device),
            }
        found.append({"name": name, "lengths": lengths, "hidden": hidden, **values})
    return found


def table(settings: Settings, found: list[dict[str, Any]]) -> Table:
    rows = [
        (each["name"], each["lengths"], str(each["hidden"]), f"{each['forward_ms']:.2f}", f"{each['both_ms']:.2f}")
        for each in found
    ]
    columns = ("block", "lengths", "hidden", "forward ms", "forward and backward ms")
    title = f"{settings.batch_size:,} sequences; {measure.title(settings.device, settings.threads)}"
    return measure.table(title, columns, rows)


def run(settings: Settings, lengths: list[str], hidden: list[int]) -> None:
    found = [line for length in lengths for width in hidden for line in compare(settings, length, width)]
    if not found:
        raise UserError("--lengths or --hidden is empty: name at least one of each.")
    measure.show(table(settings, found))
    result = {"benchmark": "kernels", "sequences": settings.batch_size, "results": found}
    measure.tell(result | measure.machine(settings.device, settings.threads))
