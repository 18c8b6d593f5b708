"""Open doors: export a checkpoint to each format, run the real programs on it, and compare them with lit-lm.

    python tools/interop.py logs/quick --text held-out.txt --llama2c ../llama2.c --llama_cpp ../llama-cpp/bin/python

Compared are the logits of a text, 64 tokens of greedy decoding, and the token ids of difficult texts. What a format
cannot express is shown as refused. transformers and onnxruntime are those of this environment. llama2.c is compiled
from a checkout; --llama_cpp is a Python that has the package llama-cpp-py-sync. --text: the perplexity of this text
with the weights of the quantized files, read by transformers (GGUF) and lit-lm (llama2.c).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging

import lit_lm
from lit_lm.checkpoint import Checkpoint, read_checkpoint
from lit_lm.inference.generate import generate
from lit_lm.inference.language_model import LanguageModel
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.interop.export import export
from lit_lm.interop.importing import import_model
from lit_lm.interop.llama2c_tokenizer import read_pieces, run_c_ids
from lit_lm.interop.proof import CHECK_TEXT, HARD_TEXTS, check_ids, expected_logits
from lit_lm.runs import find_checkpoint
from lit_lm.tokenizer.tokenizer import Tokenizer

PROMPT, NUM_TOKENS = "Once upon a time", 64


class Door(NamedTuple):
    """A format with a data type, and the program that reads it."""

    to: str
    dtype: str
    program: str


class Seen(NamedTuple):
    """What a program computed; None: the program does not show it."""

    logits: Tensor | None
    """Logits (1, T, V) of the check text."""
    greedy: Sequence[int] | None
    """Ids after the prompt."""
    ids: Sequence[Sequence[int]] | None
    """Ids of the difficult texts."""


def greedy(checkpoint: Checkpoint, prompt: Sequence[int], weights: dict[str, Tensor] | None = None) -> list[int]:
    """lit-lm's greedy continuation, which does not stop at the end of the text."""
    model = checkpoint.transformer()
    model.load_state_dict(weights or checkpoint.weights)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=NUM_TOKENS)
    ((continuation,),) = generate(model, [prompt], sampling, seeds=[0], end_id=-1)
    return continuation.ids


def with_transformers(folder: Path, checkpoint: Checkpoint) -> Seen:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        logits = model(check_ids(checkpoint)).logits
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=-1, pad_token_id=0)
    new = ids[0, prompt.input_ids.shape[1] :].tolist()
    return Seen(logits, new, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in HARD_TEXTS])


def with_onnxruntime(folder: Path, checkpoint: Checkpoint) -> Seen:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    shapes = [each.shape for each in session.get_inputs()[3:]]
    tokenizer = Tokenizer.load(folder)

    def run(ids: Sequence[int], seen: int, past: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        end = seen + len(ids)
        inputs = [np.array([ids]), np.ones((1, end), np.int64), np.arange(seen, end)[None], *past]
        logits, *present = session.run(None, dict(zip(names, inputs, strict=True)))
        return logits, present

    nothing = [np.zeros((1, shape[1], 0, shape[3]), np.float32) for shape in shapes]
    logits = torch.from_numpy(run(check_ids(checkpoint)[0].tolist(), 0, nothing)[0])
    ids, past, new = tokenizer.encode(PROMPT), nothing, list[int]()
    seen = 0
    for _ in range(NUM_TOKENS):
        out, past = run(ids, seen, past)
        seen += len(ids)
        ids = [int(out[0, -1].argmax())]
        new += ids
    return Seen(logits, new, [tokenizer.encode(text) for text in HARD_TEXTS])


def with_llama_cpp(python: str) -> Callable[[Path, Checkpoint], Seen]:
    def run(file: Path, checkpoint: Checkpoint) -> Seen:
        tokenizer = checkpoint.require_tokenizer()
        job = {
            "file": str(file), "context": checkpoint.model["net"]["context_length"], "texts": HARD_TEXTS,
            "ids": check_ids(checkpoint)[0].tolist(), "prompt": tokenizer.encode(PROMPT), "new": NUM_TOKENS,
        }  # fmt: skip
        script = Path(__file__).with_name("llama_cpp.py")
        done = subprocess.run([python, str(script)], input=json.dumps(job), capture_output=True, text=True, check=True)
        out = json.loads(done.stdout)
        return Seen(torch.tensor([out["logits"]]), out["greedy"], out["ids"])

    return run


def with_llama2c(checkout: str, source: str) -> Callable[[Path, Checkpoint], Seen]:
    def run(folder: Path, checkpoint: Checkpoint) -> Seen:
        program = folder.with_name(source.removesuffix(".c"))
        subprocess.run(["cc", "-O2", "-w", "-o", str(program), str(Path(checkout, source)), "-lm"], check=True)
        pieces, tokenizer = read_pieces(folder / "tokenizer.bin"), Tokenizer.load(folder)
        prompt = [1, *run_c_ids(PROMPT, pieces)]
        command = [str(program), str(folder / "model.bin"), "-z", str(folder / "tokenizer.bin"), "-t", "0"]
        command += ["-n", str(len(prompt) + NUM_TOKENS), "-i", PROMPT]
        text = subprocess.run(command, capture_output=True, check=True).stdout
        import_model(folder / "model.bin", folder / "again.ckpt", folder, overwrite=True)
        ours = [*prompt, *greedy(read_checkpoint(folder / "again.ckpt"), prompt)]
        expected = b"".join(pieces[number].text for number in ours[1 : ours.index(1, 1) if 1 in ours[1:] else None])
        same = text.strip().startswith(expected.strip()[: len(text.strip())])
        ids = [run_c_ids(text, pieces) for text in HARD_TEXTS]
        usual = [tokenizer.encode(f" {text}") for text in HARD_TEXTS]
        original = [checkpoint.require_tokenizer().encode(text) for text in HARD_TEXTS]
        return Seen(
            None,
            greedy(checkpoint, checkpoint.require_tokenizer().encode(PROMPT)) if same else [],
            [right if mine == theirs else [] for mine, theirs, right in zip(ids, usual, original, strict=True)],
        )

    return run


def row(door: Door, run: Callable[[Path, Checkpoint], Seen], checkpoint: Checkpoint, folder: Path) -> str:
    """A row of the table."""
    cells = [f"`{door.to}`", door.dtype, door.program]
    output = folder / f"{door.to}-{door.dtype}"
    try:
        export(checkpoint, door.to, output, door.dtype, overwrite=True)
    except ValueError as error:
        return f"| {' | '.join(cells)} | refused: {error} | | |"
    seen, tokenizer = run(output, checkpoint), checkpoint.require_tokenizer()
    cells.append(
        "-" if seen.logits is None else f"{float((seen.logits - expected_logits(checkpoint)).abs().max()):.1e}"
    )
    expected = greedy(checkpoint, tokenizer.encode(PROMPT))
    equal = next((n for n, (a, b) in enumerate(zip(expected, seen.greedy or [], strict=False)) if a != b), None)
    cells.append(f"{len(seen.greedy or []) if equal is None else equal} of {NUM_TOKENS}")
    same = sum(list(ids) == tokenizer.encode(text) for ids, text in zip(seen.ids or [], HARD_TEXTS, strict=True))
    return f"| {' | '.join([*cells, f'{same} of {len(HARD_TEXTS)}'])} |"


def perplexities(checkpoint: Checkpoint, text: str, folder: Path) -> list[str]:
    """Lines with the perplexity of a text, with float32 and quantized weights."""
    exact = LanguageModel(checkpoint.transformer(), checkpoint.require_tokenizer()).perplexity(text)
    lines = [f"float32: perplexity {exact:.4f}"]
    for name, weights in (("gguf, q8_0", q8_0), ("llama2c, int8", int8)):
        try:
            found = weights(checkpoint, text, folder)
        except ValueError as error:
            lines.append(f"{name}: refused: {error}")
            continue
        lines.append(f"{name}: perplexity {found:.4f} ({100 * (found / exact - 1):+.2f} %)")
    return lines


def q8_0(checkpoint: Checkpoint, text: str, folder: Path) -> float:
    export(checkpoint, "gguf", folder / "q8_0.gguf", "q8_0", overwrite=True)
    export(checkpoint, "hf", folder / "hf", "float32", overwrite=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(folder / "q8_0.gguf", return_tensors=True, model_to_load=model)["tensors"]
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.get_output_embeddings().weight
    model.load_state_dict(tensors)
    tokenizer, context = checkpoint.require_tokenizer(), checkpoint.model["net"]["context_length"]
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    total = 0.0
    for start in range(0, len(ids) - 1, context):
        window = torch.tensor([ids[start : start + context + 1]])
        with torch.no_grad():
            logits = model(window[:, :-1]).logits[0].log_softmax(dim=-1)
        total -= float(logits.gather(1, window[0, 1:, None]).double().sum())
    return math.exp(total / (len(ids) - 1))


def int8(checkpoint: Checkpoint, text: str, folder: Path) -> float:
    export(checkpoint, "llama2c", folder / "int8", "int8", overwrite=True)
    import_model(folder / "int8" / "model.bin", folder / "int8.ckpt", folder / "int8", overwrite=True)
    return lit_lm.load(folder / "int8.ckpt").perplexity(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt_path", nargs="+", help="checkpoints, or folders or names of runs")
    parser.add_argument("--llama2c", help="checkout of llama2.c")
    parser.add_argument("--llama_cpp", help="Python with the package llama-cpp-py-sync")
    parser.add_argument("--text", type=Path, help="text to compute the perplexity of")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    doors: list[tuple[Door, Callable[[Path, Checkpoint], Seen]]] = [
        *((Door("hf", dtype, "transformers"), with_transformers) for dtype in ("float32", "bfloat16")),
        (Door("onnx", "float32", "onnxruntime"), with_onnxruntime),
    ]
    if args.llama_cpp:
        run = with_llama_cpp(args.llama_cpp)
        doors += [(Door("gguf", dtype, "llama.cpp"), run) for dtype in ("float32", "float16", "bfloat16", "q8_0")]
    if args.llama2c:
        doors.append((Door("llama2c", "float32", "run.c"), with_llama2c(args.llama2c, "run.c")))
        doors.append((Door("llama2c", "int8", "runq.c"), with_llama2c(args.llama2c, "runq.c")))
    assert CHECK_TEXT in HARD_TEXTS
    for given in args.ckpt_path:
        checkpoint = read_checkpoint(find_checkpoint(given, None))
        print(
            f"\n{checkpoint.path}\n\n| format | weights | program | logits differ by | greedy tokens | ids of texts |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as name:
            for door, program in doors:
                print(row(door, program, checkpoint, Path(name)), flush=True)
            if args.text:
                text = args.text.read_text(encoding="utf-8")
                print("", *perplexities(checkpoint, text, Path(name)), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
