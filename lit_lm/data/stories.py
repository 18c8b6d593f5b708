"""The bundled corpus: short stories for small children from a grammar, for a first run without a download.

The content is in `stories_<language>.yaml` (its header explains the notation); this module parses the notation and
draws. Three properties hold by construction:

- The same seed gives the same stories everywhere: every choice uses `random.Random.random()`, the only method whose
  sequence Python guarantees.
- No story is in both splits: a digest of its text determines its split.
- The plots are drawn in shuffled rounds, so all are equally frequent and neighbours differ.

The seed also fixes the cast of each plot, the names and things that fill its slots; only the wording varies. Carrying
a varying name from the start of a story to its end takes more training than a first run of three minutes: with varying
casts, the model changed its heroes' names in mid-sentence.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

ARTICLE = "\0"
"""Marker after an "a" until the next word is known; then replaced by "n" or nothing."""

VALIDATION_SHARE = 20
"""One story in VALIDATION_SHARE is a validation story."""


@dataclass(frozen=True)
class Slot:
    """`{name}`, `{name.attribute}`, `{^name}`: the text that fills this slot; `^` capitalizes its first letter."""

    name: str
    attribute: str = ""
    capital: bool = False


@dataclass(frozen=True)
class Choice:
    """`[one way|another way]`: all ways are equally likely, and one is drawn at each occurrence."""

    ways: "tuple[Template, ...]"


Template = tuple[str | Slot | Choice, ...]
Entry = Mapping[str, Template]
"""A word: its text under "", its attributes under their names."""


@dataclass(frozen=True)
class Plot:
    name: str
    slots: Mapping[str, tuple[Entry, ...]]
    tell: Template


def parse(text: str, where: str) -> Template:
    """Parse the notation. `where` is the location that an error reports.

    Raises:
        ValueError: if the text does not fit the notation.
    """
    open_ways: list[list[list[str | Slot | Choice]]] = [[[]]]
    for token in re.split(r"(\{[^{}]*\}|[\[\]|{}])", text):
        if token == "[":
            open_ways.append([[]])
        elif token == "|" and len(open_ways) > 1:
            open_ways[-1].append([])
        elif token == "]" and len(open_ways) > 1:
            ways = tuple(tuple(way) for way in open_ways.pop())
            open_ways[-1][-1].append(Choice(ways))
        elif match := re.fullmatch(r"\{(\^?)(\w+)(?:\.(\w+))?\}", token):
            open_ways[-1][-1].append(Slot(match[2], match[3] or "", bool(match[1])))
        elif re.search(r"[\[\]{}|]", token):
            raise ValueError(f"{where}: {token!r} does not fit the notation in {text.strip()[:60]!r}")
        elif token:
            open_ways[-1][-1].append(token)
    if len(open_ways) > 1:
        raise ValueError(f"{where}: a '[' is never closed in {text.strip()[:60]!r}")
    return tuple(open_ways[0][0])


def _entries(words: Any, where: str) -> tuple[Entry, ...]:
    """A word list: `[word, {word: {attribute: text}}]`, or `{each: {attribute: text}, words: [...]}`."""
    each: dict[str, str] = {}
    if isinstance(words, dict):
        each, words = words.get("each", {}), words.get("words")
    if not isinstance(words, list) or not words:
        raise ValueError(f"{where}: expected a list of words, got {words!r}")
    entries = []
    for word in words:
        text, attributes = next(iter(word.items())) if isinstance(word, dict) else (word, {})
        source = {"": text, **each, **attributes}
        entries.append({name: parse(str(value), f"{where}, word {text!r}") for name, value in source.items()})
    return tuple(entries)


class Grammar:
    """The plots of one language, parsed and checked; `data` is the content of its YAML file."""

    def __init__(self, data: Mapping[str, Any], language: str = "en") -> None:
        here = f"story grammar {language!r}"
        self.an_before = re.compile(data.get("an_before", "(?!)"))
        self.space = data.get("space", " ")
        self.phrases = {
            name: Choice(tuple(parse(way, f"{here}, phrase {name!r}") for way in ways))
            for name, ways in data.get("phrases", {}).items()
        }
        words = {name: _entries(value, f"{here}, words {name!r}") for name, value in data.get("words", {}).items()}
        self.plots = []
        for name, plot in data["plots"].items():
            where = f"{here}, plot {name!r}"
            slots = {slot: self._slot(spec, words, f"{where}, slot {slot!r}") for slot, spec in plot["slots"].items()}
            self._check_enough(slots, where)
            self.plots.append(Plot(name, slots, parse(plot["tell"], where)))
            self._check(self.plots[-1], self.plots[-1].tell, where, ())

    @staticmethod
    def _slot(spec: Any, words: Mapping[str, tuple[Entry, ...]], where: str) -> tuple[Entry, ...]:
        """The words that may fill a slot: from the word lists it names ("girl or boy"), or from its own list."""
        if not isinstance(spec, str):
            return _entries(spec, where)
        if unknown := [name for name in spec.split(" or ") if name not in words]:
            raise ValueError(f"{where}: no word list {unknown[0]!r}; there are {', '.join(words)}")
        return tuple(entry for name in spec.split(" or ") for entry in words[name])

    @staticmethod
    def _check_enough(slots: Mapping[str, tuple[Entry, ...]], where: str) -> None:
        """Check that each slot has a word left after the slots before it have each taken one."""
        for count, (name, entries) in enumerate(slots.items()):
            words = {entry[""] for entry in entries}
            rivals = [other for other in list(slots.values())[:count] if words & {entry[""] for entry in other}]
            if len(words) <= len(rivals):
                raise ValueError(f"{where}, slot {name!r}: too few words, as other slots may take all {len(words)}")

    def _check(self, plot: Plot, template: Template, where: str, trail: tuple[Slot, ...]) -> None:
        """Check that the plot can fill every slot that it can reach, and that no slot contains itself."""
        for part in template:
            if isinstance(part, Choice):
                for way in part.ways:
                    self._check(plot, way, where, trail)
            elif isinstance(part, Slot) and part.name != "a":
                slot = Slot(part.name, part.attribute)
                if slot in trail:
                    raise ValueError(f"{where}: slot {part.name!r} contains itself")
                for inner in self._fillings(plot, slot, where):
                    self._check(plot, inner, where, (*trail, slot))

    def _fillings(self, plot: Plot, slot: Slot, where: str) -> tuple[Template, ...]:
        if slot.name in self.phrases and slot.name not in plot.slots and not slot.attribute:
            return self.phrases[slot.name].ways
        if slot.name not in plot.slots:
            raise ValueError(f"{where}: slot {slot.name!r} is not declared; slots are {', '.join(plot.slots)}")
        if lacking := [entry[""] for entry in plot.slots[slot.name] if slot.attribute not in entry]:
            raise ValueError(f"{where}: slot {slot.name!r} has no {slot.attribute!r} when it is {lacking[0]!r}")
        return tuple(entry[slot.attribute] for entry in plot.slots[slot.name])

    def story(self, plot: Plot, rng: random.Random, cast: random.Random | None = None) -> str:
        """Draw one story of a plot. No two slots get the same word. `cast` draws the words; None: `rng` draws them."""
        drawn: dict[str, Entry] = {}
        cast = cast or rng
        for name, entries in plot.slots.items():
            taken = [entry[""] for entry in drawn.values()]
            free = [entry for entry in entries if entry[""] not in taken]
            drawn[name] = free[int(cast.random() * len(free))]
        text = self._tell(plot.tell, drawn, {}, rng)
        text = re.sub(ARTICLE + r"(?=\s+(\w+))", lambda word: "n" if self.an_before.match(word[1]) else "", text)
        return "\n\n".join(self.space.join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))

    def _tell(self, template: Template, drawn: Mapping[str, Entry], told: dict[Slot, str], rng: random.Random) -> str:
        """Write out a template. `told` keeps the text of each slot, which stays the same throughout the story."""
        out = []
        for part in template:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, Choice):
                out.append(self._tell(part.ways[int(rng.random() * len(part.ways))], drawn, told, rng))
            elif part.name == "a":
                out.append(("A" if part.capital else "a") + ARTICLE)
            else:
                out.append(self._fill(part, drawn, told, rng))
        return "".join(out)

    def _fill(self, slot: Slot, drawn: Mapping[str, Entry], told: dict[Slot, str], rng: random.Random) -> str:
        key = Slot(slot.name, slot.attribute)
        if slot.name not in drawn:
            text = self._tell((self.phrases[slot.name],), drawn, told, rng)
        elif key in told:
            text = told[key]
        else:
            text = told[key] = self._tell(drawn[slot.name][slot.attribute], drawn, told, rng)
        return text[:1].upper() + text[1:] if slot.capital else text


@cache
def load(language: str) -> Grammar:
    """The bundled grammar of a language.

    Raises:
        ValueError: if there is none.
    """
    folder = resources.files(__package__)
    names = sorted(file.name for file in folder.iterdir())
    languages = [match[1] for name in names if (match := re.fullmatch(r"stories_(\w+)\.yaml", name))]
    if language not in languages:
        raise ValueError(f"no stories in {language!r}; there are stories in {', '.join(languages)}")
    source = (folder / f"stories_{language}.yaml").read_text(encoding="utf-8")
    return Grammar(yaml.load(source, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), language)


def stories(
    split: Literal["train", "validation"], num_bytes: int = 3_000_000, seed: int = 0, language: str = "en"
) -> Iterator[str]:
    """Distinct stories with at least `num_bytes` bytes of UTF-8 in total.

    Raises:
        ValueError: if the split or the language is unknown, or the grammar has too few stories.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'validation'")
    return _told(load(language), split == "validation", num_bytes, f"{language} {seed}")


def _told(grammar: Grammar, validation: bool, num_bytes: int, seed: str) -> Iterator[str]:
    rng = random.Random(seed)
    seen: set[int] = set()
    repeats = 0
    while num_bytes > 0:
        for plot in sorted(grammar.plots, key=lambda _: rng.random()):
            text = grammar.story(plot, rng, random.Random(f"{seed} {plot.name}"))
            digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            repeats = repeats + 1 if digest in seen else 0
            if repeats == 1000:
                raise ValueError(f"the grammar has only about {len(seen)} stories; reduce num_bytes")
            fresh = digest not in seen
            seen.add(digest)
            if fresh and validation == (digest % VALIDATION_SHARE == 0) and num_bytes > 0:
                num_bytes -= len(text.encode())
                yield text
