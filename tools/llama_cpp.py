"""What llama.cpp computes with a GGUF file, for tools/interop.py: reads a job as JSON, prints the result as JSON.

Runs in a Python that has the package llama-cpp-py-sync (llama.cpp's C API through cffi), which needs glibc 2.38. The
cache is float32 and flash attention is off: llama.cpp's defaults, a cache in float16, change the logits by up to 0.01.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

FFI, LIB = get_ffi(), get_lib()
F32 = 0


def main(job: dict[str, Any]) -> dict[str, Any]:
    silent = FFI.callback("void(enum ggml_log_level, const char *, void *)", lambda level, text, data: None)
    LIB.llama_log_set(silent, FFI.NULL)
    LIB.llama_backend_init()
    model = LIB.llama_model_load_from_file(job["file"].encode(), LIB.llama_model_default_params())
    if model == FFI.NULL:
        sys.exit(f"llama.cpp cannot load {job['file']}")
    vocab = LIB.llama_model_get_vocab(model)
    size = LIB.llama_vocab_n_tokens(vocab)
    greedy = Context(model, job["context"], size)
    row, new = greedy.logits(job["prompt"])[-1], list[int]()
    for _ in range(job["new"]):
        new.append(max(range(size), key=row.__getitem__))
        row = greedy.logits(new[-1:])[-1]
    return {
        "ids": [tokenize(vocab, text) for text in job["texts"]],
        "logits": Context(model, job["context"], size).logits(job["ids"]),
        "greedy": new,
    }


def tokenize(vocab: Any, text: str) -> list[int]:
    """Ids of a text, in which the names of special tokens are text."""
    data = text.encode()
    out = FFI.new("llama_token[]", len(data) + 8)
    return list(out[0 : LIB.llama_tokenize(vocab, data, len(data), out, len(data) + 8, True, False)])


class Context:
    """A model with a cache of the tokens that it has seen."""

    def __init__(self, model: Any, length: int, vocab_size: int) -> None:
        parameters = LIB.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.type_k = parameters.type_v = F32
        parameters.flash_attn_type = 0
        self._context = LIB.llama_init_from_model(model, parameters)
        self._vocab_size, self._seen = vocab_size, 0

    def logits(self, ids: Sequence[int]) -> list[list[float]]:
        """Logits for the token after each of ids, which follow those seen before."""
        batch = LIB.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, self._seen + place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if LIB.llama_decode(self._context, batch):
            sys.exit("llama.cpp cannot decode")
        self._seen += len(ids)
        rows = [list(LIB.llama_get_logits_ith(self._context, n)[0 : self._vocab_size]) for n in range(len(ids))]
        LIB.llama_batch_free(batch)
        return rows


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
