"""Minimal pairs of Chinese grammar, in the words of stories for children: a right sentence and a wrong one.

Written as Chinese, not translated. Both sentences of a pair have the same length. Left out are rules that many speakers
break (的, 得 and 地), and classifiers that vary between regions.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval_tasks import Draw

Pair = tuple[str, str]
"""The right sentence and the wrong one."""

FAMILY = ("妈妈", "爸爸", "奶奶", "爷爷", "哥哥", "姐姐", "弟弟", "妹妹")
PEOPLE = (*FAMILY, "朵朵", "豆豆", "冬冬", "佳佳")
ANIMALS = ("小狗", "小猫", "小兔", "小熊", "小鸭", "小猴", "小羊", "小鸟")
FOOD = ("苹果", "西瓜", "饼干", "面包", "蛋糕", "包子", "月饼", "香蕉")
THINGS = ("帽子", "雨伞", "书包", "铅笔", "杯子", "皮球", "风筝", "积木")
CLASSIFIERS = {
    "只": ("小猫", "小鸟", "兔子", "鸭子", "蝴蝶", "蚂蚁"),
    "本": ("书", "故事书", "图画书", "字典"),
    "条": ("小河", "小路", "绳子"),
    "张": ("照片", "桌子", "床", "邮票"),
    "棵": ("大树", "苹果树", "松树", "柳树"),
    "辆": ("汽车", "自行车", "卡车", "公共汽车"),
    "件": ("衣服", "毛衣", "外套", "礼物"),
    "座": ("山", "城堡", "塔"),
}
"""Classifiers, and nouns that take this one and no other of them."""


def classifier(draw: "Draw") -> Pair:
    """名词有自己的量词：一只小猫，不是一本小猫。"""
    right = draw.one(tuple(CLASSIFIERS))
    wrong = draw.one(tuple(other for other in CLASSIFIERS if other != right))
    start = draw.one(("那里有", *(f"{draw.one(PEOPLE)}{verb}" for verb in ("看见了", "发现了", "梦见了"))))
    start, noun = start + draw.one(("一", "两", "三")), draw.one(CLASSIFIERS[right])
    return f"{start}{right}{noun}。", f"{start}{wrong}{noun}。"


def word_order(draw: "Draw") -> Pair:
    """时间、地点和副词在动词前面，修饰语在名词前面。"""
    who, animal, food, thing = draw.one(PEOPLE), draw.one(ANIMALS), draw.one(FOOD), draw.one(THINGS)
    place, time = draw.one(("院子里", "房间里", "公园里", "大树下")), draw.one(("昨天", "早上", "下午", "星期天"))
    adverb, action = draw.one(("也", "早就", "已经")), draw.one(("写字", "睡觉", "吃饭", "看书", "画画", "讲故事"))
    return draw.one(
        (
            (f"{who}在{place}{action}。", f"{who}{action}在{place}。"),
            (f"{who}{time}买了{food}。", f"{who}买了{food}{time}。"),
            (f"{who}{adverb}知道这件事。", f"{who}知道{adverb}这件事。"),
            (f"这是{who}的{thing}。", f"这是的{who}{thing}。"),
            (f"{who}和{animal}都很高兴。", f"都{who}和{animal}很高兴。"),
        )
    )


def aspect(draw: "Draw") -> Pair:
    """了、着、过不能互换：从来没见过，不是从来没见了。"""
    who, food = draw.one(PEOPLE), draw.one(("苹果", "包子", "月饼", "鸡蛋", "饺子", "橘子"))
    never = draw.one((("见", "大海"), ("去", "动物园"), ("坐", "火车"), ("骑", "马"), ("看", "电影"), ("滑", "雪")))
    doing = draw.one((("唱", "歌"), ("画", "画"), ("看", "书"), ("吃", "饭"), ("洗", "衣服"), ("做", "作业")))
    seen = f"一只{draw.one(('蝴蝶', '兔子', '小鸟'))}"
    return draw.one(
        (
            (f"{who}从来没{never[0]}过{never[1]}。", f"{who}从来没{never[0]}了{never[1]}。"),
            (f"{who}正{doing[0]}着{doing[1]}呢。", f"{who}正{doing[0]}过{doing[1]}呢。"),
            (f"{who}已经吃了三个{food}。", f"{who}已经吃着三个{food}。"),
            *((f"{who}{verb}了{seen}。", f"{who}{verb}着{seen}。") for verb in ("看见", "找到")),
        )
    )


def ba_bei(draw: "Draw") -> Pair:
    """把和被后面先说名词，再说动词。"""
    who, animal, food, thing = draw.one(PEOPLE), draw.one(ANIMALS), draw.one(FOOD), draw.one(THINGS)
    done = draw.one(("找到了", "弄丢了", "收好了", "拿走了"))
    place = draw.one(("桌子上", "椅子上", "箱子里", "床上"))
    return draw.one(
        (
            (f"{who}把{thing}{done}。", f"{who}把{done}{thing}。"),
            (f"{who}把{food}吃完了。", f"{who}把吃完了{food}。"),
            (f"{who}把{thing}放在{place}。", f"{who}把放{thing}在{place}。"),
            (f"{food}被{animal}吃了。", f"{food}被吃了{animal}。"),
            (f"{thing}被{who}{done}。", f"{thing}被{done}{who}。"),
        )
    )


def negation(draw: "Draw") -> Pair:
    """不和没不能互换：没有、没去过，不是、不会、不甜。"""
    who, animal, thing = draw.one(PEOPLE), draw.one(ANIMALS), draw.one(("帽子", "书包", "杯子", "皮球", "风筝"))
    if draw.flip():
        rest = draw.one(
            (f"有{thing}", f"去过{draw.one(('动物园', '北京', '海边'))}", f"见过{draw.one(('大海', '雪'))}")
        )
        return f"{who}没{rest}。", f"{who}不{rest}。"
    start, rest = draw.one(
        (
            (draw.one(FAMILY), f"是{draw.one(('老师', '医生', '司机'))}"),
            (animal, f"会{draw.one(('写字', '唱歌', '说话', '画画'))}"),
            (who, "知道这件事"),
            (f"这个{thing}", draw.one(("好看", "旧", "结实"))),
            (f"这个{draw.one(FOOD)}", draw.one(("甜", "好吃", "大"))),
        )
    )
    return f"{start}不{rest}。", f"{start}没{rest}。"


def question_particle(draw: "Draw") -> Pair:
    """有疑问词的句子用呢，没有的用吗。"""
    who, thing, food = draw.one(PEOPLE), draw.one(THINGS), draw.one(FOOD)
    if draw.flip():
        question = draw.one(
            (
                f"谁{draw.one(('拿走了', '弄坏了', '找到了'))}{who}的{thing}",
                f"{who}为什么{draw.one(('哭', '不高兴', '不说话', '不睡觉'))}",
                f"{who}是不是{draw.one(('饿了', '累了', '生气了', '睡着了'))}",
                f"{who}喜不喜欢{food}",
            )
        )
        return f"{question}呢？", f"{question}吗？"
    question = draw.one(
        (
            f"这是{who}的{thing}",
            f"{who}喜欢{food}",
            f"{who}会{draw.one(('游泳', '骑马', '滑雪', '跳舞'))}",
        )
    )
    return f"{question}吗？", f"{question}呢？"


def comparison(draw: "Draw") -> Pair:
    """比在形容词前面；比较句不用很。"""
    first, second = draw.two(draw.one((FAMILY, ANIMALS)))
    adjective = draw.one(("高", "胖", "聪明", "勇敢", "厉害", "高兴"))
    return draw.one(
        (
            (f"{first}比{second}更{adjective}。", f"{first}比{second}{draw.one(('很', '太', '真'))}{adjective}。"),
            (f"{first}比{second}{adjective}。", f"{first}{adjective}比{second}。"),
            (f"{first}跟{second}一样{adjective}。", f"{first}一样{adjective}跟{second}。"),
            (f"{first}没有{second}那么{adjective}。", f"{first}没有那么{adjective}{second}。"),
        )
    )


def conjunction(draw: "Draw") -> Pair:
    """虽然和但是、因为和所以、不但和而且前后呼应。"""
    who, animal, food = draw.one(PEOPLE), draw.one(ANIMALS), draw.one(FOOD)
    although = draw.one(
        (
            f"外面下着雨，但是{who}还是出去了",
            f"路很远，但是{animal}一点儿也不累",
            f"{animal}很小，但是跑得很快",
            f"天已经黑了，但是{who}还在干活",
            f"{food}很好吃，但是{who}没有吃",
        )
    )
    because = draw.one(
        (
            f"下雨了，所以{who}没有出门",
            f"{who}生病了，所以没有来",
            f"{animal}饿了，所以一直叫",
            f"路太远了，所以{animal}走不动了",
            f"天黑了，所以{who}回家了",
        )
    )
    both = draw.one((f"{animal}不但会跑，而且会跳", f"{food}不但好看，而且好吃", f"{who}不但会唱歌，而且会跳舞"))
    return draw.one(
        (
            (f"虽然{although}。", f"虽然{although.replace('但是', '所以')}。"),
            (f"因为{because}。", f"因为{because.replace('所以', '但是')}。"),
            (f"{both}。", f"{both.replace('而且', draw.one(('所以', '但是')))}。"),
        )
    )


PARADIGMS: tuple[Callable[["Draw"], Pair], ...] = (
    classifier, word_order, aspect, ba_bei, negation, question_particle, comparison, conjunction,
)  # fmt: skip
