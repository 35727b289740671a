"""One run, as a function of its config: data → model → trainer → fit → test → results."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

from deepinterest import debug, kernels, machine, models
from deepinterest.atomic import beside
from deepinterest.config import CalibrationName, ExperimentConfig, Tables, Task
from deepinterest.data.advice import advice
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.layout_export import export
from deepinterest.data.store import STAGES, Store
from deepinterest.errors import Interrupted, UserError, no_room
from deepinterest.folders import RunFolder
from deepinterest.nn import sharded
from deepinterest.nn.embedding import Features
from deepinterest.report import data_card, explain, probing, run_folder, terminal
from deepinterest.resuming import start_of
from deepinterest.serving import predict, vocabulary
from deepinterest.serving.checkpoint import read as read_checkpoint
from deepinterest.serving.checkpoint import refuse_misfit
from deepinterest.training import calibration, loggers, naming, needs, peak, tuning
from deepinterest.training.callbacks import Curves, Throughput
from deepinterest.training.checkpoints import Checkpoints, state_of, take_best
from deepinterest.training.lost import LostProcess
from deepinterest.training.memory import keep_freed_memory
from deepinterest.training.module import ClickModel
from deepinterest.training.trainer import calm, check_device, compiled, device_of, make_trainer, prefetch, threads

log = logging.getLogger(__name__)
SUMMARY = "auc", "gauc", "logloss"
BYTES = 12  # of a parameter in a checkpoint: itself and Adam's two means


def run(config: ExperimentConfig, resolved: dict[str, Any]) -> dict[str, float]:
    """Do the config's task; everything worth keeping lands in `config.paths.run`.

    Args:
        resolved: the whole config as plain values, for the run folder and the logger.
    Returns: the content of metrics.json; of other tasks than train and test, what they found.
    """
    with RunFolder(config, resolved) as place:
        calm()
        machine.check(config.trainer)
        kernels.use(config.trainer.kernel)
        keep_freed_memory()
        if config.task not in (Task.prepare, Task.data):
            check_device(config.trainer)
        with threads(config.trainer):
            return _run(config, resolved, place)


def _run(config: ExperimentConfig, resolved: dict[str, Any], place: RunFolder) -> dict[str, float]:
    begin = time.perf_counter()
    peak.start()
    quiet = bool(getattr(rank_zero_only, "rank", 0))  # of several processes one speaks
    console, results = terminal.progress(quiet), terminal.results(quiet)
    L.seed_everything(config.seed, verbose=False)
    if config.task is Task.predict:
        found = predict.run(config, console, device_of(config.trainer))
        place.take()
        return found
    trains_or_tests = config.task in (Task.train, Task.test)
    if trains_or_tests and not quiet:
        loggers.check(config.logger)
    if config.task in (Task.test, Task.probe, Task.explain):
        read_checkpoint(str(config.checkpoint))  # says so at once where it can't be read
    data = _data(config, console)
    if config.task not in (Task.prepare, Task.data):
        debug.shrink(data.store, config.debug, config.trainer.batch_size, config.data.seed)
    folder = place.take()
    if not quiet:
        run_folder.write_json(folder / "data_card.json", data.store.card)
    if config.task in (Task.prepare, Task.data):
        return _look_at_data(config, resolved, data.store, folder, results)
    if not (trains_or_tests and naming.in_own_sweep()):  # a sweep shows the card of each data set once
        results.print(terminal.card_table(data.store.card))
    if trains_or_tests:
        return _train_and_test(config, resolved, data, place, results, begin)
    return _look_at_model(config, resolved, data, folder, console, results)


def _data(config: ExperimentConfig, console: Console) -> InteractionData:
    """Prepared, or found in the cache."""
    data = InteractionData(
        config.data,
        config.protocol,
        batch_size=config.trainer.batch_size,
        eval_batch_size=config.trainer.eval_batch_size,
        seed=config.seed,
        auxiliary=getattr(config.model, "aux_negatives", None),
        cache=config.paths.cache,
        prefetch=prefetch(config.trainer),
        quirks=config.quirks,
    )
    what = f"Preparing {config.data.name}"
    with Progress(console=console, transient=True, disable=naming.in_sweep()) as bar:
        task = bar.add_task(what, total=len(STAGES))
        data.prepare_data(lambda stage: bar.update(task, advance=1, description=f"{what}: {stage}"))
    return data


def _look_at_data(
    config: ExperimentConfig, resolved: dict[str, Any], store: Store, folder: Path, results: Console
) -> dict[str, float]:
    """task=prepare and task=data."""
    if config.task is Task.prepare:
        print(store.folder)
        return {}
    data_card.show(results, store.card)
    for text in advice(store.card, config.protocol):
        log.warning("%s", text)
    data_card.write(folder, resolved, store, config.protocol.max_history, config.data.timezone)
    return _rows(store)


def _look_at_model(
    config: ExperimentConfig,
    resolved: dict[str, Any],
    data: InteractionData,
    folder: Path,
    console: Console,
    results: Console,
) -> dict[str, float]:
    """task=export_reference, tune, probe and explain; the last two of a trained model."""
    store = data.store
    if config.task is Task.export_reference:
        export(store, folder / "layout")
        log.info("The published layout of %s is in %s.", config.data.name, folder / "layout")
        return _rows(store)
    log.info("%s on %s, seed %d, in %s", config.model.name, config.data.name, config.seed, folder)
    device = device_of(config.trainer)
    if config.task is Task.tune:
        return tuning.run(lambda: _model(config, store, resolved).to(device), data, config.tune, folder, console)
    trained = _load(Path(str(config.checkpoint)), lambda: _model(config, store, resolved)).to(device)
    if config.task is Task.probe:
        with console.status("Probing"):
            found = probing.run(trained, data, folder, config.seed)
        results.print(probing.table(found))
        log.info(found["summary"])
        return probing.metrics(found)
    explained, page = explain.run(trained, data, folder, config.explain, config.seed)
    log.info("%s", "\n".join([*explain.remarks(trained), f"{len(explained)} rows are drawn in {page}."]))
    return {"rows": float(len(explained))}


def _rows(store: Store) -> dict[str, float]:
    return {f"{name}_rows": float(samples.rows) for name, samples in store.samples.items()}


def _train_and_test(
    config: ExperimentConfig,
    resolved: dict[str, Any],
    data: InteractionData,
    place: RunFolder,
    results: Console,
    begin: float,
) -> dict[str, float]:
    """task=train, from the start or from where a run stopped, and task=test."""
    store, folder, training = data.store, place.path, config.task is Task.train
    log.info("%s on %s, seed %d, in %s", config.model.name, config.data.name, config.seed, folder)
    start = start_of(config)
    identity = None
    if start is None:
        model = _model(config, store, resolved)
    else:
        model = _load(start, lambda: _model(config, store, resolved))
        model.calibration = None  # that was learned after training
        identity = state_of(start)["logger"]
        take_best(start, folder)
    if training:
        place.refuse_full(BYTES * sharded.size(model))

    name, group = naming.run_name(config, start), naming.group_of(config, start)
    tagged = replace(config.logger, tags=naming.tags_of(config))
    logger = loggers.make_logger(tagged, folder, Path(config.paths.output), name, resolved, group, identity)
    if logger:
        logger.log_hyperparams({"data_card": store.card})
    lost = LostProcess(folder)
    with _ended(logger, lost, folder, store):
        curves, speed = Curves(), Throughput()
        watching = debug.callbacks(config, data, folder, results) if training else []
        trainer = make_trainer(config, folder, data, logger, [curves, speed, lost, *watching])
        if training:
            if trainer.is_global_zero:
                context = config.data.columns.context_features if store.context_sizes else []
                vocabulary.write(folder, store, model.network.users is not None, context)
            (saving,) = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints))
            with compiled(model, config.trainer.compile), saving.taking_over(start):
                trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)

        checkpoint = folder / "best.ckpt" if training else Path(str(config.checkpoint))
        best = _load(checkpoint, lambda: _model(config, store, resolved))
        trainer.validate(best, datamodule=data, verbose=False)
        if training and config.calibration is not CalibrationName.none:
            _calibrate(best, config.calibration, checkpoint, trainer.is_global_zero)
        trainer.test(best, datamodule=data, verbose=False)
        costs = {
            "seconds": time.perf_counter() - begin + speed.before,
            "parameters": float(sharded.size(model)),
            **peak.memory(),
        }
        if training:
            costs["train/seconds"], costs["samples_per_s"] = speed.seconds, speed.samples_per_second
            costs["steps"] = float(trainer.global_step)
        probes = run_folder.probes(store)
        metrics = best.scores | probes | costs
        _, label, probability = best.test_metrics.predictions()
        if trainer.is_global_zero:
            drawn = run_folder.figures(best, data, curves, label, probability, config.evaluation.ece_bins)
            loggers.log_images(logger, drawn)
            if logger:
                shown = {name: value for name, value in costs.items() if "/" not in name}
                logger.log_metrics(probes | shown, trainer.global_step)
            predictions = run_folder.predictions(store, label, probability, data.test_dataloader().row_order())
            run_folder.write(folder, resolved, metrics, curves.points, predictions, drawn)
            log.info("test auc %.4f, gauc %.4f, logloss %.4f", *(metrics[f"test/{m}"] for m in SUMMARY))
            if not naming.in_own_sweep():
                results.print(terminal.metrics_table(metrics))
        sharded.finish(best.network)  # while process 0 draws, the others read rows for it
        return metrics


@contextmanager
def _ended(logger: Any, lost: LostProcess, folder: Path, store: Store) -> Iterator[None]:
    """Around training: what ends it from outside becomes a sentence; the logger is finished.

    That is a lost process, a full disk, prepared data that somebody deletes, or Ctrl-C where training is over.
    """

    def stopped(number: int, frame: Any) -> None:
        raise Interrupted(f"Ctrl-C stopped the run. {naming.again(folder)}", number)

    main = threading.current_thread() is threading.main_thread()  # Lightning takes a KeyboardInterrupt without a word
    before = signal.signal(signal.SIGINT, stopped) if main else None
    failed = True
    torch.set_flush_denormal(True)  # rows long untouched decay into denormals, which are slow
    try:
        yield
        failed = False
    except Exception as error:
        if isinstance(error, RuntimeError) and (said := lost.said(error)):
            raise UserError(said) from error
        if reason := no_room(error):
            raise UserError(f"Results could not be written to {folder}: {reason}. Make room and run again.") from error
        if isinstance(error, FileNotFoundError) and not store.folder.is_dir():
            raise UserError(
                f"The prepared data {store.folder} were deleted while the run used them. {naming.again(folder)}"
            ) from error
        raise
    finally:
        lost.end()
        torch.set_flush_denormal(False)
        if before is not None:
            signal.signal(signal.SIGINT, before)
        loggers.finish(logger, int(failed))


def _model(config: ExperimentConfig, store: Store, settings: dict[str, Any] | None = None) -> ClickModel:
    features = Features(
        catalogue=torch.from_numpy(np.array(store.catalogue)),
        sizes=store.sizes,
        user_catalogue=torch.from_numpy(np.array(store.user_catalogue)),
        user_sizes=store.user_sizes,
        context_sizes=store.context_sizes,
        sharded=config.embedding is Tables.sharded,
    )
    if config.quirks.first_user_for_unknown:
        features = features.without_unknown_user()
    if config.task in (Task.train, Task.tune):
        needs.check(config, store, features)
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


def _load(path: Path, build: Callable[[], ClickModel]) -> ClickModel:
    """The model with the weights of a checkpoint; raises UserError where they are not this data set's and model's."""
    read = read_checkpoint(path)
    with torch.device("meta"):  # no room is made for it
        vocabulary_hash = build().vocabulary_hash
    if read.vocabulary_hash is None:
        log.warning("%s doesn't say which vocabulary it was trained with; make sure that it is this data set's.", path)
    elif read.vocabulary_hash != vocabulary_hash:
        raise UserError(
            f"checkpoint={path} was trained with another vocabulary ({read.vocabulary_hash}) than this data set's "
            f"({vocabulary_hash}); give the data.* and protocol.* settings it was trained with."
        )
    refuse_misfit(
        read,
        build,
        remedy="Give the model.* and quirks.* settings it was trained with (reference=true sets them all).",
    )
    model = build()
    model.load_state_dict(read.weights)
    model.calibration = read.calibration
    return model


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
        try:
            with beside(path) as own:
                torch.save({**state, "calibration": model.calibration.state()}, own)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise UserError(
                f"The calibration could not be written to {path} ({error}). Make room and run again."
            ) from error
