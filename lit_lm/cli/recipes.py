"""The recipes of lit-lm: config files that are installed with the package, and found by name."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from lit_lm.files import expand_home

FOLDER = Path(__file__).parents[1] / "configs"
"""In the repository, a link to its folder configs/."""


def recipes() -> dict[str, Path]:
    """Path of each recipe by its name: quick, small, ...; sizes/tiny, ... for models; strategies/fsdp for a Trainer."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}


def find_config(text: str, folder: Path = Path()) -> Path:
    """Path of a config: a file, relative to `folder`, or else a recipe by its name.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if not text:
        raise FileNotFoundError("--config needs the path of a YAML file, or the name of a recipe, such as quick")
    path, known = folder / expand_home(text), recipes()
    if path.exists() and not (path.is_dir() and text in known):
        return path
    if text in known:
        return known[text]
    for name in (path.stem, f"{path.parent.name}/{path.stem}"):
        if name in known:
            raise FileNotFoundError(
                f"there is no config {path}; lit-lm brings {name} with it: use {name} without folder and suffix, as in "
                f"--config {name}, or copy all recipes with lit-lm init"
            )
    names = ", ".join(name for name in known if "/" not in name)
    raise FileNotFoundError(f"there is no config {path}; pass the path of a YAML file, or a recipe: {names}")


def find_configs(args: Sequence[str]) -> None:
    """Check that the configs of a command line exist.

    Raises:
        ValueError, OSError: if one does not.
    """
    for arg, following in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        text = value if equals else following
        if name in ("-c", "--config") and not text.lstrip().startswith("{"):
            find_config(text)
