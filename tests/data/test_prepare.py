"""`lit-lm prepare`: the same bytes however the work is divided or interrupted; difficult text; errors."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from conftest import TINY, Command, write_jsonl

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data import filesystem, readers
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.token_store import TokenStore
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

PLANES = "".join(chr(plane * 0x10000 + low) for plane in range(17) for low in (0x42, 0xABC, 0xFFFD))
OPTIONS = [*TINY, "--data.val_fraction=0.2"]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "SHARD_BYTES", 400)


@pytest.fixture
def source(corpus: Path) -> str:
    return f"--data.source={corpus}"


def contents(cache: Path) -> dict[str, bytes]:
    """The .bin and .json files of the stores in a cache."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in (cache / "stores").rglob("*.[bj][is][no]*")}


def stores_in(printed: str) -> dict[str, TokenStore]:
    lines = [line for line in printed.splitlines() if " data of " in line and "; " in line]
    return {line.split()[0]: TokenStore(Path(line.partition("; ")[2])) for line in lines}


def documents_in(store: TokenStore) -> list[str]:
    tokenizer = Tokenizer.load(store.path / "tokenizer.json")
    ids = store.read(0, len(store))
    ends = np.flatnonzero(ids == tokenizer.end_id) + 1
    assert ends[-1] == len(ids)
    return [tokenizer.decode(document[:-1].tolist()) for document in np.split(ids, ends[:-1])]


def test_the_summary_describes_the_stores(lit_lm: Command, source: str, corpus: Path) -> None:
    printed = lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache")
    stores = stores_in(printed)
    assert printed.startswith("tokenizer: 300 tokens\n")
    assert len(stores["train"].meta.shards) > 5
    documents = {split: documents_in(store) for split, store in stores.items()}
    assert sorted(documents["train"] + documents["validation"]) == sorted(
        corpus.read_text(encoding="utf-8").split(END_OF_TEXT)
    )
    for split, store in stores.items():
        num_bytes = sum(len(document.encode()) for document in documents[split])
        assert (store.meta.documents, store.meta.bytes) == (len(documents[split]), num_bytes)
        summary = f"{split} data of corpus: {len(documents[split])} documents, {num_bytes:,} bytes, {len(store):,} tok"
        assert summary in printed.replace(str(corpus), "corpus")


def test_parts_and_a_merge_write_the_same_bytes_as_one_preparation(
    lit_lm: Command, source: str, tmp_path: Path
) -> None:
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=whole")
    for part in ("2/3", "1/3", "3/3"):
        printed = lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=parts", "--part", part)
        assert f"part {part[0]} of 3 is complete" in printed
        if part != "3/3":
            message = lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=parts", "--merge", fails=True)
            assert " shards are missing in the train data of " in message
            assert "run lit-lm prepare with their --part, or without --part" in message
    assert not list((tmp_path / "parts").rglob("meta.json"))
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=parts", "--merge")
    whole = contents(tmp_path / "whole")
    assert sum(name.endswith("meta.json") for name in whole) == 2
    assert contents(tmp_path / "parts") == whole


def test_there_may_be_more_parts_than_shards(lit_lm: Command, source: str, tmp_path: Path) -> None:
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=whole")
    for part in range(1, 21):
        lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=parts", f"--part={part}/20")
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=parts", "--merge")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_merge_reports_damaged_shards(lit_lm: Command, source: str) -> None:
    store = stores_in(lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache"))["train"]
    shard = store.path / "tokens-00002.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--merge", fails=True)
    assert f"has damaged shards (2) in {store.path}; they are deleted; run lit-lm prepare again" in message
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache")
    assert shard.read_bytes() == content


def test_an_output_that_cannot_be_written_is_refused_before_any_work(lit_lm: Command, source: str) -> None:
    options = [*OPTIONS, source, "--data.cache_dir=cache"]
    message = lit_lm("prepare", *options, "--data.streaming=true", "--output=out", fails=True)
    assert "--output needs a token store of the training data; leave out data.streaming" in message
    lit_lm("prepare", *options, "--output=out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*.*")}
    Path("link").symlink_to("out")
    for output in ("out", "link"):
        message = lit_lm("prepare", *OPTIONS, "--data.source=out", "--output", output, fails=True)
        assert f"--output {output} is data.source itself; choose another folder" in message
    assert {path: path.read_bytes() for path in Path("out").rglob("*.*")} == before


def test_damaged_shards_of_an_output_are_reported_and_kept(lit_lm: Command, source: str) -> None:
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=out[1]")
    options = [*OPTIONS, "--data.source=out[1]", "--data.cache_dir=other"]
    shard = Path("out[1]/train/tokens-00001.bin")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert "has damaged shards (1)" in (message := lit_lm("prepare", *options, "--merge", fails=True))
    assert "prepare or copy it again from its source" in message
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=out")
    Path("secret").write_text("secret")
    Path("out/train/tokens-99999.bin").symlink_to(Path("secret").absolute())
    lit_lm("prepare", *OPTIONS, "--data.source=out", "--data.cache_dir=other", "--output=copy")
    assert Path("copy/train/tokens-00001.bin").exists()
    assert not Path("copy/train/tokens-99999.bin").exists()
    assert shard.exists()


@pytest.mark.parametrize("moment", range(1, 30, 4))
def test_an_interrupted_preparation_resumes_to_the_same_bytes(
    lit_lm: Command, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=whole")
    calls = 0

    def failing(number: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(SystemExit) as stop:
            lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=resumed")
    assert stop.value.code == 130
    assert not list((tmp_path / "resumed").rglob(".*.unfinished"))
    lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from lit_lm.data import filesystem, token_store
from lit_lm.data.corpus import Corpus
filesystem.SHARD_BYTES = 400
source, tokenizer, cache, moment = *sys.argv[1:4], int(sys.argv[4])
fsync, calls = os.fsync, 0
def kill(number):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)
os.fsync = kill
corpus = Corpus({source: 1.0}, None, val_fraction=0.2, text_field="text", bin_dtype="uint16", tokenizer=tokenizer,
                tokenizer_type="bpe", vocab_size=300, cache_dir=Path(cache))
for split in ("train", "validation"):
    corpus.store(split, source, corpus.tokenizer())
"""


def test_a_killed_preparation_resumes_to_the_same_bytes(lit_lm: Command, corpus: Path, tmp_path: Path) -> None:
    train = stores_in(lit_lm("prepare", *OPTIONS, f"--data.source={corpus}", "--data.cache_dir=whole"))["train"]
    killed = 0
    for moment in (1, 4, 7, 9, 0):
        arguments = [str(corpus), str(train.path / "tokenizer.json"), str(tmp_path / "resumed"), str(moment)]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        killed += done.returncode == -signal.SIGKILL
    assert killed == 4
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_concurrent_preparations_write_the_same_bytes(lit_lm: Command, source: str, tmp_path: Path) -> None:
    tokenizer = stores_in(lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=whole"))["train"].path
    options = {"context_length": 32, "vocab_size": 300, "val_fraction": 0.2, "cache_dir": str(tmp_path / "both")}
    options |= {"tokenizer": str(tokenizer / "tokenizer.json")}
    failures: list[BaseException] = []

    def prepare() -> None:
        try:
            LMDataModule(source.partition("=")[2], **options).prepare_data()  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(tmp_path / "both") == contents(tmp_path / "whole")


class TestOutput:
    @pytest.mark.parametrize("output", ["memory://prepared", "prepared"])
    def test_training_on_the_output_equals_training_on_the_source(
        self, lit_lm: Command, source: str, output: str, tmp_path: Path
    ) -> None:
        printed = lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output", output)
        assert printed.endswith(f"copied to {output}; use it with --data.source {output}\n")
        show = ["data", "show", "--step=3", *OPTIONS]
        shown = lit_lm(*show, source, "--data.cache_dir=cache")
        assert lit_lm(*show, f"--data.source={output}", "--data.cache_dir=other") == shown
        fit = ["fit", *OPTIONS, "--trainer.max_steps=2"]
        first = lit_lm(*fit, source, "--data.cache_dir=cache")
        second = lit_lm(*fit, f"--data.source={output}", "--data.cache_dir=other")
        losses = [re.search(r"val/loss [\d.]+", printed) for printed in (first, second)]
        assert len({match and match[0] for match in losses} - {None}) == 1
        assert None not in losses
        checkpoints = [read_checkpoint(tmp_path / f"logs/run/version_{n}/checkpoints/last.ckpt") for n in (0, 1)]
        assert checkpoints[0].digests == checkpoints[1].digests

    def test_an_incomplete_copy_is_not_a_source(
        self, lit_lm: Command, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare = ["prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=copy"]
        lit_lm(*prepare)
        with monkeypatch.context() as patch:
            patch.setattr(fsspec.implementations.local.LocalFileSystem, "pipe_file", _full)
            assert "No space left" in lit_lm(*prepare, fails=True)
        message = lit_lm("data", "info", *OPTIONS, "--data.source=copy", fails=True)
        assert "copy contains token stores, but no train/meta.json, so it is not a finished output of lit-lm" in message
        lit_lm(*prepare)
        assert "train data of copy" in lit_lm("data", "info", *OPTIONS, "--data.source=copy")

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("documents", 10**6, "0000 documents, but its tokens have 49"),
            ("characters", 0, "the source has no text"),
            ("dtype", "O", "dtype is 'O'; it must be <u2 or <u4"),
        ],
    )
    def test_a_description_that_does_not_fit_the_tokens_is_refused(
        self, lit_lm: Command, corpus: Path, tmp_path: Path, field: str, value: object, message: str
    ) -> None:
        lit_lm("prepare", *OPTIONS, f"--data.source={corpus}", "--data.cache_dir=cache", "--output=one")
        path = tmp_path / "one" / "train" / "meta.json"
        content = json.loads(path.read_text())
        for holder in [content] if field in content else content["shards"]:
            holder[field] = value
        path.write_text(json.dumps(content))
        error = lit_lm("data", "info", *OPTIONS, "--data.source=one", "--data.cache_dir=cache", fails=True)
        assert message in error
        assert error.count("\n") == 1

    def test_a_copy_can_be_copied(self, lit_lm: Command, source: str, tmp_path: Path) -> None:
        lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=one")
        lit_lm("prepare", *OPTIONS, "--data.source=one", "--data.cache_dir=cache", "--output=two")
        assert sorted(path.name for path in (tmp_path / "one").rglob("*.*")) == sorted(
            path.name for path in (tmp_path / "two").rglob("*.*")
        )
        for path in (tmp_path / "one").rglob("*.*"):
            assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()

    def test_tokens_outside_the_vocabulary_are_refused(self, lit_lm: Command, source: str, tmp_path: Path) -> None:
        lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=one")
        tokens = tmp_path / "one" / "train" / "tokens-00001.bin"
        tokens.write_bytes(b"\xff" * tokens.stat().st_size)
        message = lit_lm("data", "info", *OPTIONS, "--data.source=one", "--data.cache_dir=other", fails=True)
        assert "(train): the data contains token id 65535; the tokenizer has ids 0 to 299" in message

    @pytest.mark.parametrize("name", ["train/meta.json", "train/tokenizer.json"])
    def test_a_link_or_a_pipe_in_it_is_refused(self, lit_lm: Command, source: str, tmp_path: Path, name: str) -> None:
        lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=one")
        path = tmp_path / "one" / name
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
        show = ["data", "info", *OPTIONS, "--data.source=one", "--data.cache_dir=other"]
        assert f"{path.name} is a link out of the store" in lit_lm(*show, fails=True)
        path.unlink()
        os.mkfifo(path)
        assert f"{path.name} is missing or not a file" in lit_lm(*show, fails=True)

    def test_another_tokenizer_is_refused(self, lit_lm: Command, source: str, tmp_path: Path) -> None:
        lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", "--output=one")
        (tmp_path / "other.json").write_text(Tokenizer.train(["another text"], 258).to_json(), encoding="utf-8")
        arguments = ["fit", *OPTIONS, "--data.source=one", "--data.tokenizer=other.json", "--trainer.max_steps=1"]
        assert "it was prepared with another tokenizer; prepare all sources" in lit_lm(*arguments, fails=True)


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


class TestHostile:
    def test_any_text_survives_a_round_trip_and_is_never_a_special_token(self, lit_lm: Command, tmp_path: Path) -> None:
        texts = [
            "",
            " \n",
            "a\x00b\x00",
            PLANES,
            END_OF_TEXT,
            f"a{END_OF_TEXT}b",
            "\ufeffbom",
            "\r\n\x85\u2028",
            "e\u0301",
        ]
        rows = [{"text": text} for text in texts * 3]
        write_jsonl(tmp_path / "a.jsonl", *rows)
        stores = stores_in(lit_lm("prepare", *OPTIONS, "--data.source=a.jsonl", "--data.cache_dir=cache"))
        found = documents_in(stores["train"]) + documents_in(stores["validation"])
        assert sorted(found) == sorted(text for text in texts * 3 if text.strip())

    def test_a_long_line_is_tokenized_in_parts_with_one_end_token(
        self, lit_lm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(readers, "PART_BYTES", 100)
        monkeypatch.setattr(readers, "BLOCK_BYTES", 60)
        line = "One day a cat found 12 dogs. " * 200
        (tmp_path / "a.txt").write_text(line)
        (tmp_path / "b.txt").write_text("Short.")
        printed = lit_lm("prepare", *OPTIONS, "--data.source=a.txt", "--data.val_source=b.txt", "--data.cache_dir=c")
        store = stores_in(printed)["train"]
        assert len(store.meta.shards) > 5
        tokenizer = Tokenizer.load(store.path / "tokenizer.json")
        assert store.read(0, len(store)).tolist() == [*tokenizer.encode(line), tokenizer.end_id]

    @pytest.mark.parametrize(
        ("name", "bad", "where"),
        [
            ("a.jsonl", b'{"text": "\\ud800"}\n', "line 61: text is not Unicode text"),
            ("a.jsonl", b'{"text": \n', "line 61: not JSON: "),
            (
                "a.jsonl",
                b'{"txet": "a"}\n',
                "line 61: no field 'text', only ['txet']; choose one with --data.text_field",
            ),
            ("a.txt", b"<|endoftext|>\ncaf\xe9", "line 62: not UTF-8: byte "),
        ],
    )
    def test_bad_documents_are_reported_or_counted_once(
        self, lit_lm: Command, tmp_path: Path, name: str, bad: bytes, where: str
    ) -> None:
        texts = [f"Story number {number}." for number in range(60)]
        if name == "a.txt":
            content = (END_OF_TEXT + "\n").join(texts).encode() + b"\n"
        else:
            content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
        (tmp_path / name).write_bytes(content + bad)
        arguments = ["prepare", *OPTIONS, f"--data.source={name}", "--data.cache_dir=cache"]
        message = lit_lm(*arguments, fails=True)
        assert f"{tmp_path / name}, {where}" in message
        assert "`lit-lm prepare --on_bad_document skip` skips such documents" in message
        printed = lit_lm(*arguments, "--on_bad_document=skip")
        stores = stores_in(printed)
        assert sorted(documents_in(stores["train"]) + documents_in(stores["validation"])) == sorted(texts)
        assert [store.meta.skipped for store in stores.values()] == [1, 0]
        assert printed.count(", 1 bad documents skipped") == 1
        assert "val/loss" in lit_lm(
            "fit", *OPTIONS, f"--data.source={name}", "--data.cache_dir=cache", "--trainer.max_steps=1"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part=0/3"], "part is '0/3'; it must be i/n with i from 1 to n"),
        (["--part=4/3"], "part is '4/3'"),
        (["--part=one"], "part is 'one'"),
        (["--part=1/2", "--merge"], "--merge runs after all parts are written; pass either --part or --merge"),
        (["--part=1/2", "--output=out"], "--output needs all of one source; leave out --part"),
        (["--output=nothing://out"], "nothing://out cannot be reached: Protocol not known: nothing"),
        (["--data.source=s3://bucket/a.txt"], "s3://bucket/a.txt cannot be reached: Install s3fs to access S3"),
        (["--data.source=nothing://a.txt"], "nothing://a.txt cannot be reached"),
        (["--on_bad_document=maybe"], "on_bad_document"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str, lit_lm: Command, source: str) -> None:
    assert message in lit_lm("prepare", *OPTIONS, source, "--data.cache_dir=cache", *arguments, fails=True)


def test_all_sources_of_a_mixture_are_prepared(lit_lm: Command, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Some text of another kind. " * 50)
    mixture = f"--data.source={{{corpus}: 0.7, {tmp_path}/other.txt: 0.3}}"
    printed = lit_lm("prepare", *OPTIONS, mixture, "--data.cache_dir=cache")
    for name in (corpus, tmp_path / "other.txt"):
        for split in ("train", "validation"):
            assert f"{split} data of {name}: " in printed
    assert "prepare each source separately" in lit_lm("prepare", *OPTIONS, mixture, "--output=out", fails=True)
