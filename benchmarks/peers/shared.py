"""What the adapters share: the batches as tensors, and the loop that is timed. Needs nothing but numpy and torch.

An adapter runs in its library's own environment and never imports ours:

    ENVIRONMENT/bin/python benchmarks/peers/NAME.py batches.npz --model dien --threads 1 --seconds 10

Timed are the network, its loss and its optimiser; batches are ready tensors. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

EMBEDDING, HEAD, ATTENTION = 18, [200, 80], [80, 40]
LEARNING_RATE = 1e-3
SLICES, WARM_STEPS, WARM_SECONDS = 5, 3, 1.0


@dataclass
class Batch:
    """Ids count from 1; 0 fills histories up at their end, to T events."""

    user: Tensor  # (B,) int64, as all ids
    target_item: Tensor  # (B,)
    target_category: Tensor  # (B,)
    item: Tensor  # (B, T)
    category: Tensor  # (B, T)
    negative_item: Tensor  # (B, T)
    negative_category: Tensor  # (B, T)
    length: Tensor  # (B,) events of each history
    label: Tensor  # (B,) float32


@dataclass
class Sizes:
    """Of the tables, the row of id 0 included."""

    users: int
    items: int
    categories: int


Step = Callable[[Any], Tensor]
Make = Callable[[str, Sizes, list[Batch]], tuple[torch.nn.Module, list[Any], Step]]


def read(path: str) -> tuple[Sizes, list[Batch]]:
    with np.load(path) as file:
        sizes = Sizes(*file["sizes"].tolist())
        fields = {name: torch.from_numpy(file[name]) for name in Batch.__dataclass_fields__}
    whole = {name: values if name == "label" else values.long() for name, values in fields.items()}
    return sizes, [Batch(*parts) for parts in zip(*whole.values(), strict=True)]


def main(make: Make) -> None:
    """Args:
    make: (dien or din, sizes, batches) -> the network, each batch as it wants it, and a training step.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("batches")
    parser.add_argument("--model", choices=("dien", "din"), default="dien")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    sizes, batches = read(options.batches)
    network, inputs, step = make(options.model, sizes, batches)
    found = timed(step, inputs, len(batches[0].label), options.seconds)
    parameters = sum(weight.numel() for weight in network.parameters())
    print(json.dumps({**found, "parameters": parameters}))


def timed(step: Step, inputs: list[Any], rows: int, seconds: float) -> dict[str, Any]:
    """Rows a second in each slice of time after a warm-up, per CPU second in all of them, and the last loss."""
    rates: list[float] = []
    begin, steps, number, warmed, cpu = time.perf_counter(), 0, 0, 0, 0.0
    warm = min(WARM_SECONDS, seconds)
    while True:
        loss = step(inputs[number % len(inputs)])
        number, steps = number + 1, steps + 1
        passed = time.perf_counter() - begin
        if warm > 0:
            if number >= WARM_STEPS and passed >= warm:
                warm, begin, steps = 0.0, time.perf_counter(), 0
                warmed, cpu = number, time.process_time()
        elif passed >= seconds / SLICES:
            rates.append(rows * steps / passed)
            begin, steps = time.perf_counter(), 0
            if len(rates) == SLICES:
                per_cpu_second = rows * (number - warmed) / (time.process_time() - cpu)
                return {"samples_per_s": rates, "samples_per_cpu_s": per_cpu_second, "loss": float(loss.detach())}


def adam(network: torch.nn.Module) -> torch.optim.Adam:
    """As the libraries make it: torch's default."""
    return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
