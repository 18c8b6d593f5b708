"""The story grammar, checked with rules that are independent of it."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers.story_rules import RULES, Rules

from lit_lm.data.stories import Choice, Grammar, Plot, Template, stories

PLOTS = [
    pytest.param(rules, plot, id=f"{language}-{plot.name}")
    for language, rules in RULES.items()
    for plot in rules.grammar.plots
]


@pytest.fixture(scope="module", params=RULES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rules(language: str) -> Rules:
    return RULES[language]


@pytest.fixture(scope="module")
def told(rules: Rules) -> dict[str, list[str]]:
    rng = random.Random("test")
    return {plot.name: [rules.grammar.story(plot, rng) for _ in range(80)] for plot in rules.grammar.plots}


def test_stories_have_no_faults(rules: Rules, told: dict[str, list[str]]) -> None:
    for plot, tellings in told.items():
        for story in tellings:
            assert not rules.mistakes(story), f"{plot}: {rules.mistakes(story)}\n\n{story}"


class Watched(tuple[Any, ...]):
    """A template that knows whether it was told."""

    told = False

    def __iter__(self) -> Iterator[Any]:
        self.told = True
        return super().__iter__()


@pytest.mark.parametrize(("rules", "plot"), PLOTS)
def test_stories_with_every_alternative_have_no_faults(rules: Rules, plot: Plot) -> None:
    """Each way of each choice, and each word of each slot, occurs at least once, in a story without faults."""
    left: list[Watched] = []

    def watched(template: Template) -> Watched:
        left.append(Watched(replace(part, ways=tuple(map(watched, part.ways))) if isinstance(part, Choice) else part
                            for part in template))  # fmt: skip
        return left[-1]

    slots = {slot: tuple(word | {"": watched(word[""])} for word in words) for slot, words in plot.slots.items()}
    plot, rng = replace(plot, tell=watched(plot.tell), slots=slots), random.Random(plot.name)
    for _ in range(1000):
        story = rules.grammar.story(plot, rng)
        assert not rules.mistakes(story), f"{rules.mistakes(story)}\n\n{story}"
        left = [template for template in left if not template.told]
        if not left:
            break
    assert not left


@pytest.mark.parametrize(("rules", "plot"), PLOTS)
def test_the_shortest_and_longest_possible_stories_are_within_bounds(rules: Rules, plot: Plot) -> None:
    """Takes the shortest and the longest way of every choice, so it holds for all possible stories."""
    assert _size(rules, plot, plot.tell, min) >= rules.sizes[0]
    assert _size(rules, plot, plot.tell, max) <= rules.sizes[-1]


def _size(rules: Rules, plot: Plot, template: Template, pick: Callable[[Iterable[int]], int]) -> int:
    total = 0
    for part in template:
        if isinstance(part, str):
            total += rules.size(part)
        elif isinstance(part, Choice):
            total += pick(_size(rules, plot, way, pick) for way in part.ways)
        elif part.name in plot.slots:
            total += pick(_size(rules, plot, word[part.attribute], pick) for word in plot.slots[part.name])
        elif part.name in rules.grammar.phrases:
            total += _size(rules, plot, (rules.grammar.phrases[part.name],), pick)
    return total


def test_characters_of_a_story_have_different_names(rules: Rules, told: dict[str, list[str]]) -> None:
    for plot in rules.grammar.plots:
        people = [slot for slot, words in plot.slots.items() if str(words[0][""][0]) in rules.names]
        for story in told[plot.name]:
            assert sum(bool(re.search(rf"(?<![A-Za-z]){name}(?![a-z])", story)) for name in rules.names) == len(
                people
            ), story


def test_stories_begin_with_the_usual_opening(rules: Rules, told: dict[str, list[str]]) -> None:
    everything = [story for tellings in told.values() for story in tellings]
    assert sum(bool(re.match(rules.opening, story)) for story in everything) > rules.openings * len(everything)


def test_there_are_many_plots_with_a_small_vocabulary(rules: Rules, told: dict[str, list[str]]) -> None:
    words = {word.lower() for tellings in told.values() for story in tellings for word in re.findall(rules.word, story)}
    assert len(rules.grammar.plots) >= 24
    assert len(words) in rules.words
    assert all(len(set(tellings)) == len(tellings) for tellings in told.values())


@pytest.mark.parametrize(
    ("language", "wrong"),
    [
        ("en", "Tom found an ball."),
        ("en", "Lily lost his ball."),
        ("zh", "妈妈给朵朵一条雨伞, 她笑了。"),
        ("zh", "朵朵看见一条小花猫。"),
        ("zh", "豆豆得到了一个蓝色的自行车。"),
        ("zh", "朵朵有一只布老虎，他很喜欢它。"),
        ("zh", "豆豆说：“我来了。”“你看！"),
        ("zh", "豆豆问：“这是你的吗。”"),
        ("zh", "豆豆 笑了。"),
        ("zh", "豆豆笑�了。"),
    ],
)
def test_the_rules_find_known_faults(language: str, wrong: str) -> None:
    rules = RULES[language]
    assert set(rules.mistakes(wrong)) - set(rules.mistakes("")) - {f"its size is {rules.size(wrong)}"}


def test_the_seed_determines_the_stories(language: str) -> None:
    first = "\n".join(stories("train", 50_000, seed=3, language=language))
    assert first == "\n".join(stories("train", 50_000, seed=3, language=language))
    assert first != "\n".join(stories("train", 50_000, seed=4, language=language))


def test_the_random_draws_never_change() -> None:
    """Uses a separate grammar, so that a new English plot does not change the digest."""
    grammar = Grammar({"plots": {"p": {"slots": {"n": list("abcdefgh")}, "tell": "{n} [x|y|z][x|y|z][x|y|z]"}}})
    rng = random.Random("en 0")
    text = " ".join(grammar.story(grammar.plots[0], rng) for _ in range(100))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4677b92cbd487c75"


def test_the_docs_contain_the_first_stories(language: str) -> None:
    shown = (Path(__file__).parents[2] / "docs" / "stories.md").read_text(encoding="utf-8")
    for story in islice(stories("train", seed=1, language=language), 10):
        assert story in shown


def test_splits_are_disjoint_and_stories_are_distinct(language: str) -> None:
    train = list(stories("train", 400_000, language=language))
    validation = list(stories("validation", 40_000, seed=0, language=language))
    assert not set(train) & set(validation)
    assert not set(train) & set(stories("validation", 40_000, seed=1, language=language))
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)


@pytest.mark.parametrize("num_bytes", [1, 10_000, 100_000])
def test_num_bytes_is_exceeded_by_less_than_one_story(language: str, num_bytes: int) -> None:
    sizes = [len(story.encode()) for story in stories("train", num_bytes, language=language)]
    assert sum(sizes[:-1]) < num_bytes <= sum(sizes)
    assert list(stories("train", 0, language=language)) == []


def test_plots_are_equally_frequent(language: str, rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    count: Counter[str] = Counter()
    tell = Grammar.story

    def counting(self: Grammar, plot: Plot, *rest: Any) -> str:
        count[plot.name] += 1
        return tell(self, plot, *rest)

    monkeypatch.setattr(Grammar, "story", counting)
    list(stories("train", 200_000, language=language))
    assert len(count) == len(rules.grammar.plots)
    assert max(count.values()) - min(count.values()) <= 1


def _grammar(tell: str, **slots: object) -> Grammar:
    words = {"girl": [{"Ann": {"he": "she", "it": "{a} [apple]"}}]}
    return Grammar({"an_before": "[ao]", "words": words, "plots": {"my plot": {"slots": slots, "tell": tell}}})


def test_notation() -> None:
    grammar = _grammar("{^a} {what} [saw|saw] {who}.\n  {^who.he} ate\n\n{^who.it}[ |  ].", what=["owl"], who="girl")
    assert grammar.story(grammar.plots[0], random.Random(0)) == "An owl saw Ann. She ate\n\nAn apple ."


def test_a_language_without_spaces() -> None:
    grammar = Grammar(
        {"space": "", "plots": {"p": {"slots": {}, "tell": "从前，\n  有一只[ 小|\n小]猫。\n\n它叫咪咪。"}}}
    )
    assert grammar.story(grammar.plots[0], random.Random(0)) == "从前，有一只小猫。\n\n它叫咪咪。"


@pytest.mark.parametrize(
    ("tell", "slots", "message"),
    [
        ("Hello {nobody}", {}, "plot 'my plot': slot 'nobody' is not declared"),
        ("Hello [{nobody}|you]", {}, "plot 'my plot': slot 'nobody' is not declared"),
        ("Hello {hero.age}", {"hero": "girl"}, "plot 'my plot': slot 'hero' has no 'age' when it is"),
        ("Hello {hero}", {"hero": "gril"}, "plot 'my plot', slot 'hero': no word list 'gril'"),
        ("Hello {hero}", {"hero": "girl", "friend": "girl"}, "plot 'my plot', slot 'friend': too few words"),
        ("Hello {hero}", {"hero": []}, "plot 'my plot', slot 'hero': expected a list of words"),
        ("Hello {hero}", {"hero": ["dear {hero}"]}, "plot 'my plot': slot 'hero' contains itself"),
        ("Hello {hero}", {"hero": ["[dear"]}, "plot 'my plot', slot 'hero', word .*never closed"),
        ("Hello [you", {}, "plot 'my plot': a '\\[' is never closed"),
        ("Hello you]", {}, "plot 'my plot': ']' does not fit"),
        ("Hello {you", {}, "plot 'my plot': '{' does not fit"),
        ("Hello | you", {}, "plot 'my plot': '|' does not fit"),
        ("Hello {he ro}", {}, "plot 'my plot': '{he ro}' does not fit"),
    ],
)
def test_a_mistake_in_a_grammar_is_reported(tell: str, slots: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        _grammar(tell, **slots)


def test_a_grammar_with_too_few_stories_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_lm.data.stories.load", lambda language: _grammar("Hello [you|{girl}].", girl="girl"))
    with pytest.raises(ValueError, match="only about 2 stories"):
        list(stories("train", 1000))


def test_an_unknown_language_or_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no stories in 'xx'; there are stories in .*en"):
        stories("train", 10, language="xx")
    with pytest.raises(ValueError, match="split is 'test'"):
        stories("test", 10)  # type: ignore[arg-type]
