"""Rows that join and leave a batch between two tokens."""

import random
from typing import Any

import pytest
import torch
from helpers.models import make

from lit_lm.inference.batch import Batch, Row, make_rows
from lit_lm.inference.continuation import Continuation
from lit_lm.inference.engine import Engine, TorchEngine, make_engine
from lit_lm.inference.generate import generate
from lit_lm.inference.sampling import SamplingConfig

END = 3
CONTROLS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.9, "frequency_penalty": 0.5},
    {"temperature": 1.0, "sliding_window": True},
]


@pytest.fixture(params=["C step", "PyTorch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    model = make(num_kv_heads=2)
    return make_engine(model) if request.param == "C step" else TorchEngine(model, torch.float32)


def alone(engine: Engine, prompt: list[int], sampling: SamplingConfig, seed: int) -> Continuation:
    ((continuation,),) = generate(engine, [prompt], sampling, seeds=[seed], end_id=END)
    return continuation


def test_a_row_becomes_the_same_whenever_it_joins(engine: Engine) -> None:
    rng = random.Random(0)
    batch, expected = Batch(engine, 6, END), dict[Row, Continuation]()
    seed = 0
    while batch.active() or seed < 24:
        if seed < 24 and len(batch.active()) < 5:
            controls = rng.choice(CONTROLS)
            most = 30 if "sliding_window" in controls else 6
            sampling = SamplingConfig(max_new_tokens=rng.randint(1, most), **controls)
            prompt = [rng.randrange(4, 40) for _ in range(rng.randint(1, 9))]
            (row,) = make_rows(engine.config, prompt, sampling, seed)
            expected[row] = alone(engine, prompt, sampling, seed)
            batch.join([row])
            seed += 1
        batch.step()
    for row, continuation in expected.items():
        assert (row.ids, row.ended) == (continuation.ids, continuation.ended)
        torch.testing.assert_close(row.log_probabilities, continuation.log_probabilities, atol=1e-5, rtol=0)


def test_a_row_that_the_caller_ends_leaves_room_for_another(engine: Engine) -> None:
    sampling = SamplingConfig(max_new_tokens=8, temperature=1.0)
    batch = Batch(engine, 2, END)
    first, second, third = (make_rows(engine.config, [5, 6, number], sampling, number)[0] for number in (7, 8, 9))
    batch.join([first, second])
    batch.step()
    first.ended = "stop"
    batch.join([third])
    while batch.active():
        batch.step()
    assert len(first.ids) <= 1
    assert second.ids == alone(engine, [5, 6, 8], sampling, 8).ids
    assert third.ids == alone(engine, [5, 6, 9], sampling, 9).ids


def test_a_logit_bias_forces_and_forbids_tokens(engine: Engine) -> None:
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
    usual = alone(engine, [5], sampling, 0).ids
    (forced,) = make_rows(engine.config, [5], sampling, 0, logit_bias={20: 1000.0})
    (forbidden,) = make_rows(engine.config, [5], sampling, 0, logit_bias={usual[0]: -1000.0})
    (free,) = make_rows(engine.config, [5], sampling, 0)
    batch = Batch(engine, 3, END)
    batch.join([forced, forbidden, free])
    while batch.active():
        batch.step()
    assert forced.ids == [20] * 6
    assert usual[0] not in forbidden.ids
    assert free.ids == usual
    with pytest.raises(ValueError, match="logit_bias has 40; token ids range from 0 to 39"):
        make_rows(engine.config, [5], sampling, 0, logit_bias={40: 1.0})
