"""attention.c against the formula in float64, and its use by the model."""

import math
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers.models import make
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lit_lm.kernels import build
from lit_lm.model import attention
from lit_lm.model.attention import causal_attention, supports
from lit_lm.model.layers import attention as reference
from lit_lm.model.layers import causal_mask, document_indices, document_mask, document_starts, softmax

pytestmark = pytest.mark.skipif(build.load("attention") is None, reason="no C compiler")
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not used on this processor")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_heads(rows: int, heads: int, groups: int, num_tokens: int, head_size: int) -> list[Tensor]:
    """q, k, v and a gradient of the output, in a model's layout."""
    numbers = (heads, groups, groups, heads)
    return [torch.randn(rows, num_tokens, number, head_size).transpose(1, 2) for number in numbers]


def gradients(y: Tensor, inputs: list[Tensor], of_y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, of_y))


def differentiable(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [x.detach().to(dtype).requires_grad_() for x in inputs]


@given(
    rows=st.integers(1, 3), groups=st.integers(1, 3), group=st.integers(1, 3), num_tokens=st.integers(1, 100),
    head_size=st.integers(1, 70), spread=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_matches_the_formula(
    rows: int, groups: int, group: int, num_tokens: int, head_size: int, spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    *inputs, of_y = random_heads(rows, groups * group, groups, num_tokens, head_size)
    inputs[0] *= spread
    ours, exact = differentiable(inputs, torch.float32), differentiable(inputs, torch.float64)
    y = causal_attention(*ours)
    expected = reference(*exact, mask=causal_mask(torch.arange(num_tokens), num_tokens))
    assert_close(y, expected.float(), rtol=1e-5, atol=1e-5 * max(1, spread))
    for found, of_input in zip(gradients(y, ours, of_y), gradients(expected, exact, of_y.double()), strict=True):
        assert_close(found, of_input.float(), rtol=1e-4, atol=2e-5 * max(1, spread) * math.sqrt(num_tokens))


@given(
    group=st.integers(1, 2), num_tokens=st.integers(1, 150), share=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    dropout_p=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 9),
)  # fmt: skip
def test_queries_attend_to_their_document_alone(
    group: int, num_tokens: int, share: float, dropout_p: float, seed: int
) -> None:
    torch.manual_seed(seed)
    *inputs, of_y = random_heads(2, 2 * group, 2, num_tokens, 7)
    starts = document_starts((torch.rand(2, num_tokens) < share).cumsum(dim=1))
    ours, others = differentiable(inputs, torch.float32), differentiable(inputs, torch.float32)
    torch.manual_seed(seed)
    y = causal_attention(*ours, dropout_p, starts)
    if dropout_p:  # what is dropped does not depend on the documents: the same for each document by itself
        torch.manual_seed(seed)
        alone = causal_attention(*others, dropout_p, torch.zeros_like(starts))
        first = starts == 0
        assert_close(y.transpose(1, 2)[first], alone.transpose(1, 2)[first])
        return
    expected = reference(*others, mask=document_mask(starts))
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for found, of_input in zip(gradients(y, ours, of_y), gradients(expected, others, of_y), strict=True):
        assert_close(found, of_input, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_only_rounded_at_the_end() -> None:
    *inputs, of_y = (x.bfloat16() for x in random_heads(2, 4, 2, 50, 24))
    ours, exact = differentiable(inputs, torch.bfloat16), differentiable(inputs, torch.float32)
    y, expected = causal_attention(*ours), causal_attention(*exact)
    assert torch.equal(y, expected.bfloat16())
    for found, of_input in zip(gradients(y, ours, of_y), gradients(expected, exact, of_y.float()), strict=True):
        assert torch.equal(found, of_input.bfloat16())


def test_the_result_does_not_depend_on_the_number_of_threads_or_the_layout(threads: None) -> None:
    *inputs, of_y = random_heads(3, 4, 2, 40, 20)
    found = []
    for number in (1, 3, 8):
        torch.set_num_threads(number)
        for turned in (differentiable(inputs, torch.float32), [x.mT.contiguous().mT.requires_grad_() for x in inputs]):
            y = causal_attention(*turned)
            found.append([y, *gradients(y, turned, of_y)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_scores_that_are_not_finite_pass_through() -> None:
    q, k, v, _ = random_heads(1, 1, 1, 40, 8)
    q[0, 0, 5, 3], k[0, 0, 20, 2] = torch.nan, torch.inf
    y = causal_attention(q, k, v)[0, 0]
    assert y.isnan().any(dim=1).tolist() == [t == 5 or (t >= 20 and bool(q[0, 0, t, 2] > 0)) for t in range(40)]


class TestDropout:
    """With the unit matrix as values, the output is the matrix of weights (heads as wide as there are tokens)."""

    def weights(self, q: Tensor, k: Tensor, dropout_p: float) -> Tensor:
        eye = torch.eye(q.shape[2]).expand(k.shape[0], k.shape[1], -1, -1)
        return causal_attention(q, k, eye, dropout_p)

    def test_drops_each_weight_with_the_probability_and_scales_the_others(self) -> None:
        q, k, *_ = random_heads(4, 4, 2, 64, 64)
        full, found = self.weights(q, k, 0.0), self.weights(q, k, 0.25)
        visible = torch.ones(64, 64).tril().bool().expand_as(found)
        kept = found[visible] != 0
        assert_close(found[visible][kept], full[visible][kept] / 0.75)
        number = kept.numel()
        assert abs(kept.sum().item() - 0.75 * number) < 4 * math.sqrt(number * 0.75 * 0.25)

    def test_rows_heads_queries_and_calls_drop_different_weights(self) -> None:
        q, k, *_ = random_heads(3, 4, 4, 64, 64)
        calls = torch.stack([self.weights(q, k, 0.5) != 0 for _ in range(2)])
        masks = calls[..., 32:, :32].reshape(-1, 32).float()  # half of the keys, for queries that see all of them
        agreement = (masks @ masks.T + (1 - masks) @ (1 - masks).T) / 32
        others = agreement[~torch.eye(len(masks), dtype=torch.bool)]
        assert others.max() < 1
        assert others.mean().item() == pytest.approx(0.5, abs=0.001)

    def test_is_the_same_after_the_same_seed(self) -> None:
        q, k, v, _ = random_heads(2, 2, 2, 20, 8)
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(causal_attention(q, k, v, 0.3))
        assert torch.equal(found[0], found[1])
        assert not torch.allclose(found[0], found[2], atol=0.1)

    def test_gradients_match_the_formula(self) -> None:
        *inputs, of_y = random_heads(2, 4, 2, 40, 40)
        q, k, _ = inputs
        torch.manual_seed(3)
        dropped = (self.weights(q, k, 0.4) == 0) & torch.ones(40, 40).tril().bool()
        ours, exact = differentiable(inputs, torch.float32), differentiable(inputs, torch.float64)
        torch.manual_seed(3)
        y = causal_attention(*ours, 0.4)
        keys, values = (x.repeat_interleave(2, dim=1) for x in exact[1:])
        scores = exact[0] @ keys.mT / math.sqrt(40)
        weights = softmax(scores.masked_fill(~causal_mask(torch.arange(40), 40), -torch.inf))
        expected = weights.masked_fill(dropped, 0) / 0.6 @ values
        assert_close(y, expected.float())
        for found, of_input in zip(gradients(y, ours, of_y), gradients(expected, exact, of_y.double()), strict=True):
            assert_close(found, of_input.float(), rtol=1e-4, atol=1e-5)


@on_x86
def test_compiled_attention_is_the_same() -> None:
    *inputs, of_y = random_heads(2, 2, 2, 20, 8)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert supports(q, k)
        return 2 * causal_attention(q * 1, k * 1, v * 1)

    found = []
    for called in (function, torch.compile(function, fullgraph=True, dynamic=False)):
        leaves = differentiable(inputs, torch.float32)
        y = called(*leaves)
        found.append([y, *gradients(y, leaves, of_y)])
    assert all(map(torch.equal, *found))


def test_it_does_not_import_the_compiler_which_takes_a_second() -> None:
    code = "import sys, lit_lm.model.transformer; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@on_x86
def test_is_used_where_it_is_fast(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, *_ = random_heads(2, 4, 2, 5, 8)
    assert supports(q, k)
    assert supports(q.bfloat16(), k.bfloat16())
    assert not supports(q.double(), k.double())
    assert not supports(q, k.bfloat16())
    assert not supports(q.to("meta"), k.to("meta"))
    torch.set_num_threads(5)
    assert not supports(q, k)  # 4 key/value heads
    torch.set_num_threads(1)
    monkeypatch.setattr(build, "load", lambda name: None)
    assert not supports(q, k)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("of_documents", [False, True])
def test_a_model_has_the_same_loss_and_gradients_without_it(
    of_documents: bool, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(num_kv_heads=2, positions=positions).train()
    ids = torch.randint(40, (2, 16))
    documents = document_indices(ids, end_id=7) if of_documents else None
    found = []
    for _ in range(2):
        loss = model(ids, documents=documents).square().mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        monkeypatch.setattr(attention, "_enough_heads", lambda: math.inf)
    assert_close(*found)
