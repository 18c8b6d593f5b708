"""Texts that are difficult for tokenizers and terminals."""

NASTY = [
    "",
    " ",
    "a  b   c    d     ",
    "\t\tindented\n\n\n  spaces\n",
    "line\r\nline\rline\n\r",
    "NUL \x00 and \x7f and \x1b[0m",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "e\u0301 is not \u00e9, \ufeff is a mark, \u200b has no width",
    "从前有一只小狗。小狗喜欢小猫。",
    "עברית العربية हिन्दी ไทย",
    "\U0010ffff \ufffd \ue000",
    "\u2581 \u2581\u2581a b\u2581",
    "<0x41><0xE4> <0x0a>",
    "\u0301 alone",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>\n",
    "<|endoftext<|endoftext|>|>",
]

DOCUMENTS = [
    "Once upon a time there was a little dog. The dog liked the little cat.",
    "The cat liked the dog, and they played all day in the sun. What a day!",
    "The end is written <|endoftext|>, said the cat. <|endoftext|><|endoftext|>",
    "从前有一只小狗，小狗喜欢小猫。小狗说：“你好！”",
] * 5
