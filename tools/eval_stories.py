"""Questions about stories: the last word of a sentence, the last sentence of a story, and three wrong choices for each.

The bundled corpus' grammar makes the stories, with seeds for other characters and things (SEEDS). They are validation
stories: no training data of `stories` and `stories-zh` contains their texts, but it contains their plots.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_lm.data.stories import VALIDATION_SHARE, Plot, load

if TYPE_CHECKING:
    from eval_tasks import Draw

SEEDS = range(1, 201)
PER_PLOT = 8
"""Items of a plot in a task, at most."""
NUM_WRONG = 3
NEAREST = 12
"""Wrong last sentences are drawn from the NEAREST ones in length, so that the length says nothing."""

NOUNS = {
    "en": """
        ball bank barn basket bear bed bell bench bike bird boat book boot box bus bush cake card carrot castle cat
        chair closet cloud couch cup dog door dragon drawer drum duck farm field fire floor frog garden gate goose
        hand hat hill hole house jar kitchen kite knee lake lamb lamp leaf log map monkey mouth nest note nose owl
        park path pillow pond pot pumpkin puppy rabbit river road rock room rope sandwich scarf school sea seed shed
        shelf shovel sky snowman sock star stick stone store stream string table tail towel tower train tree truck
        umbrella wagon wall well wheel window wing
    """,
    "zh": """
        雪人 胡萝卜 藏宝图 铁盒子 桌子 月饼 太阳 月亮 村子 门口 窗户 翅膀 虫子 抽屉 箱子 彩虹 草帽 毡帽 蚯蚓 镜子 床
        风车 风筝 皮球 雨衣 雨伞 柜子 大衣柜 枕头 种子 竹架子 南瓜 丝瓜 西红柿 蜗牛 刺猬 小刺猬 小狐狸 小松鼠 萤火虫
        喇叭 铜锣 书包 院子 河边 河里 树林 山洞 小路 小草 小花 花瓣 星星 灯笼 香蕉 橘子 苹果 桃子 枇杷 李子 饺子
        葱油饼 糖葫芦 雪球 牙刷 脚印 帽子 鼻子 尾巴 眼睛 网 绳子 桥 小屋 被子 轮子 松子 栗子
    """,
}
"""Nouns that can replace each other at the end of a sentence."""
SENTENCE = {"en": r'\s*[^.!?]*[.!?]+"?', "zh": r"\s*[^。！？…]*[。！？…]+”?"}
PRONOUNS = {
    "en": {"he": r"\b(?:[Hh]e|[Hh]is|[Hh]im|himself)\b", "she": r"\b(?:[Ss]he|[Hh]ers?|herself)\b"},
    "zh": {"他": "他", "她": "她"},
}
CHILD = {"en": ("he", "kind"), "zh": ("ta", "kid")}
"""Attributes of the word for a child in the grammar: its pronoun, and one that only children have."""
WHOLE = {"en": r"[A-Z][^\"]{24,}[.!]", "zh": r"[^“”…]{9,}[。！]"}
"""A sentence that can end a story: without speech, and not too short."""
GENERIC = "And they all lived happily ever after."
BEFORE_NOUN = {"en": r"\b(?:the|an?|his|her|its|my|your|our|their|this|that) ", "zh": ""}


class Tale(NamedTuple):
    """A story."""

    plot: Plot
    sentences: list[str]
    """Each with the space before it."""
    hero: str | None
    """The child that occurs most often."""


@cache
def tales(code: str) -> list[Tale]:
    """Validation stories with different casts."""
    grammar, names, found = load(code), children(code), []
    for seed in SEEDS:
        rng = random.Random(f"evaluation {code} {seed}")
        for plot in grammar.plots:
            text = grammar.story(plot, rng, rng)
            digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            if digest % VALIDATION_SHARE == 0:
                heroes = Counter(name for name in names for _ in re.findall(word(code, name), text))
                found.append(
                    Tale(plot, re.findall(SENTENCE[code], text), max(heroes, key=heroes.__getitem__, default=None))
                )
    return found


@cache
def children(code: str) -> dict[str, str]:
    """The names of children, and the pronoun of each."""
    pronoun, mark = CHILD[code]
    entries = [entry for plot in load(code).plots for entries in plot.slots.values() for entry in entries]
    return {str(entry[""][0]): str(entry[pronoun][0]) for entry in entries if mark in entry and pronoun in entry}


def word(code: str, text: str) -> str:
    """Pattern of a word; Chinese has no borders between words."""
    return rf"\b{text}\b" if code == "en" else text


def of_few_plots(tales: Iterable[Tale]) -> Iterator[Tale]:
    """At most PER_PLOT of each plot."""
    taken = Counter[str]()
    for tale in tales:
        taken[tale.plot.name] += 1
        if taken[tale.plot.name] <= PER_PLOT:
            yield tale


def item(before: Sequence[str], right: str, wrong: list[str]) -> dict[str, Any]:
    """An item whose context is the last two paragraphs."""
    return {"context": "\n\n".join("".join(before).split("\n\n")[-2:]), "right": right, "wrong": wrong}


def cloze(code: str, draw: "Draw", number: int) -> list[dict[str, Any]]:
    """The last word of a sentence, a noun that occurs before. One of the wrong nouns also does, if there is one.

    The choices are whole sentences, so that no tokenizer joins the word with the text before it.
    """
    found = []
    for tale in of_few_plots(tale for tale in tales(code) if last_nouns(code, tale)):
        place, noun = draw.one(last_nouns(code, tale))
        before, sentence = tale.sentences[:place], tale.sentences[place]
        start, end = sentence.rsplit(noun, 1)
        wrong = wrong_nouns(code, draw, noun, "".join(before), sentence)
        found.append(item(before, sentence, [start + each + end for each in wrong]))
    return found[:number]


def last_nouns(code: str, tale: Tale) -> list[tuple[int, str]]:
    """The sentences in the second half of a story that end with a noun that occurs before, and the noun."""
    return [
        (place, noun)
        for place in range(len(tale.sentences) // 2, len(tale.sentences))
        for noun in NOUNS[code].split()
        if re.search(rf"{BEFORE_NOUN[code]}{noun}[.!?。！？]+[\"”]?$", tale.sentences[place])
        and re.search(word(code, noun), "".join(tale.sentences[:place]))
    ]


def wrong_nouns(code: str, draw: "Draw", noun: str, before: str, sentence: str) -> list[str]:
    """Nouns that fit the article, and are not part of each other."""
    has_article = re.search(rf"\ban? {noun}\b", sentence)
    fitting = [
        other
        for other in NOUNS[code].split()
        if other not in noun and noun not in other and other not in sentence
        if not has_article or (other[0] in "aeiou") == (noun[0] in "aeiou")
    ]
    here = draw.some([other for other in fitting if re.search(word(code, other), before)], 1)
    return here + draw.some([other for other in fitting if other not in before], NUM_WRONG - len(here))


def ending(code: str, draw: "Draw", number: int) -> list[dict[str, Any]]:
    """The last sentence of a story about a child. Wrong are those of other plots, about as long, with this child."""
    usable = [
        tale for tale in tales(code) if tale.hero and re.fullmatch(WHOLE[code], last(tale)) and last(tale) != GENERIC
    ]
    found = []
    for tale in of_few_plots(usable):
        before, right = tale.sentences[:-1], tale.sentences[-1]
        others = {renamed(code, other, tale) for other in usable if other.plot.name != tale.plot.name} - {None}
        nearest = sorted(others, key=lambda text: (abs(len(text) - len(last(tale))), text))[:NEAREST]
        space = right[: len(right) - len(right.lstrip())]
        found.append(item(before, right, [space + text for text in draw.some(nearest, NUM_WRONG)]))
    return found[:number]


def last(tale: Tale) -> str:
    return tale.sentences[-1].strip()


def renamed(code: str, other: Tale, tale: Tale) -> str | None:
    """The last sentence of another story, about this child; None if it does not fit: it has another pronoun, another
    child, or a thing that is not in this story.
    """
    names, text = children(code), last(other)
    assert other.hero is not None
    assert tale.hero is not None
    if any(re.search(pattern, text) for pronoun, pattern in PRONOUNS[code].items() if pronoun != names[tale.hero]):
        return None
    story = "".join(tale.sentences[:-1])
    fillings = {str(entry[""][0]) for entries in other.plot.slots.values() for entry in entries} - {other.hero}
    named = [each for each in fillings if re.search(word(code, each), text, re.I)]
    if any(each == tale.hero or each not in story for each in named):
        return None
    return re.sub(word(code, other.hero), tale.hero, text)
