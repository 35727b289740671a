"""Settings: every file in conf/ composes, and each mistake is one sentence that names the key."""

from __future__ import annotations

import dataclasses
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deepinterest.config import SCHEMAS, Distribution, Exclude, ExperimentConfig, HistoryTies, Quirks
from deepinterest.errors import UserError
from deepinterest.settings import implied, register, typed

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
OTHERS = [CONF / "sweep" / "wandb.yaml"]  # the file of `wandb sweep`, another command: tests/test_wandb_sweep.py
GROUP_FILES = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path not in OTHERS]


def load(*overrides: str) -> ExperimentConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", ["paths.run=somewhere", *overrides]))


def call(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The result, and the CPU time it took: other work on the machine makes that hardly longer."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


LAUNCHERS = {"joblib": "joblib", "slurm": "submitit", "ray": "ray"}  # extras of their own


@pytest.mark.parametrize(("group", "name"), GROUP_FILES)
def test_every_file_composes(group: str, name: str) -> None:
    if group == "sweep" and name in LAUNCHERS:
        pytest.importorskip(f"hydra_plugins.hydra_{LAUNCHERS[name]}_launcher")
    needs_path = group == "experiment" or name in ("events", "reference")
    config = load(f"{group}={name}", *(["data.path=clicks.parquet"] if needs_path else []))
    for key in SCHEMAS:
        assert dataclasses.is_dataclass(getattr(config, key))
    if group in ("data", "protocol", "model"):
        assert type(getattr(config, group)) is SCHEMAS[group][name]
        changed = {"path": "clicks.parquet"} if needs_path else {}
        if group == "protocol":  # by data=completejourney
            changed = {"ties": HistoryTies.order}
        assert getattr(config, group) == SCHEMAS[group][name](**changed)


@pytest.mark.parametrize(
    ("arguments", "ties"),
    [
        ((), "order"),
        (("protocol=leave_last_out",), "order"),
        (("protocol.ties=strict",), "strict"),
        (("data=synthetic",), "strict"),
        (("data=synthetic", "protocol=leave_last_out"), "strict"),
        (("data=synthetic", "protocol=last_event"), "order"),
        (("data=events", "data.path=x.csv", "protocol=labelled"), "strict"),
        (("experiment=globo_popularity", "data.path=x.csv"), "strict"),
    ],
)
def test_the_source_sets_the_default_of_ties(arguments: tuple[str, ...], ties: str) -> None:
    assert load(*arguments).protocol.ties.name == ties


def test_labelled_histories_are_strict() -> None:
    with pytest.raises(UserError, match=r"protocol\.ties=order is not possible with protocol=labelled"):
        load("data=events", "data.path=x.csv", "protocol=labelled", "protocol.ties=order")


def test_every_schema_has_a_file() -> None:
    for group in ("data", "protocol", "model"):
        assert {path.stem for path in (CONF / group).glob("*.yaml")} == set(SCHEMAS[group])


def test_experiments_state_what_they_change() -> None:
    config = load("experiment=globo_time_matched", "data.path=a.csv")
    assert (config.data.name, config.data.path, config.data.limit_users) == ("globo", "a.csv", 60000)
    assert config.protocol.name == "leave_last_out"
    assert config.protocol.negatives.distribution is Distribution.time_matched
    targets = config.protocol.targets_per_user
    assert (targets.train, targets.validation, targets.test) == (10, 1, 1)
    for path in (CONF / "experiment").glob("*.yaml"):
        assert f"# python run.py experiment={path.stem} data.path=" in path.read_text()


def test_reference_switches_every_quirk() -> None:
    names = [field.name for field in dataclasses.fields(Quirks)]
    assert load().quirks == Quirks()
    assert load("reference=true").quirks == Quirks(**dict.fromkeys(names, True))
    for name in names:
        assert load("reference=true", f"quirks.{name}=false").quirks == Quirks(
            **{other: other != name for other in names}
        )
        assert load(f"quirks.{name}=true").quirks == Quirks(**{name: True})
    pools = load("quirks.whole_pool=true", "protocol=last_event")
    assert pools.protocol.negatives.whole_pool and pools.model.aux_negatives.whole_pool


def test_auxiliary_negatives_are_drawn_as_the_targets() -> None:
    matched = load("protocol.negatives.distribution=time_matched", "protocol.negatives.time_window=0.01").model
    assert matched.aux_negatives.distribution is Distribution.time_matched
    assert (matched.aux_negatives.time_window, matched.aux_negatives.exclude) == (0.01, Exclude.positive)
    assert load("experiment=globo_time_matched").model.aux_negatives.distribution is Distribution.time_matched
    own = load("experiment=globo_time_matched", "model.aux_negatives.distribution=popularity")
    assert own.model.aux_negatives.distribution is Distribution.popularity
    assert own.protocol.negatives.distribution is Distribution.time_matched
    for words in ((), ("protocol=labelled",), ("experiment=reference", "data.path=layout")):
        assert load(*words).model.aux_negatives.distribution is Distribution.popularity


def test_the_published_experiment() -> None:
    config = load("experiment=reference", "data.path=layout")
    assert config.reference and config.quirks.length_sorted and config.data.name == "reference"
    assert (config.protocol.name, config.protocol.max_history) == ("last_event", 100)
    assert config.protocol.negatives.exclude is Exclude.positive
    assert (config.optimizer.lr, config.optimizer.lr_decay, config.optimizer.eps) == (1e-3, 0.5, 1e-8)
    trainer = config.trainer
    assert (trainer.batch_size, trainer.eval_batch_size, trainer.max_epochs) == (128, 128, 3)
    assert (trainer.validate_every, trainer.patience) == (100, None)


MISTAKES = [
    ("model.lrr=0.1", ["model.lrr", "hidden, mlp"]),
    ("model.lr=0.1", ["model.lr", "did you mean optimizer.lr?"]),
    ("model.hiden=3", ["model.hiden", "did you mean hidden?"]),
    ("modle.hidden=3", ["modle.hidden", "did you mean model?"]),
    ("modle=dien", ["modle", "did you mean model?"]),
    ("model=diem", ["model=diem", "dien, din, dnn", "did you mean dien?"]),
    ("experiment=globo", ["experiment=globo", "globo_popularity"]),
    ("+model.lrr=0.1", ["model.lrr", "known are"]),
    ("+extra=1", ["extra", "known are"]),
    ("model.hidden=abc", ["model.hidden=abc", "a whole number"]),
    ("model.mlp=[200,x]", ["model.mlp[1]=x", "a whole number"]),
    ("optimizer.lr=fast", ["optimizer.lr=fast", "a number"]),
    ("model.reset_gate=befor", ["model.reset_gate=befor", "before, after", "did you mean before?"]),
    ("protocol.negatives.distribution=popular", ["protocol.negatives.distribution", "did you mean popularity?"]),
    ("seed=1,2", ["seed=1,2", "--multirun"]),
    ("foo=[", ["foo=["]),
    ("data.label=rating>=4", ["'data.label=rating>=4'", """as in 'data.label="rating>=4"'"""]),
    ("model.hidden=0", ["model.hidden=0", "at least 1"]),
    ("optimizer.lr=0", ["optimizer.lr=0", "more than 0"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "more than 0"]),
    ("optimizer.lr=inf", ["optimizer.lr=inf", "more than 0"]),
    ("optimizer.betas=[0.9,1.0]", ["optimizer.betas[1]=1.0", "at least 0 and at most 0.999999"]),
    ("model.mlp=[]", ["model.mlp=[]", "at least one"]),
    ("protocol.train_share=0.95", ["protocol.train_share=0.95", "less than 1"]),
    ("logger.name=wnadb", ["logger.name=wnadb", "did you mean wandb?"]),
    ("trainer.devices=many", ["trainer.devices=many", "-1 for all"]),
    ("trainer.threads=9999", ["trainer.threads=9999 is out of range", "this process may run on", "Give at most"]),
    ("trainer.devices=0", ["trainer.devices=0", "-1 for all"]),
    ("task=test", ["checkpoint is missing"]),
    ("data=events", ["data.path is missing", "event file"]),
    ("data=reference", ["data.path is missing", "published layout"]),
    ("quirks.batch_dise=true", ["quirks.batch_dise", "did you mean batch_dice?"]),
    ("sweep=wandb", ["sweep=wandb is no choice", "`wandb sweep conf/sweep/wandb.yaml`"]),
]


@pytest.mark.parametrize(("argument", "words"), MISTAKES)
def test_mistakes_are_one_quick_sentence(argument: str, words: list[str], tmp_path: Path) -> None:
    result, seconds = call(tmp_path, argument)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert seconds < 4


def test_mistake_in_a_sweep_stops_it_before_its_first_job(tmp_path: Path) -> None:
    result, _ = call(tmp_path, "-m", "model.hidden=8,0,-1")
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "Traceback" not in output
    assert "error: model.hidden=0 is out of range" in output
    assert list(tmp_path.iterdir()) == []


def test_resolved_settings_are_shown(tmp_path: Path) -> None:
    result, _ = call(tmp_path, "--cfg", "job", "--resolve", "reference=true")
    assert result.returncode == 0, result.stderr
    assert "${" not in result.stdout
    shown = OmegaConf.create(result.stdout)
    assert shown.quirks.batch_dice is True
    assert shown.paths.run.startswith(str(tmp_path / "outputs" / "runs"))
    assert list(tmp_path.iterdir()) == []


FAKE = f"""
import json, os, runpy, sys, types
from deepinterest.folders import RunFolder
def run(config, resolved):
    with RunFolder(config, resolved) as place:
        place.take()
        if config.seed == 2:
            raise RuntimeError("out of luck")
        assert resolved["task"] == "train"
        metrics = {{"test/auc": 0.5 + config.seed / 10}}
        open(os.path.join(config.paths.run, "metrics.json"), "w").write(json.dumps(metrics))
        return metrics
sys.modules["deepinterest.experiment"] = types.SimpleNamespace(run=run)
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path({str(ROOT / "run.py")!r}, run_name="__main__")
"""


def call_fake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.py with a training that takes no time, and fails for seed 2."""
    return subprocess.run([sys.executable, "-c", FAKE, *arguments], cwd=folder, capture_output=True, text=True)


def test_last_line_is_the_run_folder(tmp_path: Path) -> None:
    result = call_fake(tmp_path)
    assert result.returncode == 0, result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("run folder: outputs/runs/")
    assert last.endswith("_completejourney_dien_s1")
    assert (tmp_path / last.removeprefix("run folder: ") / ".hydra" / "overrides.yaml").exists()


def test_sweep_shows_a_table_and_its_folder(tmp_path: Path) -> None:
    result = call_fake(tmp_path, "-m", "seed=1,3", "model.mlp=[8,4],[16]", "model=dnn")
    assert result.returncode == 0, result.stderr
    table = result.stdout.split("┏")[-1]
    assert "seed=1 model.mlp=[8,4] " in table
    assert "model=dnn" not in table  # what all jobs share says nothing
    assert "0.6000" in result.stdout
    assert "0.8000" in result.stdout
    assert result.stdout.count("sweep folder:") == 1
    assert "run folder:" not in result.stdout
    last = result.stdout.strip().splitlines()[-1]
    assert last.startswith("sweep folder: outputs/sweeps/")
    folder = tmp_path / last.removeprefix("sweep folder: ")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]


def test_failed_job_of_a_sweep_is_named(tmp_path: Path) -> None:
    result = call_fake(tmp_path, "-m", "seed=1,2,3")
    assert result.returncode == 1
    assert (result.stdout + result.stderr).count("RuntimeError: out of luck") == 1
    assert "failed: 1 (seed=2)" in result.stdout
    assert "0.8000" in result.stdout
    assert result.stdout.strip().splitlines()[-1].startswith("sweep folder: ")


def test_failed_run_keeps_its_traceback(tmp_path: Path) -> None:
    result = call_fake(tmp_path, "seed=2")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: out of luck" in result.stderr
    assert "run folder:" not in result.stdout


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    code = "from deepinterest.errors import sentences\nwith sentences():\n    1 / 0"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
    assert "Traceback" in result.stderr


def test_help_is_quick_and_lists_all_choices(tmp_path: Path) -> None:
    result, seconds = call(tmp_path, "--help")
    assert result.returncode == 0
    assert seconds < 2.5
    assert "schema" not in result.stdout.split("Settings:")[0]
    for group, name in GROUP_FILES:
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(f"{group} "))
        assert name in line


def test_settings_need_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['run.py', '--help']; sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
        "heavy = {'torch', 'lightning', 'polars', 'wandb', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_cfg_job_and_completion(tmp_path: Path) -> None:
    result, _ = call(tmp_path, "--cfg", "job", "model=din")
    assert result.returncode == 0
    assert "name: din" in result.stdout
    result, _ = call(tmp_path, "-sc", "install=bash")
    assert result.returncode == 0
    assert "complete" in result.stdout


def test_interpolations_and_null_are_resolved() -> None:
    config = load(
        "model.hidden=${model.embedding_dim}", "protocol.targets_per_user.train=null", "trainer.devices='0,1'"
    )
    assert config.model.hidden == 18
    assert config.protocol.targets_per_user.train is None
    assert config.trainer.devices == "0,1"


def test_range_errors_name_the_full_key() -> None:
    with pytest.raises(UserError, match=r"model\.aux_negatives\.per_positive=0 is out of range: it must be at least 1"):
        load("model.aux_negatives.per_positive=0")


def test_one_value_is_a_list_of_one() -> None:
    words = ["data.behaviours=pv", "model.mlp=64", "data.columns.item_features=brand", "logger.tags=a"]
    lists = ["data.behaviours=[pv]", "model.mlp=[64]", "data.columns.item_features=[brand]", "logger.tags=[a]"]
    assert implied(words) == lists
    others = [*lists, "data.behaviours=pv,buy", "data.path=pv", "explain.rows=null", "model.mlp=choice(1,2)", "seed=1"]
    assert implied(others) == others


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("protocol=last_event", "protocol.targets_per_user.train=3"), "targets_per_user does nothing"),
        (("protocol.negatives.time_window=0.1",), "time_window=0.1 does nothing"),
        (("data=movielens", "data.path=a", "data.folder=b"), "data.folder=b does nothing"),
        (("data=events", "data.path=a", "data.columns.item=user"), "data.columns.item names 'user', which"),
        (("data=events", "data.path=a", "data.columns.timestamp=item"), "data.columns.timestamp names 'item', which"),
        (("data=events", "data.path=a", "data.columns.item_features=['^.*$']"), "'^.*$', a name that means something"),
        (("data.timezone=Mars",), "data.timezone=Mars is no time zone"),
    ],
)
def test_settings_that_do_nothing_or_contradict(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load(*words)


def test_the_window_of_auxiliary_negatives_does_something() -> None:
    load("model.aux_negatives.distribution=time_matched", "protocol.negatives.time_window=0.1")
