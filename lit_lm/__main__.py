"""Entry point of `lit-lm` and `python -m lit_lm`: runs a command of lit_lm.cli and reports user errors."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from lit_lm.training.signals import STOP_SIGNALS

COMMANDS = {
    "fit": ("fit", "train a model"),
    "validate": ("fit", "evaluate a checkpoint on its validation data"),
    "test": ("fit", "like validate, logged as test/*, plus text metrics of 20 generated samples"),
    "generate": ("generate", "continue a prompt, or start an interactive session"),
    "predict": ("predict", "continue many prompts in batches"),
    "prepare": ("data", "train the tokenizer and write the token stores that fit reads"),
    "data": ("data", "inspect the data: `info` prints statistics, `show` prints the batch of a given step"),
    "tokenizer": ("tokenizer", "train or inspect a tokenizer, encode and decode text"),
}
"""For each command: the module of lit_lm.cli that runs it, and its description."""

OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Control characters other than the newline; a message may quote a stranger's file."""

HELP = f"""\
usage: lit-lm COMMAND [options]

Train small language models from scratch and generate text with them.

{chr(10).join(f"  {name:11}{what}" for name, (_, what) in COMMANDS.items())}

  lit-lm fit --config configs/quick.yaml
  lit-lm generate "Once upon a time"

  lit-lm COMMAND --help        all options of a command
  lit-lm --version
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. User errors exit with code 2 and a message, without a traceback; signals with 128 + the signal."""
    args = list(sys.argv[1:] if args is None else args)
    # without importing torch and Lightning, which takes seconds
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if args[0] == "--version":
        print(f"lit-lm {version('lit-lm')}")
        return
    if args[0] not in COMMANDS:
        _fail(f"unknown command {args[0]!r}; the commands are {', '.join(COMMANDS)}")
    try:
        module, description = COMMANDS[args[0]]
        with _reported_signals(args[0]):
            import_module(f"lit_lm.cli.{module}").run(args, description)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        _fail(f"out of memory; use a smaller model or fewer sequences at once ({str(error).strip() or 'MemoryError'})")
    except (ValueError, OSError) as error:
        if os.environ.get("LIT_LM_TRACEBACK"):  # for debugging lit-lm itself
            raise
        _fail(str(error))


@contextmanager
def _reported_signals(command: str) -> Iterator[None]:
    """Exit with a message on the signals that stop a run. `fit` replaces these handlers while it trains.

    `generate` keeps Python's handler of Ctrl-C, which ends a continuation but not a session.
    """
    numbers = [number for number in STOP_SIGNALS if (command, number) != ("generate", signal.SIGINT)]
    before = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, _exit_by)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_by(number: int, frame: Any) -> NoReturn:
    os.write(2, f"lit-lm: stopped by {signal.Signals(number).name}\n".encode())  # print is not reentrant
    sys.exit(128 + number)


def _fail(message: str) -> NoReturn:
    print(f"lit-lm: error: {CONTROL.sub(chr(0xFFFD), message)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
