"""Samplers against transformers' and against their definition; decoding against a loop without a cache."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close
from transformers import TopKLogitsWarper, TopPLogitsWarper

from lit_lm import generation
from lit_lm.generation import Sampling, generate, keep_top_k, keep_top_p, next_token
from lit_lm.model import KVCache, Transformer, TransformerConfig

V = 12
CONTEXT = 16
GREEDY = Sampling(temperature=0.0)
NO_END = V  # an id that no model here can choose

distinct_logits = arrays(np.float32, (2, V), elements=st.floats(-8, 8, width=32), unique=True).map(torch.from_numpy)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Weights so large that the likeliest token depends on the context."""
    torch.manual_seed(1)
    config = TransformerConfig(vocab_size=V, context_length=CONTEXT, d_model=32, num_layers=2, num_heads=4)
    transformer = Transformer(config).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.5)
    return transformer


@pytest.fixture(scope="module")
def counter() -> Transformer:
    """A model that counts: after any id comes the next one, after the last one 0."""
    config = TransformerConfig(vocab_size=V, context_length=CONTEXT, d_model=V, num_layers=1, num_heads=2)
    transformer = Transformer(config).eval()
    block = transformer.blocks[0]
    with torch.no_grad():
        for matrix in (block.attention.o_proj.weight, block.feed_forward.down_proj.weight):
            matrix.zero_()
        transformer.embedding.weight.copy_(torch.eye(V))
        transformer.head.weight.copy_(torch.eye(V).roll(1, dims=0))
    return transformer


@given(distinct_logits, st.integers(1, V))
def test_keep_top_k_is_that_of_transformers(logits: Tensor, k: int) -> None:
    assert_close(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits), rtol=0, atol=0)


def test_keep_top_k_keeps_ties_and_everything_when_k_is_large() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    assert (keep_top_k(logits, 2) > -torch.inf).tolist() == [[False, True, True, True]]
    assert torch.equal(keep_top_k(logits, 100), logits)


@given(distinct_logits, st.floats(0.01, 0.99))
def test_keep_top_p_is_that_of_transformers(logits: Tensor, p: float) -> None:
    sums = logits.double().softmax(dim=-1).sort(descending=True).values.cumsum(dim=-1)
    assume(((sums - p).abs() > 1e-5).all())  # where rounding decides, either answer is right
    assert_close(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits), rtol=0, atol=0)


@given(arrays(np.float32, (1, V), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy), st.floats(0.01, 1.0))
def test_keep_top_p_keeps_the_fewest_likeliest_that_reach_p(logits: Tensor, p: float) -> None:
    kept = keep_top_p(logits, p)
    chosen = kept > -torch.inf
    probabilities = logits.double().softmax(dim=-1)
    assert torch.equal(kept[chosen], logits[chosen])
    assert logits[chosen].min() >= torch.cat([logits[~chosen], logits.new_tensor([-8])]).max()
    assert probabilities[chosen].sum() >= p - 1e-5
    assert probabilities[chosen].sum() - probabilities[chosen].min() < p + 1e-5


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.99, [0, 1, 2, 3]),
    ],
)
def test_keep_top_p_on_an_example(p: float, kept: list[int]) -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert (keep_top_p(logits, p) > -torch.inf)[0].nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_that_temperature_gives(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = Sampling(temperature=temperature, top_p=1.0)
    drawn = next_token(logits.expand(20_000, 4), sampling, torch.Generator().manual_seed(0))
    assert_close(
        drawn.bincount(minlength=4) / 20_000, (logits / temperature).softmax(dim=0), atol=0.01, rtol=0
    )  # 0.01: three standard deviations


def test_drawn_tokens_are_among_those_that_temperature_top_k_and_top_p_leave_in_this_order() -> None:
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    # At temperature 2 the three likeliest share 0.51, 0.31, 0.19: 0.8 is reached by two of them, by three of all five.
    sampling = Sampling(temperature=2.0, top_k=3, top_p=0.8)
    drawn = next_token(logits.expand(1000, 5), sampling, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 1}
    drawn = next_token(logits.expand(1000, 5), Sampling(temperature=2.0, top_p=0.8), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5], list(range(V))])
@torch.no_grad()
def test_temperature_0_takes_the_likeliest_token_of_a_full_forward_pass(model: Transformer, prompt: list[int]) -> None:
    ids = list(prompt)
    while len(ids) < CONTEXT:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    (continuation,) = generate(model, prompt, GREEDY, seed=0, end_id=NO_END)
    assert continuation == ids[len(prompt) :]
    assert len(set(continuation)) > 1


def test_top_k_1_and_a_tiny_top_p_equal_greedy(model: Transformer) -> None:
    expected = generate(model, [1, 2], GREEDY, seed=0, end_id=NO_END)
    for sampling in (Sampling(top_k=1, top_p=1.0), Sampling(top_p=1e-6)):
        assert generate(model, [1, 2], sampling, seed=5, end_id=NO_END) == expected


def test_a_continuation_ends_before_end_id(counter: Transformer) -> None:
    assert generate(counter, [3, 4], GREEDY, seed=0, end_id=8) == [[5, 6, 7]]
    assert generate(counter, [3, 7], GREEDY, seed=0, end_id=8) == [[]]
    assert generate(counter, [8], GREEDY, seed=0, end_id=8) == [[9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (5, 5), (14, 14), (None, 14)])
def test_a_continuation_ends_after_max_new_tokens_or_where_the_context_is_full(
    counter: Transformer, asked: int | None, given: int
) -> None:
    sampling = Sampling(max_new_tokens=asked, temperature=0.0)
    expected = [(i + 2) % V for i in range(given)]
    assert generate(counter, [0, 1], sampling, seed=0, end_id=NO_END) == [expected]


def test_samples_that_end_at_different_times_are_each_cut_at_their_own_end(model: Transformer) -> None:
    sampling = Sampling(temperature=3.0, top_p=1.0, num_samples=20)
    until_full = generate(model, [1], sampling, seed=0, end_id=NO_END)
    cut = generate(model, [1], sampling, seed=0, end_id=7)
    assert cut == [tokens[: tokens.index(7)] if 7 in tokens else tokens for tokens in until_full]
    assert len({len(tokens) for tokens in cut}) > 3


def test_samples_are_a_function_of_the_seed_alone(model: Transformer) -> None:
    sampling = Sampling(temperature=2.0, top_p=1.0, num_samples=3)
    torch.manual_seed(1)
    first = generate(model, [1, 2], sampling, seed=7, end_id=NO_END)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert generate(model, [1, 2], sampling, seed=7, end_id=NO_END) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(model, [1, 2], sampling, seed=8, end_id=NO_END) != first
    assert len({tuple(tokens) for tokens in first}) == 3


def test_decoding_stops_once_every_sample_has_ended(model: Transformer) -> None:
    passes: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, inputs, logits: passes.append(logits))
    samples = generate(model, [1], Sampling(temperature=3.0, top_p=1.0, num_samples=2), seed=17, end_id=7)
    hook.remove()
    lengths = sorted(len(tokens) for tokens in samples)
    assert lengths[0] < lengths[1] < CONTEXT - 2
    assert len(passes) == lengths[1] + 1


def test_decoding_under_autocast_works_and_keeps_the_cache_in_its_type(
    counter: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = set()

    class NotedCache(KVCache):
        def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            types.update([k.dtype, v.dtype, self.keys.dtype, self.values.dtype])
            return super().append(layer, k, v)

    monkeypatch.setattr(generation, "KVCache", NotedCache)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(counter, [3, 4], GREEDY, seed=0, end_id=8) == [[5, 6, 7]]
    assert types == {torch.bfloat16}


@pytest.mark.parametrize(
    ("prompt_size", "max_new_tokens", "message"),
    [
        (0, None, "the prompt is empty; it needs at least one token"),
        (0, 3, "the prompt is empty; it needs at least one token"),
        (16, None, "a prompt of 16 tokens and 1 new ones do not fit into the context of 16; "
                   "the prompt leaves room for 0"),
        (20, None, "a prompt of 20 tokens and 1 new ones do not fit into the context of 16; "
                   "the prompt leaves room for 0"),
        (10, 7, "a prompt of 10 tokens and 7 new ones do not fit into the context of 16; "
                "the prompt leaves room for 6"),
    ],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_refused(
    model: Transformer, prompt_size: int, max_new_tokens: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        generate(model, [1] * prompt_size, Sampling(max_new_tokens=max_new_tokens), seed=0, end_id=0)


def test_sampling_says_everything_that_is_wrong_at_once() -> None:
    with pytest.raises(ValueError, match="max_new_tokens") as error:
        Sampling(max_new_tokens=0, temperature=-1.0, top_k=-2, top_p=0.0, num_samples=0)
    assert str(error.value).splitlines() == [
        "max_new_tokens is 0; it must be at least 1",
        "top_k is -2; it must be at least 1",
        "num_samples is 0; it must be at least 1",
        "temperature is -1.0; it must be at least 0",
        "top_p is 0.0; it must be more than 0 and at most 1",
    ]


def test_sampling_refuses_a_top_p_above_1() -> None:
    with pytest.raises(ValueError, match=r"^top_p is 1.1; it must be more than 0 and at most 1$"):
        Sampling(top_p=1.1)
