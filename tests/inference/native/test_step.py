"""step.c for sizes that are large or wrong; tests/inference/test_engine.py compares ordinary ones with the model."""

import ctypes
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import make
from torch import nn
from torch.testing import assert_close

from lit_lm.inference.engine import TorchEngine, make_engine
from lit_lm.inference.native.engine import NativeEngine
from lit_lm.inference.native.support import unsupported
from lit_lm.kernels import build
from lit_lm.model.transformer import Transformer

TINY = dict[str, Any](vocab_size=11, d_model=8, num_layers=1, num_heads=2, d_ff=5)


@pytest.fixture
def library() -> ctypes.CDLL:
    return build.load("step") or pytest.skip("no C compiler")


@pytest.fixture
def engine(library: ctypes.CDLL) -> NativeEngine:
    return NativeEngine(library, make(context_length=16), torch.float32)


def on_a_small_stack(function: Callable[[], Any]) -> Any:
    """Return the result of a call with 256 kB of stack; exceeding it ends the process."""
    found: list[Any] = []
    before = threading.stack_size(2**18)
    try:
        thread = threading.Thread(target=lambda: found.append(function()))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return found[0]


def test_logsumexp_of_many_rows(engine: NativeEngine) -> None:
    logits = torch.randn(20_000, 9)
    assert_close(on_a_small_stack(lambda: engine.logsumexp(logits)), logits.logsumexp(dim=-1))


def test_a_long_context(library: ctypes.CDLL) -> None:
    context = 2**17
    model = make(**TINY, context_length=context)

    def last_step(engine: Any) -> torch.Tensor:
        cache = engine.new_cache(1)
        cache.keys.zero_()
        cache.values.fill_(0.5)
        cache.lengths = [context - 1]
        logits: torch.Tensor = engine.step([3], cache)
        return logits

    found = on_a_small_stack(lambda: last_step(NativeEngine(library, model, torch.float32)))
    expected = last_step(TorchEngine(model, torch.float32))
    assert_close(found, expected, atol=1e-2, rtol=1e-2)  # float32 sums of 131,072 terms


def test_a_prompt_in_several_parts(library: ctypes.CDLL) -> None:
    """The C step takes 1,024 tokens at once."""
    model = make(**TINY, context_length=2100)
    engine = NativeEngine(library, model, torch.float32)
    ids = torch.randint(11, (1, 2100))
    whole, cache = engine.logits(ids)[0], engine.new_cache(1)
    with torch.no_grad():
        assert_close(whole, model(ids)[0], atol=1e-5, rtol=1e-5)
    for size, step in enumerate(ids[0].tolist()):
        assert torch.equal(engine.step([step], cache)[0], whole[size])
    for size in (1023, 1024, 1025, 2048, 2049, 2100):
        assert torch.equal(engine.prefill(ids[0, :size].tolist(), cache, 0), whole[size - 1])


def test_many_rows_in_several_parts(library: ctypes.CDLL) -> None:
    engine = NativeEngine(library, make(**TINY, context_length=4), torch.float32)
    ids = torch.randint(11, (2500, 4))
    cache, expected = engine.new_cache(2500), engine.logits(ids)
    for t in range(4):
        assert torch.equal(engine.step(ids[:, t].tolist(), cache), expected[:, t])


@pytest.mark.parametrize("d_ff", [1, 4, 5, 15, 17])
def test_logits_do_not_depend_on_how_tokens_are_fed_if_arrays_are_shorter_than_a_register(
    library: ctypes.CDLL, d_ff: int
) -> None:
    engine = NativeEngine(library, make(d_ff=d_ff, context_length=40), torch.float32)
    ids = torch.randint(40, (1, 40))
    whole, cache = engine.logits(ids)[0], engine.new_cache(1)
    for step, expected in zip(ids[0].tolist(), whole, strict=True):
        assert torch.equal(engine.step([step], cache)[0], expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 3], "got 2 ids for 1 rows; pass one id per row"),
        ([], "got 0 ids for 1 rows; pass one id per row"),
        ([40], "token id 40 is not in the vocabulary; ids range from 0 to 39"),
        ([-1], "token id -1 is not in the vocabulary"),
        ([2**70], f"token id {2**70} is not in the vocabulary"),
    ],
)
def test_a_step_refuses_wrong_ids(engine: NativeEngine, ids: list[int], message: str) -> None:
    cache = engine.new_cache(1)
    engine.prefill([3], cache, 0)
    with pytest.raises(ValueError, match=re.escape(message)):
        engine.step(ids, cache)
    assert cache.lengths == [1]


def test_no_more_tokens_than_the_context_holds(engine: NativeEngine) -> None:
    cache = engine.new_cache(1)
    with pytest.raises(ValueError, match="17 tokens do not fit into the context length of 16"):
        engine.prefill([1] * 17, cache, 0)
    engine.prefill([1] * 16, cache, 0)
    with pytest.raises(ValueError, match="17 tokens do not fit into the context length of 16"):
        engine.step([1], cache)
    with pytest.raises(ValueError, match="pass one id per row, and at least one"):
        engine.prefill([], cache, 0)


def test_a_cache_belongs_to_its_engine(library: ctypes.CDLL, engine: NativeEngine) -> None:
    model = make(context_length=32)
    for other in (NativeEngine(library, model, torch.float32), TorchEngine(model, torch.float32)):
        with pytest.raises(ValueError, match="the cache belongs to another engine"):
            engine.step([1], other.new_cache(1))


def test_no_rows_and_no_tokens(engine: NativeEngine) -> None:
    assert engine.step([], engine.new_cache(0)).shape == (0, 40)
    assert engine.logits(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 40)
    assert engine.logits(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 40)
    assert engine.logsumexp(torch.empty(0, 40)).shape == (0,)


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(3),
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, dtype=torch.bfloat16),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(2, 3, device="meta"),
    ],
    ids=str,
)
def test_logsumexp_refuses_other_tensors(engine: NativeEngine, logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=re.escape("must have shape (B, V), float32, on cpu")):
        engine.logsumexp(logits)


def test_logsumexp_of_logits_that_are_not_contiguous(engine: NativeEngine) -> None:
    logits = torch.randn(9, 7).T
    assert_close(engine.logsumexp(logits), logits.logsumexp(dim=-1))


def larger_vocabulary(model: Transformer) -> None:
    model.head.weight = nn.Parameter(torch.randn(50, 32))


def smaller_feed_forward(model: Transformer) -> None:
    for layer in (model.blocks[0].feed_forward.gate_proj, model.blocks[0].feed_forward.up_proj):
        layer.weight = nn.Parameter(torch.randn(5, 32))
    model.blocks[0].feed_forward.down_proj.weight = nn.Parameter(torch.randn(32, 5))


@pytest.mark.parametrize("change", [larger_vocabulary, smaller_feed_forward], ids=lambda change: change.__name__)
def test_step_c_is_not_used_if_shapes_differ_from_the_config(
    library: ctypes.CDLL, change: Callable[[Transformer], None]
) -> None:
    model = make()
    change(model)
    assert "shapes of the model's parameters differ" in str(unsupported(model, library))
    ids = torch.randint(40, (2, 5))
    with torch.no_grad():
        assert_close(make_engine(model).logits(ids), model(ids), atol=1e-5, rtol=1e-5)


def test_a_model_on_two_devices_is_refused() -> None:
    model = make(positions="learned")
    model.position_embedding = model.position_embedding.to("meta")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the model is on cpu and meta; move all of it to one device"):
        make_engine(model)
