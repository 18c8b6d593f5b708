"""Both forms of the loss against torch's cross-entropy: values, gradients, and the memory of the chunked form."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Barrier
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lit_lm.model import losses
from lit_lm.model.losses import IGNORE_INDEX, cross_entropy, linear_cross_entropy

N, D, V = 12, 8, 20
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def direct(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden @ weight.T, targets)


def oracle(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.T).float(), targets)


def value_and_gradients(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """The loss, and the gradients of three times the loss, to test that the incoming gradient is used."""
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    value = loss(*leaves, targets)
    assert value.shape == ()
    assert value.dtype == torch.float32
    return [value, *torch.autograd.grad(3 * value, leaves)]


def assert_matches_torch(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    ours = value_and_gradients(loss, hidden, weight, targets)
    assert_close(ours, value_and_gradients(oracle, hidden, weight, targets), rtol=1e-5, atol=1e-6)


class Process(NamedTuple):
    """One of several processes, as a thread: what the loss calls of torch.distributed with a group."""

    number: int
    sent: list[Tensor]
    everyone: Barrier

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return len(self.sent)

    def exchange(self, own: Tensor) -> list[Tensor]:
        self.sent[self.number] = own.clone()
        self.everyone.wait()
        received = list(self.sent)
        self.everyone.wait()
        return received


both = pytest.mark.parametrize("loss", [direct, linear_cross_entropy])


@pytest.fixture(params=[1, 5, N, 100])
def rows_per_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(losses, "CHUNK_BYTES", request.param * V * 4)
    return int(request.param)


@both
@pytest.mark.parametrize("ignored", [[], [0], [0, 1, 2, 3, 4, 7, 11], list(range(N - 1))], ids=len)
@pytest.mark.usefixtures("rows_per_chunk")
def test_value_and_gradients_match_torch(loss: Loss, ignored: list[int]) -> None:
    targets = torch.randint(V, (N,))
    targets[ignored] = IGNORE_INDEX
    assert_matches_torch(loss, torch.randn(N, D), torch.randn(V, D), targets)


@both
@pytest.mark.parametrize("scale", [1e-4, 1e3, 1e4])
def test_tiny_and_huge_logits_match_torch(loss: Loss, scale: float) -> None:
    assert_matches_torch(loss, torch.randn(N, D), scale * torch.randn(V, D), torch.randint(V, (N,)))


@both
def test_float64_inputs_get_float64_gradients(loss: Loss) -> None:
    hidden, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    assert_matches_torch(loss, hidden, weight, torch.randint(V, (N,)))


@both
@pytest.mark.usefixtures("rows_per_chunk")
def test_loss_and_gradients_are_zero_when_all_targets_are_ignored(loss: Loss) -> None:
    targets = torch.full((N,), IGNORE_INDEX)
    results = value_and_gradients(loss, torch.randn(N, D), torch.randn(V, D), targets)
    assert_close(results, [torch.zeros(()), torch.zeros(N, D), torch.zeros(V, D)], rtol=0, atol=0)


@both
@pytest.mark.parametrize("hidden_type", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("rows_per_chunk")
def test_under_autocast_gradients_have_the_inputs_type_and_are_close(loss: Loss, hidden_type: torch.dtype) -> None:
    hidden, weight = torch.randn(N, D).to(hidden_type), torch.randn(V, D)
    targets = torch.randint(V, (N,))
    targets[3] = IGNORE_INDEX
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = value_and_gradients(loss, hidden, weight, targets)
    assert [x.dtype for x in ours[1:]] == [hidden_type, torch.float32]
    for result, exact in zip(ours, value_and_gradients(oracle, hidden.float(), weight, targets), strict=True):
        assert (result - exact).norm() < 0.01 * exact.norm()


def test_gradients_under_float16_are_not_rounded_to_zero() -> None:
    positions, vocabulary = 1024, 8192  # a token's probability over the number of positions: 1.2e-7
    hidden, weight, targets = torch.randn(positions, D), torch.randn(vocabulary, D), torch.zeros(positions).long()
    exact = value_and_gradients(linear_cross_entropy, hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = value_and_gradients(linear_cross_entropy, hidden.half(), weight, targets)
    assert [x.dtype for x in ours[1:]] == [torch.float16, torch.float32]
    assert (ours[2] - exact[2]).norm() < 0.01 * exact[2].norm()


def test_the_chunked_loss_matches_torch_under_autocast_up_to_bfloat16_rounding() -> None:
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (value_and_gradients(loss, hidden, weight, targets) for loss in (linear_cross_entropy, oracle))
    assert_close(ours[0], theirs[0])
    assert_close(ours[1:], theirs[1:], rtol=0.02, atol=0.002)


class LargestResult(TorchDispatchMode):
    """Records the largest number of elements in any operation's result."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_the_chunked_loss_never_holds_more_logits_than_one_chunk(rows_per_chunk: int) -> None:
    leaves = torch.randn(N, 2, requires_grad=True), torch.randn(V, 2, requires_grad=True)
    with LargestResult() as largest:
        linear_cross_entropy(*leaves, torch.randint(V, (N,))).backward()
    chunks = math.ceil(N / rows_per_chunk)
    assert largest.elements == max(math.ceil(N / chunks) * V, V * 2)


@pytest.mark.parametrize(
    ("context", "products"), [(nullcontext, 3), (torch.no_grad, 1), (torch.inference_mode, 1)], ids=str
)
def test_gradients_are_computed_only_if_gradients_are_enabled(context: Callable[[], Any], products: int) -> None:
    leaves = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter, context():
        linear_cross_entropy(*leaves, torch.randint(V, (N,)))
    assert counter.get_total_flops() == products * 2 * N * D * V


@both
def test_value_is_the_same_without_gradients(loss: Loss) -> None:
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    with torch.no_grad():
        value = loss(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert not value.requires_grad
    assert_close(value, oracle(hidden, weight, targets).detach())


def test_z_loss_adds_the_mean_square_of_logsumexp() -> None:
    def with_z_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, z_loss=0.1)

    def expected(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        squares = (hidden @ weight.T).logsumexp(dim=-1).square()
        return oracle(hidden, weight, targets) + 0.1 * squares[targets != IGNORE_INDEX].mean()

    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    targets[2] = IGNORE_INDEX
    assert_close(
        value_and_gradients(with_z_loss, hidden, weight, targets),
        value_and_gradients(expected, hidden, weight, targets),
    )


def test_the_compiled_loss_is_the_same() -> None:
    hidden, weight, targets = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    assert_close(
        value_and_gradients(partial(linear_cross_entropy, compiled=True), hidden, weight, targets),
        value_and_gradients(oracle, hidden, weight, targets),
    )


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_processes_with_a_part_of_the_vocabulary_have_the_loss_and_gradients_of_the_whole(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = torch.randn(N, D), scale * torch.randn(V, D), torch.randint(V, (N,))
    targets[[0, 5]] = IGNORE_INDEX
    sent, everyone = [torch.empty(0)] * 4, Barrier(4, timeout=60)
    monkeypatch.setattr(
        losses.dist, "all_gather", lambda into, own, group: into.__setitem__(slice(None), group.exchange(own))
    )
    monkeypatch.setattr(losses.dist, "all_reduce", lambda own, group: own.copy_(sum(group.exchange(own))))

    def of_part(number: int) -> list[Tensor]:
        loss = partial(linear_cross_entropy, z_loss=1e-3, group=Process(number, sent, everyone))
        return value_and_gradients(loss, hidden, weight.chunk(4)[number], targets)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(of_part, range(4)))
    value, of_hidden, of_weight = value_and_gradients(
        partial(linear_cross_entropy, z_loss=1e-3), hidden, weight, targets
    )
    for part, rows in zip(found, of_weight.chunk(4), strict=True):
        assert_close(part, [value, of_hidden, rows], rtol=1e-5, atol=1e-6)
