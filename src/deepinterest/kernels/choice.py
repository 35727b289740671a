"""Which kernel computes: the one asked for (`trainer.kernel`), or the fastest that fits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deepinterest.config import KernelName

GPU_HIDDEN = 128  # the widest state that the GPU kernel keeps in registers
_asked = KernelName.auto


def asked() -> KernelName:
    """What `use` was told last."""
    return _asked


def use(name: KernelName | str) -> None:
    """From now on every recurrence of this process is computed by the kernel of this name."""
    global _asked
    _asked = KernelName(name)


@contextmanager
def using(name: KernelName | str) -> Iterator[None]:
    """`use` for a while."""
    before = _asked
    use(name)
    try:
        yield
    finally:
        use(before)


def chosen(x: Tensor, hidden: int) -> KernelName:
    """The kernel that computes a recurrence of this width on inputs like x: the one asked for, or the fastest."""
    if _asked is not KernelName.auto:
        return _asked
    if x.dtype is not torch.float32:
        return KernelName.torch
    if x.device.type == "cpu":
        return KernelName.cpu
    if x.device.type == "cuda" and hidden <= GPU_HIDDEN and importlib.util.find_spec("triton"):
        return KernelName.gpu
    return KernelName.torch


def on_cpu(*parts: Tensor) -> bool:
    """Whether products of these are for the kernels of the CPU; what torch compiles is its own."""
    if _asked not in (KernelName.auto, KernelName.cpu) or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        return False
    return all(part.device.type == "cpu" and part.dtype is torch.float32 for part in parts)
