"""The engines against the Transformer's forward pass, with and without step.c; int8; compilation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args

import pytest
import torch
from helpers.models import KINDS, VARIANTS, make
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_lm.inference.engine import Cache, Engine, make_engine
from lit_lm.inference.native import support
from lit_lm.inference.weights import quantize
from lit_lm.kernels import build
from lit_lm.model.config import MLP, Norm, Positions, TransformerConfig
from lit_lm.model.transformer import Transformer

ROWS = (1, 3, 17)  # a few, and more than a tile
WEIGHTS = ("float32", "bfloat16", "int8")


@pytest.fixture
def reload() -> Iterator[Callable[[], Any]]:
    """Loads step.c again. Each loaded library is compared with the model anew."""

    def load() -> Any:
        build.load.cache_clear()
        return build.load("step")

    yield load
    build.load.cache_clear()


@pytest.fixture(params=["step.c", "step.c for any processor", "torch"])
def engine_kind(request: pytest.FixtureRequest, reload: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "step.c for any processor":
        monkeypatch.setattr(build, "FLAGS", ([],))
    if request.param == "torch":
        monkeypatch.setenv("CC", "no-such-compiler")
    if reload() is None and request.param != "torch":
        pytest.skip("no C compiler")


def rounded(model: Transformer, weights: str) -> Transformer:
    """The model with its matrices rounded as the engine stores them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "position" not in name and weights == "bfloat16":
                parameter.copy_(parameter.bfloat16())
            elif parameter.ndim == 2 and "position" not in name and weights == "int8":
                values, scale = quantize(parameter)
                parameter.copy_(values * scale.unsqueeze(1))
    return model


def decode(engine: Engine, ids: torch.Tensor, prompt_sizes: list[int], cache: Cache) -> list[torch.Tensor]:
    """Logits of each row for its prompt and then one id at a time; prompt_sizes are the lengths of the prompts."""
    logits = [[engine.prefill(ids[row, :size].tolist(), cache, row)] for row, size in enumerate(prompt_sizes)]
    for t in range(ids.shape[1] - max(prompt_sizes)):
        step = engine.step([int(ids[row, size + t]) for row, size in enumerate(prompt_sizes)], cache)
        for row, each in enumerate(step):
            logits[row].append(each.clone())
    return [torch.stack(each) for each in logits]


@pytest.mark.usefixtures("engine_kind")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_match_the_model_for_rows_of_different_lengths(variant: str, weights: Any) -> None:
    model = make(**VARIANTS[variant])
    engine = make_engine(model, weights)
    context = model.config.context_length
    tolerance = 1e-5 if weights == "float32" or build.load("step") is None else 0.05  # or bfloat16 inputs
    for rows in ROWS:
        sizes = [1 + row % 5 for row in range(rows)]
        ids = torch.randint(model.config.vocab_size, (rows, context))
        with torch.no_grad():
            expected = rounded(model, weights)(ids)
        for row, logits in enumerate(decode(engine, ids, sizes, engine.new_cache(rows))):
            full = expected[row, sizes[row] - 1 :][: len(logits)]
            assert_close(logits, full, atol=tolerance * float(full.abs().max()), rtol=0)
        assert_close(engine.logits(ids), expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.usefixtures("engine_kind")
@pytest.mark.parametrize("gate", [-80.0, -100.0, -1000.0, 1000.0])
def test_extreme_gates_do_not_overflow(gate: float) -> None:
    model = make(bias=True)
    with torch.no_grad():
        for block in model.blocks:
            block.feed_forward.gate_proj.bias.fill_(gate)
        expected = model(torch.tensor([[3, 4]]))[0]
    engine = make_engine(model, "float32")
    (logits,) = decode(engine, torch.tensor([[3, 4]]), [1], engine.new_cache(1))
    assert_close(logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.usefixtures("engine_kind")
def test_select_rows_keeps_the_given_rows_in_the_given_order() -> None:
    model = make()
    engine = make_engine(model)
    cache = engine.new_cache(3)
    for row, prompt in enumerate([[1], [2, 3], [4, 5, 6]]):
        engine.prefill(prompt, cache, row)
    for kept, prompts in (([2, 0], [[4, 5, 6], [1]]), ([1, 0, 1], [[1, 7], [4, 5, 6, 7], [1, 7]])):
        cache.select_rows(kept)
        assert cache.lengths == [len(prompt) for prompt in prompts]
        with torch.no_grad():
            expected = [model(torch.tensor([[*prompt, 7]]))[0, -1] for prompt in prompts]
        assert_close(engine.step([7] * len(prompts), cache), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("engine_kind")
def test_prefill_replaces_the_tokens_of_its_row() -> None:
    engine = make_engine(make())
    cache = engine.new_cache(1)
    engine.prefill([9, 8, 7, 6], cache, 0)
    engine.prefill([1, 2], cache, 0)
    fresh = engine.new_cache(1)
    engine.prefill([1, 2], fresh, 0)
    assert_close(engine.step([3], cache), engine.step([3], fresh), atol=0, rtol=0)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_row_does_not_depend_on_other_rows_or_on_how_its_tokens_are_fed(weights: Any) -> None:
    if build.load("step") is None:
        pytest.skip("no C compiler")
    engine = make_engine(make(vocab_size=43, num_kv_heads=2), weights)
    ids = torch.randint(43, (35, engine.config.context_length))
    expected = engine.logits(ids)
    for rows in (1, 2, 3, 5, 16, 35):
        cache = engine.new_cache(rows)
        for row, logits in enumerate(decode(engine, ids[:rows], [4] * rows, cache)):
            assert torch.equal(logits, expected[row, 3:])


def test_autocast_sets_the_stored_dtype_but_not_the_arithmetic() -> None:
    model, ids = make(), torch.tensor([[1, 2, 3]])
    assert make_engine(model).stored_dtype == torch.float32
    assert make_engine(make().half()).stored_dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_engine(model).stored_dtype == torch.bfloat16
        inside = make_engine(model, "float32").logits(ids)
    assert_close(inside, make_engine(model, "float32").logits(ids), atol=0, rtol=0)


def test_the_engine_is_the_same_under_autocast(reload: Callable[[], Any]) -> None:
    reload()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = make_engine(make(), "float32")
    reload()
    assert type(inside) is type(make_engine(make(), "float32"))


@pytest.mark.usefixtures("engine_kind")
def test_the_engine_does_not_depend_on_the_default_dtype(reload: Callable[[], Any]) -> None:
    """Lightning sets it with precision bf16-true; step.c always writes float32."""
    model, ids = make(), torch.randint(40, (2, 16))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        reload()
        torch.set_default_dtype(dtype)
        try:
            engine = make_engine(model)
            logits = engine.logits(ids)
            steps = decode(engine, ids, [3, 5], engine.new_cache(2))
            found.append((type(engine), logits, steps, engine.logsumexp(logits[0])))
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0][0] is found[1][0]
    assert_close(found[0][1:], found[1][1:], atol=0, rtol=0)


def test_the_quantization_error_is_at_most_half_a_step_of_each_output() -> None:
    weight = torch.randn(20, 30) * torch.logspace(-6, 6, 20).unsqueeze(1)
    weight[3] = 0
    values, scale = quantize(weight)
    assert values.dtype == torch.int8
    error = (values * scale.unsqueeze(1) - weight).abs()
    assert (error <= weight.abs().amax(dim=1, keepdim=True) / 254 * 1.0001).all()


def test_int8_takes_half_the_memory_of_bfloat16() -> None:
    model = make(d_model=256, vocab_size=1000, d_ff=512)
    full, half, quarter = (make_engine(model, weights).num_bytes for weights in WEIGHTS)
    assert full == sum(parameter.nbytes for parameter in model.parameters())
    assert half < 0.51 * full
    assert quarter < 0.52 * half


@pytest.mark.parametrize("variant", ["qk norm", "gpt2"])
def test_int8_changes_perplexity_by_less_than_a_percent(variant: str) -> None:
    model = make(**VARIANTS[variant])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.randint(12, (64, 2)).repeat(1, 9)[:, : model.config.context_length]  # each row repeats two ids
    for _ in range(60):
        loss = cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before, after = (
        cross_entropy(make_engine(model, weights).logits(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).exp()
        for weights in ("float32", "int8")
    )
    assert before < 4
    assert abs(after / before - 1) < 0.01


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_step_c_is_used_for_the_choices_that_it_lists_and_no_others(kind: dict[str, str]) -> None:
    """A new choice in the config is generated with PyTorch until step.c implements it and lists it."""
    if (library := build.load("step")) is None:
        pytest.skip("no C compiler")
    missing = [f"it does not implement {name} {value}" for name, value in kind.items()
               if value not in support.SUPPORTED[name]]  # fmt: skip
    assert support.unsupported(make(**kind), library) in (missing or [None])


def test_step_c_lists_only_what_the_config_has() -> None:
    names = {field.name for field in fields(TransformerConfig)}
    assert support.SUPPORTED.keys() | support.FREE <= names
    assert not support.SUPPORTED.keys() & support.FREE
    choices = {"norm": Norm, "mlp": MLP, "positions": Positions}
    assert support.SUPPORTED.keys() == choices.keys()
    assert all(support.SUPPORTED[name] <= set(get_args(choice)) for name, choice in choices.items())


class SquaredReLU(nn.Module):
    """A feed-forward that step.c does not implement."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.up_proj, self.down_proj = feed_forward.up_proj, feed_forward.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down_proj(self.up_proj(x).relu().square())
        return y


@dataclass(frozen=True)
class Windowed(TransformerConfig):
    window: int | None = None


def replace_feed_forward(model: Transformer) -> None:
    for block in model.blocks:
        block.feed_forward = SquaredReLU(block.feed_forward)


def replace_forward(model: Transformer) -> None:
    for block in model.blocks:
        other = SquaredReLU(block.feed_forward)
        block.feed_forward.forward = other.forward


def unknown_option(model: Transformer) -> None:
    model.config = Windowed(**vars(model.config), window=4)


def unknown_choice(model: Transformer) -> None:
    object.__setattr__(model.config, "norm", "scalar")


def add_hook(model: Transformer) -> None:
    model.blocks[0].feed_forward.register_forward_hook(lambda module, inputs, output: 2 * output)


def add_pre_hook(model: Transformer) -> None:
    model.blocks[0].feed_forward.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


CHANGES = {
    replace_feed_forward: "the model's modules differ from those that its config makes",
    replace_forward: "forward pass of one of the model's modules was replaced",
    unknown_option: "does not know the option window",
    unknown_choice: "does not implement norm scalar",
    add_hook: "one of the model's modules has a forward hook",
    add_pre_hook: "one of the model's modules has a forward hook",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_step_c_is_not_used_for_unsupported_models(change: Callable[[Transformer], None]) -> None:
    if (library := build.load("step")) is None:
        pytest.skip("no C compiler")
    model = make(mlp="gelu")
    change(model)
    assert CHANGES[change] in str(support.unsupported(model, library))
    ids = torch.randint(40, (2, 16))
    with torch.no_grad():
        expected = model(ids)
    made = make_engine(model)
    assert_close(made.logits(ids), expected, atol=1e-5, rtol=1e-5)
    for row, logits in enumerate(decode(made, ids, [3, 5], made.new_cache(2))):
        assert_close(logits, expected[row, 2 + 2 * row :][: len(logits)], atol=1e-5, rtol=1e-5)


def test_the_reason_for_not_using_step_c_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    if build.load("step") is None:
        pytest.skip("no C compiler")
    model = make()
    object.__setattr__(model.config, "mlp", "named in no other test")
    for _ in range(2):
        make_engine(model)
    (record,) = caplog.records
    assert "it does not implement mlp named in no other test" in record.getMessage()


def test_a_change_of_the_models_code_is_detected(reload: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if (library := reload()) is None:
        pytest.skip("no C compiler")
    assert support.unsupported(make(mlp="gelu"), library) is None
    monkeypatch.setattr("lit_lm.model.transformer.gelu", lambda x: x.relu().square())
    library = reload()
    assert support.unsupported(make(mlp="gelu"), library) == "it does not compute the same as Transformer.forward"
    assert support.unsupported(make(), library) is None
