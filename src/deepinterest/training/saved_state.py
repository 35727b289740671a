"""What a checkpoint holds of training itself, checked before any of it is taken over: the file may be foreign.

All functions raise ValueError, which says what doesn't fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from deepinterest.training.missed_steps import MissedSteps

FIXED = ("betas", "eps", "weight_decay", "amsgrad", "maximize")  # of a group of parameters: as the settings have them
MOST_STEPS, MOST_VALUES = 1 << 53, 10_000


def check_optimizer(
    state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], watched: Mapping[Tensor, int], form: str
) -> None:
    """Of DeferredAdam: everything has the shape that its parameters ask for, and is a finite number.

    Args:
        groups: the optimizer's own groups of parameters.
        watched: tables that it keeps up to date, and the group of each.
        form: its own.
    """
    if len(state["param_groups"]) != len(groups):
        raise ValueError(f"it has {len(state['param_groups'])} groups of parameters for {len(groups)}")
    steps = []
    for saved, own in zip(state["param_groups"], groups, strict=True):
        for name in FIXED:
            if saved[name] != own[name] and list(_values(saved[name])) != list(_values(own[name])):
                raise ValueError(f"the optimizer's {name} is {saved[name]!r} and by the settings {own[name]!r}")
        if not (isinstance(saved["lr"], float) and 0 < saved["lr"] < math.inf):
            raise ValueError(f"the learning rate is {saved['lr']!r}")
        steps.append(_count(saved["steps"], "the optimizer's steps"))
    bases = list(_check_missed(state["missed"], groups, steps, set(watched.values()), form))
    every = [(parameter, index) for index, group in enumerate(groups) for parameter in group["params"]]
    for place, (parameter, index) in enumerate(every):
        moments = state["state"].get(place, {})
        if moments or parameter in watched:
            _check_moments(place, moments, parameter, parameter in watched, bases[index], steps[index])


def _check_missed(
    missed: Mapping[int, Any], groups: Sequence[Mapping[str, Any]], steps: list[int], watched: set[int], form: str
) -> Iterator[int]:
    """Yields, for each group, the step from which on missed steps are kept; 0 where nothing is watched."""
    for index, (group, step) in enumerate(zip(groups, steps, strict=True)):
        if index not in watched:
            yield 0
            continue
        saved = missed[index]
        base = _count(saved["base"], "the step at which all rows were up to date")
        fresh = MissedSteps(tuple(group["betas"]), base, form == "torch").state_dict()
        if saved["step"] != step or step < base:
            raise ValueError(f"the optimizer made {step} steps and keeps those from {base} to {saved['step']!r}")
        _check_tensor("moments of missed steps", saved["moments"], fresh["moments"])
        rules = torch.empty(step - base, fresh["rules"].shape[1], device="meta")
        _check_tensor("rules of missed steps", saved["rules"], rules)
        yield base


def _check_moments(
    place: int, moments: Mapping[str, Tensor], parameter: Tensor, watched: bool, base: int, step: int
) -> None:
    for name in ("exp_avg", "exp_avg_sq", *(["table"] if watched else [])):
        _check_tensor(f"{name} of parameter {place}", moments[name], parameter)
    if watched:
        last = moments["last_step"]
        _check_tensor(f"last_step of parameter {place}", last, torch.empty(len(parameter), dtype=torch.int64))
        if len(last) and not (base <= int(last.min()) and int(last.max()) <= step):
            raise ValueError(f"last_step of parameter {place} reaches from {last.min()} to {last.max()}, not to {step}")


def _check_tensor(name: str, saved: Any, like: Tensor) -> None:
    if (
        not isinstance(saved, Tensor)
        or saved.shape != like.shape
        or saved.is_floating_point() != like.is_floating_point()
    ):
        what = tuple(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
        raise ValueError(f"{name} is {what} and by the settings {tuple(like.shape)}")
    if saved.numel() and saved.is_floating_point() and not all(map(torch.isfinite, torch.aminmax(saved))):
        raise ValueError(f"{name} isn't finite")


def check_progress(checkpoint: Mapping[str, Any], decay: float) -> None:
    """Of Lightning: the loops hold counts and truth values; the scheduler what one with this `decay` holds."""
    for value in _values(checkpoint["loops"]):
        if not isinstance(value, bool | None):
            _count(value, "a count of its progress")
    known = ExponentialLR(SGD([torch.zeros(1)]), decay).state_dict().keys()
    for scheduler in checkpoint["lr_schedulers"]:
        if not scheduler.keys() <= known or scheduler["gamma"] != decay:
            raise ValueError(f"the learning rate's schedule holds {dict(scheduler)!r:.200}")
        if not all(isinstance(v, bool | int | float | None) and math.isfinite(v or 0) for v in _values(scheduler)):
            raise ValueError("the learning rate's schedule isn't one of numbers")


def _values(state: Any) -> Iterator[Any]:
    """What stands in dicts and lists, at most so many."""
    left, count = [state], 0
    while left:
        inner = left.pop()
        count += 1
        if count + len(left) > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(inner, Mapping | list | tuple):
            left += inner.values() if isinstance(inner, Mapping) else inner
        else:
            yield inner


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or not 0 <= value < MOST_STEPS:
        raise ValueError(f"{name} is {value!r:.100}")
    return value
