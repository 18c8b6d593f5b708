"""The front door of `lit-lm` (and of `python -m lit_lm`): answers what needs no torch, and catches mistakes of use."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

COMMANDS = {
    "fit": ("fit", "train a model"),
    "validate": ("fit", "measure a checkpoint on its validation data"),
    "test": ("fit", "like validate, logged as test/*, plus text metrics of 20 generated samples"),
    "generate": ("generate", "continue a prompt while you watch, or talk with a model"),
    "predict": ("predict", "continue many prompts, to a file"),
    "prepare": ("data", "train the tokenizer and write the token stores that fit reads"),
    "data": ("data", "inspect the data: `info` prints statistics, `show` prints the batch of a given step"),
    "tokenizer": ("tokenizer", "train a tokenizer, encode, decode, inspect one"),
}
"""The commands: the module of lit_lm.cli that runs each, and what it does."""

HELP = f"""\
usage: lit-lm COMMAND [options]

Train small language models from scratch, and use them.

{chr(10).join(f"  {name:11}{what}" for name, (_, what) in COMMANDS.items())}

  lit-lm fit --config configs/quick.yaml
  lit-lm generate "Once upon a time"

  lit-lm COMMAND --help        all options of a command
  lit-lm --version
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; a mistake of the user's ends it with a message and exit code 2, without a traceback."""
    args = list(sys.argv[1:] if args is None else args)
    # torch and Lightning take seconds to import, and these need neither
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if args[0] == "--version":
        print(f"lit-lm {version('lit-lm')}")
        return
    if args[0] not in COMMANDS:
        _fail(f"there is no command {args[0]!r}; the commands are {', '.join(COMMANDS)}")
    try:
        module, description = COMMANDS[args[0]]
        import_module(f"lit_lm.cli.{module}").run(args, description)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        if os.environ.get("LIT_LM_TRACEBACK"):  # for whoever suspects us rather than the input
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"lit-lm: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
