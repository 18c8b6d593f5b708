"""Hugging Face folders against the library `transformers`, in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import GPT2, make
from helpers.texts import DOCUMENTS, NASTY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lit_lm.checkpoint import Checkpoint, read_checkpoint, weights_content, write_checkpoint
from lit_lm.inference.chat import chat_ids
from lit_lm.inference.language_model import LanguageModel
from lit_lm.interop import hf, proof
from lit_lm.interop.architectures import CLASSES, architecture_of, from_config
from lit_lm.interop.export import export
from lit_lm.interop.importing import import_model
from lit_lm.model.config import TransformerConfig
from lit_lm.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZES = {"vocab_size": 300, "context_length": 64}
EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "rope_theta": 5000.0, "norm_eps": 1e-4},
    "llama, tied, with biases": {"bias": True, "tie_embeddings": True, "d_ff": 40},
    "llama, biases in q, k, v": {"qkv_bias": True, "num_kv_heads": 1},
    "llama, biases but in q, k, v": {"qkv_bias": False, "bias": True},
    "qwen3": {"qk_norm": True, "num_kv_heads": 2, "head_dim": 12},
    "qwen3, biases in q, k, v": {"qk_norm": True, "qkv_bias": True},
    "gpt2": {**GPT2},
    "gpt2 with erf": {**GPT2, "mlp": "gelu_erf"},
    "gpt2 without biases, untied": {**GPT2, "bias": False, "tie_embeddings": False, "d_ff": 48},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


def checkpoint_of(tokenizer: Tokenizer, path: Path, **changes: Any) -> Checkpoint:
    model = make(**SIZES, **changes)
    write_checkpoint(weights_content(model.config, model.state_dict(), tokenizer), path)
    return read_checkpoint(path)


@pytest.mark.parametrize("changes", EXPRESSIBLE.values(), ids=EXPRESSIBLE.keys())
def test_an_exported_model_computes_and_tokenizes_the_same(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    line = export(checkpoint, "hf", tmp_path / "out", "float32")
    architecture = architecture_of(checkpoint.transformer().config)
    assert line.startswith(f"{tmp_path / 'out'}: {CLASSES[architecture]}, float32; largest difference of a logit ")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.randint(300, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, checkpoint.transformer()(ids), atol=1e-5, rtol=0)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [loaded(text, add_special_tokens=False)["input_ids"] for text in NASTY] == [
        tokenizer.encode(text) for text in NASTY
    ]


@pytest.fixture(scope="module")
def exported_tokenizer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("exported")
    export(checkpoint_of(tokenizer, folder / "a.ckpt"), "hf", folder / "out", "float32")
    return AutoTokenizer.from_pretrained(folder / "out")


@given(st.text())
def test_the_ids_of_any_text_are_the_same(tokenizer: Tokenizer, exported_tokenizer: Any, text: str) -> None:
    assert exported_tokenizer(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("changes", EXPRESSIBLE.values(), ids=EXPRESSIBLE.keys())
def test_an_exported_model_is_imported_bit_by_bit(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    export(checkpoint, "hf", tmp_path / "out", "float32")
    import_model(tmp_path / "out", tmp_path / "b.ckpt")
    again = read_checkpoint(tmp_path / "b.ckpt")
    zeros = {name: weight for name, weight in again.weights.items() if name not in checkpoint.weights}
    assert all(not weight.any() for weight in zeros.values())
    assert all(torch.equal(again.weights[name], weight) for name, weight in checkpoint.weights.items())
    assert again.require_tokenizer().fingerprint == tokenizer.fingerprint


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FOREIGN = {
    "llama": LlamaConfig(**SMALL, rms_norm_eps=1e-5),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, sliding_window=None, head_dim=8),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "gpt2 with erf": GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, activation_function="gelu"
    ),
}


def foreign_folder(config: PretrainedConfig, tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return model


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("config", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_model_computes_the_same(
    config: PretrainedConfig, sharded: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    options = {"max_shard_size": "20kB"} if sharded else {}
    theirs = foreign_folder(config, tokenizer, tmp_path / "theirs", **options)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == sharded
    line = import_model(tmp_path / "theirs", tmp_path / "a.ckpt")
    assert line.startswith(f"{tmp_path / 'a.ckpt'}: {theirs.num_parameters():,} parameters, context 64, 300 tokens")
    ids = torch.randint(300, (2, 64))
    with torch.no_grad():
        ours = read_checkpoint(tmp_path / "a.ckpt").transformer()(ids)
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-5, rtol=0)


def test_bfloat16_weights_are_imported_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt")
    export(checkpoint, "hf", tmp_path / "out", "bfloat16")
    import_model(tmp_path / "out", tmp_path / "b.ckpt")
    again = read_checkpoint(tmp_path / "b.ckpt").weights
    assert all(torch.equal(again[name], weight.bfloat16().float()) for name, weight in checkpoint.weights.items())


def test_transformers_continues_a_prompt_with_the_same_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt")
    export(checkpoint, "hf", tmp_path / "out", "float32")
    ours = LanguageModel(checkpoint.transformer(), tokenizer).generate(
        "The little cat", temperature=0.0, max_new_tokens=40
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = loaded("The little cat", return_tensors="pt", add_special_tokens=False).input_ids
    continued = theirs.generate(ids, do_sample=False, max_new_tokens=40)
    assert loaded.decode(continued[0], skip_special_tokens=True) == str(ours)


TEMPLATE = (
    "{% for message in messages %}\n<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Who saw the cat?"}, {"role": "assistant", "content": "The dog."}]


@pytest.mark.parametrize("form", ["a value", "named ones", "a file"])
def test_a_chat_template_is_imported_and_exported(form: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(DOCUMENTS, 300, special_tokens=["<|user|>", "<|assistant|>"])
    foreign_folder(LlamaConfig(**SMALL), tokenizer, tmp_path / "theirs")
    if form == "a file":
        (tmp_path / "theirs" / "chat_template.jinja").write_text(TEMPLATE)
    else:
        given = TEMPLATE if form == "a value" else [{"name": "default", "template": TEMPLATE}]
        (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    import_model(tmp_path / "theirs", tmp_path / "a.ckpt")
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint.chat_template == TEMPLATE
    export(checkpoint, "hf", tmp_path / "out", "float32")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = loaded.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert theirs == chat_ids(checkpoint.require_tokenizer(), TEMPLATE, MESSAGES)


def test_large_models_are_written_in_shards(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 20_000)
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt")
    export(checkpoint, "hf", tmp_path / "out", "float32")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(len(load_file(shard)) == 1 or shard.stat().st_size < 25_000 for shard in shards)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == sum(
        weight.numel() for weight in checkpoint.weights.values()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layernorm"}, "norm layernorm with mlp swiglu and positions rope"),
        ({"qk_norm": True, "bias": True}, "Qwen3ForCausalLM cannot express qk_norm with bias"),
        ({**GPT2, "num_kv_heads": 2}, "GPT2LMHeadModel cannot express num_kv_heads"),
        ({**GPT2, "head_dim": 10}, "GPT2LMHeadModel cannot express head_dim"),
    ],
    ids=["norm", "qk_norm", "num_kv_heads", "head_dim"],
)
def test_what_cannot_be_expressed_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt", **changes)
    with pytest.raises(ValueError, match=message):
        export(checkpoint, "hf", tmp_path / "out", "float32")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}


def test_a_failed_export_leaves_nothing_and_replaces_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(tokenizer, tmp_path / "a.ckpt")
    export(checkpoint, "hf", tmp_path / "out", "float32")
    with pytest.raises(ValueError, match="out exists; pass --overwrite"):
        export(checkpoint, "hf", tmp_path / "out", "float32")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(proof, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="the exported model computes something else"):
        export(checkpoint, "hf", tmp_path / "out", "float32", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256", "out"}


LLAMA = LlamaConfig(**SMALL).to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type is mamba; it must be one of llama, mistral, qwen2, qwen3, gpt2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling yarn, which a Transformer lacks"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"mlp_bias": True}, "mlp_bias without attention_bias"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding_window"),
        ({"hidden_size": None}, "incomplete or damaged: hidden_size is missing"),
        ({"hidden_size": "32"}, "incomplete or damaged: hidden_size is '32'"),
        ({"num_attention_heads": 0}, "incomplete or damaged: num_attention_heads is 0"),
        ({"rope_parameters": "x"}, "incomplete or damaged: rope_parameters is 'x'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_foreign_config_that_a_transformer_lacks_is_refused(changes: dict[str, Any], message: str) -> None:
    assert from_config(LLAMA) == TransformerConfig(
        vocab_size=300, context_length=64, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=48, norm_eps=1e-6
    )
    with pytest.raises(ValueError, match=message):
        from_config(LLAMA | changes)


def damage(folder: Path, what: str) -> None:
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if what == "no weights":
        weights.unlink()
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "config is a list":
        (folder / "config.json").write_text("[]")
    elif what == "config is cut":
        (folder / "config.json").write_text('{"model_type"')
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "shard elsewhere":
        index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    else:
        tensors = load_file(weights)
        if what == "missing tensor":
            del tensors["model.norm.weight"]
        elif what == "more tensors":
            tensors["model.layers.0.extra"] = torch.ones(1)
        elif what == "other shape":
            tensors["model.norm.weight"] = torch.ones(31)
        elif what == "a number":
            tensors["model.norm.weight"] = torch.tensor(1.0)
        elif what == "another head":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        else:
            kind = torch.int8 if what == "integers" else torch.float8_e4m3fn
            tensors["model.norm.weight"] = torch.ones(32).to(kind)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no weights", "there is no file .*model.safetensors"),
        ("cut weights", "model.safetensors is damaged"),
        ("config is a list", "config.json is not a JSON object"),
        ("config is cut", "config.json is not a JSON object: "),
        ("no tokenizer", "tokenizer"),
        ("shard elsewhere", "does not list .safetensors files beside it"),
        ("missing tensor", "has no tensor model.norm.weight"),
        ("more tensors", "has tensors that a Transformer lacks: model.layers.0.extra"),
        ("other shape", r"model.norm.weight with shape \(31,\), which its config contradicts"),
        ("a number", r"model.norm.weight with shape \(\), which its config contradicts"),
        ("integers", "quantized weights cannot be imported"),
        ("small floats", "quantized weights cannot be imported"),
        ("another head", "has a lm_head.weight that differs from the embedding, but ties them"),
    ],
)
def test_a_damaged_folder_is_refused(what: str, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    foreign_folder(LlamaConfig(**SMALL), tokenizer, tmp_path / "theirs")
    damage(tmp_path / "theirs", what)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_model(tmp_path / "theirs", tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()
