"""The sampling controls against transformers' and against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lit_lm.inference.sampling import (
    SamplingConfig,
    apply_filters,
    apply_penalties,
    draw,
    forbid_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize_frequency,
    penalize_repetition,
    sample,
)

V = 12

logits_of = arrays(np.float32, (2, V), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy)
distinct_logits = arrays(np.float32, (2, V), elements=st.floats(-8, 8, width=32), unique=True).map(torch.from_numpy)
ids_of = arrays(np.int64, st.tuples(st.just(2), st.integers(1, 20)), elements=st.integers(0, 4))


def sorted_sums(logits: Tensor, keys: Tensor) -> Tensor:
    """Cumulative probabilities of logits (B, V), sorted by key."""
    return logits.double().softmax(dim=-1).gather(1, keys.argsort(dim=-1)).cumsum(dim=-1)


@given(distinct_logits, st.integers(1, V))
def test_keep_top_k_matches_transformers(logits: Tensor, k: int) -> None:
    assert_close(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits), rtol=0, atol=0)


def test_keep_top_k_keeps_ties_and_everything_when_k_is_large() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    assert (keep_top_k(logits, 2) > -torch.inf).tolist() == [[False, True, True, True]]
    assert torch.equal(keep_top_k(logits, 100), logits)


@given(distinct_logits, st.floats(0.01, 0.99))
def test_keep_top_p_matches_transformers(logits: Tensor, p: float) -> None:
    assume(((sorted_sums(logits, -logits) - p).abs() > 1e-5).all())  # if rounding decides, both answers are right
    assert_close(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits), rtol=0, atol=0)


@given(arrays(np.float32, (1, V), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy), st.floats(0.01, 1.0))
def test_keep_top_p_keeps_the_fewest_likeliest_that_reach_p(logits: Tensor, p: float) -> None:
    kept = keep_top_p(logits, p)
    chosen = kept > -torch.inf
    probabilities = logits.double().softmax(dim=-1)
    assert torch.equal(kept[chosen], logits[chosen])
    assert logits[chosen].min() >= torch.cat([logits[~chosen], logits.new_tensor([-8])]).max() - 1e-6
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


@given(logits_of, st.floats(0.001, 1))
def test_keep_min_p_matches_transformers(logits: Tensor, p: float) -> None:
    shares = (logits.double() - logits.double().amax(dim=-1, keepdim=True)).exp()
    assume(((shares - p).abs() > 1e-6).all())
    assert_close(keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits), rtol=0, atol=0)


@given(distinct_logits, st.floats(0.01, 0.99))
def test_keep_typical_matches_transformers(logits: Tensor, p: float) -> None:
    wide = logits.double().log_softmax(dim=-1)
    distances = (-wide + (wide.exp() * wide).sum(dim=-1, keepdim=True)).abs()
    assume(((sorted_sums(logits, distances) - p).abs() > 1e-5).all())
    assume((distances.sort().values.diff() > 1e-5).all())
    assert_close(keep_typical(logits, p), TypicalLogitsWarper(p)(None, logits), rtol=0, atol=0)


@given(logits_of, ids_of, st.floats(0.1, 10))
def test_penalize_repetition_matches_transformers(logits: Tensor, ids: np.ndarray[Any, Any], penalty: float) -> None:
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(ids), logits)
    assert_close(penalize_repetition(logits, ids.tolist(), penalty), theirs, rtol=0, atol=0)


@given(logits_of, ids_of, st.integers(1, 5))
def test_forbid_repeated_ngrams_matches_transformers(logits: Tensor, ids: np.ndarray[Any, Any], n: int) -> None:
    theirs = NoRepeatNGramLogitsProcessor(n)(torch.from_numpy(ids), logits)
    assert_close(forbid_repeated_ngrams(logits, ids.tolist(), n), theirs, rtol=0, atol=0)


@given(logits_of, ids_of, st.floats(-2, 2), st.floats(-2, 2))
def test_penalize_frequency_matches_its_documented_formula(
    logits: Tensor, ids: np.ndarray[Any, Any], frequency: float, presence: float
) -> None:
    expected = logits.clone()
    for row in range(2):
        for token in range(V):
            count = ids[row].tolist().count(token)
            expected[row, token] -= count * frequency + (count > 0) * presence
    assert_close(penalize_frequency(logits, ids.tolist(), frequency, presence), expected)


@given(distinct_logits, ids_of)
def test_the_controls_apply_in_the_order_of_transformers(logits: Tensor, ids: np.ndarray[Any, Any]) -> None:
    options = {"temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8}
    options |= {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    shape = {"vocab_size": V, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=1))
    processors = theirs._get_logits_processor(
        GenerationConfig(do_sample=True, **options), input_ids_seq_length=ids.shape[1]
    )
    expected = processors(torch.from_numpy(ids), logits)
    sampling = SamplingConfig(**options)
    ours = apply_filters(apply_penalties(logits, ids.tolist(), [[], []], sampling), sampling)
    assert_close(ours.softmax(dim=-1), expected.softmax(dim=-1))


@given(distinct_logits, st.floats(0, 1e-9, exclude_min=True))
def test_a_tiny_temperature_takes_the_likeliest_token(logits: Tensor, temperature: float) -> None:
    assume((logits.sort().values.diff() > 1e-6).all())
    drawn = draw(apply_filters(logits, SamplingConfig(temperature=temperature)), [0.0, 0.999])
    assert torch.equal(drawn, logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities_at_the_temperature(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampling = SamplingConfig(temperature=temperature, top_p=1.0)
    uniforms = torch.rand(20_000, dtype=torch.float64).tolist()
    drawn = sample(logits.expand(20_000, 4), [[]] * 20_000, [[]] * 20_000, sampling, uniforms)
    assert_close(
        drawn.bincount(minlength=4) / 20_000, (logits / temperature).softmax(dim=0), atol=0.01, rtol=0
    )  # 0.01: three standard deviations


@given(arrays(np.float32, (1, V), elements=st.floats(-30, 30, width=32)).map(torch.from_numpy), st.data())
def test_draw_never_returns_an_excluded_token(logits: Tensor, data: st.DataObject) -> None:
    logits[0, sorted(data.draw(st.sets(st.integers(0, V - 1), max_size=V - 1)))] = -torch.inf
    for uniform in (0.0, data.draw(st.floats(0, 1, exclude_max=True)), 1 - 2**-53):
        assert logits[0, draw(logits, [uniform])] > -torch.inf


def test_temperature_top_k_and_top_p_apply_in_this_order() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])
    # At temperature 2, the top three have probabilities 0.51, 0.31, 0.19: two reach 0.8. Without top_k it takes three.
    assert apply_filters(logits, SamplingConfig(temperature=2.0, top_k=3, top_p=0.8)).isfinite().sum() == 2
    assert apply_filters(logits, SamplingConfig(temperature=2.0, top_p=0.8)).isfinite().sum() == 3


def test_sampling_config_reports_all_invalid_values_at_once() -> None:
    with pytest.raises(ValueError, match="max_new_tokens") as error:
        SamplingConfig(max_new_tokens=0, temperature=-1.0, top_k=-2, top_p=0.0, num_samples=0, num_beams=2,
                 min_p=2.0, repetition_penalty=0.0, sliding_window=True)  # fmt: skip
    assert str(error.value).splitlines() == [
        "max_new_tokens is 0; it must be at least 1",
        "top_k is -2; it must be at least 1",
        "num_samples is 0; it must be at least 1",
        "temperature is -1.0; it must be at least 0",
        "top_p is 0.0; it must be more than 0 and at most 1",
        "min_p is 2.0; it must be at least 0 and at most 1",
        "repetition_penalty is 0.0; it must be more than 0",
        "sliding_window does not work with beam search; set num_beams to 1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 1.1}, "top_p is 1.1; it must be more than 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature is nan; it must be at least 0"),
        ({"frequency_penalty": float("-inf")}, "frequency_penalty is -inf; it must be a finite number"),
        ({"num_beams": 2}, "num_beams is 2; beam search does not sample: set temperature to 0"),
        ({"num_beams": 2, "num_samples": 3, "temperature": 0}, r"num_samples is 3; it must be at most num_beams \(2\)"),
        ({"sliding_window": True}, "sliding_window has no limit on the number of new tokens; set max_new_tokens"),
    ],
)
def test_sampling_config_rejects_invalid_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SamplingConfig(**options)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_sample_raises_if_no_token_is_possible(temperature: float, value: float) -> None:
    logits = torch.full((1, 5), value)
    with pytest.raises(ValueError, match=r"^cannot sample the next token: all logits are NaN or -inf"):
        sample(logits, [[1]], [[]], SamplingConfig(temperature=temperature), [0.5])
