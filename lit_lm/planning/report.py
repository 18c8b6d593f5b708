"""The report of `lit-lm plan`."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from lit_lm.model.cost import flops_per_token, parameters_by_part
from lit_lm.planning.compute import TOKENS_PER_PARAMETER, compute_optimal
from lit_lm.planning.hardware import Hardware
from lit_lm.planning.memory import Memory, step_memory
from lit_lm.planning.setup import Setup
from lit_lm.planning.speed import StepTime

HOUR = 3600.0
WIDTH = 100
MOST_ROWS = 2**16
"""Largest micro-batch that is considered, other than the whole batch."""


@dataclass(frozen=True)
class Run:
    """A planned run."""

    setup: Setup
    devices: int
    max_steps: int | None
    """Optimizer steps; None: unknown."""
    hardware: Hardware
    time: StepTime
    """Time of an optimizer step of one device that has the hardware for itself."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step over all devices."""
        return self.setup.num_tokens * self.setup.micro_batches * self.groups

    @property
    def groups(self) -> int:
        """Devices, or tensor-parallel groups, which share the sequences of a step."""
        return self.devices // self.setup.tensor_parallel

    @property
    def flops(self) -> float | None:
        """FLOPs of the run."""
        if self.max_steps is None:
            return None
        return self.max_steps * self.tokens_per_step * flops_per_token(self.setup.net)

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimizer step. Processes on one CPU share its cores."""
        return self.time.total * (self.devices if self.hardware.is_cpu else 1)

    def fits(self, memory: Memory) -> bool:
        """Whether a step with this memory per device fits."""
        return memory.total * (self.devices if self.hardware.is_cpu else 1) <= self.hardware.memory


def report(run: Run) -> list[str]:
    """Lines of the report."""
    parts = (_parameters(run), _length(run), _memory(run), _time(run), _optimal(run))
    return [line for part in parts for line in ("", *part)][1:]


def _parameters(run: Run) -> Iterator[str]:
    yield "parameters"
    counts = parameters_by_part(run.setup.net)
    yield from _table([[name, f"{number:,}"] for name, number in (counts | {"total": sum(counts.values())}).items()])


def _length(run: Run) -> Iterator[str]:
    flops, each = run.flops, flops_per_token(run.setup.net)
    yield f"{run.tokens_per_step:,} tokens per step, {each:.3g} FLOPs per token"
    if run.max_steps is None or flops is None:
        yield "the number of steps depends on the data; set --trainer.max_steps to plan the whole run"
        return
    tokens = run.max_steps * run.tokens_per_step
    per_parameter = tokens / run.setup.parameters
    yield f"{run.max_steps:,} steps: {tokens:,} tokens ({per_parameter:.3g} per parameter), {flops:.3g} FLOPs"


def _memory(run: Run) -> Iterator[str]:
    columns = _columns(run)
    kind = f"{'bf16-mixed' if run.setup.bfloat16 else '32-true'}, {'compiled' if run.setup.compiled else 'eager'}"
    yield f"MiB per device, {kind}, micro_batch_size {run.setup.rows}"
    found = [asdict(memory) | {"total": memory.total} for memory in (_at(run, *column) for column in columns.values())]
    names = [name for name in found[0] if any(memory[name] for memory in found)]
    rows = [["", *columns], *([name, *(f"{memory[name] / 2**20:,.0f}" for memory in found)] for name in names)]
    yield from _table(rows)
    room = f"{run.hardware.memory / 2**30:,.1f} GiB of {run.hardware.name}"
    yield f"total at other micro_batch_sizes; ! does not fit into the {room}"
    rows = []
    for size in micro_batch_sizes(run.setup.rows * run.setup.micro_batches, run.setup.rows):
        totals = [_at(run, *column, rows=size) for column in columns.values()]
        rows.append([f"{size}", *(f"{'' if run.fits(m) else '! '}{m.total / 2**20:,.0f}" for m in totals)])
    yield from _table(rows)


def _columns(run: Run) -> dict[str, tuple[bool, int]]:
    """For each column: activation checkpointing, and the number of devices that share the state."""
    if run.devices == 1:
        return {"one device": (False, 1), "checkpointing": (True, 1)}
    if (size := run.setup.tensor_parallel) == 1:
        strategies = {"ddp": 1, "fsdp": run.devices}
    else:
        strategies = {f"tensor parallel {size}{', fsdp' if run.groups > 1 else ''}": run.groups}
    return {
        f"{name}{', checkpointing' if checkpointing else ''}": (checkpointing, shards)
        for name, shards in strategies.items()
        for checkpointing in (False, True)
    }


def _at(run: Run, checkpointing: bool, shards: int, rows: int | None = None) -> Memory:
    setup = replace(run.setup, checkpointing=checkpointing, rows=rows or run.setup.rows)
    return step_memory(setup, shards)


def micro_batch_sizes(share: int, chosen: int) -> list[int]:
    """Divisors of a device's share of the batch: each at least twice the one before, with `chosen` and the whole."""
    sizes: list[int] = []
    for size in [*range(1, min(share, MOST_ROWS)), share]:
        if share % size == 0 and (not sizes or size >= 2 * sizes[-1] or size in (chosen, share)):
            sizes.append(size)
    return sizes


def _time(run: Run) -> Iterator[str]:
    hardware, seconds = run.hardware, run.step_seconds
    units = 1 if hardware.is_cpu else run.devices
    yield f"{run.tokens_per_step / seconds:,.0f} tokens/s, {shown_time(seconds)} per step on {units} x {hardware.name}"
    if run.max_steps is not None:
        hours = run.max_steps * seconds / HOUR
        energy, money = units * hours * hardware.watts / 1000, units * hours * hardware.price
        yield f"{shown_time(hours * HOUR)}, {energy:.3g} kWh, {money:.3g} US dollars, without validation"
    peak = hardware.peak if run.setup.bfloat16 else hardware.peak32
    rate = f", {hardware.reached:.0%} of {peak / 1e12:.3g} TFLOP/s" if peak else ""
    yield f"  with {hardware.watts:.0f} W and {hardware.price:.3g} dollars per hour for each{rate}"
    yield from textwrap.wrap(hardware.sources, WIDTH, initial_indent="  ", subsequent_indent="  ")


def shown_time(seconds: float) -> str:
    """A duration in the largest unit that gives at least 1, up to days."""
    for unit, size in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:.1f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _optimal(run: Run) -> Iterator[str]:
    if run.flops is None:
        return
    parameters, tokens = compute_optimal(run.flops)
    yield f"compute-optimal for these FLOPs, {TOKENS_PER_PARAMETER} tokens per parameter (Hoffmann et al. 2022):"
    yield f"  {shown_count(parameters)} parameters, {shown_count(tokens)} tokens"


def shown_count(number: float) -> str:
    """A number in millions, or billions."""
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield f"  {'  '.join([name.ljust(widths[0]), *aligned])}".rstrip()
