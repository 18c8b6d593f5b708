"""The Transformer against transformers' Llama, Qwen and GPT-2 with the same weights; cache, causality, weights."""

import math
from typing import Any

import pytest
import torch
from helpers.models import GPT2, SMALL, VARIANTS, from_gpt2, from_llama, make, spread
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Block, KVCache, Transformer, init_weights


def assert_same_logits(config: TransformerConfig, weights: dict[str, Tensor], theirs: nn.Module) -> None:
    ours = Transformer(config).eval()
    ours.load_state_dict(weights)
    ids = torch.randint(config.vocab_size, (3, config.context_length))
    with torch.no_grad():
        assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kv_heads", "theta", "bias", "tied"),
    [
        (4, 10_000.0, False, False),
        (2, 10_000.0, False, False),
        (1, 500_000.0, False, True),
        (2, 100.0, True, False),
    ],
)
def test_logits_match_llama(kv_heads: int, theta: float, bias: bool, tied: bool) -> None:
    theirs = spread(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=kv_heads,
                rope_parameters={"rope_type": "default", "rope_theta": theta},
                rms_norm_eps=1e-4,
                attention_bias=bias,
                mlp_bias=bias,
                tie_word_embeddings=tied,
            )
        )
    )
    config = TransformerConfig(
        **SMALL, num_kv_heads=kv_heads, d_ff=48, rope_theta=theta, norm_eps=1e-4, bias=bias, tie_embeddings=tied
    )
    assert_same_logits(config, from_llama(theirs), theirs)


def test_logits_with_qkv_bias_match_qwen2() -> None:
    theirs = spread(
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=40,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                rms_norm_eps=1e-5,
            )
        )
    )
    assert_same_logits(TransformerConfig(**SMALL, num_kv_heads=2, d_ff=48, qkv_bias=True), from_llama(theirs), theirs)


def test_logits_with_qk_norm_match_qwen3() -> None:
    theirs = spread(
        Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=40,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=12,
                rms_norm_eps=1e-5,
            )
        )
    )
    config = TransformerConfig(**SMALL, num_kv_heads=2, head_dim=12, d_ff=48, qk_norm=True)
    assert_same_logits(config, from_llama(theirs), theirs)


def test_logits_match_gpt2() -> None:
    theirs = spread(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)))
    assert_same_logits(TransformerConfig(**SMALL, **GPT2), from_gpt2(theirs), theirs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [[1] * 9, [5, 3, 1], [9], [1, 2, 6]], ids=str)
@torch.no_grad()
def test_decoding_with_a_cache_gives_the_logits_of_a_full_forward_pass(variant: str, sizes: list[int]) -> None:
    model = make(**VARIANTS[variant])
    ids = torch.randint(40, (3, 9))
    cache = KVCache(model.config, batch_size=3, device=ids.device, dtype=torch.float32)
    parts = [model(part, cache) for part in ids.split(sizes, dim=1)]
    assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.lengths == [9] * 3


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_rows_of_a_cache_may_differ_in_length(variant: str) -> None:
    model = make(**VARIANTS[variant])
    ids = torch.randint(40, (3, 16))
    cache = KVCache(model.config, batch_size=3, device=ids.device, dtype=torch.float32)
    starts = [2, 7, 4]
    for row, start in enumerate(starts):
        single = cache.row(row)
        assert_close(model(ids[row : row + 1, :start], single), model(ids)[row : row + 1, :start], atol=1e-5, rtol=1e-5)
        cache.lengths[row] = start
    for num_tokens in (1, 3, 5):
        part = torch.stack([ids[row, start : start + num_tokens] for row, start in enumerate(starts)])
        logits = model(part, cache)
        expected = torch.stack([model(ids)[row, start : start + num_tokens] for row, start in enumerate(starts)])
        assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        starts = [start + num_tokens for start in starts]
    assert cache.lengths == starts


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_later_token_does_not_change_earlier_logits(variant: str) -> None:
    model = make(**VARIANTS[variant])
    ids = torch.randint(40, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 40
    before, after = model(ids), model(changed)
    assert_close(after[:, :6], before[:, :6], atol=1e-6, rtol=0)
    assert ((after - before)[0, 6:].abs().amax(dim=-1) > 1e-4).all()


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = make()
    ids = torch.randint(40, (3, 10))
    assert_close(model(ids)[1:2], model(ids[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@given(rows=st.lists(st.lists(st.booleans(), min_size=16, max_size=16), min_size=1, max_size=3))
def test_each_document_is_processed_as_if_it_were_alone(variant: str, rows: list[list[bool]]) -> None:
    model = make(**VARIANTS[variant])
    ids = torch.randint(40, (len(rows), 16))
    documents = torch.tensor(rows).cumsum(dim=1)  # True: a document begins
    window_of = torch.arange(len(rows))[:, None] * 100
    pieces = [ids[documents + window_of == n][None] for n in (documents + window_of).unique()]

    together = model(ids, documents=documents).flatten(0, 1)
    alone = torch.cat([model(piece)[0] for piece in pieces])
    assert_close(together, alone, atol=1e-5, rtol=1e-5)

    targets = torch.randint(40, (ids.numel(),))
    gradients = [
        torch.autograd.grad(cross_entropy(logits, targets, reduction="sum"), list(model.parameters()))
        for logits in (together, alone)
    ]
    for gradient, expected in zip(*gradients, strict=True):
        assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_window_that_is_one_document_needs_no_mask(variant: str) -> None:
    model = make(**VARIANTS[variant])
    ids = torch.randint(40, (3, 16))
    assert_close(model(ids, documents=torch.full_like(ids, 5)), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_weights_are_as_documented(variant: str) -> None:
    shape = {"vocab_size": 300, "context_length": 64, "d_model": 128, "num_layers": 8, "num_heads": 4}
    config = TransformerConfig(**shape | VARIANTS[variant])
    for name, parameter in Transformer(config).named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02  # 4 = sqrt(2 * 8 layers)
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


def test_the_variance_of_the_residual_stream_does_not_grow_with_depth() -> None:
    def spread_after(num_layers: int) -> float:
        model = Transformer(TransformerConfig(**{**SMALL, "d_model": 64, "num_layers": num_layers}))
        streams: list[Tensor] = []
        model.norm.register_forward_hook(lambda module, inputs, output: streams.append(inputs[0]))
        model(torch.randint(40, (4, 16)))
        return streams[0].std().item()

    assert spread_after(32) == pytest.approx(spread_after(2), rel=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_zero_init_a_new_block_is_the_identity(variant: str) -> None:
    model = Transformer(TransformerConfig(**SMALL | VARIANTS[variant], zero_init=True))
    x = torch.randn(2, 16, 32)
    rope = (model.rope_cos, model.rope_sin) if model.position_embedding is None else None
    for block in model.blocks:
        assert torch.equal(block(x, rope, None, None), x)


@pytest.mark.parametrize("tied", [False, True])
def test_tie_embeddings_lets_the_head_share_the_embedding(tied: bool) -> None:
    model = Transformer(TransformerConfig(**SMALL, tie_embeddings=tied))
    model.load_state_dict(make(tie_embeddings=tied).state_dict())
    assert (model.head.weight is model.embedding.weight) == tied
    names = [name for name, _ in model.named_parameters()]
    assert "embedding.weight" in names
    assert ("head.weight" in names) == (not tied)


@pytest.mark.parametrize(
    ("changes", "biased"),
    [
        ({}, set()),
        ({"norm": "layernorm"}, set()),
        ({"qkv_bias": True}, {"q_proj", "k_proj", "v_proj"}),
        ({"bias": True}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"bias": True, "qkv_bias": False}, {"o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"bias": True, "norm": "layernorm", "qkv_bias": False, "mlp": "gelu"},
         {"o_proj", "up_proj", "down_proj", "attention_norm", "feed_forward_norm", "norm"}),
    ],
)  # fmt: skip
def test_biases_are_where_the_config_puts_them(changes: dict[str, Any], biased: set[str]) -> None:
    names = (name.split(".") for name, _ in Transformer(TransformerConfig(**SMALL, **changes)).named_parameters())
    assert {name[-2] for name in names if name[-1] == "bias"} == biased


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 1408),  # 512 * 8 / 3 = 1365.3
        ({"d_model": 384}, 1024),  # already a multiple of 64
        ({"mlp": "gelu"}, 2048),
        ({"d_ff": 100}, 100),
        ({"d_ff": 100, "mlp": "gelu"}, 100),
    ],
)
def test_feed_forward_size_follows_from_d_model_unless_given(changes: dict[str, Any], size: int) -> None:
    assert TransformerConfig(**changes).feed_forward_size == size


SIZES = ["vocab_size", "context_length", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff"]
MOST = dict.fromkeys(SIZES, "1,073,741,824") | {"num_layers": "10,000"}


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        *[({name: 0}, [f"{name} is 0; it must be between 1 and {MOST[name]}"]) for name in SIZES],
        ({"dropout": 1.0}, ["dropout is 1.0; it must be at least 0 and less than 1"]),
        ({"dropout": -0.1}, ["dropout is -0.1; it must be at least 0 and less than 1"]),
        ({"d_model": 30, "num_heads": 4}, ["d_model 30 is not divisible by num_heads 4; or set head_dim"]),
        ({"num_heads": 16, "num_kv_heads": 3}, ["num_heads 16 is not divisible by num_kv_heads 3"]),
        ({"num_heads": 4, "num_kv_heads": 8}, ["num_heads 4 is not divisible by num_kv_heads 8"]),
        (
            {"d_model": 12, "num_heads": 4},
            ["d_model 12 / num_heads 4 is a head size of 3; positions rope needs an even head size"],
        ),
        ({"head_dim": 3}, ["head_dim is a head size of 3; positions rope needs an even head size"]),
    ],
)
def test_config_reports_invalid_values(values: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        TransformerConfig(**values)
    assert str(error.value).splitlines() == problems


def test_config_reports_all_invalid_values_at_once() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        TransformerConfig(**dict.fromkeys(SIZES, -1), dropout=2.0)
    expected = {f"{name} is -1; it must be between 1 and {MOST[name]}" for name in SIZES}
    assert set(str(error.value).splitlines()) == {*expected, "dropout is 2.0; it must be at least 0 and less than 1"}

    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        TransformerConfig(d_model=30, num_heads=4, num_kv_heads=3, dropout=2.0)
    assert set(str(error.value).splitlines()) == {
        "d_model 30 is not divisible by num_heads 4; or set head_dim",
        "num_heads 4 is not divisible by num_kv_heads 3",
        "dropout is 2.0; it must be at least 0 and less than 1",
    }


def test_an_odd_head_size_is_allowed_with_learned_positions() -> None:
    config = TransformerConfig(vocab_size=40, context_length=8, d_model=12, num_heads=4, positions="learned")
    assert Transformer(config)(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 40)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_more_tokens_than_the_context_length_are_rejected(variant: str) -> None:
    model = make(**VARIANTS[variant])
    with pytest.raises(ValueError, match=r"^17 tokens do not fit into the context length of 16$"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = KVCache(model.config, batch_size=1, device=torch.device("cpu"), dtype=torch.float32)
    model(torch.zeros(1, 16, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=r"^17 tokens do not fit"):
        model(torch.zeros(1, 1, dtype=torch.long), cache)


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    ids = torch.randint(40, (2, 16))
    model = make(dropout=0.5)
    without = make()
    without.load_state_dict(model.state_dict())
    assert_close(model(ids), without(ids), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(ids), model(ids), atol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    model = make(**VARIANTS[variant])
    model(torch.arange(16)[None]).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_gradients_and_save_fewer_tensors(dropout: float) -> None:
    config = TransformerConfig(vocab_size=20, context_length=8, d_model=16, num_layers=3, num_heads=2, dropout=dropout)
    model = Transformer(config)
    ids = torch.randint(20, (2, 8))
    gradients: list[list[Tensor]] = []
    kept = []
    for recompute in (False, True):
        model.recompute_blocks = recompute
        torch.manual_seed(1)
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(ids).square().mean()
        kept.append(sum(sizes))
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert kept[1] < kept[0] / 4


def test_a_layer_used_alone_is_initialized_like_those_of_a_model() -> None:
    config = TransformerConfig(vocab_size=50, context_length=8, d_model=64, num_layers=1, num_heads=4, bias=True)
    torch.manual_seed(0)
    block = Transformer(config).blocks[0]
    torch.manual_seed(0)
    torch.empty(50, 64).normal_()  # the embedding, which comes before the block
    alone = init_weights(Block(config))
    assert_close(dict(alone.named_parameters()), dict(block.named_parameters()), atol=0, rtol=0)
    y = alone(torch.randn(2, 8, 64))
    assert y.shape == (2, 8, 64)
    assert y.isfinite().all()
