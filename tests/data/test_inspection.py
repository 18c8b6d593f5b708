"""The output of `lit-lm data`, compared with naive counts and with the batches of training."""

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Command
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.inspection import info, profile, show
from lit_lm.data.token_store import StoreWriter, TokenStore
from lit_lm.data.tokenize import Chunk
from lit_lm.tokenizer.train import END_OF_TEXT


@given(st.lists(st.lists(st.integers(1, 20), max_size=40), min_size=1, max_size=6), st.booleans(), st.integers(1, 50))
def test_a_profile_counts_documents_and_tokens(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], last_has_end: bool, block: int
) -> None:
    if not (last_has_end or documents[-1]):
        return
    ids = [i for document in documents for i in [*document, 0]][: None if last_has_end else -1]
    tokenizer: Any = SimpleNamespace(vocab_size=21, end_id=0, fingerprint="t", to_json=lambda: "{}")
    writer = StoreWriter(tmp_path_factory.mktemp("store"), "s", tokenizer, 1)
    writer.write(0, [Chunk(np.array(ids), len(documents), 0, 0)], lambda: 0)
    store = writer.finish()
    with pytest.MonkeyPatch.context() as patch:
        blocks = list(store.blocks(block))
        patch.setattr(TokenStore, "blocks", lambda self: iter(blocks))
        found = profile(store, tokenizer)
    lengths = [len(document) + 1 for document in documents]
    lengths[-1] -= not last_has_end
    counted = Counter(length.bit_length() - 1 for length in lengths)
    assert {power: int(count) for power, count in enumerate(found.lengths) if count} == counted
    assert {token: int(count) for token, count in enumerate(found.frequencies) if count} == Counter(ids)


@pytest.fixture
def data(corpus: Path, cache: Path, tmp_path: Path) -> LMDataModule:
    (tmp_path / "other.txt").write_text("Some text of another kind. " * 200)
    data = LMDataModule(
        {str(corpus): 0.75, str(tmp_path / "other.txt"): 0.25}, cache_dir=str(cache), context_length=16,
        vocab_size=300, batch_size=8,
    )  # fmt: skip
    data.trainer = Trainer(max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    return data


def shown_texts(lines: list[str]) -> list[str]:
    """The text of each window, with END_OF_TEXT joined in again."""
    windows: list[list[str]] = []
    for line in lines:
        if line.startswith("--- step"):
            windows.append([])
        else:
            windows[-1].append(line)
    return ["".join(window) for window in windows]


def test_show_prints_the_windows_that_training_reads(data: LMDataModule) -> None:
    assert data.tokenizer is not None
    for step, (inputs, targets) in enumerate(data.train_dataloader(), start=1):
        lines = list(show(data, step))
        whole = np.concatenate([inputs.numpy(), targets.numpy()[:, -1:]], axis=1)
        assert shown_texts(lines) == data.tokenizer.decode_batch(whole.tolist())
        sources = [re.search(r" of (\w+): ", line) for line in lines if line.startswith("--- step")]
        assert Counter(match[1] for match in sources if match) == {"corpus": 6, "other": 2}
        assert all(line == END_OF_TEXT for line in lines if END_OF_TEXT in line)
        assert sum(line == END_OF_TEXT for line in lines) == (whole == data.tokenizer.end_id).sum()
    assert step == 5


@pytest.mark.parametrize("step", [0, -1])
def test_show_refuses_a_step_below_one(data: LMDataModule, step: int) -> None:
    with pytest.raises(ValueError, match=f"step is {step}; it must be between 1 and"):
        list(show(data, step))


def test_info_describes_the_stores(data: LMDataModule, corpus: Path) -> None:
    printed = "\n".join(info(data))
    assert data.tokenizer is not None
    documents = corpus.read_text(encoding="utf-8").split(END_OF_TEXT)
    train = [document for number, document in enumerate(documents, start=1) if number % 20]
    assert (
        f"train data of corpus, 75.0% of the mixture\n  {len(train)} documents, {len(''.join(train)):,} by" in printed
    )
    lengths = Counter((len(data.tokenizer.encode(document)) + 1).bit_length() - 1 for document in train)
    section = printed.partition("tokens per document:\n")[2].partition("  most frequent tokens")[0]
    bounds = {f"{2**power} to {2 ** (power + 1) - 1}": count for power, count in lengths.items()}
    assert dict(re.findall(r"(\d+ to \d+) .* (\d+)\n", section)) == {name: str(n) for name, n in bounds.items()}
    for stores in data.stores.values():
        for store in stores.values():
            assert f"{len(store):,} tokens, {store.meta.bytes_per_token:.3f} bytes per token" in printed
            assert store.meta.sha256[:16] in printed


def test_a_config_and_its_checkpoint_print_the_same(
    run_folder: Path, corpus: Path, cache: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = [*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}"]
    checkpoint = ["--ckpt_path", run_folder / "checkpoints" / "last.ckpt", f"--data.cache_dir={cache}"]
    for look in (["show", "--step", 7], ["info"]):
        printed = lit_lm("data", *look, *config)
        assert printed == lit_lm("data", *look, *checkpoint)
        assert printed == lit_lm("data", *look, "--config", run_folder / "config.yaml")
    assert "train data of corpus\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "fly"], "unknown command data fly; the commands are info, show"),
        (["data", "show", *TINY, "--step=0"], "step is 0; it must be between 1 and"),
        (["data", "info", "--data.source=missing.txt"], "there is no file"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str, lit_lm: Command) -> None:
    assert message in lit_lm(*arguments, fails=True)


def test_data_without_a_command_lists_its_commands(lit_lm: Command) -> None:
    assert "usage: lit-lm data COMMAND" in lit_lm("data")
