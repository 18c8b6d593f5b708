"""The formats that models are exported to."""

from dataclasses import dataclass

FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Format:
    """A format, which the function `write` of a module of the same name writes."""

    description: str
    dtypes: tuple[str, ...] = FLOATS
    """Data types of the weights; the first is the default."""


FORMATS = {
    "hf": Format("a Hugging Face folder, as transformers, vLLM and converters to other formats read it"),
    "gguf": Format("one file for llama.cpp, Ollama and LM Studio", ("float32", "float16", "bfloat16", "q8_0")),
    "safetensors": Format("a folder with the weights under lit-lm's names, for your own code"),
    "onnx": Format("a folder with a graph for ONNX Runtime", ("float32",)),
    "llama2c": Format(
        "a folder with model.bin and tokenizer.bin for llama2.c: run.c (float32) or runq.c (int8)", ("float32", "int8")
    ),
}
