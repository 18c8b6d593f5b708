"""`lit-lm prepare` and `lit-lm data info | show` with a config of `fit` in full, or a checkpoint, which contains it."""

from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from lit_lm.cli.base import BaseCLI, quieten_libraries
from lit_lm.cli.checks import FIXED_IN_DATA
from lit_lm.cli.data_options import add_own_arguments, report


def lines(command: str, args: Sequence[str], description: str) -> Iterator[str]:
    """Run a command; yields the lines to print.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    quieten_libraries(args)
    return DataCLI(command, args, description).lines()


class DataCLI(BaseCLI):
    """Command that uses only the data module. Takes the options of `fit` and its own."""

    def __init__(self, command: str, args: Sequence[str], description: str) -> None:
        super().__init__(command, args, description, run=False)

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        add_own_arguments(parser, self.command)
        super().add_own_arguments(parser)
        groups = dict.fromkeys(("checkpoint", "console", "samples"), dict | None)
        self.accept(parser, **groups, allow_changes=bool | None, init_from=str | None)

    def instantiate_classes(self) -> None:
        """Build only the data module."""
        self.datamodule = self.own_data_class(**self.options.data.as_dict())
        self.hand_over_tokenizer()

    def lines(self) -> Iterator[str]:
        """Prepare or read the data; yields the lines to print."""
        data: Any = self.datamodule
        if self.command != "prepare":
            if self.checkpoint is not None:
                data.streaming_state = self.checkpoint.streaming
                if all(self.options.data[name] == self.checkpoint.data.get(name) for name in FIXED_IN_DATA):
                    data.expected_digests = self.checkpoint.digests  # fail unless the run read the same data
            data.setup(TrainerFn.FITTING)
        return report(self.command, data, self.options)
