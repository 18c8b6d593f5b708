"""Evaluate a LanguageModel on tasks, and collect the metrics."""

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
from lm_eval import evaluator
from lm_eval.api.group import Group

from lit_lm.evaluation.harness import HarnessModel
from lit_lm.evaluation.loading import load_tasks
from lit_lm.inference.language_model import LanguageModel

EXAMPLES_SEED = 1234
"""Seed of the examples before an item in few-shot tasks: the harness's default."""
RESAMPLES = 1000
"""Bootstrap samples for the standard error of metrics that are not means."""
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")
"""Metrics that count how often the right choice is taken."""


@dataclass(frozen=True)
class Score:
    """A metric of a task, or its mean over the tasks of a group."""

    task: str
    group: str | None
    """The group by which the task was chosen."""
    metric: str
    value: float
    stderr: float | None
    """Standard error; None if there is no formula for this metric."""
    items: int
    chance: float | None
    """Expected value if all choices are equally likely; None if there are no choices."""


def evaluate(model: LanguageModel, names: Sequence[str], *, limit: int | None = None, batch_size: int) -> list[Score]:
    """Evaluate a model on tasks; returns the metrics, those of a group before those of its tasks.

    Args:
        model: The model.
        names: Names of bundled tasks or groups or of the harness's own, and paths of YAML files.
        limit: Number of items of each task, from the first; None: all.
        batch_size: Texts per forward pass.

    Raises:
        FileNotFoundError: if there is no YAML file.
        ValueError: if a task is unknown or cannot be loaded, or the model's probabilities are NaN.
    """
    with _quiet():
        tasks, groups = load_tasks(names)
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(EXAMPLES_SEED)
        results = _results(HarnessModel(model, batch_size), tasks, groups, limit)
        chances = {name: _chances(task, limit) for name, task in tasks.items()}
    inside = {name: [task.task_name for task in group.get_all_tasks()] for name, group in groups.items()}
    chances |= {group: [chance for name in members for chance in chances[name]] for group, members in inside.items()}
    ordered = [*(name for group, members in inside.items() for name in (group, *members)), *results]
    return [score for name in dict.fromkeys(ordered) for score in _scores(name, results[name], groups, chances[name])]


def _results(
    model: HarnessModel, tasks: Mapping[str, Any], groups: Mapping[str, Group], limit: int | None
) -> Mapping[str, Mapping[str, Any]]:
    """The harness's results, by the name of the task or group."""
    chosen = {"tasks": tasks, "groups": groups}
    try:
        found = evaluator.evaluate(model, chosen, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False)
    except (ValueError, OSError, RuntimeError, MemoryError):
        raise
    except Exception as error:  # of a mistake in a YAML file, or of the functions that it names
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the harness cannot evaluate these tasks: {message}") from error
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's progress bars, log and warnings off the terminal, and its other output off standard output."""
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else each use of a local file is reported to a server
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else the harness forks this process for the bootstrap
    with warnings.catch_warnings(), redirect_stdout(sys.stderr), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _chances(task: Any, limit: int | None) -> list[float]:
    """1 / the number of choices, of each item."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    return [1 / len(task.doc_to_choice(doc)) for doc in islice(task.eval_docs, limit)]


def _scores(
    name: str, results: Mapping[str, Any], groups: Mapping[str, Group], chances: Sequence[float]
) -> Iterator[Score]:
    """The metrics of a task or group. In the results, `acc,none` is acc of the filter none, `acc_stderr,none` its
    standard error.
    """
    group = next((parent for parent in groups if name in groups[parent].child_names), None)
    for key, value in results.items():
        metric, comma, variant = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = results.get(f"{metric}_stderr,{variant}")
        yield Score(
            task=name,
            group=group,
            metric=metric if variant == "none" else f"{metric} ({variant})",
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            items=results["sample_len"],
            chance=sum(chances) / len(chances) if chances and metric in CHOICE_METRICS else None,
        )
