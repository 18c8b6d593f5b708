"""`lit-lm prepare` and `lit-lm data info | show`: the data of a run, without the run.

They take the config that `fit` takes, or a checkpoint that brings it along.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from lit_lm.cli.checks import FIXED_IN_DATA
from lit_lm.cli.fit import LitLMCLI, quieten_libraries
from lit_lm.data.corpus import Corpus, Part
from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.filesystem import file_system
from lit_lm.data.inspection import info, show
from lit_lm.data.sources import Split, StoreSource
from lit_lm.data.token_store import TokenStore
from lit_lm.tokenizer.tokenizer import Tokenizer

LOOKS = {
    "info": "sizes, document lengths, frequent tokens, digests",
    "show": "print the windows of a step",
}


def run(args: Sequence[str], description: str) -> None:
    """Run a command, whose help begins with `description`.

    Raises:
        ValueError, OSError: for anything that is wrong with the arguments or the files they name.
    """
    command, rest = args[0], list(args[1:])
    if command == "data":
        if not rest or rest[0] in ("-h", "--help"):
            print("usage: lit-lm data COMMAND [options]\n")
            print("\n".join(f"  {name:6}{what}" for name, what in LOOKS.items()))
            return
        command = rest.pop(0)
        if command not in LOOKS:
            raise ValueError(f"there is no command data {command}; the commands are {', '.join(LOOKS)}")
        description = LOOKS[command]
    quieten_libraries(rest)
    DataCLI(command, rest, description)


class DataCLI(LitLMCLI):
    """A command over the data module alone. Its options are those of fit, and its own."""

    def __init__(self, command: str, args: Sequence[str], description: str) -> None:
        self.command = command
        super().__init__(["fit", *args], description)

    @property
    def continues(self) -> bool:
        """Never."""
        return False

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Just fit, whose options are taken."""
        return {"fit": LitLMCLI.subcommands()["fit"]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of the command, before those of fit."""
        parser.usage = f"lit-lm {'' if self.command == 'prepare' else 'data '}{self.command} [options]"
        if self.command == "prepare":
            parser.add_argument("--shard", type=str | None, help="Prepare only part i of n: i/n, from 1/n.")
            parser.add_argument("--merge", action="store_true", help="Check that all parts are there and whole.")
            bad = "Documents that cannot be read: stop at the first, or skip and count them."
            parser.add_argument("--on_bad_document", type=Literal["stop", "skip"], default="stop", help=bad)
            parser.add_argument("--output", type=str | None, help="Copy what was prepared to this folder or address.")
        if self.command == "show":
            parser.add_argument("--step", type=int, default=1, help="Number of the step, from 1.")
        super().add_default_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        """As fit does, but only for model and data."""
        self._check(self.command)

    def instantiate_classes(self) -> None:
        """Build the data module, and nothing else."""
        self.datamodule = LMDataModule(**self.config.fit.data.as_dict())

    def after_instantiate_classes(self) -> None:
        """Run the command."""
        options, data = self.config.fit, self.datamodule
        if self.checkpoint is not None and options.data.tokenizer == self.checkpoint.data["tokenizer"]:
            data.tokenizer = self.checkpoint.tokenizer
        if self.command == "prepare":
            data.corpus.skip_bad = options.on_bad_document == "skip"
            data.tokenizer = data.tokenizer or data.corpus.tokenizer()
            lines = prepare(
                data.corpus, data.tokenizer, _part(options.shard), merge=options.merge, output=options.output
            )
        else:
            if self.checkpoint is not None:
                data.stream_state = self.checkpoint.stream
                if all(options.data[name] == self.checkpoint.data.get(name) for name in FIXED_IN_DATA):
                    data.expected_digests = self.checkpoint.digests  # what is shown is what the run read
            data.setup(TrainerFn.FITTING)
            lines = info(data) if self.command == "info" else show(data, options.step)
        for line in lines:
            print(line, flush=True)

    def _run_subcommand(self, subcommand: str) -> None:
        """Everything is done."""


def _part(shard: str | None) -> Part | None:
    if shard is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard is {shard!r}; it must be i/n with i from 1 to n, like 1/4")
    return int(match[1]), int(match[2])


def prepare(
    corpus: Corpus, tokenizer: Tokenizer, part: Part | None, *, merge: bool, output: str | None
) -> Iterator[str]:
    """Write the token stores of a corpus, or a part of them; tell of it line by line.

    Args:
        corpus: The corpus.
        tokenizer: Its tokenizer.
        part: The part to write; None: everything.
        merge: Write nothing, and check that everything is there.
        output: A folder or address to copy the finished stores and the tokenizer to.

    Raises:
        ValueError, OSError: if a source cannot be read, or, with `merge`, something is missing or damaged.
    """
    if merge and part is not None:
        raise ValueError("merge comes after all parts are written; leave out either --shard or --merge")
    if output is not None and (part is not None or len(corpus.names) > 1):
        raise ValueError("output takes all of one source; leave out --shard, and prepare each source by itself")
    if output is not None:
        file_system(output)  # before any work is done
    stores: dict[Split, TokenStore] = {}
    yield f"tokenizer: {tokenizer.vocab_size:,} tokens"
    for split, names in corpus.splits.items():
        if split == "train" and corpus.streaming:
            yield "train data: a stream is tokenized while it trains"
            continue
        for name in names:
            source, what = corpus.sources[split][name], f"{split} data of {name}"
            if isinstance(source, StoreSource):
                stores[split] = corpus.store(split, name, tokenizer)
            else:
                writer = corpus.writer(source, tokenizer)
                if not merge:
                    corpus.write(split, source, writer, part or (1, 1))
                if part is not None:
                    yield f"{what}: part {part[0]} of {part[1]} is whole"
                    continue
                if missing := writer.missing():
                    raise ValueError(
                        f"the {what} lacks {len(missing)} of {writer.num_shards} shards ({_listed(missing)}); "
                        "run lit-lm prepare with the --shard that was to write them, or without any"
                    )
                stores[split] = writer.finish()
            if merge:
                _check_digests(stores[split], what, finished_here=not isinstance(source, StoreSource))
            yield _summary(what, stores[split])
    if part is not None:
        yield "when all parts are whole, check them with: lit-lm prepare --merge, and the same options"
    if output is not None:
        _copy(stores, tokenizer, output)
        yield f"copied to {output}; use it with --data.source {output}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def _check_digests(store: TokenStore, what: str, *, finished_here: bool) -> None:
    if damaged := store.damaged():
        if finished_here:
            (store.path / "meta.json").unlink()
        raise ValueError(
            f"the {what} has damaged shards ({_listed(damaged)}) in {store.path}; "
            "delete their files and prepare them again"
        )


def _summary(what: str, store: TokenStore) -> str:
    meta = store.meta
    skipped = f", {meta.skipped:,} bad documents left out" if meta.skipped else ""
    return (
        f"{what}: {meta.documents:,} documents, {meta.bytes:,} bytes, {meta.tokens:,} tokens, "
        f"{meta.bytes_per_token:.3f} bytes a token{skipped}; {store.path}"
    )


def _copy(stores: Mapping[Split, TokenStore], tokenizer: Tokenizer, output: str) -> None:
    """To a folder that is itself a source, as soon as its last file is there: the training data's meta.json."""
    fs, path = file_system(output)
    if fs.exists(f"{path}/train/meta.json"):
        fs.rm(f"{path}/train/meta.json")
    for split, store in stores.items():
        fs.makedirs(f"{path}/{split}", exist_ok=True)
        for file in tqdm(sorted(store.path.glob("tokens-*.bin")), f"copying {split} data", leave=False, disable=None):
            fs.put_file(str(file), f"{path}/{split}/{file.name}")
        fs.pipe_file(f"{path}/{split}/tokenizer.json", tokenizer.to_json().encode())
    for split in ("validation", "train"):
        fs.put_file(str(stores[split].path / "meta.json"), f"{path}/{split}/meta.json")
