"""Generation against a loop without a cache, in different batches, and as a stream."""

import pytest
import torch

from lit_lm.inference.continuation import Continuation
from lit_lm.inference.engine import make_engine
from lit_lm.inference.generate import generate, stream
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.kernels import build
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer

V = 12
CONTEXT = 16
GREEDY = SamplingConfig(temperature=0.0)
FREE = SamplingConfig(temperature=2.0, top_p=1.0)
NO_END = V  # an id that no model here can generate


def ids_of(samples: list[list[Continuation]]) -> list[list[list[int]]]:
    return [[continuation.ids for continuation in each] for each in samples]


def continued(
    model: Transformer, prompt: list[int], sampling: SamplingConfig, *, seed: int, end_id: int
) -> list[list[int]]:
    """Ids of the continuations of a single prompt."""
    (found,) = generate(model, [prompt], sampling, seeds=[seed], end_id=end_id)
    return [continuation.ids for continuation in found]


@pytest.fixture(scope="module")
def model() -> Transformer:
    """A model with weights so large that the likeliest token depends on the context."""
    torch.manual_seed(1)
    config = TransformerConfig(vocab_size=V, context_length=CONTEXT, d_model=32, num_layers=2, num_heads=4)
    transformer = Transformer(config).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.normal_(std=0.5)
    return transformer


@pytest.fixture(scope="module")
def counter() -> Transformer:
    """A model that counts: each id is followed by the next one, the last one by 0."""
    config = TransformerConfig(vocab_size=V, context_length=CONTEXT, d_model=V, num_layers=1, num_heads=2)
    transformer = Transformer(config).eval()
    block = transformer.blocks[0]
    with torch.no_grad():
        for matrix in (block.attention.o_proj.weight, block.feed_forward.down_proj.weight):
            matrix.zero_()
        transformer.embedding.weight.copy_(torch.eye(V))
        transformer.head.weight.copy_(torch.eye(V).roll(1, dims=0))
    return transformer


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3, 4, 5], list(range(V))])
@torch.no_grad()
def test_temperature_0_takes_the_likeliest_token_of_a_full_forward_pass(model: Transformer, prompt: list[int]) -> None:
    ids = list(prompt)
    while len(ids) < CONTEXT:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    (continuation,) = continued(model, prompt, GREEDY, seed=0, end_id=NO_END)
    assert continuation == ids[len(prompt) :]
    assert len(set(continuation)) > 1


def test_top_k_1_and_a_tiny_top_p_are_greedy(model: Transformer) -> None:
    expected = continued(model, [1, 2], GREEDY, seed=0, end_id=NO_END)
    for sampling in (SamplingConfig(top_k=1, top_p=1.0), SamplingConfig(top_p=1e-6)):
        assert continued(model, [1, 2], sampling, seed=5, end_id=NO_END) == expected


def test_a_continuation_ends_before_end_id(counter: Transformer) -> None:
    assert continued(counter, [3, 4], GREEDY, seed=0, end_id=8) == [[5, 6, 7]]
    assert continued(counter, [3, 7], GREEDY, seed=0, end_id=8) == [[]]
    assert continued(counter, [8], GREEDY, seed=0, end_id=8) == [[9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("max_new_tokens", "size"), [(1, 1), (5, 5), (14, 14), (None, 14)])
def test_a_continuation_ends_after_max_new_tokens_or_when_the_context_is_full(
    counter: Transformer, max_new_tokens: int | None, size: int
) -> None:
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0)
    expected = [(i + 2) % V for i in range(size)]
    assert continued(counter, [0, 1], sampling, seed=0, end_id=NO_END) == [expected]


def test_each_sample_is_cut_at_its_own_end(model: Transformer) -> None:
    sampling = SamplingConfig(temperature=3.0, top_p=1.0, num_samples=20)
    until_full = continued(model, [1], sampling, seed=0, end_id=NO_END)
    cut = continued(model, [1], sampling, seed=0, end_id=7)
    assert cut == [tokens[: tokens.index(7)] if 7 in tokens else tokens for tokens in until_full]
    assert len({len(tokens) for tokens in cut}) > 3


def test_samples_depend_only_on_the_seed(model: Transformer) -> None:
    sampling = SamplingConfig(temperature=2.0, top_p=1.0, num_samples=3)
    torch.manual_seed(1)
    first = continued(model, [1, 2], sampling, seed=7, end_id=NO_END)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert continued(model, [1, 2], sampling, seed=7, end_id=NO_END) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert continued(model, [1, 2], sampling, seed=8, end_id=NO_END) != first
    assert len({tuple(tokens) for tokens in first}) == 3


def test_generation_stops_once_every_sample_has_ended(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    engine = make_engine(model)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda ids, cache: rows.append(len(ids)) or step(ids, cache))
    samples = continued(engine, [1], SamplingConfig(temperature=3.0, top_p=1.0, num_samples=4), seed=24, end_id=7)
    lengths = sorted(len(tokens) for tokens in samples)
    assert lengths[0] < lengths[-1] < CONTEXT - 2
    assert rows == [sum(length > turn for length in lengths) for turn in range(lengths[-1])]


PROMPTS = [[1, 2], [3], [4, 5, 6, 7, 8], [1, 2], [9, 9, 9]]


@pytest.mark.parametrize("sampling", [GREEDY, FREE, SamplingConfig(num_samples=3, repetition_penalty=1.2, top_k=5)])
def test_a_prompt_and_its_seed_give_the_same_continuations_in_any_batch(
    model: Transformer, sampling: SamplingConfig
) -> None:
    together = generate(model, PROMPTS, sampling, seeds=range(5), end_id=7)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, [prompt], sampling, seeds=[i], end_id=7)
        for ours, theirs in zip(together[i], alone, strict=True):
            assert (ours.ids, ours.ended) == (theirs.ids, theirs.ended)
            if build.load("step") is None:
                assert ours.log_probabilities == pytest.approx(theirs.log_probabilities, abs=1e-4)
            else:
                assert ours.log_probabilities == theirs.log_probabilities
    backwards = generate(model, PROMPTS[::-1], sampling, seeds=range(4, -1, -1), end_id=7)
    assert ids_of(backwards[::-1]) == ids_of(together)


def test_no_prompts_give_no_continuations(model: Transformer) -> None:
    assert generate(model, [], FREE, seeds=[], end_id=NO_END) == []


def test_the_same_prompt_and_seed_give_the_same_continuation(model: Transformer) -> None:
    first, second = generate(model, [[1, 2], [1, 2]], FREE, seeds=[3, 3], end_id=NO_END)
    assert first[0].ids == second[0].ids


def test_log_probabilities_are_the_models_own(model: Transformer) -> None:
    sampling = SamplingConfig(temperature=0.5, top_k=2, frequency_penalty=0.5)
    ((found,),) = generate(model, [[1, 2]], sampling, seeds=[0], end_id=NO_END)
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, *found.ids]]))[0].log_softmax(dim=-1)
    expected = [float(logits[1 + i, token]) for i, token in enumerate(found.ids)]
    assert found.log_probabilities == pytest.approx(expected, abs=1e-5)


def test_a_continuation_reports_why_it_ended(counter: Transformer) -> None:
    def ended(**options: object) -> str:
        ((found,),) = generate(counter, [[3]], SamplingConfig(temperature=0, **options), seeds=[0], end_id=8)  # type: ignore
        return found.ended

    assert ended() == "end"
    assert ended(stop_tokens=(6, 7)) == "stop"
    assert ended(max_new_tokens=2) == "max_new_tokens"
    ((found,),) = generate(counter, [[3]], GREEDY, seeds=[0], end_id=NO_END)
    assert found.ended == "context"
    ((found,),) = generate(counter, [[3]], SamplingConfig(temperature=0, stop_tokens=(6,)), seeds=[0], end_id=8)
    assert found.ids == [4, 5]


@pytest.mark.parametrize("wrong", [V, -1])
def test_a_stop_token_outside_the_vocabulary_is_rejected(counter: Transformer, wrong: int) -> None:
    sampling = SamplingConfig(temperature=0, stop_tokens=(3, wrong))
    with pytest.raises(ValueError, match=f"stop_tokens has {wrong}; token ids range from 0 to {V - 1}"):
        generate(counter, [[3]], sampling, seeds=[0], end_id=8)
    with pytest.raises(ValueError, match="stop_tokens has"):
        stream(counter, [3], sampling, seed=0, end_id=8)


def test_a_stopping_criterion_ends_a_row_after_the_token_that_meets_it(counter: Transformer) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=6)
    found = generate(
        counter, [[0], [3]], sampling, seeds=[0, 0], end_id=NO_END, criterion=lambda prompt: lambda token: token == 5
    )
    assert ids_of(found) == [[[1, 2, 3, 4, 5]], [[4, 5]]]
    assert [each[0].ended for each in found] == ["stop", "stop"]


def test_no_ngram_occurs_twice(model: Transformer) -> None:
    (ids,) = continued(
        model,
        [1, 2],
        SamplingConfig(temperature=0, max_new_tokens=V - 2, no_repeat_ngram_size=1),
        seed=0,
        end_id=NO_END,
    )[:1]
    tokens = [1, 2, *ids][:V]
    assert len(set(tokens)) == len(tokens)


def test_a_sliding_window_continues_with_the_last_half_of_the_context(model: Transformer) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=40, sliding_window=True)
    for prompt in ([1, 2, 3], [5] * 30):
        ids, window = list(prompt), prompt if len(prompt) <= CONTEXT else prompt[-CONTEXT // 2 :]
        for _ in range(40):
            if len(window) > CONTEXT:
                window = ids[-CONTEXT // 2 :]
            with torch.no_grad():
                ids.append(int(model(torch.tensor([window]))[0, -1].argmax()))
            window = [*window, ids[-1]]
        other = generate(model, [prompt, [7]], sampling, seeds=[0, 0], end_id=NO_END)
        assert other[0][0].ids == ids[len(prompt) :]


def test_samples_that_do_not_fit_into_memory_are_refused_at_once(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"generating 2,147,483,648 rows at once.* reduce num_samples"):
        generate(model, [[1]], SamplingConfig(num_samples=2**31), seeds=[0], end_id=0)
    assert next(stream(model, [1], SamplingConfig(num_samples=2**31), seed=0, end_id=0)).id >= 0


def test_a_stream_yields_the_first_continuation(model: Transformer) -> None:
    for sampling in (GREEDY, SamplingConfig(temperature=2.0, num_samples=2)):
        ((found, *_),) = generate(model, [[1, 2]], sampling, seeds=[5], end_id=7)
        steps = stream(model, [1, 2], sampling, seed=5, end_id=7)
        tokens = [next(steps) for _ in found.ids]
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert end.value.value == found.ended
        assert [token.id for token in tokens] == found.ids
        assert [token.log_probability for token in tokens] == pytest.approx(found.log_probabilities, abs=1e-5)


def test_a_stream_yields_the_likeliest_tokens(model: Transformer) -> None:
    token = next(stream(model, [1, 2], GREEDY, seed=0, end_id=NO_END, num_alternatives=3))
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2]]))[0, -1].log_softmax(dim=-1).topk(3)
    assert [id for id, _ in token.alternatives] == expected.indices.tolist()
    assert [value for _, value in token.alternatives] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert token.id == token.alternatives[0][0]


def test_a_stream_computes_tokens_on_demand(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    engine = make_engine(model)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda ids, cache: steps.append(1) or step(ids, cache))
    tokens = stream(engine, [1, 2], GREEDY, seed=0, end_id=NO_END)
    for _ in range(3):
        next(tokens)
    tokens.close()
    assert len(steps) == 2


def test_a_stream_raises_at_the_call(model: Transformer) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        stream(model, [], GREEDY, seed=0, end_id=0)
    with pytest.raises(ValueError, match="num_beams is 2, but beam search cannot be streamed"):
        stream(model, [1], SamplingConfig(temperature=0, num_beams=2), seed=0, end_id=0)


def test_generation_does_not_change_the_model(model: Transformer) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    continued(model, [1, 2], GREEDY, seed=0, end_id=NO_END)
    assert model.training
    model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_generation_works_under_autocast(counter: Transformer) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert continued(counter, [3, 4], GREEDY, seed=0, end_id=8) == [[5, 6, 7]]


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
def test_a_prompt_that_does_not_fit_is_rejected(
    model: Transformer, prompt_size: int, max_new_tokens: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        generate(model, [[1] * prompt_size], SamplingConfig(max_new_tokens=max_new_tokens), seeds=[0], end_id=0)
