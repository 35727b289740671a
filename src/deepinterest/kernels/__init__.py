"""What is computed by hand: recurrences, the MLPs of pairs, matrix products, rows of embedding tables.

The recurrence comes as the equations say it, in torch, in numba for the CPU and in Triton for the GPU.
"""

from __future__ import annotations

from deepinterest.kernels.choice import chosen, on_cpu, use, using
from deepinterest.kernels.dense import add_rows, dense
from deepinterest.kernels.recurrence import recurrence
from deepinterest.kernels.threads import allowed, for_kernels, give_kernels

__all__ = [
    "add_rows",
    "allowed",
    "chosen",
    "dense",
    "for_kernels",
    "give_kernels",
    "on_cpu",
    "recurrence",
    "use",
    "using",
]
