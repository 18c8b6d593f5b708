"""State of a run that its callbacks share."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from lit_lm.training.processes import HostCopy


@dataclass
class RunState:
    """Current state of a run, `LitLM.run`. Each field is written by the class in parentheses."""

    folder: Path | None = None
    """The run's folder (RunFolder); None: the Trainer's log_dir."""
    tokens_per_step: int | None = None
    """Tokens per step over all devices; None before the first step if `data_info` lacks it (LitLM)."""
    loss: float = math.nan
    """Training loss of the last step that was read from the device (LitLM)."""
    tokens_per_second: float | None = None
    """Training speed since the previous logged step; None: not measured (Throughput)."""
    requests: tuple[bool, bool] = (False, False)
    """Whether this process requests a stop, and a checkpoint (CheckpointCallback)."""
    shared_requests: HostCopy | None = None
    """For each of `requests`, the share of the processes that make it, as of the last step; None: there is one process
    (LitLM).
    """
    best_loss: float = math.inf
    """Lowest validation loss so far (CheckpointCallback)."""
    best_step: int = 0
    """Step of the lowest validation loss; 0: none yet (CheckpointCallback)."""
    files: dict[str, Path] = field(default_factory=dict)
    """Files that the run has written, by their names in the final summary (any callback)."""
