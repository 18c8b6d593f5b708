"""Entry point of `lit-lm` and `python -m lit_lm`: runs a command of lit_lm.cli and reports user errors."""

import difflib
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

from lit_lm.cli import COMMANDS
from lit_lm.cli.recipes import find_configs
from lit_lm.training.signals import STOP_SIGNALS

OTHER_NAMES = {"train": "fit", "evaluate": "eval", "sample": "generate", "resume": "fit"}
"""What other programs call some commands."""
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Control characters other than the newline; a message may quote a stranger's file."""

HELP = f"""\
usage: lit-lm COMMAND [options]

Train small language models from scratch and generate text with them.

{chr(10).join(f"  {name:11}{what}" for name, (_, what) in COMMANDS.items())}

  lit-lm fit --config quick
  lit-lm generate "Once upon a time"

  lit-lm COMMAND --help        options of a command
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
        _fail(f"unknown command {args[0]!r}; {_remedy(args[0])}")
    try:
        module, description = COMMANDS[args[0]]
        with _reported_signals(args[0]):
            if module in ("fit", "predict", "data", "plan"):
                find_configs(args)  # before the imports, which take seconds
            _imported(f"lit_lm.cli.{module}").run(args, description)
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
        _fail(_said(error))


def _said(error: ValueError | OSError) -> str:
    """The message of an error; an error of the system without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _remedy(name: str) -> str:
    nearest = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"the commands are {', '.join(COMMANDS)}"


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        if os.environ.get("LIT_LM_TRACEBACK") or (error.name or "").startswith("lit_lm"):
            raise
        raise ValueError(f"{error}; install lit-lm again, and see lit-lm doctor") from None


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
