"""GGUF files against the library `transformers`, which reads them too, and against the specification."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from helpers.models import GPT2, make
from helpers.texts import DOCUMENTS, NASTY
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from lit_lm.checkpoint import Checkpoint, read_checkpoint, weights_content, write_checkpoint
from lit_lm.interop.export import export
from lit_lm.tokenizer.formats import LLAMA3, QWEN
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import TokenizerType

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {"vocab_size": 300, "context_length": 64}
BIASES = {"attention_bias": True, "mlp_bias": True}
GPT2_SIZES = {"n_positions": 64, "n_inner": 48}
EXPRESSIBLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"num_kv_heads": 2, "rope_theta": 5000.0, "norm_eps": 1e-4}, {}),
    "llama, tied, wide heads": ({"tie_embeddings": True, "head_dim": 12, "d_ff": 40}, {}),
    "llama, more ids than tokens": ({"vocab_size": 307}, {}),
    "llama with biases": ({"bias": True, "num_kv_heads": 1}, BIASES),
    "llama, biases in q, k, v": ({"qkv_bias": True, "num_kv_heads": 2}, {"attention_bias": True}),
    "llama, biases but in q, k, v": ({"qkv_bias": False, "bias": True}, BIASES),
    "qwen3": ({"qk_norm": True, "num_kv_heads": 2, "head_dim": 12}, {"head_dim": 12}),
    "qwen3, tied": ({"qk_norm": True, "tie_embeddings": True}, {"head_dim": 8}),
    "gpt2": ({**GPT2, "d_ff": 48}, GPT2_SIZES),
    "gpt2 without biases, untied": ({**GPT2, "bias": False, "tie_embeddings": False, "d_ff": 48}, GPT2_SIZES),
}
"""Options of ours, and those of transformers that it does not take from the file."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


def checkpoint_of(tokenizer: Tokenizer, path: Path, chat_template: str | None = None, **changes: Any) -> Checkpoint:
    model = make(**SIZES | changes)
    write_checkpoint(weights_content(model.config, model.state_dict(), tokenizer, chat_template), path)
    return read_checkpoint(path)


def with_transformers(path: Path, **options: Any) -> nn.Module:
    """The model as `AutoModelForCausalLM.from_pretrained` reads it, which needs another package."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, **options)
    model = AutoModelForCausalLM.from_config(config).eval()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors[model._tied_weights_keys["lm_head.weight"]]
    model.load_state_dict(tensors)
    assert isinstance(model, nn.Module)
    return model


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize(("changes", "options"), EXPRESSIBLE.values(), ids=EXPRESSIBLE.keys())
def test_an_exported_model_computes_the_same(
    changes: dict[str, Any], options: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    line = export(checkpoint, "gguf", tmp_path / "a.gguf", "float32")
    name = "qwen3" if "qk_norm" in changes else "gpt2" if "norm" in changes else "llama"
    assert line.startswith(f"{tmp_path / 'a.gguf'}: GGUF, architecture {name}, float32; largest difference of a logit ")
    assert line.endswith(", read with gguf; same token ids")
    ids = torch.randint(300, (2, 64))
    with torch.no_grad():
        theirs = with_transformers(tmp_path / "a.gguf", **options)(ids).logits
        torch.testing.assert_close(theirs, checkpoint.transformer()(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"d_ff": 40}, {**GPT2, "d_ff": 48}], ids=["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_only_matrices_are_rounded(dtype: str, changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    exact, rounded = tmp_path / "exact.gguf", tmp_path / "rounded.gguf"
    export(checkpoint, "gguf", exact, "float32")
    assert f"{dtype}; largest difference of a logit " in export(checkpoint, "gguf", rounded, dtype)
    options = GPT2_SIZES if "norm" in changes else {}
    before, after = (with_transformers(path, **options).state_dict() for path in (exact, rounded))
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(rounded).tensors}
    for name, weight in before.items():
        if "c_" in name and weight.ndim == 2:  # Conv1D
            weight, after[name] = weight.T, after[name].T
        if weight.ndim == 1 or "wpe" in name:
            assert torch.equal(after[name], weight)
        elif dtype != "q8_0":
            assert torch.equal(after[name], weight.to(getattr(torch, dtype)).float())
        elif weight.shape[1] % 32:
            assert torch.equal(after[name], weight.half().float())
        else:  # steps of 1/127 of the largest number of each 32, which float16 rounds again
            step = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            error = (after[name] - weight).unflatten(1, (-1, 32)).abs()
            assert bool((error <= step * (0.5 + 127 * 2.0**-11 + 1e-4)).all())
            assert error.any()
    matrix = GGMLQuantizationType[{"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]]
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_up.weight"] == matrix
    assert kinds["blk.1.ffn_down.weight"] == (GGMLQuantizationType.F16 if dtype == "q8_0" else matrix)
    assert kinds["blk.0.attn_norm.weight"] == kinds.get("position_embd.weight", 0) == GGMLQuantizationType.F32


def test_the_file_says_what_llama_cpp_needs_to_know(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shape = {
        "d_model": 64,
        "head_dim": 12,
        "num_kv_heads": 2,
        "rope_theta": 5000.0,
        "norm_eps": 1e-4,
        "vocab_size": 303,
    }
    checkpoint = checkpoint_of(tokenizer, tmp_path / "logs" / "run" / "version_0" / "checkpoints" / "a.ckpt", **shape)
    export(checkpoint, "gguf", tmp_path / "a.gguf", "q8_0")
    found = fields(tmp_path / "a.gguf")
    expected = {
        "general.architecture": "llama",
        "general.name": "run",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": 303,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 192,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 12,
        "llama.attention.value_length": 12,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-4),
        "llama.rope.dimension_count": 12,
        "llama.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": tokenizer.end_id,
        "tokenizer.ggml.eos_token_id": tokenizer.end_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
    assert {name: value for name, value in found.items() if name not in lists and "GGUF" not in name} == expected
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:300] == [tokenizer.token(number) for number in range(300)]
    assert len(set(tokens)) == len(tokens) == len(kinds) == 303
    of_kind = {kind: [number for number, each in enumerate(kinds) if each == kind] for kind in set(kinds)}
    assert of_kind.keys() == {TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED}
    assert of_kind[TokenType.CONTROL] == [tokenizer.end_id]
    assert of_kind[TokenType.UNUSED] == [300, 301, 302]


def test_transformers_reads_the_same_token_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export(checkpoint_of(tokenizer, tmp_path / "a.ckpt"), "gguf", tmp_path / "a.gguf", "float32")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf", split_special_tokens=True)
    assert [theirs(text)["input_ids"] for text in NASTY] == [tokenizer.encode(text) for text in NASTY]
    assert theirs.eos_token_id == tokenizer.end_id


def test_special_tokens_of_the_user_and_a_chat_template_are_in_the_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, 300, special_tokens=["<|user|>", "[A]"])
    template = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}[A]"
    export(checkpoint_of(tokenizer, tmp_path / "a.ckpt", template), "gguf", tmp_path / "a.gguf", "float32")
    found = fields(tmp_path / "a.gguf")
    assert found["tokenizer.chat_template"] == template
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|user|>"] == kinds["[A]"] == TokenType.USER_DEFINED
    assert kinds["<|endoftext|>"] == TokenType.CONTROL


def trained(pattern: str | None, *, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cut, letters])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(DOCUMENTS, trainer)
    return backend


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize(("pattern", "name"), [(None, "gpt-2"), (LLAMA3, "llama-bpe"), (QWEN, "qwen2")])
def test_pre_tokenizers_that_llama_cpp_has_are_named(
    pattern: str | None, name: str, ignore_merges: bool, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(trained(pattern, ignore_merges=ignore_merges))  # where merges lead to each token
    export(checkpoint_of(tokenizer, tmp_path / "a.ckpt"), "gguf", tmp_path / "a.gguf", "float32")
    assert fields(tmp_path / "a.gguf")["tokenizer.ggml.pre"] == name


def changed(what: str) -> Tokenizer:
    backend = trained(LLAMA3 if what == "another pattern" else None)
    if what == "a normalizer":
        backend.normalizer = normalizers.NFC()
    elif what == "another pattern":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif what == "a space before the text":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif what == "a token that strips":
        backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    elif what == "words that merges do not lead to":
        names = ["<|endoftext|>", *pre_tokenizers.ByteLevel.alphabet(), "ca", "cat", "dog"]
        vocab = {token: number for number, token in enumerate(names)}
        backend.model = models.BPE(vocab, [("c", "a"), ("ca", "t")], ignore_merges=True)
    elif what == "missing bytes":
        backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a normalizer", "a tokenizer with a normalizer; train with a bpe tokenizer, or export to another format"),
        ("another pattern", "with another pre-tokenizer than those of gpt-2, llama-bpe, qwen2"),
        ("a space before the text", "with another pre-tokenizer"),
        ("a token that strips", "with added tokens that need a context"),
        ("words that merges do not lead to", "with the pre-tokenizer of gpt-2 and ignore_merges True"),
        ("missing bytes", "without a token for each byte"),
    ],
)
def test_other_tokenizers_are_refused(what: str, message: str, tmp_path: Path) -> None:
    refused(checkpoint_of(changed(what), tmp_path / "a.ckpt", vocab_size=320), message)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("unigram", 320, "a tokenizer of type unigram; train with a bpe tokenizer, or export to another format"),
        ("char", 300, "a tokenizer of type char"),
        ("bpe", 257, "a tokenizer without merges"),
    ],
)
def test_other_types_of_tokenizers_are_refused(kind: TokenizerType, size: int, message: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, size, kind)
    refused(checkpoint_of(tokenizer, tmp_path / "a.ckpt", vocab_size=320), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**GPT2, "mlp": "gelu_erf"}, "GGUF cannot express mlp gelu_erf"),
        ({"qk_norm": True, "qkv_bias": True}, "GGUF cannot express qk_norm with qkv_bias"),
        ({"norm": "layernorm"}, "norm layernorm with mlp swiglu"),
    ],
    ids=["gelu_erf", "qkv_bias", "norm"],
)
def test_what_cannot_be_expressed_is_refused(
    changes: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    refused(checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes), message)


def refused(checkpoint: Checkpoint, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(checkpoint, "gguf", checkpoint.path.with_name("a.gguf"), "float32")
    assert {path.name for path in checkpoint.path.parent.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}


@pytest.mark.parametrize(
    ("method", "damage", "message"),
    [
        ("write_tensor_data", lambda tensor: tensor[::-1].copy(), "the exported model computes something else"),
        ("add_token_merges", lambda merges: merges[1:], "the exported tokenizer gives other ids"),
    ],
)
def test_a_file_that_differs_from_the_model_is_not_kept(
    method: str,
    damage: Callable[[Any], Any],
    message: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = getattr(GGUFWriter, method)
    monkeypatch.setattr(GGUFWriter, method, lambda self, value: right(self, damage(value)))
    refused(checkpoint_of(tokenizer, tmp_path / "a.ckpt"), message)
