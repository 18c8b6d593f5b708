"""The command line, run in this process."""

import inspect
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY, Command
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_lm.__main__ import main
from lit_lm.checkpoint import read_checkpoint
from lit_lm.cli.base import import_class
from lit_lm.cli.checks import num_devices

QUICK = Path(__file__).parents[2] / "configs" / "quick.yaml"


def test_fit_writes_checkpoints_config_curves_and_a_plot(run_folder: Path) -> None:
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml", "loss_curves.png"} <= files
    events = EventAccumulator(str(run_folder))
    events.Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 12]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 4, 6, 8, 10, 12]
    assert [event.value for event in events.Scalars("train/tokens")] == [
        step * 4 * 32 for step in (1, 2, 4, 6, 8, 10, 12)
    ]
    for name in ("learning_rate", "gradient_norm", "tokens_per_second", "mfu"):
        assert all(event.value > 0 for event in events.Scalars(f"train/{name}"))
    for name in ("perplexity", "bits_per_byte"):
        assert len(events.Scalars(f"val/{name}")) == 3
    assert "sample/text_summary" in events.Tags()["tensors"]


def test_tensorboard_shows_the_hyperparameters_beside_the_loss(run_folder: Path) -> None:
    metadata = EventAccumulator(str(run_folder)).Reload().summary_metadata
    start = HParamsPluginData.FromString(metadata["_hparams_/session_start_info"].plugin_data.content)
    values = {name: value.WhichOneof("kind") for name, value in start.session_start_info.hparams.items()}
    assert values["net.d_model"] == values["seed"] == "number_value"
    experiment = HParamsPluginData.FromString(metadata["_hparams_/experiment"].plugin_data.content)
    assert [info.name.tag for info in experiment.experiment.metric_infos] == ["val/loss"]


def test_validate_and_test_report_the_final_loss_of_fit(run_folder: Path, lit_lm: Command) -> None:
    events = EventAccumulator(str(run_folder))
    events.Reload()
    loss = f"{events.Scalars('val/loss')[-1].value:.4f}"
    last = run_folder / "checkpoints" / "last.ckpt"
    assert f"val/loss {loss}" in lit_lm("validate", "--ckpt_path", last)
    assert f"test/loss {loss}" in lit_lm("test", "--ckpt_path", last)


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the CPU cannot flush denormals")
def test_a_command_flushes_denormals(run_folder: Path, lit_lm: Command) -> None:
    tiny = torch.tensor([1e-20])
    assert (tiny * 1e-20).any()
    lit_lm("validate", "--ckpt_path", run_folder / "checkpoints" / "last.ckpt")
    assert not (tiny * 1e-20).any()


def test_test_reports_metrics_of_samples_with_fixed_seeds(run_folder: Path, lit_lm: Command, cache: Path) -> None:
    last = run_folder / "checkpoints" / "last.ckpt"
    printed = lit_lm("test", "--ckpt_path", last, f"--data.cache_dir={cache}")
    written = (run_folder / "samples_00000012.jsonl").read_bytes()
    rows = [json.loads(line) for line in written.decode().splitlines()]
    assert [row["seed"] for row in rows] == list(range(20))
    text = (run_folder / "samples_00000012.txt").read_bytes().decode()  # read_text would change the newlines
    assert all(row["text"] in text for row in rows)
    repetition = sum(row["repetition"] for row in rows) / 20
    copied = sum(row["longest_common_span"] >= 50 for row in rows) / 20
    for line in (f"test/repetition {repetition:.4g}", f"test/copied {copied:.4g}", "test/distinct_3 "):
        assert line in printed
    lit_lm("test", "--ckpt_path", last, f"--data.cache_dir={cache}", "--seed", 5)
    assert (run_folder / "samples_00000012.jsonl").read_bytes() == written


def test_test_reports_missing_training_text(run_folder: Path, lit_lm: Command) -> None:
    last = run_folder / "checkpoints" / "last.ckpt"
    printed = lit_lm("test", "--ckpt_path", last, "--data.cache_dir=elsewhere")
    assert "test/distinct_1 " in printed
    assert "copied is unknown: the tokens of the training text are not in the cache" in printed


def test_predict_prints_and_writes_continuations(run_folder: Path, lit_lm: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("The owl\nTwo días 后\n", encoding="utf-8")
    arguments = ["--ckpt_path", run_folder / "checkpoints" / "best.ckpt", "--prompt", "The cat",
                 "--prompt_file", "prompts.txt", "--num_samples", 2, "--max_new_tokens", 5]  # fmt: skip
    printed = lit_lm("predict", *arguments)
    assert "of 3 prompts are in out/a.jsonl" in lit_lm("predict", *arguments, "--output", "out/a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["The cat"] * 2 + ["The owl"] * 2 + ["Two días 后"] * 2
    assert all(row["prompt"] + row["continuation"] in printed for row in rows)
    lit_lm("predict", *arguments, "--output", "b.jsonl")
    lit_lm("predict", *arguments, "--output", "c.jsonl", "--seed", 1)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "out" / "a.jsonl").read_bytes()
    assert (tmp_path / "c.jsonl").read_bytes() != (tmp_path / "b.jsonl").read_bytes()


def test_a_checkpoint_is_self_contained_and_has_only_plain_values(run_folder: Path) -> None:
    checkpoint = read_checkpoint(run_folder / "checkpoints" / "last.ckpt")
    assert json.loads(json.dumps([checkpoint.model, checkpoint.data])) == [checkpoint.model, checkpoint.data]
    assert checkpoint.model["optimizer"]["class_path"] == "lit_lm.optim.Muon"
    ids = checkpoint.tokenizer.encode("The cat")
    with torch.no_grad():
        assert checkpoint.transformer()(torch.tensor([ids])).shape == (1, len(ids), 300)


def test_explicit_options_override_the_checkpoint(run_folder: Path, lit_lm: Command) -> None:
    last = run_folder / "checkpoints" / "last.ckpt"
    lit_lm("fit", "--ckpt_path", last, "--model.optimizer.init_args.lr", "0.5", "--trainer.max_steps", 14)
    config = yaml.safe_load(Path("logs/run/version_0/config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.5
    assert config["model"]["net"]["context_length"] == 32


@pytest.mark.parametrize("name", ["AdamW", "torch.optim.Adam"])
@pytest.mark.parametrize("first", [[], ["--config", str(QUICK)]], ids=["defaults", "config"])
def test_another_optimizer_starts_from_its_own_defaults(
    name: str, first: list[str], lit_lm: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        lit_lm("fit", *first, "--model.optimizer.eps", "1e-6", "--model.optimizer", name, "--print_config")
    chosen = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer"]
    kind = import_class(chosen["class_path"], "model.optimizer", torch.optim.Optimizer)
    defaults = inspect.signature(kind).parameters
    for option, value in chosen["init_args"].items():
        default = defaults[option].default
        assert value == (1e-6 if option == "eps" else list(default) if isinstance(default, tuple) else default)


def test_the_seed_determines_the_run(corpus: Path, cache: Path, lit_lm: Command) -> None:
    def losses(seed: int) -> str:
        arguments = [*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.max_steps=3"]
        out = lit_lm("fit", *arguments, "--model.net.dropout=0.1", f"--seed={seed}")
        return next(line for line in out.splitlines() if "val/loss" in line)

    assert losses(1) == losses(1) != losses(2)


TOUCH = "{class_path: os.system, init_args: {command: touch ran}}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'; the commands are fit, "),
        (["train"], "unknown command 'train'; did you mean fit?"),
        (["fti"], "unknown command 'fti'; did you mean fit?"),
        (["fit", "--model.net.d_modle=3"], "did you mean --model.net.d_model?"),
        (["fit", "--trainer.logger.save_dir=x"], "trainer.logger has options but no class; name the class first"),
        (["fit", "--lr", "1e-3"], "there is no option --lr; did you mean --model.optimizer.lr?"),
        (["fit", "--learning_rate=1e-3"], "did you mean --model.optimizer.lr?"),
        (["fit", "--warmup", "9"], "did you mean --model.schedule.warmup_steps?"),
        (["fit", "--batch_size=3"], "did you mean --data.batch_size?"),
        (["fit", "--epochs", "3"], "did you mean --trainer.max_epochs?"),
        (["fit", "typo.yaml"], "unexpected argument typo.yaml; did you mean --config typo.yaml?"),
        (["fit", "quick"], "unexpected argument quick; did you mean --config quick?"),
        (["fit", "now"], "the name of an option starts with --"),
        (["fit", "--config=configs/quick.yaml"], "as in --config quick, or copy all recipes with lit-lm init"),
        (["validate", "--config", "quick.yml"], "as in --config quick, or copy all recipes with lit-lm init"),
        (["fit", "--model.net=sizes/tini"], "there is no config sizes/tini; pass the path of a YAML file"),
        (["fit", "--model.optimizer.lr=0,01"], "model.optimizer.lr is 0,01; it must be a number; did you mean 0.01?"),
        (["fit", "--model.net.dropout=0,1"], "model.net.dropout is 0,1; it must be a number; did you mean 0.1?"),
        (["fit", "--data.batch_size=many"], "data.batch_size is many; it must be a whole number"),
        (["fit", "--data.streaming=maybe"], "data.streaming is maybe; it must be true or false"),
        (["fit", "--trainer.gradient_clip_val=0,5"], "gradient_clip_val is 0,5; it must be a number or null; did you "
                                                     "mean 0.5?"),
        (["fit", "--data.stride=a"], "data.stride is a; it must be a whole number or null"),
        (["fit", "--trainer.callbacks=timer"], "trainer.callbacks is timer; it must be the dotted name of a class"),
        (["fit", "--model.optimizer=Adamw"], "there is no optimizer Adamw; did you mean AdamW?"),
        (["fit", "--model.optimizer=adam"], "there is no optimizer adam; did you mean torch.optim.Adam?"),
        (["fit", "--model.schedule=cosine"], "there is no schedule cosine; "),
        (["fit", "--data", "long.txt"], "data is long.txt; it must be a mapping of options"),
        (["fit", "--config"], "--config needs the path of a YAML file, or the name of a recipe"),
        (["fit", "--config=typo.yaml"], "did you mean data.batch_size?"),
        (["fit", "--model.optimizer=torch.optim.SGD", "--model.optimizer.momentun=0.9"], "did you mean momentum?"),
        (["fit", "--config=missing.yaml"], "missing.yaml"),
        (["fit", "--data.source=missing.txt"], "there is no file"),
        (["fit", "--data.source=empty.txt"], "has no text"),
        (["fit", "--data.source=latin1.txt"], "latin1.txt, line 1: not UTF-8: byte 3 of the file is 0xe9"),
        (["fit", "--data.source=short.txt"], "fewer than one window of 257"),
        (["fit", "--data.source=long.txt", "--data.tokenizer=missing.json"], "missing.json; pass the path of a"),
        (["fit", "--data.tokenizer_type=words"], "tokenizer_type"),
        (["fit", "--data.source=long.txt", "--model.net.vocab_size=200"], "a bpe tokenizer needs at least 257"),
        (["fit", "--data.source=long.txt", "--data.batch_size=4", "--data.micro_batch_size=3"], "4 is not div"),
        (["fit"], "has no end: set --trainer.max_steps or --trainer.max_epochs, or start from a recipe"),
        (["fit", "--trainer.limit_train_batches=2"], "limit_train_batches counts batches"),
        (["fit", "--trainer.overfit_batches=1"], "overfit_batches counts batches"),
        (["fit", "--trainer.fast_dev_run=true"], "fast_dev_run counts batches"),
        (["fit", "--trainer.log_every_n_steps=0"], "log_every_n_steps is 0"),
        (["fit", "--trainer.max_epochs=0"], "the run has 0 steps"),
        (["fit", "--trainer.val_check_interval=0"], "val_check_interval is 0; it must be at least 1"),
        (["fit", "--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch is 0; it must be at least 1"),
        (["fit", "--trainer.gradient_clip_val=-1"], "it must be at least 0, which turns clipping off"),
        (["fit", f"--trainer.gradient_clip_val={10**400}"], "which turns clipping off, and finite"),
        (["fit", "--trainer.accelerator=cpu", "--trainer.devices=1000"], "devices is 1000; on this CPU it must be"),
        (["fit", "--trainer.accelerator=cpu", "--trainer.devices=-1"], "devices is -1; on this CPU it must be"),
        (["fit", "--trainer.num_nodes=1000"], "num_nodes is 1000, but the other nodes are unknown"),
        (["fit", "--trainer.accelerator=cpu", "--trainer.precision=16-true"], "16-true, which needs a GPU"),
        (["fit", "--name=../out"], "name is '../out'; it must be the name of a folder in logs/"),
        (["fit", "--name="], "name is ''; it must be the name of a folder in logs/"),
        (["fit", f"--model.net.d_model={10**20}"], "it must be between 1 and 1,073,741,824"),
        (["fit", "--model.net.d_model=1000000"], "num_layers 4, d_ff 2,666,688 and vocab_size 10,000 needs at least"),
        (["fit", "--data.batch_size=1000000000"], "training with 1,000,000,000 x 256 tokens per device"),
        (["fit", "--data.source=long.txt", "--model.optimizer=os.system"], "'os.system' to be a function that returns"),
        (["predict", "--ckpt_path=x.ckpt", "--prompt=a", "--trainer.devices=1000"], "on this CPU it must be"),
        (["fit", "--data.source=long.txt", "--trainer.val_check_interval=0.5"], "val_check_interval"),
        (["fit", "--model.schedule=torch.optim.lr_scheduler.ReduceLROnPlateau", "--data.source=long.txt"], "a metric"),
        (["fit", "--data.source=long.txt", "--model.schedule=torch.optim.lr_scheduler.OneCycleLR",
          "--model.schedule.max_lr=0.1", "--model.schedule.total_steps=2", "--trainer.max_steps=3"],
         "OneCycleLR has total_steps 2, but the run has 3 steps"),
        (["fit", "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val_loss}}"],
         "EarlyStopping monitors 'val_loss', which is never logged; did you mean val/loss?"),
        (["fit", "--trainer.callbacks={class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}"],
         "GradientAccumulationScheduler changes the batch size"),
        (["fit", "--trainer.check_val_every_n_epoch=2"], "use trainer.val_check_interval, in steps"),
        (["fit", "--config=pipe"], "pipe is not a file"),
        (["fit", "--trainer.logger=pipe"], "pipe is a pipe or a device"),
        (["fit", "--data", "pipe"], "pipe is a pipe or a device"),
        (["fit", "--config={model: {optimizer: null}}"], "model.optimizer is null"),
        (["fit", "--config={checkpoint: [1]}"], "checkpoint is list; it must be a mapping of options"),
        (["fit", "--trainer.logger", "pipe"], "pipe is a pipe or a device"),
        (["predict", "--ckpt_path=x.ckpt", "--prompt_file", "pipe"], "pipe is a pipe or a device"),
        (["fit", "--config={seed: 2020-01-01}"], "seed is 2020-01-01; it must be a whole number"),
        (["fit", "--config={data: {source: {a: [{b: [1]}]}}}"], "it must be a number"),
        (["fit", "--model.optimizer.adamw_lr=&a [*a]"], "nested too deeply"),
        (["fit", "--trainer.val_check_interval={x: 2}"], "the options of the Trainer are invalid"),
        (["fit", f"--data.source={TOUCH}"], "is not an iterable class"),
        (["fit", f"--model.optimizer={TOUCH}"], "must be a subclass of Optimizer"),
        (["fit", f"--model.schedule={TOUCH}"], "must be a subclass of LRScheduler"),
        (["fit", "--data.cache_dir=~nobody-here/x"], "the home folder of an unknown user"),
        (["fit", "--model.z_loss=-1"], "z_loss is -1"),
        (["fit", "--data.source=long.txt", "--model.max_skipped_steps=0"], "max_skipped_steps is 0"),
        (["fit", "--data.val_fraction=1e-9"], "val_fraction is 1e-09; it must be between 1e-06 and 0.5"),
        (["fit", f"--data.source={'[' * 100_000}"], "a path or URL has at most 4,096"),
        (["fit", "--config={data: [1]}"], "data is list; it must be a mapping of options"),
        (["fit", "--trainer.barebones=true"], "trainer.barebones turns off what fit is for"),
        (["fit", "--seed=-1"], "seed is -1; it must be between 0 and 4,294,967,295"),
        (["validate"], "there is no checkpoint in logs; train a model with lit-lm fit"),
        (["predict", "--prompt=a"], "there is no checkpoint in logs; train a model with lit-lm fit"),
        (["predict", "--prompt=a", "--ckpt_path=typo.yaml"], "typo.yaml is a config, not a checkpoint"),
        (["predict", "--ckpt_path=missing.ckpt", "--prompt=a"], "there is no checkpoint at missing.ckpt"),
        (["predict", "--ckpt_path=long.txt", "--prompt=a"], "long.txt cannot be read as a checkpoint"),
        (["predict", "--ckpt_path=other.ckpt", "--prompt=a"], "other.ckpt was not written by lit-lm"),
    ],
)  # fmt: skip
def test_a_user_error_is_reported(
    arguments: list[str], message: str, lit_lm: Command, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "short.txt").write_text("A few words.")
    (tmp_path / "long.txt").write_text("many words and more " * 500)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "typo.yaml").write_text("data: {batch_sizes: 3}")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    if len(arguments) > 1 and arguments[0] == "fit":
        arguments = ["fit", "--trainer.max_steps=1", f"--data.cache_dir={cache}", *arguments[1:]]
    printed = lit_lm(*arguments, fails=True)
    assert printed.startswith("lit-lm: error: ")
    assert message in printed
    assert not (tmp_path / "ran").exists()


def test_all_problems_of_a_config_are_reported_at_once(lit_lm: Command) -> None:
    message = lit_lm(
        "fit", "--model.net={d_model: 30, num_kv_heads: 3}", "--data.batch_size=0", "--data.val_fraction=2", fails=True
    )
    for problem in ("d_model 30", "num_kv_heads 3", "batch_size is 0", "val_fraction is 2"):
        assert problem in message


def test_invalid_sampling_and_too_long_prompts_are_rejected(run_folder: Path, lit_lm: Command) -> None:
    best = ["predict", "--ckpt_path", run_folder / "checkpoints" / "best.ckpt"]
    assert "no prompts; pass --prompt" in lit_lm(*best, fails=True)
    message = lit_lm(*best, "--prompt=a", "--temperature=-1", "--top_p=0", fails=True)
    assert "temperature is -1" in message
    assert "top_p is 0" in message
    assert "the prompt leaves room for 0" in lit_lm(*best, "--prompt", "word " * 40, fails=True)
    assert "do not fit into the context of 32" in lit_lm(*best, "--prompt=a", "--max_new_tokens=40", fails=True)


def test_model_and_tokenizer_of_a_checkpoint_cannot_be_changed(run_folder: Path, lit_lm: Command) -> None:
    validate = ["validate", "--ckpt_path", run_folder / "checkpoints" / "last.ckpt"]
    message = lit_lm(*validate, "--model.net.d_model=32", "--data.tokenizer=other.json", fails=True)
    assert "model.net.d_model was 16 and is 32" in message
    assert "data.tokenizer was None and is" in message


def test_validate_needs_no_training_text(corpus: Path, cache: Path, lit_lm: Command, tmp_path: Path) -> None:
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    lit_lm("fit", *TINY, "--data.source=train.txt", "--data.val_source=val.txt", f"--data.cache_dir={cache}",
           "--trainer.max_steps=2")  # fmt: skip
    (tmp_path / "train.txt").unlink()
    assert "val/loss" in lit_lm("validate", "--ckpt_path=logs/run/version_0/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision=bf16-true"],
        ["--trainer.precision=bf16-mixed"],
        ["--trainer.enable_checkpointing=false"],
        ["--trainer.enable_progress_bar=false"],
        ["--trainer.logger={class_path: CSVLogger, init_args: {save_dir: csv}}"],
        ["--trainer.logger=false"],
        ["--trainer.limit_val_batches=0"],
        ["--trainer.callbacks={class_path: ModelCheckpoint}"],
        ["--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val/loss}}"],
        ["--trainer.callbacks={class_path: Timer, init_args: {duration: '00:01:00:00'}}"],
        ["--trainer.max_time=00:01:00:00"],
        ["--model.document_mask=true", "--trainer.precision=bf16-mixed", "--model.net.dropout=0.1"],
        ["--model.net={norm: layernorm, mlp: gelu, positions: learned, bias: true, tie_embeddings: true}"],
    ],
    ids=str,
)
def test_options_of_the_trainer_and_the_gpt2_architecture_work(
    options: list[str], corpus: Path, cache: Path, lit_lm: Command
) -> None:
    arguments = [f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.max_steps=2"]
    printed = lit_lm("fit", *TINY, *arguments, *options)
    shown = "--trainer.enable_progress_bar=false" not in options
    assert ("done: 2 steps, 256 tokens" in printed) == shown
    for link in re.findall(r"(?:best|last) checkpoint: (\S+)", printed):
        assert Path(link).exists()


def test_a_truncated_checkpoint_is_reported(run_folder: Path, lit_lm: Command, tmp_path: Path) -> None:
    whole = (run_folder / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "cut.ckpt cannot be read as a checkpoint" in lit_lm("validate", "--ckpt_path=cut.ckpt", fails=True)


def test_a_vocab_size_smaller_than_the_tokenizer_is_rejected(
    run_folder: Path, corpus: Path, cache: Path, lit_lm: Command
) -> None:
    tokenizer = read_checkpoint(run_folder / "checkpoints" / "last.ckpt").tokenizer
    Path("tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    message = lit_lm("fit", f"--data.source={corpus}", f"--data.cache_dir={cache}", "--data.tokenizer=tokenizer.json",
                     "--model.net.vocab_size=280", "--trainer.max_steps=1", fails=True)  # fmt: skip
    assert "the tokenizer has 300 tokens but vocab_size is 280" in message


def test_best_and_last_select_checkpoints_of_the_named_run(lit_lm: Command, run_folder: Path) -> None:
    for name in ("older", "newer"):
        shutil.copytree(run_folder, Path("logs") / name / "version_0", symlinks=True)
    for path in Path("logs/newer").rglob("*.ckpt"):
        path.unlink()
    Path("logs/newer/version_0/checkpoints/last.ckpt").write_bytes(b"not a checkpoint")
    for command in ("validate", "test", "predict"):
        options = ["--prompt=The", "--max_new_tokens=2"] if command == "predict" else []
        lit_lm(command, "--ckpt_path=best", "--name=older", *options)
        assert "cannot be read as a checkpoint" in lit_lm(
            command, "--ckpt_path=last", "--name=newer", *options, fails=True
        )
    assert "leave out name" in lit_lm("validate", "--ckpt_path", run_folder, "--name=older", fails=True)
    assert "no checkpoint in logs/none" in lit_lm("test", "--ckpt_path=best", "--name=none", fails=True)


def test_a_command_takes_the_best_checkpoint_of_the_newest_run_and_names_it(
    lit_lm: Command, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder, Path("logs/mine/version_0"), symlinks=True)
    for command in ("validate", "test", "predict"):
        options = ["--prompt=The", "--max_new_tokens=2", "--sliding_window"] if command == "predict" else []
        by_name = lit_lm(command, "--ckpt_path=mine", *options)
        capsys.readouterr()
        main([command, *options])
        printed = capsys.readouterr()
        assert printed.err == "checkpoint: logs/mine/version_0/checkpoints/best.ckpt\n"
        assert printed.out == by_name


def test_device_is_short_for_the_accelerator(lit_lm: Command, run_folder: Path) -> None:
    assert lit_lm("predict", "--ckpt_path", run_folder, "--prompt=The", "--device", "cpu", "--max_new_tokens=2")
    for option in ("--device", "--trainer.accelerator"):
        for command in (["validate"], ["predict", "--prompt=The"]):
            message = lit_lm(*command, "--ckpt_path", run_folder, option, "abacus", fails=True)
            assert "invalid accelerator name: `accelerator='abacus'`" in message


def test_a_boolean_option_needs_no_value(lit_lm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lit_lm(
            *("fit", "--allow_changes", "--model.net.bias", "--seed=3", "--data.streaming", "False"),
            *("--model.compile", "null", "--print_config"),
        )
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["allow_changes"], config["model"]["net"]["bias"], config["data"]["streaming"]) == (True, True, False)


class KeylessLogger(CSVLogger):
    """Fails like WandbLogger without an API key."""

    def __init__(self, save_dir: str) -> None:
        raise type("UsageError", (Exception,), {"__module__": "wandb.errors"})(
            "No API key configured.\nUse `wandb login`"
        )


def test_a_logger_that_cannot_be_used_is_an_error_in_one_line(
    lit_lm: Command, monkeypatch: pytest.MonkeyPatch, corpus: Path, cache: Path
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    arguments = [
        "fit",
        "--config",
        QUICK,
        "--trainer.max_steps=1",
        f"--data.source={corpus}",
        f"--data.cache_dir={cache}",
    ]
    for logger, expected in (
        ("WandbLogger", "False"),
        (
            f"{{class_path: {__name__}.KeylessLogger, init_args: {{save_dir: csv}}}}",
            "No API key configured. Use `wandb",
        ),
    ):
        message = lit_lm(*arguments, f"--trainer.logger={logger}", fails=True)
        assert expected in message
        assert message.count("\n") == 1


def test_another_model_size_on_resuming_gets_true_advice(run_folder: Path, lit_lm: Command) -> None:
    """The weights do not fit, whatever --allow_changes says."""
    resume = ["fit", "--ckpt_path", run_folder, "--model.net.d_model=32", "--trainer.max_steps=14"]
    for options in ([], ["--allow_changes"]):
        message = lit_lm(*resume, *options, fails=True)
        assert "model.net.d_model was 16 and is 32\nThis value differs from the checkpoint's. Remove it.\n" in message


@pytest.mark.parametrize(
    ("devices", "number"), [("auto", 1), ("-1", 1), (2, 2), ("3", 3), ([0, 1], 2), ("0,1,3", 3), ("0,", 1)], ids=str
)
def test_devices_are_counted(devices: object, number: int) -> None:
    assert num_devices(devices, on_gpu=False) == number


def test_the_memory_of_a_sharded_run_is_left_to_plan(lit_lm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_lm.memory.machine_memory", lambda _: 2**20)
    options = ["fit", "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--data.source=missing.txt"]
    assert "needs at least" in lit_lm(*options, fails=True)
    assert "missing.txt; data.source can be" in lit_lm(*options, "--trainer", "strategies/fsdp", fails=True)
