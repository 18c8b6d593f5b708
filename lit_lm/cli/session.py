"""Interactive session: each line is a prompt or a command."""

import difflib
import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO, get_type_hints

from lit_lm.cli.display import Display
from lit_lm.cli.options import field_docs, parsed, shown
from lit_lm.files import expand_home
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text import Text, TextGenerator

HELP = """\
Type a prompt to continue it, or an empty line to start a new text. Ctrl-C stops generating.

  /set                 list the settings, with their meanings and values
  /set NAME VALUE      change a setting, for example /set temperature 0.7
  /retry               continue the last prompt again, with the next seed
  /save FILE           write the texts of this session to a file
  /help                show this help
  /quit                end the session (or Ctrl-D)"""

ENDED = {
    None: "stopped",
    "end": "the end of the text",
    "stop": "stopped at a stop string or token",
    "max_new_tokens": "max_new_tokens",
    "context": "the context is full; set sliding_window to continue",
}


@dataclass(frozen=True)
class Settings:
    """Settings other than sampling."""

    seed: int = 0
    """Seed; the same prompt, options and seed give the same text."""
    stop: tuple[str, ...] = ()
    """Stop string: ends the continuation and is not part of it."""
    show: Literal["text", "probs"] = "text"
    """text, or probs to color each token by its probability (on a terminal)."""
    alternatives: int = 0
    """Number of most likely tokens to list for each token, with probabilities, one line per token; 0: show the text."""

    def __post_init__(self) -> None:
        problems = []
        if self.alternatives < 0:
            problems.append(f"alternatives is {self.alternatives}; it must be at least 0")
        if "" in self.stop:
            problems.append("stop must not be an empty string")
        if problems:
            raise ValueError("\n".join(problems))


class Session:
    """Reads and answers lines until /quit or the end of the input. Errors are printed and do not end the session."""

    def __init__(
        self,
        generator: TextGenerator,
        sampling: SamplingConfig,
        settings: Settings,
        *,
        ask: Callable[[str], str],
        out: TextIO,
    ) -> None:
        """
        Args:
            generator: Continues the prompts.
            sampling: Initial sampling config.
            settings: Initial settings. The seed increases by one with each prompt.
            ask: Returns a line, like `input`; raises EOFError at the end and KeyboardInterrupt on Ctrl-C.
            out: Output stream.
        """
        self.generator, self.sampling, self.settings = generator, sampling, settings
        self.ask, self.out = ask, out
        self.texts: list[Text] = []
        self.commands: dict[str, Callable[[list[str]], None]] = {
            "set": self._set,
            "retry": self._retry,
            "save": self._save,
            "help": lambda words: self._print(HELP),
        }

    def run(self) -> None:
        """Answer lines until /quit or the end of the input."""
        while True:
            try:
                line = self.ask("> " if self.out.isatty() else "").strip()
                if line.split()[:1] == ["/quit"]:
                    return
                self._answer(line)
            except KeyboardInterrupt:  # discards the current line
                self._print("")
            except EOFError:
                self._print("")
                return
            except BrokenPipeError:
                raise
            except (ValueError, OSError) as error:
                self._print(f"error: {error}")

    def complete(self, text: str, number: int) -> str | None:
        """Complete the names of commands and settings, for readline."""
        names = [f"/{name}" for name in (*self.commands, "quit")] + list(self._values())
        return dict(enumerate(name for name in names if text and name.startswith(text))).get(number)

    def _answer(self, line: str) -> None:
        if not line.startswith("/"):
            self._continue(line)
            return
        name, *words = shlex.split(line[1:]) or [""]
        if name not in self.commands:
            nearest = difflib.get_close_matches(name, [*self.commands, "quit"], n=1)
            remedy = f"did you mean /{nearest[0]}?" if nearest else "see /help"
            raise ValueError(f"unknown command /{name}; {remedy}")
        self.commands[name](words)

    def _continue(self, prompt: str) -> None:
        """Continue a prompt, until the text ends or Ctrl-C is pressed."""
        settings = self.settings
        display = Display(
            self.out,
            self.generator.tokenizer,
            probabilities=settings.show == "probs",
            alternatives=settings.alternatives,
        )
        if not is_streamed(self.sampling, settings):
            texts = self.generator.generate(prompt, self.sampling, seed=settings.seed, stop=settings.stop)
            for text in texts:
                display.show(text)
        else:
            texts = [self._stream(prompt, display)]
        display.legend()
        self.texts += texts
        self.settings = replace(settings, seed=settings.seed + 1)

    def _stream(self, prompt: str, display: Display) -> Text:
        text, start = Text(prompt, self.settings.seed), time.perf_counter()
        stop, alternatives = self.settings.stop, self.settings.alternatives
        pieces = self.generator.stream(text, self.sampling, stop=stop, num_alternatives=alternatives)
        with suppress(KeyboardInterrupt):
            display.show(text, pieces)
        speed = len(text.tokens) / max(time.perf_counter() - start, 1e-9)
        display.note(f"{ENDED[text.ended]}; {len(text.tokens)} tokens, {speed:,.0f} a second; seed {text.seed}")
        return text

    def _set(self, words: list[str]) -> None:
        values = self._values()
        if not words:
            docs = field_docs(SamplingConfig) | field_docs(Settings)
            for name, value in values.items():
                self._print(f"  {name:21}{_shown(value):>9}  {docs[name]}")
            return
        name, *value = words
        if name not in values:
            nearest = difflib.get_close_matches(name, values, n=1)
            remedy = f"did you mean {nearest[0]}?" if nearest else "see /set"
            raise ValueError(f"unknown setting {name}; {remedy}")
        kind = SamplingConfig if name in {field.name for field in fields(SamplingConfig)} else Settings
        try:
            new = {name: parsed(get_type_hints(kind)[name], value)}
        except ValueError as error:
            raise ValueError(f"{name} is {' '.join(value)!r}; {error}") from None
        if kind is SamplingConfig:
            self.sampling = replace(self.sampling, **new)
        else:
            self.settings = replace(self.settings, **new)
        self._print(f"{name} {_shown(new[name])}")

    def _retry(self, words: list[str]) -> None:
        if not self.texts:
            raise ValueError("no prompt to retry yet")
        self._continue(self.texts[-1].prompt)

    def _save(self, words: list[str]) -> None:
        if len(words) != 1:
            raise ValueError("/save needs the name of a file")
        path = expand_home(words[0])
        try:
            with open(path, "x", encoding="utf-8", newline="\n") as file:
                file.write("\n\n".join(text.prompt + text.continuation for text in self.texts) + "\n")
        except FileExistsError:
            raise ValueError(f"{path} already exists; choose another name") from None
        self._print(f"{len(self.texts)} texts are in {path}")

    def _values(self) -> dict[str, Any]:
        return vars(self.sampling) | vars(self.settings)

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def is_streamed(sampling: SamplingConfig, settings: Settings) -> bool:
    """Whether a single text is generated, which is shown token by token.

    Raises:
        ValueError: if alternatives are combined with several texts.
    """
    one = sampling.num_samples == sampling.num_beams == 1
    if settings.alternatives and not one:
        raise ValueError(
            "alternatives are listed for one text at a time; set num_samples and num_beams to 1, or alternatives to 0"
        )
    return one


def history_file() -> Path:
    """File of the input history, according to the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "lit-lm" / "history"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return shlex.join(map(str, value)) or "none"
    return shown(value)
