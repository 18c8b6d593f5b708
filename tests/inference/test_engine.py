"""The decoder against the Transformer's forward pass, with step.c and without it; int8; compiling."""

import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import make
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_lm.inference.engine import Cache, Decoder
from lit_lm.inference.native import engine as native
from lit_lm.inference.weights import quantize
from lit_lm.model.transformer import Transformer

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen": {"num_kv_heads": 2, "qkv_bias": True, "tie_embeddings": True, "vocab_size": 43, "d_ff": 35},
    "qwen3": {"num_kv_heads": 2, "qk_norm": True},
    "gpt2": {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "bias": True, "tie_embeddings": True},
}
ROWS = (1, 3, 17)  # few at a time, and more than go through a matrix together
WEIGHTS = ("float32", "bfloat16", "int8")


@pytest.fixture(params=["step.c", "step.c for any processor", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    library = None if request.param == "torch" else _compiled(request.param)
    monkeypatch.setattr(native, "load", lambda: library)


@functools.cache
def _compiled(way: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if "any" in way:
            patch.setattr(native, "FLAGS", ([],))
        native.load.cache_clear()
        library = native.load()
        native.load.cache_clear()
    return library or pytest.skip("no C compiler")


def rounded(model: Transformer, weights: str) -> Transformer:
    """The model with its matrices as the decoder keeps them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "position" not in name and weights == "bfloat16":
                parameter.copy_(parameter.bfloat16())
            elif parameter.ndim == 2 and "position" not in name and weights == "int8":
                values, scale = quantize(parameter)
                parameter.copy_(values * scale.unsqueeze(1))
    return model


def decode(decoder: Decoder, ids: torch.Tensor, prompt_sizes: list[int], cache: Cache) -> list[torch.Tensor]:
    """Logits (T - P, V) of each row: its first P ids as the prompt, then one at a time."""
    logits = [[decoder.prefill(ids[row, :size].tolist(), cache, row)] for row, size in enumerate(prompt_sizes)]
    for t in range(ids.shape[1] - max(prompt_sizes)):
        step = decoder.step([int(ids[row, size + t]) for row, size in enumerate(prompt_sizes)], cache)
        for row, each in enumerate(step):
            logits[row].append(each.clone())
    return [torch.stack(each) for each in logits]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_for_rows_of_different_lengths(family: str, weights: Any) -> None:
    model = make(**FAMILIES[family])
    decoder = Decoder(model, weights)
    context = model.config.context_length
    tolerance = 1e-5 if weights == "float32" or native.load() is None else 0.05  # inputs may be rounded to bfloat16
    for rows in ROWS:
        sizes = [1 + row % 5 for row in range(rows)]
        ids = torch.randint(model.config.vocab_size, (rows, context))
        with torch.no_grad():
            expected = rounded(model, weights)(ids)
        for row, logits in enumerate(decode(decoder, ids, sizes, decoder.new_cache(rows))):
            full = expected[row, sizes[row] - 1 :][: len(logits)]
            assert_close(logits, full, atol=tolerance * float(full.abs().max()), rtol=0)
        assert_close(decoder.logits(ids), expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("gate", [-80.0, -100.0, -1000.0, 1000.0])
def test_a_gate_may_be_as_shut_or_open_as_it_likes(gate: float) -> None:
    model = make(bias=True)
    with torch.no_grad():
        for block in model.blocks:
            block.feed_forward.gate_proj.bias.fill_(gate)
        expected = model(torch.tensor([[3, 4]]))[0]
    decoder = Decoder(model, "float32")
    (logits,) = decode(decoder, torch.tensor([[3, 4]]), [1], decoder.new_cache(1))
    assert_close(logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(("ids", "error"), [([3, 3], ValueError), ([10**6], IndexError), ([-1], IndexError)])
def test_wrong_arguments_reach_no_foreign_memory(ids: list[int], error: type[Exception]) -> None:
    if native.load() is None:
        pytest.skip("no C compiler")
    decoder = Decoder(make(), "float32")
    cache = decoder.new_cache(1)
    decoder.prefill([3], cache, 0)
    with pytest.raises(error):
        decoder.step(ids, cache)


@pytest.mark.usefixtures("way")
def test_a_cache_keeps_the_rows_that_it_is_told_to() -> None:
    model = make()
    decoder = Decoder(model)
    cache = decoder.new_cache(3)
    for row, prompt in enumerate([[1], [2, 3], [4, 5, 6]]):
        decoder.prefill(prompt, cache, row)
    for kept, prompts in (([2, 0], [[4, 5, 6], [1]]), ([1, 0, 1], [[1, 7], [4, 5, 6, 7], [1, 7]])):
        cache.keep(kept)
        assert cache.lengths == [len(prompt) for prompt in prompts]
        with torch.no_grad():
            expected = [model(torch.tensor([[*prompt, 7]]))[0, -1] for prompt in prompts]
        assert_close(decoder.step([7] * len(prompts), cache), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("way")
def test_a_prompt_takes_the_place_of_what_its_row_had_seen() -> None:
    decoder = Decoder(make())
    cache = decoder.new_cache(1)
    decoder.prefill([9, 8, 7, 6], cache, 0)
    decoder.prefill([1, 2], cache, 0)
    fresh = decoder.new_cache(1)
    decoder.prefill([1, 2], fresh, 0)
    assert_close(decoder.step([3], cache), decoder.step([3], fresh), atol=0, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_row_does_not_feel_its_neighbours_nor_how_its_tokens_came(weights: Any) -> None:
    if native.load() is None:
        pytest.skip("no C compiler")
    decoder = Decoder(make(vocab_size=43, num_kv_heads=2), weights)
    ids = torch.randint(43, (35, decoder.config.context_length))
    expected = decoder.logits(ids)
    for rows in (1, 2, 3, 5, 16, 35):
        cache = decoder.new_cache(rows)
        for row, logits in enumerate(decode(decoder, ids[:rows], [4] * rows, cache)):
            assert torch.equal(logits, expected[row, 3:])


def test_autocast_decides_what_weights_are_kept_as_and_not_how_the_decoder_computes() -> None:
    model, ids = make(), torch.tensor([[1, 2, 3]])
    assert Decoder(model).kept_as == torch.float32
    assert Decoder(make().half()).kept_as == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Decoder(model).kept_as == torch.bfloat16
        inside = Decoder(model, "float32").logits(ids)
    assert_close(inside, Decoder(model, "float32").logits(ids), atol=0, rtol=0)


def test_quantize_is_within_half_a_step_of_the_largest_weight_of_an_output() -> None:
    weight = torch.randn(20, 30) * torch.logspace(-6, 6, 20).unsqueeze(1)
    weight[3] = 0
    values, scale = quantize(weight)
    assert values.dtype == torch.int8
    error = (values * scale.unsqueeze(1) - weight).abs()
    assert (error <= weight.abs().amax(dim=1, keepdim=True) / 254 * 1.0001).all()


def test_int8_takes_half_the_memory_of_bfloat16() -> None:
    model = make(d_model=256, vocab_size=1000, d_ff=512)
    full, half, quarter = (Decoder(model, weights).num_bytes for weights in WEIGHTS)
    assert full == sum(parameter.nbytes for parameter in model.parameters())
    assert half < 0.51 * full
    assert quarter < 0.52 * half


@pytest.mark.parametrize("family", ["qwen", "gpt2"])
def test_int8_changes_perplexity_by_less_than_a_percent(family: str) -> None:
    model = make(**FAMILIES[family])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.randint(12, (64, 2)).repeat(1, 9)[:, : model.config.context_length]  # each row its own two ids
    for _ in range(60):
        loss = cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before, after = (
        cross_entropy(Decoder(model, weights).logits(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).exp()
        for weights in ("float32", "int8")
    )
    assert before < 4
    assert abs(after / before - 1) < 0.01


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        native.load.cache_clear()
        assert native.load() is None
    native.load.cache_clear()


def test_an_installation_that_cannot_be_written_to_compiles_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.load() is None:
        pytest.skip("no C compiler")
    source = tmp_path / "step.c"
    for name in ("step.c", "project.h"):
        (tmp_path / name).write_bytes(native.SOURCE.with_name(name).read_bytes())
    (tmp_path / "__pycache__").touch()  # no folder
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(native, "FLAGS", ([],))
    native.load.cache_clear()
    assert native.load() is not None
    native.load.cache_clear()


def test_libraries_of_a_former_source_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load() is None:
        pytest.skip("no C compiler")
    kept = tmp_path / "__pycache__"
    kept.mkdir()
    for age, name in ((1, "step-former.so"), (-1000, "step-of_another_machine.so")):
        (kept / name).touch()
        os.utime(kept / name, (time.time() - 1000 * age,) * 2)
    for name in ("step.c", "project.h"):
        (tmp_path / name).write_bytes(native.SOURCE.with_name(name).read_bytes())
    monkeypatch.setattr(native, "SOURCE", tmp_path / "step.c")
    monkeypatch.setattr(native, "FLAGS", ([],))
    native.load.cache_clear()
    assert native.load() is not None
    native.load.cache_clear()
    assert not (kept / "step-former.so").exists()
    assert (kept / "step-of_another_machine.so").exists()
    assert len(list(kept.iterdir())) == 2
