"""Rules for correct stories in each language, independent of the grammar."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lit_lm.data.stories import Grammar, load


@dataclass(frozen=True, repr=False)
class Rules:
    grammar: Grammar
    faults: Mapping[str, str]
    """Patterns that no story may contain, by the name of the fault."""
    quotes: str
    """Pattern of a paragraph's quotation marks, without the rest of the paragraph."""
    end: str
    """Pattern at the end of a paragraph."""
    size: Callable[[str], int]
    """Size of a piece of text; the sizes of the pieces of a story add up to its size."""
    sizes: range
    people: Mapping[str, str]
    """Pronoun or similar word -> persons that it may refer to, one of whom must be in the story."""
    names: frozenset[str]
    opening: str
    openings: float
    """Minimum share of stories that begin with `opening`."""
    word: str
    words: range
    """Allowed number of distinct words in all stories."""

    def mistakes(self, story: str) -> list[str]:
        found = [f"{name}: {match[0]!r}" for name, rule in self.faults.items() if (match := re.search(rule, story))]
        for pronoun, people in self.people.items():
            if (match := re.search(pronoun, story)) and not re.search(people, story):
                found.append(f"nobody is {match[0]!r}")
        paragraphs = story.split("\n\n")
        if not 2 <= len(paragraphs) <= 6:
            found.append(f"{len(paragraphs)} paragraphs")
        if self.size(story) not in self.sizes:
            found.append(f"its size is {self.size(story)}")
        for paragraph in paragraphs:
            marks = re.sub(r'[^"“”]', "", paragraph)
            if not re.fullmatch(self.quotes, marks) or not re.search(self.end, paragraph):
                found.append(f"quotes or end of {paragraph!r}")
            if not paragraph.isprintable():
                found.append(f"line breaks of {paragraph!r}")
        return found


def _names(grammar: Grammar, attribute: str, value: str) -> frozenset[str]:
    """Names of children and animals with this `attribute`. Family words, which have it too, are in lower case."""
    slots = [words for plot in grammar.plots for words in plot.slots.values()]
    entries = [word for words in slots for word in words if word.get(attribute) == (value,)]
    return frozenset(str(word[""][0]) for word in entries if "kid" in word or str(word[""][0]).istitle())


def _english() -> Rules:
    grammar = load("en")
    names = {pronoun: _names(grammar, "he", pronoun) for pronoun in ("he", "she")}
    family = "mom|dad|grandma|grandpa|sister|brother|mother|man|woman|seller|maker|snowman"
    questions = "Can|May|Will|Is|Are|Do|Does|Did|Don't|Why|Who|Where|What|How|Has|(?:Oh no|Mom|Dad), where"

    def anyone(some: frozenset[str]) -> str:
        return rf"\b(?i:{family})\b|\b(?:{'|'.join(sorted(some))})\b"

    return Rules(
        grammar,
        faults={
            "an before a consonant": r"\b[Aa]n (?![aeiouAEIOU]|hour|honest)",
            "a before a vowel": r"\b[Aa] (?=[aeiouAEIOU])(?!uni|use|one)",
            "spacing": r"  | [,.!?;:]|[,.!?;:](?=[A-Za-z])|\n |^ | $| \n",
            "leftover notation": r"[\[\]{}|^_]",
            "small letter after a stop": r"[.!?] [a-z]|^[a-z]|\n[a-z]",
            "small letter after an opening quote": r'(?:^|[.!?:\n]"? )"[a-z]',
            "speech that runs into the tale": r'[A-Za-z]"',
            "a quote mark inside a word": r'""|[^\s"]"[^\s".,!?]',
            "a comma before a capitalized word that is not a name": r'," (?:The|He|She|It|They)\b',
            "a question without its mark": r'"(?:[^"]*[.!] )?(?:Can|May|Will|Is|Do you|Does|Did|Why|Who|Where)'
            r' [^"?]*[,.!]"',
            "a mark without its question": rf'(?:"|[.!] )(?!{questions})[A-Z][^"?.!]*\?',
            "doubled word": r"\b(?!very|had|and up)(\w+) \1\b",
            "doubled stop": r"[.,!?][.,;:!?]",
            "bare mom or dad": r"(?<![Hh]is )(?<![Hh]er )(?<!their )(?<!'s )\b(?:mom|dad|grandma|grandpa)\b",
            "Mom or Dad owned": r"\b(?:[Hh]is|[Hh]er|'s) (?:Mom|Dad|Grandma|Grandpa)\b",
        },
        quotes='(?:"")*',
        end=r'[.!?]"?$',
        size=lambda text: len(re.findall(r"\s+", text)),
        sizes=range(60, 201),
        people={
            r"\b(?:[Hh]e|[Hh]is|[Hh]im|boy)\b": anyone(names["he"]),
            r"\b(?:[Ss]he|[Hh]er|girl)\b": anyone(names["she"]),
        },
        names=names["he"] | names["she"],
        opening="Once upon a time",
        openings=0.5,
        word=r"(?i)[a-z']+",
        words=range(800, 2500),
    )


COUNTS = "一两二三四五六七八九十几每这那"
MEASURES = {
    "只": "猫 刺猬 兔子 松鼠 鸡 狗 布老虎 布兔子 小布熊 灰狼 狗熊 恐龙 狐狸 鹿 羊 羊羔 浣熊 田鼠 老鼠 仓鼠 萤火虫 蟋蟀 "
    "蝙蝠 蜗牛 小鸟 风筝 蚂蚱 年兽 河马 老虎 鳄鱼 乌龟 木船 眼睛",
    "只群": "鸭子 鹅",
    "只对": "燕子",
    "匹": "马 木马",
    "个": "布娃娃 饭团 豆沙包 肉夹馍 橘子 桃子 妖怪 花环 篮子 小姑娘 小女孩 小男孩 村子 盒子 面人 糖人 纸风车 影子 "
    "办法 主意 小芽 南瓜 葫芦 雪球 手电筒 老爷爷 小帮手 小徒弟 鬼脸 铃铛 抽屉",
    "个片篮": "苹果",
    "个块盘": "月饼",
    "张": "葱油饼 地图 字条 纸条",
    "张幅": "画",
    "块": "糯米糕 石头",
    "根": "香蕉 玉米 胡萝卜 丝瓜 竹竿 红绳子 线",
    "列": "火车",
    "架": "飞机",
    "条": "鱼干 围巾 小龙 蚯蚓 金鱼",
    "顶": "帽子 红帽子 草帽 毡帽",
    "只双": "手套",
    "把": "扇子 松子 花伞",
    "枚": "硬币",
    "盆桶碗": "清水",
    "碗": "饺子",
    "艘": "大船",
    "颗粒把": "种子",
    "颗": "星星 牙",
    "朵": "大花 小花 灰云",
    "串": "西红柿 糖葫芦 脚印",
    "片": "小草 大海 月光 荷叶",
    "辆": "自行车 拖拉机 卡车 客车 吊车",
    "座": "独木桥 木桥",
    "间": "小屋",
    "道": "彩虹",
    "盏": "灯笼",
    "面": "铜锣 小鼓",
    "支": "喇叭",
    "棵": "树",
    "盘": "杏子 枇杷 李子 樱桃",
    "件": "棉袄",
    "阵": "大风 吼声",
}
"""Measure words -> nouns that require one of them."""


def _measure_words() -> str:
    """Pattern of a number, a wrong measure word for the noun, possibly a description, and the noun."""
    every, between = set("".join(MEASURES)), rf"(?:[^{COUNTS}，。！？：；、“”…—]{{1,6}}的)?[大小新破花]{{0,2}}"
    other_noun = "[伞狗猫羊叶]|种子|风筝|饺子"  # 一把小花伞 is not a 小花
    return "|".join(
        f"[{COUNTS}][{''.join(sorted(every - set(some)))}]{between}(?:{nouns.replace(' ', '|')})(?!{other_noun})"
        for some, nouns in MEASURES.items()
    )


def _chinese() -> Rules:
    grammar = load("zh")
    questions = "[^，。！？]*(?:[吗呢啦吧呀什谁哪怎]|会不会|是不是|好不好|难道|一起试试|信|你？)"
    boys, girls = ("|".join(sorted(_names(grammar, "ta", ta))) for ta in "他她")
    return Rules(
        grammar,
        faults={
            "neither a character nor Chinese punctuation": r"[^一-鿿，。！？：；、“”…—\n]",
            "doubled punctuation": r"[，。！？：；、][，。！？：；、]",
            "punctuation at the start": r"(?:^|\n|“)[，。！？：；、”]",
            "half an ellipsis or dash": r"(?<!…)(?:……)*…(?!…)|(?<!—)(?:——)*—(?!—)",
            "speech that runs into the tale": r"(?<![，。！？…—])”(?!的一声|一声|地|的声音)",
            "speech without its colon": r"[说问喊叫想唱]“",
            "a question without its mark": r"吗[，。！]|为什么[^，。！？]*[。！]",
            "a mark without its question": rf"(?:^|[，。！？：“])(?!{questions})[^，。！？]*？",
            "one syllable three times": r"([^咚当笃突刷喔呜…—])\1\1",
            "doubled particle": r"([了的地得着过呢吗吧呀])\1",
            "a measure word of another noun": _measure_words(),
            "children who may be two girls": r"他们|她们",
        },
        quotes="(?:“”)*",
        end=r"[。！？…—]”?$",
        size=lambda text: len("".join(text.split())),
        sizes=range(150, 351),
        people={
            "他": f"爸爸|爷爷|外公|哥哥|弟弟|{boys}",
            "小男孩": boys,
            "她": f"妈妈|奶奶|外婆|姐姐|妹妹|{girls}",
            "小女孩|小姑娘": girls,
        },
        names=_names(grammar, "ta", "他") | _names(grammar, "ta", "她"),
        opening="从前|很久以前",
        openings=1 / 3,
        word="[一-鿿]",
        words=range(500, 1500),
    )


RULES = {"en": _english(), "zh": _chinese()}
