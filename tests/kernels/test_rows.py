from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinterest.kernels.rows import distinct
from deepinterest.nn.embedding import FeatureEmbedding
from deepinterest.training import optimizers
from deepinterest.training.optimizers import DeferredAdam


@settings(deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(0, 9), max_size=30))
def test_distinct_rows_in_the_order_of_their_appearance(rows: list[int]) -> None:
    place = np.full(10, -1, np.int32)
    found, inverse = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    count = distinct(np.array(rows, np.int64), place, found, inverse)
    assert found[:count].tolist() == list(dict.fromkeys(rows))
    assert found[:count][inverse].tolist() == rows
    assert (place == -1).all()  # ready for the next batch


def trained(form: str, rows: list[list[int]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    table = torch.nn.Embedding(12, 5, sparse=True)
    optimizer = DeferredAdam(table.parameters(), lr=0.01, form=form)  # type: ignore[arg-type]
    optimizer.watch(table)
    targets = torch.randn(12, 5)
    for step, batch in enumerate(rows):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step / 50)
        optimizer.zero_grad()
        (table(torch.tensor(batch)) - targets[batch]).square().sum().backward()
        optimizer.step()
    optimizer.flush()
    return table.weight.detach(), optimizer.state[table.weight]


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
def test_compiled_steps_are_torchs(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that repeat within a batch, rows that rest for long, a schedule; through and beyond the early steps."""
    random = np.random.default_rng(1)
    rows = [random.integers(0, 12 if step % 40 == 0 else 4, size=7).tolist() for step in range(200)]
    weight, state = trained(form, rows)
    monkeypatch.setattr(optimizers, "_compiled", lambda table: False)
    expected, expected_state = trained(form, rows)
    torch.testing.assert_close(weight, expected, rtol=0, atol=2e-6)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(state[name], expected_state[name], rtol=1e-5, atol=1e-7)
    assert torch.equal(state["last_step"], expected_state["last_step"])


@pytest.mark.parametrize("row", [-1, 4])
def test_row_that_the_catalogue_does_not_have(row: int) -> None:
    items = FeatureEmbedding(torch.tensor([[0, 0], [1, 1], [2, 1], [3, 2]]), [4, 3], 2)
    with pytest.raises(IndexError, match="the catalogue has the rows 0 to 3"):
        items(torch.tensor([1, 2, row]))
    (again,) = items(torch.tensor([1, 2, 3]))  # nothing of it stays behind
    torch.testing.assert_close(again[:, :2], items.tables[0].weight[1:], rtol=0, atol=0)


def test_gather_sums_the_gradients_of_all_parts() -> None:
    torch.manual_seed(1)
    items = FeatureEmbedding(torch.tensor([[0, 0], [1, 1], [2, 1], [3, 2]]), [4, 3], 2)
    for table in items.tables:
        table.sparse = False
    first, second = torch.tensor([3, 1, 1]), torch.tensor([[1, 2], [3, 3]])
    a, b = items(first, second)
    v, w = torch.randn_like(a), torch.randn_like(b)
    weights = [table.weight for table in items.tables]
    actual = torch.autograd.grad((a * v).sum() + (b * w).sum(), weights)
    plain = [
        torch.cat([items.tables[f].weight[items.catalogue[rows][..., f]] for f in range(2)], -1)
        for rows in (first, second)
    ]
    torch.testing.assert_close([a, b], plain, rtol=0, atol=0)
    torch.testing.assert_close(actual, torch.autograd.grad((plain[0] * v).sum() + (plain[1] * w).sum(), weights))
