"""LitLM with a Trainer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import prepared
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from lit_lm.data.datamodule import LMDataModule
from lit_lm.data.info import DataInfo
from lit_lm.data.token_store import TokenStore
from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.tokenizer.tokenizer import Tokenizer
from lit_lm.training.module import LitLM
from lit_lm.training.spikes import LossSpikes
from lit_lm.training.throughput import Throughput

NET = TransformerConfig(vocab_size=300, context_length=16, d_model=16, num_layers=1, num_heads=2)


def fitted(
    corpus: Path, cache: Path, net: TransformerConfig = NET, lr: float = 0.1, document_mask: bool = False, **data: Any
) -> tuple[LitLM, Trainer]:
    module = LitLM(
        net, optimizer=partial(torch.optim.SGD, lr=lr), schedule=partial(torch.optim.lr_scheduler.StepLR, step_size=99),
        document_mask=document_mask,
    )  # fmt: skip
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=2,
    )  # fmt: skip
    options = {"source": str(corpus), "cache_dir": str(cache), "context_length": 16, "vocab_size": 300, "batch_size": 4}
    trainer.fit(module, datamodule=LMDataModule(**(options | data)))
    return module, trainer


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:.*smaller than the logging interval"
)


def losses(net: Transformer, inputs: Tensor, targets: Tensor, begins: int | None) -> Tensor:
    """Losses (T) of a window. With `begins`, each document, which starts with this id, is evaluated separately."""
    cuts = (inputs == begins).nonzero()[:, 0] if begins is not None else torch.tensor([], dtype=torch.long)
    return torch.cat([
        cross_entropy(net(document[None])[0], wanted, reduction="none")
        for document, wanted in zip(inputs.tensor_split(cuts), targets.tensor_split(cuts), strict=True)
        if len(document)
    ])  # fmt: skip


def test_accumulated_micro_batches_train_as_one_batch(corpus: Path, cache: Path) -> None:
    whole, _ = fitted(corpus, cache)
    parts, _ = fitted(corpus, cache, micro_batch_size=1)
    for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("document_mask", [False, True])
def test_with_sgd_a_run_equals_a_plain_training_loop(document_mask: bool, corpus: Path, cache: Path) -> None:
    module, _ = fitted(corpus, cache, document_mask=document_mask)
    data, _ = prepared(LMDataModule(str(corpus), cache_dir=str(cache), context_length=16, vocab_size=300, batch_size=4))
    assert data.tokenizer is not None
    begins = data.tokenizer.end_id if document_mask else None
    torch.manual_seed(0)
    net = Transformer(NET)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for inputs, targets in data.train_dataloader():
        torch.cat([losses(net, *window, begins) for window in zip(inputs, targets, strict=True)]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def losses_of(module: LitLM, store: TokenStore, begins: int | None = None) -> Tensor:
    """Loss of every token of a store except the first, each predicted within its window."""
    ids = torch.from_numpy(store.read(0, len(store)))
    windows = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
    with torch.no_grad():
        return torch.cat([losses(module.net.eval(), window[:-1], window[1:], begins) for window in windows])


@pytest.mark.parametrize("document_mask", [False, True])
def test_validation_loss_is_the_mean_over_all_tokens(document_mask: bool, corpus: Path, cache: Path) -> None:
    module, trainer = fitted(corpus, cache, document_mask=document_mask)
    data: LMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    assert data.tokenizer is not None
    store = data.stores["validation"]["corpus"]
    assert data.tokenizer.end_id in store.read(0, len(store))
    expected = float(losses_of(module, store, data.tokenizer.end_id if document_mask else None).mean())
    metrics = trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["val/perplexity"]) == pytest.approx(2.718281828459045**expected, rel=1e-4)
    bits = expected / 0.6931471805599453 * store.meta.tokens / store.meta.bytes
    assert float(metrics["val/bits_per_byte"]) == pytest.approx(bits, rel=1e-5)
    assert not [name for name in metrics if "corpus" in name]


def test_every_validation_of_a_large_text_reads_the_same_part_of_it(corpus: Path, cache: Path) -> None:
    whole: LMDataModule = fitted(corpus, cache)[1].datamodule  # type: ignore[attr-defined]
    module, trainer = fitted(corpus, cache, val_tokens=3 * 16 + 15)
    data: LMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    (store,) = data.stores["validation"].values()
    (number,) = data.windows("validation").sizes
    each = losses_of(module, store).split(16)
    expected = torch.cat([each[i * number // 3] for i in range(3)]).mean()
    assert number > 3
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert trainer.num_val_batches == [1]
    before, after = (which.state_dict()["digests"] for which in (whole, data))
    assert before["validation"] != after["validation"] == f"{store.meta.sha256}, [3] windows"
    assert before["train"] == after["train"]


def test_each_source_of_a_mixture_has_its_own_loss_and_the_total_is_weighted_by_tokens(
    corpus: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("Some text of another kind, without an animal. " * 40)
    sources = {str(corpus): 0.7, str(tmp_path / "other.txt"): 0.3}
    module, trainer = fitted(corpus, cache, source=sources, val_fraction=0.2)
    data: LMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    found = {name: losses_of(module, store) for name, store in data.stores["validation"].items()}
    assert list(found) == ["corpus", "other"]
    metrics = trainer.callback_metrics
    for name, own in found.items():
        meta = data.stores["validation"][name].meta
        assert float(metrics[f"val/loss/{name}"]) == pytest.approx(float(own.mean()), rel=1e-5)
        bits = float(own.mean()) / 0.6931471805599453 * meta.tokens / meta.bytes
        assert float(metrics[f"val/bits_per_byte/{name}"]) == pytest.approx(bits, rel=1e-5)
    assert float(metrics["val/loss"]) == pytest.approx(float(torch.cat(list(found.values())).mean()), rel=1e-5)


class OneWindow(LightningDataModule):
    """A single validation window, and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *window: Tensor) -> None:
        super().__init__()
        self.data_info, self.window = DataInfo(tokenizer=tokenizer), window

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.window))


def test_with_a_document_mask_end_of_text_attends_only_to_itself_as_in_generation() -> None:
    module, tokenizer = LitLM(NET, document_mask=True), Tokenizer.train(["The cat saw a dog."], 300)
    inputs = torch.tensor([[5, 6, 8, tokenizer.end_id, 7]])
    targets = torch.tensor([[-100, -100, -100, 7, -100]])  # 7 is the first token of a document
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, datamodule=OneWindow(tokenizer, inputs, targets), verbose=False)
    expected = cross_entropy(module.net(torch.tensor([[tokenizer.end_id]]))[0], targets[0, 3:4])
    assert metrics["val/loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_dropout_does_not_depend_on_what_ran_before(corpus: Path, cache: Path) -> None:
    net = TransformerConfig(vocab_size=300, context_length=16, d_model=16, num_layers=1, num_heads=2, dropout=0.5)
    first, _ = fitted(corpus, cache, net)
    torch.rand(1000)
    second, _ = fitted(corpus, cache, net)
    without, _ = fitted(corpus, cache)
    for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.net.head.weight, without.net.head.weight)


def test_hyperparameters_given_in_python_are_saved_as_plain_values(corpus: Path, cache: Path, tmp_path: Path) -> None:
    _, trainer = fitted(corpus, cache)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert TransformerConfig(**content["hyper_parameters"]["net"]) == NET


def test_a_schedule_that_needs_max_steps_rejects_an_endless_run() -> None:
    module = LitLM(NET)
    module.trainer = Trainer(max_steps=-1, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        module.configure_optimizers()


class Reads(TorchFunctionMode):
    """Records the steps at which the host reads the value of a tensor, and so waits for the device."""

    READING = (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.__float__, Tensor.__bool__)

    def __init__(self, module: LitLM) -> None:
        super().__init__()
        self.module = module
        self.steps: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.READING and self.module.trainer.training:
            self.steps.add(self.module.global_step)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_only_at_logged_steps(corpus: Path, cache: Path) -> None:
    module = LitLM(NET)
    trainer = Trainer(
        max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
        log_every_n_steps=5, gradient_clip_val=1.0, callbacks=[LossSpikes(), Throughput()],
    )  # fmt: skip
    data = LMDataModule(str(corpus), cache_dir=str(cache), context_length=16, vocab_size=300, batch_size=4)
    with Reads(module) as reads:
        trainer.fit(module, datamodule=data)
    assert reads.steps == {0, 4, 9, 12}  # and at the end, for the remaining steps
    assert trainer.global_step == 12
