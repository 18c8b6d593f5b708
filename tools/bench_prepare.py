"""Benchmark of preparation (read a .txt, encode it, write the ids): lit-lm against `encode_batch` of tokenizers and
`encode_ordinary_batch` of tiktoken.

The corpus consists of the sentences of a text in random order, 5 to 20 per document. One word in 50 is replaced by
random letters, so that there are rare words as in real text. All use lit-lm's reader and must write the same ids. Each
measurement runs in its own process, in turns. Prints a Markdown table and writes all measurements to prepare.json.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import re
import resource
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lit_lm.data import stories
from lit_lm.data.fast_bpe import ByteLevelBPE
from lit_lm.data.ids import Ids, id_dtype
from lit_lm.data.readers import BadDocuments
from lit_lm.data.sources import TextSource, open_sources
from lit_lm.data.token_store import StoreWriter
from lit_lm.data.tokenize import tokenize
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.tokenizer.train import END_OF_TEXT

MB = 10**6
BATCH_DOCUMENTS = 1000
"""Number of documents passed to the libraries at once; about 1 MB."""


@dataclass(frozen=True)
class Measurement:
    """Measurement of one engine on one corpus."""

    engine: str
    megabytes: int
    seconds: float
    peak_mb: float
    """Largest resident memory of the process, Python and libraries included."""
    sha256: str
    """Digest of the ids written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tools/bench.py prepare`."""
    parser.add_argument("--text", type=Path, help="file whose sentences make the corpus; default: bundled stories")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100], metavar="MB", help="default: 1 100")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the tokenizer; default: 8192")
    parser.add_argument("--output", type=Path, default=Path("logs/bench"), help="folder; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write prepare.json."""
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in args.sizes:
            in_child(write_corpus, args.text, size * MB, folder / "corpus.txt")
            in_child(train_tokenizer, folder, args.vocab_size)
            for number in range(args.rounds):
                names = list(ENGINES)
                for engine in names[number % len(names) :] + names[: number % len(names)]:
                    measurements.append(in_child(measure, engine, folder, size))
                    print(f"{size} MB, round {number + 1}: {measurements[-1]}", file=sys.stderr, flush=True)
    if len({(m.megabytes, m.sha256) for m in measurements}) > len(args.sizes):
        raise SystemExit("the engines wrote different ids")
    print(table(measurements))
    libraries = {library: version(library) for library in ("tokenizers", "tiktoken", "numpy")}
    about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), **libraries}
    found = {**about, "measurements": [asdict(m) for m in measurements]}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "prepare.json").write_text(json.dumps(found, indent=2))


def table(measurements: list[Measurement]) -> str:
    """Markdown table: median, minimum and maximum for each size and engine."""
    lines = ["| corpus | engine | MB/s (from - to) | against encode_batch | peak memory |", "|---|---|---|---|---|"]
    for size in dict.fromkeys(m.megabytes for m in measurements):
        ours = {e: [m for m in measurements if (m.engine, m.megabytes) == (e, size)] for e in ENGINES}
        seconds = {engine: statistics.median(m.seconds for m in found) for engine, found in ours.items()}
        for engine, found in ours.items():
            speeds = sorted(size / m.seconds for m in found)
            speed = f"{size / seconds[engine]:.1f} ({speeds[0]:.1f} - {speeds[-1]:.1f})"
            ratio = f"{seconds['encode_batch'] / seconds[engine]:.1f}"
            lines.append(f"| {size} MB | {engine} | {speed} | {ratio} | {max(m.peak_mb for m in found):.0f} MB |")
    return "\n".join(lines)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process, to measure its memory alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def write_corpus(text: Path | None, num_bytes: int, path: Path) -> None:
    """Write a .txt of about `num_bytes` bytes: shuffled sentences with random words. Deterministic."""
    random_ = random.Random(0)
    whole = text.read_text(encoding="utf-8") if text else END_OF_TEXT.join(stories.stories("train", 3 * MB))
    sentences = re.split(r"(?<=[.!?])\s+", whole.replace(END_OF_TEXT, " "))
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < num_bytes:
            words = " ".join(random_.choices(sentences, k=random_.randint(5, 20))).split(" ")
            for _ in range(len(words) // 50 + 1):
                rare = "".join(random_.choices(string.ascii_letters, k=random_.randint(3, 10)))
                words[random_.randrange(len(words))] = rare
            document = f"{' '.join(words)}\n{END_OF_TEXT}\n"
            file.write(document)
            written += len(document.encode())


def train_tokenizer(folder: Path, vocab_size: int) -> None:
    """Train a tokenizer on the first 5,000 documents of the corpus."""
    tokenizer = Tokenizer.train(islice(texts(folder), 5000), vocab_size)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


def corpus(folder: Path) -> TextSource:
    """The corpus as a source."""
    path = str(folder / "corpus.txt")
    source = open_sources(path, path, val_fraction=0.1, text_field="text", bin_dtype="uint16")["train"]
    assert isinstance(source, TextSource)
    return source


def texts(folder: Path) -> Iterator[str]:
    """Documents of the corpus."""
    return corpus(folder).texts(BadDocuments())


def measure(engine: str, folder: Path, megabytes: int) -> Measurement:
    """Prepare the corpus with one engine, in this process."""
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    with tempfile.TemporaryDirectory(dir=folder) as out:
        begin = time.perf_counter()
        written = ENGINES[engine](folder, tokenizer, Path(out))
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        digest = hashlib.sha256()
        for path in written:
            digest.update(np.memmap(path, mode="r"))
    return Measurement(engine, megabytes, seconds, peak / MB, digest.hexdigest())


def by_lit_lm(folder: Path, tokenizer: Tokenizer, out: Path) -> list[Path]:
    """lit-lm, as in `fit` and `prepare`."""
    shards = corpus(folder).shards
    writer = StoreWriter(out / "store", "", tokenizer, len(shards))
    for number, shard in enumerate(shards):
        writer.write(number, tokenize(shard(BadDocuments()), tokenizer), lambda: 0)
    return sorted(writer.finish().path.glob("tokens-*.bin"))


def by_encode_batch(folder: Path, tokenizer: Tokenizer, out: Path) -> list[Path]:
    """`encode_batch` of tokenizers, on all cores."""

    def encode(batch: list[str]) -> Iterator[Ids]:
        for encoding in tokenizer.backend.encode_batch(batch, add_special_tokens=False):
            yield np.array(encoding.ids)

    return [write_ids(texts(folder), tokenizer, out, encode)]


def by_tiktoken(folder: Path, tokenizer: Tokenizer, out: Path) -> list[Path]:
    """tiktoken with the same merges, one thread per core; its ranks are mapped to the same ids."""
    fast = ByteLevelBPE.of(tokenizer)
    assert fast is not None
    encoding, ids = fast.encoding, fast.ids

    def encode(batch: list[str]) -> Iterator[Ids]:
        for ranks in encoding.encode_ordinary_batch(batch, num_threads=os.cpu_count() or 1):
            yield ids[np.array(ranks)]

    return [write_ids(texts(folder), tokenizer, out, encode)]


def write_ids(
    documents: Iterator[str], tokenizer: Tokenizer, out: Path, encode: Callable[[list[str]], Iterator[Ids]]
) -> Path:
    """Encode batch by batch and append the ids to a file, as a plain script would."""
    dtype = id_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.end_id])
    with open(out / "tokens.bin", "wb") as file:
        while batch := list(islice(documents, BATCH_DOCUMENTS)):
            np.concatenate([part for ids in encode(batch) for part in (ids, end)]).astype(dtype).tofile(file)
    return out / "tokens.bin"


ENGINES: dict[str, Callable[[Path, Tokenizer, Path], list[Path]]] = {
    "encode_batch": by_encode_batch,
    "tiktoken": by_tiktoken,
    "lit-lm": by_lit_lm,
}
