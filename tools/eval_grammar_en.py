"""Minimal pairs of English grammar, in the words of stories for children: a right sentence and a wrong one.

The idea is that of BLiMP (Warstadt et al. 2020): a model that knows the rule finds the right sentence likelier. Both
sentences have the same words but for the place where the rule is broken, and each rule is broken in two directions, so
that neither the shorter sentence nor a more frequent word is right more often.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval_tasks import Draw

Pair = tuple[str, str]
"""The right sentence and the wrong one."""

GIRLS = ("Lily", "Mia", "Anna", "Sara", "Lucy", "Emma", "Molly", "Kate")
BOYS = ("Tom", "Tim", "Ben", "Max", "Henry", "Jack", "Peter", "Luke")
NAMES = GIRLS + BOYS
ANIMALS = tuple(
    (name, f"{name}s") for name in ("dog", "cat", "duck", "frog", "rabbit", "bird", "horse", "bear", "goat", "squirrel")
)
CHILDREN = (("boy", "boys"), ("girl", "girls"), ("child", "children"), ("baby", "babies"))
THINGS = tuple(
    (name, f"{name}s") for name in ("ball", "book", "flower", "cup", "hat", "toy", "boat", "stone", "cookie")
)
ADJECTIVES = ("little", "big", "young", "funny", "small", "nice", "quiet")
FEELINGS = ("hungry", "tired", "wet", "cold", "thirsty", "warm", "sleepy", "late")
PLACES = ("in the garden", "by the river", "under the tree", "near the house", "on the grass", "in the park")
PLAYING = tuple((verb, f"{verb}s") for verb in ("run", "sleep", "jump", "play", "eat", "sing", "dance", "walk", "sit"))


def subject_verb(draw: "Draw") -> Pair:
    """The verb agrees with the subject beside it: the dogs were, not was."""
    plural = draw.flip()
    noun = draw.one(ANIMALS + CHILDREN)[plural]
    singular_verb, plural_verb, rest = draw.one(
        (
            ("was", "were", draw.one(FEELINGS)),
            ("is", "are", draw.one(PLACES)),
            ("has", "have", f"a {draw.one(THINGS)[0]}"),
            (*draw.one(PLAYING)[::-1], f"{draw.one(PLACES)} every day"),
        )
    )
    right, wrong = (plural_verb, singular_verb) if plural else (singular_verb, plural_verb)
    start = f"The {draw.one(ADJECTIVES)} {noun}"
    return f"{start} {right} {rest}.", f"{start} {wrong} {rest}."


def distant_subject(draw: "Draw") -> Pair:
    """The verb agrees with the subject, and not with the noun before it: the dog near the trees was, not were."""
    plural = draw.flip()
    subject, other = draw.one(ANIMALS + CHILDREN)[plural], draw.one(THINGS)[not plural]
    verbs = draw.one((("was", "were"), ("is", "are")))
    start = f"The {subject} {draw.one(('near', 'by', 'behind', 'with'))} the {other}"
    feeling = draw.one(FEELINGS)
    return f"{start} {verbs[plural]} {feeling}.", f"{start} {verbs[not plural]} {feeling}."


def determiner_noun(draw: "Draw") -> Pair:
    """The noun agrees with its determiner: these dogs, not these dog."""
    plural = draw.flip()
    determiner = draw.one(
        ("these", "those", "many", "two", "three") if plural else ("this", "that", "one", "a", "every")
    )
    noun = draw.one(ANIMALS + THINGS)
    start = f"{draw.one(NAMES)} {draw.one(('looked at', 'liked', 'wanted', 'saw', 'talked about'))} {determiner}"
    if draw.flip():
        start += f" {draw.one(('little', 'big', 'red', 'white', 'brown', 'small'))}"
    return f"{start} {noun[plural]}.", f"{start} {noun[not plural]}."


def article(draw: "Draw") -> Pair:
    """`an` before a vowel, `a` before a consonant."""
    vowel = draw.flip()
    words = (
        "apple",
        "egg",
        "owl",
        "orange",
        "umbrella",
        "elephant",
        "ant",
        "old dog",
        "old tree",
        "empty box",
        "onion",
    )
    if not vowel:
        words = (
            "ball",
            "cake",
            "bird",
            "cookie",
            "flower",
            "bear",
            "kite",
            "big egg",
            "red apple",
            "little owl",
            "cup",
        )
    rest = f"{draw.one(words)}{draw.one(('', *(f' {place}' for place in PLACES)))}"
    start = f"{draw.one(NAMES)} {draw.one(('saw', 'found', 'had', 'wanted', 'looked at'))}"
    return tuple(f"{start} {word} {rest}." for word in (("an", "a") if vowel else ("a", "an")))  # type: ignore[return-value]


def reflexive(draw: "Draw") -> Pair:
    """A reflexive pronoun agrees with the subject in gender and number: Lily hurt herself, not himself."""
    animal = draw.one(("rabbit", "dog", "bird", "cat", "duck"))
    subject, right, wrong = draw.one(
        (
            (draw.one(GIRLS), "herself", "himself"),
            (draw.one(BOYS), "himself", "herself"),
            ("The girls", "themselves", "herself"),
            ("The girl", "herself", "themselves"),
            ("The boys", "themselves", "himself"),
            ("The boy", "himself", "themselves"),
            (f"The {animal}s", "themselves", "itself"),
            (f"The {animal}", "itself", "themselves"),
        )
    )
    frame = draw.one(
        (
            "hurt {}", "washed {} in the river", "saw {} in the mirror", "hid {} under the bed", "looked at {}",
            "made {} a sandwich", "laughed at {}", "talked to {}",
        )
    )  # fmt: skip
    return f"{subject} {frame.format(right)}.", f"{subject} {frame.format(wrong)}."


def pronoun_case(draw: "Draw") -> Pair:
    """He and she are subjects, him and her objects."""
    subject, object_ = draw.one((("I", "me"), ("he", "him"), ("she", "her"), ("they", "them"), ("we", "us")))
    if draw.flip():
        rest = draw.one(
            (
                "wanted to play", "found a red ball", "went to the park", "sat down on the grass", "ate the cake",
                "ran home", "looked for the cat", "saw a big bird",
            )
        )  # fmt: skip
        start = draw.one(("Then", "So", "Soon", "Yesterday,"))
        return f"{start} {subject} {rest}.", f"{start} {object_} {rest}."
    frame = draw.one(
        (
            "Mom gave {} a cookie.", "The dog ran after {}.", "Can you help {}?", "{name} played with {}.",
            "{name} looked at {}.", "The cat sat next to {}.", "Dad told {} a story.", "{name} waited for {}.",
        )
    )  # fmt: skip
    name = draw.one(NAMES)
    return frame.format(object_, name=name), frame.format(subject, name=name)


def argument_structure(draw: "Draw") -> Pair:
    """Some verbs need an object, and others take none: Tom found the ball, but not Tom slept the ball."""
    with_object = draw.one(("found", "took", "dropped", "wanted", "liked", "needed", "bought", "opened"))
    without = draw.one(("slept", "smiled", "fell", "laughed", "cried", "waited", "arrived", "sat"))
    subject = draw.one((*NAMES, *(f"The {noun}" for noun, _ in ANIMALS + CHILDREN)))
    if draw.flip():
        thing = draw.one(("ball", "box", "book", "hat", "bag", "cup", "toy"))
        return f"{subject} {with_object} the {thing}.", f"{subject} {without} the {thing}."
    place = draw.one(PLACES)
    return f"{subject} {without} {place}.", f"{subject} {with_object if with_object != 'opened' else 'took'} {place}."


def verb_form(draw: "Draw") -> Pair:
    """The plain form follows did not, could and to; elsewhere a story needs the past: Tom did not go, but Tom went."""
    plain, past, rest = draw.one(
        (
            ("go", "went", "to the park"), ("see", "saw", "a bird"), ("find", "found", "the ball"),
            ("eat", "ate", "an apple"), ("take", "took", "the box"), ("run", "ran", "to the river"),
            ("come", "came", "home"), ("sing", "sang", "a song"), ("swim", "swam", "in the lake"),
            ("give", "gave", "Mom a flower"), ("drink", "drank", "some milk"), ("make", "made", "a cake"),
        )
    )  # fmt: skip
    name = draw.one(NAMES)
    if draw.flip():
        start = f"{name} {draw.one(('did not', 'could', 'wanted to', 'could not', 'had to'))}"
        return f"{start} {plain} {rest}.", f"{start} {past} {rest}."
    start = f"{draw.one(('Then', 'Yesterday,', 'So', 'After lunch,', 'Last night,'))} {name}"
    return f"{start} {past} {rest}.", f"{start} {plain} {rest}."


def word_order(draw: "Draw") -> Pair:
    """Adjective before noun, verb before object, preposition before its noun, article first."""
    name, verb, adjective = (
        draw.one(NAMES),
        draw.one(("kicked", "found", "saw", "liked")),
        draw.one(("little", "big", "small")),
    )
    noun, thing, place = draw.one(ANIMALS)[0], draw.one(THINGS)[0], draw.one(("box", "bag", "house", "car"))
    return draw.one(
        (
            (f"{name} followed the {adjective} {noun}.", f"{name} followed the {noun} {adjective}."),
            (f"{name} {verb} the {thing}.", f"{name} the {thing} {verb}."),
            (f"The {thing} was in the {place}.", f"The {thing} was the {place} in."),
            (f"The {adjective} {noun} ran away.", f"{adjective.capitalize()} the {noun} ran away."),
            (f"The {noun} did not see {name}.", f"The {noun} did see not {name}."),
        )
    )


def question(draw: "Draw") -> Pair:
    """In a question, the auxiliary precedes the subject."""
    subject = draw.one((*NAMES, *(f"the {noun}" for noun, _ in ANIMALS)))
    word, feeling, thing = draw.one(("Where", "Why", "When")), draw.one(FEELINGS), draw.one(THINGS)[0]
    verb = draw.one(("go", "hide", "run", "sleep", "play", "sing"))
    return draw.one(
        (
            (f"{word} did {subject} {verb}?", f"{word} {subject} did {verb}?"),
            (f"Why is {subject} so {feeling}?", f"Why {subject} is so {feeling}?"),
            (f"What does {subject} want?", f"What {subject} does want?"),
            (f"Can {subject} {verb} with us?", f"Can {verb} {subject} with us?"),
            (f"How did {subject} find the {thing}?", f"How {subject} did find the {thing}?"),
        )
    )


PARADIGMS: tuple[Callable[["Draw"], Pair], ...] = (
    subject_verb, distant_subject, determiner_noun, article, reflexive, pronoun_case, argument_structure, verb_form,
    word_order, question,
)  # fmt: skip
