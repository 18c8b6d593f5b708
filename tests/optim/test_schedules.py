"""The schedules against their formulas, the cosine against torch's LinearLR and CosineAnnealingLR in sequence."""

from itertools import pairwise

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from lit_lm.optim import Schedule, WarmupCosine, WarmupStableDecay
from lit_lm.optim.schedules import warmup_cosine, warmup_stable_decay
from lit_lm.training.resume import go_to_step


def factors(num_steps: int, warmup_steps: int, max_steps: int, min_ratio: float) -> list[float]:
    return [
        warmup_cosine(step, warmup_steps=warmup_steps, max_steps=max_steps, min_ratio=min_ratio)
        for step in range(num_steps)
    ]


def sgd(*rates: float) -> Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates], lr=0.0)


def run(scheduler: LRScheduler, num_steps: int) -> list[list[float]]:
    """The learning rate of each group at each of the next updates."""
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 11),
        (4, 5 / 11),
        (9, 10 / 11),
        (10, 1.0),  # the peak
        (60, 0.6),  # halfway: the mean of 1 and 0.2
        (110, 0.2),  # the end
        (111, 0.2),
        (100_000, 0.2),
    ],
)
def test_warmup_cosine_at_key_steps(step: int, factor: float) -> None:
    assert warmup_cosine(step, warmup_steps=10, max_steps=110, min_ratio=0.2) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(("warmup_steps", "max_steps"), [(0, 50), (1, 50), (10, 50), (49, 50), (50, 50)])
@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 1.0])
def test_warmup_cosine_rises_to_one_then_falls_to_min_ratio(
    warmup_steps: int, max_steps: int, min_ratio: float
) -> None:
    curve = factors(70, warmup_steps, max_steps, min_ratio)
    rise, fall = curve[: warmup_steps + 1], curve[warmup_steps : max_steps + 1]
    assert rise[-1] == 1
    assert all(earlier < later for earlier, later in pairwise(rise))
    assert all(earlier >= later for earlier, later in pairwise(fall))
    assert curve[max_steps + 1 :] == pytest.approx([min_ratio] * 19)
    assert all(0 < factor <= 1 for factor in rise)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 11),
        (9, 10 / 11),
        (10, 1.0),  # the peak
        (74, 1.0),
        (75, 1.0),  # a quarter of 100 is left
        (80, 0.84),
        (99, 0.232),
        (100, 0.2),  # the end
        (100_000, 0.2),
    ],
)
def test_warmup_stable_decay_at_key_steps(step: int, factor: float) -> None:
    options = {"warmup_steps": 10, "max_steps": 100, "decay_fraction": 0.25, "min_ratio": 0.2}
    assert warmup_stable_decay(step, **options) == pytest.approx(factor, abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay_fraction", [0.0, 0.5, 1.0])
def test_warmup_stable_decay_schedule_matches_its_formula(decay_fraction: float) -> None:
    ours = run(WarmupStableDecay(sgd(0.4), 5, decay_fraction, 0.1, 30), 35)
    options = {"warmup_steps": 5, "max_steps": 30, "decay_fraction": decay_fraction, "min_ratio": 0.1}
    assert ours == [[pytest.approx(0.4 * warmup_stable_decay(step, **options))] for step in range(35)]  # type: ignore[arg-type]
    assert ours[29][0] >= 0.4 * 0.1


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupStableDecay])
def test_a_schedule_can_jump_to_any_step(schedule: type[Schedule]) -> None:
    straight = run(schedule(sgd(0.4), max_steps=200), 180)  # type: ignore[call-arg, arg-type]
    scheduler = schedule(sgd(0.4), max_steps=200)  # type: ignore[call-arg, arg-type]
    go_to_step(scheduler, 150)
    assert run(scheduler, 30) == straight[150:]


def test_a_run_without_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, warmup_steps=0, max_steps=10, min_ratio=0.1) == 1


@pytest.mark.parametrize(("warmup_steps", "max_steps", "min_ratio"), [(5, 30, 0.1), (1, 8, 0.0), (12, 13, 0.5)])
def test_warmup_cosine_schedule_matches_its_formula_and_torch(
    warmup_steps: int, max_steps: int, min_ratio: float
) -> None:
    peak = 0.4
    ours = run(WarmupCosine(sgd(peak), warmup_steps, min_ratio, max_steps), max_steps + 1)
    assert ours == [[pytest.approx(peak * f)] for f in factors(max_steps + 1, warmup_steps, max_steps, min_ratio)]

    optimizer = sgd(peak)
    rise = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    fall = CosineAnnealingLR(optimizer, T_max=max_steps - warmup_steps, eta_min=peak * min_ratio)
    theirs = run(SequentialLR(optimizer, [rise, fall], milestones=[warmup_steps]), max_steps + 1)
    assert ours == [[pytest.approx(rate)] for (rate,) in theirs]


def test_every_group_keeps_its_own_peak() -> None:
    rates = run(WarmupCosine(sgd(0.4, 4.0), warmup_steps=2, max_steps=9), 12)
    assert [second for _, second in rates] == pytest.approx([10 * first for first, _ in rates])


def test_a_restored_schedule_continues_with_the_same_rates() -> None:
    straight = run(WarmupCosine(sgd(0.4), warmup_steps=3, max_steps=12), 15)
    scheduler = WarmupCosine(sgd(0.4), warmup_steps=3, max_steps=12)
    run(scheduler, 5)
    resumed = WarmupCosine(scheduler.optimizer, warmup_steps=3, max_steps=12)
    resumed.load_state_dict(scheduler.state_dict())
    resumed.optimizer.load_state_dict(scheduler.optimizer.state_dict())
    run(resumed, 1)
    assert run(resumed, 9) == straight[6:]


def test_a_restored_schedule_uses_the_new_config() -> None:
    scheduler = WarmupCosine(sgd(0.4), warmup_steps=3, max_steps=12)
    run(scheduler, 5)
    longer = WarmupCosine(sgd(0.8), warmup_steps=3, min_ratio=0.0, max_steps=100)
    longer.load_state_dict(scheduler.state_dict())
    run(longer, 1)
    assert run(longer, 2) == [[pytest.approx(0.8 * factor)] for factor in factors(8, 3, 100, 0.0)[6:]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        ({"min_ratio": -0.1}, "min_ratio is -0.1; it must be between 0 and 1"),
        ({"min_ratio": 1.1}, "min_ratio is 1.1; it must be between 0 and 1"),
    ],
)
def test_values_out_of_range_are_rejected(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        WarmupCosine(sgd(0.4), **values)


def test_a_decay_longer_than_the_run_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"^decay_fraction is 1\.5; it must be between 0 and 1$"):
        WarmupStableDecay(sgd(0.4), decay_fraction=1.5)
