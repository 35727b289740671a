"""task=prepare and task=data: the cache, the card, what was dropped, and the plots' counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from deepinterest.config import SyntheticConfig, TemporalConfig
from deepinterest.data.log import Log
from deepinterest.data.samples import Samples
from deepinterest.data.store import Store, load, prepare
from deepinterest.errors import UserError
from deepinterest.report import data_card

DAY = 86_400_000
PLOTS = {"history_length", "item_popularity", "activity", "label_rate"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    cache = tmp_path_factory.mktemp("cache")
    return load(prepare(SyntheticConfig(users=60, events_per_user=10), TemporalConfig(), str(cache)))


@pytest.fixture
def log() -> Log:
    """Two users of 3 and 2 events, on three days; item 3 has none."""
    day = np.array([0, 0, 2, 1, 2])
    return Log(np.array([1, 2, 1, 1, 2], dtype=np.int32), day * DAY + 5, np.array([0, 3, 5]), items=4)


@pytest.fixture
def samples(log: Log) -> Samples:
    """Targets 1, 2 and 4, the second with two negatives."""
    return Samples(
        user=np.array([0, 0, 1], dtype=np.int32),
        history_end=np.array([1, 2, 4]),
        candidate_offsets=np.array([0, 2, 5, 7]),
        candidates=np.array([2, 1, 1, 2, 3, 2, 1], dtype=np.int32),
        label=np.array([1, 0, 1, 0, 0, 1, 0], dtype=np.uint8),
        position=np.array([1, 2, 4]),
    )


def test_plots_are_in_the_log_s_time_zone(log: Log, samples: Samples, store: Store) -> None:
    """Events at 00:00:00.005 in UTC are of that day in Tokyo and of the day before in New York."""
    assert data_card.events_per_time(log.time, 0, DAY, 3, "Asia/Tokyo").tolist() == [2, 1, 2]
    assert data_card.events_per_time(log.time, -1, DAY, 3, "America/New_York").tolist() == [2, 1, 2]
    assert data_card.rows_per_time(log, samples, -1, DAY, 3, "America/New_York")[0].tolist() == [2, 0, 5]
    assert data_card.local(np.array([1_711_846_800_000]), "Europe/Berlin") == 1_711_846_800_000 + 7_200_000
    back = np.array([1_729_990_500_000, 1_729_991_100_000])  # 2:55 in Berlin, and 2:05 ten minutes later
    assert data_card.events_per_time(back, 28_833_245 + 120, 60_000, 5, "Europe/Berlin").sum() == 2
    drawn = data_card.figures(store, 50, "Asia/Tokyo")
    for name in ("activity", "label_rate"):
        assert drawn[name].axes[-1].get_xlabel() == "time (Asia/Tokyo)"


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    card = {"source": "[/x]\x1b[31m.csv", "[red]a": "[bold]", "note: items with several values of [/x]": 3}
    data_card.show(Console(width=100, force_terminal=True, color_system=None), card)
    text = capsys.readouterr().out
    for shown in ("[/x]\\x1b[31m.csv", "[red]a", "[bold]", "items with several values of [/x]"):
        assert shown in text
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_counts(log: Log, samples: Samples, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_card, "CHUNK", chunk)
    assert data_card.length_counts(log, samples).tolist() == [0, 2, 1]
    assert data_card.item_counts(log).tolist() == [3, 2, 0]
    assert data_card.events_per_time(log.time, 0, DAY, 3).tolist() == [2, 1, 2]
    rows, positives = data_card.rows_per_time(log, samples, 0, DAY, 3)
    assert rows.tolist() == [2, 0, 5]
    assert positives.tolist() == [1, 0, 2]


def test_impressions_have_their_own_time(log: Log, samples: Samples) -> None:
    samples.time = np.array([0, 0, 0, 1, 1, 2, 2]) * DAY
    rows, positives = data_card.rows_per_time(log, samples, 0, DAY, 3)
    assert rows.tolist() == [3, 2, 2]
    assert positives.tolist() == [2, 0, 1]


def test_counts_add_up(store: Store) -> None:
    for samples in store.samples.values():
        assert data_card.length_counts(store.log, samples).sum() == len(samples)
    assert data_card.item_counts(store.log).sum() == store.card["events"]


@pytest.mark.parametrize(
    ("days", "unit"), [(0.001, "second"), (2, "hour"), (399, "day"), (401, "week"), (10**6, "century")]
)
def test_unit_of_time(days: float, unit: str) -> None:
    assert data_card.unit_of(0, int(days * DAY) - 1) == unit


def _lines(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[panel].get_lines()
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_history_lengths_are_drawn() -> None:
    figure = data_card.history_length(dict.fromkeys(("train", "validation", "test"), np.array([0, 2, 1, 1])), 2)
    assert _lines(figure)["train"] == ([1, 2, 3, 4], [1.0, 0.5, 0.25, 0.0])
    assert "25%" in figure.axes[0].get_title()


def test_popularity_is_drawn_by_rank() -> None:
    figure = data_card.item_popularity(np.array([1, 0, 7, 2]))
    assert list(_lines(figure).values()) == [([1, 2, 3], [7, 2, 1])]
    assert "70%" in figure.axes[0].get_title()


def test_days_without_rows_are_left_out() -> None:
    none = (np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    rows = {"train": (np.array([4, 0, 2]), np.array([1, 0, 1])), "validation": none, "test": none}
    rows["validation"] = rows["test"] = (np.array([0, 0, 1]), np.array([0, 0, 1]))
    figure = data_card.label_rate(rows, 0, "day")
    times, rates = _lines(figure)["train: 0.3333 of 6 rows"]
    assert rates == [0.25, 0.5]
    assert [str(time)[:10] for time in times] == ["1970-01-01", "1970-01-03"]
    figure = data_card.activity(np.array([5, 1, 2]), {name: counts for name, (counts, _) in rows.items()}, 0, "day")
    assert next(iter(_lines(figure).values()))[1] == [5, 1, 2]
    assert _lines(figure, 1)["train"][1] == [4, 2]


def test_losses_have_a_table_of_their_own() -> None:
    console = Console(record=True, width=100)
    data_card.show(console, {"events": 1234, "dropped: label 0": 56789, "note: items with several values": 3})
    card, losses = console.export_text().split("Dropped and mended")
    assert "1,234" in card and "label 0" not in card
    assert "56,789" in losses and "items with several values" in losses
    data_card.show(console, {"events": 1234})
    assert "nothing" in console.export_text()


def test_a_folder_that_can_not_be_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be written"):
        data_card.write(tmp_path / "missing", {}, store, 50)


Settings = Callable[..., tuple[Any, dict[str, Any]]]


def test_task_data(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepinterest.experiment import run

    found = run(*settings("din", tmp_path, "task=data", "trainer=gpu"))  # a trainer that isn't here doesn't matter
    card = json.loads((tmp_path / "run/data_card.json").read_text())
    assert found == {f"{name}_rows": card[f"{name}_rows"] for name in ("train", "validation", "test")}
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == PLOTS
    shown = capsys.readouterr().out
    assert card["split_hash"] in shown
    assert "validation, unseen in training" in shown
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_task_prepare(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepinterest.experiment import run

    assert run(*settings("din", tmp_path, "task=prepare", "trainer=gpu")) == {}
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == tmp_path / "cache"
    assert load(folder).card["source"] == "synthetic"
    before = (folder / "card.json").stat().st_mtime_ns
    run(*settings("din", tmp_path, "task=data"))  # finds it
    assert (folder / "card.json").stat().st_mtime_ns == before
