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
    "safetensors": Format("a folder with the weights under lit-lm's names, for your own code"),
}
