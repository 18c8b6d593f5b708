"""`lit-lm prepare` and `lit-lm data info | show`: prepare and inspect the data of a run.

They take the config of `fit`, or a checkpoint, which contains it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from lit_lm.cli.base import BaseCLI, quieten_libraries
from lit_lm.cli.checks import FIXED_IN_DATA
from lit_lm.data.corpus import Part
from lit_lm.data.inspection import info, show
from lit_lm.data.prepare import prepare

LOOKS = {
    "info": "print sizes, document lengths, frequent tokens and digests",
    "show": "print the windows of a step",
}


def run(args: Sequence[str], description: str) -> None:
    """Run a command whose help starts with `description`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    command, rest = args[0], list(args[1:])
    if command == "data":
        if not rest or rest[0] in ("-h", "--help"):
            print("usage: lit-lm data COMMAND [options]\n")
            print("\n".join(f"  {name:6}{what}" for name, what in LOOKS.items()))
            return
        command = rest.pop(0)
        if command not in LOOKS:
            raise ValueError(f"unknown command data {command}; the commands are {', '.join(LOOKS)}")
        description = LOOKS[command]
    quieten_libraries(rest)
    cli = (
        PrepareCLI("prepare", rest, description)
        if command == "prepare"
        else LookCLI(f"data {command}", rest, description)
    )
    for line in cli.lines():
        print(line, flush=True)


class DataCLI(BaseCLI):
    """Command that uses only the data module. Takes the options of `fit` and its own."""

    def __init__(self, command: str, args: Sequence[str], description: str) -> None:
        super().__init__(command, args, description, run=False)

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        super().add_own_arguments(parser)
        groups = dict.fromkeys(("checkpoint", "console", "samples"), dict | None)
        self.accept(parser, **groups, allow_changes=bool | None, init_from=str | None)

    def instantiate_classes(self) -> None:
        """Build only the data module."""
        self.datamodule = self.own_data_class(**self.options.data.as_dict())
        self.hand_over_tokenizer()


class PrepareCLI(DataCLI):
    """`lit-lm prepare`."""

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--part", type=str | None, help="Prepare only part i of n, given as i/n (i from 1).")
        parser.add_argument("--merge", action="store_true", help="Check that all parts are present and complete.")
        bad = "Whether to stop at the first document that cannot be read, or to skip and count such documents."
        parser.add_argument("--on_bad_document", type=Literal["stop", "skip"], default="stop", help=bad)
        parser.add_argument("--output", type=str | None, help="Folder or URL to copy the prepared data to.")
        super().add_own_arguments(parser)

    def lines(self) -> Iterator[str]:
        """Prepare the data; yields the lines to print."""
        corpus = self.datamodule.corpus
        corpus.skip_bad = self.options.on_bad_document == "skip"
        tokenizer = self.datamodule.tokenizer or corpus.tokenizer()
        part, merge, output = _part(self.options.part), self.options.merge, self.options.output
        return prepare(corpus, tokenizer, part, merge=merge, output=output)


class LookCLI(DataCLI):
    """`lit-lm data info` and `lit-lm data show`."""

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        if self.command == "data show":
            parser.add_argument("--step", type=int, default=1, help="Number of the step, from 1.")
        super().add_own_arguments(parser)

    def lines(self) -> Iterator[str]:
        """Read the data; yields the lines to print."""
        data: Any = self.datamodule
        if self.checkpoint is not None:
            data.streaming_state = self.checkpoint.streaming
            if all(self.options.data[name] == self.checkpoint.data.get(name) for name in FIXED_IN_DATA):
                data.expected_digests = self.checkpoint.digests  # fail unless the run read the same data
        data.setup(TrainerFn.FITTING)
        return info(data) if self.command == "data info" else show(data, self.options.step)


def _part(text: str | None) -> Part | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"part is {text!r}; it must be i/n with i from 1 to n, like 1/4")
    return int(match[1]), int(match[2])
