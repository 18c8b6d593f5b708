"""Beam search against transformers' with the same weights."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.models import from_llama, spread
from transformers import LlamaConfig, LlamaForCausalLM

from lit_lm.inference.engine import TorchEngine
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer

V, END, STOP = 20, 7, 3


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(
        **shape, num_attention_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5,
        bos_token_id=None, eos_token_id=None, pad_token_id=END,
    )  # fmt: skip
    model = spread(LlamaForCausalLM(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def ours(theirs: LlamaForCausalLM) -> Transformer:
    config = TransformerConfig(vocab_size=V, context_length=32, d_model=16, num_layers=2, num_heads=2, d_ff=24)
    model = Transformer(config).eval()
    model.load_state_dict(from_llama(theirs))
    return model


@pytest.mark.parametrize("prompt", [[1, 2], [5], [11, 4, 4, 9]])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("beams", "samples"), [(2, 1), (5, 5)])
def test_beams_match_transformers(
    ours: Transformer, theirs: LlamaForCausalLM, prompt: list[int], penalty: float, length_penalty: float,
    beams: int, samples: int,
) -> None:  # fmt: skip
    options = {"max_new_tokens": 12, "num_beams": beams, "length_penalty": length_penalty}
    options |= {"repetition_penalty": penalty, "no_repeat_ngram_size": 3}
    expected = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, eos_token_id=[END, STOP], num_return_sequences=samples, **options,
    )  # fmt: skip
    sampling = SamplingConfig(temperature=0, num_samples=samples, stop_tokens=(STOP,), **options)
    (found,) = generate(ours, [prompt], sampling, seeds=[0], end_id=END)
    for row, beam in zip(expected[:, len(prompt) :].tolist(), found, strict=True):
        ids = beam.ids + {"end": [END], "stop": [STOP]}.get(beam.ended, [])
        assert ids + [END] * (len(row) - len(ids)) == row


def test_log_probabilities_of_beams_are_the_models_own(ours: Transformer) -> None:
    sampling = SamplingConfig(temperature=0, num_beams=3, num_samples=3, max_new_tokens=6, repetition_penalty=1.5)
    (found,) = generate(ours, [[1, 2]], sampling, seeds=[0], end_id=END)
    for beam in found:
        with torch.no_grad():
            logits = ours(torch.tensor([[1, 2, *beam.ids]]))[0].log_softmax(dim=-1)
        expected = [float(logits[1 + i, token]) for i, token in enumerate(beam.ids)]
        assert beam.log_probabilities == pytest.approx(expected, abs=1e-5)


def test_beams_do_not_depend_on_the_default_dtype(ours: Transformer) -> None:
    engine = TorchEngine(ours, torch.float32)
    sampling = SamplingConfig(temperature=0, num_beams=5, num_samples=5, max_new_tokens=12)
    prompts = [[1, 2], [5], [11, 4, 4, 9]]
    expected = generate(engine, prompts, sampling, seeds=[0] * 3, end_id=END)
    try:
        torch.set_default_dtype(torch.bfloat16)  # as Lightning does with precision bf16-true
        found = generate(engine, prompts, sampling, seeds=[0] * 3, end_id=END)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_what_cannot_be_searched_is_refused(ours: Transformer) -> None:
    beams = SamplingConfig(num_beams=2, temperature=0, max_new_tokens=3)
    for wrong, prompt in ((replace(beams, stop_tokens=(V,)), [1]), (beams, [1, V])):
        with pytest.raises(ValueError, match=f"has {V}; token ids range from 0 to {V - 1}"):
            generate(ours, [prompt], wrong, seeds=[0], end_id=END)
    with pytest.raises(ValueError, match="length_penalty is 400; it must be between -10 and 10"):
        replace(beams, length_penalty=400)
    diverged = copy.deepcopy(ours)
    diverged.head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="cannot sample the next token: all logits are NaN"):
        generate(diverged, [[1]], beams, seeds=[0], end_id=END)
