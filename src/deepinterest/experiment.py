"""One run, as a function of its config: data → model → trainer → fit → test → results."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

from deepinterest import debug, kernels, models
from deepinterest.config import CalibrationName, ExperimentConfig, KernelName, Task, TrainerConfig
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.layout_export import export
from deepinterest.data.store import STAGES, Store
from deepinterest.errors import UserError
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.report import data_card, explain, probing, run_folder
from deepinterest.resuming import start_of
from deepinterest.serving import predict, vocabulary
from deepinterest.serving.checkpoint import read as read_checkpoint
from deepinterest.training import calibration, loggers, peak, tuning
from deepinterest.training.callbacks import Curves, Throughput
from deepinterest.training.checkpoints import Checkpoints, Patience, WholeFiles, state_of, take_best
from deepinterest.training.memory import keep_freed_memory
from deepinterest.training.module import LOG_EVERY, ClickModel

log = logging.getLogger(__name__)


def run(config: ExperimentConfig, resolved: dict[str, Any]) -> dict[str, float]:
    """Train and test, or test a checkpoint; everything worth keeping lands in `config.paths.run`.

    Args:
        resolved: the whole config as plain values, for the run folder and the logger.
    Returns: the content of metrics.json.
    """
    begin = time.perf_counter()
    peak.start()
    folder = run_folder.create(config.paths.run)
    _calm()
    console = Console(stderr=True, quiet=bool(getattr(rank_zero_only, "rank", 0)))  # of several processes one speaks
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    kernels.use(config.trainer.kernel)
    keep_freed_memory()
    if config.task not in (Task.prepare, Task.data):
        _check_device(config.trainer)
    L.seed_everything(config.seed, verbose=False)
    if config.task is Task.predict:
        return predict.run(config, console, _device(config.trainer))

    data = InteractionData(
        config.data,
        config.protocol,
        batch_size=config.trainer.batch_size,
        eval_batch_size=config.trainer.eval_batch_size,
        seed=config.seed,
        auxiliary=getattr(config.model, "aux_negatives", None),
        cache=config.paths.cache,
        prefetch=_prefetch(config.trainer),
        quirks=config.quirks,
    )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"Preparing {config.data.name}", total=len(STAGES))
        data.prepare_data(
            lambda stage: bar.update(task, advance=1, description=f"Preparing {config.data.name}: {stage}")
        )
    store = data.store
    if config.task is Task.prepare:
        print(store.folder)
        return {}
    if config.task is Task.data:
        data_card.show(console, store.card)
        data_card.write(folder, resolved, store, config.protocol.max_history)
        return {f"{name}_rows": float(samples.rows) for name, samples in store.samples.items()}
    debug.shrink(store, config.debug, config.trainer.batch_size, config.data.seed)
    console.print(run_folder.card_table(store.card))
    if config.task is Task.export_reference:
        export(store, folder / "layout")
        log.info("The published layout of %s is in %s.", config.data.name, folder / "layout")
        return {f"{name}_rows": float(samples.rows) for name, samples in store.samples.items()}
    log.info("%s on %s, seed %d, in %s", config.model.name, config.data.name, config.seed, folder)
    if config.task is Task.probe:
        trained = _load(Path(str(config.checkpoint)), _model(config, store, resolved))
        with console.status("Probing"):
            found = probing.run(trained.to(_device(config.trainer)), data, folder, config.seed)
        console.print(probing.table(found))
        log.info(found["summary"])
        return probing.metrics(found)
    if config.task is Task.tune:
        return tuning.run(
            lambda: _model(config, store, resolved).to(_device(config.trainer)), data, config.tune, folder, console
        )
    if config.task is Task.explain:
        trained = _load(Path(str(config.checkpoint)), _model(config, store, resolved))
        explained, page = explain.run(trained.to(_device(config.trainer)), data, folder, config.explain, config.seed)
        log.info("%s", "\n".join([*explain.remarks(trained), f"{len(explained)} rows are drawn in {page}."]))
        return {"rows": float(len(explained))}
    model = _model(config, store, resolved)
    start = start_of(config)
    identity = None
    if start is not None:
        _load(start, model)
        model.calibration = None  # that was learned after training
        identity = state_of(start)["logger"]
        take_best(start, folder)

    name, group = loggers.run_name(config), loggers.group_of(config)
    tagged = replace(config.logger, tags=loggers.tags_of(config))
    logger = loggers.make_logger(tagged, folder, Path(config.paths.output), name, resolved, group, identity)
    if logger:
        logger.log_hyperparams({"data_card": store.card})
    failed = True
    torch.set_flush_denormal(True)  # rows long untouched decay into denormals, which are slow
    try:
        curves, speed = Curves(), Throughput()
        watching = debug.callbacks(config, data, folder, console) if config.task is Task.train else []
        trainer = _trainer(config, folder, data, logger, [curves, speed, *watching])
        checkpoint = Path(config.checkpoint) if config.checkpoint and config.task is Task.test else folder / "best.ckpt"
        if config.task is Task.train:
            if trainer.is_global_zero:
                context = config.data.columns.context_features if store.context_sizes else []
                vocabulary.write(folder, store, model.network.users is not None, context)
            with _compiled(model, config.trainer.compile):
                trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
        best = _load(checkpoint, _model(config, store, resolved))
        trainer.validate(best, datamodule=data, verbose=False)
        if config.task is Task.train and config.calibration is not CalibrationName.none:
            _calibrate(best, config.calibration, checkpoint, trainer.is_global_zero)
        trainer.test(best, datamodule=data, verbose=False)
        probes = run_folder.probes(store)
        metrics = best.scores | probes
        metrics |= {
            "seconds": time.perf_counter() - begin + speed.before,
            "train/seconds": speed.seconds,
            "samples_per_s": speed.samples_per_second,
            "steps": float(trainer.global_step),
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **peak.memory(),
        }
        _, label, probability = best.test_metrics.predictions()
        if trainer.is_global_zero:
            drawn = run_folder.figures(best, data, curves, label, probability, config.evaluation.ece_bins)
            loggers.log_images(logger, drawn)
            if logger:
                logger.log_metrics(probes, trainer.global_step)
            predictions = run_folder.predictions(store, label, probability, data.test_dataloader().row_order())
            run_folder.write(folder, resolved, store.card, metrics, curves.points, predictions, drawn)
            log.info(
                "test auc %.4f, gauc %.4f, logloss %.4f", *(metrics[f"test/{m}"] for m in ("auc", "gauc", "logloss"))
            )
            console.print(run_folder.metrics_table(metrics))
        failed = False
        return metrics
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"Results could not be written to {folder}: {error.strerror}. Make room and run again."
        ) from error
    finally:
        torch.set_flush_denormal(False)
        loggers.finish(logger, int(failed))


def _calm() -> None:
    """Lightning prints each line itself and hands it on to the root logger: once is enough."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the run folder holds the log already
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")


def _check_device(config: TrainerConfig) -> None:
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but this machine shows no GPU to torch; take trainer=cpu, or install a torch "
            "build for your GPU."
        )
    device = _device(config).type
    if (config.kernel, device) in ((KernelName.gpu, "cpu"), (KernelName.cpu, "cuda")):
        raise UserError(
            f"trainer.kernel={config.kernel.value}, but the model will be on the {device.replace('cuda', 'gpu')}; "
            "take trainer.kernel=auto."
        )


def _device(config: TrainerConfig) -> torch.device:
    """Where a model is looked at without a trainer: one device of the trainer's kind."""
    device: torch.device = Fabric(accelerator=config.accelerator, devices=1).device
    return device


def _prefetch(config: TrainerConfig) -> bool:
    """Whether batches are made ahead. Beside a step on a CPU a batch takes 0.1 ms: there a thread gains nothing."""
    if config.prefetch is not None:
        return config.prefetch
    return torch.cuda.is_available() and config.accelerator != "cpu"


@contextmanager
def _compiled(model: ClickModel, wanted: bool) -> Iterator[None]:
    """Train with a compiled head: the one part with a fixed width for which torch has no hand-written kernel here.

    Raises UserError where torch can't compile.
    """
    if wanted:
        head = model.network.head
        assert isinstance(head, Head)
        head.compile(dynamic=True)
    try:
        yield
    except Exception as error:
        if not wanted or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            "trainer.compile=true: torch could not compile the network "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); take trainer.compile=false."
        ) from error


def _calibrate(model: ClickModel, name: CalibrationName, path: Path, write: bool) -> None:
    """Learn a calibration from the rows of the validation just made; it goes into the checkpoint too, by one process.

    Where the rows can't tell, a warning says so and the scores stay as they are.
    """
    _, label, probability = model.val_metrics.predictions()
    try:
        model.calibration = calibration.fit(name, label, probability)
    except ValueError as error:
        log.warning("calibration=%s is left out: %s.", name.name, error)
        return
    if write:
        state = torch.load(path, map_location="cpu", weights_only=True)
        beside = path.with_name(f".{path.name}")
        try:
            torch.save({**state, "calibration": model.calibration.state()}, beside)
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            beside.unlink(missing_ok=True)
            raise UserError(
                f"The calibration could not be written to {path} ({error}). Make room and run again."
            ) from error


def _model(config: ExperimentConfig, store: Store, settings: dict[str, Any] | None = None) -> ClickModel:
    features = Features(
        catalogue=torch.from_numpy(np.array(store.catalogue)),
        sizes=store.sizes,
        user_catalogue=torch.from_numpy(np.array(store.user_catalogue)),
        user_sizes=store.user_sizes,
        context_sizes=store.context_sizes,
    )
    if config.quirks.first_user_for_unknown:
        features = features.without_unknown_user()
    return ClickModel(
        models.build(features, config.model, config.quirks),
        config.optimizer,
        config.evaluation,
        config.quirks,
        aux_weight=getattr(config.model, "aux_weight", 0.0),
        vocabulary_hash=store.vocabulary_hash,
        name=config.model.name,
        settings=settings,
    )


def _trainer(
    experiment: ExperimentConfig, folder: Path, data: InteractionData, logger: Any, callbacks: list[Callback]
) -> L.Trainer:
    config, monitor = experiment.trainer, "val/published_auc" if experiment.quirks.published_auc else "val/auc"
    callbacks = [
        *callbacks,
        Checkpoints(
            folder,
            monitor,
            config.checkpoint_minutes and 60 * config.checkpoint_minutes,
            f"python run.py resume={shlex.quote(str(folder))}",
            logger.version if isinstance(logger, WandbLogger) and not getattr(rank_zero_only, "rank", 0) else None,
        ),
    ]
    if config.patience:
        callbacks.append(Patience(monitor=monitor, mode="max", patience=config.patience))
    progress = config.progress and sys.stderr.isatty()
    if progress:
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision=config.precision,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        val_check_interval=1,  # set below
        check_val_every_n_epoch=None if config.validate_every else 1,  # None counts steps across epochs
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        use_distributed_sampler=False,  # it would pad evaluation; the loader shards by itself
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=logger or False,
        callbacks=callbacks,
        plugins=[WholeFiles()],
        default_root_dir=folder,
    )
    data.trainer = trainer
    steps = len(data.train_dataloader())  # each process's share
    interval = max(1, min(config.validate_every or steps // config.validations_per_epoch, config.max_steps or steps))
    trainer.val_check_interval = interval
    return trainer


def _load(path: Path, model: ClickModel) -> ClickModel:
    """The model with the weights of a checkpoint; raises UserError where they are not this data set's and model's."""
    read = read_checkpoint(path)
    if read.vocabulary_hash is None:
        log.warning("%s doesn't say which vocabulary it was trained with; make sure that it is this data set's.", path)
    elif read.vocabulary_hash != model.vocabulary_hash:
        raise UserError(
            f"checkpoint={path} was trained with another vocabulary ({read.vocabulary_hash}) than this data set's "
            f"({model.vocabulary_hash}); give the data.* and protocol.* settings it was trained with."
        )
    try:
        model.load_state_dict(read.weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint={path} holds another model than the config describes; give the model.* and quirks.* settings "
            f"it was trained with (reference=true sets them all). {str(error).splitlines()[-1].strip()}"
        ) from error
    model.calibration = read.calibration
    return model
