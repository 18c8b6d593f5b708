"""Make the bundled tasks of `lit-lm eval`: lit_lm/evaluation/tasks. The same files on every machine.

python tools/eval_tasks.py
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import eval_grammar_en
import eval_grammar_zh
import eval_stories

FOLDER = Path(__file__).parents[1] / "lit_lm" / "evaluation" / "tasks"
PAIRS = {"en": 50, "zh": 40}
"""Pairs for each rule of grammar."""
QUESTIONS = 80
"""Items of a task about stories."""

T = TypeVar("T")


class Draw:
    """Random choices; only with `random.Random.random`, whose sequence Python guarantees."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random

    def flip(self) -> bool:
        return self.random() < 0.5

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self.random() * len(choices))]

    def some(self, choices: Sequence[T], number: int) -> list[T]:
        """Different ones, in random order."""
        return sorted(choices, key=lambda _: self.random())[:number]

    def two(self, choices: Sequence[T]) -> tuple[T, T]:
        first, second = self.some(choices, 2)
        return first, second


def pairs(paradigm: Callable[[Draw], tuple[str, str]], number: int) -> list[dict[str, Any]]:
    """Different pairs of a rule. In at most half of them the right one is shorter, in at most half it is longer."""
    draw, found, longer = Draw(paradigm.__name__), dict[tuple[str, str], None](), Counter[bool]()
    while len(found) < number:
        right, wrong = paradigm(draw)
        if (right, wrong) in found or (len(right) != len(wrong) and longer[len(right) > len(wrong)] == number // 2):
            continue
        found[right, wrong] = None
        if len(right) != len(wrong):
            longer[len(right) > len(wrong)] += 1
    return [{"right": right, "wrong": [wrong]} for right, wrong in found]


def placed(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The items of a file: each position has the right choice equally often."""
    size = 1 + len(items[0]["wrong"])
    for number, item in enumerate(items[: len(items) // size * size]):
        choices = list(item["wrong"])
        answer = number % size
        choices.insert(answer, item["right"])
        context = {"context": item["context"]} if "context" in item else {}
        yield context | {"choices": choices, "answer": answer}


def tasks() -> dict[str, list[dict[str, Any]]]:
    """The items of each file, by its path in FOLDER."""
    found = {}
    for language, grammar in (("en", eval_grammar_en), ("zh", eval_grammar_zh)):
        for paradigm in grammar.PARADIGMS:
            found[f"grammar_{language}/{paradigm.__name__}.jsonl"] = pairs(paradigm, PAIRS[language])
        for make in (eval_stories.cloze, eval_stories.ending):
            items = make(language, Draw(f"{make.__name__} {language}"), QUESTIONS)
            found[f"stories_{language}/{make.__name__}.jsonl"] = items
    return {path: list(placed(items)) for path, items in found.items()}


def text(items: Sequence[dict[str, Any]]) -> str:
    """The content of a file."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def main() -> None:
    for path, items in tasks().items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(text(items), encoding="utf-8")
        print(f"{path}: {len(items)} items, {len(text(items).encode()):,} bytes")


if __name__ == "__main__":
    main()
