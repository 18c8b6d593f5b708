"""Token stores: reading what was written, atomic shards, concurrent writers, fetching."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers.web import web_server
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import store_meta, token_store
from lit_lm.data.store_meta import ShardMeta, StoreMeta
from lit_lm.data.token_store import StoreWriter, TokenStore, check_once, fetch_store
from lit_lm.data.tokenize import Chunk


def chunk(*ids: int) -> Chunk:
    return Chunk(np.array(ids, dtype=np.int64), documents=1, bytes=len(ids), characters=len(ids))


def writer_to(
    path: Path, num_shards: int = 1, vocab_size: int = 300, source: str = "s", tokenizer: str = "t"
) -> StoreWriter:
    """A writer with a stub of a tokenizer."""
    stub: Any = SimpleNamespace(vocab_size=vocab_size, fingerprint=tokenizer, to_json=lambda: "{}")
    return StoreWriter(path, source, stub, num_shards)


def store_of(path: Path, *shards: Iterable[Chunk], vocab_size: int = 300) -> TokenStore:
    writer = writer_to(path, len(shards), vocab_size)
    for number, chunks in enumerate(shards):
        writer.write(number, chunks, lambda: 0)
    return writer.finish()


def untouched() -> Iterator[Chunk]:
    pytest.fail("the chunks were read")
    yield chunk(1)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "num_bytes"), [(300, "<u2", 2), (2**16, "<u2", 2), (2**16 + 1, "<u4", 4), (2**20, "<u4", 4)]
)
def test_ids_are_stored_in_the_smallest_type_for_the_vocabulary(
    tmp_path: Path, vocab_size: int, dtype: str, num_bytes: int
) -> None:
    last = vocab_size - 1
    store = store_of(tmp_path, [chunk(0, 5, last), chunk(), chunk(last, 7)], vocab_size=vocab_size)
    assert len(store) == 5
    assert store.read(0, 5).tolist() == [0, 5, last, last, 7]
    assert store.read(0, 5).dtype == np.int64
    assert store.meta.dtype == dtype
    assert (tmp_path / "tokens-00000.bin").stat().st_size == 5 * num_bytes


def test_ids_are_stored_consecutively_in_little_endian(tmp_path: Path) -> None:
    store_of(tmp_path, [chunk(1, 256), chunk(515)], vocab_size=1000)
    assert (tmp_path / "tokens-00000.bin").read_bytes() == bytes([1, 0, 0, 1, 3, 2])


@given(st.lists(st.lists(st.integers(0, 299), max_size=5), min_size=1, max_size=6).filter(any), st.integers(1, 9))
def test_reading_crosses_shard_boundaries(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], size: int
) -> None:
    store = store_of(tmp_path_factory.mktemp("store"), *([chunk(*ids)] for ids in shards))
    ids = [i for shard in shards for i in shard]
    for start in range(len(ids) + 1):
        for stop in range(start, len(ids) + 3):
            assert store.read(start, stop).tolist() == ids[start:stop]
    blocks = list(store.blocks(size))
    assert np.concatenate(blocks).tolist() == ids
    assert all(len(block) == size for block in blocks[:-1])
    assert pickle.loads(pickle.dumps(store)).read(0, len(ids)).tolist() == ids


def test_meta_has_the_sums_over_chunks_and_shards(tmp_path: Path) -> None:
    writer = writer_to(tmp_path, 2)
    writer.write(0, [Chunk(np.arange(6), 2, 20, 18), Chunk(np.arange(4), 1, 15, 15)], lambda: 3)
    writer.write(1, [Chunk(np.arange(2), 1, 5, 4)], lambda: 1)
    meta = writer.finish().meta
    digests = [hashlib.sha256((tmp_path / f"tokens-0000{n}.bin").read_bytes()).hexdigest() for n in (0, 1)]
    assert meta.shards == (
        ShardMeta(10, 3, 35, 33, 3, digests[0], "s", "t"),
        ShardMeta(2, 1, 5, 4, 1, digests[1], "s", "t"),
    )
    assert (meta.tokens, meta.documents, meta.bytes, meta.characters, meta.skipped) == (12, 4, 40, 37, 4)
    assert meta.bytes_per_token == 40 / 12
    assert StoreMeta.from_json(meta.to_json()) == meta
    assert meta.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


@pytest.mark.parametrize(("bad", "named"), [(300, 300), (65_536 + 5, 65_541), (-1, -1)])
def test_ids_outside_the_vocabulary_are_refused_and_leave_no_files(tmp_path: Path, bad: int, named: int) -> None:
    message = rf"^the data contains token id {named}; the tokenizer has ids 0 to 299$"
    with pytest.raises(ValueError, match=message):
        store_of(tmp_path, [chunk(1, 2), chunk(3, bad)])
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_no_files_and_can_be_repeated(tmp_path: Path, failure: type[BaseException]) -> None:
    def failing() -> Iterator[Chunk]:
        yield chunk(1, 2, 3)
        raise failure

    with pytest.raises(failure):
        store_of(tmp_path, [chunk(7)], failing())
    assert files_in(tmp_path) == ["tokens-00000.bin", "tokens-00000.json"]
    assert writer_to(tmp_path, 2).missing() == [1]
    assert store_of(tmp_path, untouched(), [chunk(4)]).read(0, 2).tolist() == [7, 4]


@pytest.mark.parametrize("left", [".tokens-00001.bin.unfinished", "tokens-00001.bin", ".tokens-00001.json.unfinished"])
def test_files_left_by_a_killed_writer_are_replaced(tmp_path: Path, left: str) -> None:
    store_of(tmp_path / "whole", [chunk(1)], [chunk(2, 3)])
    writer = writer_to(tmp_path / "killed", 2)
    writer.write(0, [chunk(1)], lambda: 0)
    (tmp_path / "killed" / left).write_bytes(b"something longer than the shard")
    assert writer.missing() == [1]
    store_of(tmp_path / "killed", untouched(), [chunk(2, 3)])
    for name in files_in(tmp_path / "whole"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_files_appear_only_when_complete(tmp_path: Path) -> None:
    def inspecting() -> Iterator[Chunk]:
        yield chunk(1)
        assert not list(tmp_path.glob("*.bin"))
        yield chunk(2)

    writer = writer_to(tmp_path)
    writer.write(0, inspecting(), lambda: 0)
    assert files_in(tmp_path) == ["tokens-00000.bin", "tokens-00000.json"]
    assert len(writer.finish()) == 2
    assert files_in(tmp_path) == ["meta.json", "tokenizer.json", "tokens-00000.bin", "tokens-00000.json"]


def test_an_existing_shard_is_not_rewritten(tmp_path: Path) -> None:
    store_of(tmp_path / "a" / "b", [chunk(1, 2)])
    assert store_of(tmp_path / "a" / "b", untouched()).read(0, 2).tolist() == [1, 2]


@pytest.mark.parametrize("other", [{"source": "another"}, {"tokenizer": "another"}])
def test_a_shard_of_another_source_or_tokenizer_counts_as_missing(tmp_path: Path, other: dict[str, Any]) -> None:
    store_of(tmp_path, [chunk(1, 2)])
    writer = writer_to(tmp_path, **other)
    assert writer.missing() == [0]
    with pytest.raises(ValueError, match=r"^1 of 1 shards are missing in "):
        writer.finish()


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_missing_and_damaged_shards_are_found(tmp_path: Path) -> None:
    writer = writer_to(tmp_path, 6)
    for number in range(6):
        writer.write(number, [chunk(number)], lambda: 0)
    (tmp_path / "tokens-00000.bin").unlink()
    (tmp_path / "tokens-00001.json").unlink()
    (tmp_path / "tokens-00002.bin").write_bytes(b"")
    (tmp_path / "tokens-00003.json").write_text('{"tokens": 1')
    (tmp_path / "tokens-00004.bin").write_bytes(flip((tmp_path / "tokens-00004.bin").read_bytes()))
    assert writer.missing() == [0, 1, 2, 3]
    for number in range(4):
        writer.write(number, [chunk(number)], lambda: 0)
    assert writer.finish().damaged() == [4]


def test_concurrent_writers_write_each_shard_once_and_finish_the_same_store(tmp_path: Path) -> None:
    ready, writers, contents = Barrier(4), [], []

    def chunks(number: int) -> Iterator[Chunk]:
        writers.append(number)
        yield chunk(number, number)

    def write(number: int) -> None:
        ready.wait()
        contents.append(store_of(tmp_path, chunks(number), chunks(number)).read(0, 4).tolist())

    threads = [Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writers) == 2
    assert len(contents) == 4
    assert {tuple(content) for content in contents} in [{(a, a, b, b)} for a, b in [writers, writers[::-1]]]
    assert not list(tmp_path.glob(".*.unfinished"))


@pytest.mark.parametrize("shards", [[[]], [[chunk()]], [[], [chunk()]], []])
def test_a_source_without_text_is_refused_and_leaves_no_files(tmp_path: Path, shards: list[list[Chunk]]) -> None:
    with pytest.raises(ValueError, match=r"^the source has no text$"):
        store_of(tmp_path / "store", *shards)
    assert files_in(tmp_path) == []


WRONG = [None, True, 1.5, -1, 2**63, 10**400, "", "x", "\ud800", ">u2", "O", [], [[]], {}, {"a": 1}]
SHARD_FIELDS = ["tokens", "documents", "bytes", "characters", "skipped", "sha256", "source", "tokenizer"]
PLACES = [[], ["format"], ["dtype"], ["shards"], ["shards", 0], *(["shards", 0, name] for name in SHARD_FIELDS)]
MUTATIONS = [
    (place, wrong)
    for place in PLACES
    for wrong in WRONG
    if not (place[-1:] in (["source"], ["tokenizer"]) and isinstance(wrong, str))
]


def description_of(folder: Path) -> Any:
    """The description of a store of two shards in a new folder."""
    store_of(folder, [chunk(1, 2)], [chunk(3)])
    return json.loads((folder / "meta.json").read_text())


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store whose description each test overwrites, and its true description."""
    folder = tmp_path_factory.mktemp("described")
    return folder, json.dumps(description_of(folder))


class TestDescription:
    def refused(self, folder: Path, text: str) -> str:
        """The error of opening a store with this description."""
        (folder / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"not a token store|is missing or damaged") as error:
            TokenStore(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600
        return str(error.value)

    @pytest.mark.parametrize(("place", "wrong"), MUTATIONS, ids=lambda value: ascii(value)[:40])
    def test_a_wrong_value_is_refused(self, described: tuple[Path, str], place: list[Any], wrong: Any) -> None:
        content = {"whole": json.loads(described[1])}
        at: Any = content
        *path, last = ["whole", *place]
        for name in path:
            at = at[name]
        at[last] = wrong
        self.refused(described[0], json.dumps(content["whole"]))

    @pytest.mark.parametrize("name", ["format", "dtype", "shards", *SHARD_FIELDS])
    def test_a_missing_or_renamed_field_is_refused(self, described: tuple[Path, str], name: str) -> None:
        for renamed in (False, True):
            content = json.loads(described[1])
            holder = content["shards"][1] if name in SHARD_FIELDS else content
            value = holder.pop(name)
            holder.update({"other": value} if renamed else {})
            self.refused(described[0], json.dumps(content))

    @pytest.mark.parametrize(
        ("field", "value"),
        [("tokens", 1), ("tokens", 2**40), ("bytes", 0), ("characters", 999), ("source", "other")],
    )
    def test_values_that_do_not_fit_the_others_are_refused(
        self, described: tuple[Path, str], field: str, value: Any
    ) -> None:
        content = json.loads(described[1])
        content["shards"][0][field] = value
        content["shards"][1].update({"bytes": 0, "characters": 0} if value == 0 else {})
        self.refused(described[0], json.dumps(content))

    @pytest.mark.parametrize(
        "text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN", '"\\ud800"', "\0"], ids=lambda t: t[:8]
    )
    def test_text_that_is_no_description_is_refused(self, described: tuple[Path, str], text: str) -> None:
        assert "not a token store of this version" in self.refused(described[0], text)

    def test_bytes_that_are_not_utf8_are_refused(self, tmp_path: Path) -> None:
        description_of(tmp_path)
        (tmp_path / "meta.json").write_bytes(b"\xff")
        with pytest.raises(ValueError, match=r"meta\.json is not UTF-8: "):
            TokenStore(tmp_path)

    @pytest.mark.parametrize("name", ["meta.json", "tokens-00000.bin"])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
    def test_what_is_not_a_file_is_refused(self, tmp_path: Path, name: str, kind: str) -> None:
        description_of(tmp_path)
        (tmp_path / name).unlink()
        if kind != "missing":
            {"pipe": os.mkfifo, "folder": os.mkdir}[kind](tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} is missing or "):
            TokenStore(tmp_path)

    def test_a_description_that_is_too_large_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        description_of(tmp_path)
        monkeypatch.setattr(store_meta, "MAX_DESCRIPTION_BYTES", 100)
        with pytest.raises(ValueError, match=r"meta\.json is too large: \d+ bytes$"):
            TokenStore(tmp_path)

    def test_a_description_of_a_shard_with_a_wrong_value_counts_as_missing(self, tmp_path: Path) -> None:
        description_of(tmp_path)
        shard = json.loads((tmp_path / "tokens-00000.json").read_text())
        for text in (json.dumps(shard | {"tokens": 2.0}), "[" * 100_000):
            (tmp_path / "tokens-00000.json").write_text(text)
            assert writer_to(tmp_path, 2).missing() == [0]


class TestCheckOnce:
    def check(self, store: TokenStore, vocab_size: int, folder: Path) -> None:
        stub: Any = SimpleNamespace(vocab_size=vocab_size, fingerprint=f"t{vocab_size}", end_id=0)
        check_once(store, stub, folder)

    def test_all_ids_are_checked_until_they_were_valid(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_of(tmp_path / "store", [chunk(1, 0)], [chunk(250, 0)])
        with pytest.raises(ValueError, match=r"contains token id 250; the tokenizer has ids 0 to 249$"):
            self.check(store, 250, tmp_path / "checked")
        self.check(store, 251, tmp_path / "checked")
        with monkeypatch.context() as patch:
            patch.setattr(TokenStore, "blocks", lambda self: pytest.fail("the ids were read again"))
            self.check(store, 251, tmp_path / "checked")
        tokens = store.path / "tokens-00001.bin"
        tokens.write_bytes(np.array([299, 0], "<u2").tobytes())
        os.utime(tokens, ns=(0, 0))
        with pytest.raises(ValueError, match="contains token id 299"):
            self.check(TokenStore(store.path), 251, tmp_path / "checked")

    def test_more_documents_than_ends_are_refused(self, tmp_path: Path) -> None:
        store = store_of(tmp_path / "store", [chunk(1, 0), chunk(2)])
        with pytest.raises(ValueError, match="its description has 2 documents, but its tokens have 1"):
            self.check(store, 300, tmp_path / "checked")

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        self.check(store_of(tmp_path / "store", [chunk(1, 0)]), 300, tmp_path / "file" / "checked")


def test_a_finished_store_is_opened_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_of(tmp_path, [chunk(1, 2)])
    monkeypatch.setattr(token_store, "FileLock", lambda _: pytest.fail("a lock file is written"))
    monkeypatch.setattr(token_store, "write_text", lambda *_: pytest.fail("a file is written"))
    assert len(writer_to(tmp_path).finish()) == 2


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A store of three shards at an http address: the address, the folder, the names of the requested files."""
    store_of(tmp_path / "served" / "store", [chunk(1, 2)], [], [chunk(3)])
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            if self.command == "GET":
                requests.append(Path(self.path).name)

        def log_error(self, *_: object) -> None: ...

    with web_server(partial(Handler, directory=str(tmp_path / "served"))) as address:
        yield f"{address}/store", tmp_path / "served" / "store", requests


class TestFetch:
    def test_a_store_can_be_fetched_from_any_file_system(self, tmp_path: Path) -> None:
        store_of(tmp_path / "here", [chunk(1, 2)], [], [chunk(3)])
        fs = fsspec.filesystem("memory")
        fs.put(f"{tmp_path}/here/", "/fetched/", recursive=True)
        store = fetch_store("memory://fetched", tmp_path / "cache")
        assert store.read(0, 3).tolist() == [1, 2, 3]
        assert store.meta == TokenStore(tmp_path / "here").meta

    def test_each_shard_is_fetched_once(self, tmp_path: Path, served: tuple[str, Path, list[str]]) -> None:
        address, folder, requests = served
        shutil.move(folder / "tokens-00002.bin", tmp_path / "elsewhere")
        with pytest.raises(OSError, match=rf"^{address} cannot be fetched: {address}/tokens-00002\.bin$"):
            fetch_store(address, tmp_path / "cache")
        shutil.move(tmp_path / "elsewhere", folder / "tokens-00002.bin")
        del requests[:]
        assert fetch_store(address, tmp_path / "cache").read(0, 3).tolist() == [1, 2, 3]
        assert not {"tokens-00000.bin", "tokens-00001.bin"} & set(requests)
        assert "tokens-00002.bin" in requests
        del requests[:]
        store = fetch_store(address, tmp_path / "cache")
        assert store.read(0, 3).tolist() == [1, 2, 3]
        assert set(requests) == {"meta.json"}
        (store.path / "tokens-00000.bin").unlink()
        (store.path / "tokens-00001.bin").write_bytes(b"")
        assert fetch_store(address, tmp_path / "cache").read(0, 3).tolist() == [1, 2, 3]

    @pytest.mark.parametrize("damage", [flip, lambda content: content[:-1], lambda content: b""])
    def test_a_damaged_shard_is_reported_and_not_kept(
        self, tmp_path: Path, served: tuple[str, Path, list[str]], damage: Any
    ) -> None:
        address, folder, _ = served
        whole = (folder / "tokens-00002.bin").read_bytes()
        (folder / "tokens-00002.bin").write_bytes(damage(whole))
        with pytest.raises(ValueError, match=rf"^{address}/tokens-00002.bin is damaged: it does not match its digest$"):
            fetch_store(address, tmp_path / "cache")
        (folder / "tokens-00002.bin").write_bytes(whole)
        assert fetch_store(address, tmp_path / "cache").read(0, 3).tolist() == [1, 2, 3]

    @pytest.mark.parametrize("content", ["", "[]", '{"dtype": "<u2"}', '{"dtype": "<u2", "shards": [{}]}'])
    def test_an_invalid_description_is_reported(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "meta.json").write_text(content)
        with pytest.raises((ValueError, OSError)):
            fetch_store(f"file://{tmp_path}", tmp_path / "cache")

    def test_a_fetched_store_is_opened_without_writing(
        self, tmp_path: Path, served: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch_store(served[0], tmp_path / "cache")
        monkeypatch.setattr(token_store, "FileLock", lambda _: pytest.fail("a lock file is written"))
        assert len(fetch_store(served[0], tmp_path / "cache")) == 3

    def test_a_shard_with_more_bytes_than_described_is_not_copied(self, tmp_path: Path) -> None:
        store_of(tmp_path / "here", [chunk(1, 2)])
        (tmp_path / "here" / "tokens-00000.bin").write_bytes(bytes(2**22))
        fs = fsspec.filesystem("memory")
        fs.put(f"{tmp_path}/here/", "/endless/", recursive=True)
        with pytest.raises(ValueError, match=r"tokens-00000\.bin is damaged"):
            fetch_store("memory://endless", tmp_path / "cache")

    def test_an_address_without_a_server_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"^http://127\.0\.0\.1:9/store cannot be fetched: "):
            fetch_store("http://127.0.0.1:9/store", tmp_path / "cache")


def test_a_store_of_many_shards_is_opened_without_looking_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "CHECKED_SHARDS", 4)
    store_of(tmp_path, *([chunk(1, number)] for number in range(12)))
    looked_at = []
    original = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        looked_at.append(Path(path).name)
        return original(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        store = TokenStore(tmp_path)
    assert {name for name in looked_at if "tokens-" in name} == {f"tokens-{number:05d}.bin" for number in (0, 3, 6, 9)}
    (tmp_path / "tokens-00001.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokens-00001\.bin is missing or damaged"):
        store.read(2, 4)
    (tmp_path / "tokens-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"tokens-00001\.bin is missing or damaged"):
        TokenStore(tmp_path)


@pytest.mark.parametrize("name", ["meta.json", "tokens-00000.bin"])
def test_a_link_out_of_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = store_of(tmp_path / "store", [chunk(1, 2, 3)])
    secret = tmp_path / "secret"
    (store.path / name).rename(secret)
    (store.path / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"{name} is a link out of the store"):
        TokenStore(store.path)
    (tmp_path / "link").symlink_to(store.path)
    (store.path / name).unlink()
    secret.rename(store.path / name)
    assert len(TokenStore(tmp_path / "link")) == len(store)
