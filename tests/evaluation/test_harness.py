"""The model as the harness calls it: scores and continuations are those of LanguageModel."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.models import GPT2, make
from helpers.texts import DOCUMENTS
from lm_eval.api.instance import Instance

from lit_lm.evaluation.harness import HarnessModel
from lit_lm.evaluation.scoring import log_likelihoods
from lit_lm.inference.language_model import LanguageModel
from lit_lm.tokenizer.tokenizer import Tokenizer

CONTEXT = 24
TEXTS = (
    ("Once upon a time", " there was"),
    ("The cat", " liked the dog."),
    ("The cat ", "played"),
    ("", "The dog liked the cat."),
    ("从前有一只小", "狗"),
    ("W", "hat a day!"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


@pytest.fixture(scope="module", params=[{}, GPT2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make(vocab_size=300, context_length=CONTEXT, **request.param), tokenizer)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, 0) for each in arguments]


def expected(model: LanguageModel, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Score of a continuation, one token after the other."""
    total, likeliest, ids = 0.0, True, list(context)
    for token in continuation:
        with torch.no_grad():
            logits = model.transformer(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        total += float(logits.log_softmax(dim=-1)[token])
        likeliest = likeliest and int(logits.argmax()) == token
        ids.append(token)
    return total, likeliest


def test_a_score_is_the_sum_of_the_log_probabilities_of_the_continuation(model: LanguageModel) -> None:
    encode, end = model.tokenizer.encode, model.tokenizer.end_id
    scores = HarnessModel(model, 4).loglikelihood(requests("loglikelihood", *TEXTS))
    for (context, continuation), score in zip(TEXTS, scores, strict=True):
        whole = encode(context + continuation)
        start = len(encode(context.rstrip())) if context != TEXTS[4][0] else len(whole) - 1
        assert score == pytest.approx(expected(model, whole[:start] or [end], whole[start:]), abs=1e-4)
    (text,) = [continuation for context, continuation in TEXTS if not context]
    assert scores[3][0] == pytest.approx(float(model.log_probabilities(text).sum()), abs=1e-4)


def test_the_likeliest_continuation_is_recognized(model: LanguageModel) -> None:
    ids = model.tokenizer.encode("The cat")
    tokens = [token.id for token in model.generate("The cat", temperature=0, max_new_tokens=5).tokens]
    pairs = [(ids, tokens), (ids, [*tokens[:4], (tokens[4] + 1) % 300]), (ids, [(tokens[0] + 1) % 300])]
    assert [likeliest for _, likeliest in log_likelihoods(model.transformer, pairs, 2)] == [True, False, False]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_scores_depend_neither_on_the_batch_size_nor_on_the_order(model: LanguageModel, batch_size: int) -> None:
    values = [value for value, _ in HarnessModel(model, 3).loglikelihood(requests("loglikelihood", *TEXTS))]
    other = HarnessModel(model, batch_size).loglikelihood(requests("loglikelihood", *reversed(TEXTS)))
    assert [value for value, _ in reversed(other)] == pytest.approx(values, abs=1e-5)


def test_a_token_across_the_border_belongs_to_the_continuation(model: LanguageModel) -> None:
    """In Chinese. So that choices after the same context are compared by the probabilities of whole texts."""
    harness, encode = HarnessModel(model, 4), model.tokenizer.encode
    context = "从前有一只小"
    assert encode(f"{context}狗")[: len(encode(context))] != encode(context), "the case is not tested"
    for continuation in ("狗", "猫", "狗，小"):
        before, after = harness._encode_pair(context, continuation)
        assert before + after == encode(context + continuation)
        assert before == encode(context)[: len(before)]
    assert harness._encode_pair(" ", "a") == ([model.tokenizer.end_id], encode(" a"))


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_the_beginning_of_a_long_context_is_left_out(model: LanguageModel, length: int) -> None:
    ids = torch.randint(300, (length + 3,)).tolist()
    (score,) = HarnessModel(model, 1)._loglikelihood_tokens([(None, ids[:length], ids[length:])])
    with torch.no_grad():
        kept = ids[-CONTEXT - 1 :]
        logits = model.transformer(torch.tensor([kept[:-1]]))[0].log_softmax(dim=-1)
    assert score[0] == pytest.approx(sum(float(logits[-3 + i, kept[-3 + i]]) for i in range(3)), abs=1e-4)


@pytest.mark.parametrize("length", [0, 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 5])
def test_long_continuations_are_scored_in_the_windows_of_the_harness(model: LanguageModel, length: int) -> None:
    """The first window has one token of the context; the others are full."""
    before, ids = [7], torch.randint(300, (length,)).tolist()
    total = 0.0
    for start in range(0, length, CONTEXT):
        end = min(start + CONTEXT, length)
        window = (before + ids)[max(0, end - CONTEXT) : end]
        with torch.no_grad():
            logits = model.transformer(torch.tensor([window]))[0].log_softmax(dim=-1)
        total += sum(float(logits[place - end, ids[place]]) for place in range(start, end))
    (score,) = HarnessModel(model, 2)._loglikelihood_tokens([(None, before, ids)])
    assert score[0] == pytest.approx(total, abs=1e-3)


def test_rolling_scores_give_the_bits_per_byte_of_the_model(model: LanguageModel) -> None:
    texts = ["The cat liked the dog.", "小狗喜欢小猫。"]
    assert all(len(model.tokenizer.encode(text)) <= CONTEXT for text in texts)
    scores = HarnessModel(model, 2).loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in texts))
    )
    for text, score in zip(texts, scores, strict=True):
        assert -score / math.log(2) / len(text.encode()) == pytest.approx(model.bits_per_byte(text), rel=1e-5)


def test_nan_is_reported_and_not_scored(tokenizer: Tokenizer) -> None:
    transformer = make(vocab_size=300, context_length=CONTEXT)
    transformer.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the model's probabilities are NaN: it diverged"):
        log_likelihoods(transformer, [([1], [2])], 1)


def test_texts_are_continued_as_generate_does(model: LanguageModel) -> None:
    options = ({"max_gen_toks": 6}, {"max_gen_toks": 6, "until": ["e"]}, {"until": "t", "max_new_tokens": 9})
    prompts = ("The cat", "", "Once upon", "The dog liked")
    given = [(prompt, dict(each)) for prompt in prompts for each in options]
    texts = HarnessModel(model, 3).generate_until(requests("generate_until", *given))
    for (prompt, each), text in zip(given, texts, strict=True):
        until = each.get("until", [])
        stop = [until] if isinstance(until, str) else until
        size = each.get("max_gen_toks", each.get("max_new_tokens"))
        assert text == model.generate(prompt, temperature=0, max_new_tokens=size, stop=stop).continuation


def test_sampling_takes_the_options_of_the_task_and_repeats_differ(model: LanguageModel) -> None:
    given = ("The cat", {"do_sample": True, "temperature": 0.9, "top_k": 40, "max_gen_toks": 8})
    texts = HarnessModel(model, 2).generate_until(requests("generate_until", given, given))
    sampled = [
        model.generate("The cat", seed=seed, temperature=0.9, top_k=40, top_p=1.0, max_new_tokens=8).continuation
        for seed in range(2)
    ]
    assert texts == sampled
    assert texts[0] != texts[1]


@pytest.mark.parametrize("size", [5, CONTEXT, 500])
def test_a_long_prompt_loses_its_beginning(model: LanguageModel, size: int) -> None:
    """The continuation has up to half of the context."""
    prompt = "The cat liked the dog. " * 9
    (text,) = HarnessModel(model, 2).generate_until(requests("generate_until", (prompt, {"max_gen_toks": size})))
    room = min(size, CONTEXT // 2)
    kept = model.tokenizer.encode(prompt)[-(CONTEXT - room) :]
    ids = list(kept)
    for _ in range(room):
        with torch.no_grad():
            ids.append(int(model.transformer(torch.tensor([ids]))[0, -1].argmax()))
    decode = model.tokenizer.decode
    assert decode(ids[: len(kept)]) + text == decode(ids)


def test_an_option_that_generation_lacks_is_named(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"generation_kwargs of the task: .*'penalty_alpha'"):
        HarnessModel(model, 2).generate_until(requests("generate_until", ("The", {"penalty_alpha": 0.6})))
