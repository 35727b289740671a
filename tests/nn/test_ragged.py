from __future__ import annotations

import pytest
import torch

from deepinterest.nn.ragged import Pairs, TimeMajor, last_rows, next_steps, segment_softmax, segment_sum

LENGTHS = [[3, 0, 1, 5, 1], [0], [0, 0], [1], [4, 4], [0, 2]]


def offsets_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def segments(offsets: torch.Tensor) -> list[range]:
    return [range(a, b) for a, b in zip(offsets.tolist()[:-1], offsets.tolist()[1:], strict=True)]


def test_softmax_by_hand() -> None:
    weights = segment_softmax(torch.tensor([0.2, -0.1]), torch.tensor([0, 2]))
    torch.testing.assert_close(weights, torch.tensor([0.57444252, 0.42555748]))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_segments_against_loops(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    values, scores = torch.randn(sum(lengths), 2), 100 * torch.randn(sum(lengths))
    sums, weights = segment_sum(values, offsets), segment_softmax(scores, offsets)
    for s, rows in enumerate(segments(offsets)):
        torch.testing.assert_close(sums[s], values[list(rows)].sum(0))
        torch.testing.assert_close(weights[list(rows)], scores[list(rows)].softmax(0))


def test_softmax_survives_large_scores() -> None:
    weights = segment_softmax(torch.tensor([1e4, 1e4, -1e4]), torch.tensor([0, 2, 3]))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 1.0]))


def test_softmax_gradient() -> None:
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: segment_softmax(s, torch.tensor([0, 2, 2, 5])), scores)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_pairs(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    history_index = torch.arange(len(lengths)).repeat_interleave(2)
    pairs = Pairs.of(offsets, history_index)
    expected = [(e, b) for b, g in enumerate(history_index.tolist()) for e in segments(offsets)[g]]
    assert list(zip(pairs.event.tolist(), pairs.candidate.tolist(), strict=True)) == expected
    assert pairs.offsets.diff().tolist() == [lengths[g] for g in history_index.tolist()]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_next_steps(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    current, following = next_steps(offsets)
    expected = [(a, a + 1) for rows in segments(offsets) for a in list(rows)[:-1]]
    assert list(zip(current.tolist(), following.tolist(), strict=True)) == expected


@pytest.mark.parametrize("lengths", LENGTHS)
def test_last_rows(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    rows = 1.0 + torch.arange(sum(lengths)).unsqueeze(1)
    expected = [float(offsets[s + 1]) if lengths[s] else 0.0 for s in range(len(lengths))]
    assert last_rows(rows, offsets).squeeze(1).tolist() == expected


@pytest.mark.parametrize("lengths", LENGTHS)
def test_walk(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    walk = TimeMajor.of(offsets, sum(lengths))
    longest_first = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    steps = range(max(lengths))
    expected = [int(offsets[s]) + t for t in steps for s in longest_first if t < lengths[s]]
    assert walk.index.tolist() == expected
    assert walk.position[walk.index].tolist() == list(range(sum(lengths)))
    assert walk.active == [sum(length > t for length in lengths) for t in steps]

    rows = 1.0 + torch.arange(sum(lengths)).unsqueeze(1)
    first = set(offsets[:-1].tolist())
    before = [0.0 if row in first else float(row) for row in walk.index.tolist()]
    assert walk.before(rows[walk.index]).squeeze(1).tolist() == before
