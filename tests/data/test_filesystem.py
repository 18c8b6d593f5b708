"""Finding files, and dividing their bytes into shards."""

import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
from helpers.web import web_server
from hypothesis import given
from hypothesis import strategies as st

from lit_lm.data import filesystem
from lit_lm.data.filesystem import File, address, find_files, sample, split_into_shards


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


def test_a_folder_has_the_files_of_its_subfolders_but_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/b/a.md", ".git/d.txt", "a/.e.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("One.")
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == names(f"{tmp_path}/in/") == ["a.md", "c.txt", "b.txt"]
    fs = fsspec.filesystem("memory")
    for name in ("/in_folder/b.txt", "/in_folder/a/c.txt"):
        fs.pipe_file(name, b"One.")
    assert names("memory://in_folder") == ["c.txt", "b.txt"]


@pytest.mark.parametrize("name", ["pipe.txt", "link.txt", "/dev/zero"])
def test_a_pipe_or_device_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"{name} is a pipe or device; save its content to a file, as"):
        find_files(str(tmp_path / name))
    assert names(tmp_path / "*.txt") == []


def test_the_home_folder_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^~nobody-here/a\.txt is in the home folder of an unknown user; write \./~nob"
    ):
        find_files("~nobody-here/a.txt")


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


def sample_of(folder: Path, *contents: bytes) -> str:
    for number, content in enumerate(contents):
        (folder / f"{number}.txt").write_bytes(content)
    return sample(find_files(f"{folder}/*.txt"))


@pytest.mark.parametrize("sizes", [[1], [100, 0, 100, 7], [2**20], [2**22 - 5, 3], [3] * 30])
def test_the_sample_of_small_files_changes_with_every_byte(tmp_path: Path, sizes: list[int]) -> None:
    contents = [bytes(size) for size in sizes]
    whole = sample_of(tmp_path, *contents)
    assert sample_of(tmp_path, *contents) == whole
    for number, size in enumerate(sizes):
        for at in {0, size // 2, size - 1} if size else ():
            changed = contents[number][:at] + b"x" + contents[number][at + 1 :]
            assert sample_of(tmp_path, *contents[:number], changed, *contents[number + 1 :]) != whole


def test_the_sample_of_large_files_reads_evenly_spaced_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "NUM_SAMPLES", 10)
    monkeypatch.setattr(filesystem, "SAMPLE_BYTES", 4)
    contents = [bytes(350), bytes(650)]
    whole = sample_of(tmp_path, *contents)
    joined = bytes(1000)
    for at in range(1000):
        changed = joined[:at] + b"x" + joined[at + 1 :]
        assert (sample_of(tmp_path, changed[:350], changed[350:]) != whole) == (at % 100 < 4)


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


@pytest.fixture
def server_address(tmp_path: Path) -> Iterator[str]:
    """A web server with the files of tmp_path."""

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None: ...

    with web_server(partial(Handler, directory=str(tmp_path))) as address:
        yield address


def content_of(file: File) -> bytes:
    with file.open() as opened:
        return opened.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_remote_file_can_be_read_in_a_worker_process(server_address: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat.", encoding="utf-8")
    (file,) = find_files(f"{server_address}/a.txt")
    assert content_of(file) == b"The cat."  # its file system has now been used here
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(content_of, (file,)) == b"The cat."


def test_a_file_whose_server_does_not_report_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("/unsized/a.txt", "/unsized/a.txt.gz"):
        fs.pipe_file(name, b"The cat.")
    original = type(fs).info
    monkeypatch.setattr(type(fs), "info", lambda *args, **options: original(*args, **options) | {"size": None})
    assert names("memory://unsized/a.txt.gz") == ["a.txt.gz"]
    with pytest.raises(ValueError, match=r"a\.txt cannot be searched: its server does not report its size; "):
        find_files("memory://unsized/a.txt")
