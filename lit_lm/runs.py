"""Where runs are kept, and how their checkpoints are found: the best, the last, the newest that is whole.

A run is a folder below `logs/`, with a folder `version_<n>` for each time that it was started anew. Its checkpoints are
`checkpoints/step_<n>.ckpt`, and the links `best.ckpt` and `last.ckpt`.
"""

import re
import shutil
from pathlib import Path

from lit_lm.checkpoint import Checkpoint, digest_file, read_checkpoint
from lit_lm.files import UNFINISHED

LOGS = Path("logs")
"""Where the runs are."""

STEP = re.compile(r"step_\d{8,}\.ckpt")
"""Names of a run's own checkpoints; other callbacks may write theirs beside them."""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted((path for path in folder.glob("step_*.ckpt") if STEP.fullmatch(path.name)), reverse=True)


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of; of one that was moved away, the folder that it lies in."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def versions(run: Path) -> list[Path]:
    """The folders of a run's versions, newest first."""
    numbered = {path.name.removeprefix("version_"): path for path in run.glob("version_*")}
    return [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int, reverse=True)]


def new_version(run: Path) -> Path:
    """A new folder for the next version of a run, made by this process alone."""
    number = max((int(path.name.removeprefix("version_")) for path in versions(run)), default=-1) + 1
    while True:
        folder = run / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run began at the same moment
            number += 1


def find_checkpoint(where: str, name: str | None = None) -> Path:
    """The checkpoint that is meant.

    Args:
        where: A checkpoint; a run's folder or one version's, for its best checkpoint; or best or last.
        name: Of the run whose best or last is meant; None: of the newest run of all.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if two runs are named.
    """
    path = Path(where)
    if name is not None and where not in ("best", "last"):
        raise ValueError(f"ckpt_path is {where}, which names its run itself; leave out name, or say best or last")
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
        for link in (folder / f"{which}.ckpt", folder / "last.ckpt"):  # without validation there is no best one
            if link.is_file():
                return link
    place = path if path.is_dir() else run
    raise FileNotFoundError(f"there is no checkpoint in {place}; train a model with lit-lm fit, or give --ckpt_path")


def newest_good_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that can be read, and what is wrong with those that are newer."""
    problems: list[str] = []
    for path in checkpoints_in(folder):
        try:
            return read_checkpoint(path), problems
        except ValueError as error:
            problems.append(str(error))
    return None, problems


def point_to(link: Path, target: Path) -> None:
    """Make `link` lead to `target` in the same folder, at once; a copy where the file system has no links."""
    unfinished = link.with_name(f".{link.name}{UNFINISHED}")
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.symlink_to(target.name)
    except OSError:
        shutil.copyfile(target, unfinished)
    unfinished.replace(link)


def keep_only(folder: Path, kept: set[Path]) -> None:
    """Remove the other checkpoints of a run, their digests, and what a crash left unfinished."""
    for path in [*checkpoints_in(folder), *folder.glob(f".*{UNFINISHED}")]:
        if path not in kept:
            path.unlink(missing_ok=True)
            digest_file(path).unlink(missing_ok=True)
