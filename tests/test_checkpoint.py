"""Checkpoint files: atomic writes, finding the newest readable one, refusing unsafe content."""

import copy
import dataclasses
import hashlib
import math
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from conftest import Command
from helpers.web import web_server

from lit_lm.checkpoint import TRUSTED_CLASSES, checkpoint_file, read_checkpoint, write_checkpoint
from lit_lm.runs import checkpoints_in, keep_only, newest_good_checkpoint, point_to


@pytest.fixture
def folder(tmp_path: Path, run_folder: Path) -> Path:
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    loop = content["loops"]["fit_loop"]
    counted = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    for step in (1, 5, 20):
        content["global_step"] = counted["completed"] = step
        write_checkpoint(content, tmp_path / f"step_{step:08d}.ckpt")
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in checkpoints_in(folder)]


def test_sha256sum_accepts_the_digest(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "step_00000005.ckpt.sha256"], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "step_00000005.ckpt: OK\n"


def test_a_checkpoint_is_not_read_again_for_its_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"weights": torch.randn(2**18), "text": "x" * 10**5}
    monkeypatch.setattr("lit_lm.checkpoint.sha256", lambda path: pytest.fail("the file was read"))
    write_checkpoint(content, folder / "new.ckpt")
    digest = hashlib.sha256((folder / "new.ckpt").read_bytes()).hexdigest()
    assert (folder / "new.ckpt.sha256").read_text() == f"{digest}  new.ckpt\n"


def test_checkpoints_are_listed_newest_first_and_others_can_be_removed(folder: Path) -> None:
    assert steps(folder) == [20, 5, 1]
    (folder / ".step_00000021.ckpt.unfinished").write_bytes(b"left by a crash")
    keep_only(folder, {folder / "step_00000005.ckpt"})
    assert {path.name for path in folder.iterdir()} == {"step_00000005.ckpt", "step_00000005.ckpt.sha256"}


def test_a_checkpoint_written_through_a_link_can_be_read(folder: Path) -> None:
    (folder / "link.ckpt").symlink_to("step_00000005.ckpt")
    with checkpoint_file(folder / "link.ckpt") as file:
        file.write((folder / "step_00000020.ckpt").read_bytes())
    assert read_checkpoint(folder / "link.ckpt").step == 20
    assert not (folder / "link.ckpt.sha256").exists()


def test_a_failed_write_changes_no_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def fails(content: Any, file: Any) -> None:
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    for step in (20, 30):
        with pytest.raises(OSError, match="No space"):
            write_checkpoint({}, folder / f"step_{step:08d}.ckpt")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, empty, flip])
def test_damaged_checkpoints_are_skipped_and_reported(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "step_00000020.ckpt")
    checkpoint, problems = newest_good_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.path == folder / "step_00000005.ckpt"
    assert checkpoint.step == 5
    assert problems == [f"{folder}/step_00000020.ckpt is damaged: it does not match its digest"]


def test_a_truncated_checkpoint_without_a_digest_is_skipped_and_reported(folder: Path) -> None:
    cut(folder / "step_00000020.ckpt")
    (folder / "step_00000020.ckpt.sha256").unlink()
    checkpoint, (problem,) = newest_good_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert "cannot be read as a checkpoint" in problem


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert newest_good_checkpoint(tmp_path / "missing") == (None, [])


def test_a_link_points_to_the_new_target_and_can_be_read(folder: Path, run_folder: Path) -> None:
    link = folder / "last.ckpt"
    for step in (5, 20):
        point_to(link, folder / f"step_{step:08d}.ckpt")
        assert torch.load(link)["global_step"] == step
    assert read_checkpoint(run_folder / "checkpoints" / "last.ckpt").step == 12


class Malice:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path: Path, plain_pickle: bool) -> None:
    evil, harmed = tmp_path / "evil.ckpt", tmp_path / "harmed"
    harmed.mkdir()
    content = {"global_step": 1, "state_dict": Malice(shutil.rmtree, str(harmed))}
    if plain_pickle:
        evil.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, evil)
    with pytest.raises(ValueError, match=r"evil\.ckpt (is refused: it would run shutil\.rmtree|cannot be read)"):
        read_checkpoint(evil)
    assert harmed.exists()


def altered(run_folder: Path, path: Path, part: str, key: str, value: Any) -> Path:
    """A copy of a checkpoint with one hyperparameter replaced."""
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    content[part][key] = value
    torch.save(content, path)
    return path


def every_callable_of_torch() -> list[str]:
    """Dotted names of all callables in torch, public or private."""
    names = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "torch" and module is not None:
            with warnings.catch_warnings():  # deprecation warnings
                warnings.simplefilter("ignore")
                names |= {f"{name}.{key}" for key, value in list(vars(module).items()) if callable(value)}
    return sorted(names)


@pytest.mark.parametrize("part", sorted(TRUSTED_CLASSES))
def test_only_the_listed_classes_of_torch_can_come_from_a_checkpoint(run_folder: Path, part: str) -> None:
    checkpoint = read_checkpoint(run_folder / "checkpoints" / "last.ckpt")
    listed = TRUSTED_CLASSES[part]
    names = [*every_callable_of_torch(), "os.system", "mylab.Lion", "print", "exec", ""]
    assert len(names) > 10_000
    assert {name for name in listed if name.startswith("torch.")} <= set(names)
    for name in names:
        for spec in (name, {"class_path": name}, {"class_path": name, "init_args": {"lr": 0.1}}):
            foreign = dataclasses.replace(checkpoint, model=checkpoint.model | {part: spec})
            if name in listed:
                assert foreign.config(training=True)["model"][part] in (spec, {"class_path": name})
            else:
                with pytest.raises(ValueError, match=rf"as its model\.{part}"):
                    foreign.config(training=True)
            assert part not in foreign.config(training=False)["model"]


CALL = {"class_path": "torch.distributed.launcher.api.elastic_launch", "init_args": {"entrypoint": "touch"}}
NAMES = [CALL, [CALL], {"a": CALL}, "torch.os._exit", ["torch.os._exit"], [["torch.os._exit"]], {"torch.os._exit": 1}]


@pytest.mark.parametrize("argument", NAMES)
@pytest.mark.parametrize(
    ("part", "path"), [(part, path) for part in TRUSTED_CLASSES for path in sorted(TRUSTED_CLASSES[part])]
)
def test_the_arguments_of_a_listed_class_cannot_name_code(
    run_folder: Path, part: str, path: str, argument: Any
) -> None:
    checkpoint = read_checkpoint(run_folder / "checkpoints" / "last.ckpt")
    for spec in (
        {"class_path": path, "init_args": {"anything": argument}},
        {"class_path": path, "init_args": argument},
        {"class_path": path, "dict_kwargs": {"anything": argument}},
        [path],
        {"class_path": [path]},
    ):
        foreign = dataclasses.replace(checkpoint, model=checkpoint.model | {part: spec})
        with pytest.raises(ValueError, match=rf"as its model\.{part}"):
            foreign.config(training=True)


@pytest.mark.parametrize("argument", [name for name in NAMES if not isinstance(name, str)])
@pytest.mark.parametrize(
    ("part", "key"),
    [("hyper_parameters", name) for name in ("net", "compile", "z_loss", "class_path", "seed")]
    + [("datamodule_hyper_parameters", name) for name in ("tokenizer", "num_workers", "val_source")],
)
def test_no_other_hyperparameter_can_name_code(
    run_folder: Path, tmp_path: Path, part: str, key: str, argument: Any
) -> None:
    evil = altered(run_folder, tmp_path / "evil.ckpt", part, key, argument)
    with pytest.raises(
        ValueError, match=r"is damaged or was changed: .*hyper_parameters\.\w+( has the unknown name| is of type)"
    ):
        read_checkpoint(evil)


@pytest.mark.parametrize("net", [CALL, {"norm": CALL}, {"norm": ["torch.os._exit"]}, {"torch.os._exit": 1}])
def test_the_model_config_cannot_name_code(run_folder: Path, tmp_path: Path, net: Any) -> None:
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    evil = altered(
        run_folder, tmp_path / "evil.ckpt", "hyper_parameters", "net", content["hyper_parameters"]["net"] | net
    )
    with pytest.raises(ValueError, match=r"net\.norm is of type|net has the unknown name"):
        read_checkpoint(evil)


@pytest.mark.parametrize("source", [CALL, CALL | {"weight": 1.0}])
def test_a_class_as_source_must_be_named_by_the_user(run_folder: Path, tmp_path: Path, source: Any) -> None:
    evil = altered(run_folder, tmp_path / "evil.ckpt", "datamodule_hyper_parameters", "source", source)
    for training in (True, False):
        with pytest.raises(ValueError, match=r"names torch\S+ as its data\.source"):
            read_checkpoint(evil).config(training=training)


@pytest.mark.parametrize("source", ["{class_path: evil.X}", "class_path: evil.X"])
@pytest.mark.parametrize("command", [("validate",), ("data", "info"), ("prepare",)], ids=" ".join)
def test_a_text_as_source_cannot_name_a_class(
    run_folder: Path, lit_lm: Command, command: tuple[str, ...], source: str
) -> None:
    """The parser reads a text of YAML as a mapping, also in a config."""
    Path("evil.py").write_text("open('imported', 'w')", encoding="utf-8")
    evil = altered(run_folder, Path("evil.ckpt"), "datamodule_hyper_parameters", "source", source)
    message = lit_lm(*command, "--ckpt_path", evil, fails=True)
    assert "data.source is" in message
    assert not Path("imported").exists()


def test_weights_of_sources_must_be_numbers(run_folder: Path, tmp_path: Path) -> None:
    evil = altered(run_folder, tmp_path / "evil.ckpt", "datamodule_hyper_parameters", "source", {"a": CALL, "b": 1.0})
    with pytest.raises(ValueError, match=r"source\.a is of type dict"):
        read_checkpoint(evil)


def test_a_checkpoint_cannot_start_a_program(run_folder: Path, lit_lm: Command, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    launch = CALL | {"init_args": {"config": {"min_nodes": 1}, "entrypoint": f"touch {touched}"}}
    for number, schedule in enumerate(
        (
            {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": launch}},
            {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "torch.os._exit"}},
            launch,
        )
    ):
        evil = altered(run_folder, tmp_path / f"{number}.ckpt", "hyper_parameters", "schedule", schedule)
        printed = lit_lm("fit", "--ckpt_path", evil, "--trainer.max_steps", 14, fails=True)
        assert "as its model.schedule" in printed
        lit_lm("validate", "--ckpt_path", evil)  # does not build the schedule
    assert not touched.exists()


def test_a_class_that_the_user_names_is_accepted_with_plain_arguments(run_folder: Path) -> None:
    checkpoint = read_checkpoint(run_folder / "checkpoints" / "last.ckpt")

    def optimizer(spec: Any, named: str) -> Any:
        foreign = dataclasses.replace(checkpoint, model=checkpoint.model | {"optimizer": spec})
        return foreign.config(training=True, named={"optimizer": named})["model"].get("optimizer")

    lion = {"class_path": "mylab.Lion", "init_args": {"lr": 0.1, "betas": [0.9, 0.99]}}
    assert optimizer(lion, named="mylab.Lion") == lion
    assert optimizer(lion, named="torch.optim.SGD") is None
    assert optimizer(CALL | {"class_path": "mylab.Lion", "init_args": {"f": "torch.os._exit"}}, "mylab.Lion") is None


class Fetched(BaseHTTPRequestHandler):
    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("command", ["fit", "validate", "test", "data info", "prepare"])
@pytest.mark.parametrize("key", ["source", "val_source"])
def test_an_address_that_only_the_checkpoint_names_is_not_fetched(
    run_folder: Path, lit_lm: Command, tmp_path: Path, command: str, key: str
) -> None:
    Fetched.paths.clear()
    with web_server(Fetched) as web:
        place = f"{web}/text.txt"
        for address in (place, f"simplecache::{place}"):
            evil = altered(run_folder, tmp_path / "evil.ckpt", "datamodule_hyper_parameters", key, address)
            steps = ("--trainer.max_steps", 14) if command == "fit" else ()
            arguments = (*command.split(), "--ckpt_path", evil, *steps)
            assert f"the checkpoint's data is at {address}" in lit_lm(*arguments, fails=True)
            assert not Fetched.paths
        altered(run_folder, evil, "datamodule_hyper_parameters", key, place)
        for allowed in (["--allow_fetch", "true"], [f"--data.{key}", place]):
            lit_lm(*arguments, *allowed, fails=True)
            assert Fetched.paths
            Fetched.paths.clear()


@pytest.mark.parametrize("name", ["hub:someone/model"])
def test_a_tokenizer_that_only_the_checkpoint_names_is_not_fetched(
    name: str, run_folder: Path, lit_lm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    evil = altered(run_folder, tmp_path / "evil.ckpt", "datamodule_hyper_parameters", "tokenizer", name)
    assert "val/loss" in lit_lm("validate", "--ckpt_path", evil)  # it contains the tokenizer
    content = torch.load(evil, weights_only=True)
    torch.save(content | {"tokenizer": None}, evil)
    assert "the checkpoint's data is at hub:" in lit_lm("validate", "--ckpt_path", evil, fails=True)
    assert "the hub was asked" in lit_lm("validate", "--ckpt_path", evil, "--allow_fetch", "true", fails=True)


def test_a_checkpoint_cannot_choose_the_cache_folder(
    run_folder: Path, lit_lm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    elsewhere = tmp_path / "elsewhere"
    evil = altered(run_folder, tmp_path / "evil.ckpt", "datamodule_hyper_parameters", "cache_dir", str(elsewhere))
    lit_lm("validate", "--ckpt_path", evil)
    assert not elsewhere.exists()


@pytest.mark.parametrize("version", [None, "9.9.9"])
def test_a_checkpoint_of_another_version_is_refused(run_folder: Path, tmp_path: Path, version: str | None) -> None:
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    del content["lit_lm_format"], content["lit_lm_version"]
    if version is not None:
        content |= {"lit_lm_format": 99, "lit_lm_version": version}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=f"was written by lit-lm {version or '0.1.0'}; this version cannot"):
        read_checkpoint(tmp_path / "other.ckpt")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def laughs() -> list[Any]:
    """A small pickle of 10^60 strings."""
    value = ["ha"]
    for _ in range(60):
        value = [value] * 10
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


ESCAPE = "a\x1b]0;title\x07\x9b31m\nb"
MATRIX = torch.rand(16, 16)


def wrong_values() -> list[Any]:
    """Values to put into any place of a checkpoint: none may do worse than to be refused."""
    return [
        None, True, -1, 2**70, 10**5000, math.nan, ESCAPE, b"x", torch.float16, [1, 2], {ESCAPE: 1}, {7: 1},
        nested(3000), laughs(), cycle(),
    ]  # fmt: skip


def wrong_tensors() -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes and deprecated kinds
        return [
            torch.rand(3, 5), MATRIX.to("meta"), torch.tensor(1.0), torch.zeros(1).expand(16, 16),
            torch.zeros(1).expand(10**9, 10**9), MATRIX.double(), MATRIX.int(), MATRIX.to(torch.complex64),
            MATRIX * math.nan, MATRIX.to_sparse(), MATRIX.to_sparse_csr(),
            torch.quantize_per_tensor(MATRIX, 0.1, 0, torch.qint8),
            torch.nested.nested_tensor([MATRIX[0], MATRIX[0, :3]]),
        ]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all parts of a value; of a list, those of the first item."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list | tuple) and value:
        yield from places(value[0], (*path, 0))


MISSING = object()


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a value with the part at a path replaced or, for MISSING, removed."""
    key, *rest = path
    copied = list(value) if isinstance(value, tuple) else copy.copy(value)
    if rest:
        copied[key] = changed(copied[key], tuple(rest), new)
    elif new is MISSING:
        del copied[key]
    else:
        copied[key] = new
    return tuple(copied) if isinstance(value, tuple) else copied


def saved(run_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def refusal(monkeypatch: pytest.MonkeyPatch, content: Any) -> str | None:
    """The message with which the content of a file is refused; None if it is not."""
    monkeypatch.setattr("lit_lm.checkpoint._load", lambda path: content)
    try:
        checkpoint = read_checkpoint("x.ckpt")
        checkpoint.config(training=True)
        checkpoint.transformer()
    except ValueError as error:
        return str(error)
    return None


def test_whatever_a_part_is_replaced_by_is_used_or_refused_in_one_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, plain, tensors, used = saved(run_folder), [MISSING, *wrong_values()], wrong_tensors(), set()
    kinds = {(path[0], *path[-2:]): path for path in places(content)}  # the counters and the parameters are alike
    assert len(kinds) > 100
    for path in kinds.values():
        for value in (*plain, *(tensors if "state" in str(path[0]) else tensors[:2])):
            message = refusal(monkeypatch, changed(content, path, value))
            if message is None:
                used.add(path)
            else:
                assert len(message) < 1000
                assert not re.search(r"[\x00-\x1f\x7f-\x9f]", message)
    free = {path[0] for path in used if len(path) == 1}
    assert free == {
        "hparams_name", "datamodule_hparams_name", "datamodule_hyper_parameters", "LMDataModule", "callbacks",
        "optimizer_states", "lr_schedulers", "tokenizer", "model_class", "data_class", "lit_lm_version",
        "skipped_steps",
    }  # fmt: skip


def test_a_file_of_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (*wrong_values(), *wrong_tensors()):
        assert "x.ckpt was not written by lit-lm" in str(refusal(monkeypatch, value))


NET = ("hyper_parameters", "net")
OPTIMIZER = ("optimizer_states", 0)
HEAD = ("state_dict", "net.head.weight")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            (*NET, "vocab_size"),
            301,
            r"vocab_size 301, d_model 16 and num_layers 1 do not fit its 12 tensors, with an emb",
        ),
        ((*NET, "d_model"), 2**30, r"d_model 1073741824 and num_layers 1 do not fit"),
        ((*NET, "num_layers"), 10_000, r"num_layers 10000 do not fit"),
        ((*NET, "num_layers"), 2, r"state_dict\.net\.blocks\.1\.attention_norm\.weight is missing"),
        (
            (*NET, "num_kv_heads"),
            1,
            r"k_proj\.weight is torch\.float32 \[16, 16\], but the config asks for floats \[8, 16\]",
        ),
        ((*NET, "d_ff"), 65, r"gate_proj\.weight is .* asks for floats \[65, 16\]"),
        ((*NET, "mlp"), "gelu", r"state_dict has the unknown net\.blocks\.0\.feed_forward\.gate_proj\.weight"),
        ((*NET, "positions"), "learned", r"state_dict\.net\.position_embedding\.weight is missing"),
        ((*NET, "bias"), True, r"state_dict\.net\.blocks\.0\.attention\.q_proj\.bias is missing"),
        ((*NET, "tie_embeddings"), True, r"net\.tie_embeddings is True, but embedding and head differ"),
        ((*NET, "context_length"), 16, r"the data has context_length 32, but the model 16"),
        ((*NET, "context_length"), 2**30, r"context_length 1073741824 does not fit into the machine's memory"),
        ((*NET, "dropout"), 2.0, r"hyper_parameters\.net: dropout is 2\.0"),
        ((*NET, "d_model"), MISSING, r"d_model 512 and num_layers 1 do not fit"),  # the default
        ((*NET, "new"), 1, r"hyper_parameters\.net has the unknown name 'new'"),
        (HEAD, MISSING, r"state_dict\.net\.head\.weight is missing"),
        (HEAD, torch.zeros(300, 16, dtype=torch.int8), r"net\.head\.weight is torch\.int8 \[300, 16\], but the config"),
        (HEAD, torch.zeros(1).expand(300, 16), r"state_dict\.net\.head\.weight is larger than its memory"),
        (HEAD, torch.zeros(300, 16, device="meta"), r"head\.weight is a tensor of .* on the device meta"),
        (("state_dict", "more"), torch.zeros(1), r"state_dict has the unknown more"),
        (("global_step",), 13, r"global_step is 13, but its optimizer has taken 12 steps"),
        (("optimizer_states",), [], r"it has the states of 0 optimizers"),
        ((*OPTIMIZER, "param_groups", 0, "params"), [0, 0, 2, 3, 4, 5, 6], r"other parameters than its groups"),
        ((*OPTIMIZER, "state", 99), {}, r"other parameters than its groups"),
        (("pytorch-lightning_version",), MISSING, r"pytorch-lightning_version is missing"),
        (("pytorch-lightning_version",), "1.0.0", r"pytorch-lightning_version is '1\.0\.0'"),
        (("lit_lm_format",), torch.ones(2), r"was written by lit-lm 0\.2\.0; this version cannot read it"),
        (("tokenizer",), "{}", r"has a tokenizer that cannot be used"),
        (("model_class",), ESCAPE, r"model_class is 'a\\x1b\]0"),
        (("callbacks", "LossSpikes"), {"step": 12}, r"callbacks\.LossSpikes\.mean is missing"),
        (("loops", "fit_loop", "epoch_progress"), {}, r"loops\.fit_loop\.epoch_progress\.total is missing"),
        (("notes",), nested(100), r"it is nested more than 50 levels deep"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, path: tuple[Any, ...], value: Any, message: str
) -> None:
    assert re.search(message, str(refusal(monkeypatch, changed(saved(run_folder), path, value))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_of_another_precision_or_nan(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    content = saved(run_folder)
    for value in (content[HEAD[0]][HEAD[1]].to(dtype), torch.full((300, 16), math.nan)):
        assert refusal(monkeypatch, changed(content, HEAD, value)) is None


def test_tied_weights_are_read(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = changed(saved(run_folder), HEAD, saved(run_folder)["state_dict"]["net.embedding.weight"])
    assert refusal(monkeypatch, changed(content, (*NET, "tie_embeddings"), True)) is None


COMMANDS = {
    "fit": ("--trainer.max_steps=14", "--trainer.accelerator=cpu"),
    "validate": ("--trainer.accelerator=cpu",),
    "generate": ("The", "--max_new_tokens=2"),
    "predict": ("--prompt=The", "--max_new_tokens=2", "--trainer.accelerator=cpu"),
    "eval": ("--device=cpu",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_checkpoint_in_one_line(
    run_folder: Path, lit_lm: Command, tmp_path: Path, command: str
) -> None:
    content, path = saved(run_folder), tmp_path / "odd.ckpt"
    for place, value in (
        ((*NET, "num_layers"), 3), (HEAD, MATRIX.to_sparse()), (("loops",), None), (("tokenizer",), ESCAPE),
        (("hyper_parameters", "seed"), MISSING), (("datamodule_hyper_parameters", "source"), ESCAPE),
        (("LMDataModule", "digests"), [1]),
    ):  # fmt: skip
        torch.save(changed(content, place, value), path)
        message = lit_lm(command, "--ckpt_path", path, *COMMANDS[command], fails=True)
        assert message.startswith("lit-lm: error: ")
        assert message.count("\n") == 1
        assert message.strip().isprintable()


def test_fit_refuses_a_damaged_optimizer_and_starts_one_afresh_where_only_weights_were_saved(
    run_folder: Path, lit_lm: Command, tmp_path: Path
) -> None:
    content, path = saved(run_folder), tmp_path / "odd.ckpt"
    torch.save(changed(content, (*OPTIMIZER, "state", 7, "exp_avg"), torch.zeros(3)), path)
    assert (
        "the checkpoint's state of lit_lm.optim.muon.Muon is damaged: parameter 7 has no exp_avg that fits"
        in lit_lm("fit", "--ckpt_path", path, *COMMANDS["fit"], fails=True)
    )
    for name in ("optimizer_states", "lr_schedulers", "callbacks"):
        del content[name]
    torch.save(content, path)
    printed = lit_lm("fit", "--ckpt_path", path, *COMMANDS["fit"])
    assert "the checkpoint has the state of no optimizer; lit_lm.optim.muon.Muon starts from scratch" in printed
    assert "done: 14 steps" in printed
