"""Benchmark of generation: lit-lm against llama2.c's run.c and transformers.

All continue the same prompt greedily to a full context, with the same random weights in the shape of llama2.c's
stories15M (15 M parameters). They take turns, so that other load on the machine affects all of them. Rates are medians
over the rounds, with minimum and maximum; ratios are medians of the ratios in each round.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lit_lm.inference.engine import Engine, make_engine
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.interop.llama2c_file import write_model
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer

SHAPE = TransformerConfig(
    vocab_size=32_000, context_length=256, d_model=288, num_layers=6, num_heads=6, d_ff=768, tie_embeddings=True
)
PROMPT = [1]  # the first token of run.c
NEW = SHAPE.context_length - len(PROMPT)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=NEW)
NO_END = SHAPE.vocab_size
BATCH = 16

Rate = Callable[[], float]
"""Generates and returns tokens per second."""


def random_model() -> Transformer:
    """Model with seeded weights. Ids 1 and 2, at which run.c and transformers stop, are never the most likely."""
    torch.manual_seed(0)
    model = Transformer(SHAPE).eval()
    with torch.no_grad():
        model.embedding.weight[1:3] = 0
    return model


def llama2c(folder: Path, model: Transformer, threads: int, work: Path) -> Rate:
    """run.c, built in `folder`."""
    weights = work / "model.bin"
    write_model(weights, SHAPE, model.state_dict(), torch.arange(SHAPE.vocab_size))
    command = [str(folder / "run"), str(weights), "-z", str(folder / "tokenizer.bin"), "-t", "0", "-n"]

    def rate() -> float:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        run = subprocess.run([*command, str(SHAPE.context_length)], env=environment, capture_output=True, check=True)
        return float(re.search(rb"tok/s: ([\d.]+)", run.stderr)[1])  # type: ignore[index]

    return rate


def transformers(model: Transformer, dtype: torch.dtype, batch: int) -> Rate:
    """transformers' generate with its defaults."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size, hidden_size=SHAPE.d_model, intermediate_size=SHAPE.feed_forward_size,
        num_hidden_layers=SHAPE.num_layers, num_attention_heads=SHAPE.num_heads, rms_norm_eps=SHAPE.norm_eps,
        max_position_embeddings=SHAPE.context_length, rope_theta=SHAPE.rope_theta, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    names = {
        "blocks": "model.layers", "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
        "attention.": "self_attn.", "feed_forward.": "mlp.", "embedding": "model.embed_tokens", "head": "lm_head",
    }  # fmt: skip
    weights = {}
    for name, weight in model.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        weights["model.norm.weight" if name == "norm.weight" else name] = weight
    theirs.load_state_dict(weights)
    theirs = theirs.to(dtype)
    prompts = torch.tensor([PROMPT] * batch)
    options = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "max_new_tokens": NEW}
    if dtype == torch.float32:
        ((expected,),) = generate(model, [PROMPT], GREEDY, seeds=[0], end_id=NO_END)
        assert theirs.generate(prompts, **options)[0, len(PROMPT) :].tolist() == expected.ids

    def rate() -> float:
        started = time.perf_counter()
        theirs.generate(prompts, **options)
        return batch * NEW / (time.perf_counter() - started)

    return rate


def ours(engine: Engine, batch: int) -> Rate:
    """lit-lm's `generate`, including its overhead around the steps of the engine."""

    def rate() -> float:
        started = time.perf_counter()
        generate(engine, [PROMPT] * batch, GREEDY, seeds=[0] * batch, end_id=NO_END)
        return batch * NEW / (time.perf_counter() - started)

    return rate


def prefill_time(engine: Engine, size: int = 200) -> float:
    """Milliseconds from a prompt of `size` tokens to the logits of the first new token."""
    cache = engine.new_cache(1)
    started = time.perf_counter()
    engine.prefill(list(range(3, 3 + size)), cache, 0)
    return 1e3 * (time.perf_counter() - started)


def bench(rounds: int, threads: int, folder: Path | None, output: Path) -> str:
    """Measure and return a Markdown table; all rates are written to `output`."""
    torch.set_num_threads(threads)
    model = random_model()
    engines = {weights: make_engine(model, weights) for weights in ("float32", "bfloat16", "int8")}
    with tempfile.TemporaryDirectory() as work:
        contenders: dict[str, Rate] = {}
        if folder is None:
            print("skipping llama2.c: --llama2c is not given", file=sys.stderr)
        else:
            contenders["llama2.c run.c, float32, 1 sequence"] = llama2c(folder, model, threads, Path(work))
        for batch in (1, BATCH):
            sequences = f"{batch} sequence{'s' if batch > 1 else ''}"
            for dtype in (torch.float32, torch.bfloat16):
                name = f"transformers generate, {str(dtype).removeprefix('torch.')}, {sequences}"
                contenders[name] = transformers(model, dtype, batch)
            for weights, engine in engines.items():
                contenders[f"lit-lm, {weights}, {sequences}"] = ours(engine, batch)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            for name, rate in contenders.items():
                measured = rate()
                if turn:  # the first round is a warm-up
                    rates[name].append(measured)
                print(f"round {turn}: {name}: {measured:,.0f}", file=sys.stderr, flush=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / "generate.json").write_text(json.dumps({"torch": torch.__version__, "threads": threads, "rates": rates}))
    prefill = {w: statistics.median(prefill_time(d) for _ in range(max(5, rounds))) for w, d in engines.items()}
    memory = ", ".join(f"{w} {engine.num_bytes / 1e6:.1f} MB" for w, engine in engines.items())
    return "\n".join(
        [
            f"torch {torch.__version__}, {threads} threads, {rounds} rounds, greedy to {SHAPE.context_length} tokens",
            "",
            *_table(rates),
            "",
            f"Weights in memory: {memory}.",
            "A prompt of 200 tokens, one pass: " + ", ".join(f"{w} {t:.0f} ms" for w, t in prefill.items()) + ".",
        ]
    )


def _table(rates: dict[str, list[float]]) -> list[str]:
    """A row for each contender, with its ratio to the first."""
    first = next(iter(rates.values()))
    lines = ["| | tokens/s (min to max) | relative to the first row |", "|---|---|---|"]
    for name, each in rates.items():
        ratio = statistics.median(a / b for a, b in zip(each, first, strict=True))
        spread = f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})"
        lines.append(f"| {name} | {spread} | {ratio:.2f} |")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tools/bench.py generate`."""
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own")
    parser.add_argument("--llama2c", type=Path, help="path of a llama2.c checkout, built with make runomp")
    parser.add_argument("--output", type=Path, default=Path("logs/bench"), help="folder; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    print(bench(args.rounds, args.threads, args.llama2c, args.output))
