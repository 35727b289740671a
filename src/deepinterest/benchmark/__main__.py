"""Command line of the benchmarks: each prints a table and, last, one JSON line."""

from __future__ import annotations

from deepinterest import ctrl_c

if __name__ == "__main__":  # before anything slow is imported
    ctrl_c.quit_at_once()

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from deepinterest.errors import UserError, nearest

DESCRIPTION = """How fast the product is, on a made-up log of the size of Amazon Books (docs/speed.md).

  training     rows/s of loader, network, loss and optimiser; --parts says where the time goes, --scoring scores
  evaluation   AUC and GAUC of ten million scores, and rows scored a second
  loading      rows/s of the loader alone
  optimizer    DeferredAdam against torch's dense Adam and SparseAdam
  threads      training on one thread and on several, alone and beside a busy process
  kernels      the recurrences' kernels against each other and torch.nn.GRU
  gpu          all that needs a GPU, in one call
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="lightning.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m deepinterest.benchmark",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, add) in COMMANDS.items():
        command = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(run=run)
        least = 2 if name == "threads" else 1
        command.add_argument("--threads", type=number(least), default=least, help="of torch")
        command.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if name == "gpu" else "cpu")
        size = command.add_argument_group("size of the log; the defaults are Amazon Books'")
        size.add_argument("--users", type=number(1), default=543_060)
        size.add_argument("--items", type=number(2), default=367_983)
        size.add_argument("--categories", type=number(1), default=1_601)
        add(command)
    return parser


def number(least: int) -> Callable[[str], int]:
    """A whole number of at least so many, for argparse."""

    def read(text: str) -> int:
        if not text.replace("_", "").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not possible: a whole number of at least {least}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not possible: a number above 0")
    return value


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", choices=("dien", "din", "dnn"), default="dien")
    command.add_argument("--lengths", default="realistic", help="of histories: realistic, full (all 100) or a number")
    command.add_argument("--precision", choices=("32", "bf16"), default="32")
    command.add_argument("--kernel", default="auto", help="of the recurrences: auto, torch, cpu, gpu, oracle")
    command.add_argument("--hidden", type=number(1), default=36, help="states of the recurrences")
    command.add_argument("--candidates", type=number(1), default=1, help="that share a history")
    command.add_argument("--seconds", type=_seconds, default=10.0)


def _add_training(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("--batch-size", type=number(1), default=128, help="rows")
    command.add_argument("--compile", action="store_true", help="as trainer.compile=true")
    command.add_argument("--prefetch", action=argparse.BooleanOptionalAction, help="as trainer.prefetch")
    command.add_argument("--scoring", action="store_true", help="score, do not train")
    command.add_argument("--through-lightning", action="store_true", help="within the trainer of a run")
    command.add_argument("--logger", choices=("wandb", "csv", "none"), default="wandb", help="with --through-lightning")
    command.add_argument("--parts", action="store_true", help="time by part, against each part's floor")


def _settings(options: argparse.Namespace, **more: Any) -> Any:
    """What the options say, in a process made ready; torch is imported only now."""
    from deepinterest.benchmark import measure
    from deepinterest.benchmark.training import Settings
    from deepinterest.benchmark.workload import Size
    from deepinterest.config import KernelName

    kernel = getattr(options, "kernel", "auto")
    if kernel not in KernelName.__members__:
        names = ", ".join(KernelName.__members__)
        raise UserError(f"--kernel {kernel} is not possible: one of {names}{nearest(kernel, KernelName.__members__)}.")
    if (kernel, options.device) in (("gpu", "cpu"), ("cpu", "cuda")):
        raise UserError(f"--kernel {kernel} does not run with --device {options.device}: take --kernel auto.")
    measure.settle(options.threads, options.device, kernel)
    known = {name: value for name, value in vars(options).items() if name in Settings.__dataclass_fields__}
    return Settings(**(known | more), size=Size(options.users, options.items, options.categories))


def _training(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import measure, parts, training

    if options.scoring and (options.through_lightning or options.parts):
        raise UserError("--scoring goes with neither --through-lightning nor --parts: it trains nothing.")
    settings = _settings(options)
    workload = settings.workload()
    result = training.describe(settings)
    if options.parts:
        result["parts"] = parts.measure(settings, workload)
        measure.show(parts.table(settings, result["parts"]))
    rates = training.run(settings, workload)
    measure.show(training.table(settings, [(settings, rates)]))
    print(f"samples_per_s={rates.median:.0f}")
    measure.tell(result | rates.plain("samples_per_s"))


def _add_evaluation(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("--batch-size", type=number(1), default=4096, help="rows scored at a time")
    command.add_argument("--scores", type=number(1000), default=10_000_000)


def _evaluation(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import evaluation

    evaluation.run(_settings(options, scoring=True), options.scores)


def _add_loading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--lengths", default="realistic", help="of histories: realistic, full (all 100) or a number")
    command.add_argument("--seconds", type=_seconds, default=2.0, help="for each row of the table")
    command.add_argument("--batch-sizes", type=number(1), nargs="+", default=[128, 1024, 8192])


def _loading(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import loading

    loading.run(_settings(options), options.batch_sizes)


def _add_optimizer(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch-size", type=number(1), default=128, help="rows")
    command.add_argument("--seconds", type=_seconds, default=3.0, help="for each row of the table")


def _optimizer(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import optimizer

    optimizer.run(_settings(options))


def _add_threads(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.set_defaults(seconds=3.0)
    command.add_argument("--batch-size", type=number(1), default=128, help="rows")
    command.add_argument("--rounds", type=number(1), default=5, help="of four measurements of --seconds each")


def _threads(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import threads

    threads.run(_settings(options), options.rounds)


def _add_kernels(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch-size", type=number(1), default=128, help="sequences")
    command.add_argument("--hidden", type=number(1), nargs="+", default=[16, 36, 64, 128])
    command.add_argument("--lengths", nargs="+", default=["realistic", "full"])


def _kernels(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import kernels

    kernels.run(_settings(options, lengths="realistic", hidden=36), options.lengths, options.hidden)


def _add_gpu(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=_seconds, default=3.0, help="for each row of the table")
    command.add_argument("--batch-sizes", type=number(1), nargs="+", default=[128, 1024, 8192])
    command.add_argument("--hidden", type=number(1), nargs="+", default=[16, 36, 64, 128], help="of the kernels' table")


def _gpu(options: argparse.Namespace) -> None:
    from deepinterest.benchmark import gpu

    gpu.run(_settings(options, hidden=36), options.batch_sizes, options.hidden)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None]]] = {
    "training": (_training, _add_training),
    "evaluation": (_evaluation, _add_evaluation),
    "loading": (_loading, _add_loading),
    "optimizer": (_optimizer, _add_optimizer),
    "threads": (_threads, _add_threads),
    "kernels": (_kernels, _add_kernels),
    "gpu": (_gpu, _add_gpu),
}


if __name__ == "__main__":
    sys.exit(main())
