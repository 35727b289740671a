"""`python -m deepinterest.dashboard [--entity E] [--project P]`: our workspace in Weights & Biases, as code.

It names the figures that every run logs (docs/wandb.md). With a key it is saved online, otherwise its JSON in a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepinterest.config import LoggerConfig
from deepinterest.errors import UserError, tell
from deepinterest.training import account

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

STEP = "trainer/global_step"
NAME = "deepinterest"
PROBES = ("popularity", "popularity_hour_before", "popularity_day_before", "in_history", "category_count")
# Columns of the list of runs.
COLUMNS = ("val/auc", "test/auc", "test/gauc", "test/logloss", "test/ece", "samples_per_s", "seconds")
# Settings that the sweep's panels lay beside the validation AUC: of every model.
SETTINGS = ("model.name", "model.embedding_dim", "optimizer.lr", "trainer.batch_size", "trainer.max_epochs", "seed")


def workspace(entity: str, project: str, *, grouped: bool = False) -> Workspace:
    """The workspace, not saved.

    Args:
        grouped: runs of a sweep are one line, their mean with its range; outside of sweeps those of a model.
    Raises: UserError where wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise UserError(
            'the dashboard needs its package: pip install -e ".[dashboard]"; every run is logged without it'
        ) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=20),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group")] if grouped else [],
            pinned_columns=["run:displayName", *(f"summary:{name}" for name in COLUMNS)],
        ),
    )


def _sections() -> list[Section]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def curve(name: str, title: str, **more: Any) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=STEP, y=[name], **more)

    def system(name: str, title: str) -> wr.LinePlot:
        return wr.LinePlot(title=title, x="RelativeTime(Process)", y=[f"system/{name}"])

    def bars(title: str, *names: str, **more: Any) -> wr.BarPlot:
        return wr.BarPlot(title=title, metrics=list(names), **more)

    def images(title: str, *names: str) -> wr.MediaBrowser:
        return wr.MediaBrowser(title=title, media_keys=list(names))

    def against(title: str, x: str, y: str, **more: Any) -> wr.ScatterPlot:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), **more)

    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=name == "optimizer.lr") for name in SETTINGS
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("val/auc")))
    return [
        ws.Section(
            name="Quality",
            is_open=True,
            panels=[
                curve("val/auc", "AUC, validation"),
                curve("val/gauc", "AUC within users, validation"),
                curve("val/logloss", "Logloss, validation"),
                curve("train/click_loss", "Logloss, training"),
                bars("AUC, test", "test/auc"),
                bars("AUC within users, test", "test/gauc"),
                bars("Logloss, test", "test/logloss"),
                against("Validation against test", "val/auc", "test/auc"),
                images("ROC, test", "roc"),
                images("Learning curves", "learning_curves"),
            ],
        ),
        ws.Section(
            name="Without a network",
            panels=[
                bars("AUC of trivial scores, test", *(f"probe/{name}_auc" for name in PROBES)),
                against("A counter against the model", "probe/popularity_day_before_auc", "test/auc"),
            ],
        ),
        ws.Section(
            name="Auxiliary loss",
            panels=[
                curve("train/auxiliary_loss", "Auxiliary loss"),
                curve("train/loss", "What is trained on: logloss and weighted auxiliary loss"),
                images("Attention", "attention"),
            ],
        ),
        ws.Section(
            name="Calibration",
            panels=[
                curve("val/ece", "Expected calibration error, validation"),
                bars("Expected calibration error, test", "test/ece"),
                images("Calibration, test", "calibration"),
            ],
        ),
        ws.Section(
            name="Throughput and cost",
            panels=[
                curve("train/samples_per_s", "Samples/s of training"),
                bars("Seconds", "seconds"),
                bars("Parameters", "parameters"),
                bars("Memory, GiB", "memory_gib"),
                against("Quality against cost", "seconds", "test/auc", log_x=True),
            ],
        ),
        ws.Section(
            name="System",
            panels=[
                system("cpu", "Process CPU, %"),
                system("proc.memory.rssMB", "Process memory, MB"),
                system("memory_percent", "Memory of the machine, %"),
                system("gpu.0.gpu", "GPU, %"),
                system("gpu.0.memoryAllocated", "GPU memory, %"),
            ],
        ),
        ws.Section(
            name="Sweeps",
            panels=[
                wr.ParallelCoordinatesPlot(title="Settings and AUC, validation", columns=columns),
                wr.ParameterImportancePlot(with_respect_to="val/auc"),
                bars("AUC, validation: mean and range of each sweep", "val/auc", groupby="Group",
                     groupby_aggfunc="mean", groupby_rangefunc="minmax"),
                wr.RunComparer(diff_only="split"),
            ],
        ),
    ]  # fmt: skip


def as_json(built: Workspace) -> str:
    """What Weights & Biases keeps of a workspace, with where it belongs."""
    view = built._to_model().model_dump(by_alias=True, exclude_none=True)
    return json.dumps({name: view[name] for name in ("entity", "project", "displayName", "spec")}, indent=1)


def save(built: Workspace, url: str | None) -> str:
    """Save a workspace online and return its address; `url` is that of a saved one to replace. Raises UserError."""
    import wandb
    from wandb_workspaces.workspaces import Workspace

    try:
        built.entity = built.entity or wandb.Api().default_entity or ""
        if not built.entity:
            raise UserError("whose workspace is it to be? Name the user or team: --entity NAME")
        if url:
            kept = Workspace.from_url(url)
            built.entity, built.project = kept.entity, kept.project
            built._internal_name, built._internal_id = kept._internal_name, kept._internal_id
        return str(built.save().url)
    except Exception as error:
        own = type(error).__module__.startswith("wandb")  # its classes have no common parent
        if not own and not isinstance(error, ValueError | OSError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the workspace could not be saved to {built.entity}/{built.project}: {reason}. The project is there once "
            "a run was logged to it online"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Saves the workspace or writes its JSON and says where; returns 1 after a sentence for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m deepinterest.dashboard",
        description="Our workspace in Weights & Biases: saved online where there is a key, otherwise as JSON.",
    )
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""), help="user or team [your own]")
    parser.add_argument("--project", default=LoggerConfig.project, help="as logger.project [%(default)s]")
    parser.add_argument("--url", help="of a workspace saved before: it is replaced; otherwise there is a new one")
    parser.add_argument("--grouped", action="store_true", help="one line a sweep, the mean of its runs with its range")
    parser.add_argument("--offline", action="store_true", help="write the JSON, even with a key")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/wandb_workspace.json"), metavar="PATH", help="JSON [%(default)s]"
    )
    options = parser.parse_args(arguments)
    try:
        built = workspace(options.entity, options.project, grouped=options.grouped)
        reason = _why_not(options.offline)
        if not reason:
            print(f"workspace: {save(built, options.url)}")
            return 0
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            beside = options.out.with_name(f".{options.out.name}.{os.getpid()}")
            beside.write_text(as_json(built))
            beside.replace(options.out)
        except OSError as error:
            raise UserError(
                f"{options.out} can't be written: {error.strerror}; name another file, --out PATH"
            ) from error
        print(f"{reason}, so it was not saved online; written: {options.out}")
        return 0
    except UserError as error:
        tell(error)
        return 1


def _why_not(offline: bool) -> str:
    """Why a workspace is not saved online; nothing where it is."""
    if offline:
        return "--offline was given"
    url = account.base_url()
    if not account.has_key(url):
        return "There is no key of Weights & Biases (`wandb login` makes one)"
    return "" if account.reachable(url, account.PROBE_SECONDS) else f"{url} does not answer"


if __name__ == "__main__":
    sys.exit(main())
