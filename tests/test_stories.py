"""The story grammar, held against rules that know nothing of how it is written."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lit_lm.data.stories import Choice, Grammar, Plot, Template, load, stories

ENGLISH = load("en")
NAMES = {
    pronoun: {str(word[""][0]) for plot in ENGLISH.plots for slot in plot.slots.values() for word in slot
              if word.get("he") == (pronoun,) and str(word[""][0]).istitle()}
    for pronoun in ("he", "she")
}  # fmt: skip
QUESTIONS = "Can|May|Will|Is|Are|Do|Does|Did|Don't|Why|Who|Where|What|How|Has|(?:Oh no|Mom|Dad), where"
FAMILY = {
    "mom",
    "dad",
    "grandma",
    "grandpa",
    "sister",
    "brother",
    "mother",
    "man",
    "woman",
    "seller",
    "maker",
    "snowman",
}
MISTAKES = {
    "an before a consonant": r"\b[Aa]n (?![aeiouAEIOU]|hour|honest)",
    "a before a vowel": r"\b[Aa] (?=[aeiouAEIOU])(?!uni|use|one)",
    "spacing": r"  | [,.!?;:]|[,.!?;:](?=[A-Za-z])|\n |^ | $| \n",
    "leftover notation": r"[\[\]{}|^_]",
    "small letter after a stop": r"[.!?] [a-z]|^[a-z]|\n[a-z]",
    "small letter after an opening quote": r'(?:^|[.!?:\n]"? )"[a-z]',
    "speech that runs into the tale": r'[A-Za-z]"',
    "a comma before a big word that is no name": r'," (?:The|He|She|It|They)\b',
    "a question without its mark": r'"(?:[^"]*[.!] )?(?:Can|May|Will|Is|Do you|Does|Did|Why|Who|Where) [^"?]*[,.!]"',
    "a mark without its question": rf'(?:"|[.!] )(?!{QUESTIONS})[A-Z][^"?.!]*\?',
    "doubled word": r"\b(?!very|had|and up)(\w+) \1\b",
    "doubled stop": r"[.,!?][.,;:!?]",
    "bare mom or dad": r"(?<!his )(?<!her )(?<!His )(?<!Her )(?<!their )(?<!'s )\b(?:mom|dad|grandma|grandpa)\b",
    "Mom or Dad owned": r"\b(?:[Hh]is|[Hh]er|'s) (?:Mom|Dad|Grandma|Grandpa)\b",
}


def mistakes(story: str) -> list[str]:
    found = [f"{name}: {match[0]!r}" for name, rule in MISTAKES.items() if (match := re.search(rule, story))]
    paragraphs = story.split("\n\n")
    if not 2 <= len(paragraphs) <= 6:
        found.append(f"{len(paragraphs)} paragraphs")
    if not 60 <= len(story.split()) <= 200:
        found.append(f"{len(story.split())} words")
    for paragraph in paragraphs:
        if paragraph.count('"') % 2 or not re.search(r'[.!?]"?$', paragraph) or not paragraph.isprintable():
            found.append(f"quotes, end or line breaks of {paragraph!r}")
        if '""' in paragraph or re.search(r'[^\s"]"[^\s".,!?]', paragraph):
            found.append(f"a quote mark inside a word of {paragraph!r}")
    return found


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    rng = random.Random("test")
    return {plot.name: [ENGLISH.story(plot, rng) for _ in range(80)] for plot in ENGLISH.plots}


def test_no_mistakes(told: dict[str, list[str]]) -> None:
    for plot, tellings in told.items():
        for story in tellings:
            assert not mistakes(story), f"{plot}: {mistakes(story)}\n\n{story}"


@pytest.mark.parametrize("plot", ENGLISH.plots, ids=lambda plot: plot.name)
def test_every_alternative_reads_well(plot: Plot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of each choice, and each word of each slot, is told at least once, and the story around it is sound."""
    told: set[int] = set()
    tell = Grammar._tell

    def watched(self: Grammar, template: Template, *rest: Any) -> str:
        told.add(id(template))
        return tell(self, template, *rest)

    monkeypatch.setattr(Grammar, "_tell", watched)
    words = [word[""] for slot in plot.slots.values() for word in slot]
    rng, tellings, left = random.Random(plot.name), 0, {id(way): way for way in [*_ways(plot.tell), *words]}
    while left and tellings < 1000:
        story = ENGLISH.story(plot, rng)
        assert not mistakes(story), f"{mistakes(story)}\n\n{story}"
        left = {key: way for key, way in left.items() if key not in told}
        tellings += 1
    assert not left


def _ways(template: Template) -> list[Template]:
    ways = [way for part in template if isinstance(part, Choice) for way in part.ways]
    return ways + [inner for way in ways for inner in _ways(way)]


@pytest.mark.parametrize("plot", ENGLISH.plots, ids=lambda plot: plot.name)
def test_no_story_can_be_too_short_or_too_long(plot: Plot) -> None:
    """The shortest and the longest way at every turn, so it holds for stories never drawn."""
    assert _blanks(plot, plot.tell, min) >= 60
    assert _blanks(plot, plot.tell, max) <= 200


def _blanks(plot: Plot, template: Template, pick: Callable[[Iterable[int]], int]) -> int:
    """How many gaps between words a template has; the paragraphs' ends make it one more than the words at most."""
    total = 0
    for part in template:
        if isinstance(part, str):
            total += len(re.findall(r"\s+", part))
        elif isinstance(part, Choice):
            total += pick(_blanks(plot, way, pick) for way in part.ways)
        elif part.name in plot.slots:
            total += pick(_blanks(plot, word[part.attribute], pick) for word in plot.slots[part.name])
        elif part.name in ENGLISH.phrases:
            total += _blanks(plot, (ENGLISH.phrases[part.name],), pick)
    return total


def test_one_hero_one_pronoun(told: dict[str, list[str]]) -> None:
    """Where all the names are of one gender, and there is no other person, no pronoun of the other is heard."""
    checked = 0
    for tellings in told.values():
        for story in tellings:
            words = set(re.findall(r"\w+", story))
            lower = {word.lower() for word in words}
            if lower & FAMILY:
                continue
            if not words & NAMES["he"]:
                assert not lower & {"he", "his", "him", "boy"}, story
            if not words & NAMES["she"]:
                assert not lower & {"she", "her", "girl"}, story
            checked += 1
    assert checked > 100


def test_names_are_never_shared(told: dict[str, list[str]]) -> None:
    for plot in ENGLISH.plots:
        people = [slot for slot, words in plot.slots.items() if str(words[0][""][0]).istitle() and "he" in words[0]]
        for story in told[plot.name]:
            names = set(re.findall(r"\w+", story)) & (NAMES["he"] | NAMES["she"])
            assert len(names) == len(people), story


def test_most_stories_open_once_upon_a_time(told: dict[str, list[str]]) -> None:
    everything = [story for tellings in told.values() for story in tellings]
    assert sum(story.startswith("Once upon a time") for story in everything) > len(everything) / 2


def test_vocabulary_is_small_and_the_plots_are_many(told: dict[str, list[str]]) -> None:
    words = {word for tellings in told.values() for story in tellings for word in re.findall(r"[a-z']+", story.lower())}
    assert len(ENGLISH.plots) >= 24
    assert 800 < len(words) < 2500
    assert all(len(set(tellings)) == len(tellings) for tellings in told.values())


def test_same_seed_same_stories() -> None:
    first = "\n".join(stories("train", 50_000, seed=3))
    assert first == "\n".join(stories("train", 50_000, seed=3))
    assert first != "\n".join(stories("train", 50_000, seed=4))


def test_the_draw_itself_is_pinned() -> None:
    """A grammar of its own, so that a new English plot does not move the digest."""
    grammar = Grammar({"plots": {"p": {"slots": {"n": list("abcdefgh")}, "tell": "{n} [x|y|z][x|y|z][x|y|z]"}}})
    rng = random.Random("en 0")
    text = " ".join(grammar.story(grammar.plots[0], rng) for _ in range(100))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4677b92cbd487c75"


def test_splits_share_nothing_and_nothing_comes_twice() -> None:
    train, validation = list(stories("train", 400_000)), list(stories("validation", 40_000, seed=0))
    assert not set(train) & set(validation)
    assert not set(train) & set(stories("validation", 40_000, seed=1))
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)


@pytest.mark.parametrize("num_bytes", [1, 10_000, 100_000])
def test_size_is_met_within_one_story(num_bytes: int) -> None:
    sizes = [len(story.encode()) for story in stories("train", num_bytes)]
    assert sum(sizes[:-1]) < num_bytes <= sum(sizes)
    assert list(stories("train", 0)) == []


def test_plots_are_told_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    count: Counter[str] = Counter()
    tell = Grammar.story

    def counting(self: Grammar, plot: Plot, *rest: Any) -> str:
        count[plot.name] += 1
        return tell(self, plot, *rest)

    monkeypatch.setattr(Grammar, "story", counting)
    list(stories("train", 200_000))
    assert len(count) == len(ENGLISH.plots)
    assert max(count.values()) - min(count.values()) <= 1


def _grammar(tell: str, **slots: object) -> Grammar:
    words = {"girl": [{"Ann": {"he": "she", "it": "{a} [apple]"}}]}
    return Grammar({"an_before": "[ao]", "words": words, "plots": {"my plot": {"slots": slots, "tell": tell}}})


def test_notation() -> None:
    grammar = _grammar("{^a} {what} [saw|saw] {who}.\n  {^who.he} ate\n\n{^who.it}[ |  ].", what=["owl"], who="girl")
    assert grammar.story(grammar.plots[0], random.Random(0)) == "An owl saw Ann. She ate\n\nAn apple ."


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
def test_a_mistake_in_the_notation_is_named(tell: str, slots: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        _grammar(tell, **slots)


def test_a_small_grammar_says_when_it_has_told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_lm.data.stories.load", lambda language: _grammar("Hello [you|{girl}].", girl="girl"))
    with pytest.raises(ValueError, match="no more than about 2 stories"):
        list(stories("train", 1000))


def test_asking_for_what_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"no stories in 'xx'; there are stories in .*en"):
        stories("train", 10, language="xx")
    with pytest.raises(ValueError, match="split is 'test'"):
        stories("test", 10)  # type: ignore[arg-type]
