"""`lit-lm tokenizer`: exact round trips of `encode` and `decode`, and the statistics of `info`."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.__main__ import main
from lit_lm.tokenizer.tokenizer import Tokenizer

NASTY = [
    b"",
    b"one",
    b"one<|endoftext|>two\n<|endoftext|>",
    b"<|endoftext|><|endoftext|>  \r\n\tthree \x00 \r<|endoftext|>\n",
    "从前<|endoftext|<|endoftext|>🦊 e\u0301 \ufeff<|endof".encode(),
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    main(["tokenizer", "train", str(corpus), "--vocab_size", "300", "--output", str(path)])
    return path


def filtered(command: str, tokenizer: Path, given: bytes) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        out = io.BytesIO()
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
        main(["tokenizer", command, str(tokenizer)])
        return out.getvalue()


@pytest.mark.parametrize("text", NASTY, ids=ascii)
@pytest.mark.parametrize("block_bytes", [1, 5, 2**16])
def test_decode_returns_the_bytes_that_encode_read(
    tokenizer: Path, text: bytes, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_lm.cli.tokenizer.BLOCK_BYTES", block_bytes)
    ids = filtered("encode", tokenizer, text)
    assert ids.count(b"\n") == text.count(b"<|endoftext|>") + 1
    assert filtered("decode", tokenizer, ids) == text


@given(text=st.text())
def test_any_text_round_trips(tokenizer: Path, text: str) -> None:
    assert filtered("decode", tokenizer, filtered("encode", tokenizer, text.encode())) == text.encode()


def test_several_files_are_read_in_order(tokenizer: Path, lit_lm: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"The cat<|endoftext|>The owl")
    (tmp_path / "b.txt").write_bytes(b"The hen\n")
    printed = lit_lm("tokenizer", "encode", tokenizer, "a.txt", "b.txt")
    ours = Tokenizer.load(tokenizer)
    assert [[int(i) for i in line.split()] for line in printed.splitlines()] == [
        ours.encode(text) for text in ("The cat", "The owl", "The hen\n")
    ]


def test_train_writes_the_same_tokenizer_as_the_class(tokenizer: Path, corpus: Path, lit_lm: Command) -> None:
    documents = corpus.read_text(encoding="utf-8").split("<|endoftext|>")
    assert tokenizer.read_text(encoding="utf-8") == Tokenizer.train(documents, 300).to_json()
    printed = lit_lm("tokenizer", "train", corpus, corpus, "--tokenizer_type", "char", "--output", "deep/er/char.json")
    assert printed == "deep/er/char.json: char, 290 tokens\n"
    assert Tokenizer.load(Path("deep/er/char.json")).type == "char"


def test_info_reports_counts(tokenizer: Path, lit_lm: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The cat ran.<|endoftext|>Ein Kälbchen 中", encoding="utf-8")
    ours = Tokenizer.load(tokenizer)
    ids = [*ours.encode("The cat ran."), *ours.encode("Ein Kälbchen 中")]
    printed = lit_lm("tokenizer", "info", tokenizer, "--on", "text.txt", "--text", "The Kä\n中")
    table = printed.replace(" per ", "_per_").splitlines()[:9]
    rows = dict(line.split(maxsplit=1) for line in table if line[0] != " ")
    assert rows["type"] == "bpe"
    assert rows["tokens"] == "300"
    assert rows["bytes_per_token"] == f"{29 / len(ids):.3f}"
    assert rows["characters_per_token"] == f"{26 / len(ids):.3f}"
    assert rows["unused"] == str(300 - len(set(ids)) - 1)
    assert "<|endoftext|> 0" in printed
    assert printed.splitlines()[-1].startswith("The| |K|Ã|")  # ä is two tokens
    assert "|\\n|" in printed


def test_compare_shows_two_tokenizers_side_by_side(tokenizer: Path, corpus: Path, lit_lm: Command) -> None:
    lit_lm("tokenizer", "train", corpus, "--tokenizer_type", "char", "--output", "char.json")
    printed = lit_lm("tokenizer", "info", "--compare", tokenizer, "char.json", "--on", corpus, "--text", "The cat")
    row = next(line for line in printed.splitlines() if line.startswith("type"))
    assert row.split() == ["type", "bpe", "char"]
    assert "The| cat" in printed
    assert "T|h|e| |c|a|t" in printed


@pytest.mark.parametrize(("no_color", "painted"), [("", True), ("1", False)])
def test_colours_are_used_only_on_a_terminal_without_no_color(
    no_color: str, painted: bool, tokenizer: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert ("\033[" in lit_lm("tokenizer", "info", tokenizer, "--on", corpus, "--text", "The cat")) == painted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "missing.json"], "there is no tokenizer at missing.json"),
        (["encode", "TOKENIZER", "latin1.txt"], "latin1.txt is not UTF-8: byte 8 is 0xe9"),
        (["encode", "TOKENIZER", "missing.txt"], "missing.txt"),
        (["decode", "TOKENIZER", "ids.txt"], "ids.txt, line 2: '300' is not an id of this tokenizer; ids are 0 to 299"),
        (["decode", "TOKENIZER", "latin1.txt"], "latin1.txt, line 1: 'a' is not an id of this tokenizer"),
        (["train", "missing.txt"], "there is no file missing.txt"),
        (["train", "latin1.txt", "--vocab_size", "5"], "vocab_size is 5"),
        (["train", "latin1.txt", "--vocab_size", "99999999999"], "it must be at most 16,777,216"),
        (["train", "ids.npy"], "ids.npy"),
        (["info"], "pass one tokenizer, or two with --compare"),
    ],
)
def test_a_user_error_is_reported(
    arguments: list[str], message: str, tokenizer: Path, lit_lm: Command, tmp_path: Path
) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"a b c d \xe9")
    (tmp_path / "ids.txt").write_text("1 2\n3 300\n")
    printed = lit_lm("tokenizer", *(tokenizer if a == "TOKENIZER" else a for a in arguments), fails=True)
    assert printed.startswith("lit-lm: error: ")
    assert message in printed


def test_the_command_does_not_import_torch() -> None:
    program = "import sys, lit_lm.cli.tokenizer; print({'torch', 'lightning', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_train_writes_through_a_link(lit_lm: Command, corpus: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to("target.json")
    lit_lm("tokenizer", "train", corpus, "--vocab_size", "300", "--output", link)
    assert link.is_symlink()
    assert Tokenizer.load(tmp_path / "target.json").vocab_size == 300
    printed = lit_lm("tokenizer", "train", corpus, "--vocab_size", "300", "--output", tmp_path, fails=True)
    assert str(tmp_path) in printed


def test_an_argument_that_is_not_utf8_is_reported(tokenizer: Path, corpus: Path, lit_lm: Command) -> None:
    printed = lit_lm("tokenizer", "info", tokenizer, "--on", corpus, "--text", "a\udcffb", fails=True)
    assert "lit-lm: error: the text is not valid Unicode: character 1 is the lone surrogate U+DCFF" in printed
