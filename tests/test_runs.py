"""Run folders: versions, checkpoints and links. Finding checkpoints by name: tests/cli/test_generate.py."""

from pathlib import Path

import pytest

from lit_lm import runs
from lit_lm.runs import checkpoints_in, find_checkpoint, keep_only, new_version, point_to, run_folder, versions


def test_versions_are_ordered_by_number_and_other_folders_are_ignored(tmp_path: Path) -> None:
    for name in ("version_9", "version_10", "version_0", "version_x", "version_", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in versions(tmp_path)] == ["version_10", "version_9", "version_0"]
    assert versions(tmp_path / "missing") == []


def test_each_new_version_has_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "run" / "version_7").mkdir(parents=True)
    assert new_version(tmp_path / "run") == tmp_path / "run" / "version_8"
    assert new_version(tmp_path / "new" / "run") == tmp_path / "new" / "run" / "version_0"
    assert (tmp_path / "new" / "run" / "version_0").is_dir()


def test_two_processes_never_get_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "versions", lambda run: [])  # as seen before the other process made its folder
    assert [new_version(tmp_path).name for _ in range(3)] == ["version_0", "version_1", "version_2"]


def test_files_of_other_callbacks_are_neither_listed_nor_removed(tmp_path: Path) -> None:
    others = {"step_step=5.ckpt", "epoch=0-step=5.ckpt", "step_5.ckpt", "step_00000005.ckpt.bak", "notes.txt"}
    for name in {*others, "step_00000005.ckpt", "step_00000012.ckpt"}:
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step_00000012.ckpt", "step_00000005.ckpt"]
    keep_only(tmp_path, {tmp_path / "step_00000012.ckpt"})
    assert {path.name for path in tmp_path.iterdir()} == {*others, "step_00000012.ckpt"}


def test_a_checkpoint_knows_the_folder_of_its_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "version_0" / "checkpoints" / "step_00000005.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "link.ckpt").symlink_to(checkpoint)
    assert run_folder(checkpoint) == run_folder(tmp_path / "link.ckpt") == (tmp_path / "version_0").resolve()
    assert run_folder(tmp_path / "moved.ckpt") == tmp_path.resolve()


def test_where_links_are_not_supported_the_checkpoint_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(self: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", unsupported)
    for content in ("first", "second"):
        (tmp_path / f"{content}.ckpt").write_text(content, encoding="utf-8")
        point_to(tmp_path / "last.ckpt", tmp_path / f"{content}.ckpt")
        assert (tmp_path / "last.ckpt").read_text(encoding="utf-8") == content
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [("nowhere.ckpt", None, "there is no checkpoint at nowhere.ckpt"),
     ("best", None, "there is no checkpoint in logs; train a model with lit-lm fit, or pass --ckpt_path"),
     ("last", "mine", "there is no checkpoint in logs/mine; "),
     (".", None, "there is no checkpoint in .; "),
     ("a.ckpt", "mine", "ckpt_path a.ckpt already names a run; leave out name, or set ckpt_path to best or last")],
)  # fmt: skip
def test_a_missing_checkpoint_is_reported(
    where: str, name: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        find_checkpoint(where, name)
    assert str(error.value).startswith(message)
