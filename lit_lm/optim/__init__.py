"""Optimizers and learning-rate schedules: functions wrapped in thin classes. Depends only on torch."""

from lit_lm.optim.adamw import AdamW
from lit_lm.optim.fused import FusedOptimizer
from lit_lm.optim.groups import parameter_groups
from lit_lm.optim.muon import Muon
from lit_lm.optim.schedules import Schedule, WarmupCosine, WarmupStableDecay
from lit_lm.optim.sgd import SGDDecay

__all__ = [
    "AdamW",
    "FusedOptimizer",
    "Muon",
    "SGDDecay",
    "Schedule",
    "WarmupCosine",
    "WarmupStableDecay",
    "parameter_groups",
]
