"""Each layer against torch's own, values and gradients; RoPE against complex numbers and against transformers."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lit_lm.model.layers import (
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    apply_rope,
    attention,
    causal_mask,
    document_mask,
    document_starts,
    gelu,
    gelu_erf,
    rope_table,
    silu,
    softmax,
    swiglu,
)

SHAPES = [(8,), (3, 8), (2, 5, 8)]


def assert_same(ours: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare the values, and the gradients of a random weighted sum of them with respect to every input."""
    results = []
    for function in (ours, reference):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = function(*leaves)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, leaves, weights)))
    for ours_result, reference_result in zip(*results, strict=True):
        assert_close(ours_result, reference_result, rtol=1e-5, atol=1e-6 * reference_result.abs().max().item())


def as_function(layer: nn.Module) -> Callable[..., Tensor]:
    """The layer as a function of its input, its weight and its bias."""
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *parameters: functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_matches_torch(shape: tuple[int, ...], bias: bool) -> None:
    parameters = [torch.randn(6, 8)] + [torch.randn(6)] * bias
    assert_same(as_function(Linear(8, 6, bias)), F.linear, torch.randn(shape), *parameters)


def test_linear_with_bias_returns_the_autocast_dtype() -> None:
    layer = Linear(8, 6, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, reference = layer(x), F.linear(x, layer.weight, layer.bias)
    assert y.dtype == torch.bfloat16
    assert_close(y, reference, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("shape", [(), (4,), (2, 5)])
def test_embedding_matches_torch(shape: tuple[int, ...]) -> None:
    ids = torch.randint(7, shape)
    layer = Embedding(7, 8)
    assert_same(
        lambda weight: functional_call(layer, {"weight": weight}, (ids,)),
        lambda weight: F.embedding(ids, weight),
        torch.randn(7, 8),
    )


def test_embedding_sums_the_gradients_of_a_repeated_id() -> None:
    layer = Embedding(3, 2)
    layer(torch.tensor([1, 1, 2])).sum().backward()
    assert_close(layer.weight.grad, torch.tensor([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "eps"), [(1.0, 1e-5), (1.0, 0.1), (1e4, 1e-5), (1e-4, 1e-5)])
def test_rmsnorm_matches_torch(shape: tuple[int, ...], scale: float, eps: float) -> None:
    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), weight, eps)

    assert_same(as_function(RMSNorm(8, eps)), reference, scale * torch.randn(shape), torch.randn(8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "eps"), [(1.0, 1e-5), (1.0, 0.1), (1e4, 1e-5), (1e-4, 1e-5)])
def test_layernorm_matches_torch(shape: tuple[int, ...], bias: bool, scale: float, eps: float) -> None:
    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, (8,), weight, bias, eps)

    parameters = [torch.randn(8)] + [torch.randn(8)] * bias
    assert_same(as_function(LayerNorm(8, eps, bias)), reference, scale * (torch.randn(shape) + 3), *parameters)


@pytest.mark.parametrize("norm", [RMSNorm(64, 1e-5), LayerNorm(64, 1e-5)])
def test_norms_of_bfloat16_are_computed_in_float32_and_rounded_once(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 64).bfloat16()
    assert_close(norm(x), norm(x.float()).bfloat16(), rtol=0, atol=0)


def saved_for_backward(function: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Number of elements saved for the backward pass, except the inputs."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*[x.requires_grad_() for x in inputs])
    return sum(kept[key] for key in kept.keys() - {x.untyped_storage().data_ptr() for x in inputs})


def test_rmsnorm_saves_one_number_per_row_for_backward_and_swiglu_none() -> None:
    assert saved_for_backward(as_function(RMSNorm(64, 1e-5)), torch.randn(3, 5, 64), torch.randn(64)) == 3 * 5
    assert saved_for_backward(swiglu, torch.randn(3, 5, 64), torch.randn(3, 5, 64)) == 0


POINTWISE = torch.tensor([-1e4, -100.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 3.0, 100.0, 1e4])


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_gelu_and_swiglu_match_torch(shape: tuple[int, ...]) -> None:
    x, up = torch.randn(shape), torch.randn(shape)
    assert_same(silu, F.silu, x)
    assert_same(gelu, lambda x: F.gelu(x, approximate="tanh"), x)
    assert_same(gelu_erf, F.gelu, x)
    assert_same(swiglu, lambda gate, up: F.silu(gate) * up, x, up)


def test_silu_and_gelu_match_torch_for_large_and_small_values() -> None:
    assert_same(silu, F.silu, POINTWISE)
    assert_same(gelu, lambda x: F.gelu(x, approximate="tanh"), POINTWISE)
    assert_same(gelu_erf, F.gelu, POINTWISE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_matches_torch_and_does_not_overflow(shape: tuple[int, ...], scale: float) -> None:
    x = scale * torch.randn(shape)
    assert_same(softmax, lambda x: F.softmax(x, dim=-1), x)
    assert_close(softmax(x).sum(dim=-1), torch.ones(shape[:-1]))


def test_softmax_gives_masked_scores_zero_probability() -> None:
    scores = torch.tensor([[1.0, -math.inf, 1.0]])
    assert_close(softmax(scores), torch.tensor([[0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("head_size", [2, 8, 64])
@pytest.mark.parametrize("theta", [100.0, 10_000.0, 500_000.0])
def test_rope_rotates_pairs_like_complex_numbers(head_size: int, theta: float) -> None:
    x = torch.randn(2, 3, 20, head_size)
    half = head_size // 2
    frequencies = torch.tensor([theta ** (-2 * i / head_size) for i in range(half)])
    turns = torch.exp(1j * torch.arange(20)[:, None] * frequencies)
    expected = torch.complex(x[..., :half], x[..., half:]) * turns
    rotated = apply_rope(x, *rope_table(20, head_size, theta))
    assert_close(rotated, torch.cat([expected.real, expected.imag], dim=-1))


@pytest.mark.parametrize("head_size", [2, 8, 64])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_matches_transformers(head_size: int, theta: float) -> None:
    config = LlamaConfig(
        hidden_size=2 * head_size,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    q, k = torch.randn(2, 2, 20, head_size), torch.randn(2, 1, 20, head_size)
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(20)[None])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    table = rope_table(20, head_size, theta)
    assert_close((apply_rope(q, *table), apply_rope(k, *table)), expected)


def test_rope_scores_depend_only_on_the_distance() -> None:
    table = rope_table(30, 16, 10_000.0)
    q, k = (apply_rope(torch.randn(16).expand(1, 1, 30, 16), *table) for _ in range(2))
    scores = (q @ k.transpose(-2, -1))[0, 0]
    assert_close(scores[1:, 1:], scores[:-1, :-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[1:], scores[:-1], atol=0.1)


def test_rope_keeps_the_dtype_of_its_input() -> None:
    assert apply_rope(torch.randn(1, 1, 4, 8).bfloat16(), *rope_table(4, 8, 100.0)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "rows"),
    [
        (3, 3, ["1..", "11.", "111"]),
        (2, 4, ["111.", "1111"]),
        (1, 4, ["1111"]),
    ],
)
def test_causal_mask_lets_queries_attend_to_earlier_keys(num_queries: int, num_keys: int, rows: list[str]) -> None:
    mask = causal_mask(torch.arange(num_keys - num_queries, num_keys), num_keys)
    assert ["".join("1" if seen else "." for seen in row) for row in mask.tolist()] == rows


def test_document_mask_is_causal_inside_each_document() -> None:
    mask = document_mask(document_starts(torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [3, 4, 7, 7, 9]])))
    assert mask.shape == (3, 1, 5, 5)
    assert [
        " ".join("".join("1" if seen else "." for seen in row) for row in rows) for rows in mask[:, 0].tolist()
    ] == [
        "1.... 11... ..1.. ..11. ..111",
        "1.... 11... 111.. 1111. 11111",
        "1.... .1... ..1.. ..11. ....1",
    ]


def test_a_document_starts_where_its_number_is_new() -> None:
    starts = document_starts(torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [3, 4, 7, 7, 9]]))
    assert starts.tolist() == [[0, 0, 2, 2, 2], [0, 0, 0, 0, 0], [0, 1, 2, 2, 4]]


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(5, 5), (1, 5), (3, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_matches_the_fused_attention_of_torch(
    heads: int, groups: int, num_queries: int, num_keys: int, masked: bool
) -> None:
    mask = causal_mask(torch.arange(num_keys - num_queries, num_keys), num_keys) if masked else None
    assert_same(
        lambda q, k, v: attention(q, k, v, mask),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
        torch.randn(2, heads, num_queries, 8),
        torch.randn(2, groups, num_keys, 8),
        torch.randn(2, groups, num_keys, 8),
    )


def test_attention_with_large_scores_stays_finite_and_selects_the_best_key() -> None:
    q = torch.full((1, 1, 1, 4), 100.0)
    k = torch.tensor([1.0, 100.0, -100.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    v = torch.tensor([5.0, 7.0, 9.0]).view(1, 1, 3, 1)
    assert_close(attention(q, k, v), torch.tensor([[[[7.0]]]]))


def test_softmax_takes_a_dimension() -> None:
    x = torch.randn(3, 4, 5) * 50
    for dim in (0, 1, -1):
        assert_close(softmax(x, dim), torch.softmax(x, dim))


def test_the_compiled_gradient_of_an_embedding_does_not_depend_on_the_order_of_threads() -> None:
    embedding, ids = Embedding(8, 64), torch.randint(8, (4, 1024))
    torch.nn.init.normal_(embedding.weight)
    gradient = torch.randn(4, 1024, 64)
    (expected,) = torch.autograd.grad(embedding(ids), embedding.weight, gradient)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compiled = torch.compile(embedding)
        for _ in range(10):
            (found,) = torch.autograd.grad(compiled(ids), embedding.weight, gradient)
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(threads)
