"""What the profiles of conf/debug/ do: fewer rows, learning them by heart, and where a step's time goes.

`docs/debug.md` says how to use them.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from deepinterest import kernels
from deepinterest.atomic import beside
from deepinterest.config import DebugConfig, ExperimentConfig
from deepinterest.data.advice import advice
from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.prepare import hash_of
from deepinterest.data.samples import Samples, ranges
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.training.checks import Checks
from deepinterest.training.module import ClickModel

log = logging.getLogger(__name__)

WARM_UP, TRACED = 10, 5  # steps before those that are timed (kernels are compiled, memory is taken), and after them
OPERATIONS = 12  # of torch that are listed


def callbacks(config: ExperimentConfig, data: InteractionData, folder: Path, console: Console) -> list[Callback]:
    """What watches a run by its settings of `debug`."""
    debug, found = config.debug, list[Callback]()
    if debug.checks and not debug.overfit:
        found.append(Checks(data.store, len(data.train_dataloader()), advice(data.store.card, config.protocol)))
    if debug.overfit:
        found.append(Overfit(debug.overfit_loss, data.store.samples["train"].rows))
    if debug.profile_steps:
        found.append(Profile(debug.profile_steps, data, folder, console))
    return found


# ----------------------------------------------------------------------------------------------------------- fewer rows


def shrink(store: Store, config: DebugConfig, batch_size: int, seed: int) -> None:
    """Leave only the rows that `debug.fraction`, `debug.batches` and `debug.overfit` ask for; histories stay whole.

    The card and its split_hash change too, so that such a run is never compared with one of all rows. Raises UserError
    where a split is left with one label.
    """
    if config.fraction is None and config.batches is None and not config.overfit:
        return
    kept: list[np.ndarray] = []
    for name, samples in store.samples.items():
        groups = _groups(samples, config, batch_size, np.random.default_rng([seed, 9]))
        kept.append(groups)
        store.samples[name] = samples.take(groups)
        if name == "test":
            first = samples.candidate_offsets[groups]
            rows, _ = ranges(first, samples.candidate_offsets[groups + 1] - first)
            store.probes = {probe: values[rows] for probe, values in store.probes.items()}
    if config.overfit:
        learned = store.samples["train"]
        store.samples |= dict.fromkeys(("validation", "test"), learned)
        counts = np.bincount(store.log.item[store.seen], minlength=store.log.items)
        store.probes = {"popularity": counts[learned.candidates].astype(np.float32)}
    for name, samples in store.samples.items():
        if len(np.unique(samples.label)) < 2:
            raise UserError(
                f"debug settings leave {samples.rows:,} rows of {name}, all with label {samples.label[0]}: take more, "
                "by debug.fraction or debug.batches."
            )
    store.card |= {f"{name}_rows": samples.rows for name, samples in store.samples.items()}
    store.card["split_hash"] = hash_of(store.card["split_hash"].encode(), str(config.overfit).encode(), *kept)
    store.card["note: debug"] = "few rows of each split" + (", the same in all" if config.overfit else "")


def _groups(samples: Samples, config: DebugConfig, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    count = len(samples)
    if config.fraction is not None:
        count = max(1, round(config.fraction * count))
    if config.batches is not None:
        count = min(count, max(1, round(config.batches * batch_size * len(samples) / samples.rows)))
    return np.sort(rng.choice(len(samples), count, replace=False))


# ------------------------------------------------------------------------------------------------------- learn by heart


class Overfit(Callback):
    """Stops where the rows are learned by heart, and says whether they could be.

    Looked at is val/logloss: the validation rows are the training rows.
    """

    def __init__(self, enough: float, rows: int) -> None:
        self.enough, self.rows = enough, rows
        self.losses: list[float] = []
        self.learned = False

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.losses.append(float(trainer.callback_metrics["val/logloss"]))
        self.learned = self.losses[-1] < self.enough
        trainer.should_stop |= self.learned

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not self.losses:
            return
        begin, steps = f"{self.rows:,} rows", f"{trainer.global_step:,} steps"
        if self.learned:
            log.info("Overfit: the logloss of %s is %.4f after %s: learned by heart.", begin, self.losses[-1], steps)
            return
        assert isinstance(module, ClickModel)
        log.warning(
            "Overfit: the logloss of %s is still %.4f after %s (best %.4f, wanted %.4f), so the network could not "
            "learn them by heart. Is optimizer.lr=%s too small or too large (task=tune), the network too narrow, the "
            "same item asked twice of one history with both labels, or the loss cut off from the weights?",
            *(begin, self.losses[-1], steps, min(self.losses), self.enough, module.optimizer_config.lr),
        )


# ------------------------------------------------------------------------------------------------------ where time goes


class Profile(Callback):
    """Times the parts of training steps, then traces a few more with torch's profiler.

    Writes profile.json and trace.json.gz (for https://ui.perfetto.dev) and prints a table. On a GPU the device is
    waited for at each mark, so that a part's time is its own.
    """

    def __init__(self, steps: int, data: InteractionData, folder: Path, console: Console) -> None:
        self.steps, self.data, self.folder, self.console = steps, data, folder, console
        self.seconds: dict[str, float] = defaultdict(float)
        self.modules: dict[str, float] = defaultdict(float)
        self.timed = self.rows = self._seen = 0
        self._timing, self.loading = False, 0.0
        self._mark = self._begin = self._total = 0.0
        self._profiler: profile | None = None
        self._undo: list[Callable[[], None]] = []
        self.content: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, ClickModel)
        loader = self.data.train_dataloader()
        plain = loader.batch

        def batch(*arguments: Any, **named: Any) -> Batch:
            begin = time.perf_counter()
            loaded = plain(*arguments, **named)
            if self._timing:
                self.loading += time.perf_counter() - begin
            return loaded

        loader.batch = batch  # type: ignore[method-assign]
        self._undo.append(lambda: loader.__dict__.pop("batch"))
        for name, child in module.network.named_children():
            self._watch(name, child, module)

    def _watch(self, name: str, child: torch.nn.Module, module: L.LightningModule) -> None:
        begins: list[float] = []
        before = child.register_forward_pre_hook(lambda *_: begins.append(self._now(module)))

        def after(*_: Any) -> None:
            spent = self._now(module) - begins.pop()
            if self._timing and module.training:
                self.modules[name] += spent

        self._undo += [before.remove, child.register_forward_hook(after).remove]

    def _now(self, module: L.LightningModule) -> float:
        if self._timing and module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()

    def _part(self, name: str, module: L.LightningModule) -> None:
        """What was done since the last mark."""
        if self._timing:
            now = self._now(module)
            self.seconds[name] += now - self._mark
            self._mark = now

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_index: int
    ) -> None:
        if self._timing:
            self._mark = self._now(module)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: torch.Tensor) -> None:
        self._part("forward and loss", module)

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._part("backward", module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        self._seen += 1
        if self._timing:
            self._part("optimizer", module)
            self.timed += 1
            self.rows += len(batch)
            if self.timed == self.steps:
                self._stop_timing(module)
        if self._seen == WARM_UP:
            self._timing = True
            self._begin = self._now(module)
        elif self._profiler is not None:
            self._profiler.step()
            if self._seen == WARM_UP + self.steps + TRACED:
                self._stop_tracing()
        elif self.timed == self.steps and "operations" not in self.content:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if module.device.type == "cuda" else [])]
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._timing:  # it isn't part of a step
            self._total += self._now(module) - self._begin

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._timing:
            self._begin = self._now(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self._timing:
            self._stop_timing(module)
        self._stop_tracing()
        for undo in self._undo:
            undo()
        if not self.timed:
            log.warning(
                "Nothing was timed: the run had %d steps, and the first %d only warm up. Give it more, by "
                "debug.batches or trainer.max_epochs.",
                *(self._seen, WARM_UP),
            )
            return
        self.console.print(table(self.content))
        log.info("profile: %s", self.folder / "profile.json")
        if self.content["operations"]:
            log.info("trace, for ui.perfetto.dev: %s", self.folder / "trace.json.gz")

    def _stop_timing(self, module: L.LightningModule) -> None:
        self._total += self._now(module) - self._begin
        self._timing = False
        # With trainer.prefetch a thread loads while the others compute.
        beside = self.data.train_dataloader().prefetch
        rest = self._total - sum(self.seconds.values()) - (0 if beside else self.loading)
        parts = {
            f"load the batch{' (meanwhile)' if beside else ''}": self.loading,
            **{name: self.seconds[name] for name in ("forward and loss", "backward", "optimizer")},
            "Lightning, callbacks, transfer": max(0.0, rest),
        }
        within = dict(sorted(self.modules.items(), key=lambda entry: -entry[1]))
        within["the rest of it"] = max(0.0, self.seconds["forward and loss"] - sum(within.values()))

        def table_of(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
            return {
                name: {"ms": 1000 * value / self.timed, "share": value / self._total} for name, value in seconds.items()
            }

        self.content = {
            "steps": self.timed,
            "rows": self.rows,
            "device": str(module.device),
            "threads": kernels.allowed(),
            "ms_per_step": 1000 * self._total / self.timed,
            "samples_per_s": self.rows / self._total,
            "parts": table_of(parts),
            "forward": table_of(within),
        }

    def _stop_tracing(self) -> None:
        """End the trace if there is one, and write what was found."""
        operations, traced = {}, self._profiler
        if traced is not None:
            traced.stop()
            self._profiler = None
            events = sorted(traced.key_averages(), key=lambda event: -event.self_cpu_time_total)[:OPERATIONS]
            operations = {event.key: event.self_cpu_time_total / 1000 for event in events}
        elif not self.content or "operations" in self.content:
            return
        self.content["operations"] = operations  # milliseconds of the CPU, over all traced steps
        try:
            if traced is not None:
                with beside(self.folder / "trace.json.gz") as packed, NamedTemporaryFile(dir=self.folder) as plain:
                    traced.export_chrome_trace(plain.name)
                    with Path(plain.name).open("rb") as source, gzip.open(packed, "wb", 3) as target:
                        shutil.copyfileobj(source, target)
            with beside(self.folder / "profile.json") as own:
                own.write_text(json.dumps(self.content, indent=2))
        except OSError as error:
            raise UserError(
                f"The profile could not be written to {self.folder}: {error.strerror or error}. "
                "Make room and run again."
            ) from error


def table(content: dict[str, Any]) -> Table:
    """The content of profile.json for the terminal."""
    shown = Table(
        title=f"A training step: {content['ms_per_step']:.1f} ms",
        caption=f"{content['samples_per_s']:,.0f} samples/s; {content['steps']} steps on {content['device']}, "
        f"torch threads: {content['threads']}",
    )
    shown.add_column("part")
    shown.add_column("ms", justify="right")
    shown.add_column("share", justify="right")
    for name, value in content["parts"].items():
        shown.add_row(name, f"{value['ms']:.2f}", f"{value['share']:.0%}")
        if name == "forward and loss":
            for part, inner in content["forward"].items():
                shown.add_row(f"  {part}", f"{inner['ms']:.2f}", f"{inner['share']:.0%}")
    return shown
