"""`fit --init_from`: the weights and the tokenizer are the checkpoint's, and everything else is new."""

from pathlib import Path

import pytest
import torch
from conftest import Command
from helpers.texts import DOCUMENTS

from lit_lm.checkpoint import Checkpoint, read_checkpoint, weights_content, write_checkpoint
from lit_lm.runs import find_checkpoint
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.training.init_from import load_weights

STILL = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0", "--trainer.max_steps=1", "--data.batch_size=2"]
"""Options of a run of a single step that changes nothing."""


@pytest.fixture
def start(run_folder: Path) -> Checkpoint:
    return read_checkpoint(run_folder / "checkpoints" / "best.ckpt")


def started(lit_lm: Command, *options: object) -> Checkpoint:
    lit_lm("fit", *STILL, "--trainer.accelerator=cpu", *options)
    return read_checkpoint(find_checkpoint("last", "run"))


@pytest.mark.parametrize("context_length", [32, 48])
def test_a_run_starts_from_the_weights(context_length: int, start: Checkpoint, corpus: Path, lit_lm: Command) -> None:
    made = started(lit_lm, "--init_from", start.path, f"--data.source={corpus}",
                   f"--model.net.context_length={context_length}")  # fmt: skip
    assert made.step == 1
    assert made.weights.keys() == start.weights.keys()
    assert all(torch.equal(made.weights[name], weight) for name, weight in start.weights.items())
    assert made.require_tokenizer().fingerprint == start.require_tokenizer().fingerprint
    assert made.model["net"] == start.model["net"] | {"context_length": context_length}


def test_more_tokens_get_new_rows(start: Checkpoint, corpus: Path, lit_lm: Command) -> None:
    tokenizer = Tokenizer.from_json(start.require_tokenizer().to_json())
    tokenizer.backend.add_tokens(["zebra", "quagga"])
    Path("more.json").write_text(tokenizer.to_json(), encoding="utf-8")
    made = started(lit_lm, "--init_from", start.path, f"--data.source={corpus}", "--data.tokenizer=more.json",
                   "--model.net.vocab_size=310")  # fmt: skip
    for name, weight in start.weights.items():
        assert torch.equal(made.weights[name][: len(weight)], weight)
    assert made.weights["embedding.weight"].shape[0] == made.weights["head.weight"].shape[0] == 310
    assert made.weights["embedding.weight"][300:].abs().sum(dim=1).min() > 0


def test_a_model_that_does_not_fit_is_refused(start: Checkpoint, corpus: Path, lit_lm: Command) -> None:
    arguments = ["fit", *STILL, "--init_from", start.path, f"--data.source={corpus}"]
    printed = lit_lm(*arguments, "--model.net.d_model=32", "--model.net.vocab_size=299", fails=True)
    assert "model.net.d_model is 32, but 16 in the checkpoint of init_from" in printed
    assert "model.net.vocab_size is 299, but 300" in printed
    Path("other.json").write_text(Tokenizer.train(DOCUMENTS, 300).to_json(), encoding="utf-8")
    assert "ids have another token" in lit_lm(*arguments, "--data.tokenizer=other.json", fails=True)


def test_a_model_of_ones_own_with_other_parameters_is_refused(start: Checkpoint) -> None:
    model = start.transformer()
    model.scale = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="does not fit the model: only one of them has scale"):
        load_weights(model, start.weights)
    weights = {**start.weights, "scale": torch.ones(3)}
    with pytest.raises(ValueError, match=r"scale is \[3\] in the checkpoint, and \[2\] in the model"):
        load_weights(model, weights)


def test_a_checkpoint_of_weights_alone_starts_a_run_but_resumes_none(
    start: Checkpoint, corpus: Path, tmp_path: Path, lit_lm: Command
) -> None:
    model, tokenizer = start.transformer(), start.require_tokenizer()
    write_checkpoint(weights_content(model.config, model.state_dict(), tokenizer), tmp_path / "weights.ckpt")
    printed = lit_lm("fit", *STILL, "--ckpt_path=weights.ckpt", f"--data.source={corpus}", fails=True)
    assert "weights.ckpt has only weights; start a new run from them with --init_from" in printed
    assert "val/loss" in lit_lm("validate", "--ckpt_path=weights.ckpt", f"--data.source={corpus}")
    made = started(lit_lm, "--init_from=weights.ckpt", f"--data.source={corpus}", "--model.net.num_kv_heads=2")
    assert all(torch.equal(made.weights[name], weight) for name, weight in start.weights.items())


def test_a_run_that_was_started_from_weights_resumes(start: Checkpoint, corpus: Path, lit_lm: Command) -> None:
    arguments = ["--init_from", start.path, f"--data.source={corpus}"]
    started(lit_lm, *arguments)
    out = lit_lm("fit", *STILL, *arguments, "--trainer.accelerator=cpu", "--trainer.max_steps=2", "--ckpt_path=last")
    assert "resuming from" in out
    assert "starting from" not in out
    assert read_checkpoint(find_checkpoint("last", "run")).step == 2
