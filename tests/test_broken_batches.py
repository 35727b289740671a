"""Whatever a batch or an argument of a kernel holds: an error in a sentence, or the oracle's result. Never a signal."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deepinterest.config import SCHEMAS, KernelName, ModelConfig, ResetGate
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.kernels import blocks, dense, pairs, recurrence, using
from deepinterest.models import AttentionNetwork, Network, build
from deepinterest.nn.embedding import Features

ITEMS, USERS = 12, 5
CONTEXTS = [4, 3]
NUMBERS = [-(2**63), -(2**40), -7, -1, 0, 1, 2, 5, 100, 2**40, 2**63 - 1]  # what fits a machine's memory is small
TYPES = [torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64, torch.bfloat16]
QUICK, MANY = 60, 1000

pytestmark = pytest.mark.usefixtures("one_thread")
every_network = pytest.mark.parametrize("name", SCHEMAS["model"])


def network(name: str) -> Network:
    torch.manual_seed(1)
    items = torch.stack([torch.arange(ITEMS), torch.arange(ITEMS) % 3], dim=1)
    features = Features(items, [ITEMS, 3], torch.arange(USERS).unsqueeze(1), [USERS], CONTEXTS)
    config: ModelConfig = SCHEMAS["model"][name](embedding_dim=4, use_user=True)
    return build(features, config).eval()


def sound(of: random.Random) -> Batch:
    lengths = [of.randrange(6) for _ in range(of.randrange(1, 6))]
    counts = [of.randrange(1, 3) for _ in lengths]
    N, B = sum(lengths), sum(counts)
    return Batch(
        history=torch.randint(ITEMS, (N,)),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        user=torch.randint(USERS, (len(lengths),)),
        candidates=torch.randint(ITEMS, (B,)),
        history_index=torch.arange(len(lengths)).repeat_interleave(torch.tensor(counts)),
        label=torch.randint(2, (B,)).float(),
        auxiliary_negatives=torch.randint(ITEMS, (N, 2)),
        context=torch.stack([torch.randint(size, (B,)) for size in CONTEXTS], dim=1),
    )


def broken(value: Tensor, of: random.Random) -> Any:
    """The tensor with a number, its type or its shape changed; sometimes something else entirely."""
    value = value.detach().clone()
    kind = of.randrange(12)
    if kind < 5 and value.numel():
        number = of.choice(NUMBERS) if not value.is_floating_point() else of.choice([float("nan"), -1.0, 1e38])
        value.view(-1)[of.randrange(value.numel())] = number
        return value
    if kind == 5:
        return value[: len(value) // 2]
    if kind == 6:
        return torch.cat([value, value])
    if kind == 7:
        return value.flip(0)
    if kind == 8:
        return value.unsqueeze(-1) if of.random() < 0.5 else value.reshape(-1)
    if kind == 9:
        return value.to(of.choice(TYPES))
    if kind == 10:
        return value[:0]
    return of.choice([None, 3, value.tolist(), value.numpy(), value.sum()])


@contextmanager
def ours(*kinds: type[Exception]) -> Iterator[list[Exception]]:
    """Errors of these kinds are kept, and are sentences; others come through."""
    found: list[Exception] = []
    try:
        yield found
    except kinds as error:
        found.append(error)
    assert all(str(error).rstrip().endswith(".") for error in found), found


def try_batches(name: str, tries: int) -> None:
    model, of = network(name), random.Random(7)
    torch.manual_seed(7)
    fields = [field for field in vars(sound(of)) if field not in ("share", "checked")]
    refused = 0
    for _ in range(tries):
        batch = sound(of)
        field = of.choice(fields)
        batch = replace(batch, **{field: broken(getattr(batch, field), of)})
        with ours(UserError) as errors:
            logit = model(batch).logit
            with using(KernelName.oracle):
                torch.testing.assert_close(logit, model(batch).logit, atol=1e-5, rtol=1e-4)
        refused += len(errors)
        # What the loader has made isn't looked at; changed behind its back it may give any error, but no signal.
        batch.checked = True
        try:
            prediction = model(batch)
            (prediction.logit.sum() + (prediction.auxiliary_loss or 0)).backward()
        except Exception:
            model.zero_grad()
    assert tries / 3 < refused < tries


@every_network
def test_broken_batches(name: str) -> None:
    try_batches(name, QUICK)


@pytest.mark.slow
@every_network
def test_thousands_of_broken_batches(name: str) -> None:
    try_batches(name, MANY)


@every_network
def test_all_doors_of_a_network_are_guarded(name: str) -> None:
    model, batch = network(name), sound(random.Random(1))
    batch.offsets = batch.offsets + 3
    doors: list[Callable[[Batch], object]] = [model]
    if isinstance(model, AttentionNetwork):
        doors += [model.attention_weights, model.evolve]
    for door in doors:
        with pytest.raises(UserError, match=r"Batch\.offsets\[0\] is 3: the first history begins at 0"):
            door(batch)


def test_a_batch_says_which_field_place_and_value_is_wrong() -> None:
    torch.manual_seed(1)
    batch = Batch(
        history=torch.tensor([1, 2, 3, 4]),
        offsets=torch.tensor([0, 3, 4]),
        user=torch.tensor([1, 2]),
        candidates=torch.tensor([3, 2, 1]),
        history_index=torch.tensor([0, 0, 1]),
        label=torch.tensor([1.0, 0.0, 1.0]),
        auxiliary_negatives=torch.ones(4, 2, dtype=torch.int64),
        context=torch.tensor([[0, 1], [1, 2], [3, 0]]),
    )
    batch.check(5, 3, [4, 3])
    wrong: list[tuple[str, Any, str]] = [
        ("offsets", torch.tensor([0, 4, 3]), r"Batch\.offsets\[2\] is 3: it is less than the one before"),
        ("offsets", torch.tensor([0, 3, 9]), r"Batch\.offsets ends at 9: it must end at 4"),
        (
            "offsets",
            torch.tensor([0, 4]),
            r"user must be a tensor \(G\) of int64, here with G=1, and it is \(2,\)",
        ),
        ("history", torch.tensor([1, 5, 2, 1]), r"Batch\.history\[1\] is 5: .* there are 5 items"),
        (
            "history",
            torch.tensor([1, 5, 2, 1]).int(),
            r"history must be a tensor \(N\) of int64, and .*int32",
        ),
        ("candidates", torch.tensor([1, -1, 2]), r"Batch\.candidates\[1\] is -1: "),
        ("history_index", torch.tensor([0, 1, 0]), r"Batch\.history_index\[2\] is 0: it is less"),
        ("history_index", torch.tensor([0, 1, 2]), r"Batch\.history_index\[2\] is 2: .* there are 2 histories"),
        ("user", torch.tensor([1, 3]), r"Batch\.user\[1\] is 3: .* there are 3 users"),
        ("label", torch.tensor([1.0, 0.0, float("nan")]), r"Batch\.label\[2\] is nan: it must lie between 0 and 1"),
        ("label", [1, 0, 1], r"Batch\.label must be a tensor \(B\) of float32, and it is of type list"),
        ("auxiliary_negatives", torch.full((4, 2), 7), r"Batch\.auxiliary_negatives\[0, 0\] is 7: "),
        (
            "auxiliary_negatives",
            torch.ones(3, 2).long(),
            r"auxiliary_negatives .* with N=4, and it is \(3, 2\)",
        ),
        ("context", torch.tensor([[0, 1], [1, 3], [3, 0]]), r"Batch\.context\[1, 1\] is 3: "),
        ("context", torch.zeros(3, 1).long(), r"Batch\.context has 1 columns, and the network reads 2"),
    ]
    for field, value, words in wrong:
        with pytest.raises(UserError, match=words):
            replace(batch, **{field: value}).check(5, 3, [4, 3])


def test_batches_of_the_loader_are_not_looked_at_again() -> None:
    batch = sound(random.Random(1))
    assert not batch.checked
    batch.checked = True
    assert batch.to("cpu").checked
    assert not replace(batch, history=batch.history).checked


# ------------------------------------------------------------------------------------------------------- direct calls


def arguments(of: random.Random) -> dict[str, Any]:
    """Of `recurrence`, all sound."""
    lengths = [of.randrange(7) for _ in range(of.randrange(1, 12))]
    H, offsets = of.choice([1, 4, 17]), torch.tensor([0, *lengths]).cumsum(0)
    N = M = sum(lengths)
    found: dict[str, Any] = {"source": None, "base": None, "slope": None, "reset": of.choice(list(ResetGate))}
    if of.random() < 0.5:
        found["source"] = torch.cat([torch.arange(a, b).repeat(2) for a, b in pairwise(offsets.tolist())])
        offsets, M = torch.tensor([0, *(length for length in lengths for _ in range(2))]).cumsum(0), 2 * N
    if of.random() < 0.5:
        found |= {"base": torch.rand(M), "slope": torch.rand(M)}
    weights = {"gates": torch.randn(H, 2 * H) / 4, "candidate": torch.randn(H, H) / 4}
    return found | weights | {"x": torch.randn(N, 3 * H), "offsets": offsets}


def try_calls(tries: int) -> None:
    of, refused = random.Random(3), 0
    torch.manual_seed(3)
    for _ in range(tries):
        inputs = arguments(of)
        name = of.choice(["x", "offsets", "gates", "candidate", "source", "base", "slope", "reset"])
        if isinstance(inputs[name], Tensor):
            inputs[name] = broken(inputs[name], of)
        elif name == "reset":
            inputs[name] = of.choice(["after", "before", "sideways", None, 1])
        for kernel in (KernelName.auto, KernelName.cpu, KernelName.torch):
            found = {**inputs}
            with ours(ValueError, IndexError) as errors, using(kernel):
                if isinstance(found["x"], Tensor) and found["x"].is_floating_point():
                    found["x"] = found["x"].clone().requires_grad_()
                states = recurrence(**found)
                states.sum().backward()
                with using(KernelName.oracle):
                    torch.testing.assert_close(states, recurrence(**found), atol=1e-5, rtol=1e-4, equal_nan=True)
            refused += len(errors)
    assert tries < refused < 3 * tries


def test_broken_calls_of_the_recurrence() -> None:
    try_calls(QUICK)


@pytest.mark.slow
def test_thousands_of_broken_calls_of_the_recurrence() -> None:
    try_calls(MANY)


def test_what_the_recurrence_refuses() -> None:
    good = {
        "x": torch.randn(4, 6),
        "offsets": torch.tensor([0, 1, 4]),
        "gates": torch.randn(2, 4),
        "candidate": torch.eye(2),
    }
    assert recurrence(**good).shape == (4, 2)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"offsets": torch.tensor([0, 1, 3])}, r"offsets run from 0 to 3; they must rise from 0 to 4, the steps"),
        ({"offsets": torch.tensor([0, 5, 4])}, r"offsets run from 0 to 4 and fall after place 1"),
        ({"offsets": torch.tensor([0])}, r"offsets run from 0 to 0"),
        ({"source": torch.tensor([0, 1, 2, 4])}, r"source reaches from 0 to 4; x has the rows 0 to 3"),
        (
            {"gates": good["gates"].double()},
            r"gates must be \(2, 4\) of torch.float32 .* it is .* torch.float64",
        ),
        ({"base": torch.rand(4)}, r"base and slope go together"),
        ({"base": torch.rand(3), "slope": torch.rand(4)}, r"base must be \(4,\) of torch.float32"),
        ({"x": torch.randn(4, 5)}, r"x must be \(4, 6\)"),
        ({"x": good["x"].numpy()}, r"x must be a tensor with 2 dimensions, and it is <class 'numpy.ndarray'>"),
    ]
    for change, words in wrong:
        with pytest.raises((ValueError, IndexError), match=words):
            recurrence(**{**good, **change})
    with (
        using(KernelName.cpu),
        pytest.raises(ValueError, match=r"float32 on a CPU, and x is of torch.float64"),
    ):
        recurrence(**{name: value if name == "offsets" else value.double() for name, value in good.items()})


def test_products_read_no_other_memory() -> None:
    x, weight = torch.randn(3, 4), torch.randn(4, 5)
    bias = torch.randn(10)[::2]  # not in one piece
    torch.testing.assert_close(dense(x, weight, bias), x @ weight + bias)
    torch.testing.assert_close(dense(x, weight, bias[:1].expand(5)), x @ weight + bias[0])
    for wrong in (x.double(), x[0], x.unsqueeze(0)):
        with pytest.raises(ValueError, match="x must be float32 on a CPU with 2 dimensions"):
            blocks.product(wrong, weight, None)
    with pytest.raises(ValueError, match="bias must be float32"):
        blocks.product(x, weight, bias.double())
    with pytest.raises(ValueError, match=r"index must be \(n,\) of int64"):
        blocks.add_rows(x, torch.zeros(3, dtype=torch.int32), torch.zeros(2, 4))


def test_pairs_read_no_other_memory() -> None:
    matrix, first, share = torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5)
    hidden = [(torch.randn(2, 5), torch.randn(2))]
    pairs.forward(pairs.Layers([((matrix, None), None)], first, [(share, None)], hidden, torch.randn(2)), False)
    wrong: list[Any] = [
        ([((matrix.double(), None), None)], first, [(share, None)], hidden, torch.randn(2)),
        ([((matrix, None), None)], first, [(share, torch.arange(3).int())], hidden, torch.randn(2)),
        ([((matrix, None), None)], first, [(share, None)], [(hidden[0][0], torch.randn(1))], torch.randn(2)),
        ([((matrix, None), None)], first, [(share, None)], hidden, torch.randn(2).double()),
    ]
    for layers in wrong:
        with pytest.raises(ValueError, match=r"must be float32, rows int64\.|don't follow one of width"):
            pairs.forward(pairs.Layers(*layers), False)
