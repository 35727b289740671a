"""What is computed by hand: recurrences, the MLPs of pairs, matrix products, rows of embedding tables.

The recurrence comes as the equations say it, in torch, in numba for the CPU and in Triton for the GPU.
"""

from __future__ import annotations

from deepinterest.kernels.dense import dense
from deepinterest.kernels.recurrence import chosen, on_cpu, recurrence, use, using

__all__ = ["chosen", "dense", "on_cpu", "recurrence", "use", "using"]
