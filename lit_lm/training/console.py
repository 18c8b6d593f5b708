"""What a run shows and keeps beside its checkpoints: console, throughput, sample stories, loss curves, judgement."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.token_store import TokenStore
from lit_lm.files import write_text
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import Sampling
from lit_lm.inference.text_metrics import COPIED_SPAN, distinct, longest_common_spans, repetition, words
from lit_lm.model.flops import flops_per_token, measured_peak_flops, num_parameters
from lit_lm.training.checkpointing import Checkpoints
from lit_lm.training.module import LitLM

SAMPLE = Sampling(temperature=0.8, top_p=0.95)


def _parts(trainer: Trainer) -> tuple[LitLM, LMDataModule]:
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, LitLM)
    assert isinstance(data, LMDataModule)
    return module, data


class Throughput(Callback):
    """Logs tokens seen, tokens per second and utilization, at the Trainer's interval. Validation is not counted."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        self._since = self._paused = 0.0
        self._since_step = 0
        self._peak_flops = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        dtype = torch.float16 if str(trainer.precision).startswith("16") else dtype
        self._peak_flops = measured_peak_flops(pl_module.device, dtype)
        self._start(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        module, data = _parts(trainer)
        steps = trainer.global_step - self._since_step
        if steps == 0 or not module.logs_at(trainer.global_step):
            return
        elapsed = time.perf_counter() - self._since
        self.tokens_per_second = steps * data.tokens_per_step / elapsed
        if trainer.loggers:
            achieved = self.tokens_per_second * flops_per_token(module.net) / trainer.world_size
            metrics = {
                "train/tokens": float(trainer.global_step * data.tokens_per_step),
                "train/tokens_per_second": self.tokens_per_second,
                "train/mfu": achieved / self._peak_flops,
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)
        self._start(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += time.perf_counter() - self._paused

    def _start(self, trainer: Trainer) -> None:
        self._since, self._since_step = time.perf_counter(), trainer.global_step


class Console(ProgressBar):
    """A line at the start, a bar of optimizer steps, a line for each validation, a summary at the end.

    Where the output is no terminal, the bar becomes a line every `lines_every` seconds.
    """

    def __init__(self, lines_every: float = 10.0) -> None:
        super().__init__()
        self.lines_every = lines_every
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0
        self._started = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Show nothing: the Trainer calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """A line above the bar."""
        if self._enabled:
            tqdm.write(" ".join(str(arg) for arg in args), file=sys.stdout)
            sys.stdout.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = _parts(trainer)
        devices = f"{trainer.world_size} x {pl_module.device.type}"
        if pl_module.device.type == "cpu":
            devices += f" ({torch.get_num_threads()} threads)"
        step = f"{data.tokens_per_step:,} tokens a step ({data.batch_size} x {data.context_length}"
        if data.accumulation > 1:
            step += f", in {data.accumulation} micro-batches of {data.micro_batch_size}"
        total = trainer.max_steps * data.tokens_per_step
        compiled = "" if module.compiled_features is None else ", compiled"
        self.print(
            f"{num_parameters(module.net):,} parameters | {step}) | {trainer.max_steps:,} steps, {total:,} tokens | "
            f"{devices}, {trainer.precision}{compiled} | {_relative(trainer.log_dir)}"
        )
        self._started = self._shown = time.perf_counter()
        self._first_step = trainer.global_step
        if self._enabled and sys.stdout.isatty():
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc="training",
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
                dynamic_ncols=True,
                leave=False,
                file=sys.stdout,
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        now = time.perf_counter()
        if not self._enabled or now - self._shown < (0.2 if self._bar else self.lines_every):
            return
        self._shown = now
        module, _ = _parts(trainer)
        speed = next(c.tokens_per_second for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        state = f"loss {module.last_loss:.3f}, {speed:,.0f} tokens/s"
        if self._bar:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(state)
        else:
            self.print(f"step {trainer.global_step:,}/{trainer.max_steps:,}: {state}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.print(f"step {trainer.global_step:,}: " + _metrics_line(trainer, "val"))
        elif trainer.state.fn == "validate":
            self.print(_metrics_line(trainer, "val"))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print(_metrics_line(trainer, "test"))
        if judge := next((c for c in trainer.callbacks if isinstance(c, StoryJudge)), None):  # type: ignore[attr-defined]
            self.print(judge.line(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The summary; the last checkpoint is written by now."""
        _, data = _parts(trainer)
        if not self._started:
            self.print(f"nothing is left to do: all {trainer.global_step:,} steps are taken")
            return
        seconds = time.perf_counter() - self._started
        tokens = trainer.global_step * data.tokens_per_step
        now = f"{trainer.global_step - self._first_step:,} of them now, in " if self._first_step else "in "
        lines = [f"done: {trainer.global_step:,} steps, {tokens:,} tokens; {now}{seconds:,.0f} s"]
        checkpoints = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
        if checkpoints is not None and checkpoints.best_step and "val/loss" in trainer.callback_metrics:
            last = float(trainer.callback_metrics["val/loss"])
            lines.append(f"validation loss: best {checkpoints.best_loss:.4f}, last {last:.4f}")
        if checkpoints is not None and checkpoints.folder is not None:
            links = [checkpoints.folder / f"{which}.ckpt" for which in ("best", "last")]
            lines += [f"{link.stem} checkpoint: {_relative(link)}" for link in links if link.exists()]
        lines.append(f"loss curves:     {_relative(trainer.log_dir)}/{LossCurves.FILE}")
        self.print("\n".join(lines))


class Samples(Callback):
    """A story from the model at every validation, to the logger as text."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.state.fn != "fit" or not boards or not trainer.is_global_zero:
            return
        module, data = _parts(trainer)
        assert data.tokenizer is not None
        end_id = data.tokenizer.end_id  # what stands before a document; so this is the start of a new one
        seed = module.seed_at("sample story")
        ((sample,),) = generate(module.net, [[end_id]], SAMPLE, seeds=[seed], end_id=end_id)
        for board in boards:
            board.experiment.add_text("sample", data.tokenizer.decode(sample.ids), trainer.global_step)


class LossCurves(Callback):
    """`loss_curves.png` in the run's folder: training and validation loss over steps and over tokens."""

    FILE = "loss_curves.png"

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {"train/loss": [], "val/loss": []}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if _parts(trainer)[0].logs_at(trainer.global_step):
            self._add("train/loss", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._add("val/loss", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # asks all processes, so all must ask
        if trainer.is_global_zero and folder is not None:
            _, data = _parts(trainer)
            self.draw(Path(folder) / self.FILE, data.tokens_per_step)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: [tuple(point) for point in points] for name, points in state_dict["history"].items()}

    def _add(self, name: str, trainer: Trainer) -> None:
        points = self.history[name]
        if name in trainer.callback_metrics and (not points or points[-1][0] < trainer.global_step):
            points.append((trainer.global_step, float(trainer.callback_metrics[name])))

    def draw(self, path: Path, tokens_per_step: int) -> None:
        """Write the picture."""
        from matplotlib.figure import Figure  # half a second to import, and only this needs it

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, scale, label in [(left, 1, "steps"), (right, tokens_per_step, "tokens seen")]:
            for name, points in self.history.items():
                if points:
                    steps, losses = zip(*points, strict=True)
                    marker = "o" if name == "val/loss" else ""
                    axes.plot([step * scale for step in steps], losses, label=name, marker=marker)
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        left.set_ylabel("loss (nats per token)")
        right.legend()
        figure.savefig(path, dpi=120)


class StoryJudge(Callback):
    """At the end of `test`: samples at fixed seeds, as files in the run's folder, and what can be counted about them.

    The seeds are the same for every run, so that two runs can be laid side by side.
    """

    NUM_SAMPLES = 20

    def __init__(self, folder: Path, step: int) -> None:
        """
        Args:
            folder: Where the files go.
            step: Of the checkpoint under test; part of their names.
        """
        self.path = folder / f"samples_{step:08d}"

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        module, data = _parts(trainer)
        assert data.tokenizer is not None
        end_id, seeds = data.tokenizer.end_id, range(self.NUM_SAMPLES)
        samples = generate(module.net, [[end_id]] * len(seeds), SAMPLE, seeds=seeds, end_id=end_id)
        ids = [sample.ids for (sample,) in samples]
        training = training_stores(data)
        spans = [max(of_one) for of_one in zip(*(longest_common_spans(ids, store) for store in training), strict=True)]
        rows: list[dict[str, Any]] = []
        for seed, text in zip(seeds, data.tokenizer.decode_batch(ids), strict=True):
            rows.append({"seed": seed, "text": text, "words": len(words(text)), "repetition": repetition(words(text))})
            if spans:
                rows[-1]["longest_common_span"] = spans[seed]
        for name, value in _summary(rows).items():
            pl_module.log(f"test/{name}", value, logger=False, rank_zero_only=True)
        self._write(rows)

    def line(self, trainer: Trainer) -> str:
        """What the console shows of it."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [name for name in metrics if not name.startswith(("test/loss", "test/perplexity", "test/bits_"))]
        text = ", ".join(f"{name} {metrics[name]:.4g}" for name in shown)
        if "test/copied" not in metrics:
            text += "; how much is copied is unknown: the training text's tokens are no longer in the cache"
        return f"{text}\n{self.NUM_SAMPLES} samples: {_relative(self.path)}.txt and .jsonl"

    def _write(self, rows: list[dict[str, Any]]) -> None:
        headings = [", ".join(f"{name} {row[name]:.4g}" for name in row if name != "text") for row in rows]
        text = "".join(f"--- {head} ---\n{row['text']}\n\n" for head, row in zip(headings, rows, strict=True))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for suffix, content in ((".txt", text), (".jsonl", lines)):
            write_text(self.path.with_suffix(suffix), content)


def training_stores(data: LMDataModule) -> list[TokenStore]:
    """The tokens that the checkpoint was trained on, if all are still in the cache; the text may be gone."""
    wanted = data.expected_digests.get("train", "").split()
    found: dict[str, TokenStore] = {}
    for meta in (data.corpus.cache_dir / "stores").glob("*/meta.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):  # a store of another version of lit-lm
            store = TokenStore(meta.parent)
            found[store.meta.sha256] = store
    return [found[digest] for digest in wanted] if found.keys() >= set(wanted) else []


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    texts = [words(row["text"]) for row in rows]
    summary = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
    summary["repetition"] = sum(row["repetition"] for row in rows) / len(rows)
    if spans := [row["longest_common_span"] for row in rows if "longest_common_span" in row]:
        summary["copied"] = sum(span >= COPIED_SPAN for span in spans) / len(spans)
        summary["longest_common_span"] = sum(spans) / len(spans)
    return summary


def _metrics_line(trainer: Trainer, stage: str) -> str:
    """Loss, perplexity and bits per byte, then the loss of each source where there are several."""
    names = [f"{stage}/{name}" for name in ("loss", "perplexity", "bits_per_byte", "bits_per_character")]
    names = [name for name in names if name in trainer.callback_metrics]
    names += [name for name in trainer.callback_metrics if name.startswith(f"{stage}/loss/")]
    return ", ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in names)


def _relative(path: str | Path | None) -> str:
    """The path as seen from the working directory, where it lies below it."""
    if path is None:
        return "nowhere"
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)
