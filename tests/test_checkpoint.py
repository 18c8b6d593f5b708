"""Checkpoints as files: whole or absent, found, refused."""

import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_lm.checkpoint import (
    checkpoints_in,
    keep_only,
    newest_good_checkpoint,
    point_to,
    read_checkpoint,
    write_checkpoint,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 5, 20):
        write_checkpoint({"global_step": step}, tmp_path / f"step_{step:08d}.ckpt")
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in checkpoints_in(folder)]


def test_the_digest_is_what_sha256sum_says(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "step_00000005.ckpt.sha256"], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "step_00000005.ckpt: OK\n"


def test_the_newest_comes_first_and_others_can_be_removed(folder: Path) -> None:
    assert steps(folder) == [20, 5, 1]
    (folder / ".step_00000021.ckpt.unfinished").write_bytes(b"left by a crash")
    keep_only(folder, {folder / "step_00000005.ckpt"})
    assert {path.name for path in folder.iterdir()} == {"step_00000005.ckpt", "step_00000005.ckpt.sha256"}


def test_a_failed_write_leaves_nothing_and_harms_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def fails(content: Any, file: Any) -> None:
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    for step in (20, 30):
        with pytest.raises(OSError, match="No space"):
            write_checkpoint({}, folder / f"step_{step:08d}.ckpt")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, empty, flip])
def test_damaged_ones_are_passed_over_and_named(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "step_00000020.ckpt")
    path, problems = newest_good_checkpoint(folder)
    assert path == folder / "step_00000005.ckpt"
    assert problems == [f"{folder}/step_00000020.ckpt is damaged: it does not match its digest"]


def test_without_its_digest_a_truncated_one_is_still_noticed(folder: Path) -> None:
    cut(folder / "step_00000020.ckpt")
    (folder / "step_00000020.ckpt.sha256").unlink()
    path, (problem,) = newest_good_checkpoint(folder)
    assert path == folder / "step_00000005.ckpt"
    assert "cannot be read as a checkpoint" in problem


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_good_checkpoint(tmp_path / "missing") == (None, [])


def test_a_link_moves_at_once_and_is_read_through(folder: Path, run_folder: Path) -> None:
    link = folder / "last.ckpt"
    for step in (5, 20):
        point_to(link, folder / f"step_{step:08d}.ckpt")
        assert torch.load(link)["global_step"] == step
    assert read_checkpoint(run_folder / "checkpoints" / "last.ckpt").step == 12


class Malice:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path: Path, plain_pickle: bool) -> None:
    evil, harmed = tmp_path / "evil.ckpt", tmp_path / "harmed"
    harmed.mkdir()
    content = {"global_step": 1, "state_dict": Malice(shutil.rmtree, str(harmed))}
    if plain_pickle:
        evil.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, evil)
    with pytest.raises(ValueError, match=r"evil\.ckpt (is refused: it would run shutil\.rmtree|cannot be read)"):
        read_checkpoint(evil)
    assert harmed.exists()


FOREIGN = {"class_path": "antigravity.Optimizer", "init_args": {}}
NESTED = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": ["antigravity.f"]}}


@pytest.mark.parametrize(
    ("part", "value"), [("optimizer", FOREIGN), ("schedule", NESTED), ("schedule", "antigravity.f")]
)
def test_a_name_from_elsewhere_is_not_imported(run_folder: Path, tmp_path: Path, part: str, value: Any) -> None:
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"][part] = value
    torch.save(content, tmp_path / "other.ckpt")
    checkpoint = read_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=rf"names antigravity\.\w+ in its {part}"):
        checkpoint.config(training=True)
    assert part not in checkpoint.config(training=False)["model"]
