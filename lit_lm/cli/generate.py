"""`lit-lm generate`: continue a prompt, or start an interactive session.

Starts quickly: imports torch and the model, but nothing that only training needs.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import get_args

from lit_lm.cli.checkpoints import BY_DEFAULT, CKPT_PATH_HELP, NAME_HELP, chosen_checkpoint
from lit_lm.cli.display import Display, as_json
from lit_lm.cli.options import Parser, add_fields, from_options
from lit_lm.cli.session import Session, Settings, history_file, is_streamed
from lit_lm.inference.language_model import load
from lit_lm.inference.prompts import MAX_PROMPT_BYTES, decoded
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import Text, TextGenerator
from lit_lm.inference.weights import WeightDtype

HISTORY_LINES = 1000


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm generate`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    options = make_parser(description).parse_args(args[1:])
    sampling, settings = from_options(SamplingConfig, options), from_options(Settings, options)
    if options.interactive:
        _run_session(options, sampling, settings)
    else:
        prompt = _prompt(options)
        _print_continuation(_generator(options)[0], prompt, sampling, settings, json=options.json)


def make_parser(description: str) -> Parser:
    """The parser of the command; its help starts with `description`."""
    parser = Parser("lit-lm generate", description=description)
    parser.add_argument("prompt", nargs="?", help="text to continue (default: standard input)")
    parser.add_argument(
        "--prompt", dest="prompts", metavar="PROMPT", action="append", default=[], help="same as PROMPT"
    )
    parser.add_argument("--prompt_file", type=Path, help="file with the text to continue")
    parser.add_argument("--ckpt_path", help=CKPT_PATH_HELP + BY_DEFAULT)
    parser.add_argument("--name", help=NAME_HELP)
    parser.add_bool("--interactive", "start an interactive session")
    parser.add_bool("--json", "print each continuation as a JSON object on one line")
    parser.add_argument("--weight_dtype", choices=get_args(WeightDtype), help="data type of the weights for generation")
    device = "cpu, cuda, mps, or auto: the GPU if there is one (default: %(default)s)"
    parser.add_argument("--device", default="auto", help=device)
    add_fields(parser, Settings)
    add_fields(parser, SamplingConfig)
    return parser


def _prompt(options: Namespace) -> str:
    """The prompt from PROMPT, --prompt, --prompt_file or standard input, without the newline at its end."""
    given = [text for text in (options.prompt, *options.prompts) if text is not None]
    if len(given) + (options.prompt_file is not None) > 1:
        raise ValueError("pass one prompt: PROMPT, --prompt or --prompt_file; lit-lm predict continues several")
    if given:
        return str(given[0])
    if options.prompt_file is None and sys.stdin.isatty():
        return ""
    file: Path | None = options.prompt_file
    if file is not None and file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a file; a pipe can be read as standard input")
    where = str(file or "standard input")
    with nullcontext(sys.stdin.buffer) if file is None else open(file, "rb") as stream:
        text = decoded(stream.read(MAX_PROMPT_BYTES + 1), where).removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f'{where} is empty; pass a prompt, or "" to start a new text')
    return text


def _generator(options: Namespace) -> tuple[TextGenerator, Path]:
    named = options.interactive and sys.stdout.isatty()
    path = chosen_checkpoint(options.ckpt_path, options.name, named=named)
    return load(path, device=options.device, weight_dtype=options.weight_dtype).generator, path


def _print_continuation(
    generator: TextGenerator, prompt: str, sampling: SamplingConfig, settings: Settings, *, json: bool
) -> None:
    """Print the continuations: a single one while it is generated, several when all are done."""
    probabilities, alternatives = settings.show == "probs", settings.alternatives
    display = Display(sys.stdout, generator.tokenizer, probabilities=probabilities, alternatives=alternatives)
    if is_streamed(sampling, settings):
        texts = [Text(prompt, settings.seed)]
        pieces = generator.stream(texts[0], sampling, stop=settings.stop, num_alternatives=alternatives)
        if json:
            list(pieces)
        else:
            display.show(texts[0], pieces)
    else:
        texts = generator.generate(prompt, sampling, seed=settings.seed, stop=settings.stop)
        if not json:
            for text in texts:
                display.show(text)
                print(flush=True)
    if not json:
        display.legend()
        return
    for sample, text in enumerate(texts):
        tokens = probabilities or alternatives > 0
        print(as_json(text, generator.tokenizer, sample=sample, tokens=tokens), flush=True)


def _run_session(options: Namespace, sampling: SamplingConfig, settings: Settings) -> None:
    """Run a session, with line editing and history on a terminal."""
    if options.json or options.prompt is not None or options.prompts or options.prompt_file is not None:
        raise ValueError("--interactive cannot be combined with PROMPT, --prompt_file or --json")
    generator, path = _generator(options)
    session = Session(generator, sampling, settings, ask=input, out=sys.stdout)
    if sys.stdout.isatty():
        context = generator.engine.config.context_length
        print(f"{path}: a context of {context} tokens; /help shows the commands, Ctrl-D ends")
    if not sys.stdin.isatty():
        session.run()
        return
    try:
        import readline
    except ImportError:  # on Windows
        session.run()
        return
    readline.set_completer(session.complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    with suppress(OSError):
        readline.read_history_file(history_file())
    try:
        session.run()
    finally:
        readline.set_history_length(HISTORY_LINES)
        with suppress(OSError):  # the history is optional
            history_file().parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history_file())
