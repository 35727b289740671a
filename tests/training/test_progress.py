"""A terminal sees one line that moves; a file sees none of it."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Task

from conftest import Settings
from deepinterest import experiment
from deepinterest.training import progress
from deepinterest.training.callbacks import Throughput

WORDS = ("trainer.batch_size=32", "trainer.max_epochs=2")


class Stream(io.StringIO):
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


class Terminal(Stream):
    terminal = True


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "EVERY", 0.02)


@pytest.mark.usefixtures("narrow")
def test_the_line_of_a_run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    config, plain = settings("dnn", tmp_path, *WORDS)
    metrics = experiment.run(config, plain)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("dnn ") and "samples/s" in line]
    assert lines
    assert all(len(line) <= 80 for line in shown.splitlines() if "samples/s" in line)  # not wrapped
    form = r"dnn .* (\d+)/(\d+) loss (0\.\d{4}) val/auc (0\.\d{4}) [1-9][\d,]+ samples/s (\d+:\d\d:\d\d left)? *"
    last = re.fullmatch(form, lines[-1])
    assert last, lines[-1]
    assert last[1] == last[2] == str(int(metrics["steps"]))  # of all epochs
    assert 0.5 < float(last[3]) < 0.8  # ln 2 is 0.69
    assert any(line.startswith("validation ") for line in re.split(r"[\r\n]+", shown))
    assert any(line.startswith("test ") for line in re.split(r"[\r\n]+", shown))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("quiet", ["file", "setting"])
def test_quiet(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet: str,
) -> None:
    """The tables of data and test stay, on standard output, and a file holds not one control character."""
    stream = Stream() if quiet == "file" else Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    more = () if quiet == "file" else ("trainer.progress=false",)
    config, plain = settings("dnn", tmp_path, *WORDS, "trainer.max_steps=20", *more)
    experiment.run(config, plain)
    assert not re.search(r"^validation |\rvalidation ", stream.getvalue(), re.MULTILINE)
    assert "loss 0" not in stream.getvalue()
    if quiet == "file":
        assert "\x1b" not in stream.getvalue()
        assert "\r" not in stream.getvalue()
    shown = capsys.readouterr().out
    assert "split_hash" in shown
    assert "gauc" in shown


@pytest.mark.usefixtures("narrow")
def test_a_line_at_each_validation_of_a_run_that_is_piped(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Stream())
    with caplog.at_level(logging.INFO, progress.__name__):
        metrics = experiment.run(*settings("dnn", tmp_path, *WORDS, "trainer.validate_every=60"))
        lines = [record.message for record in caplog.records if record.name == progress.__name__]
        steps = int(metrics["steps"])
        form = rf"step (\d+) of {steps}: loss 0\.\d{{4}}, val/auc 0\.\d{{4}}, [1-9][\d,]* rows/s, 0:\d\d:\d\d left"
        found = [re.fullmatch(form, line) for line in lines]
        assert all(found), lines
        assert [int(line[1]) for line in found if line] == list(range(60, steps + 1, 60))
        caplog.clear()
        experiment.run(*settings("dnn", tmp_path / "quiet", "trainer.progress=false"))
        assert not [record for record in caplog.records if record.name == progress.__name__]


def test_log_lines_stand_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler holds the stream it was made with; while the line is shown, it writes through the line's console."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "__stderr__", stream)
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        line = progress.ProgressLine("dnn", "val/auc", Throughput(), Console(file=stream, force_terminal=True))
        line._add("dnn", 10)
        assert handler.stream is not stream
        logging.getLogger("x").warning("dead embeddings")
        line._stop()
        assert handler.stream is stream
    finally:
        logging.getLogger().removeHandler(handler)
    assert re.search(r"(^|[\r\n]|\x1b\[2K)dead embeddings *\n", stream.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00 left"), (61.9, "0:01:01 left"), (36_000, "10:00:00 left"), (None, "")]
)
def test_time_left(seconds: float | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "time_remaining", property(lambda _: seconds))
    monkeypatch.setattr(Task, "finished", property(lambda _: False))
    task = Task(id=0, description="dnn", total=2, completed=1, _get_time=lambda: 0.0)  # type: ignore[arg-type]
    assert progress.Left().render(task).plain == text
