"""What goes in comes out; a store is either whole or not there; of many writers one writes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from lit_lm.data.token_store import StoreMeta, open_or_write_store
from lit_lm.data.tokenize import Chunk


def chunk(*ids: int) -> Chunk:
    return Chunk(np.array(ids, dtype=np.int64), documents=1, bytes=len(ids), characters=len(ids))


def untouched() -> Iterator[Chunk]:
    pytest.fail("the chunks were read")
    yield chunk(1)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "num_bytes"), [(300, "<u2", 2), (2**16, "<u2", 2), (2**16 + 1, "<u4", 4), (2**20, "<u4", 4)]
)
def test_ids_come_back_in_the_smallest_type_that_holds_the_vocabulary(
    tmp_path: Path, vocab_size: int, dtype: str, num_bytes: int
) -> None:
    last = vocab_size - 1
    store = open_or_write_store(tmp_path / "store", [chunk(0, 5, last), chunk(), chunk(last, 7)], vocab_size)
    assert len(store) == 5
    assert store.read(0, 5).tolist() == [0, 5, last, last, 7]
    assert store.read(2, 4).tolist() == [last, last]
    assert store.read(3, 3).tolist() == []
    assert store.read(0, 5).dtype == np.int64
    assert store.meta.dtype == dtype
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 5 * num_bytes


def test_ids_lie_little_endian_one_after_the_other(tmp_path: Path) -> None:
    open_or_write_store(tmp_path / "store", [chunk(1, 256), chunk(515)], 1000)
    assert (tmp_path / "store" / "tokens.bin").read_bytes() == bytes([1, 0, 0, 1, 3, 2])


def test_meta_sums_up_the_chunks(tmp_path: Path) -> None:
    chunks = [
        Chunk(np.arange(6), documents=2, bytes=20, characters=18),
        Chunk(np.arange(4), documents=1, bytes=15, characters=15),
    ]
    meta = open_or_write_store(tmp_path / "store", chunks, 300).meta
    digest = hashlib.sha256((tmp_path / "store" / "tokens.bin").read_bytes()).hexdigest()
    assert meta == StoreMeta(dtype="<u2", tokens=10, documents=3, bytes=35, sha256=digest)
    assert meta.bytes_per_token == 3.5


@pytest.mark.parametrize(("bad", "named"), [(300, 300), (65_536 + 5, 65_541), (-1, -1)])
def test_ids_outside_the_vocabulary_are_refused_and_leave_nothing(tmp_path: Path, bad: int, named: int) -> None:
    message = rf"^the data has the token id {named}, outside the tokenizer's 0 to 299$"
    with pytest.raises(ValueError, match=message):
        open_or_write_store(tmp_path / "store", [chunk(1, 2), chunk(3, bad)], 300)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_nothing_and_the_next_attempt_succeeds(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def failing() -> Iterator[Chunk]:
        yield chunk(1, 2, 3)
        raise failure

    with pytest.raises(failure):
        open_or_write_store(tmp_path / "store", failing(), 300)
    assert leftovers(tmp_path) == []
    assert open_or_write_store(tmp_path / "store", [chunk(4)], 300).read(0, 1).tolist() == [4]


def test_a_store_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    def watching() -> Iterator[Chunk]:
        yield chunk(1)
        assert not (tmp_path / "store").exists()
        yield chunk(2)

    assert len(open_or_write_store(tmp_path / "store", watching(), 300)) == 2
    assert leftovers(tmp_path) == ["store"]


def test_an_existing_store_is_opened_and_not_rewritten(tmp_path: Path) -> None:
    open_or_write_store(tmp_path / "store", [chunk(1, 2)], 300)
    assert open_or_write_store(tmp_path / "store", untouched(), 300).read(0, 2).tolist() == [1, 2]


def test_missing_folders_above_a_store_are_made(tmp_path: Path) -> None:
    assert len(open_or_write_store(tmp_path / "a" / "b" / "store", [chunk(1)], 300)) == 1


def test_of_several_writers_at_once_one_writes_and_all_read_the_same(tmp_path: Path) -> None:
    ready, writers, contents = Barrier(4), [], []

    def chunks(number: int) -> Iterator[Chunk]:
        writers.append(number)
        yield chunk(number, number)

    def open_store(number: int) -> None:
        ready.wait()
        contents.append(open_or_write_store(tmp_path / "store", chunks(number), 300).read(0, 2).tolist())

    threads = [Thread(target=open_store, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writers) == 1
    assert contents == [[writers[0]] * 2] * 4


@pytest.mark.parametrize("chunks", [[], [Chunk(np.array([], dtype=np.int64), documents=0, bytes=0, characters=0)]])
def test_no_text_at_all_is_refused_and_leaves_nothing(tmp_path: Path, chunks: list[Chunk]) -> None:
    with pytest.raises(ValueError, match=r"^the source has no text$"):
        open_or_write_store(tmp_path / "store", chunks, 300)
    assert leftovers(tmp_path) == []
