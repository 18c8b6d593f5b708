"""Finding files, and dividing their bytes into shards."""

import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import filesystem
from lit_lm.data.filesystem import File, address, find_files, split_into_shards


def names(pattern: object) -> list[str]:
    return [Path(file.path).name for file in find_files(str(pattern))]


def test_a_file_name_with_brackets_takes_precedence_over_a_glob(tmp_path: Path) -> None:
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text("One.")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


def test_a_glob_finds_only_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()
    for name in ("c.txt", "a.txt", "b.txt/d.txt"):
        (tmp_path / name).write_text("One.")
    assert names(tmp_path / "*.txt") == ["a.txt", "c.txt"]
    assert names(tmp_path / "**" / "*.txt") == ["a.txt", "d.txt", "c.txt"]
    assert names(tmp_path / "*.jsonl") == names(tmp_path / "missing.txt") == []


def test_home_folders_and_relative_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("One.")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert names("~/a.txt") == names("a.txt") == ["a.txt"]
    assert address("a.txt") == address("~/a.txt") == str(tmp_path / "a.txt")
    assert address("s3://bucket/a.txt") == "s3://bucket/a.txt"


def test_a_remote_file_is_named_by_its_address() -> None:
    fsspec.filesystem("memory").pipe_file("/test_files/a.txt", b"One.")
    (file,) = find_files("memory://test_files/*.txt")
    assert (file.name, file.size) == ("memory:///test_files/a.txt", 4)
    with file.open() as content:
        assert content.read() == b"One."


@pytest.mark.parametrize(
    ("name", "suffix", "compression"),
    [("a.TXT", ".txt", None), ("a.b.txt.gz", ".txt", "gzip"), ("a.jsonl.ZST", ".jsonl", "zstd"), ("gz", "", None)],
)
def test_the_suffix_determines_content_and_compression(name: str, suffix: str, compression: str | None) -> None:
    file = File(fsspec.filesystem("file"), f"/some.folder/{name}", 1, "")
    assert (file.suffix, file.compression) == (suffix, compression)


def test_the_version_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    versions = set()
    for moment in (1, 2):
        path.write_text("One.")
        os.utime(path, ns=(0, moment * 10**9))
        versions.add(find_files(str(path))[0].version)
    assert len(versions) == 2


def test_line_numbers_start_at_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\nb\n" + b"x" * (2**20 - 5) + b"\n" + b"\n\nend")
    (file,) = find_files(str(tmp_path / "a.txt"))
    assert [file.line_at(offset) for offset in (0, 1, 2, 4, 2**20 - 1, 2**20, 2**20 + 1, 2**20 + 2)] == [
        1, 1, 2, 3, 3, 4, 5, 6,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 60))
def test_shards_are_equal_and_contain_every_byte_once_in_order(sizes: list[int], shard_bytes: int) -> None:
    fs = fsspec.filesystem("file")
    whole = [File(fs, f"/{number}.txt", size, "") for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "SHARD_BYTES", shard_bytes)
        divided = split_into_shards(whole)
    read = [(part.file, at) for shard in divided for part in shard for at in range(part.start, part.stop)]
    assert read == [(file, at) for file in whole for at in range(file.size)]
    lengths = [sum(part.stop - part.start for part in shard) for shard in divided]
    assert max(lengths) <= shard_bytes
    assert max(lengths) - min(lengths) <= 1
    assert {part.file for shard in divided for part in shard} == set(whole)


@pytest.mark.parametrize(
    ("place", "message"),
    [("nothing://a.txt", "nothing://a.txt cannot be reached: Protocol not known: nothing"),
     ("s3://bucket/a.txt", "s3://bucket/a.txt cannot be reached: Install s3fs to access S3")],
)  # fmt: skip
def test_an_unknown_protocol_or_a_missing_package_is_reported_in_one_line(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        find_files(place)
