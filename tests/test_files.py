"""Atomic writes, digests, and the cache folder."""

import hashlib
import os
from pathlib import Path

import pytest

from lit_lm.files import cache_folder, digest, sha256, write_text, write_whole


def test_a_file_replaces_the_old_one_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    (tmp_path / ".a.txt.unfinished").write_text("left by a crash", encoding="utf-8")
    with write_whole(path) as file:
        file.write(b"new, ")
        assert path.read_text(encoding="utf-8") == "old"
        file.write("größer".encode())
    assert path.read_text(encoding="utf-8") == "new, größer"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path, error: BaseException) -> None:
    with write_whole(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_after_an_error_nothing_has_changed(tmp_path: Path, old: bytes | None, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(type(error)):
        write_half(path, error)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt'$"):
        write_half(tmp_path / "a.txt", OSError(28, "No space left on device"))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"No space left on device: .*link'$"):
        write_half(tmp_path / "link", OSError(28, "No space left on device"))
    with pytest.raises(FileNotFoundError, match=r"'another'$"):
        write_half(tmp_path / "a.txt", FileNotFoundError(2, "No such file", "another"))
    with pytest.raises(OSError, match=r"^a\.gz cannot be read: it is cut short$"):
        write_half(tmp_path / "a.txt", OSError("a.gz cannot be read: it is cut short"))


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.touch()
    link.symlink_to(target)
    write_text(link, "through the link")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "through the link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    os.close(reader)
    assert pipe.is_fifo()


def test_the_cache_folder_is_the_given_one_or_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/lit-lm")
    assert cache_folder("~/mine") == Path("/home/someone/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/lit-lm")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the specification: same as unset
    assert cache_folder() == Path("/home/someone/.cache/lit-lm")


def test_digests(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert digest("a", "b") == hashlib.sha256(b'["a", "b"]').hexdigest()
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("a", "b", "c")}) == 4
