"""`lit-lm export` and `lit-lm import` as commands. What they write: tests/interop."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_lm import Tokenizer, Transformer, TransformerConfig
from lit_lm.checkpoint import read_checkpoint
from lit_lm.interop.formats import FORMATS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_trained_model_goes_to_transformers_and_back(run_folder: Path, lit_lm: Command) -> None:
    out = lit_lm("export", "--ckpt_path", run_folder, "--output", "folder")
    assert out.startswith("folder: LlamaForCausalLM, float32; largest difference of a logit ")
    out = lit_lm("import", "folder", "--output", "back.ckpt")
    assert out.startswith("back.ckpt: ")
    before, after = read_checkpoint(run_folder / "checkpoints" / "best.ckpt"), read_checkpoint("back.ckpt")
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())
    options = ["The cat", "--temperature", 0, "--max_new_tokens", 12, "--device", "cpu", "--ckpt_path"]
    text = lit_lm("generate", *options, "back.ckpt")
    assert text == lit_lm("generate", *options, run_folder)
    tokenizer, model = AutoTokenizer.from_pretrained("folder"), AutoModelForCausalLM.from_pretrained("folder")
    continued = model.generate(**tokenizer("The cat", return_tensors="pt"), do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(continued[0], skip_special_tokens=True) + "\n" == text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_exported_under_their_own_names(dtype: str, run_folder: Path, lit_lm: Command) -> None:
    out = lit_lm("export", "--to=safetensors", f"--dtype={dtype}", "--ckpt_path", run_folder, "--output", "folder")
    before = read_checkpoint(run_folder / "checkpoints" / "best.ckpt")
    assert out == f"folder: {len(before.weights)} tensors, {dtype}, equal bit by bit\n"
    weights = load_file("folder/model.safetensors")
    assert all(torch.equal(weights[name], weight.to(getattr(torch, dtype))) for name, weight in before.weights.items())
    model = Transformer(TransformerConfig(**json.loads(Path("folder/config.json").read_text())))
    assert model.load_state_dict(weights).missing_keys == []
    assert Tokenizer.load("folder").fingerprint == before.require_tokenizer().fingerprint


def test_nothing_is_overwritten_unless_asked_for(run_folder: Path, lit_lm: Command) -> None:
    Path("folder").mkdir()
    (Path("folder") / "precious").touch()
    assert "folder exists; pass --overwrite" in lit_lm(
        "export", "--ckpt_path", run_folder, "--output=folder", fails=True
    )
    assert (Path("folder") / "precious").exists()
    overwrite = ["export", "--ckpt_path", run_folder, "--output=folder", "--overwrite", "--dtype=bfloat16"]
    assert "folder is a folder that lit-lm export did not write" in lit_lm(*overwrite, fails=True)
    (Path("folder") / "precious").rename("precious")
    for to in ("safetensors", "hf"):
        lit_lm(*overwrite, "--to", to)
    assert (Path("folder") / "generation_config.json").exists()
    Path("a.ckpt").touch()
    assert "a.ckpt exists; pass --overwrite" in lit_lm("import", "folder", "--output=a.ckpt", fails=True)


@pytest.mark.parametrize("kind", ["import", *FORMATS])
def test_a_full_disk_is_reported_and_nothing_is_lost(kind: str, run_folder: Path, lit_lm: Command) -> None:
    """A limit on the size of files stands for the full disk: both fail while the weights are written."""
    lit_lm("export", "--ckpt_path", run_folder, "--output=folder")
    before = {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}
    command = ["import", "folder", "--output=made.ckpt"]
    if kind != "import":
        command = ["export", f"--to={kind}", "--ckpt_path", str(run_folder), "--output=folder", "--overwrite"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        message = lit_lm(*command, fails=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("lit-lm: error: ")
    assert message.count("\n") == 1
    assert "cannot be written" in message
    assert {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()} == before


def test_mistakes_are_reported(run_folder: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no file or folder missing" in lit_lm("import", "missing", "--output=a.ckpt", fails=True)
    assert "there is no model at" in lit_lm("import", run_folder, "--output=a.ckpt", fails=True)
    assert "it must be true or false" in lit_lm("import", "x", "--output=a.ckpt", "--overwrite=x", fails=True)
    assert "--overwrite=-- has no value" in lit_lm("import", "x", "--output=a.ckpt", "--overwrite=--", fails=True)
    assert "invalid choice: 'int3'" in lit_lm("export", "--dtype=int3", "--output=folder", fails=True)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.delitem(sys.modules, "lit_lm.interop.hf", raising=False)
    assert "is missing; pip install 'lit-lm[export]'" in lit_lm(
        "export", "--ckpt_path", run_folder, "--output=x", fails=True
    )
