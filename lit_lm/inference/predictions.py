"""Write predictions in the order of the prompts, to a file that can be resumed after an interruption."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from lit_lm.files import write_text
from lit_lm.inference.continuation import Continuation
from lit_lm.inference.predict import PredictModule
from lit_lm.inference.prompts import Prompt, PromptBatch
from lit_lm.inference.text import Text, whole_text


class PredictionWriter(Callback):
    """Gathers the continuations of a `PredictModule` from all devices and writes them in the order of the prompts.

    A record next to the file stores the settings; the file can only be resumed with the same settings.
    """

    def __init__(self, output: Path | None, made_from: Mapping[str, Any]) -> None:
        """
        Args:
            output: A .jsonl file; None: print.
            made_from: Settings that determine the continuations, as values that JSON can store.
        """
        self.output, self.made_from = output, json.loads(json.dumps(dict(made_from)))
        self._waiting: dict[int, list[Text]] = {}
        self._next = 0
        self._file: TextIO | None = None
        self._bar: tqdm[Any] | None = None
        self._lock = FileLock(f"{output}.lock") if output is not None else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the file and skip the prompts that are already done.

        Raises:
            ValueError: if another process is writing the file, or it was made with different settings.
        """
        assert isinstance(pl_module, PredictModule)
        prompts, done = pl_module.prompts, 0
        if self.output is not None and self._lock is not None and trainer.is_global_zero:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise ValueError(f"{self.output} is being written by another process") from None
            done = self._resume(prompts, pl_module.sampling.num_samples)
            self._file = open(self.output, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
            self._bar = tqdm(total=len(prompts), initial=done, unit=" prompts", disable=None, leave=False)
        pl_module.prompts_done = self._next = trainer.strategy.broadcast(done)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, PredictModule)
        prompts, tokenizer, stop = pl_module.prompts, pl_module.tokenizer, pl_module.stop
        continuations: list[list[Continuation]] = outputs
        made = {
            number: [
                whole_text(tokenizer, prompts[number].text, ids, pl_module.prompt_seed(number), one, stop)
                for one in several
            ]
            for number, ids, several in zip(*batch, continuations, strict=True)
        }
        for part in _gathered(made, trainer):
            self._waiting.update(part)
        if trainer.is_global_zero:
            self._write(prompts)
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is not None:
            print(f"the continuations of {self._next:,} prompts are in {self.output}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if self._file is not None and stopped:
            print(f"stopped after {self._next:,} prompts; to resume, run the same command", flush=True)
        self._close()
        if isinstance(exception, KeyboardInterrupt):  # the Trainer would exit with 1
            raise SystemExit(128 + signal.SIGINT)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            with suppress(OSError):  # a full disk was already reported
                self._file.close()
        if self._lock is not None and self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _write(self, prompts: Sequence[Prompt]) -> None:
        """Write the continuations that are next in order and have arrived."""
        while self._next in self._waiting:
            prompt = prompts[self._next]
            for sample, text in enumerate(self._waiting.pop(self._next)):
                row = {"prompt": prompt.text, **prompt.fields, **text.row(sample)}
                if self._file is None:
                    print(prompt.text + text.continuation, end="\n\n")
                else:
                    self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._next += 1
            if self._bar is not None:
                self._bar.update()
        (self._file or sys.stdout).flush()

    def _resume(self, prompts: Sequence[Prompt], num_samples: int) -> int:
        """Return the number of prompts done in the file; remove a partial line and an unfinished prompt."""
        assert self.output is not None
        record = self.output.with_name(f"{self.output.name}.made_from.json")
        if self.output.exists() and self.output.stat().st_size:
            self._check(record)
            done, size = _whole_prompts(self.output, prompts, num_samples)
            with open(self.output, "r+b") as file:
                file.truncate(size)
            print(f"{done:,} of {len(prompts):,} prompts are already done in {self.output}", flush=True)
            return done
        write_text(record, json.dumps(self.made_from, indent=2))
        return 0

    def _check(self, record: Path) -> None:
        remedy = f"choose another --output, or delete {self.output} to start over"
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            assert isinstance(before, dict)
        except (OSError, ValueError, AssertionError):
            raise ValueError(
                f"{self.output} exists, but {record.name}, which records its settings, does not; {remedy}"
            ) from None
        changes = []
        for name in sorted(before.keys() | self.made_from.keys()):
            was, now = before.get(name), self.made_from.get(name)
            if was != now:
                digest = name in ("prompts", "checkpoint")
                changes.append(
                    f"the {name} changed" if digest else f"{name} was {json.dumps(was)} and is {json.dumps(now)}"
                )
        if changes:
            problems = "\n".join(changes)
            raise ValueError(f"{problems}\n{self.output} was started with different settings: use those, {remedy}")


def _whole_prompts(output: Path, prompts: Sequence[Prompt], num_samples: int) -> tuple[int, int]:
    """Return the number of prompts with all their lines in the file, and the size of these lines in bytes.

    Raises:
        ValueError: if a line is not a continuation of the expected prompt.
    """
    done = size = position = 0
    with open(output, "rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            index = number // num_samples
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                prompt = None
            if index >= len(prompts) or prompt != prompts[index].text:
                raise ValueError(
                    f"{output}, line {number + 1} is not a continuation of the expected prompt; "
                    "choose another --output, or delete this line and all after it"
                )
            position += len(line)
            if (number + 1) % num_samples == 0:
                done, size = index + 1, position
    return done, size


def _gathered(made: dict[int, list[Text]], trainer: Trainer) -> list[dict[int, list[Text]]]:
    """Return the continuations of all devices."""
    if trainer.world_size == 1:
        return [made]
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, made)
    return parts
