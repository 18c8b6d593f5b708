"""Metrics of generated samples, for `test`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_lm.data.token_store import find_stores
from lit_lm.files import write_text
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig
from lit_lm.inference.text_metrics import COPIED_SPAN, distinct, longest_common_spans, repetition, words
from lit_lm.training.console import relative
from lit_lm.training.module import LitLM


class SampleMetrics(Callback):
    """Generates samples with fixed seeds, writes them to the run's folder, and logs text metrics of them.

    The seeds are the same in every run, so that two runs can be compared sample by sample.
    """

    NUM_SAMPLES = 20

    def __init__(self, folder: Path, step: int, training_digests: Sequence[str], cache_dir: Path) -> None:
        """
        Args:
            folder: Folder to write to.
            step: Step of the tested checkpoint, which is part of the file names.
            training_digests: Digests of the token stores that the checkpoint was trained on.
            cache_dir: Folder in which to look for these stores.
        """
        self.path = folder / f"samples_{step:08d}"
        self.training_digests, self.cache_dir = training_digests, cache_dir
        self._summary: dict[str, float] = {}

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitLM)
        tokenizer = pl_module.data_info.tokenizer
        if tokenizer is None or not trainer.is_global_zero:
            return
        if pl_module.is_sharded:
            print("no samples: the model is sharded", flush=True)
            return
        end_id, seeds = tokenizer.end_id, range(self.NUM_SAMPLES)
        samples = generate(pl_module.net, [[end_id]] * len(seeds), SamplingConfig(), seeds=seeds, end_id=end_id)
        ids = [sample.ids for (sample,) in samples]
        stores = find_stores(self.cache_dir, self.training_digests)
        spans = [max(of_one) for of_one in zip(*(longest_common_spans(ids, store) for store in stores), strict=True)]
        rows: list[dict[str, Any]] = []
        for seed, text in zip(seeds, tokenizer.decode_batch(ids), strict=True):
            rows.append({"seed": seed, "text": text, "words": len(words(text)), "repetition": repetition(words(text))})
            if spans:
                rows[-1]["longest_common_span"] = spans[seed]
        self._summary = {f"test/{name}": value for name, value in _summary(rows).items()}
        for name, value in self._summary.items():
            pl_module.log(name, value, logger=bool(trainer.loggers), rank_zero_only=True)
        self._write(rows)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._summary:
            return
        line = ", ".join(f"{name} {value:.4g}" for name, value in self._summary.items())
        if "test/copied" not in self._summary:
            line += "; copied is unknown: the tokens of the training text are not in the cache"
        print(f"{line}\n{self.NUM_SAMPLES} samples: {relative(self.path)}.txt and .jsonl", flush=True)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        headings = [", ".join(f"{name} {row[name]:.4g}" for name in row if name != "text") for row in rows]
        text = "".join(f"--- {head} ---\n{row['text']}\n\n" for head, row in zip(headings, rows, strict=True))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(self.path.with_suffix(".txt"), text)
        write_text(self.path.with_suffix(".jsonl"), lines)


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    texts = [words(row["text"]) for row in rows]
    summary = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
    summary["repetition"] = sum(row["repetition"] for row in rows) / len(rows)
    if spans := [row["longest_common_span"] for row in rows if "longest_common_span" in row]:
        summary["copied"] = sum(span >= COPIED_SPAN for span in spans) / len(spans)
        summary["longest_common_span"] = sum(spans) / len(spans)
    return summary
