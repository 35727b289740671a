"""The three networks learn what they are for: data with a known best AUC, in which the order of events matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from deepinterest import models
from deepinterest.config import (
    DIENConfig,
    DINConfig,
    DNNConfig,
    EvaluationConfig,
    Exclude,
    LeaveLastOutConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    SyntheticConfig,
    TargetsPerUser,
)
from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.nn.embedding import Features
from deepinterest.training import scores
from deepinterest.training.module import ClickModel

SEED = 1
# Few and long rings: a negative often lies on a ring the user walks, so that the place on it decides.
DATA = SyntheticConfig(seed=SEED)  # the defaults are made for this
PROTOCOL = LeaveLastOutConfig(
    targets_per_user=TargetsPerUser(train=14, validation=1, test=1), negatives=NegativesConfig(exclude=Exclude.positive)
)
NETWORKS: list[ModelConfig] = [DNNConfig(), DINConfig(), DIENConfig()]


@dataclass
class Scores:
    best: float  # AUC of the generator's own likelihood ratios
    auc: dict[str, float]  # by network
    shuffled: dict[str, float]  # the same networks, but the test histories are out of order


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scores]:
    """All three networks, trained: half a minute of one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them only slow such small networks down
    torch.set_flush_denormal(True)
    cache = tmp_path_factory.mktemp("learning")
    try:
        yield train_and_score(cache)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def train_and_score(cache: Path) -> Scores:
    result = Scores(float("nan"), {}, {})
    for config in NETWORKS:
        data = InteractionData(
            DATA,
            PROTOCOL,
            batch_size=512,
            eval_batch_size=4096,
            seed=SEED,
            auxiliary=getattr(config, "aux_negatives", None),
            cache=str(cache),
        )
        model = trained(config, data)
        result.auc[config.name] = auc_of(model, data, shuffle=False)
        result.shuffled[config.name] = auc_of(model, data, shuffle=True)

        ratio = data.store.probes["best_reachable"]
        rank = np.unique(ratio, return_inverse=True)[1]
        result.best = scores.auc(data.store.samples["test"].label, rank / rank.max())
    return result


def trained(config: ModelConfig, data: InteractionData) -> ClickModel:
    L.seed_everything(SEED, verbose=False)
    store = data.store
    features = Features(
        catalogue=torch.from_numpy(np.array(store.catalogue)),
        sizes=store.sizes,
        user_catalogue=torch.from_numpy(np.array(store.user_catalogue)),
        user_sizes=store.user_sizes,
    )
    aux_weight = getattr(config, "aux_weight", 0.0)
    network = models.build(features, config)
    model = ClickModel(network, OptimizerConfig(lr=5e-3), EvaluationConfig(), aux_weight=aux_weight)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    return model.eval()


@torch.inference_mode()
def auc_of(model: ClickModel, data: InteractionData, shuffle: bool) -> float:
    rng = np.random.default_rng(SEED)
    batches = [out_of_order(batch, rng) if shuffle else batch for batch in data.test_dataloader()]
    label = torch.cat([batch.label for batch in batches])
    return scores.auc(label.numpy(), torch.cat([model(batch) for batch in batches]).numpy())


def out_of_order(batch: Batch, rng: np.random.Generator) -> Batch:
    """Each history's own events in a random order."""
    history = np.repeat(np.arange(len(batch.offsets) - 1), batch.offsets.diff().numpy())
    order = np.lexsort((rng.random(len(history)), history))
    return replace(batch, history=batch.history[torch.from_numpy(order)])


def test_networks_approach_the_best_reachable_auc_and_dien_by_the_order_of_events(scored: Scores) -> None:
    # One test, so that pytest-xdist trains once.
    best, auc, shuffled = scored.best, scored.auc, scored.shuffled
    assert 0.9 < best < 1
    for name in auc:
        assert auc[name] <= best + 0.01, (name, scored)

    enough = 0.5 + 0.85 * (best - 0.5)
    assert auc["din"] >= enough, scored
    assert auc["dien"] >= enough, scored
    assert 0.75 < auc["dnn"] <= min(auc["din"], auc["dien"]) - 0.03, scored

    assert shuffled["dien"] <= auc["dien"] - 0.05, scored
    for name in ("dnn", "din"):  # they sum over the history
        assert shuffled[name] == pytest.approx(auc[name], abs=1e-3), (name, scored)
