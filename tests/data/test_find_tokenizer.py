"""Tokenizers given by paths or by a name on the hub. The hub is a server in this process."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Command
from helpers.texts import DOCUMENTS
from helpers.web import web_server

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.find_tokenizer import absolute_tokenizer, load_tokenizer
from lit_lm.tokenizer.formats import byte_letters
from lit_lm.tokenizer.tokenizer import Tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = "The cat and the dog. 小狗 <|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


@pytest.fixture(scope="module")
def pair(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """GPT-2's two files, with other names and in two folders, and other files with their usual names beside them."""
    model = json.loads(tokenizer.to_json())["model"]
    folder = tmp_path_factory.mktemp("pair")
    vocab, merges = folder / "my.vocab", folder / "elsewhere" / "my.merges"
    merges.parent.mkdir()
    vocab.write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges.write_text("\n".join(" ".join(pair) for pair in model["merges"]), encoding="utf-8")
    (folder / "merges.txt").write_text("a b", encoding="utf-8")
    return vocab, merges


def test_two_paths_name_vocab_and_merges(tokenizer: Tokenizer, pair: tuple[Path, Path], lit_lm: Command) -> None:
    loaded = load_tokenizer(f"{pair[0]},{pair[1]}")
    for text in DOCUMENTS:
        assert loaded.encode(text) == tokenizer.encode(text)
    Path("v.json").symlink_to(pair[0])
    Path("text.txt").write_text(TEXT.replace("<|endoftext|>", ""), encoding="utf-8")
    expected = " ".join(map(str, tokenizer.encode(TEXT.replace("<|endoftext|>", "")))) + "\n"
    assert lit_lm("tokenizer", "encode", f"v.json,{pair[1]}", "text.txt") == expected


def test_fit_takes_two_paths_relative_to_a_config(
    pair: tuple[Path, Path], corpus: Path, cache: Path, lit_lm: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, path in zip(("v.json", "m.txt"), pair, strict=True):
        (folder / name).symlink_to(path)
    (folder / "my.yaml").write_text("data: {tokenizer: 'v.json,m.txt'}", encoding="utf-8")
    lit_lm("fit", "--config=configs/my.yaml", *TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}",
           "--trainer.max_steps=1")  # fmt: skip
    saved = read_checkpoint("logs/run/version_0/checkpoints/last.ckpt").tokenizer
    assert saved is not None
    assert saved.encode(TEXT) == Tokenizer.load(*pair).encode(TEXT)


def test_from_python_a_checkpoint_has_the_same_tokenizer_option(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair[0].parent)
    for given, stored in (
        ("my.vocab,elsewhere/my.merges", f"{pair[0]},{pair[1]}"),
        ("gpt2", "hub:openai-community/gpt2"),
    ):
        assert LMDataModule(tokenizer=given).hparams["tokenizer"] == stored


def test_a_missing_part_is_named(pair: tuple[Path, Path], lit_lm: Command) -> None:
    message = lit_lm("tokenizer", "info", f"{pair[0]},none.txt", fails=True)
    assert "there is no file" in message
    assert "none.txt" in message
    assert "there is no file" in lit_lm("tokenizer", "info", f"none.json,{pair[1]}", fails=True)
    assert "cannot be used as a tokenizer" in lit_lm("tokenizer", "info", f"{pair[1]},{pair[0]}", fails=True)


def test_a_path_with_a_comma_is_a_path(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a,b.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    assert load_tokenizer(str(path)).fingerprint == tokenizer.fingerprint
    assert absolute_tokenizer("a,b.json", tmp_path) == str(path)


def test_gpt2_is_a_name_on_the_hub_unless_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_tokenizer("gpt2") == "hub:openai-community/gpt2"
    assert absolute_tokenizer("hub:a/b", Path("x")) == "hub:a/b"
    assert absolute_tokenizer("v.json,m.txt", Path("x")) == f"{tmp_path}/x/v.json,{tmp_path}/x/m.txt"
    (tmp_path / "gpt2").mkdir()
    assert absolute_tokenizer("gpt2") == str(tmp_path / "gpt2")


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that reading a model's files needs."""

    files: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        for name, files in self.files.items():
            if self.path.startswith(f"/api/models/{name}/revision/"):
                return self.reply_json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
            if self.path.startswith(f"/api/models/{name}/tree/"):
                return self.reply_json(
                    [
                        {"type": "file", "path": file, "size": len(files[file]), "oid": etag(files[file])}
                        for file in files
                    ]
                )
            if self.path.startswith(f"/{name}/resolve/"):
                return self.reply(files[self.path.rpartition("/")[2]], "application/octet-stream")
        return self.reply(b"", "text/plain", 404)

    def reply_json(self, content: Any) -> None:
        self.reply(json.dumps(content).encode(), "application/json")

    def reply(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for header, value in {"Content-Type": kind, "Content-Length": len(content), "ETag": f'"{etag(content)}"',
                              "X-Repo-Commit": COMMIT, "X-Error-Code": "RepoNotFound"}.items():  # fmt: skip
            if header != "X-Error-Code" or status == 404:
                self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def hub(tokenizer: Tokenizer, pair: tuple[Path, Path]) -> Iterator[str]:
    """Address of a hub with GPT-2 and a model without a tokenizer."""
    vocab, merges = (path.read_bytes() for path in pair)
    Hub.files = {
        "openai-community/gpt2": {"tokenizer.json": tokenizer.to_json().encode(), "model.safetensors": b"large"},
        "a/two-files": {"vocab.json": vocab, "merges.txt": merges},
        "a/none": {"README.md": b"none"},
    }
    with web_server(Hub) as address:
        yield address


def ids_of(where: str, endpoint: str, home: Path) -> tuple[list[int] | None, str]:
    """Ids of TEXT with a tokenizer loaded in a process that finds the hub at `endpoint`; and its error output."""
    run = [sys.executable, "-m", "lit_lm", "tokenizer", "encode", where]
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    text = TEXT.replace("<|endoftext|>", "").encode()
    done = subprocess.run(run, input=text, capture_output=True, timeout=60, env=os.environ | env, check=False)
    ids = [int(word) for word in done.stdout.decode().split()] if done.returncode == 0 else None
    return ids, done.stderr.decode()


@pytest.mark.parametrize("where", ["gpt2", "hub:openai-community/gpt2", "hub:a/two-files"])
def test_a_tokenizer_of_the_hub_is_fetched_once(where: str, hub: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    expected = tokenizer.encode(TEXT.replace("<|endoftext|>", ""))
    assert ids_of(where, hub, tmp_path)[0] == expected
    assert not list(tmp_path.rglob("model.safetensors"))
    assert ids_of(where, "http://127.0.0.1:9", tmp_path)[0] == expected  # without a network, from the hub's cache


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("hub:a/none", "the model a/none on the Hugging Face hub has no tokenizer that lit-lm can read"),
        ("hub:a/missing", "the tokenizer of a/missing could not be loaded from the Hugging Face hub ("),
        ("hub:..", "the tokenizer of .. could not be loaded from the Hugging Face hub ("),
    ],
)
def test_a_name_without_a_tokenizer_is_reported(where: str, message: str, hub: str, tmp_path: Path) -> None:
    ids, error = ids_of(where, hub, tmp_path)
    assert ids is None
    assert error.startswith(f"lit-lm: error: {message}")
    assert error.count("\n") == 1


def test_without_a_network_the_error_is_one_line_and_nothing_is_retried(tmp_path: Path) -> None:
    ids, error = ids_of("gpt2", "http://127.0.0.1:9", tmp_path)
    assert ids is None
    assert error.startswith(
        "lit-lm: error: the tokenizer of openai-community/gpt2 could not be loaded from the Hugging"
    )
    assert "Connection refused" in error
    assert "pass the path of a local one" in error
    assert error.count("\n") == 1
    assert "Retrying" not in error


def test_a_special_token_needs_a_tokenizer_that_is_trained(corpus: Path, lit_lm: Command) -> None:
    message = lit_lm("fit", *TINY, f"--data.source={corpus}", "--data.tokenizer=x.json", "--data.special_tokens=[<a>]",
                     "--trainer.max_steps=1", fails=True)  # fmt: skip
    assert "special_tokens has <a>, but tokenizer is given" in message
    message = lit_lm("fit", *TINY, "--data.special_tokens=<a>", "--trainer.max_steps=1", fails=True)
    assert message == """lit-lm: error: data.special_tokens is <a>; it must be a list, such as '["<a>"]'\n"""
    message = lit_lm("fit", *TINY, "--data.special_tokens=[user]", "--trainer.max_steps=1", fails=True)
    assert "special_tokens has 'user'; a special token must look like <|user|>" in message


def test_fit_trains_a_tokenizer_with_special_tokens_and_reads_them_as_one_id(
    lit_lm: Command, cache: Path, tmp_path: Path
) -> None:
    chat = "<|endoftext|>".join(f"<|user|>Where is cat {n}?<|assistant|>At home." for n in range(80))
    (tmp_path / "chat.txt").write_text(chat, encoding="utf-8")
    options = ["--data.source=chat.txt", f"--data.cache_dir={cache}"]
    lit_lm("fit", *TINY, *options, "--data.special_tokens=[<|user|>, <|assistant|>]", "--trainer.max_steps=2")
    last = "logs/run/version_0/checkpoints/last.ckpt"
    tokenizer = read_checkpoint(last).tokenizer
    assert tokenizer is not None
    user, assistant = (tokenizer.special_tokens[name] for name in ("<|user|>", "<|assistant|>"))
    shown = lit_lm("data", "info", "--ckpt_path", last)
    assert "<|user|>" in shown
    row = tokenizer.encode("<|user|>Hi<|assistant|>")
    assert [row[0], row[-1], row.count(user), row.count(assistant)] == [user, assistant, 1, 1]
    lit_lm("fit", *TINY, *options, "--name=plain", "--trainer.max_steps=1")
    plain = read_checkpoint("logs/plain/version_0/checkpoints/last.ckpt").tokenizer
    assert plain is not None
    assert "<|user|>" not in plain.special_tokens
    more = [*TINY, *options, "--trainer.max_steps=3", "--ckpt_path=last"]
    message = lit_lm("fit", *more, "--data.special_tokens=[<|user|>]", fails=True)
    assert "data.special_tokens was ['<|user|>', '<|assistant|>'] and is ['<|user|>']" in message
    assert "done: 3 steps" in lit_lm("fit", *more)


def test_the_letters_of_bytes_are_ascii_where_names_are() -> None:
    """Names of special tokens in ASCII decode to themselves: their characters are the letters of their own bytes."""
    letters = byte_letters()
    assert all(letters[ord(c)] == c for c in "<|>[]abcXYZ019_-")
