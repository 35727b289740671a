"""A run's folder: who may have it, when it is made, and what of it may be cleared.

The folder is made when the run has something to write; a run that fails before leaves none. From then to the run's end
it is locked. A folder with another run's results is refused, unless that run goes on in it or is to be overwritten.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from deepinterest.atomic import beside
from deepinterest.config import ExperimentConfig
from deepinterest.errors import UserError, tell
from deepinterest.launch import START, rank

MARK = ".deepinterest"  # says that a run of ours had the folder; the run that has it holds a lock on this file
ENDED = "ended"  # what the mark holds where the run came to its end
RESULTS = (
    "metrics.json", "predictions.parquet", "best.ckpt", "last.ckpt", "config.yaml", "probes.json", "tune.json",
    "explain.html", "profile.json", "layout",
)  # fmt: skip
# Everything else that runs write. A folder is removed where nothing else is in it.
WRITTEN = (
    *RESULTS, "data_card.json", "environment.json", "curves.json", "trace.json.gz",
    *(f"vocabulary/{name}" for name in ("vocabulary.json", "items.parquet", "users.parquet", "vocabulary_*.parquet")),
    "roc.png", "calibration.png", "learning_curves.png", "attention.png", "probes.png", "tune.png",
    "explain_[0-9]*.png",
    "history_length.png", "item_popularity.png", "activity.png", "label_rate.png",
    "run.log", "run_process_*.log", "train_ddp_process_*.log", "csv/*.csv", "csv/hparams.yaml", "csv_[0-9]*/*.csv",
    "csv_[0-9]*/hparams.yaml", "tensorboard/events.out.tfevents.*", "tensorboard/hparams.yaml",
    "layout/item-info", "layout/reviews-info", "layout/local_*_splitByUser", "layout/[cmu]*_voc.pkl",
    *(f".hydra/{name}" for name in ("config.yaml", "hydra.yaml", "overrides.yaml", "job.json", "error.txt")),
)  # fmt: skip
PROBE = bytes(65_536)  # less room than this is none


class RunFolder:
    """The folder of one run, from its first check to its last file.

    As a context it raises UserError at once where the folder can't be had, and makes nothing. `take` makes it.

    Args:
        config, settings: of the run. Both get the folder's name in `paths.run` where the default name was taken.
    """

    def __init__(self, config: ExperimentConfig, settings: dict[str, Any]) -> None:
        self.config, self.settings = config, settings
        self.path = Path(config.paths.run)
        self._lock: FileLock | None = None

    def __enter__(self) -> RunFolder:
        refuse_impossible(self.path, "The run folder")
        if _named() and rank() == 0:
            if (self.path / MARK).exists():
                self._locked().release()
            self._refuse_results()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None:
            return
        try:
            if kind is None and self.path.is_dir():  # somebody may have deleted it
                (self.path / MARK).write_text(ENDED, encoding="utf-8")
        finally:
            self._lock.release()

    def take(self) -> Path:
        """The folder, made and locked. Its settings and the log so far are written; old files go with overwrite=true.

        Further processes of a run share the first one's folder. Raises UserError where another run has it.
        """
        try:
            if rank():
                self.path.mkdir(parents=True, exist_ok=True)
            else:
                self._make()
            begin(self.path, settings=self.config.resume is None and rank() == 0)
        except OSError as error:
            raise _unwritable("The run folder", self.path, error) from error
        return self.path

    def refuse_full(self, size: int) -> None:
        """Raise a UserError where the disk hasn't room for `size` bytes."""
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise UserError(
                f"The run folder {self.path} has room for {free / 1e6:,.0f} MB, and a checkpoint of this model takes "
                f"{size / 1e6:,.0f} MB: make room, or name another folder by paths.output=…"
            )

    def _make(self) -> None:
        if not _named():
            self.path = new(self.path)
            self._tell_name()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        self._refuse_results()
        (self.path / MARK).write_text("", encoding="utf-8")
        if self.config.overwrite:
            clear(self.path)
        for path in _leftovers(self.path):
            path.unlink()

    def _tell_name(self) -> None:
        self.config.paths.run = self.settings["paths"]["run"] = str(self.path)
        if HydraConfig.initialized():  # whose run.dir Lightning tells further processes
            hydra: Any = HydraConfig.get()
            with read_write(hydra):
                hydra.run.dir = str(self.path)

    def _locked(self) -> FileLock:
        lock = FileLock(self.path / MARK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"The run folder {self.path} belongs to a run that isn't over: wait for its end, or name another "
                "folder by hydra.run.dir=…"
            ) from error
        return lock

    def _refuse_results(self) -> None:
        found = [name for name in RESULTS if (self.path / name).exists()]
        if found and not self.config.overwrite and self.config.resume is None:
            raise UserError(
                f"The run folder {self.path} holds another run's results ({', '.join(found)}): go on with that run by "
                f"resume={self.path}, clear them by overwrite=true, or name another folder by hydra.run.dir=…"
            )


class RunLog(logging.FileHandler):
    """The log file of a run, kept in memory until the run has its folder."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True)
        self.name_of_file, self.waiting = filename, list[logging.LogRecord]()
        self.begun = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep it."""
        if self.begun:
            super().emit(record)
        else:
            self.waiting.append(record)

    def begin(self, folder: Path) -> None:
        """Write what was said so far, and from now on everything at once."""
        if not self.begun:
            self.begun, self.baseFilename = True, str(folder / self.name_of_file)
            for record in self.waiting:
                super().emit(record)
            self.waiting.clear()


class LateFolder(Callback):
    """Keeps Hydra from making a run's folder and from writing into it: `RunFolder` does so later.

    Hydra makes what `hydra.run.dir` names before it starts the run, so meanwhile it is told a folder that is there.
    """

    def __init__(self) -> None:
        self.name = ""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse names that lead out of the folder."""
        try:
            refuse_outside(config)
        except UserError as error:
            tell(error)
            raise SystemExit(1) from error
        self.name = OmegaConf.to_container(config.hydra.run)["dir"]  # type: ignore[index, call-overload]
        with read_write(config.hydra):
            config.hydra.run.dir = os.curdir

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Put the name back, and keep the settings for the folder. A sweep's job has its folder by now."""
        if self.name:
            with read_write(config.hydra):
                config.hydra.run.dir = self.name
                config.hydra.runtime.output_dir = os.path.abspath(config.hydra.run.dir)
            HydraConfig.instance().set_config(config)
        task = config.copy()
        OmegaConf.set_struct(task, False)
        hydra = OmegaConf.masked_copy(task, "hydra")
        task.pop("hydra")
        texts = {"config": task, "hydra": hydra, "overrides": config.hydra.overrides.task}
        _texts.update({f"{name}.yaml": OmegaConf.to_yaml(content) for name, content in texts.items()})
        if config.hydra.mode is RunMode.MULTIRUN:
            begin(Path(of_command()), settings=task.resume is None and rank() == 0)


_texts: dict[str, str] = {}  # what .hydra of the folder will hold


def begin(folder: Path, settings: bool) -> None:
    """Mark a folder as ours and start its log; with `settings`, write those that Hydra composed."""
    (folder / MARK).touch()
    if settings and _texts:
        (folder / ".hydra").mkdir(exist_ok=True)
        for name, text in _texts.items():
            with beside(folder / ".hydra" / name) as own:
                own.write_text(text, encoding="utf-8")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLog):
            handler.begin(folder)


def of_command() -> str:
    """The folder that the command line gives this run, or this job of a sweep; `${run_folder:}` in conf/."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return os.path.abspath(hydra.run.dir)
    number = "0" if OmegaConf.is_missing(hydra.sweep, "subdir") else hydra.sweep.subdir
    return os.path.abspath(os.path.join(hydra.sweep.dir, str(number)))


def name_after(settings: dict[str, Any], composed: dict[str, Any]) -> None:
    """Give a run that takes a default folder the name of what its checkpoint was trained with, in `.hydra` too.

    Args:
        settings: of the run, with the checkpoint's data, model and seed; `paths.run` gets the name.
        composed: those of the command line, which the name was made of.
    """
    if _named():
        return
    old, now = (f"_{each['data']['name']}_{each['model']['name']}_s{each['seed']}" for each in (composed, settings))
    folder = Path(settings["paths"]["run"])
    if folder.name.endswith(old):
        folder = folder.with_name(folder.name.removesuffix(old) + now)
        settings["paths"] = {**settings["paths"], "run": str(folder)}
        hydra: Any = HydraConfig.get()
        with read_write(hydra):
            hydra.run.dir = str(folder)
    _texts["config.yaml"] = OmegaConf.to_yaml(OmegaConf.create(settings))


def metrics_of(folder: Path) -> dict[str, float] | None:
    """The metrics of the run that ended in a folder: none of other tasks than train and test. None where none ended."""
    path, mark = folder / "metrics.json", folder / MARK
    if path.is_file():
        metrics: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return metrics
    return {} if mark.is_file() and mark.read_text(encoding="utf-8") == ENDED else None


def near(folder: Path) -> str:
    """A folder's name for the user: relative where it lies below the current one."""
    folder = folder.absolute()
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def clear(folder: Path) -> None:
    """Delete the files that runs write, and folders that are empty then. What else is there stays."""
    for pattern in WRITTEN:
        for path in list(folder.glob(pattern)):
            if not path.is_dir():
                path.unlink()
            if path.parent != folder and not any(path.parent.iterdir()):
                path.parent.rmdir()


def refuse_outside(config: DictConfig) -> None:
    """Raise a UserError for settings by which Hydra would write elsewhere than into the run's folder."""
    name, subfolder = str(config.hydra.job.name), config.hydra.output_subdir
    if Path(name).name != name:
        raise UserError(f"hydra.job.name={name} is not possible: it names the log in the run's folder, without a /")
    if subfolder is not None:
        raise UserError(
            f"hydra.output_subdir={subfolder} is not possible: a run keeps its settings in .hydra of its folder. Leave "
            "it out"
        )


def refuse_impossible(folder: Path, what: str) -> None:
    """Raise a UserError for a folder that can't be made or written to; leaves nothing behind.

    what: the folder's role, which begins the sentence.
    """
    shown = near(folder)
    if not shown.isprintable():
        raise UserError(f"{what} {shown!r} has a line break or another control character in its name: name another one")
    try:
        nearest, *below = reversed([folder.absolute(), *folder.absolute().parents])
        for path in below:
            length, longest = len(os.fsencode(path.name)), os.pathconf(nearest, "PC_NAME_MAX")
            if length > longest:
                raise UserError(
                    f"{what} {shown} has a name of {length} bytes in it, and this file system takes {longest}: name "
                    "another one"
                )
            if path.exists():
                nearest = path
        with NamedTemporaryFile(dir=nearest, prefix=".writable-") as file:
            file.write(PROBE)
            file.flush()
    except OSError as error:
        raise _unwritable(what, folder, error) from error


def _unwritable(what: str, folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{what} {folder} can't be written: {error.strerror or error}. Make room, or name another by paths.output=…"
    )


def _named() -> bool:
    """Whether the folder must be this one. A default name that is taken gets a number."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is RunMode.MULTIRUN or START in os.environ:
        return True
    return any(word.startswith("hydra.run.dir=") for word in HydraConfig.get().overrides.hydra)


def new(folder: Path) -> Path:
    """Make a folder of this name, or of name_2, name_3, …: the first that isn't there."""
    for path in _numbered(folder):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.parent.is_dir():
                continue
            raise
        return path
    raise AssertionError


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}_{number}") for number in count(2))


def _leftovers(folder: Path) -> list[Path]:
    """What `beside` left where a process was killed while it wrote."""
    return [path for path in folder.glob(".*") if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file()]
