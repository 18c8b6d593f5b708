"""Evaluation of other projects' models, with models whose loss is known."""

import math
import sys
from argparse import Namespace
from pathlib import Path

import bench_learn
import pytest
import torch
from bench_learn import END_OF_TEXT, documents, nats, rows, stored_ids, stream
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

TEXTS = ["one two three", "four", "five six seven eight nine ten"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two stores, and a byte-level tokenizer without merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=259, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    )
    for name, size in (("train", 100), ("select", 10)):
        store = tmp_path / "stores" / name
        store.mkdir(parents=True)
        (store / "tokens-00000.bin").write_bytes(bytes(size))
        tokenizer.save(str(store / "tokenizer.json"))
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path


def uniform(ids: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 259)


@pytest.mark.parametrize("context_length", [3, 8, 1000])
def test_every_id_but_the_first_is_evaluated_once(cache: Path, context_length: int) -> None:
    args = Namespace(cache=cache, checkout=cache, context_length=context_length)
    count = sum(len(text) for text in TEXTS)
    row = nats(uniform, stream(args, TEXTS))
    assert row == pytest.approx((count + len(TEXTS) - 1) * math.log(259))  # end-of-text tokens, but not the first id
    by_document = nats(uniform, rows(args, TEXTS))
    assert by_document == pytest.approx((count + len(TEXTS)) * math.log(259))


def test_windows_overlap_by_one_id(cache: Path) -> None:
    windows = list(stream(Namespace(cache=cache, context_length=4), ["abcdefgh"]))
    assert [len(window) for window in windows] == [5, 5]
    assert windows[0][-1] == windows[1][0]


def test_a_model_that_copies_the_last_id_is_right_where_ids_repeat(cache: Path) -> None:
    def copies(ids: Tensor) -> Tensor:
        return 1e4 * torch.nn.functional.one_hot(ids, 259).float()

    args = Namespace(cache=cache, context_length=4)
    assert nats(copies, (window[:-1] for window in stream(args, ["aaaa"]))) == 0
    assert nats(copies, stream(args, ["aaab"])) == pytest.approx(2e4)  # at b and at the end


def test_the_largest_store_is_the_training_data(cache: Path) -> None:
    assert stored_ids(cache) == [cache / "stores" / "train" / "tokens-00000.bin"]


def test_documents_are_those_written(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(f"\n{END_OF_TEXT}\n".join(TEXTS), encoding="utf-8")
    assert documents(str(tmp_path / "text.txt")) == TEXTS


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nanogpt", "--size=64x1"], "None has no train.py; pass the path of a checkout of nanogpt"),
        (["minimind", "nowhere", "--size=64x1"], "has no trainer/train_pretrain.py"),
        (["litgpt", "--size=64x1"], "has no ids; write them with lit-lm prepare"),
        (["litgpt", "--size=big"], "'big' is not a width, divisible by 64, x layers, such as 256x6"),
        (["litgpt", "--size=100x1"], "'100x1' is not a width"),
        (["litgpt", "--size=64x1", "--text=nothing"], "nothing-train.txt; tools/corpora.py writes it"),
    ],
)
def test_wrong_options_are_named_before_training(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "select", "test"):
        (tmp_path / f"text-{name}.txt").write_text("a", encoding="utf-8")
    common = [f"--text={tmp_path / 'text'}", f"--cache={tmp_path}", "--steps=1", "--lr=1e-3"]
    positional = [option for option in options if not option.startswith("--")]
    monkeypatch.setattr(sys, "argv", ["bench_learn.py", *positional, *common, *options[len(positional) :]])
    with pytest.raises(SystemExit):
        bench_learn.main()
    assert reason in capsys.readouterr().err
