"""What `task=explain` draws is what the network computes, for the rows asked for, and nothing it hasn't got."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch

from conftest import Settings
from deepinterest import models
from deepinterest.config import SCHEMAS, ExperimentConfig, ExplainConfig, Task
from deepinterest.data.batch import Batch
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.experiment import run
from deepinterest.models.network import AttentionNetwork
from deepinterest.nn.embedding import Features
from deepinterest.nn.ragged import last_rows, segment_sum
from deepinterest.report import explain, plots

ATTENTIVE = [name for name, schema in SCHEMAS["model"].items() if issubclass(models.NETWORKS[schema], AttentionNetwork)]
ITEMS = 9


def network_of(name: str) -> AttentionNetwork:
    torch.manual_seed(3)
    rows = torch.arange(ITEMS)
    features = Features(torch.stack([rows, rows % 4], 1), [ITEMS, 4], torch.zeros(3, 1, dtype=torch.int64), [3])
    network = models.build(features, SCHEMAS["model"][name](embedding_dim=4))
    assert isinstance(network, AttentionNetwork)
    return network.eval()


def batch_of() -> Batch:
    """Three histories, one of them empty, with two, one and two candidates."""
    return Batch(
        history=torch.tensor([1, 2, 3, 4, 5, 6]),
        offsets=torch.tensor([0, 4, 4, 6]),
        user=torch.tensor([1, 2, 1]),
        candidates=torch.tensor([7, 8, 1, 2, 3]),
        history_index=torch.tensor([0, 0, 1, 2, 2]),
        label=torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]),
    )


@pytest.mark.parametrize("name", ATTENTIVE)
@torch.inference_mode()
def test_the_path_ends_where_the_network_reads_it(name: str, one_thread: None) -> None:
    network, batch, heard = network_of(name), batch_of(), []
    network.head.register_forward_pre_hook(lambda module, args: heard.append(args[0]))  # type: ignore[operator]
    network(batch)
    found = network.evolve(batch)
    assert torch.equal(found.weights, network.attention_weights(batch)[0])
    if name == "din":
        assert found.states is None and found.without_target is None
        return
    assert found.states is not None and found.without_target is not None
    H = found.states.shape[1]
    read = last_rows(found.states, found.pairs.offsets)
    if name == "gru_attention":  # the head reads the sum of the states by their weights
        read = segment_sum(found.weights[:, None] * found.states, found.pairs.offsets)
        assert torch.equal(found.states, found.without_target)
    else:
        assert not torch.allclose(found.states, found.without_target)
    torch.testing.assert_close(read, heard[0][:, -H:], rtol=0, atol=1e-6)


def loader_of() -> BatchLoader:
    """Users 0 (5 events) and 1 (2 events); three groups of two rows and one of one."""
    log = Log(np.array([1, 2, 3, 4, 5, 6, 7], dtype=np.int32), np.arange(7) * 1000, np.array([0, 5, 7]), ITEMS)
    samples = Samples(
        user=np.array([0, 0, 1, 1], dtype=np.int32),
        history_end=np.array([3, 4, 6, 5]),
        candidate_offsets=np.array([0, 2, 4, 6, 7]),
        candidates=np.array([4, 8, 5, 1, 2, 7, 8], dtype=np.int32),
        label=np.array([1, 0, 1, 0, 0, 1, 1], dtype=np.uint8),
        position=np.arange(4),
    )
    return BatchLoader(log, samples, batch_size=10, max_history=50, seed=0)


def test_rows_asked_for_are_taken_and_others_refused() -> None:
    loader = loader_of()
    assert explain.chosen(loader, ExplainConfig(rows=[5, 0]), 0).tolist() == [5, 0]
    with pytest.raises(UserError, match=r"explain\.rows\[1\]=7 is no test row: .* 0 to 6\."):
        explain.chosen(loader, ExplainConfig(rows=[5, 7]), 0)


def test_random_rows_are_touches_with_a_history() -> None:
    loader = loader_of()
    assert explain.chosen(loader, ExplainConfig(count=6), 0).tolist() == [0, 2]
    one = {int(explain.chosen(loader, ExplainConfig(count=1), seed)[0]) for seed in range(20)}
    assert one == {0, 2}
    assert explain.chosen(loader, ExplainConfig(count=1), 5) == explain.chosen(loader, ExplainConfig(count=1), 5)


def test_the_other_item_is_of_the_same_history_where_it_can_be() -> None:
    samples, rng = loader_of().samples, np.random.default_rng(0)
    assert [explain.another(samples, row, rng) for row in range(6)] == [1, 0, 3, 2, 5, 4]
    assert samples.candidates[explain.another(samples, 6, rng)] != samples.candidates[6]


# ----------------------------------------------------------------------------------------------------------- whole task


@pytest.fixture(scope="module")
def explained(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a small model once, and explains it: the folder."""
    trained: dict[str, Path] = {}

    def go(model: str, *more: str) -> Path:
        if model not in trained:
            trained[model] = tmp_path_factory.mktemp(f"trained-{model}")
            run(*settings(model, trained[model], f"paths.cache={trained[model].parent / 'cache'}"))
        folder = tmp_path_factory.mktemp("explained")
        cache = f"paths.cache={folder.parent / 'cache'}"
        checkpoint = f"checkpoint={trained[model] / 'run' / 'best.ckpt'}"
        config, plain = settings(model, folder, cache, "task=explain", checkpoint, *more)
        assert isinstance(config, ExperimentConfig) and config.task is Task.explain
        run(config, plain)
        return folder / "run"

    return go


@pytest.mark.parametrize("model", ["dnn", "din", "dien"])
def test_pictures_and_page(explained: Callable[..., Path], model: str) -> None:
    folder = explained(model, "explain.rows=[3,0]", "explain.events=5")
    assert sorted(path.name for path in folder.glob("*.png")) == ["explain_0.png", "explain_3.png"]
    page = (folder / "explain.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page  # nothing is fetched
    assert page.index("Row 3,") < page.index("Row 0,")
    assert ("has no attention" in page) == (model == "dnn")
    assert ("no state that evolves" in page) == (model == "din")
    assert ("attention for" in page) == (model != "dnn")


def test_what_is_drawn_is_what_was_predicted(
    explained: Callable[..., Path], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[explain.Explained] = []
    draw = explain.draw
    monkeypatch.setattr(explain, "draw", lambda found, events: drawn.append(found) or draw(found, events))
    folder = explained("dien", "explain.count=3", "seed=4")
    assert len(list(folder.glob("*.png"))) == len(drawn) == 3
    checkpoint = next(folder.parents[1].glob("trained-dien*")) / "run"
    predictions = pl.read_parquet(checkpoint / "predictions.parquet")
    for found in drawn:
        row = predictions.row(found.row, named=True)
        assert row["label"] == found.items[0].label == 1
        assert (str(row["user"]), row["item"]) == (found.user, found.items[0].name)
        assert found.items[0].probability == pytest.approx(row["probability"], abs=1e-6)
        other = predictions.row(found.row + 1, named=True)  # its negative
        assert (other["item"], other["label"]) == (found.items[1].name, found.items[1].label)
        assert found.items[1].probability == pytest.approx(other["probability"], abs=1e-6)
        assert len(found.events) == row["history_length"] == found.read[-1]
        assert found.weights is not None and found.states is not None and found.categories is not None
        np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
        assert found.states.shape[:2] == (3, len(found.events))
        assert (np.diff(found.seconds) <= 0).all() and found.seconds[-1] >= 0
        assert found.probability.shape == (2, len(found.read))


def test_names_of_a_table(explained: Callable[..., Path], tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    items = pl.read_parquet(next((explained("din").parents[1] / "cache").glob("*/items.parquet")))["item"]
    pl.DataFrame({"id": items, "title": [f"<The {item}>" for item in items]}).write_csv(names)
    page = (explained("din", f"explain.names={names}", "explain.count=1") / "explain.html").read_text()
    assert page.count("&lt;The ") > 5 and "<The " not in page


def test_hostile_names(explained: Callable[..., Path], tmp_path: Path) -> None:
    """Markup, formulas of plots and control characters are shown, in the page and in its pictures, and do nothing."""
    names = tmp_path / "names.parquet"
    items = pl.read_parquet(next((explained("din").parents[1] / "cache").glob("*/items.parquet")))["item"]
    hostile = "<script>alert(1)</script>\" onload='x' \x00\x1b[31m\u202e--> $\\frac{ \r\n"
    pl.DataFrame({"id": items, "title": [hostile] * len(items)}).write_parquet(names)
    text = (explained("din", f"explain.names={names}", "explain.count=1") / "explain.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "onload=&#x27;x&#x27;" in text
    assert not set("\x00\x1b\u202e\r") & set(text) and r"\x00\x1b[31m\u202e" in text
    for picture in re.findall(r"base64,([^\"]+)", text):
        ElementTree.fromstring(base64.b64decode(picture))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.txt", "", r"is no table of names: use \.csv"),
        ("names.csv", None, "can't be read"),
        ("names.csv", "id\n1\n", "has one column where two are needed"),
        ("names.csv", "id,title\nnobody,x\n", "knows none of the items: its first column begins with 'nobody'"),
    ],
)
def test_wrong_names(explained: Callable[..., Path], tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        explained("din", f"explain.names={tmp_path / name}")


def test_full_disk(explained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        explained("dnn", "explain.count=1")


def test_a_history_of_nothing_is_drawn() -> None:
    figure = plots.evolution(
        title="row 0", legend=["a $", "b $"], bars=None, hidden=0, states=None,
        read=np.array([0]), probability=np.array([[0.5], [0.4]]),
    )  # fmt: skip
    assert len(figure.axes) == 1


def test_paths_start_at_zero_and_the_panels_are_there() -> None:
    states = np.random.default_rng(0).normal(size=(3, 4, 6)).cumsum(1)
    weights = np.full((2, 4), 0.25)
    figure = plots.evolution(
        title="row 0", legend=["a", "b"], bars=(list("wxyz"), weights), hidden=2, states=states,
        read=np.arange(5), probability=np.full((2, 5), 0.5),
    )  # fmt: skip
    bars, path, _ = figure.axes
    assert len(bars.patches) == 8 and "2 older not shown" in bars.get_title()
    starts = {
        tuple(np.round([line.get_xdata()[0], line.get_ydata()[0]], 9))
        for line in path.lines
        if len(line.get_xdata()) == 5
    }
    assert len(starts) == 1
    assert "% of the path's extent apart" in path.get_title()
