"""Numbers that belong to places: even, and the same whoever asks for them."""

from __future__ import annotations

import numpy as np
import pytest

from deepinterest.config import Distribution, Exclude, NegativesConfig
from deepinterest.data import negatives
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.places import Places

EVERY = slice(None)


def grid(groups: int, numbers: int, key: tuple[int, ...] = (1, 2)) -> Places:
    group, number = np.divmod(np.arange(groups * numbers), numbers)
    return Places(list(key), group, number)


def test_a_place_has_its_own_numbers_whatever_is_asked_beside_it() -> None:
    all_ = grid(20, 30).below(1000, EVERY, 3)
    part = np.array([7, 599, 300, 7])
    assert grid(20, 30).below(1000, part, 3).tolist() == all_[part].tolist()
    alone = Places([1, 2], np.array([19]), np.array([29]))
    assert alone.below(1000, EVERY, 3).tolist() == [all_[-1]]
    assert all_.min() >= 0 and all_.max() < 1000


@pytest.mark.parametrize("size", [1, 2, 7, 3_000_000_000])
def test_numbers_are_in_range(size: int) -> None:
    drawn = grid(100, 100).below(size, EVERY, 0)
    assert drawn.min() >= 0 and drawn.max() < size
    assert len(np.unique(drawn)) >= min(size, 9_990)


def test_numbers_are_even_and_unrelated() -> None:
    """Chi squared of 99 degrees of freedom stays below 180 in all but one of a million fair cases."""
    groups, numbers, size = 400, 500, 100
    base = grid(groups, numbers).below(size, EVERY, 0)
    draws = [
        base,
        grid(groups, numbers).below(size, EVERY, 1),  # the next attempt
        grid(groups, numbers, (1, 3)).below(size, EVERY, 0),  # the next epoch
        np.roll(base.reshape(groups, numbers), 1, axis=0).ravel(),  # the group before
        np.roll(base, 1),  # the place before
    ]
    pairs = [(base + other) % size for other in draws[1:]]  # even if the two are unrelated
    for drawn in (*draws, *pairs):
        counts = np.bincount(drawn, minlength=size)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 180
    assert all((base == other).mean() < 0.02 for other in draws[1:])


@pytest.mark.parametrize("distribution", list(Distribution))
def test_negatives_by_place(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 401, 20)
    log = Log(rng.integers(1, 12, 400).astype(np.int32), np.sort(rng.integers(0, 99, 400)), offsets, 12)
    config = NegativesConfig(distribution=distribution, exclude=Exclude.positive, time_window=0.2)
    sampler = NegativeSampler(log, np.ones(400, dtype=bool), config)

    def draw(events: np.ndarray) -> np.ndarray:
        number = (2 * events[:, None] + np.arange(2)).ravel()
        return sampler.draw(Places([5], np.repeat(events // 20, 2), number), events, 2)

    events = rng.permutation(400)
    drawn = draw(events)
    assert (drawn != log.item[events][:, None]).all()  # about a tenth was drawn again
    assert np.array_equal(draw(events[100:130]), drawn[100:130])
    monkeypatch.setattr(negatives, "CHUNK", 37)
    assert np.array_equal(draw(events), drawn)
