"""What is known of hardware, and what is assumed of it."""

import os
from dataclasses import dataclass

import torch

from lit_lm.memory import machine_memory


@dataclass(frozen=True)
class Hardware:
    """A device on paper, or this machine."""

    name: str
    memory: int
    """Bytes of a device."""
    watts: float
    """Power of a device under load."""
    price: float
    """US dollars per device and hour."""
    sources: str
    """Where the numbers come from, and which are assumed."""
    peak: float = 0.0
    """FLOP/s of matrix products in bfloat16, dense; 0: measured."""
    peak32: float = 0.0
    """The same in float32, without TF32, which lit-lm does not turn on."""
    reached: float = 0.0
    """Fraction of the peak that training reaches."""
    is_cpu: bool = False
    """Whether all devices are processes on this one machine."""


PAPER = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            "a100",
            memory=80 * 10**9,
            watts=400,
            price=1.75,
            peak=312e12,
            peak32=19.5e12,
            reached=0.55,
            sources="peak, memory, watts: NVIDIA's data sheet of the A100 80GB SXM; dollars: 14 for 8 (Lambda, 2024); "
            "fraction of the peak: assumed, 0.52 to 0.63 in published runs",
        ),
        Hardware(
            "h100",
            memory=80 * 10**9,
            watts=700,
            price=3.0,
            peak=989e12,
            peak32=67e12,
            reached=0.45,
            sources="peak, memory, watts: NVIDIA's data sheet of the H100 SXM; dollars: 24 for 8 (nanochat, 2025); "
            "fraction of the peak: assumed, 0.39 to 0.51 in published runs",
        ),
    )
}
"""GPUs that a run can be planned for without having one."""

CORE_WATTS, CORE_PRICE = 6.0, 0.04
"""Assumed of each core of this machine: watts, and US dollars per hour of a cloud machine."""
GPU_WATTS, GPU_PRICE = 400.0, 2.0
"""Assumed of each GPU of this machine."""


def this_machine(device_type: str) -> Hardware:
    """This machine's CPU, or one of its GPUs."""
    if device_type == "cuda":
        watts, price, what = GPU_WATTS, GPU_PRICE, f"a {torch.cuda.get_device_name(0)} of this machine"
    else:
        cores = os.cpu_count() or 1
        watts, price, what = cores * CORE_WATTS, cores * CORE_PRICE, f"this machine, {device_type}, {cores} cores"
    sources = "watts and dollars per hour: assumed"
    return Hardware(what, machine_memory(device_type), watts, price, sources, is_cpu=device_type != "cuda")
