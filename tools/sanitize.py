"""Search the C files for memory errors and undefined behavior, with random models under gcc's sanitizers.

    python tools/sanitize.py                # 2,000 models, about 5 minutes
    python tools/sanitize.py --cases 50     # a quick check

Compiles them with AddressSanitizer and UndefinedBehaviorSanitizer for each set of flags in build.py, and compares the
logits of step.c with those of `TorchEngine`, and outputs and gradients of attention.c with those of the formula. This
runs in a process of its own that loads AddressSanitizer first, so that tensors of PyTorch are guarded, too. It stops at
the first error and exits with 1. Needs Linux and gcc.
"""

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_lm.inference.engine import Engine, TorchEngine
from lit_lm.inference.native import engine as native
from lit_lm.inference.native.support import SUPPORTED
from lit_lm.kernels import build
from lit_lm.model.attention import causal_attention
from lit_lm.model.config import TransformerConfig
from lit_lm.model.layers import attention, causal_mask, document_starts
from lit_lm.model.transformer import Transformer

AVX = [["-march=x86-64-v3", "-fopenmp"]] if "AVX" in torch.backends.cpu.get_cpu_capability() else []
BUILDS = [*build.FLAGS, *AVX]
"""Compiler flags: those of build.py, and those for registers of 256 bits if the processor has them."""
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python and PyTorch keep some memory until they exit
    "OMP_WAIT_POLICY": "passive",  # threads that wait for each other would slow down other processes
}
TOLERANCE, AMX_TOLERANCE = 1e-4, 0.1
"""Largest difference between numbers, relative to the largest; with AMX, inputs of step.c are rounded to bfloat16."""


@dataclass(frozen=True)
class Case:
    """A random model, and how to use it."""

    config: TransformerConfig
    dtype: torch.dtype
    rows: int
    threads: int
    seed: int


def random_case(seed: int) -> Case:
    """Return a case with small sizes, most of them odd; one in 20 exceeds the tokens that step.c takes at once."""
    rng = random.Random(seed)
    choices = {name: rng.choice(sorted(values)) for name, values in SUPPORTED.items()}
    kv_heads, large = rng.randint(1, 3), rng.choice(["rows", "context"] + [""] * 38)
    heads = kv_heads * rng.randint(1, 3)
    head_size = 2 * rng.randint(2, 12) - (choices["positions"] == "learned")
    config = TransformerConfig(
        vocab_size=rng.randint(1, 200),
        context_length=rng.randint(1025, 2100) if large == "context" else rng.randint(1, 70),
        d_model=rng.randint(1, 70),
        num_layers=rng.randint(1, 2),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_size,
        d_ff=rng.randint(1, 150),
        bias=rng.random() < 0.5,
        qkv_bias=rng.choice([None, False, True]),
        qk_norm=rng.random() < 0.5,
        tie_embeddings=rng.random() < 0.5,
        **choices,
    )
    rows = {"rows": rng.randint(1025, 2100), "context": 2}.get(large, rng.randint(1, 40))
    return Case(config, rng.choice(list(native.TYPES)), rows, rng.randint(1, 4), seed)


def random_model(case: Case) -> Transformer:
    """Return a model with seeded weights, none of them zero or one."""
    torch.manual_seed(case.seed)
    model = Transformer(case.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def play(engine: Engine, case: Case) -> list[Tensor]:
    """Return all logits of a random sequence of calls, the same for every engine."""
    rng, context = random.Random(case.seed), case.config.context_length
    cache = engine.new_cache(case.rows)
    prompts = [rng.choices(range(case.config.vocab_size), k=rng.randint(1, context)) for _ in range(min(case.rows, 40))]
    found = [engine.prefill(prompt, cache, row).clone() for row, prompt in enumerate(prompts)]
    cache.copy_row(0, range(len(prompts), case.rows))
    for _ in range(3):
        if fit := [row for row, length in enumerate(cache.lengths) if length < context]:
            cache.select_rows(rng.choices(fit, k=len(fit)) if rng.random() < 0.3 else rng.sample(fit, len(fit)))
            logits = engine.step(rng.choices(range(case.config.vocab_size), k=len(fit)), cache)
            found += [logits.clone(), engine.logsumexp(logits)]
    return [*found, engine.logits(torch.tensor([prompts[0], prompts[0][::-1]]))]


def difference(case: Case, library: ctypes.CDLL) -> float:
    """Return the largest difference between the logits of both engines, relative to the largest logit."""
    torch.set_num_threads(case.threads)
    model = random_model(case)
    expected = play(TorchEngine(model, case.dtype), case)
    found = play(native.NativeEngine(library, model, case.dtype), case)
    largest = max(float(logits.abs().max()) for logits in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / largest


def attention_difference(case: Case) -> float:
    """Return the largest difference between attention.c and the formula, relative to the largest number."""
    torch.manual_seed(case.seed)
    config, rows, length = case.config, min(case.rows, 9), min(case.config.context_length, 300)
    inputs = [
        torch.randn(rows, length, heads, config.head_size).transpose(1, 2).requires_grad_()
        for heads in (config.num_heads, config.kv_heads, config.kv_heads)
    ]
    mask = causal_mask(torch.arange(length), length)
    found, expected = (
        [y, *torch.autograd.grad(y.sin().sum(), inputs)] for y in (causal_attention(*inputs), attention(*inputs, mask))
    )
    starts = document_starts((torch.rand(rows, length) < 0.1).cumsum(dim=1))
    causal_attention(*(x.bfloat16() for x in inputs), 0.5, starts).sum().backward()  # the rest, without comparison
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def compare(folder: Path, seeds: range) -> None:
    """Print each case before it runs, and the differences of step.c and attention.c after that, as lines of JSON."""
    native.MULTIPLY_ADDS_PER_THREAD = 1  # several threads even for small models
    libraries = {name: ctypes.CDLL(str(folder / f"{name}.so")) for name in build.OPTIONS}
    build.load = libraries.get  # type: ignore[assignment]
    for seed in seeds:
        case = random_case(seed)
        print(json.dumps(asdict(case), default=str), flush=True)
        print(json.dumps([difference(case, libraries["step"]), attention_difference(case)]), flush=True)


def compile_sanitized(flags: list[str], folder: Path) -> None:
    """Compile the C files to libraries in a folder, with sanitizers.

    Raises:
        CalledProcessError: if the compiler fails.
    """
    for name, own in build.OPTIONS.items():
        made = folder / f"{name}.o"
        options = ["-O1", "-g1", "-fPIC", *own, *flags, *SANITIZERS]
        subprocess.run(["gcc", *options, "-c", str(build.FOLDER / f"{name}.c"), "-o", str(made)], check=True)
        library = str(made.with_suffix(".so"))
        subprocess.run(["gcc", "-shared", *SANITIZERS, str(made), "-o", library, "-lm"], check=True)


def sanitize(flags: list[str], seeds: range) -> dict[str, list[float]]:
    """Return the differences with these compiler flags: of step.c for each data type of weights, and of attention.c.

    Raises:
        ValueError: if a sanitizer finds an error, or the numbers differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        compile_sanitized(flags, Path(folder))
        asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
        limits = map(str, (seeds.start, seeds.stop, seeds.step))
        run = subprocess.run(
            [sys.executable, __file__, "--compare", folder, *limits],
            env=os.environ | ENVIRONMENT | {"LD_PRELOAD": asan.stdout.strip()},
            capture_output=True,
            text=True,
        )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    if run.returncode:
        raise ValueError(f"{run.stderr}\nfailed with {flags} at {lines[-1] if lines else 'the start'}")
    differences: dict[str, list[float]] = {}
    for case, found in zip(lines[::2], lines[1::2], strict=True):
        rounded = "-march=native" in flags and case["dtype"] != "torch.float32"
        for name, number, tolerance in (
            (case["dtype"].removeprefix("torch."), found[0], AMX_TOLERANCE if rounded else TOLERANCE),
            ("attention", found[1], TOLERANCE),
        ):
            if not number <= tolerance:
                raise ValueError(f"{name} differs by {number:.1e} with {flags} for {case}")
            differences.setdefault(name, []).append(number)
    return differences


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="number of random models; default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="seed of the first; default: %(default)s")
    parser.add_argument("--compare", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compare:
        folder, *limits = args.compare
        compare(Path(folder), range(*map(int, limits)))
        return
    seeds = range(args.first, args.first + args.cases)
    shares = [seeds[number :: len(BUILDS)] for number in range(len(BUILDS))]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(sanitize, BUILDS, shares))
    except ValueError as error:
        sys.exit(str(error))
    print("| compiler flags | weights, or attention | cases | largest difference |", "|---|---|---|---|", sep="\n")
    for flags, differences in zip(BUILDS, results, strict=True):
        for name, found in sorted(differences.items()):
            print(f"| {' '.join(flags) or 'none'} | {name} | {len(found)} | {max(found):.1e} |")
    print(f"\nNo errors in {args.cases:,} models.")


if __name__ == "__main__":
    main()
