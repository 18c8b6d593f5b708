"""The bundled tasks, made by tools/eval_tasks.py: a folder of `tasks` is a group of tasks, a .jsonl file in it a task.

A line of a file is an item: a context (none if there is no such field), the texts that may follow it, and the index of
the right one.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tasks"


def groups() -> dict[str, dict[str, Path]]:
    """The groups, and the file of each of their tasks."""
    folders = sorted(path for path in FOLDER.iterdir() if path.is_dir())
    return {
        folder.name: {f"{folder.name}_{file.stem}": file for file in sorted(folder.glob("*.jsonl"))}
        for folder in folders
    }


def names() -> list[str]:
    """The names of all groups and tasks."""
    return [name for group, tasks in groups().items() for name in (group, *tasks)]


def items(file: Path) -> list[dict[str, Any]]:
    """The items of a task, with the fields context, choices and answer."""
    return [{"context": "", **json.loads(line)} for line in file.read_text(encoding="utf-8").splitlines()]


def is_file(name: str) -> bool:
    """Whether a task's name is the path of a YAML file."""
    return name.endswith((".yaml", ".yml"))
