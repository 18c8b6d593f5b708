"""`lit-lm data`: look at what a run was given to read."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.trainer.states import TrainerFn

from lit_lm.checkpoint import read_checkpoint
from lit_lm.data.datamodule import LMDataModule


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm data show`.

    Raises:
        ValueError, OSError: for anything that is wrong with the arguments or the files they name.
    """
    parser = argparse.ArgumentParser("lit-lm data", description=description)
    show = parser.add_subparsers(required=True).add_parser("show", help="print the windows of a step")
    show.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint of the run")
    show.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    options = parser.parse_args(args[1:])
    checkpoint = read_checkpoint(options.ckpt_path)
    data = LMDataModule(**checkpoint.data)
    data.tokenizer, data.stream_state = checkpoint.tokenizer, checkpoint.stream
    data.setup(TrainerFn.FITTING)
    for line in data.show(options.step):
        print(line)
