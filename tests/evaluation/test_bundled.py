"""The bundled tasks."""

import eval_tasks
import pytest

from lit_lm.evaluation import bundled

TASKS = {name: path for tasks in bundled.groups().values() for name, path in tasks.items()}


def test_the_program_makes_exactly_these_files() -> None:
    made = {str(eval_tasks.FOLDER / path): eval_tasks.text(items) for path, items in eval_tasks.tasks().items()}
    assert made == {str(path): path.read_text(encoding="utf-8") for path in TASKS.values()}
    assert sum(len(text.encode()) for text in made.values()) < 300_000


@pytest.mark.parametrize("name", TASKS)
def test_the_items_of_a_task_are_sound(name: str) -> None:
    items = bundled.items(TASKS[name])
    assert len(items) >= (60 if "stories" in name else 40)
    assert len({str(item) for item in items}) == len(items)
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"]) == (4 if "stories" in name else 2)
        assert bool(item["context"]) == ("stories" in name)
        assert all(choice.strip() and choice == choice.rstrip() for choice in item["choices"])
        assert item["context"] == item["context"].rstrip()
    answers = [item["answer"] for item in items]
    assert {answers.count(answer) for answer in set(answers)} == {len(items) // len(items[0]["choices"])}


@pytest.mark.parametrize("name", [name for name in TASKS if "grammar" in name])
def test_the_length_of_a_sentence_says_little(name: str) -> None:
    items = bundled.items(TASKS[name])
    differences = [len(item["choices"][item["answer"]]) - len(item["choices"][1 - item["answer"]]) for item in items]
    shorter = sum(difference < 0 for difference in differences) + sum(not difference for difference in differences) / 2
    assert 0.35 <= shorter / len(items) <= 0.65
    if "_zh_" in name:
        assert not any(differences)


@pytest.mark.parametrize("name", [name for name in TASKS if "stories" in name])
def test_the_length_of_an_answer_says_little(name: str) -> None:
    items = bundled.items(TASKS[name])
    for choose in (min, max):
        right = sum(item["choices"].index(choose(item["choices"], key=len)) == item["answer"] for item in items)
        assert 0.1 <= right / len(items) <= 0.4
