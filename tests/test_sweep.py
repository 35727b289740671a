"""Sweeps: what runs, what is skipped when one goes on, and what is left when something dies.

Those with real commands take ten seconds and more: `pytest -m slow tests/test_sweep.py`. A launcher that isn't
installed (extras sweep, slurm, ray) skips its test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from deepinterest.errors import Interrupted, UserError, sentence
from deepinterest.folders import MARK
from deepinterest.settings import implied, register
from deepinterest.sweep import jobs as sweeping
from deepinterest.sweep.processes import PARENT, alive

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

# --------------------------------------------------------------------------------------- jobs, with a launcher of paper


class Paper:
    """A launcher that trains nothing: val/auc is 1 - |lr - 0.003|; a job whose seed is in `failing` fails."""

    def __init__(self, master: Callable[[], DictConfig]) -> None:
        self.master, self.failing, self.launched, self.stop = master, set(), [], None  # type: ignore[var-annotated]

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for words in batch:
            composed = GlobalHydra.instance().config_loader().load_sweep_config(self.master(), list(words))
            folder = Path(composed.hydra.sweep.dir) / str(composed.hydra.sweep.subdir)
            self.launched.append(int(composed.hydra.sweep.subdir))
            (folder / ".hydra").mkdir(parents=True, exist_ok=True)
            (folder / MARK).touch()
            if self.stop == self.launched[-1]:
                (folder / "best.ckpt").write_text("half")
                raise KeyboardInterrupt
            task = composed.copy()
            OmegaConf.set_struct(task, False)
            task.pop("hydra")
            OmegaConf.save(task, folder / ".hydra" / "config.yaml")
            OmegaConf.save(composed.hydra.overrides.task, folder / ".hydra" / "overrides.yaml")
            card = {"source": task.data.name, "split_hash": f"split {task.data.seed}"}
            (folder / "data_card.json").write_text(json.dumps(card))
            result = JobReturn()
            result.status = JobStatus.COMPLETED
            if task.seed in self.failing:
                result.status, result._return_value = JobStatus.FAILED, UserError(f"seed {task.seed}")
            else:
                metrics = {"val/auc": 1 - abs(task.optimizer.lr - 0.003), "seed": float(task.seed)}
                (folder / "metrics.json").write_text(json.dumps(metrics))
            returns.append(result)
        return returns


@pytest.fixture
def sweep(tmp_path: Path, small: Callable[..., list[str]]) -> Iterator[Callable[..., tuple[Any, list[int]]]]:
    """`sweep(*words, failing=..., stop=...)` gives the jobs' metrics, or the error, and the numbers that ran."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        def call(
            *words: str,
            failing: Sequence[int] = (),
            stop: int | None = None,
            place: str = f"hydra.sweep.dir={tmp_path}",
        ) -> tuple[Any, list[int]]:
            words = tuple(small("dnn", *words))
            plain = [o.input_line for o in OverridesParser.create(loader).parse_overrides(list(words))
                     if not o.is_sweep_override()]  # fmt: skip
            master = loader.load_configuration("config", [*plain, place], RunMode.MULTIRUN)
            launcher = Paper(lambda: master)
            launcher.failing, launcher.stop = set(failing), stop
            try:
                found: Any = sweeping.sweep(master, launcher, loader, words)  # type: ignore[arg-type]
            except (UserError, Interrupted) as error:
                found = error
            return found, launcher.launched

        yield call


def test_all_combinations_run(sweep: Callable[..., Any]) -> None:
    found, ran = sweep("seed=1,2", "optimizer.lr=0.001,0.003")
    assert ran == [0, 1, 2, 3]
    assert [(each["seed"], each["val/auc"]) for each in found] == [(1, 0.998), (1, 1), (2, 0.998), (2, 1)]


def test_wrong_setting_of_a_later_job_stops_all(sweep: Callable[..., Any]) -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException):
        sweep("optimizer.lr=0.1,abc")


def test_what_failed_or_never_ran_runs_when_a_sweep_goes_on(sweep: Callable[..., Any], tmp_path: Path) -> None:
    words = ("seed=1,2,3,4",)
    error, ran = sweep(*words, stop=2, failing=[1])
    assert ran == [0, 1, 2]
    assert f"goes on by the same command with sweep.resume={tmp_path}" in str(error)
    found, ran = sweep(*words, f"sweep.resume={tmp_path}")
    assert ran == [0, 2, 3]
    assert [each["seed"] for each in found] == [1, 2, 3, 4]
    assert not (tmp_path / "2" / "best.ckpt").exists()  # begun anew, without what was half-done


@pytest.mark.parametrize("words", [("seed=1,2",), ("sweep=optuna", "sweep.trials=2")], ids=["grid", "search"])
def test_folder_in_the_way_of_a_job(words: tuple[str, ...], sweep: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing is deleted, and nothing is written: not with the settings right, wrong, or of a sweep that goes on."""
    if len(words) > 1:
        pytest.importorskip("optuna")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "thesis.tex").write_text("mine")
    (tmp_path / "1" / "metrics.json").write_text("mine")
    (tmp_path / "0").mkdir()  # an empty one does no harm
    for more in ((), ("optimizer.lr=-1",)):
        with suppress(ValidationError):
            found, ran = sweep(*words, *more)
            assert (f"{tmp_path / '1'} is in the way" in str(found) or more) and ran == []
    assert {path.name for path in tmp_path.rglob("*")} == {"0", "1", "thesis.tex", "metrics.json"}
    (tmp_path / "multirun.yaml").touch()  # as any Hydra program leaves it
    found, ran = sweep(*words, f"sweep.resume={tmp_path}")
    assert f"{tmp_path / '1'} is in the way" in str(found) and "nothing was deleted" in str(found)
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"thesis.tex", "metrics.json"}
    assert ran == []


def test_notes_in_a_jobs_folder_stay(sweep: Callable[..., Any], tmp_path: Path) -> None:
    sweep("seed=1,2", failing=[1])
    (tmp_path / "0" / "notes.txt").write_text("mine")
    found, ran = sweep("seed=1,2", f"sweep.resume={tmp_path}")
    assert ran == [0] and len(found) == 2
    assert (tmp_path / "0" / "notes.txt").read_text() == "mine"


def test_sweeps_of_one_second(sweep: Callable[..., Any], tmp_path: Path) -> None:
    OmegaConf.register_new_resolver("now", lambda _: "now", replace=True)
    try:
        for name in ("now", "now_2"):
            found, ran = sweep("seed=1,2", f"paths.output={tmp_path}", place="hydra.job.name=run")
            assert len(found) == 2 and ran == [0, 1]
            assert sorted(path.name for path in (tmp_path / "sweeps" / name).glob("?")) == ["0", "1"]
    finally:
        setup_globals()


@pytest.mark.parametrize("word", ["hydra.job.name=a/../../b", "hydra.output_subdir=/tmp/other"])
def test_names_that_lead_out_of_a_jobs_folder(word: str, sweep: Callable[..., Any], tmp_path: Path) -> None:
    found, ran = sweep("seed=1,2", word)
    assert f"{word} is not possible" in str(found) and ran == []
    assert list(tmp_path.iterdir()) == []


def test_each_card_is_shown_once(sweep: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    sweep("data.seed=0,1", "seed=1,2,3")
    shown = capsys.readouterr()
    assert [shown.out.count(f"split {seed}") for seed in (0, 1)] == [1, 1]
    assert shown.out.count("Data card") == 2
    lines = [line for line in shown.err.splitlines() if line.startswith("job ")]
    assert [line.partition(",")[0] for line in lines] == [f"job {number} of 6" for number in range(1, 7)]
    assert lines[3].endswith("/3: data.seed=1 seed=1")  # what all share is left out
    assert "job " not in shown.out


def test_failure_is_the_sweeps_error_after_all_ran(sweep: Callable[..., Any]) -> None:
    found, ran = sweep("seed=1,2,3", failing=[2])
    assert str(found) == "seed 2"
    assert ran == [0, 1, 2]


def test_another_command_cannot_go_on(sweep: Callable[..., Any], tmp_path: Path) -> None:
    sweep("seed=1,2")
    found, ran = sweep("seed=1,2", "optimizer.lr=0.01", f"sweep.resume={tmp_path}")
    assert "has optimizer.lr=0.002, with this command optimizer.lr=0.01" in str(found)
    assert ran == []


def test_folder_that_is_no_sweep(sweep: Callable[..., Any], tmp_path: Path) -> None:
    assert "holds no multirun.yaml" in str(sweep("seed=1,2", f"sweep.resume={tmp_path}")[0])


def test_sweep_that_still_runs(sweep: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep("seed=1,2")
    monkeypatch.setattr(sweeping, "PATIENCE", 0.1)
    with FileLock(tmp_path / ".lock"):
        assert "still runs" in str(sweep("seed=1,2", f"sweep.resume={tmp_path}")[0])


def test_launcher_that_is_not_installed() -> None:
    missing = MissingConfigException("", "hydra/launcher/ray", ["basic"])
    assert sentence(missing) == 'hydra/launcher=ray needs its package: pip install -e ".[ray]"'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["sweep=joblib", "seed=1,2"], ["-m", "sweep=joblib", "seed=1,2"]),
        (["-m", "sweep.resume=a/b"], ["-m", "hydra.sweep.dir=a/b", "sweep.resume=a/b"]),
        (["sweep=optuna", "--cfg", "job"], ["sweep=optuna", "--cfg", "job"]),
        (["seed=1"], ["seed=1"]),
    ],
)
def test_implied(given: list[str], expected: list[str]) -> None:
    assert implied(given) == expected


# --------------------------------------------------------------------------------------------------------------- search


def test_search_goes_on_as_if_never_stopped(sweep: Callable[..., Any], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ("sweep=optuna", "sweep.trials=5", "sweep.random_trials=2", "model.embedding_dim=choice(4,8)")
    sweep(*words, stop=3)
    found, ran = sweep(*words, f"sweep.resume={tmp_path}")
    assert ran == [3, 4]
    study = optuna.load_study(study_name="deepinterest", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.value for trial in study.trials] == [each["val/auc"] for each in found]
    assert set(study.best_params) == {"optimizer.lr", "model.embedding_dim"}  # model.mlp is given: not searched
    (tmp_path / "study.db").rename(tmp_path / "old.db")
    for number in range(5):
        (tmp_path / str(number)).rename(tmp_path / f"old{number}")
    straight, ran = sweep(*words)
    assert ran == list(range(5))
    assert straight == found


def test_best_trial_is_an_experiment_file(sweep: Callable[..., Any], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("optuna")
    found, _ = sweep("sweep=optuna", "sweep.trials=5", "sweep.jobs=2")
    number = max(range(5), key=lambda n: found[n]["val/auc"])
    assert f"best: job {number}, val/auc" in capsys.readouterr().out
    best, kept = (OmegaConf.load(path) for path in (
        tmp_path / "experiment" / "best.yaml", tmp_path / str(number) / ".hydra" / "config.yaml",
    ))  # fmt: skip
    assert best.optimizer.lr == kept.optimizer.lr
    loader = GlobalHydra.instance().config_loader()
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=best"]
    composed = loader.load_configuration("config", words, RunMode.RUN).copy()
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    assert sweeping._difference(kept, composed) is None


def test_minimized(sweep: Callable[..., Any], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    sweep("sweep=optuna", "sweep.trials=3", "sweep.metric=seed", "sweep.minimize=true", "seed=range(1,9)",
          "optimizer.lr=0.001")  # fmt: skip
    study = optuna.load_study(study_name="deepinterest", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.best_value == min(trial.params["seed"] for trial in study.trials)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=dnn,din"], "searches the settings of one model"),
        (["task=data"], "needs task=train"),
        (["sweep.metric=val/acu"], "sweep.metric=val/acu is no metric of a run"),
        (["optimizer.lr=interval(2,1)"], "can't be searched"),
    ],
)
def test_search_that_cannot_be(sweep: Callable[..., Any], words: list[str], message: str) -> None:
    pytest.importorskip("optuna")
    assert message in str(sweep("sweep=optuna", "sweep.trials=2", *words)[0])


def test_another_space_cannot_go_on(sweep: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweep("sweep=optuna", "sweep.trials=1")
    found, _ = sweep("sweep=optuna", "sweep.trials=2", "seed=1,2", f"sweep.resume={tmp_path}")
    assert "the study there has space=" in str(found)


def test_trial_cut_off_while_drawn(sweep: Callable[..., Any], tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ("sweep=optuna", "model.embedding_dim=choice(4,8)")
    sweep(*words, "sweep.trials=1")
    study = optuna.load_study(study_name="deepinterest", storage=f"sqlite:///{tmp_path / 'study.db'}")
    drawn = study.ask().suggest_float("optimizer.lr", 3e-4, 1e-2, log=True)
    found, ran = sweep(*words, "sweep.trials=2", f"sweep.resume={tmp_path}")
    assert ran == [1]
    assert study.trials[1].params["optimizer.lr"] == drawn
    assert study.trials[1].params["model.embedding_dim"] in ("4", "8")
    assert study.trials[1].value == found[1]["val/auc"]


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "model").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_model_has_a_space_of_its_own_settings(path: Path) -> None:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [f"model={path.stem}", f"+sweep/space@sweep.space={path.stem}"]
        composed = loader.load_configuration("config", words, RunMode.RUN)
        assert "optimizer.lr" in composed.sweep.space
        assert all(OmegaConf.select(composed, key) is not None for key in composed.sweep.space)


# ------------------------------------------------------------------------------------------------------------ processes


@LINUX
def test_process_ends_with_its_parent(tmp_path: Path) -> None:
    child = "from deepinterest.sweep.processes import follow_parent as f; import time; f(); print(1, flush=True); " \
            "time.sleep(60)"  # fmt: skip
    parent = (
        "import subprocess, sys; from deepinterest.sweep.processes import lead; lead(); "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); p.stdout.readline(); "
        "print(p.pid, flush=True); p.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    assert gone([pid], 5)  # before the killed one was waited for, too
    process.wait()
    assert not alive(process.pid)


# ------------------------------------------------------------------------------------------------------- the real thing


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", PARENT))}
    environment |= {"OMP_NUM_THREADS": "1"}
    output = (folder / "output.txt").open("w")
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), *words], cwd=folder, stdout=output, stderr=output,
                            text=True, env=environment)  # fmt: skip


def command(folder: Path, *words: str) -> tuple[int, str]:
    folder.mkdir(exist_ok=True, parents=True)
    code = begin(folder, *words).wait(timeout=240)
    return code, (folder / "output.txt").read_text()


def until(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(processes: Sequence[int], seconds: float) -> bool:
    return until(lambda: not any(map(alive, processes)), seconds)


def below(process: int) -> list[int]:
    """Children, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    found, front = [], [process]
    while front:
        front = [child for each in front for child in parents.get(each, [])]
        found += front
    return found


def table_of(output: str) -> str:
    return "┏" + output.rpartition("\nsweep folder:")[0].rpartition("┏━━━━━┳")[2]


def folder_of(folder: Path) -> Path:
    (found,) = (folder / "outputs" / "sweeps").iterdir()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"paths.cache={tmp_path_factory.mktemp('cache')}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        (["sweep=joblib"], "hydra_plugins.hydra_joblib_launcher"),
        (["sweep=slurm", "hydra/launcher=submitit_local"], "hydra_plugins.hydra_submitit_launcher"),
        (["sweep=ray"], "hydra_plugins.hydra_ray_launcher"),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_launcher(
    small: Callable[..., list[str]], cache: str, launcher: list[str], package: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    code, output = command(tmp_path, *launcher, *small("dnn", cache), "seed=1,2")
    assert code == 0, output
    metrics = [json.loads((folder_of(tmp_path) / name / "metrics.json").read_text()) for name in ("0", "1")]
    assert metrics[0]["test/auc"] != metrics[1]["test/auc"]
    for each in metrics:
        assert f"{each['test/auc']:.4f}" in table_of(output)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["sweep=joblib"], ["sweep=slurm", "hydra/launcher=submitit_local"]],
                         ids=["alone", "joblib", "submitit"])  # fmt: skip
def test_jobs_of_two_processes(
    small: Callable[..., list[str]], cache: str, launcher: list[str], tmp_path: Path
) -> None:
    if launcher:
        pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if 'joblib' in launcher[0] else 'submitit'}_launcher")
    words = small("dnn", cache, "trainer=cpu,ddp_cpu", "seed=1,2", "logger=csv")
    code, output = command(tmp_path, "-m", *launcher, *words)
    assert code == 0, output
    folder = folder_of(tmp_path)  # one sweep's, and nothing beside it
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]
    assert sorted(path.parent.name for path in folder.glob("*/metrics.json")) == ["0", "1", "2", "3"]
    assert sorted(path.parent.name for path in folder.glob("*/run_process_1.log")) == ["2", "3"]
    assert "trainer=ddp_cpu seed=2" in table_of(output)


@pytest.mark.slow
def test_search_with_two_processes(small: Callable[..., list[str]], cache: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = small("dnn", cache, "trainer=ddp_cpu", "sweep=optuna", "sweep.trials=2")
    code, output = command(tmp_path, *words)
    assert code == 0, output
    study = optuna.load_study(study_name="deepinterest", storage=f"sqlite:///{folder_of(tmp_path) / 'study.db'}")
    assert len(study.trials) == 2
    for trial in study.trials:
        kept = OmegaConf.load(folder_of(tmp_path) / str(trial.number) / "config.yaml")
        assert kept.optimizer.lr == trial.params["optimizer.lr"]


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("search", [False, True], ids=["grid", "optuna"])
def test_killed_sweep_goes_on(small: Callable[..., list[str]], cache: str, search: bool, tmp_path: Path) -> None:
    words = ["-m", *small("dnn", cache, "trainer.max_epochs=12", "trainer.patience=null")]
    if search:
        pytest.importorskip("optuna")
        words += ["sweep=optuna", "sweep.trials=3", "sweep.random_trials=1"]
    else:
        words += ["seed=1,2,3"]
    code, whole = command(tmp_path / "whole", *words)
    assert code == 0, whole
    (tmp_path / "cut").mkdir()
    process = begin(tmp_path / "cut", *words)
    assert until(lambda: list(tmp_path.glob("cut/outputs/sweeps/*/1/last.ckpt")), 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = folder_of(tmp_path / "cut")
    assert (folder / "0" / "metrics.json").exists() and not (folder / "1" / "metrics.json").exists()
    first = (folder / "0" / "metrics.json").stat().st_mtime_ns
    code, output = command(tmp_path / "cut", *words, f"sweep.resume={folder.relative_to(tmp_path / 'cut')}")
    assert code == 0, output
    assert table_of(output) == table_of(whole)
    assert (folder / "0" / "metrics.json").stat().st_mtime_ns == first
    assert folder_of(tmp_path / "cut") == folder


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("launcher", [[], ["sweep=joblib"], ["sweep=slurm", "hydra/launcher=submitit_local"]],
                         ids=["alone", "joblib", "submitit"])  # fmt: skip
def test_killed_parent_leaves_no_child(
    small: Callable[..., list[str]], cache: str, launcher: list[str], tmp_path: Path
) -> None:
    if launcher:
        pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if 'joblib' in launcher[0] else 'submitit'}_launcher")
    words = small("dnn", cache, "trainer=ddp_cpu", "trainer.max_epochs=2000", "trainer.patience=null", "seed=1,2")
    process = begin(tmp_path, "-m", *launcher, *words)
    assert until(lambda: list(tmp_path.glob("outputs/sweeps/*/0/last.ckpt")), 90), (tmp_path / "output.txt").read_text()
    children = below(process.pid)
    assert len(children) >= 2
    process.kill()
    process.wait()
    assert gone(children, 10), [Path(f"/proc/{child}/cmdline").read_text() for child in children if alive(child)]


@pytest.mark.slow
@LINUX
def test_dead_rank_fails_its_job_alone(small: Callable[..., list[str]], cache: str, tmp_path: Path) -> None:
    words = small("dnn", cache, "trainer=ddp_cpu,cpu", "trainer.max_epochs=30", "trainer.patience=null")
    process = begin(tmp_path, "-m", *words)
    assert until(lambda: list(tmp_path.glob("outputs/sweeps/*/0/last.ckpt")), 60)
    children = below(process.pid)
    os.kill(children[-1], signal.SIGKILL)
    assert process.wait(timeout=120) == 1
    assert gone(children, 5)
    output = (tmp_path / "output.txt").read_text()
    assert "failed: 0 (" in output
    assert (folder_of(tmp_path) / "1" / "metrics.json").is_file()
