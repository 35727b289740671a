"""protocol.ties: what happens at a target's own time is its history, or isn't, wherever histories are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest import experiment
from deepinterest.data import store
from deepinterest.data.samples import Samples

CASES = [
    ("temporal", "strict"),
    ("temporal", "order"),
    ("leave_last_out", "strict"),
    ("leave_last_out", "order"),
    ("last_event", "strict"),
    ("last_event", "order"),
    ("labelled", "strict"),
]


@pytest.fixture(scope="module")
def baskets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log full of ties: 80 users with six times each, and one to five items at each of them."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, (80, 6))
    user = np.repeat(np.arange(80), sizes.sum(1))
    day = np.repeat(np.tile(np.arange(6), 80), sizes.ravel())
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in rng.integers(0, 30, len(user))],
            "timestamp": 1_700_000_000 + 86_400 * day + 3_600 * (user % 24),
            "click": rng.integers(0, 2, len(user)),
        }
    )
    path = tmp_path_factory.mktemp("baskets") / "baskets.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def trained(
    settings: Callable[..., Any], baskets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run, trained once."""
    folders: dict[tuple[str, str], Path] = {}

    def call(protocol: str, ties: str) -> Path:
        if (protocol, ties) not in folders:
            folder = tmp_path_factory.mktemp("run")
            label = ("data.columns.label=click",) if protocol == "labelled" else ()
            config, plain = settings(
                "din", folder, "data=events", f"data.path={baskets}", *label, f"protocol={protocol}",
                f"protocol.ties={ties}", "protocol.max_history=6",
            )  # fmt: skip
            experiment.run(config, plain)
            folders[protocol, ties] = folder
        return folders[protocol, ties]

    return call


@pytest.fixture
def predict(settings: Callable[..., Any], tmp_path: Path) -> Callable[..., np.ndarray]:
    """Probabilities of a frame's rows by task=predict."""

    def call(folder: Path, rows: pl.DataFrame, *more: str, kind: str = "parquet") -> np.ndarray:
        path, output = tmp_path / f"rows.{kind}", tmp_path / "scores.parquet"
        rows.write_csv(path) if kind == "csv" else rows.write_parquet(path)
        config, plain = settings(
            "din", folder, "task=predict", "data=events", f"data.path={path}", f"output={output}",
            f"checkpoint={folder / 'run' / 'best.ckpt'}", *more,
        )  # fmt: skip
        experiment.run(config, plain)
        return pl.read_parquet(output)["probability"].to_numpy()

    return call


def of_test(folder: Path) -> tuple[Samples, store.Store]:
    (card,) = (folder / "cache").glob("*/card.json")
    held = store.load(card.parent)
    return held.samples["test"], held


@pytest.mark.parametrize(("protocol", "ties"), CASES)
def test_predict_gives_the_scores_of_the_test_back(
    protocol: str, ties: str, trained: Callable[..., Path], predict: Callable[..., np.ndarray]
) -> None:
    folder = trained(protocol, ties)
    rows = pl.read_parquet(folder / "run" / "predictions.parquet")
    wanted, rows = rows["probability"].to_numpy(), rows.drop("probability")
    np.testing.assert_allclose(predict(folder, rows), wanted, atol=1e-6, rtol=0)
    np.testing.assert_allclose(predict(folder, rows, kind="csv"), wanted, atol=1e-6, rtol=0)
    by_time = predict(folder, rows.drop("history_length"))
    if ties == "strict":
        np.testing.assert_allclose(by_time, wanted, atol=1e-6, rtol=0)
    else:  # a time alone can't tell a row's place among its user's events of that time
        assert np.abs(by_time - wanted).max() > 1e-3
