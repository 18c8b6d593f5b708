"""The checkpoint that a command's options choose."""

import difflib
import os
import sys
from pathlib import Path

from lit_lm.runs import LOGS, find_checkpoint

CKPT_PATH_HELP = "Checkpoint: its path, a run's folder or name, or best or last of --name or of the newest run."
BY_DEFAULT = " By default, best."
NAME_HELP = "Run in logs/ whose best or last checkpoint to use; by default, the newest run."


def chosen_checkpoint(where: str | None, name: str | None, *, named: bool = False) -> Path:
    """Find the checkpoint of --ckpt_path and --name.

    Args:
        where: Value of --ckpt_path; None: the best checkpoint, which is then named on standard error.
        name: Value of --name.
        named: Whether the command itself names the checkpoint.

    Raises:
        ValueError, OSError: if there is none.
    """
    if where is not None and where.endswith((".yaml", ".yml")):
        raise ValueError(f"{where} is a config, not a checkpoint; pass the path of a .ckpt file, or best or last")
    try:
        path = find_checkpoint(where or "best", name)
    except FileNotFoundError as error:
        runs = {folder.name: folder for folder in LOGS.glob("*/")}
        nearest = difflib.get_close_matches(name or where or "", runs, n=1)
        raise FileNotFoundError(f"{error}; did you mean --name {nearest[0]}?" if nearest else str(error)) from None
    if where is None and not named and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"checkpoint: {path}", file=sys.stderr, flush=True)
    return path
