"""Reading ids from .npy and .bin files in ranges, and refusing other content."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_lm.data import ids
from lit_lm.data.filesystem import find_files
from lit_lm.data.ids import IdRange, id_ranges, part_of_ids


def ranges_of(pattern: object, bin_dtype: str = "uint16") -> list[IdRange]:
    return id_ranges(find_files(str(pattern)), bin_dtype)


def ids_in(ranges: list[IdRange]) -> list[int]:
    return [int(token) for part in ranges for block in part.blocks() for token in block]


@pytest.mark.parametrize("dtype", ["int32", "uint16", "int64", ">u2"])
@pytest.mark.parametrize("block_ids", [3, 2**20])
@pytest.mark.parametrize("shard_ids", [1, 3, 2**20])
def test_ids_of_npy_are_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, block_ids: int, shard_ids: int
) -> None:
    monkeypatch.setattr(ids, "BLOCK_IDS", block_ids)
    monkeypatch.setattr(ids, "SHARD_IDS", shard_ids)
    np.save(tmp_path / "a.npy", np.array([5, 0, 30_000, 7], dtype=dtype))
    ranges = ranges_of(tmp_path / "a.npy")
    assert ids_in(ranges) == ids_in(ranges) == [5, 0, 30_000, 7]
    blocks = [block for part in ranges for block in part.blocks()]
    assert all(block.dtype == np.int64 and len(block) <= min(block_ids, shard_ids) for block in blocks)


@pytest.mark.parametrize(("dtype", "largest"), [("uint16", 2**16 - 1), ("uint32", 2**32 - 1), ("int32", 2**31 - 1)])
def test_ids_of_bin_are_read_with_bin_dtype(tmp_path: Path, dtype: str, largest: int) -> None:
    np.array([5, 0, largest, 7], dtype=dtype).tofile(tmp_path / "a.bin")
    assert ids_in(ranges_of(tmp_path / "a.bin", dtype)) == [5, 0, largest, 7]


def llm_c(magic: int, version: int, ids: Any, declared: int | None = None) -> bytes:
    """A file of ids as llm.c writes it: a header of 256 int32, then uint16 or uint32."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if declared is None else declared
    return header.tobytes() + np.array(ids, "<u2" if magic == 20240520 else "<u4").tobytes()


@pytest.mark.parametrize(("magic", "version", "largest"), [(20240520, 1, 50_256), (20240801, 7, 128_001)])
@pytest.mark.parametrize("bin_dtype", ["uint16", "int32"])
def test_the_header_of_llm_c_decides_the_type(
    tmp_path: Path, magic: int, version: int, largest: int, bin_dtype: str
) -> None:
    ids = [5, 0, largest, 7] * 30
    (tmp_path / "a.bin").write_bytes(llm_c(magic, version, ids))
    assert ids_in(ranges_of(tmp_path / "a.bin", bin_dtype)) == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (llm_c(20240520, 1, [1, 2], declared=1), "its header declares 1 ids of uint16, but 4 bytes follow it"),
        (llm_c(20240801, 7, [1, 2], declared=3), "it has only 2 of its 3 ids"),
        (llm_c(20240520, 1, [1, 2], declared=-1), "its header declares -1 ids of uint16, but 4 bytes follow it"),
        (llm_c(20240520, 1, [1, 2])[:-1], "it has only 1 of its 2 ids"),
        (llm_c(20240520, 1, [])[:600], "its header of llm.c is cut short"),
    ],
)
def test_a_header_of_llm_c_that_does_not_fit_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.bin is not a file of token ids: {message}$"):
        ranges_of(tmp_path / "a.bin")


IDS = (np.arange(10_000) * 7919) % 50_257


@pytest.mark.parametrize(
    ("ids", "written", "read", "message"),
    [
        (IDS, "uint32", "uint16", "seem to have 32 bits, not the 16 of uint16; pass --data.bin_dtype uint32"),
        (IDS + 60_000, "int32", "uint16", "seem to have 32 bits"),
        (IDS % 7, "int32", "uint16", "seem to have 32 bits"),
        (np.where(IDS % 9, IDS, -100), "int32", "uint16", "seem to have 32 bits"),
        (IDS[:40], "int32", "uint16", "seem to have 32 bits"),
        (IDS, "int64", "uint16", "seem to have 32 bits"),
        (IDS, "int64", "uint32", "seem to have 64 bits, not the 32 of uint32; save them as .npy"),
        (IDS, "uint16", "int32", "seem to have 16 bits, not the 32 of int32; pass --data.bin_dtype uint16"),
    ],
)
def test_ids_of_another_width_are_refused(tmp_path: Path, ids: Any, written: str, read: str, message: str) -> None:
    ids.astype(written).tofile(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=rf"a\.bin is not a file of token ids: its ids {message}"):
        ranges_of(tmp_path / "a.bin", read)


@pytest.mark.parametrize("vocab_size", [1, 2, 10, 65, 256, 50_257])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32"])
def test_ids_of_the_right_width_are_accepted_for_any_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, vocab_size, 10_000)
    ids.astype(dtype).tofile(tmp_path / "a.bin")
    assert ids_in(ranges_of(tmp_path / "a.bin", dtype)) == ids.tolist()


def test_a_glob_joins_files_of_ids(tmp_path: Path) -> None:
    np.array([3, 4], dtype="uint16").tofile(tmp_path / "b.bin")
    np.save(tmp_path / "a.npy", np.array([1, 2]))
    assert ids_in(ranges_of(tmp_path / "*")) == [1, 2, 3, 4]


@pytest.mark.parametrize("shard_ids", [1, 7, 100, 2**20])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_end_of_the_ids_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_ids: int, fraction: float
) -> None:
    monkeypatch.setattr(ids, "SHARD_IDS", shard_ids)
    np.save(tmp_path / "a.npy", np.arange(60))
    np.save(tmp_path / "b.npy", np.arange(60, 100))
    whole = ranges_of(tmp_path / "*.npy")
    train, validation = (ids_in(part_of_ids(whole, fraction, train=train)) for train in (True, False))
    assert len(validation) == 100 * fraction
    assert train + validation == list(range(100))


def test_a_pickle_in_npy_is_refused_without_loading_it(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "sprung").touch, ()

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a.npy is not a file of token ids: .*Python objects"):
        ranges_of(tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
def test_an_empty_file_of_ids_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name} is empty$"):
        ranges_of(tmp_path / name)


def test_compressed_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin.gz").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"a.bin.gz is compressed; decompress it"):
        ranges_of(tmp_path / "a.bin.gz")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.npy", b"junk"), ("a.npy", b"PK\x03\x04 an .npz under the wrong name"), ("a.bin", b"odd")],
    ids=ascii,
)
def test_a_file_without_ids_is_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not a file of token ids: "):
        ranges_of(tmp_path / name)


def test_a_truncated_npy_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a.npy is not a file of token ids: it has only 99 of its 100 ids"):
        ranges_of(tmp_path / "a.npy")


def test_bytes_after_the_array_of_npy_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    with open(tmp_path / "a.npy", "ab") as file:
        file.write(bytes(16))
    with pytest.raises(ValueError, match="its header declares 100 ids of int64, but 816 bytes follow it"):
        ranges_of(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("array", "content"),
    [
        (np.array([0.5]), r"float64 of shape \(1,\)"),
        (np.zeros((2, 3), dtype=int), r"int64 of shape \(2, 3\)"),
        (np.array(["a"]), r"<U1 of shape \(1,\)"),
        (np.array([True]), r"bool of shape \(1,\)"),
    ],
    ids=["floats", "a matrix", "strings", "booleans"],
)
def test_npy_that_is_not_a_1d_array_of_integers_is_refused(tmp_path: Path, array: Any, content: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(
        ValueError, match=rf"a.npy is not a file of token ids: it contains {content}, not a 1-D array of integers$"
    ):
        ranges_of(tmp_path / "a.npy")
