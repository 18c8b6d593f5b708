"""`lit-lm plan`: what a run of `lit-lm fit` needs, without running it."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import TypeVar

import torch

from lit_lm.cli.options import Parser
from lit_lm.cli.plan_options import Options
from lit_lm.data.option_problems import option_problems
from lit_lm.model.config import TransformerConfig, division_problems
from lit_lm.model.cost import flops_per_token
from lit_lm.planning.hardware import PAPER, this_machine
from lit_lm.planning.report import Run, report
from lit_lm.planning.setup import Setup
from lit_lm.planning.speed import assumed_step, measured_step
from lit_lm.training.hardware import best_precision, busy_load, flush_denormals, tune_malloc, worth_compiling

P = TypeVar("P", bound=ArgumentParser)
MEASURED = "measured"
EPILOG = """All options of fit are accepted, too: --config quick, --model.net.d_model 512, ...; see lit-lm fit --help.
Checkpoints (ckpt_path, init_from) are not read."""


def run(args: Sequence[str], description: str) -> None:
    """Run `lit-lm plan`.

    Raises:
        ValueError, OSError: if the arguments, or the files they name, are invalid.
    """
    parser = add_options(Parser("lit-lm plan", description=description, epilog=EPILOG))
    own, rest = parser.parse_known_args(args[1:])
    if own.devices is not None:
        rest.append(f"--trainer.devices={own.devices}")
    planned = planned_run(Options(rest), own.hardware)
    print("\n".join(report(planned)))
    if own.hardware == MEASURED and (load := busy_load()) is not None:
        print(f"\nother programs keep the CPUs busy (load {load:.1f}): without them, the run is faster")


def add_options(parser: P) -> P:
    """Add the command's own options to a parser; returns it."""
    hardware = "this machine, by a speed test, or a GPU on paper (default: measured)"
    parser.add_argument("--hardware", choices=[MEASURED, *PAPER], default=MEASURED, help=hardware)
    parser.add_argument("--devices", metavar="N", help="short for --trainer.devices; auto counts as 1")
    return parser


def planned_run(options: Options, hardware: str) -> Run:
    """The run that the options describe.

    Raises:
        ValueError: listing all invalid values, a line each.
    """
    net = _checked(options)
    devices, steps, size = _devices(options), _max_steps(options), _tensor_parallel_size(options)
    if problems := division_problems(net, size, devices):
        raise ValueError("\n".join(problems))
    groups = devices // size
    kind = "cuda" if hardware in PAPER else _device_type(str(options["trainer.accelerator"]))
    share, rest = divmod(options["data.batch_size"], groups)
    rows = options["data.micro_batch_size"] or max(1, share)
    if rest or share % rows:
        raise ValueError(
            f"batch_size {options['data.batch_size']} is not divisible by "
            f"{groups} {'devices' if size == 1 else 'tensor-parallel groups'} x micro_batch_size {rows}"
        )
    precision = options["trainer.precision"]
    if precision is None:
        precision = (
            "bf16-mixed" if hardware in PAPER else best_precision(str(options["trainer.accelerator"]), net.d_model)
        )
    setup = Setup(
        net,
        options.class_name("model.optimizer"),
        rows,
        share // rows,
        size,
        bfloat16="16" in str(precision),
        checkpointing=bool(options["model.activation_checkpointing"]),
        document_mask=bool(options["model.document_mask"]),
        period=_period(options),
        on_cpu=kind == "cpu",
    )
    compile = options["model.compile"]
    if compile is None:
        tokens = (steps or 0) * options["data.batch_size"] * net.context_length
        compile = worth_compiling(kind, tokens * flops_per_token(net))
    setup = replace(setup, compiled=compile)
    if hardware in PAPER:
        return Run(setup, devices, steps, PAPER[hardware], assumed_step(setup.part, PAPER[hardware]))
    flush_denormals()
    tune_malloc()
    return Run(setup, devices, steps, this_machine(kind), measured_step(setup.part, torch.device(kind)))


def _period(options: Options) -> int:
    """Muon's option of this name."""
    period = options.values.get("model.optimizer.period", Setup.period)
    if type(period) is not int or period < 1:
        raise ValueError(f"model.optimizer.period is {period}; it must be an integer of at least 1")
    return period


def _tensor_parallel_size(options: Options) -> int:
    """FullyShardedStrategy's option of this name; 1 for other strategies."""
    if options.class_name("trainer.strategy") != "FullyShardedStrategy":
        return 1
    size = options.values.get("trainer.strategy.tensor_parallel_size", 1)
    if type(size) is not int or size < 1:
        raise ValueError(f"tensor_parallel_size is {size}; it must be an integer of at least 1")
    return size


def _checked(options: Options) -> TransformerConfig:
    """The model's shape, if it and the options of the data are valid."""
    problems = []
    try:
        net = TransformerConfig(**options.group("model.net"))
    except ValueError as error:
        problems.append(str(error))
        net = TransformerConfig()
    data, source = options.group("data"), options["data.source"]
    special_tokens = data["special_tokens"] or []
    if not isinstance(special_tokens, list) or not all(isinstance(name, str) for name in special_tokens):
        problems.append(f"data.special_tokens is {special_tokens}; it must be a list of texts")
        special_tokens = []
    names = signature(option_problems).parameters.keys() - {"sources", "context_length", "special_tokens"}
    problems += option_problems(
        source if isinstance(source, Mapping) and "class_path" not in source else {"": 1.0},
        context_length=net.context_length,
        special_tokens=special_tokens,
        **{name: data[name] for name in names},
    )
    if problems:
        raise ValueError("\n".join(problems))
    return net


def _devices(options: Options) -> int:
    given = str(options["trainer.devices"])
    nodes: int = options["trainer.num_nodes"]
    if given != "auto" and not (given.isdecimal() and int(given) >= 1):
        raise ValueError(f"trainer.devices is {given}; to plan a run, it must be auto or a number from 1")
    if nodes < 1:
        raise ValueError(f"trainer.num_nodes is {nodes}; it must be at least 1")
    return nodes * (1 if given == "auto" else int(given))


def _max_steps(options: Options) -> int | None:
    """Steps of the run; None: they depend on the data."""
    steps: int = options["trainer.max_steps"]
    if steps == 0:
        raise ValueError("the run has 0 steps: trainer.max_steps must be at least 1")
    return steps if steps > 0 else None


def _device_type(accelerator: str) -> str:
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
