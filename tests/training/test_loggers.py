"""Loggers other than TensorBoard: the same curves, with the real packages where they are installed."""

import json
import struct
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from lightning.pytorch.loggers import wandb as lightnings_wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = ("train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second", "val/loss")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def fit(fit_tiny: Command) -> Command:
    return partial(fit_tiny, "--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=2")


@pytest.fixture
def expected(fit: Command) -> dict[str, dict[int, float]]:
    """The curves in TensorBoard, but not the speed, which differs between runs."""
    fit("--name=tensorboard")
    events = EventAccumulator("logs/tensorboard/version_0").Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in CURVES}


def same(curves: dict[str, dict[int, float]], expected: dict[str, dict[int, float]]) -> None:
    for name in CURVES:
        assert curves[name].keys() == expected[name].keys()
        if name != "train/tokens_per_second":
            assert list(curves[name].values()) == pytest.approx(list(expected[name].values()), rel=1e-6)


def test_csv(fit: Command, expected: dict[str, dict[int, float]]) -> None:
    fit("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    header, *rows = Path("csv/lightning_logs/version_0/metrics.csv").read_text(encoding="utf-8").splitlines()
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        values = dict(zip(header.split(","), row.split(","), strict=True))
        for name in CURVES:
            if values[name]:
                curves.setdefault(name, {})[int(values["step"])] = float(values[name])
    same(curves, expected)


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_weights_and_biases_offline(
    fit: Command, expected: dict[str, dict[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit("--trainer.logger=WandbLogger", "--trainer.logger.project=stories")
    import wandb

    wandb.teardown()  # waits until the file is written
    (folder,) = Path("wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    curves, config = history(file)
    same(curves, expected)
    assert config["batch_size"] == 4
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("*.table.json")]
    assert {table["data"][0][0] for table in tables} == {3, 6}
    assert all(table["columns"] == ["step", "text"] and table["data"][0][1] for table in tables)


def history(file: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Curves and config in a file that W&B writes offline."""
    from wandb.proto import wandb_internal_pb2

    curves, config = dict[str, dict[int, float]](), dict[str, Any]()
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for name in set(CURVES) & values.keys():
            curves.setdefault(name, {})[int(json.loads(values["trainer/global_step"]))] = json.loads(values[name])
    return curves, config


def records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, in blocks of 32 KB, after W&B's header of 7 bytes."""
    position, begun = 7, b""
    while position + 7 <= len(content):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        size, kind = struct.unpack_from("<HB", content, position + 4)
        begun += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield begun
            begun = b""


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_in_a_folder(
    fit: Command, expected: dict[str, dict[int, float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    fit("--trainer.logger=MLFlowLogger", "--trainer.logger.save_dir=mlruns")
    (folder,) = Path("mlruns").glob("*/*/metrics")
    rows = {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in CURVES}
    same({name: {int(row.split()[2]): float(row.split()[1]) for row in rows[name]} for name in CURVES}, expected)


def test_a_missing_package_is_reported_in_one_line(fit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __bool__(self) -> bool:
            return False

        def __str__(self) -> str:
            return "Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`"

    monkeypatch.setattr(lightnings_wandb, "_WANDB_AVAILABLE", Missing())
    message = fit("--trainer.logger=WandbLogger", fails=True)
    assert message.count("\n") == 1
    assert message.startswith("lit-lm: error: lightning.pytorch.loggers.WandbLogger: Requirement 'wandb>=0.12.10' not")
    assert message.rstrip().endswith("`pip install -U 'wandb>=0.12.10'`")


def test_a_missing_option_of_a_logger_is_reported_in_one_line(fit: Command) -> None:
    message = fit("--trainer.logger=CSVLogger", fails=True)
    assert message == (
        "lit-lm: error: lightning.pytorch.loggers.CSVLogger: the following arguments are required: save_dir\n"
    )


def test_no_logger_package_is_imported_unless_it_is_chosen(fit: Command) -> None:
    for name in ("wandb", "mlflow"):
        sys.modules.pop(name, None)
    fit()
    assert not {"wandb", "mlflow"} & sys.modules.keys()
