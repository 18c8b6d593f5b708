"""Predictions: continuations written to a file."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lit_lm.callbacks import _parts


class PredictionWriter(BasePredictionWriter):
    """Prints continuations as they come and appends them to a .jsonl file."""

    def __init__(self, output: Path | None) -> None:
        """`output` is written anew; None writes no file."""
        super().__init__(write_interval="batch")
        self.output = output

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.output is not None and trainer.is_global_zero:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text("")
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[list[int]],
        batch_indices: Any,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        _, data = _parts(trainer)
        assert data.tokenizer is not None
        prompt = data.prompts[batch_idx * trainer.world_size + trainer.global_rank]
        continuations = data.tokenizer.decode_batch(prediction)
        for continuation in continuations:
            print(prompt + continuation, end="\n\n", flush=True)
        if self.output is not None:
            with open(self.output, "a", encoding="utf-8") as file:
                for continuation in continuations:
                    file.write(json.dumps({"prompt": prompt, "continuation": continuation}, ensure_ascii=False) + "\n")
