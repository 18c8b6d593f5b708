"""Checkpoints of nanoGPT and LitGPT in layouts written out here.

With checkouts of theirs in the environment variables NANOGPT and LITGPT, their own code is compared, too.
"""

import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.models import make
from helpers.texts import DOCUMENTS
from torch import Tensor

from lit_lm.checkpoint import read_checkpoint
from lit_lm.interop.importing import import_model
from lit_lm.interop.litgpt import from_config
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer

TEXT = "to be, or not to be: that is the question"
CHARACTERS = {character: number for number, character in enumerate(sorted(set(TEXT)))}


def write_meta(path: Path, protocol: int = 4) -> Path:
    content = {"vocab_size": len(CHARACTERS), "itos": {n: c for c, n in CHARACTERS.items()}, "stoi": CHARACTERS}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def nanogpt_state(model: Transformer) -> dict[str, Tensor]:
    """The state dict of nanoGPT's model that has the weights of a Transformer."""
    weights = model.state_dict()
    state = {
        "transformer.wte.weight": weights["embedding.weight"],
        "transformer.wpe.weight": weights["position_embedding.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    kinds = ["weight", "bias"] if model.config.bias else ["weight"]
    for kind in kinds:
        state[f"transformer.ln_f.{kind}"] = weights[f"norm.{kind}"]
        for layer in range(model.config.num_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            three = [weights[f"{ours}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{theirs}.attn.c_attn.{kind}"] = torch.cat(three)
            for name, other in {
                "attention_norm": "ln_1",
                "attention.o_proj": "attn.c_proj",
                "feed_forward_norm": "ln_2",
                "feed_forward.up_proj": "mlp.c_fc",
                "feed_forward.down_proj": "mlp.c_proj",
            }.items():
                state[f"{theirs}.{other}.{kind}"] = weights[f"{ours}.{name}.{kind}"]
    return state


def write_nanogpt(path: Path, model: Transformer, prefix: str = "", changes: Mapping[str, Any] = {}) -> Path:
    config = model.config
    shape = {
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.d_model,
        "block_size": config.context_length,
        "bias": config.bias,
        "vocab_size": config.vocab_size,
        "dropout": 0.0,
    }
    state = {prefix + name: tensor for name, tensor in nanogpt_state(model).items()}
    content = {"model": state, "optimizer": {}, "model_args": shape, "iter_num": 3, "best_val_loss": torch.tensor(1.0)}
    torch.save({**content, **changes}, path)
    return path


NANOGPT = {"norm": "layernorm", "mlp": "gelu_erf", "positions": "learned", "tie_embeddings": True}


@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["eager", "compiled"])
@pytest.mark.parametrize("bias", [False, True], ids=["no biases", "biases"])
def test_a_nanogpt_checkpoint_is_imported(bias: bool, prefix: str, tmp_path: Path) -> None:
    model = make(**NANOGPT, bias=bias, vocab_size=len(CHARACTERS))
    write_nanogpt(tmp_path / "ckpt.pt", model, prefix)
    import_model(tmp_path / "ckpt.pt", tmp_path / "a.ckpt", write_meta(tmp_path / "meta.pkl"))
    read = read_checkpoint(tmp_path / "a.ckpt")
    ids = torch.randint(len(CHARACTERS), (2, 16))
    with torch.no_grad():
        logits = read.transformer()(ids)
        torch.testing.assert_close(logits[..., :-1], model(ids), atol=1e-6, rtol=0)
    assert not logits[..., -1].any()  # the end token, which nanoGPT does not have
    tokenizer = read.require_tokenizer()
    assert tokenizer.encode(TEXT) == [CHARACTERS[character] for character in TEXT]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.end_id == len(CHARACTERS)
    for texts in (["to be 5"], ["to be", "or 5"]):
        with pytest.raises(ValueError, match="there is no token for '5', and the tokenizer has no unknown token"):
            tokenizer.encode_batch(texts)


@pytest.mark.skipif("NANOGPT" not in os.environ, reason="needs a checkout of nanoGPT")
def test_nanogpt_itself_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(os.environ["NANOGPT"])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "bias": True, "vocab_size": len(CHARACTERS)}
    theirs = GPT(GPTConfig(**shape)).eval()
    content = {"model": theirs.state_dict(), "model_args": shape | {"dropout": 0.0}}
    torch.save(content, tmp_path / "ckpt.pt")
    import_model(tmp_path / "ckpt.pt", tmp_path / "a.ckpt", write_meta(tmp_path / "meta.pkl"))
    ids = torch.randint(len(CHARACTERS), (2, 16))
    with torch.no_grad():
        ours = read_checkpoint(tmp_path / "a.ckpt").transformer()(ids)
        torch.testing.assert_close(ours[..., :-1], theirs(ids, ids)[0], atol=1e-5, rtol=0)


class Trap:
    def __reduce__(self) -> Any:
        return os.system, ("touch trapped",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {}}, "damaged or was changed: model_args.n_layer is missing"),
        ({"model": {}}, "has no state dict"),
        ({"model": {"x": 3}}, "x is not the name of a tensor"),
        ({"model": {"x": torch.ones(2)}}, r"has no tensor transformer\.wte\.weight"),
        ({"model": Trap()}, "is refused: it would run"),
        ({"model": {"x": torch.zeros(1).expand(2**20, 2**15)}}, "x is larger than its memory"),
        ({"model": {"x": torch.zeros(2, 2).to_sparse()}}, "x is a tensor of torch.sparse_coo"),
    ],
    ids=["no shape", "empty", "a number", "another model", "code", "expanded", "sparse"],
)
def test_a_damaged_nanogpt_checkpoint_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_nanogpt(tmp_path / "ckpt.pt", make(**NANOGPT, vocab_size=len(CHARACTERS)), changes=changes)
    with pytest.raises(ValueError, match=message):
        import_model(tmp_path / "ckpt.pt", tmp_path / "a.ckpt", write_meta(tmp_path / "meta.pkl"))
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "a.ckpt").exists()


def test_a_nanogpt_checkpoint_needs_a_tokenizer(tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path / "ckpt.pt", make(**NANOGPT, vocab_size=len(CHARACTERS)))
    with pytest.raises(ValueError, match="has no tokenizer; pass --tokenizer"):
        import_model(path, tmp_path / "a.ckpt")


@pytest.mark.parametrize("protocol", range(1, 6))
def test_a_meta_pkl_is_read_whatever_its_protocol(protocol: int, tmp_path: Path) -> None:
    path = write_meta(tmp_path / "meta.pkl", protocol)
    assert Tokenizer.load(path).encode(TEXT) == [CHARACTERS[character] for character in TEXT]


@pytest.mark.parametrize(
    "content",
    [
        Trap(),
        {"stoi": Trap()},
        {"stoi": {"ab": 0}},
        {"stoi": {"a": 1}},
        {"stoi": {"a": 0, "b": 0}},
        {"stoi": {"a": 0, "b": "1"}},
        {"stoi": {}},
        [],
    ],
    ids=["code", "nested code", "two characters", "from 1", "the same id", "a word as id", "empty", "a list"],
)
def test_other_pickles_are_refused(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"meta.pkl cannot be used as a tokenizer: it"):
        Tokenizer.load("meta.pkl")
    assert not (tmp_path / "trapped").exists()


LLAMA = {"num_kv_heads": 2, "d_ff": 48}
LITGPT = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "qk_norm": True, "head_dim": 12},
    "qwen2": {**LLAMA, "qkv_bias": True},
    "gelu": {"norm": "layernorm", "mlp": "gelu_erf", "bias": True},
}


def litgpt_folder(folder: Path, model: Transformer, tokenizer: Tokenizer, wrapped: bool = False) -> Path:
    """A checkpoint folder of LitGPT with the weights of a Transformer."""
    folder.mkdir()
    config = model.config
    gated = config.mlp == "swiglu"
    renamed = {
        "embedding": "transformer.wte", "blocks": "transformer.h", "attention": "attn", "feed_forward": "mlp",
        "attention_norm": "norm_1", "feed_forward_norm": "norm_2", "o_proj": "proj", "down_proj": "proj",
        "gate_proj": "fc_1", "up_proj": "fc_2" if gated else "fc", "q_norm": "norm_q", "k_norm": "norm_k",
        "head": "lm_head",
    }  # fmt: skip
    weights, state = model.state_dict(), {}
    for name, weight in weights.items():
        if "q_proj" in name:
            three = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name, weight = name.replace("q_proj", "qkv"), torch.cat(three)
        if "k_proj" not in name and "v_proj" not in name:
            name = f"transformer.ln_f{name[4:]}" if name.startswith("norm.") else name
            state[".".join(renamed.get(part, part) for part in name.split("."))] = weight
    torch.save({"model": state} if wrapped else state, folder / "lit_model.pth")
    content = {
        "name": "x", "hf_config": {}, "block_size": config.context_length, "n_layer": config.num_layers,
        "n_embd": config.d_model, "vocab_size": 299, "padded_vocab_size": config.vocab_size, "n_head": config.num_heads,
        "n_query_groups": config.kv_heads, "head_size": config.head_size, "intermediate_size": config.feed_forward_size,
        "norm_class_name": "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm", "norm_eps": config.norm_eps,
        "norm_qk": config.qk_norm, "mlp_class_name": "LLaMAMLP" if gated else "GptNeoxMLP", "gelu_approximate": "none",
        "bias": config.bias, "attn_bias": bool(config.qkv_bias), "rotary_percentage": 1.0, "rope_base": 10000,
        "parallel_residual": False, "n_expert": 0, "lm_head_bias": False, "rope_condense_ratio": 1,
    }  # fmt: skip
    (folder / "model_config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


@pytest.mark.parametrize("wrapped", [False, True], ids=["converted", "trained"])
@pytest.mark.parametrize("changes", LITGPT.values(), ids=LITGPT.keys())
def test_a_litgpt_folder_is_imported(
    changes: dict[str, Any], wrapped: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make(vocab_size=300, **changes)
    folder = litgpt_folder(tmp_path / "folder", model, tokenizer, wrapped)
    import_model(folder, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert all(torch.equal(read.weights[name], weight) for name, weight in model.state_dict().items())
    assert read.transformer().config.head_size == model.config.head_size
    assert read.require_tokenizer().fingerprint == tokenizer.fingerprint


@pytest.mark.skipif("LITGPT" not in os.environ, reason="needs a checkout of LitGPT, and its dependencies")
@pytest.mark.parametrize("changes", LITGPT.values(), ids=LITGPT.keys())
def test_litgpt_itself_computes_the_same(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(os.environ["LITGPT"])
    from litgpt import GPT, Config  # type: ignore[import-not-found]

    folder = litgpt_folder(tmp_path / "folder", make(vocab_size=300, **changes), tokenizer)
    theirs = GPT(Config(**yaml.safe_load((folder / "model_config.yaml").read_text()))).eval()
    theirs.load_state_dict(torch.load(folder / "lit_model.pth"))
    (folder / "model_config.yaml").write_text(yaml.dump(asdict(theirs.config)))
    import_model(folder, tmp_path / "a.ckpt")
    ids = torch.randint(300, (2, 16))
    with torch.no_grad():
        ours = read_checkpoint(tmp_path / "a.ckpt").transformer()(ids)
        torch.testing.assert_close(ours, theirs(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel_residual": True}, "this LitGPT model has parallel_residual True, which a Transformer lacks"),
        ({"rotary_percentage": 0.25, "n_expert": 8}, "rotary_percentage 0.25 and n_expert 8"),
        ({"mlp_class_name": "GemmaMLP"}, "mlp_class_name GemmaMLP"),
        ({"norm_class_name": "x"}, "norm_class_name x"),
        ({"n_layer": "4"}, "incomplete or damaged: n_layer is '4'"),
        ({"n_embd": 30}, "d_model 30 is not divisible by num_heads 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_litgpt_model_that_a_transformer_lacks_is_refused(
    changes: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = litgpt_folder(tmp_path / "folder", make(vocab_size=300, **LLAMA), tokenizer)
    content = yaml.safe_load((folder / "model_config.yaml").read_text()) | {"head_size": None}
    content = {name: value for name, value in (content | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        from_config(content)


@pytest.mark.parametrize("content", ["[]", "{", "a: *b"], ids=["a list", "cut", "an alias"])
def test_a_damaged_litgpt_folder_is_refused(content: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = litgpt_folder(tmp_path / "folder", make(vocab_size=300, **LLAMA), tokenizer)
    (folder / "model_config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"model_config.yaml is not"):
        import_model(folder, tmp_path / "a.ckpt")
    (folder / "model_config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        import_model(folder, tmp_path / "a.ckpt")
