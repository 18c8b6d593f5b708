"""Fuzzing: run wrong and odd inputs of all commands, and count those that are not handled.

    python tools/fuzz.py                                     # 2,400 cases, ten minutes on two cores
    python tools/fuzz.py --only checkpoints stores --number 500 --seed 1
    python tools/fuzz.py --case options-17                   # a single case: its files, its command and its output

An input is handled if it is accepted, or refused with a message and exit code 1 or 2. Whatever else happens is counted
under one of the KINDS of fuzz_server.py; exits with 1 if anything is. Prints the findings grouped by cause. A case
depends only on its name and the seed. Needs Linux.
"""

import argparse
import gc
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from fuzz_cases import Family, configs, lines, options
from fuzz_files import checkpoints, stores, tokenizers
from fuzz_folders import folders, others
from fuzz_material import make_material
from fuzz_server import KINDS, Fuzzer, Result, shown
from fuzz_text import prompts, sessions, sources
from tqdm import tqdm

FAMILIES = {
    "options": Family(30, options),
    "lines": Family(8, lines),
    "configs": Family(12, configs),
    "checkpoints": Family(18, checkpoints),
    "stores": Family(5, stores),
    "tokenizers": Family(6, tokenizers),
    "folders": Family(4, folders),
    "others": Family(4, others),
    "prompts": Family(4, prompts),
    "sources": Family(6, sources),
    "sessions": Family(3, sessions),
}


def names_of_cases(families: Mapping[str, Family], number: int) -> list[str]:
    """Names of at least `number` cases, divided among the families by their shares."""
    total = sum(family.share for family in families.values())
    return [f"{name}-{i}" for name, family in families.items() for i in range(-(-number * family.share // total))]


def report(results: Sequence[Result]) -> str:
    """The findings by cause, and a table of the numbers of cases by family and kind."""
    groups = defaultdict[tuple[str, str], list[Result]](list)
    for result in results:
        for kind in result.kinds:
            groups[kind, result.cause].append(result)
    order = sorted(groups, key=lambda group: (list(KINDS).index(group[0]), -len(groups[group])))
    findings = []
    for kind, cause in order:
        group = groups[kind, cause]
        findings += [f"{kind} ({len(group)}): {cause}", f"    {group[0]}"]
        others = ", ".join(f"{result.name} ({result.case.note})" for result in group[1:10])
        findings += [f"    {others}"] * bool(others)
    kinds = [kind for kind in KINDS if any(group[0] == kind for group in groups)]
    rows = [["family", "cases", "exit 0", "exit 1 or 2", *kinds]]
    families = list(dict.fromkeys(result.name.rpartition("-")[0] for result in results))
    for family in (*families, ""):
        own = [result for result in results if family in ("", result.name.rpartition("-")[0])]
        counted = Counter(kind for result in own for kind in result.kinds)
        codes = [sum(result.code == 0 for result in own), sum(result.code in (1, 2) for result in own)]
        rows.append([family or "all", *map(str, (len(own), *codes)), *(str(counted[kind]) for kind in kinds)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    slowest = sorted(results, key=lambda result: -result.seconds)[:3]
    return "\n".join(
        [*findings, "", *table, "", "slowest: " + ", ".join(f"{r.name} {r.seconds:.1f} s" for r in slowest),
         f"most memory: {max(result.bytes for result in results) / 1e9:.2f} GB"]
    )  # fmt: skip


def warm_up(root: Path) -> Callable[[list[str]], None]:
    """Import everything that cases need, for the same surroundings on every machine; returns the command."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLCONFIGDIR=str(root / "matplotlib"), HOME=str(root))
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "LIT_LM_TRACEBACK", "NO_COLOR"):
        os.environ.pop(name, None)
    commands = ("fit", "plan", "generate", "predict", "data", "tokenizer", "export", "evaluate", "serve")
    formats = ("hf", "gguf", "llama2c", "nanogpt", "litgpt", "safetensors")
    ours = ["evaluation.evaluate", "serve.app", *(f"cli.{name}" for name in commands)]
    ours += [f"interop.{name}" for name in formats]
    for name in (*(f"lit_lm.{name}" for name in ours), "tensorboard.summary", "multiprocessing.synchronize"):
        import_module(name)
    from lit_lm.__main__ import main

    gc.freeze()  # collecting garbage would copy its pages in every process
    return main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2400, help="least number of cases; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--case", metavar="NAME", help="run a single case, and keep its files")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lit-lm-fuzz-"))
    try:
        fuzzer = Fuzzer(root, warm_up(root), FAMILIES, seed=options.seed)
        fuzzer.make_material(make_material)
        if options.case:
            (result,) = fuzzer.run([options.case], keep=True)
            print_case(result, root / options.case)
            sys.exit(1 if result.kinds else 0)
        names = names_of_cases({name: FAMILIES[name] for name in options.only or FAMILIES}, options.number)
        # families differ in speed and memory; mixed, they finish together
        random.Random(options.seed).shuffle(names)
        results = {}
        for result in tqdm(fuzzer.run(names, options.jobs), total=len(names), leave=False, disable=None):
            results[result.name] = result
            if result.kinds:
                tqdm.write(f"{', '.join(result.kinds)}: {result}", file=sys.stderr)
        slow = [name for name, result in results.items() if "hang" in result.kinds]
        results |= {result.name: result for result in fuzzer.run(slow)}  # alone, on a machine that is less busy
    finally:
        if not options.case:
            shutil.rmtree(root, ignore_errors=True)
    print(report(sorted(results.values(), key=lambda result: result.name)))
    counted = sum(bool(result.kinds) for result in results.values())
    print(f"{counted} of {len(results)} cases are not handled (seed {options.seed})")
    sys.exit(1 if counted else 0)


def print_case(result: Result, folder: Path) -> None:
    """Print the files, the command and the output of a case whose folder was kept."""
    for path in sorted((folder / "work").rglob("*"))[:50]:
        print(f"  {path.relative_to(folder)}{'' if path.is_dir() else f'  {path.lstat().st_size:,} bytes'}")
    print(f"{result.case.note}; expected: {result.case.expected}")
    print(f"cd {folder}/work; HOME={folder}/home lit-lm {shown(result.case.args)} < ../stdin")
    for name in ("stdout", "stderr"):
        print(f"--- {name}\n{(folder / name).read_text(encoding='utf-8', errors='replace')[-8000:]}")
    print(f"exit code {result.code}, {result.seconds:.1f} s, {result.bytes / 1e9:.2f} GB: ", end="")
    print(", ".join(result.kinds) or "handled", f"\n{result.cause}")


if __name__ == "__main__":
    main()
