"""`lit-lm plan`: its options are those of `lit-lm fit`, and its report follows from them."""

import re
from dataclasses import fields
from typing import Any

import pytest
from conftest import Command

from lit_lm.cli import plan
from lit_lm.cli.completion_script import actions, parsers
from lit_lm.cli.known_options import known_options
from lit_lm.cli.plan_options import CLASSES, Options
from lit_lm.cli.recipes import recipes
from lit_lm.model.config import TransformerConfig
from lit_lm.planning import speed
from lit_lm.planning.memory import optimizer_memory
from lit_lm.planning.report import micro_batch_sizes

H100 = ("plan", "--hardware=h100")
SMALL = ("--config=small", "--data.batch_size=16")


@pytest.fixture(scope="module")
def of_fit() -> dict[str, Any]:
    """The options of the parser of `fit`, with their defaults."""
    parser = parsers()["fit"]
    defaults = parser.get_defaults().as_dict()  # type: ignore[attr-defined]
    names = [action.dest for action in actions(parser) if action.option_strings]
    found: dict[str, Any] = {}
    for name in names:
        value: Any = defaults
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[name] = value
    return found


def test_options_and_defaults_are_those_of_fit(of_fit: dict[str, Any]) -> None:
    known = known_options()
    ours = known.keys() - {"model.net"}
    theirs = {name for name in of_fit if not name.endswith(".help") and name not in ("help", "config", "print_config")}
    assert ours == theirs
    net = {f"model.net.{field.name}" for field in fields(TransformerConfig)}
    read = ["data.batch_size", "data.micro_batch_size", "data.val_fraction", "data.num_workers", "data.stride",
            "trainer.max_steps", "trainer.devices", "trainer.num_nodes", "trainer.precision", "trainer.accelerator",
            "model.compile", "model.activation_checkpointing", "model.document_mask"]  # fmt: skip
    for name in [*read, *net]:
        assert known[name].default == of_fit[name]
    for name, kind in CLASSES.items():
        assert of_fit[name] == kind or of_fit[name]["class_path"] == f"lit_lm.optim.{kind}"


@pytest.mark.parametrize("name", [name for name in recipes() if "/" not in name])
def test_every_recipe_can_be_planned(name: str, lit_lm: Command) -> None:
    text = lit_lm(*H100, "--config", name)
    assert re.search(r"^  total +[\d,]+$", text, re.MULTILINE)
    assert "compute-optimal" in text or "set --trainer.max_steps" in text


@pytest.mark.parametrize(
    "args",
    [
        ["--model.net.d_modle=64"],
        ["--config={data: {batchsize: 4}}"],
        ["--model.net.d_model=64.5"],
        ["--trainer.max_steps=1,5"],
        ["--model.optimizer=AdamX"],
        ["--data.window_order=shufled"],
        ["--seed=nan"],
        ["--model.optimizer.lrr=1"],
        ["--config={model: {optimizer: {class_path: AdamW, init_args: {momentum: 0.9}}}}"],
        ["small"],
        ["--model.net.d_model=30", "--model.net.num_heads=4", "--data.micro_batch_size=5"],
    ],
    ids=" ".join,
)
def test_mistakes_are_reported_as_by_fit(args: list[str], lit_lm: Command) -> None:
    given = ["--trainer.max_steps=1", *args] if "max_steps" not in args[0] else args
    assert lit_lm(*H100, *given, fails=True) == lit_lm("fit", *given, fails=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config={model: {optimizer: {class_path: Muon, init_args: 5}}}", "optimizer.init_args is 5; it must be"),
        ("--data.special_tokens=5", "data.special_tokens is 5; it must be a list of texts"),
        ("--data.special_tokens=[1]", "data.special_tokens is [1]; it must be a list of texts"),
    ],
)
def test_values_of_another_kind_are_reported(option: str, message: str, lit_lm: Command) -> None:
    assert message in lit_lm(*H100, option, fails=True)


def test_a_module_is_no_class(lit_lm: Command) -> None:
    options = ["--model.optimizer=lit_lm.optim.adamw", "--model.optimizer.lr=1"]
    assert "there is no optimizer adamw; did you mean AdamW?" in lit_lm(*H100, *options, fails=True)


def test_no_arguments_of_a_class_are_its_defaults(lit_lm: Command) -> None:
    empty = "--config={model: {optimizer: {init_args: }}}"
    assert lit_lm(*H100, "--config=quick", empty) == lit_lm(*H100, "--config=quick")


def test_several_problems_are_reported_at_once(lit_lm: Command) -> None:
    message = lit_lm(*H100, "--data.stride=x", "--data.foo=1", fails=True)
    assert message.count("\n") == 2


def test_options_override_configs_in_any_order() -> None:
    config = "--config={model: {optimizer: {class_path: Muon, init_args: {lr: 0.1}}, net: sizes/tiny}}"
    options = Options(["--model.net.d_model", "64", "--model.optimizer=AdamW", "--model.compile", config])
    assert options.group("model.net")["d_model"] == 64
    assert options.group("model.net")["qk_norm"] is True
    assert options.class_name("model.optimizer") == "AdamW"
    assert options["model.compile"] is True


def test_the_period_of_muon_is_that_of_the_run(lit_lm: Command) -> None:
    given = ["--config=quick", "--model.optimizer.period"]
    setups = [plan.planned_run(Options([*given, str(period)]), "h100").setup for period in (1, 4)]
    assert [setup.period for setup in setups] == [1, 4]
    assert optimizer_memory(setups[0]) > optimizer_memory(setups[1])
    message = lit_lm(*H100, *given, "0", fails=True)
    assert "model.optimizer.period is 0; it must be an integer of at least 1" in message


def test_the_users_own_classes_are_not_imported(lit_lm: Command) -> None:
    own = ["--model=mylab.Model", "--model.own_option=1", "--model.optimizer=mylab.Lion", "--model.optimizer.x=1"]
    assert "total" in lit_lm(*H100, "--config=quick", *own)


def row(text: str, name: str) -> list[int]:
    """Numbers in the first row of the tables that begins with `name`."""
    (found,) = re.findall(rf"^  {name} +([\d, ]+)$", text, re.MULTILINE)[:1]
    return [int(number.replace(",", "")) for number in found.split()]


def test_the_report_by_hand(lit_lm: Command) -> None:
    text = lit_lm(*H100, *SMALL, "--trainer.max_steps=1000")
    assert row(text, "embedding") == [10_000 * 512]
    assert row(text, "weights") == [round(4 * 22_696_448 / 2**20)] * 2
    assert "4,096 tokens per step" in text
    tokens, flops = 4_096_000, 6 * (22_696_448 - 10_000 * 512 - 4608) + 12 * 4 * 512 * 256
    assert f"1,000 steps: {tokens:,} tokens" in text
    assert f"{tokens * flops:.3g} FLOPs" in text
    (speed,) = re.findall(r"^([\d,]+) tokens/s", text, re.MULTILINE)
    seconds = 4096 * flops / (0.45 * 989e12) + 0.85e-3
    assert int(speed.replace(",", "")) == pytest.approx(4096 / seconds, rel=1e-3)


def test_devices_share_the_batch_and_fsdp_the_state(lit_lm: Command) -> None:
    text = lit_lm(*H100, *SMALL, "--devices=4", "--data.micro_batch_size=2")
    assert "fsdp, checkpointing" in text
    one, _, shared, _ = row(text, "optimizer")
    assert one == pytest.approx(4 * shared, abs=2)
    assert re.findall(r"^  (\d+) +(?:[\d,]+ *){4}$", text, re.MULTILINE) == ["1", "2", "4"]
    message = lit_lm(*H100, *SMALL, "--devices=3", fails=True)
    assert "batch_size 16 is not divisible by 3 devices x micro_batch_size 8" in message


TENSOR_PARALLEL = "--trainer=strategies/tensor-parallel"


def test_tensor_parallel_groups_share_the_batch_and_the_model(lit_lm: Command) -> None:
    text = lit_lm(*H100, *SMALL, TENSOR_PARALLEL, "--devices=4", "--data.micro_batch_size=2")
    assert "tensor parallel 2, fsdp  tensor parallel 2, fsdp, checkpointing" in text
    assert "4,096 tokens per step" in text
    assert re.findall(r"^  (\d+) +(?:[\d,]+ *){2}$", text, re.MULTILINE) == ["1", "2", "4", "8"]
    one, _, shared, _ = row(lit_lm(*H100, *SMALL, "--devices=4", "--data.micro_batch_size=2"), "optimizer")
    assert row(text, "optimizer")[0] == pytest.approx(shared, abs=1)
    assert one == pytest.approx(4 * shared, abs=2)


def test_the_time_of_tensor_parallel_devices_is_that_of_as_many_others() -> None:
    given = [*SMALL, "--trainer.devices=4", "--data.micro_batch_size=2"]
    runs = [plan.planned_run(Options(args), "h100") for args in (given, [*given, TENSOR_PARALLEL])]
    assert runs[1].tokens_per_step == runs[0].tokens_per_step
    assert runs[1].time.blocks == pytest.approx(runs[0].time.blocks)
    assert runs[1].time.head == pytest.approx(runs[0].time.head)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([TENSOR_PARALLEL, "--devices=3"], "2, which does not divide the number of processes, 3"),
        ([TENSOR_PARALLEL, "--devices=2", "--model.net.d_ff=65"], "d_ff is 65, which tensor_parallel_size 2"),
        (
            ["--trainer.strategy=lit_lm.training.sharding.FullyShardedStrategy",
             "--trainer.strategy.init_args.tensor_parallel_size=0"],
            "tensor_parallel_size is 0; it must be an integer of at least 1",
        ),
        ([TENSOR_PARALLEL, "--devices=12"], "batch_size 16 is not divisible by 6 tensor-parallel groups"),
        (["--trainer=strategies/none"], "there is no config strategies/none"),
    ],
)  # fmt: skip
def test_groups_that_cannot_share_are_named(given: list[str], message: str, lit_lm: Command) -> None:
    assert message in lit_lm(*H100, *SMALL, *given, fails=True)


def test_what_does_not_fit_is_marked(lit_lm: Command) -> None:
    text = lit_lm(*H100, "--config=gpt2-124m", "--data.micro_batch_size=480")
    largest = text[text.index("total at other") :]
    assert re.search(r"^  480 +! [\d,]+ +[\d,]+$", largest, re.MULTILINE)
    assert re.search(r"^  1 +[\d,]+ +[\d,]+$", largest, re.MULTILINE)


@pytest.mark.parametrize(
    ("share", "chosen", "sizes"),
    [(60, 12, [1, 2, 4, 10, 12, 30, 60]), (7, 7, [1, 7]), (1, 1, [1]), (2**40, 2, [*(2**n for n in range(16)), 2**40])],
)
def test_micro_batches_divide_the_batch(share: int, chosen: int, sizes: list[int]) -> None:
    assert micro_batch_sizes(share, chosen) == sizes


def test_without_max_steps_it_says_what_is_missing(lit_lm: Command) -> None:
    text = lit_lm(*H100, "--config=full")
    assert "set --trainer.max_steps" in text
    assert "kWh" not in text


def test_a_speed_test_gives_the_time_here(lit_lm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "WORK", {False: 1e5, True: 1e5})
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    text = lit_lm("plan", "--config=quick", "--trainer.accelerator=cpu", "--model.compile=false")
    assert "32-true, eager" in text
    assert row(text, "libraries")[0] > 256
    assert re.search(r"tokens/s, .* per step on 1 x this machine, cpu, \d+ cores$", text, re.MULTILINE)


def test_help_names_the_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan.run(["plan", "--help"], "")
    assert "{measured,a100,h100}" in capsys.readouterr().out
