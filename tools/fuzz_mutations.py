"""Wrong and odd content for fuzz.py: what a file of someone else may contain."""

import gzip
import os
from pathlib import Path
from random import Random
from typing import Any

MARKER = "../RAN"
"""File that the code in a malicious file would create."""
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 0.5, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), "", "x",
    "\0", "../x", "1",
    "é" * 1000, "9" * 5000, [], {}, [[]], [None], [1, 2], {"a": 1}, {"": {}}, {"a": {"b": {"c": [1]}}},
    {"class_path": "os.system", "init_args": {"command": f"touch {MARKER}"}}, "os.system", ["x"] * 10_000,
]  # fmt: skip
"""Values in files."""


def mutated(rng: Random, tree: Any) -> tuple[Any, str]:
    """A tree of dicts and lists with a random part replaced, and what was done."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    if not keys:
        return rng.choice(ODD), "a replaced value"
    key, copy = rng.choice(keys), tree.copy()
    if isinstance(tree[key], dict | list) and tree[key] and rng.random() < 0.75:
        copy[key], note = mutated(rng, tree[key])
        return copy, f"{key}: {note}"
    edit = rng.randrange(8)
    if edit == 0:
        del copy[key]
    elif edit == 1 and isinstance(copy, dict):
        copy[rng.choice(["x", "", "é", f"{key}s"])] = copy.pop(key)
    elif edit == 2:
        copy[key] = rng.choice([[copy[key]], {"x": copy[key]}, {str(key): copy[key]}])
    elif edit == 3 and isinstance(copy[key], int | float):
        copy[key] *= rng.choice([-1, 10**12, 1e300])
    elif edit == 4:
        copy[key] = nested(rng.choice([20, 150]))
    else:
        copy[key] = rng.choice(ODD)
    return copy, f"{key}: {('removed', 'renamed', 'wrapped', 'multiplied', 'nested')[edit] if edit < 5 else 'replaced'}"


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def spoiled(rng: Random, content: bytes) -> tuple[bytes, str]:
    """The content of a file with some bytes changed, and what was done."""
    i = rng.randrange(len(content) + 1)
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    text = content.decode("utf-8", "replace")
    return rng.choice([
        (content[:i], "cut"), (content[i:], "without its beginning"), (b"", "empty"), (bytes(flipped), "flipped bits"),
        (bytes(flipped), "flipped bits"), (content[:i] + rng.randbytes(20) + content[i:], "bytes put in"),
        (rng.randbytes(1000), "random bytes"), (b"\xef\xbb\xbf" + content, "a byte order mark"), (b"\n", "a line end"),
        (text.encode("utf-16"), "UTF-16"), (content.replace(b"\n", b"\r\n"), "CRLF"), (content + content, "twice"),
        (content.replace(b" ", b"\t"), "tabs"), (content[:i] + b"\0" + content[i:], "a NUL"), (b"\0" * 100_000, "NULs"),
        (content + b"junk", "junk at its end"), (gzip.compress(content), "compressed"), (b" " * 1_000_000, "spaces"),
        (content[:i] + b"9" * 5000 + content[i:], "digits"), (content[:i] + b"[" * 100_000 + content[i:], "brackets"),
    ])  # fmt: skip


def odd_file(rng: Random, path: Path) -> str:
    """Put something that is not a file in place of a file; returns what."""
    path.unlink(missing_ok=True)
    kind = rng.choice(["FIFO", "folder", "loop", "missing", "zero", "link to nothing"])
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to({"loop": path.name, "zero": "/dev/zero"}.get(kind, "nothing"))
    return kind


def odd_text(rng: Random) -> tuple[bytes, str]:
    """An odd text, and what it is."""
    what, text = rng.choice([
        ("nothing", ""), ("a character", "a"), ("NULs", "\0" * 1000), ("a word of 200,000 letters", "acgt" * 50_000),
        ("a random word", "".join(rng.choices("acgt", k=200_000))), ("spaces", " " * 1_000_000),
        ("lines", "\n" * 1_000_000), ("Han", "从前有一只小狗" * 20_000), ("Thai", "กาลครั้งหนึ่ง" * 10_000),
        ("emoji", "👩‍👩‍👧‍👦" * 10_000),
        ("combining marks", "e" + "\u0301" * 100_000), ("all of Unicode", "".join(map(chr, range(0xD800))) * 2),
        ("ends of text", "<|endoftext|>" * 10_000), ("half an end", "<|endoftext|" * 10_000), ("digits", "1" * 300_000),
        ("ids", "1 2 3\n4\n\n5"), ("huge ids", "9" * 5000 + " 1"), ("negative ids", "-1 2"), ("other digits", "² ٣"),
        ("punctuation", "!?." * 50_000), ("a line of JSON", '{"text": "x"}\n'), ("right to left", "\u202eאבג" * 1000),
    ])  # fmt: skip
    content = text.encode()
    if rng.random() < 0.1:
        content, note = spoiled(rng, content)
        what = f"{what}, {note}"
    return content, what
