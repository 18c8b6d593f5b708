"""`lit-lm export` and `lit-lm import`: models for other programs, and from them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lit_lm.checkpoint import read_checkpoint
from lit_lm.cli.checkpoints import BY_DEFAULT, CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.options import Parser
from lit_lm.files import expand_home
from lit_lm.interop.formats import FORMATS


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm export` or `lit-lm import`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(args[0], description).parse_args(args[1:])
    try:
        print((_import if args[0] == "import" else _export)(options))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing; pip install 'lit-lm[export]'") from None


def _export(options: Namespace) -> str:
    from lit_lm.interop.export import export

    dtype = options.dtype or FORMATS[options.to].dtypes[0]
    if dtype not in FORMATS[options.to].dtypes:
        known = ", ".join(FORMATS[options.to].dtypes)
        raise ValueError(f"--dtype is {dtype}; for --to {options.to}, it must be one of {known}")
    checkpoint = read_checkpoint(chosen_checkpoint(options.ckpt_path, options.name))
    return export(checkpoint, options.to, expand_home(options.output), dtype, overwrite=options.overwrite)


def _import(options: Namespace) -> str:
    from lit_lm.interop.importing import import_model

    tokenizer = None if options.tokenizer is None else expand_home(options.tokenizer)
    return import_model(expand_home(options.path), expand_home(options.output), tokenizer, overwrite=options.overwrite)


def make_parser(command: str, description: str) -> Parser:
    """The parser of one of the two commands."""
    parser = Parser(f"lit-lm {command}", description=description)
    if command == "import":
        parser.add_argument(
            "path", type=Path, help="folder of Hugging Face or LitGPT, nanoGPT's .pt, or llama2.c's .bin"
        )
        parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, a .ckpt file")
        parser.add_argument("--tokenizer", type=Path, help="file or folder of the tokenizer, if the model has none")
    else:
        formats = "; ".join(f"{name}: {each.description}" for name, each in FORMATS.items())
        dtypes = dict.fromkeys(dtype for each in FORMATS.values() for dtype in each.dtypes)
        parser.add_argument("--to", choices=FORMATS, default="hf", help=f"{formats} (default: %(default)s)")
        parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP + BY_DEFAULT)
        parser.add_argument("--name", help=NAME_HELP)
        parser.add_argument("--output", type=Path, required=True, help="file or folder to write")
        parser.add_argument("--dtype", choices=dtypes, help="of the weights (default: the first that --to has)")
    parser.add_bool("--overwrite", "replace what is there (default: false)")
    return parser
