"""Generate continuations of prompts, whole or as a stream.

Shapes: V vocabulary.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from torch import Tensor

from lit_lm.inference.batch import Batch, Row, StoppingCriterion, check_tokens, make_rows, max_tokens
from lit_lm.inference.beams import beam_search
from lit_lm.inference.continuation import Continuation, Ended, Token
from lit_lm.inference.engine import Engine, make_engine
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.memory import check_memory
from lit_lm.model.cost import cache_memory
from lit_lm.model.transformer import Transformer


def generate(
    model: Transformer | Engine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    seeds: Sequence[int],
    end_id: int,
    criterion: Callable[[Sequence[int]], StoppingCriterion] | None = None,
) -> list[list[Continuation]]:
    """Return `sampling.num_samples` continuations of each prompt.

    Prompts may differ in length. Rows are independent, and the random numbers of a row depend only on its prompt's seed
    and the index of the sample, so a prompt and its seed give the same ids in any batch: bit for bit with the C step,
    otherwise up to rounding. Rounding depends on the number of rows; it can change a choice between nearly equal
    tokens, or a draw near the border between two.

    Args:
        model: A Transformer, or an engine made from one, for repeated use.
        prompts: Token ids of each prompt.
        sampling: Sampling controls.
        seeds: One seed per prompt.
        end_id: Id of the end-of-text token, which is left out of the continuation.
        criterion: Called with a prompt, returns the stopping criterion of one continuation. The token that meets the
            criterion is kept. Beam search ignores stopping criteria.

    Raises:
        ValueError: if a prompt is empty or leaves too little room in the context for the new tokens, if a token is not
            in the vocabulary, or if the rows do not fit into the device's memory.
    """
    engine = _engine(model)
    # a step of beam search copies the cache
    num_rows = 2 * sampling.num_beams if sampling.num_beams > 1 else len(prompts) * sampling.num_samples
    check_memory(
        cache_memory(engine.config, num_rows),
        f"generating {num_rows:,} rows at once, with a context of {engine.config.context_length:,} tokens,",
        "generate fewer at once: reduce num_samples, num_beams or the number of prompts in a batch",
        engine.device.type,
    )
    if sampling.num_beams > 1:
        for where, ids in (("stop_tokens", sampling.stop_tokens), *(("the prompt", prompt) for prompt in prompts)):
            check_tokens(where, ids, engine.config)
        counts = [max_tokens(len(prompt), sampling, engine.config.context_length) for prompt in prompts]
        return [beam_search(engine, *each, sampling, end_id) for each in zip(prompts, counts, strict=True)]
    rows = [
        row
        for prompt, seed in zip(prompts, seeds, strict=True)
        for row in make_rows(engine.config, prompt, sampling, seed, criterion)
    ]
    if rows:
        batch = Batch(engine, len(rows), end_id)
        batch.join(rows)
        while batch.active():
            batch.step()
    done = [row.continuation() for row in rows]
    return [done[i : i + sampling.num_samples] for i in range(0, len(done), sampling.num_samples)]


def stream(
    model: Transformer | Engine,
    prompt: Sequence[int],
    sampling: SamplingConfig,
    *,
    seed: int,
    end_id: int,
    num_alternatives: int = 0,
) -> Generator[Token, None, Ended]:
    """Stream the tokens of the first continuation that `generate` returns for this seed; return why it ended.

    Each token is computed on demand: closing the generator stops the computation.

    Args:
        model, prompt, sampling, seed, end_id: As for `generate`.
        num_alternatives: Number of likeliest ids to yield with each token.

    Raises:
        ValueError: as for `generate`, at the call; also with beam search, whose tokens are known only at the end.
    """
    engine = _engine(model)
    if sampling.num_beams > 1:
        raise ValueError(f"num_beams is {sampling.num_beams}, but beam search cannot be streamed; set num_beams to 1")
    (row,) = make_rows(engine.config, prompt, replace(sampling, num_samples=1), seed)
    batch = Batch(engine, 1, end_id)
    batch.join([row])
    return _stream(batch, row, num_alternatives)


def _stream(batch: Batch, row: Row, num_alternatives: int) -> Generator[Token, None, Ended]:
    while row.ended is None:
        logits, normalizers = batch.step()
        if row.ended not in ("end", "stop"):
            yield Token(row.ids[-1], row.log_probabilities[-1], likeliest(logits[0], normalizers[0], num_alternatives))
    return row.ended


def likeliest(logits: Tensor, normalizer: Tensor, number: int) -> tuple[tuple[int, float], ...]:
    """The likeliest ids of logits (V) with their log-probabilities, likeliest first. normalizer: their logsumexp."""
    found = logits.topk(number)
    return tuple(zip(found.indices.tolist(), (found.values - normalizer).tolist(), strict=True))


def _engine(model: Transformer | Engine) -> Engine:
    return make_engine(model) if isinstance(model, Transformer) else model
