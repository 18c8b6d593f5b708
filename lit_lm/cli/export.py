"""`lit-lm export` and `lit-lm import`: models for other programs, and from them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lit_lm.checkpoint import read_checkpoint
from lit_lm.cli.checkpoints import CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.options import Parser
from lit_lm.files import expand_home

if TYPE_CHECKING:
    from types import ModuleType

FORMATS = {
    "hf": "a Hugging Face folder, as transformers, vLLM and converters to other formats read it",
    "safetensors": "a folder with the weights under lit-lm's names, for your own code",
}
DTYPES = ("float32", "bfloat16", "float16")


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm export` or `lit-lm import`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(args[0], description).parse_args(args[1:])
    output, overwrite = expand_home(options.output), options.overwrite
    interop = _interop()
    if args[0] == "import":
        lines = interop.import_folder(expand_home(options.path), output, overwrite=overwrite)
    else:
        checkpoint = read_checkpoint(chosen_checkpoint(options.ckpt_path, options.name))
        write = interop.export if options.to == "hf" else interop.export_weights
        lines = write(checkpoint, output, options.dtype, overwrite=overwrite)
    for line in lines:
        print(line, flush=True)


def _interop() -> ModuleType:
    try:
        return import_module("lit_lm.interop.export")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing; pip install 'lit-lm[export]'") from None


def make_parser(command: str, description: str) -> Parser:
    """The parser of one of the two commands."""
    parser = Parser(f"lit-lm {command}", description=description)
    if command == "import":
        parser.add_argument("path", type=Path, help="folder with config.json, .safetensors and tokenizer.json")
        parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, a .ckpt file")
    else:
        formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        parser.add_argument("--to", choices=FORMATS, default="hf", help=f"{formats} (default: %(default)s)")
        parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP)
        parser.add_argument("--name", help=NAME_HELP)
        parser.add_argument("--output", type=Path, required=True, help="folder to write")
        parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default: %(default)s)")
    parser.add_bool("--overwrite", "replace what is there (default: false)")
    return parser
