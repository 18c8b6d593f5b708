"""Run folders, and how to find their checkpoints: the best, the last, the newest readable one.

A run is a folder in `logs/`, with a folder `version_<n>` for each time it was started from scratch. Its checkpoints are
`checkpoints/step_<n>.ckpt`, with links `best.ckpt` and `last.ckpt`.
"""

import re
import shutil
from pathlib import Path

from lit_lm.checkpoint import Checkpoint, digest_file, read_checkpoint
from lit_lm.files import UNFINISHED, unfinished_path

LOGS = Path("logs")
"""Folder of all runs."""

STEP = re.compile(r"step_\d{8,}\.ckpt")
"""File names of a run's checkpoints; other callbacks may write others to the same folder."""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [path for path in folder.glob("step_*.ckpt") if STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step of one of the `checkpoints_in` a folder."""
    return int(checkpoint.stem.removeprefix("step_"))


def run_folder(checkpoint: Path) -> Path:
    """The version folder of a checkpoint's run, or the checkpoint's own folder if it was moved."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def model_name(checkpoint: Path) -> str:
    """Name of a checkpoint's run, or of its file if it was moved."""
    folder = checkpoint.resolve().parent
    return folder.parent.parent.name if folder.name == "checkpoints" else checkpoint.stem


def versions(run: Path) -> list[Path]:
    """The version folders of a run, newest first."""
    numbered = {path.name.removeprefix("version_"): path for path in run.glob("version_*")}
    return [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int, reverse=True)]


def new_version(run: Path) -> Path:
    """Create the folder of the next version of a run; safe if several processes call it."""
    number = max((int(path.name.removeprefix("version_")) for path in versions(run)), default=-1) + 1
    while True:
        folder = run / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another process created it first
            number += 1


def find_run(where: str | Path | None = None) -> Path:
    """Find the version folder of a run.

    Args:
        where: Name of a run in logs/, or its folder, for its newest version; or a version folder; None: the newest run.

    Raises:
        FileNotFoundError: if there is none.
    """
    if where is None:
        configs = sorted(LOGS.rglob("version_*/config.yaml"), key=lambda config: config.stat().st_mtime)
        if not configs:
            raise FileNotFoundError(f"there is no run in {LOGS}; train a model with lit-lm fit")
        return configs[-1].parent
    folder = next((path for path in (Path(where), LOGS / where) if path.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"there is no run {where}, neither as a folder nor as a name in {LOGS}")
    return next(iter(versions(folder)), folder)


def find_checkpoint(where: str, name: str | None = None) -> Path:
    """Find a checkpoint.

    Args:
        where: A checkpoint file; the folder or name of a run, or a folder version_<n>, for its best checkpoint; or best
            or last.
        name: Name of the run whose best or last checkpoint to find; None: the newest run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if `name` is given and `where` is not best or last.
    """
    path = Path(where)
    if where and not path.exists() and where not in ("best", "last") and (LOGS / where).is_dir():
        path = LOGS / where
    if name is not None and where not in ("best", "last"):
        raise ValueError(f"ckpt_path {where} already names a run; leave out name, or set ckpt_path to best or last")
    if path.is_file():
        return path
    if path.is_dir():
        which, folders = "best", [path / "checkpoints", path, *(folder / "checkpoints" for folder in versions(path))]
    elif where in ("best", "last"):
        which, run = where, LOGS if name is None else LOGS / name
        folders = [folder / "checkpoints" for folder in versions(run)]
        if name is None:
            folders = sorted(
                run.rglob("version_*/checkpoints"), key=lambda folder: folder.stat().st_mtime, reverse=True
            )
    else:
        raise FileNotFoundError(f"there is no checkpoint at {where}")
    for folder in folders:
        for link in (folder / f"{which}.ckpt", folder / "last.ckpt"):  # without validation there is no best.ckpt
            if link.is_file():
                return link
    place = path if path.is_dir() else run
    raise FileNotFoundError(f"there is no checkpoint in {place}; train a model with lit-lm fit, or pass --ckpt_path")


def newest_good_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest readable checkpoint of a run, and the error messages of the newer ones."""
    problems: list[str] = []
    for path in checkpoints_in(folder):
        try:
            return read_checkpoint(path), problems
        except ValueError as error:
            problems.append(str(error))
    return None, problems


def point_to(link: Path, target: Path) -> None:
    """Point `link` to `target` in the same folder, atomically; a copy if the file system does not support links."""
    new = unfinished_path(link)
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(target.name)
    except OSError:
        shutil.copyfile(target, new)
    new.replace(link)


def keep_only(folder: Path, kept: set[Path]) -> None:
    """Remove the checkpoints of a folder that are not in `kept`, their digests, and unfinished files."""
    for path in [*checkpoints_in(folder), *folder.glob(f".*{UNFINISHED}")]:
        if path not in kept:
            path.unlink(missing_ok=True)
            digest_file(path).unlink(missing_ok=True)
