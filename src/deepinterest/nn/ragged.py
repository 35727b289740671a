"""Segments of unequal length, laid one after the other: sums, softmax, pairs, and the order a recurrence walks them.

Segment s of `offsets` (S+1,) is rows offsets[s]:offsets[s+1]; it may be empty. Nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """The segment of each of `total` rows: (S+1,) -> (N,). Raises ValueError where offsets don't rise to total."""
    segments = torch.arange(len(offsets) - 1, device=offsets.device)  # (S,)
    if offsets.device.type == "cpu":  # where torch writes all that offsets say, beyond the room asked for
        ends = offsets.numpy()
        if ends[-1] - ends[0] != total or (ends[1:] < ends[:-1]).any():
            raise ValueError(f"Offsets from {ends[0]} to {ends[-1]} don't rise by the {total} rows there are.")
    return torch.repeat_interleave(segments, offsets.diff(), output_size=total)  # (N,)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each segment's rows, zero for an empty one: (N, ...) -> (S, ...)."""
    sums = values.new_zeros(len(offsets) - 1, *values.shape[1:])  # (S, ...)
    return sums.index_add(0, segment_ids(offsets, len(values)), values)  # (S, ...)


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax within each segment: (N,) -> (N,)."""
    segment = segment_ids(offsets, len(scores))  # (N,)
    highest = scores.new_full((len(offsets) - 1,), -torch.inf)  # (S,)
    highest = highest.scatter_reduce(0, segment, scores.detach(), "amax")  # (S,)
    exponentials = (scores - highest.index_select(0, segment)).exp()  # (N,)
    return exponentials / segment_sum(exponentials, offsets).index_select(0, segment)  # (N,)


def last_rows(values: Tensor, offsets: Tensor) -> Tensor:
    """The last row of each segment, zero for an empty one: (N, H) -> (S, H)."""
    if len(values) == 0:
        return values.sum(0, keepdim=True).expand(len(offsets) - 1, -1)  # zeros, and differentiable
    rows = values.index_select(0, (offsets[1:] - 1).clamp(min=0))  # (S, H)
    return rows.masked_fill((offsets.diff() == 0).unsqueeze(1), 0)


def next_steps(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of consecutive events within each history: current (P,) and next (P,), P = sum of max(length - 1, 0)."""
    segment = segment_ids(offsets, int(offsets[-1]))  # (N,)
    current = (segment[1:] == segment[:-1]).nonzero().squeeze(1)  # (P,)
    return current, current + 1  # (P,), (P,)


@dataclass
class Pairs:
    """Each candidate with every event of its history, candidate after candidate, oldest event first."""

    event: Tensor  # (M,)   row of the history events
    candidate: Tensor  # (M,)   row of the candidates
    offsets: Tensor  # (B+1,) the pairs of candidate b are offsets[b]:offsets[b+1]
    alone: bool = False  # each history has one candidate, in order: the pairs are the events

    @staticmethod
    def of(offsets: Tensor, history_index: Tensor) -> Pairs:
        """Pair up: history offsets (G+1,), history_index (B,) -> M = sum over b of the length of b's history."""
        G = len(offsets) - 1
        if len(history_index) == G and bool((history_index == torch.arange(G, device=offsets.device)).all()):
            N = int(offsets[-1])
            return Pairs(torch.arange(N, device=offsets.device), segment_ids(offsets, N), offsets, alone=True)
        lengths = offsets.diff().index_select(0, history_index)  # (B,)
        pair_offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])  # (B+1,)
        total = int(pair_offsets[-1])
        candidate = segment_ids(pair_offsets, total)  # (M,)
        shift = offsets.index_select(0, history_index) - pair_offsets[:-1]  # (B,) from a pair's row to its event's
        event = torch.arange(total, device=offsets.device) + shift.index_select(0, candidate)  # (M,)
        return Pairs(event, candidate, pair_offsets)

    def of_events(self, values: Tensor) -> Tensor:
        """What each pair reads of values of the events: (N, ...) -> (M, ...)."""
        return values if self.alone else values.index_select(0, self.event)


@dataclass
class TimeMajor:
    """The order in which a recurrence walks ragged sequences: step after step, the longest sequence first.

    At step t exactly the first active[t] sequences (by length, descending) still run, so their states are the
    leading rows of the step before: no row is computed that does not exist.
    """

    index: Tensor  # (N,) packed row -> original row
    position: Tensor  # (N,) original row -> packed row
    active: list[int]  # (T,) sequences that have a step t; never increasing

    @staticmethod
    def of(offsets: Tensor, total: int) -> TimeMajor:
        """The walk through the N = total events of `offsets` (S+1,)."""
        lengths = offsets.diff()  # (S,)
        order = lengths.argsort(descending=True, stable=True)  # (S,) longest first
        rank = torch.empty_like(order)  # (S,)
        rank[order] = torch.arange(len(order), device=order.device)

        segment = segment_ids(offsets, total)  # (N,)
        step = torch.arange(total, device=offsets.device) - offsets.index_select(0, segment)  # (N,)
        active = torch.bincount(step)  # (T,)
        start = active.cumsum(0) - active  # (T,) packed row at which a step begins
        position = start.index_select(0, step) + rank.index_select(0, segment)  # (N,)
        index = torch.empty_like(position)  # (N,)
        index[position] = torch.arange(total, device=offsets.device)

        return TimeMajor(index, position, active.tolist())

    def before(self, states: Tensor) -> Tensor:
        """The state each packed step starts from, zero at the first: (N, H) -> (N, H)."""
        shifted = [states.new_zeros(self.active[0] if self.active else 0, states.shape[1])]
        start = 0
        for now, after in zip(self.active, self.active[1:], strict=False):
            shifted.append(states[start : start + after])
            start += now
        return torch.cat(shifted)  # (N, H)
