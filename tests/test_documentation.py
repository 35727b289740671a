"""The pages are real: README.md and docs/ name only commands that work, files that exist, and choices that there are.

Fast: every command is in one of the two tables below, composes, and gives its module options that it has; links lead
somewhere; lists are complete. Slow, `pytest -m slow tests/test_documentation.py`: every command of RUNS is run as
written, in a folder that has the files and runs that the pages name.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from deepinterest.config import SCHEMAS, CalibrationName, Tables, Task
from deepinterest.settings import implied, register, typed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent

# -------------------------------------------------------------------------------------------- what becomes of a command


@dataclass(frozen=True)
class Run:
    """How a command is run: as it is written, with `add` after it and `swap` replaced where it would take minutes."""

    add: str = ""
    swap: dict[str, str] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()  # files, by pattern, that must be there afterwards
    needs: str = ""  # a key of NEEDS: without it the test is skipped
    own: bool = False  # with the files of docs/models.md put in their places


FAST = Run("debug=fast", leaves=("outputs/runs/2*/metrics.json",))
SWEEP = Run("debug=fast", leaves=("outputs/sweeps/2*/0/metrics.json",))
COMPARE = Run(leaves=("outputs/compare.md", "outputs/compare.html"))
RUNNING = Run(leaves=("outputs/runs/2*/run.log",))  # of a command that is quick enough
TINY = "--users 400 --items 300 --categories 20"  # of the benchmarks' log
SECONDS = f"{TINY} --seconds 0.3"
SMALL_LOG = "data.users=200"

RUNS: dict[str, Run] = {
    # README.md
    'make run ARGS="model=din"': Run(swap={"model=din": "model=din debug=fast"}, needs="make"),
    "python run.py": FAST,
    "python run.py model=din optimizer.lr=0.001": FAST,
    "python run.py -m model=dnn,din,dien seed=1,2,3": SWEEP,
    "python run.py --help": Run(),
    'eval "$(python run.py -sc install=bash)"': Run("&& complete -p python"),
    "python run.py data=events data.path=clicks.csv data.columns.user=visitor data.columns.item=article "
    "data.columns.timestamp=when data.columns.category=section protocol=leave_last_out": FAST,
    "python run.py task=test checkpoint=outputs/runs/RUN/best.ckpt": Run(leaves=("outputs/runs/2*/metrics.json",)),
    "python run.py task=probe checkpoint=outputs/runs/RUN/best.ckpt": Run(
        "debug.fraction=0.05", leaves=("outputs/runs/2*/probes.json",)
    ),
    "python run.py task=explain checkpoint=outputs/runs/RUN/best.ckpt": Run(leaves=("outputs/runs/2*/explain.html",)),
    "python run.py task=predict checkpoint=outputs/runs/RUN/best.ckpt data.path=NEW.parquet output=scores.parquet": Run(
        leaves=("scores.parquet",)
    ),
    "python run.py resume=outputs/runs/RUN": Run("trainer.max_steps=8"),
    "python run.py debug=overfit": Run("model=dnn", leaves=("outputs/runs/2*/metrics.json",)),
    "python run.py sweep=optuna model=dien": Run(
        "debug=fast sweep.trials=2", leaves=("outputs/sweeps/2*/study.db",), needs="optuna"
    ),
    "python -m deepinterest.compare outputs/sweeps/SWEEP --baseline model=din": COMPARE,
    "python -m benchmarks.results --globo clicks.parquet --write": Run(
        "--models dnn,din --seeds 1 debug=fast", swap={" --write": ""},
        leaves=("outputs/results/completejourney/1/metrics.json", "outputs/results/globo_popularity/1/metrics.json"),
    ),
    "python -m deepinterest.reference check tests/reference/golden/*.npz": Run(),
    # docs/compare.md
    "python -m deepinterest.compare outputs/runs outputs/sweeps/SWEEP --by model,protocol.max_history "
    "--baseline model=din": COMPARE,
    # docs/data.md
    "python run.py data=events data.path=clicks.csv": FAST,
    "python run.py data=amazon data.reviews=reviews_Books.json.gz data.metadata=meta_Books.json.gz": FAST,
    "python run.py data=movielens data.version=1m 'data.label=\"rating>=4\"' protocol=labelled": FAST,
    "python run.py data=taobao data.path=UserBehavior.csv": FAST,
    "python run.py data=globo data.path=clicks.parquet protocol=leave_last_out": FAST,
    "python run.py data=synthetic": Run(f"debug=fast {SMALL_LOG}", leaves=FAST.leaves),
    "python run.py data=events data.path=clicks.csv data.columns.category=section "
    "'data.columns.item_features=[brand,price]' 'data.columns.context_features=[device]' "
    "'data.columns.numeric=[price]'": FAST,
    "python run.py data=events data.path=clicks.csv data.columns.label=click protocol=labelled": FAST,
    "python run.py task=data data=events data.path=clicks.csv": Run(leaves=("outputs/runs/2*/activity.png",)),
    "python run.py task=prepare data=events data.path=clicks.csv": Run(),
    "python -m benchmarks.taobao --events 20_000_000": Run(swap={"20_000_000": "20_000"}),
    "python -m benchmarks.amazon": Run("--reviews 3000 --rounds 1", needs="pandas"),
    # docs/debug.md
    "python run.py debug=fast": Run(leaves=("outputs/runs/2*/metrics.json",)),
    "python run.py debug=profile": Run(leaves=("outputs/runs/2*/profile.json",)),
    "python run.py debug=limit debug.fraction=0.05": Run("trainer.max_steps=6", leaves=FAST.leaves),
    "python run.py task=tune model=din": Run(
        "tune.batch_seconds=0.1 tune.lr_steps=40", leaves=("outputs/runs/2*/tune.json",)
    ),
    # docs/explain.md
    "python run.py task=explain checkpoint=outputs/runs/RUN/best.ckpt explain.count=3 explain.names=titles.csv": Run(
        leaves=("outputs/runs/2*/explain.html",)
    ),
    # docs/models.md
    "python run.py model=din": FAST,
    "python run.py model=augru model.hidden=64 model.attention_update=paper": FAST,
    "python run.py -m model=dnn,wide_deep,pnn,din,gru_attention,aigru,agru,augru,dien": SWEEP,
    "python run.py model=latest": dataclasses.replace(FAST, own=True),
    # docs/predict.md
    "python run.py model=dien calibration=platt": FAST,
    # docs/protocols.md
    "python run.py -m model=din seed=1,2,3 protocol.ties=order,strict trainer.threads=1": dataclasses.replace(
        SWEEP, swap={"seed=1,2,3": "seed=1"}
    ),
    "python run.py -m experiment=globo_time_matched data.path=clicks.parquet model=din seed=1,2,3 trainer.threads=1": (
        dataclasses.replace(SWEEP, swap={"seed=1,2,3": "seed=1"})
    ),
    "python run.py -m experiment=globo_popularity data.path=clicks.parquet model=din seed=1,2,3 trainer.threads=1": (
        dataclasses.replace(SWEEP, swap={"seed=1,2,3": "seed=1"})
    ),
    "python run.py experiment=globo_time_matched data.path=clicks.parquet seed=1 trainer.threads=1": FAST,
    "python run.py experiment=globo_time_matched data.path=clicks.parquet seed=1 trainer.threads=1 task=probe "
    "checkpoint=outputs/runs/RUN/best.ckpt": Run(
        swap={"runs/RUN": "runs/NEWS"}, leaves=("outputs/runs/2*/probes.json",)
    ),
    # docs/reference.md
    "python run.py -m experiment=reference data.path=FOLDER model=dnn,din,dien seed=1,2,3": Run(
        "debug=fast trainer.validate_every=3", swap={"seed=1,2,3": "seed=1"}, leaves=SWEEP.leaves
    ),
    "python run.py -m data=reference data.path=FOLDER protocol=last_event model=dnn,din,dien seed=1,2,3": Run(
        "debug=fast", swap={"seed=1,2,3": "seed=1"}, leaves=SWEEP.leaves
    ),
    "python run.py -m experiment=reference data.path=FOLDER trainer.max_epochs=2 trainer.validate_every=450 "
    "seed=1,2,3 quirks.padded_sum=false": Run(
        "debug=fast", swap={"trainer.validate_every=450": "trainer.validate_every=3"}, leaves=SWEEP.leaves
    ),
    "python -m deepinterest.compare outputs/sweeps/REFERENCE outputs/sweeps/CORRECTED "
    "--baseline outputs/sweeps/REFERENCE": COMPARE,
    "python run.py data=reference data.path=FOLDER_OR_TAR protocol=last_event": FAST,
    "python run.py task=export_reference data=events data.path=clicks.parquet data.core=5 protocol=last_event "
    "data.ties=file": Run(leaves=("outputs/runs/2*/layout/reviews-info",)),
    "python -m deepinterest.reference import FILE.npz --model dien --out best.ckpt": Run(leaves=("best.ckpt",)),
    "python -m deepinterest.reference export outputs/runs/RUN/best.ckpt FILE.npz": Run(
        swap={"runs/RUN": "runs/REFERENCE", "FILE": "NEW"}, leaves=("NEW.npz",)
    ),
    # docs/scale.md
    "python run.py trainer=ddp": dataclasses.replace(FAST, needs="gpu"),
    "python run.py trainer=ddp_cpu": FAST,
    "python run.py trainer=ddp embedding=sharded": dataclasses.replace(FAST, needs="gpus"),
    "python -m benchmarks.ddp": Run(f"{TINY} --steps 10 --batch-size 32"),
    "python -m benchmarks.sharding": Run("--rows 1000 --ids 50"),
    "python run.py task=prepare data=events 'data.path=logs/*.parquet' data.partitions=256 data.engine=ray "
    "data.ray_address=auto paths.cache=/shared/prepared": Run(
        swap={"logs/*.parquet": "clicks*.csv", "256 data.engine=ray data.ray_address=auto": "4", "/shared": "outputs"},
        leaves=("outputs/prepared/events-*/checksums.json",),
    ),
    "python -m benchmarks.partitions --events 8_000_000 --partitions 32 --ray": Run(
        swap={"8_000_000 --partitions 32 --ray": "20_000 --partitions 3"}
    ),
    # docs/speed.md
    "python -m deepinterest.benchmark training --model dien": Run(SECONDS),
    "python -m deepinterest.benchmark training --model dien --parts": Run(SECONDS),
    "python -m deepinterest.benchmark training --through-lightning": Run(SECONDS),
    "python -m deepinterest.benchmark training --scoring --candidates 200 --lengths 50 --batch-size 4000": Run(SECONDS),
    "python -m deepinterest.benchmark evaluation": Run(f"{SECONDS} --scores 1000"),
    "python -m deepinterest.benchmark loading": Run(SECONDS),
    "python -m deepinterest.benchmark optimizer": Run(SECONDS),
    "python -m deepinterest.benchmark kernels": Run(f"{TINY} --hidden 8 --batch-size 16 --lengths 5"),
    "python -m deepinterest.benchmark threads": Run(f"{SECONDS} --rounds 1"),
    "python -m deepinterest.benchmark gpu": Run(f"{SECONDS} --batch-sizes 128 --hidden 16", needs="gpu"),
    "python -m pytest tests/kernels/test_gpu.py": Run(needs="gpu"),
    # docs/wandb.md
    "wandb leet inspect --json outputs/wandb": Run(),
    "python -m deepinterest.dashboard --entity me": Run(
        leaves=("outputs/wandb_workspace.json",), needs="wandb_workspaces"
    ),
    "python -m deepinterest.compare outputs/sweeps/SWEEP": COMPARE,
    # docs/sweeps.md
    "python run.py -m data=globo experiment=globo_popularity,globo_time_matched data.path=clicks.parquet "
    "model=dnn,din": SWEEP,
    "python run.py sweep=joblib model=dnn,din seed=1,2": Run("debug=fast", leaves=SWEEP.leaves, needs="joblib"),
    "python run.py sweep=slurm model=dnn,din seed=1,2": Run(
        "debug=fast hydra/launcher=submitit_local", swap={"seed=1,2": "seed=1"}, leaves=SWEEP.leaves, needs="submitit"
    ),
    "python run.py sweep=ray model=dnn,din seed=1,2": Run("debug=fast", leaves=SWEEP.leaves, needs="ray"),
    "python run.py -m model=dnn,din,dien seed=1,2,3 sweep.resume=outputs/sweeps/2026-11-24_13-09-08": Run(
        "debug=fast", leaves=("outputs/sweeps/2026-11-24_13-09-08/8/metrics.json",)
    ),
    "python run.py sweep=optuna model=augru sweep.trials=50 'model.hidden=range(16,65)' "
    "'optimizer.lr=tag(log,interval(1e-4,1e-2))'": Run(
        "debug=fast", swap={"sweep.trials=50": "sweep.trials=2"}, leaves=("outputs/sweeps/2*/experiment/best.yaml",),
        needs="optuna",
    ),
    "python run.py --config-dir outputs/sweeps/2026-11-24_15-20-31 experiment=best seed=2": Run(
        "debug=fast", leaves=FAST.leaves, needs="optuna"
    ),
}  # fmt: skip

NOT_RUN: dict[str, str] = {
    "pip install -e .": "downloads",
    'pip install -e ".[sweep]"': "downloads",
    'pip install -e ".[bench]"': "downloads",
    "make setup": "downloads",
    "make lint": "looks at the repository, not at a user's work; it runs before every commit",
    "make test": "it is the suite that this file belongs to",
    ".venv/bin/pre-commit install": "changes the repository's hooks",
    "pytest -m slow tests/test_documentation.py": "it is this file",
    "pytest -m slow tests/test_sweep.py": "a suite of its own",
    "pytest -m slow tests/data/test_partitions.py": "a suite of its own",
    'pip install -e ".[ray]"': "downloads",
    "torchrun --nproc-per-node 8 run.py trainer=ddp": "needs GPUs; tests/training/test_ddp.py has three processes",
    "srun --ntasks-per-node=8 python run.py trainer=slurm": "needs SLURM; tests/training/test_ddp.py plays two tasks",
    "python -m benchmarks.soak --minutes 120": "two hours; tests/test_soak.py runs a short one",
    'pip install -e ".[dashboard]"': "downloads",
    "wandb leet outputs/wandb": "wants a terminal and a user in front of it",
    "wandb login": "wants a key",
    "wandb sync outputs/wandb/offline-run-20261124_150251-290kf34d": "uploads, so wants a key",
    "wandb sweep conf/sweep/wandb.yaml": "wants a key; tests/test_wandb_sweep.py runs it against a small server",
    "wandb agent --forward-signals ENTITY/deepinterest/SWEEP": "wants a key; tests/test_wandb_sweep.py as well",
    "python -m benchmarks.compare_peers --model dien": "installs four other libraries, 1.2 GB",
    "python run.py resume=RUN_FOLDER": "the README's command is run",
    "pytest -m slow tests/nn/test_sharded.py": "a suite of its own",
    "python -m deepinterest.compare FOLDER": "the README's command is run",
    "python -m deepinterest.sweep.processes FILE": "how jobs of a sweep are started, no command of a user",
}

NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (torch.cuda.is_available, "needs a GPU"),
    "gpus": (lambda: torch.cuda.device_count() > 1, "needs two GPUs"),
    "make": (lambda: bool(shutil.which("make")) and sys.prefix != sys.base_prefix, "needs make and an environment"),
    **{
        name: (lambda name=name: importlib.util.find_spec(name) is not None, f"{name} is not installed")
        for name in ("optuna", "joblib", "submitit", "ray", "pandas", "wandb_workspaces")
    },
}

# ---------------------------------------------------------------------------------------------------- reading the pages

WORDS = "python|make|pip|pytest|wandb|torchrun|ray|sbatch|srun|eval|export|git|curl|docker|\\.venv/bin/pre-commit"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{WORDS})(?: |$)")


@dataclass(frozen=True)
class Block:
    page: Path
    language: str  # of a fence; "" of an indented block
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.replace("\\\n", " ").splitlines()


@cache
def blocks() -> list[Block]:
    """Code blocks of all pages: fenced ones, and those indented by four spaces below a blank line or a heading."""
    found = []
    for page in PAGES:
        fence: str | None = None
        held: list[str] = []
        before = ""

        def close(language: str, page: Path = page, held: list[str] = held) -> None:
            if any(held):
                found.append(Block(page, language, "\n".join(held).rstrip() + "\n"))
            held.clear()

        for line in [*page.read_text().splitlines(), "the end"]:
            if fence is not None:
                if line.startswith("```"):
                    close(fence)
                    fence = None
                else:
                    held.append(line)
            elif line.startswith("```"):
                close("")
                fence = line[3:].strip()
            elif line.startswith("    ") and (held or not before or before.startswith("#")):
                held.append(line[4:])
            elif not line and held:
                held.append("")
            else:
                close("")
            before = line
        assert fence is None, f"{page.name}: a ``` is not closed"
    return found


def plain(line: str) -> str:
    """A command without its comment and its spare spaces."""
    return re.sub(r"\s+", " ", re.sub(r"(^|\s)# .*$", "", line)).strip()


def of_shell(block: Block) -> bool:
    return block.language in ("bash", "sh", "shell", "console")


@cache
def commands() -> dict[str, list[str]]:
    """Every command, of code blocks and within sentences, with the pages that have it."""
    found: dict[str, list[str]] = {}
    for block in blocks():
        for line in map(plain, block.lines):
            if line and (of_shell(block) or (not block.language and COMMAND.match(line))):
                found.setdefault(line, []).append(block.page.name)
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`]+)`", text):
            line = plain(span)
            if COMMAND.match(line) and " " in line and not re.search(r"[…|]|\.\.\.", line):
                found.setdefault(line, []).append(page.name)
    return found


def codes() -> list[Block]:
    """Blocks of Python."""
    return [b for b in blocks() if b.language == "python" or re.match(r"(from|import) \w", b.text)]


def files() -> dict[str, str]:
    """The files of docs/models.md, whose first line says where they belong."""
    placed = [b for b in blocks() if b.page.name == "models.md" and re.match(r"# [\w/.]+\.(py|yaml)\n", b.text)]
    return {b.text.split("\n", 1)[0][2:]: b.text for b in placed}


# ----------------------------------------------------------------------------------------------------------------- fast


def test_every_command_is_known() -> None:
    """A new command belongs into RUNS, or with its reason into NOT_RUN; one that is gone leaves them."""
    assert set(RUNS).isdisjoint(NOT_RUN)
    known = set(RUNS) | set(NOT_RUN)
    new = {command: pages for command, pages in commands().items() if command not in known}
    assert not new
    gone = known - set(commands())
    assert not gone


def of_run_py(command: str) -> list[str] | None:
    """The words behind run.py; None where a command has none."""
    words = shlex.split(command.removeprefix('eval "$(').removesuffix(')"'))
    place = next((place for place, word in enumerate(words) if word == "run.py"), None)
    return None if place is None else words[place + 1 :]


def jobs(words: list[str]) -> Iterator[list[str]]:
    """Settings of as many jobs as the longest list of a sweep has values, so that each value is in one of them."""
    overrides = OverridesParser.create().parse_overrides(words)
    columns: list[list[str]] = []
    for override in overrides:
        values = override.value()
        if not override.is_sweep_override():
            columns.append([str(override.input_line)])
        elif isinstance(values, IntervalSweep):
            columns.append([f"{override.key_or_group}={end}" for end in (values.start, values.end)])
        else:
            texts = [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]
            columns.append(texts if len(texts) < 12 else [texts[0], texts[-1]])
    for job in range(max(map(len, columns), default=1)):
        yield [column[job % len(column)] for column in columns]


COMPOSED = [command for command in commands() if of_run_py(command) is not None and "--config-dir" not in command]


@pytest.mark.parametrize("command", COMPOSED)
def test_settings_compose(command: str) -> None:
    """Each `run.py` with settings that there are, within their ranges."""
    words = of_run_py(command)
    assert words is not None
    launcher = next((NEEDS[name] for name in ("joblib", "ray") if f"sweep={name}" in words), None)
    if "sweep=slurm" in words:
        launcher = NEEDS["submitit"]
    if launcher and not launcher[0]():
        pytest.skip(launcher[1])
    flags = {"-m", "--multirun", "--help", "-sc", "install=bash"}
    if "model=latest" in words:  # the page's own
        words.remove("model=latest")
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for job in jobs([word for word in implied(words) if word not in flags]):
            typed(compose("config", ["paths.run=somewhere", *job]))


class Parsed(BaseException):
    """A command line was understood: nothing in a module catches it."""


OF_MODULES = [command for command in commands() if re.match(r"python -m (deepinterest|benchmarks)\b", command)]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # another test had imported it
@pytest.mark.parametrize("command", OF_MODULES)
def test_modules_know_their_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own parser reads the command line, and nothing is run."""
    from argparse import ArgumentParser

    module, *arguments = shlex.split(command)[2:]
    monkeypatch.syspath_prepend(str(ROOT))
    assert importlib.util.find_spec(module) is not None
    if module == "deepinterest.sweep.processes":
        return  # takes a file and nothing else
    parse = ArgumentParser.parse_args

    def reading(self: ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", reading)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_other_commands_name_what_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = dict.fromkeys(("make", "pip", "pytest"), 0)
    for command in commands():
        words = shlex.split(command)
        if words[:3] == ["python", "-m", "pytest"]:
            words = words[2:]
        found[words[0]] = found.get(words[0], 0) + 1
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), command
        if words[0] == "pytest":
            assert [(ROOT / word).exists() for word in words if word.startswith("tests/")] == [True], command
        if words[0] == "pip":
            for named in re.findall(r"\[([\w,]+)\]", command):
                assert set(named.split(",")) <= set(extras), command
    assert all(found.values())


def test_wandb_has_its_commands() -> None:
    from wandb.cli.cli import cli

    for command in commands():
        words = shlex.split(command)
        if words[0] == "wandb":
            assert words[1] in cli.commands, command


def test_python_blocks_are_python() -> None:
    assert {block.page.name for block in codes()} >= {"models.md", "predict.md"}
    for block in codes():
        ast.parse(block.text)


def test_links_and_files_exist() -> None:
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / path).exists(), f"{page.name}: {path}"
        for path in re.findall(r"`((?:src|conf|tests|benchmarks|docs)/[\w/.]+)`", text):
            assert path in files() or any(ROOT.glob(path.replace("MODEL", "*"))), f"{page.name}: {path}"
        for path in re.findall(
            r"`((?:data|models|nn|kernels|training|report|serving|sweep|compare|reference|benchmark)/[\w/]*\w\.py)`",
            text,
        ):
            assert (ROOT / "src" / "deepinterest" / path).exists(), f"{page.name}: {path}"


def test_the_index_has_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in readme, page.name


def test_the_lists_of_choices_are_complete() -> None:
    readme = (ROOT / "README.md").read_text()
    groups = {
        folder.name: {path.stem for path in folder.glob("*.yaml")}
        for folder in (ROOT / "conf").iterdir()
        if folder.is_dir()
    }
    groups["sweep"].discard("wandb")  # the file of `wandb sweep`, no choice of ours
    for group, names in (("task", Task), ("calibration", CalibrationName), ("embedding", Tables)):
        groups[group] = set(names.__members__)
    for group, choices in groups.items():
        row = re.search(rf"^\| `{group}` \|(.*)\|.*\|$", readme, flags=re.MULTILINE)
        assert row, f"README's table of choices has no {group}"
        assert set(re.findall(r"`(\w+)`", row[1])) == choices, group


def test_the_page_of_models_has_each_model_and_setting() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    settings = re.search(r"^## Settings\n(.*?)^## ", page, flags=re.MULTILINE | re.DOTALL)
    assert settings
    for name, schema in SCHEMAS["model"].items():
        assert f"\n## {name}\n" in page
        assert f"`{name}.py`" in page
        for entry in dataclasses.fields(schema):
            assert entry.name == "name" or f"`model.{entry.name}" in settings[1], entry.name


def test_the_notebook_of_models() -> None:
    (code,) = (block for block in codes() if "DIENConfig(hidden=8)" in block.text)
    space: dict[str, Any] = {}
    exec(compile(code.text, "docs/models.md", "exec"), space)
    assert space["weights"].shape == (3 + 3 + 1,)
    assert torch.allclose(space["weights"].sum(), torch.tensor(3.0))


def test_the_network_of_ones_own_learns() -> None:
    from deepinterest.config import ModelConfig
    from deepinterest.data.batch import Batch
    from deepinterest.nn.embedding import Features

    space: dict[str, Any] = {}
    text = files()["src/deepinterest/models/latest.py"]
    exec(compile(text, "docs/models.md", "exec"), space)
    assert len([line for line in "".join(files().values()).splitlines() if line and line[0] != "#"]) <= 30
    items = torch.tensor([[0, 0], [1, 1], [2, 1], [3, 2]])
    torch.manual_seed(0)
    network = space["Latest"](Features(items, [4, 3], torch.tensor([[0], [1]]), [2]), ModelConfig(name="latest"))
    batch = Batch(
        torch.tensor([1, 2, 1]), torch.tensor([0, 2, 3, 3]), torch.ones(3, dtype=torch.int64),
        torch.tensor([3, 2, 1, 3]), torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 0.0, 1.0, 0.0]),
    )  # fmt: skip
    logit = network(batch).logit
    assert logit.shape == (4,)
    torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.label).backward()
    assert all(p.grad is not None and bool(p.grad.coalesce().values().isfinite().all() if p.grad.is_sparse
               else p.grad.isfinite().all()) for p in network.parameters())  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- slow


def log(users: int = 400, items: int = 60, events: int = 16) -> pl.DataFrame:
    """Clicks in the columns that the pages name; a user likes one of three sections."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), events)
    item = (rng.integers(items // 3, size=len(user)) * 3 + np.where(rng.random(len(user)) < 0.8, user % 3, 0)) % items
    time = rng.integers(10 * 86_400, size=len(user)) * 1000 + 1_507_000_000_000
    return pl.DataFrame(
        {
            "user": user, "item": item, "timestamp": time, "category": item % 3,
            "visitor": [f"v{u}" for u in user], "article": [f"a{i}" for i in item], "when": time,
            "section": [f"s{i % 3}" for i in item], "brand": [f"b{i % 7}" for i in item], "price": item * 1.5,
            "device": rng.choice(["phone", "desk"], len(user)), "click": rng.integers(2, size=len(user)),
        }
    )  # fmt: skip


def call(command: str, folder: Path, home: Path, **more: str) -> str:
    """Run a command line in `folder` and give back what it printed; what is kept between runs lies in `home`."""
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(home),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "COLUMNS": "160",
        **more,
    }
    answer = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, f"{command}\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
    assert "Traceback" not in answer.stdout + answer.stderr, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with the files and runs that the pages name, and a place for the cache."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import amazon

    folder, home = tmp_path_factory.mktemp("pages"), tmp_path_factory.mktemp("home")
    for name in ("run.py", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("conf", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("src", "tests"):
        (folder / name).symlink_to(ROOT / name)

    clicks = log()
    clicks.write_csv(folder / "clicks.csv")
    clicks.select("user", "item", "timestamp", "category").write_parquet(folder / "clicks.parquet")
    lines = clicks.select("user", "item", "category", b=pl.lit("pv"), t=pl.col("timestamp") // 1000 + 4_600_000)
    lines.write_csv(folder / "UserBehavior.csv", include_header=False)
    amazon.generate(folder, 3_000)
    ratings = clicks.unique(["user", "item"], maintain_order=True)
    place = home / "deepinterest" / "raw" / "movielens" / "ml-1m.zip"
    place.parent.mkdir(parents=True)
    with zipfile.ZipFile(place, "w") as archive:
        rows = ratings.select("user", "item", pl.col("click") * 2 + 3, pl.col("timestamp") // 1000).iter_rows()
        archive.writestr("ml-1m/ratings.dat", "".join("::".join(map(str, row)) + "\n" for row in rows))
        films = sorted(ratings["item"].unique().to_list())
        archive.writestr("ml-1m/movies.dat", "".join(f"{film}::Film {film}::Comedy\n" for film in films))

    def run(words: str, where: str) -> None:
        key = "sweep" if where.startswith("sweeps") else "run"
        call(f"python run.py {words} debug=fast hydra.{key}.dir=outputs/{where}", folder, home)

    run("logger=wandb", "runs/RUN")
    vocabulary = pl.read_parquet(folder / "outputs" / "runs" / "RUN" / "vocabulary" / "items.parquet")
    names = vocabulary[vocabulary.columns[0]].drop_nulls().head(40)
    pl.DataFrame({"user": [1] * len(names), "item": names}).write_parquet(folder / "NEW.parquet")
    pl.DataFrame({"item": names, "title": names.str.to_titlecase()}).write_csv(folder / "titles.csv")
    run("experiment=globo_time_matched data.path=clicks.parquet", "runs/NEWS")
    run(
        "task=export_reference data=events data.path=clicks.parquet data.core=5 protocol=last_event data.ties=file",
        "runs/LAYOUT",
    )
    shutil.move(folder / "outputs" / "runs" / "LAYOUT" / "layout", folder / "FOLDER")
    shutil.rmtree(folder / "outputs" / "runs" / "LAYOUT")
    (folder / "FOLDER_OR_TAR").symlink_to("FOLDER")
    reference = "experiment=reference data.path=FOLDER trainer.validate_every=3"
    run(reference, "runs/REFERENCE")
    call("python -m deepinterest.reference export outputs/runs/REFERENCE/best.ckpt FILE.npz", folder, home)
    run("-m model=dnn,din,dien seed=1,2,3", "sweeps/SWEEP")
    shutil.copytree(folder / "outputs" / "sweeps" / "SWEEP", folder / "outputs" / "sweeps" / "2026-11-24_13-09-08")
    shutil.rmtree(folder / "outputs" / "sweeps" / "2026-11-24_13-09-08" / "8")
    run(f"-m {reference} model=dien seed=1,2,3", "sweeps/REFERENCE")
    run(f"-m {reference} model=dien seed=1,2,3 quirks.padded_sum=false", "sweeps/CORRECTED")
    if NEEDS["optuna"][0]():
        run("sweep=optuna model=din sweep.trials=1", "sweeps/2026-11-24_15-20-31")
    return folder, home


@pytest.fixture
def place(prepared: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder of its own for each command: the same files, and the runs as copies."""
    folder, _ = prepared
    for path in folder.iterdir():
        if path.name == "outputs":
            shutil.copytree(path, tmp_path / "outputs", symlinks=True)  # wandb marks the latest run by one
        else:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def environment_of_make(folder: Path) -> None:
    """A .venv that make takes for installed: this process's own."""
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if not path.name.startswith("."):
            (folder / ".venv" / path.name).symlink_to(path)
    for name in (".run", ".dev"):
        (folder / ".venv" / name).touch()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_command_runs(command: str, prepared: tuple[Path, Path], place: Path) -> None:
    run = RUNS[command]
    if run.needs and not NEEDS[run.needs][0]():
        pytest.skip(NEEDS[run.needs][1])
    written = command
    for text, other in run.swap.items():
        assert text in written, f"{text} is not in {command}"
        written = written.replace(text, other)
    more = {}
    if command.startswith("make "):
        environment_of_make(place)
    if run.own:
        (place / "src").unlink()
        shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        (place / "conf").unlink()
        shutil.copytree(ROOT / "conf", place / "conf")
        for name, text in files().items():
            with (place / name).open("a") as file:
                file.write(f"\n\n{text}")
        more = {"PYTHONPATH": str(place / "src")}
    before = {path for pattern in run.leaves for path in place.glob(pattern)}
    call(f"{written} {run.add}".strip(), place, prepared[1], **more)
    for pattern in run.leaves:
        assert set(place.glob(pattern)) - before, f"{command} left no {pattern}"


@pytest.mark.slow
def test_code_of_the_pages_runs(prepared: tuple[Path, Path], place: Path) -> None:
    for block in codes():
        if re.match(r"# [\w/.]+\n", block.text):
            continue  # a file of its own: `model=latest` runs it
        (place / "code.py").write_text(block.text)
        call("python code.py", place, prepared[1])


@pytest.mark.slow
def test_predictions_of_the_page(prepared: tuple[Path, Path], place: Path) -> None:
    """What docs/predict.md says of the file: its rows in their order, and a probability each."""
    folder, home = prepared
    (command,) = (command for command in RUNS if "task=predict" in command)
    call(command, place, home)
    new, scores = pl.read_parquet(folder / "NEW.parquet"), pl.read_parquet(place / "scores.parquet")
    assert scores.drop("probability").equals(new)
    assert scores["probability"].is_between(0, 1).all()
    assert json.loads((place / "outputs" / "runs" / "RUN" / "metrics.json").read_text())["test/auc"] > 0
