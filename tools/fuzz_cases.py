"""Cases for fuzz.py: wrong and odd command lines, configs, checkpoints, stores, tokenizers, prompts, data, sessions.

A case is made in its working folder by a function of a random generator, the case's number and the folder of material:
right files, made once by the commands themselves. Every 20th case of a family is right, which shows that the others
are refused for what is wrong in them.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml
from fuzz_mutations import MARKER, mutated, odd_file, spoiled

Expected = Literal["accept", "refuse", "either"]

CONFIGS = Path(__file__).parents[1] / "configs"
NET: dict[str, Any] = {"vocab_size": 300, "context_length": 32, "d_model": 16, "num_layers": 1, "num_heads": 2}
HUGE = "9" * 30
RUN = f"{{class_path: os.system, init_args: {{command: touch {MARKER}}}}}"
WORDS = [
    "", " ", "-1", "0", "1", "2", "-0.5", "0.5", "1e400", "nan", "inf", "-inf", HUGE, f"-{HUGE}", "2147483648",
    "18446744073709551616", "99999999999", "1e-320", "0x10", "1_000", "1,000", "٣", "²", "null", "none", "~", "true",
    "x", "[]", "[1, 2]", "[[[]]]", "{}", "{a: 1}", RUN, f"!!python/object/apply:os.system [touch {MARKER}]", "*a",
    "&a [*a]",
    "{class_path: torch.optim.SGD, init_args: {lr: x}}", "{class_path: 1}", "os.system", "torch.optim.Optimizer",
    "lit_lm.optim.Nope",
    "../x", "~nobody/x", ".", "a/b/c", "fifo", "zero", "folder", "loop", "missing", "\udcff", "é\u202e", "a\nb", "\t",
    "-", "--", "=", "%s%n", "${HOME}", f"$(touch {MARKER})", "a" * 100_000, "[" * 5000, "{a: " * 2000, "1" * 5000, "@x",
    "*", "?[",
]  # fmt: skip
"""Values of options."""
NO_NUMBER = {"", "x", "[]", "[1, 2]", "[[[]]]", "{}", "{a: 1}", RUN, "os.system", "../x", "--", "=", "a\nb", "é\u202e"}
NEVER = {
    "int": NO_NUMBER | {"nan", "inf", "-inf", "1e400", "0.5", "-0.5", "null"},
    "int | null": NO_NUMBER | {"nan", "inf", "-inf", "1e400", "0.5", "-0.5"},
    "float": NO_NUMBER | {"null"},
    "bool": NO_NUMBER | {"nan", "2", "-1", HUGE, "null"},
    "bool | null": NO_NUMBER | {"nan", "2", "-1", HUGE},
}
"""Values that are certainly wrong for a type."""
SIZES = ("vocab_size", "context_length", "d_model", "num_layers", "num_heads", "batch_size", "stride", "val_tokens",
         "num_streams", "d_ff", "num_samples", "num_beams", "top_k", "log_every_n_steps", "every_n_steps")  # fmt: skip
"""Options that must be at least 1."""
ONLY_FIT = ("--trainer", "--model.optimizer", "--model.schedule")
"""Options that other commands accept and do not use."""


@dataclass
class Case:
    """A command line, made with the files that it names."""

    args: list[str]
    expected: Expected = "either"
    note: str = ""
    """What is wrong or odd in it."""
    stdin: bytes = b""
    confined: bool = True
    """Whether it may write only below the working folder."""


@dataclass(frozen=True)
class Family:
    """Cases of one kind."""

    share: int
    """Share of all cases, in parts that add up to 100."""
    make: Callable[[Random, int, Path], Case]

    def __call__(self, rng: Random, number: int, material: Path) -> Case:
        for name, target in (("zero", "/dev/zero"), ("loop", "loop"), ("full", "/dev/full")):
            Path(name).symlink_to(target)
        os.mkfifo("fifo")
        Path("folder").mkdir()
        return self.make(rng, number, material)


def command(name: str, material: Path) -> list[str]:
    """A right command line of a command, with its files in the working folder."""
    corpus = f"{material}/corpus.txt"
    data = [f"--model.net={json.dumps(NET)}", f"--data.source={corpus}", "--data.batch_size=4"]
    if name in ("validate", "test", "generate", "predict", "export", "eval", "serve"):
        shutil.copy(material / "tiny.ckpt", "tiny.ckpt")
    return {
        "fit": ["fit", *data, *BRIEF, "--trainer.max_steps=2", "--trainer.val_check_interval=2"],
        "validate": ["validate", "--ckpt_path=tiny.ckpt", "--trainer.accelerator=cpu"],
        "test": ["test", "--ckpt_path=tiny.ckpt", "--trainer.accelerator=cpu"],
        "plan": ["plan", *data, "--hardware=h100", "--trainer.max_steps=2"],
        "prepare": ["prepare", *data],
        "data info": ["data", "info", *data],
        "data show": ["data", "show", *data],
        "generate": ["generate", "Once", "--ckpt_path=tiny.ckpt", "--max_new_tokens=4"],
        "predict": ["predict", "--prompt=Once", "--ckpt_path=tiny.ckpt", "--max_new_tokens=4",
                    "--trainer.accelerator=cpu"],
        "tokenizer train": ["tokenizer", "train", corpus, "--vocab_size=300"],
        "tokenizer encode": ["tokenizer", "encode", f"{material}/tokenizer.bpe.json", corpus],
        "tokenizer decode": ["tokenizer", "decode", f"{material}/tokenizer.bpe.json", f"{material}/ids.txt"],
        "tokenizer info": ["tokenizer", "info", f"{material}/tokenizer.bpe.json", f"--on={corpus}"],
        "export": ["export", "--ckpt_path=tiny.ckpt", "--output=made"],
        "import": ["import", f"{material}/hf", "--output=made.ckpt"],
        "eval": ["eval", "--ckpt_path=tiny.ckpt", "--tasks=grammar_zh", "--limit=1"],
        # of two models the second is missing, so that no server stays
        "serve": ["serve", "tiny.ckpt", "missing.ckpt", "--port=0"],
        "init": ["init", "recipes"],
    }[name]  # fmt: skip


BRIEF = ["--trainer.accelerator=cpu", "--trainer.max_time=00:00:00:05", "--model.compile=false"]
"""A run of any length ends soon."""
COMMANDS = ("fit", "validate", "test", "plan", "prepare", "data info", "data show", "generate", "predict",
            "tokenizer train", "tokenizer encode", "tokenizer decode", "tokenizer info", "export", "import", "eval",
            "init")  # fmt: skip


def options(rng: Random, number: int, material: Path) -> Case:
    """Every option of every command, with a random value."""
    table = json.loads((material / "options.json").read_text())
    Random(0).shuffle(table)
    name, option, kind = table[number % len(table)]
    args = command(name, material)
    if number % 20 == 0:
        return Case(args, "refuse" if name == "serve" else "accept", name)
    value = rng.choice(WORDS)
    expected: Expected = "refuse" if value in NEVER.get(kind, ()) else "either"
    if kind.startswith("{") and value not in kind[1:-1].split(",") and value not in ("null", "none", "~"):
        expected = "refuse"
    if option.endswith(SIZES) and (value in ("0", "-1") or (value == HUGE and "net" in option)):
        expected = "refuse"
    if name != "fit" and option.startswith(ONLY_FIT):
        expected = "either"
    if option == "--model.compile" and value == "true":
        value = "null"  # compiling takes longer than the limit
    if name == "serve":
        expected = "refuse"
    elsewhere = option.endswith(("_dir", "output"))
    if option.endswith("output") and value == "fifo":
        value = "folder"  # writing to a pipe rightly waits for a reader
    extra = [option, value] if rng.random() < 0.3 else [f"{option}={value}"]
    return Case([*args, *extra], expected, f"{name} {option} ({kind})", confined=not elsewhere)


def lines(rng: Random, number: int, material: Path) -> Case:
    """Command lines with words dropped, doubled, exchanged, cut and added."""
    name = rng.choice(COMMANDS)
    args = command(name, material)
    if number % 20 == 0:
        return Case(args, "accept", name)
    if rng.random() < 0.2:
        option = rng.choice(json.loads((material / "options.json").read_text()))[1]
        i = rng.randrange(3, len(option) + 1)
        return Case([*args, f"{option[:i]}q{option[i:]}=1"], "refuse", "a typo in an option")
    others = [option for _, option, _ in json.loads((material / "options.json").read_text())]
    soup = [*WORDS, *COMMANDS, "-c", "--config", "--config=", "--print_config", "--print_config=x", "-h", "--version",
            "--trainer", "--model", "--model.net", "--data", "--model.optimizer.help",
            "--trainer.callbacks+=x"]  # fmt: skip
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(args)) if args else 0
        edit = rng.randrange(6)
        if edit == 0 and args:
            del args[i]
        elif edit == 1 and args:
            args.insert(i, args[rng.randrange(len(args))])
        elif edit == 2 and args:
            args[i] = args[i][: rng.randrange(len(args[i]) + 1)]
        elif edit == 3:
            args.insert(i, rng.choice(others) + rng.choice(("", "=", f"={rng.choice(WORDS)}")))
        else:
            args.insert(max(i, 1), rng.choice(soup))
    return Case(args, note=name, confined=False)


def configs(rng: Random, number: int, material: Path) -> Case:
    """The project's configs, made small, with wrong values, keys, text and files."""
    path = rng.choice(sorted(CONFIGS.glob("*.yaml")))
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree["model"]["net"] = dict(NET)
    tree["data"] |= {"source": f"{material}/corpus.txt", "val_source": None, "batch_size": 4, "stride": None}
    tree["data"].pop("micro_batch_size", None)
    tree["trainer"] = {"max_steps": 2, "val_check_interval": 2}
    name = rng.choice(["fit", "fit", "fit", "prepare", "data info", "data show"])
    args = [*name.split(), "--config=c.yaml", *(BRIEF if name == "fit" else [])]
    if number % 20 == 0:
        Path("c.yaml").write_text(yaml.dump(tree), encoding="utf-8")
        return Case(args, "accept", path.name)
    way, expected, note = rng.random(), "either", "a wrong value"
    if way < 0.15:
        section = rng.choice([tree, tree["model"], tree["model"]["net"], tree["data"], tree["trainer"]])
        section[rng.choice(["nope", "seeds", "vocab_sizes", "", "é", "a.b"])] = 1
        expected, note = "refuse", "an unknown key"
    elif way < 0.6:
        tree, note = mutated(rng, tree)
    content = yaml.dump(tree, allow_unicode=True).encode()
    if 0.6 <= way < 0.75:
        content, note = spoiled(rng, content)
    elif 0.75 <= way < 0.9:
        note, attack, expected = rng.choice(YAML_ATTACKS)
        content = attack.encode() if rng.random() < 0.7 else content + b"\n" + attack.encode()
        if content != attack.encode() or (name != "fit" and re.search("optimizer|schedule", attack)):
            expected = "either"
    if way >= 0.9:
        note = odd_file(rng, Path("c.yaml"))
        return Case(args, "refuse", note)
    if rng.random() < 0.1 and name == "fit":
        Path("net.yaml").write_bytes(content)
        return Case([*command("fit", material), "--model.net=net.yaml"], note=f"net: {note}")
    Path("c.yaml").write_bytes(content)
    return Case(args, expected, note)  # type: ignore[arg-type]


YAML_ATTACKS: list[tuple[str, str, str]] = [
    (
        "an alias bomb",
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "refuse",
    ),
    ("deep lists", "seed: " + "[" * 100_000, "refuse"),
    ("deep mappings", "{a: " * 20_000, "refuse"),
    ("deep blocks", "".join(" " * i + "a:\n" for i in range(1000)), "refuse"),
    ("a tag of Python", f"seed: !!python/object/apply:os.system ['touch {MARKER}']", "refuse"),
    ("a new object of Python", f"!!python/object/new:os.system [touch {MARKER}]", "refuse"),
    ("a list", "- a\n- b\n", "refuse"),
    ("a word", "seed", "refuse"),
    ("a recursive alias", "model: &a {net: *a}", "refuse"),
    ("a recursive list", "model: &a [*a]", "refuse"),
    ("two documents", "seed: 1\n---\nseed: 2\n", "refuse"),
    ("a double key", "seed: 1\nseed: 2\n", "either"),
    ("merged keys", "base: &b {seed: 1}\n<<: *b\n", "refuse"),
    ("a merged scalar", "<<: 1\n", "refuse"),
    ("a key that is a list", "? [a, b]\n: 1\n", "refuse"),
    ("a key that is a mapping", "? {a: 1}\n: 1\n", "refuse"),
    ("a number as a key", "1: 2\nnull: 3\n", "refuse"),
    ("a date", "seed: 2020-01-01", "refuse"),
    ("an impossible date", "seed: 2020-13-41", "refuse"),
    ("binary", "seed: !!binary aGVsbG8=", "refuse"),
    ("a set", "seed: !!set {a, b}", "refuse"),
    ("an integer of 5,000 digits", "seed: " + "9" * 5000, "refuse"),
    ("a sexagesimal", "seed: 190:20:30", "either"),
    ("an octal", "seed: 0o17", "either"),
    ("an unknown directive", "%YAML 9.9\n---\nseed: 1", "either"),
    ("tabs", "model:\n\tnet:\n\t\tvocab_size: 300\n", "refuse"),
    ("sections that are numbers", "model: 1\ndata: 2\ntrainer: 3\n", "refuse"),
    ("sections that are null", "model:\ndata:\ntrainer:\n", "either"),
    ("sections that are lists", "model: []\ndata: [1]\ntrainer: [{}]\n", "refuse"),
    ("a net that is a list", "model: {net: [1, 2]}\n", "refuse"),
    ("a net that is missing", "model: {net: missing.yaml}\n", "refuse"),
    ("a net that is a FIFO", "model: {net: fifo}\n", "refuse"),
    ("a net that is a folder", "model: {net: folder}\n", "refuse"),
    ("a command as optimizer", f"model: {{optimizer: {RUN}}}", "refuse"),
    ("a function as schedule", "model: {schedule: {class_path: torch.os._exit, init_args: {status: 0}}}", "refuse"),
    ("a class as number", "model: {net: {vocab_size: {class_path: builtins.int}}}", "refuse"),
    ("a config in the config", "config: c.yaml\n", "either"),
    ("much text", "# " + "x" * 3_000_000, "refuse"),
    ("many keys", "".join(f"k{i}: {i}\n" for i in range(100_000)), "refuse"),
    ("a source that is a list", "data: {source: [a, b]}", "refuse"),
    ("a name that is a list", "name: [a]", "refuse"),
    ("a name that is null", "name: null", "either"),
    ("a surrogate", 'name: "\\ud800"', "refuse"),
]
"""Name, text, and what is expected of it."""
