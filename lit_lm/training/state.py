"""What a run knows of itself while it goes: written by one place each, read by all callbacks."""

import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RunState:
    """The present state of a run, `LitLM.run`."""

    folder: Path | None = None
    """The run's folder (RunFolder); None: where the Trainer logs."""
    tokens_per_step: int | None = None
    """Tokens per optimizer step over all devices; None until the first step, if the data does not say (LitLM)."""
    loss: float = math.nan
    """Training loss when it was last logged (LitLM)."""
    tokens_per_second: float | None = None
    """Of the steps since the last logged one; None while nobody measures it (Throughput)."""
    best_loss: float = math.inf
    """Lowest validation loss so far (CheckpointCallback)."""
    best_step: int = 0
    """Step of the lowest validation loss; 0: none yet (CheckpointCallback)."""
    files: dict[str, Path] = field(default_factory=dict)
    """What the run has written, under the names that the summary at its end gives it."""
