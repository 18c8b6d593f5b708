"""Memory of the machine, to refuse what cannot fit before anything is built."""

import os
from pathlib import Path

import torch


def machine_memory(device_type: str = "cpu") -> int:
    """Bytes of memory of the GPU, or of the machine; in a container, the container's limit."""
    if device_type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    return memory


def check_memory(needed: int, purpose: str, remedy: str, device_type: str = "cpu") -> None:
    """Check that the memory suffices.

    Args:
        needed: Bytes that are needed at least.
        purpose: What needs them, with the values that decide it.
        remedy: What to change.
        device_type: Device whose memory is needed.

    Raises:
        ValueError: if there is less memory than that.
    """
    if needed > (memory := machine_memory(device_type)):
        raise ValueError(
            f"{purpose} needs at least {needed / 2**30:,.1f} GiB of memory, but there are {memory / 2**30:,.1f} GiB; "
            f"{remedy}"
        )
