"""Cases for fuzz.py with odd texts: prompts, data of all types, sessions."""

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzz_cases import SIZES, WORDS, Case, Expected, command
from fuzz_mutations import MARKER, nested, odd_file, odd_text, spoiled


def prompts(rng: Random, number: int, material: Path) -> Case:
    """Odd files of prompts, standard input and outputs."""
    name = rng.choice(["generate", "predict"])
    shutil.copy(material / "tiny.ckpt", "tiny.ckpt")
    args = [name, "--ckpt_path=tiny.ckpt", "--max_new_tokens=4"]
    path = Path(
        "prompts" + rng.choice([".txt", ".txt", ".jsonl", ".jsonl", ".json", ""] if name == "predict" else [".txt"])
    )
    right = b'{"prompt": "Once", "id": 1}\n{"prompt": "The cat"}\n' if path.suffix == ".jsonl" else b"Once\nThe cat\n"
    path.write_bytes(right)
    args += [f"--prompt_file={path}"] + ["--output=out.jsonl"] * (name == "predict" and rng.random() < 0.4)
    if number % 20 == 0:
        return Case([name, "--ckpt_path=tiny.ckpt", "--max_new_tokens=4", "--prompt_file=" + str(path)],
                    "accept" if path.suffix in (".txt", ".jsonl") else "refuse", "right")  # fmt: skip
    way = rng.random()
    if way < 0.15:
        note = odd_file(rng, path)
        return Case(args, "refuse", note)
    if way < 0.3 and name == "predict":
        output = Path("out.jsonl")
        output.write_bytes(right)
        note = odd_file(rng, output) if rng.random() < 0.5 else "another file"
        return Case([*args, "--output=out.jsonl"], note=f"output: {note}")
    lines = 3_000_000 if name == "generate" else 1000  # predict continues each of them
    if way < 0.5:
        content, note = spoiled(rng, right)
    elif path.suffix == ".jsonl":
        note, line = rng.choice([
            ("a list", "[1]"), ("no prompt", "{}"), ("a number", '{"prompt": 1}'), ("deep", "[" * 100_000),
            ("NaN", "NaN"), ("null", "null"), ("a surrogate", '{"prompt": "\\ud800"}'),
            ("a taken field", '{"prompt": "x", "seed": 1}'),
            ("many digits", '{"prompt": "x", "id": ' + "9" * 5000 + "}"), ("a NUL", '{"prompt": "\\u0000"}'),
            ("an empty prompt", '{"prompt": ""}'), ("deep fields", json.dumps({"prompt": "x", "y": nested(200)})),
            ("a long prompt", json.dumps({"prompt": "x " * 2_000_000})), ("infinity", '{"prompt": "x", "id": 1e999}'),
        ])  # fmt: skip
        content = right + line.encode() + b"\n"
    else:
        content, note = rng.choice([(b"x" * 10_000_000, "10 MB"), (b"a b\n" * lines, "many lines"), odd_text(rng)])
    if name == "generate" and rng.random() < 0.3:
        return Case(args[:-1], note=f"standard input: {note}", stdin=content)
    path.write_bytes(content)
    return Case(args, note=f"{path.suffix}: {note}")


def sources(rng: Random, number: int, material: Path) -> Case:
    """Odd data of all types, odd names, addresses and mixtures."""
    name = rng.choice(["fit", "fit", "prepare", "data info", "data show", "tokenizer train", "tokenizer info"])
    args, kinds = command(name, material), sorted(material.glob("data.*"))
    path = Path(shutil.copy(rng.choice(kinds), "."))
    ids = path.suffix in (".npy", ".bin")
    if ids:
        args = [*command(rng.choice(["fit", "data info"]), material), f"--data.tokenizer={material}/tokenizer.bpe.json"]
        name = "fit"
    expected: Expected = "either"
    way = 0.0 if number % 20 == 0 else rng.random()
    note, source = f"{path.name} as it is", str(path)
    if number % 20 == 0:
        expected = "accept"
    elif way < 0.35:
        content, note = spoiled(rng, path.read_bytes())
        path.write_bytes(content)
    elif way < 0.45:
        note, expected = odd_file(rng, path), "refuse"
    elif way < 0.75:
        attack = rng.choice(SOURCE_ATTACKS)
        source, note = attack(rng, path)
    else:
        source = note = rng.choice([
            "", ".", "/", "**/*", "*.nope", "[", "?", "hub:", "hub:nope/nope", "hub:../x", "hub:.", "file://data.txt",
            "file:///nope", "http://127.0.0.1:9/a.txt", "memory://a.txt", "zip://a.txt::data.txt",
            "simplecache::data.txt", "s3://nope/x.txt", "ftp://127.0.0.1:9/x.txt", "data:,abc", "::", "://",
            "x://y.txt", "reference://", "git://x",
            "{}", "{data.txt: nan}", "{data.txt: -1}", "{data.txt: 0}", "{data.txt: x}", "{missing.txt: 1}",
            "{stories: 1}", f"{{{path}: 1e308, {material}/corpus.txt: 1e308}}", f"{{{path}: 1, ./{path}: 1}}",
            f"{{{path}: 1e-300}}",
            "{class_path: os.system}", "{class_path: builtins.list}", "{class_path: nope.Nope}", "{class_path: 1}",
            "{class_path: builtins.range, init_args: {a: 1}}", "{class_path: [a]}", "local://data.txt", "~nobody/x",
            "\udcff.txt", "data.txt\0", "a" * 300, "~", "-", "/dev/stdin", "zero", "fifo",
        ])  # fmt: skip
    at = {"tokenizer train": [source], "tokenizer info": [f"--on={source}"]}.get(name, [f"--data.source={source}"])
    if name == "tokenizer train":
        args = ["tokenizer", "train", "--vocab_size=300", *at]
        expected = "either" if ids else expected
    else:
        args += at
    if name == "fit" and not ids and rng.random() < 0.3:
        args, note = [*args, "--data.streaming=true"], f"streaming: {note}"
    return Case([arg.replace("\0", "") for arg in args], expected, note)


def _bomb(rng: Random, path: Path) -> tuple[str, str]:
    block = gzip.compress(b"x y " * 4_000_000, 9)
    Path("bomb.txt.gz").write_bytes(block * 300)
    return "bomb.txt.gz", "a bomb of 4.8 GB"


def _zstd_bomb(rng: Random, path: Path) -> tuple[str, str]:
    import zstandard

    Path("bomb.jsonl.zst").write_bytes(zstandard.compress(b"a" * 16_000_000) * 300)
    return "bomb.jsonl.zst", "a bomb of 4.8 GB on one line"


def _lying_array(rng: Random, path: Path) -> tuple[str, str]:
    array = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }"
    description = rng.choice([
        array % ("'<u2'", False, "(1000000000000,)"), array % ("'|O'", False, "(9,)"), array % ("'<f4'", False, "(9,)"),
        array % ("'<u2'", False, "(-1,)"), array % ("'<u2'", True, "(3, 3)"), array % ("'<u2'", False, "()"),
        array % ("'<i8'", False, "(9,)"), array % ("[('a', '<u2')]", False, "(9,)"),
        array % ("'<u2'", False, "(9.5,)"),
        f"__import__('os').system('touch {MARKER}')", "{" * 5000, "{}", "1",
    ])  # fmt: skip
    header = description.encode()
    Path("ids.npy").write_bytes(
        b"\x93NUMPY"
        + bytes([rng.choice([1, 1, 1, 2, 9]), 0])
        + struct.pack("<H", len(header))
        + header
        + b"\x01\0" * 500
    )
    return "ids.npy", f"a header {description[:60]}"


def _pickled_array(rng: Random, path: Path) -> tuple[str, str]:
    class Malice:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {MARKER}",)

    import numpy as np

    np.save("ids.npy", np.array([Malice()], dtype=object), allow_pickle=True)
    return "ids.npy", "an array of objects"


def _odd_ids(rng: Random, path: Path) -> tuple[str, str]:
    Path("ids.bin").write_bytes(
        rng.choice([b"", b"\1", b"\xff" * 2000, b"\0" * 2001, b"\0\0" * 5, rng.randbytes(4096)])
    )
    return "ids.bin", "odd ids"


def _odd_rows(rng: Random, path: Path) -> tuple[str, str]:
    note, row = rng.choice([
        ("numbers", '{"text": 1}'), ("no text", '{"x": "a"}'), ("deep", "[" * 100_000), ("null", '{"text": null}'),
        ("a surrogate", '{"text": "\\ud800"}'), ("NUL", '{"text": "a\\u0000b"}'), ("a list", "[]"),
        ("NaN", '{"text": NaN}'),
        ("digits", '{"text": "a", "n": ' + "9" * 5000 + "}"), ("a long line", json.dumps({"text": "a b " * 3_000_000})),
        ("blank texts", '{"text": " "}'), ("two on a line", '{"text": "a"} {"text": "b"}'),
        ("lists", '{"text": ["a"]}'),
        ("empty texts", '{"text": ""}'), ("the end", '{"text": "<|endoftext|>"}'),
    ])  # fmt: skip
    Path("rows.jsonl").write_text((row + "\n") * rng.choice([1, 3, 100]) if len(row) < 1000 else row)
    return "rows.jsonl", f"rows: {note}"


def _odd_columns(rng: Random, path: Path) -> tuple[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    note, column = rng.choice([
        ("numbers", pa.array([1, 2])), ("nulls", pa.array([None, None])), ("lists", pa.array([["a"], ["b"]])),
        ("binary", pa.array([b"\xff", b"a"])), ("structs", pa.array([{"text": "a"}])),
        ("nothing", pa.array([], pa.string())), ("large", pa.array(["a b"] * 9, pa.large_string())),
        ("dictionary", pa.array(["a b", "a b"]).dictionary_encode()),
    ])  # fmt: skip
    pq.write_table(pa.table({rng.choice(["text", "text", "other"]): column}), "rows.parquet")
    return "rows.parquet", f"columns: {note}"


def _odd_names(rng: Random, path: Path) -> tuple[str, str]:
    name = rng.choice(["[a].txt", "a*b.txt", "a\nb.txt", "\udcff.txt", ".txt", "a b.txt", "A.TXT", "é.txt",
                       "a.txt.txt.gz", "a::b.txt", "a:b.txt", "-a.txt", "~.txt", "stories", "%41.txt", "a?.txt",
                       "#.txt"])  # fmt: skip
    shutil.copy(path, name)
    return name, "an odd name"


def _odd_folder(rng: Random, path: Path) -> tuple[str, str]:
    folder = Path("many")
    for number in range(rng.choice([0, 1, 3000])):
        (folder / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 7}" / f"{number}.txt").write_text("Once upon a time." * (number % 3))
    folder.mkdir(exist_ok=True)
    (folder / "up").symlink_to("..")
    return rng.choice(["many", "many/", "many/*/*.txt", "many/**/*.txt", "many/**", "many/*"]), "a folder"


SOURCE_ATTACKS = (_bomb, _zstd_bomb, _lying_array, _lying_array, _pickled_array, _odd_ids, _odd_rows, _odd_rows,
                  _odd_columns, _odd_names, _odd_folder)  # fmt: skip


def sessions(rng: Random, number: int, material: Path) -> Case:
    """Interactive sessions of odd lines."""
    shutil.copy(material / "tiny.ckpt", "tiny.ckpt")
    settings = [option.removeprefix("--") for name, option, _ in json.loads((material / "options.json").read_text())
                if name == "generate"]  # fmt: skip
    words = [word for word in WORDS if "\n" not in word and "\udcff" not in word]
    lines = []
    for _ in range(rng.randint(1, 8)):
        name, word = rng.choice(settings), rng.choice(words)
        if name.endswith(SIZES) and word.isdecimal() and len(word) > 4 and name != "top_k":
            word = "3"  # so many samples take longer than the limit, rightly
        lines.append(rng.choice([
            f"/set {name} {word}", f"/set {name} {word}", word, f"/save {word}", "/save a.txt", "/retry", "/set",
            "/help", "/", "//", '/set stop "', f"/{word}", "Once upon", "", "/quit now", "/set stop a b '' c",
            "/set alternatives 3",
        ]))  # fmt: skip
    content = "\n".join(lines).encode()
    if number % 20 == 0:
        content = b"Once\n/set temperature 0\n/retry\n/quit\n"
    elif rng.random() < 0.1:
        content = spoiled(rng, content)[0]
    args = ["generate", "--interactive", "--ckpt_path=tiny.ckpt", "--max_new_tokens=4"]
    odd = number % 20 > 0 and b"\xff" in content
    return Case(args, "either" if odd else "accept", "a session", content, confined=False)
