"""LanguageModel against a Llama of the library `transformers`, and against the command line."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Command
from helpers.models import from_llama, spread
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from lit_lm.inference.language_model import LanguageModel, load
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

TEXT = "The cat saw a dog. 宝玉笑道。"


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    model = spread(LlamaForCausalLM(config))
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.fixture(scope="module")
def model(theirs: LlamaForCausalLM) -> LanguageModel:
    shape = TransformerConfig(
        vocab_size=300, context_length=40, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64
    )
    transformer = Transformer(shape)
    transformer.load_state_dict(from_llama(theirs))
    return LanguageModel(transformer, Tokenizer.train([TEXT], 300))


@torch.no_grad()
def test_logits_and_attention_are_those_of_transformers(model: LanguageModel, theirs: LlamaForCausalLM) -> None:
    expected = theirs(torch.tensor([model.tokenizer.encode(TEXT)]), output_attentions=True)
    torch.testing.assert_close(model.logits(TEXT), expected.logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.attention(TEXT), torch.cat(expected.attentions), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("repeats", [1, 2, 9], ids=["one window", "two windows", "many windows"])
def test_a_text_is_scored_in_windows_of_the_context(
    model: LanguageModel, theirs: LlamaForCausalLM, repeats: int
) -> None:
    text = TEXT * repeats
    ids = torch.tensor([model.tokenizer.end_id, *model.tokenizer.encode(text)])
    losses = [
        cross_entropy(theirs(ids[None, start : start + 40][:, : len(ids) - 1 - start]).logits[0],
                      ids[start + 1 : start + 41], reduction="none")
        for start in range(0, len(ids) - 1, 40)
    ]  # fmt: skip
    expected = torch.cat(losses)
    torch.testing.assert_close(model.log_probabilities(text), -expected, atol=1e-5, rtol=0)
    assert model.perplexity(text) == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert model.bits_per_byte(text) == pytest.approx(
        float(expected.sum()) / math.log(2) / len(text.encode()), rel=1e-5
    )


def test_the_pieces_of_a_stream_add_up_to_the_generated_text(model: LanguageModel) -> None:
    text = model.generate("The cat", seed=3, max_new_tokens=20)
    pieces = list(model.stream("The cat", seed=3, max_new_tokens=20, num_alternatives=2))
    assert str(text) == "The cat" + "".join(piece.text for piece in pieces)
    assert text.continuation == model.samples("The cat", 4, seed=3, max_new_tokens=20)[0].continuation
    assert all(len(token.alternatives) == 2 for piece in pieces for token in piece.tokens)


def test_a_checkpoint_generates_the_text_of_the_command(run_folder: Path, lit_lm: Command) -> None:
    out = lit_lm("generate", "The cat", "--ckpt_path", run_folder, "--seed", 5, "--device", "cpu")
    loaded = load(run_folder, device="cpu")
    assert str(loaded.generate("The cat", seed=5)) + "\n" == out
    assert loaded.path == run_folder / "checkpoints" / "best.ckpt"
    assert load(run_folder / "checkpoints" / "last.ckpt").config == loaded.config


@pytest.mark.parametrize("score", ["logits", "log_probabilities", "perplexity", "bits_per_byte", "attention"])
def test_an_empty_text_has_no_score(model: LanguageModel, score: str) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        getattr(model, score)("")


def test_a_text_longer_than_the_context_is_refused(model: LanguageModel) -> None:
    for look in (model.logits, model.attention):
        with pytest.raises(ValueError, match=r"the text has \d+ tokens, but the context only 40"):
            look(TEXT * 9)


def test_an_unknown_device_or_option_is_refused(model: LanguageModel, run_folder: Path) -> None:
    with pytest.raises(ValueError, match="device is tpu; it must be auto or available on this machine: "):
        load(run_folder, device="tpu")
    with pytest.raises(TypeError, match="temprature"):
        model.generate("The cat", temprature=1.0)
