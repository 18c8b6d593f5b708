"""Tasks by name: bundled ones, YAML files of the harness's format, and those that come with the harness."""

from collections.abc import Sequence
from contextlib import chdir
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from lit_lm.evaluation import bundled
from lit_lm.files import expand_home


def load_tasks(names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Group]]:
    """The tasks and the groups of these names.

    Raises:
        FileNotFoundError: if there is no YAML file.
        ValueError: if a task is unknown, chosen twice, or cannot be loaded.
    """
    tasks: dict[str, Any] = {}
    groups: dict[str, Group] = {}
    manager = TaskManager(include_defaults=False)
    for name in names:
        if (own := _bundled(name)) is not None:
            loaded = manager.load([own])
        elif bundled.is_file(name):
            loaded = _from_file(manager, expand_home(name))
        else:
            if not manager.all_tasks:
                manager = TaskManager()  # reads all the harness's tasks, which takes seconds
            loaded = _from_harness(manager, name)
        if repeated := sorted(tasks.keys() & loaded["tasks"].keys()):
            raise ValueError(f"{name} has the task {repeated[0]}, which is already chosen")
        tasks |= loaded["tasks"]
        groups |= loaded["groups"]
    return tasks, groups


def _bundled(name: str) -> Group | ConfigurableTask | None:
    """A bundled group or task; None if there is none of this name."""
    for group_name, files in bundled.groups().items():
        if name in files:
            return _task(name, files[name])
        if name == group_name:
            group = Group.from_config({"group": name, "aggregate_metric_list": [{"metric": "acc"}]})
            for task, file in files.items():
                group.add(_task(task, file))
            return group
    return None


def _task(name: str, file: Path) -> ConfigurableTask:
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(bundled.items(file))},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )


def _from_file(manager: TaskManager, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    path = path.resolve()
    with chdir(path.parent):  # data_files are relative to the YAML file
        return _loaded(manager, str(path), f"{path.name} cannot be loaded")


def _from_harness(manager: TaskManager, name: str) -> dict[str, Any]:
    if name not in manager.task_index:
        nearest = get_close_matches(name, [*bundled.names(), *manager.all_tasks], n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the bundled ones are {', '.join(bundled.groups())}"
        raise ValueError(f"there is no task {name}; {hint}")
    return _loaded(manager, name, f"{name} cannot be loaded; tasks that are not bundled need a network")


def _loaded(manager: TaskManager, name: str, problem: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # anything, as a task names data and functions
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{problem}: {message}") from error
    return loaded
