"""Muon against torch's and against singular values, and which parameters AdamW updates."""

import copy
import math
from importlib.util import find_spec, module_from_spec
from typing import Any

import pytest
import torch
from helpers.gradients import parameters_of, set_gradients
from torch import Tensor, nn
from torch.testing import assert_close

from lit_lm.model.config import TransformerConfig
from lit_lm.model.transformer import Transformer
from lit_lm.optim import AdamW, Muon, parameter_groups
from lit_lm.optim.muon import COEFFICIENTS, orthogonalize

SHAPES = [(8, 6), (6, 8), (8, 6), (7, 7), (5,), ()]
HIDDEN = [True, True, False, True, True, False]


def parameters() -> list[nn.Parameter]:
    return parameters_of(SHAPES)


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params, "muon": HIDDEN}]


def applied(matrices: Tensor) -> Tensor:
    """Matrices with the polynomial of five iterations applied to their singular values."""
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ vt


@pytest.mark.parametrize("shape", [(3, 9, 5), (2, 5, 9), (1, 4, 4)])
def test_orthogonalize_applies_its_polynomial_to_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalize(matrices, 5)
    assert_close(found, applied(matrices))
    values = torch.linalg.svdvals(found)
    assert ((values > 0.6) & (values < 1.3)).all()


def test_a_gradient_of_zero_stays_zero() -> None:
    assert_close(orthogonalize(torch.zeros(1, 3, 4), 5), torch.zeros(1, 3, 4))


@pytest.fixture(params=["avx512_bf16", "avx512_f"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {request.param: True})
    return str(request.param)


@pytest.fixture
def muon_on_processor(processor: str) -> type[Muon]:
    """Muon from a new copy of its module, which asks for the capabilities of the processor once."""
    spec = find_spec("lit_lm.optim.muon")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    kind: type[Muon] = module.Muon
    return kind


def test_the_iteration_is_in_bfloat16_if_the_processor_multiplies_it(
    processor: str, muon_on_processor: type[Muon]
) -> None:
    (ours,), (expected,) = parameters_of([(8, 6)]), parameters_of([(8, 6)])
    set_gradients([ours], 0)
    muon_on_processor([ours], lr=0.1, momentum=0.0, weight_decay=0.0, period=1).step()
    assert ours.grad is not None
    dtype = torch.bfloat16 if processor == "avx512_bf16" else torch.float32
    (direction,) = orthogonalize(ours.grad[None].to(dtype), 5).float()
    assert_close(ours.detach(), expected.detach() - 0.1 * math.sqrt(8 / 6) * direction, rtol=0, atol=1e-5)


def test_muon_matches_torch(muon_on_processor: type[Muon]) -> None:
    """The tolerance is that of bfloat16, to which torch rounds in other places."""
    ours, theirs = parameters()[:4], parameters()[:4]
    options = {"lr": 0.01, "weight_decay": 0.3, "momentum": 0.9}
    optimizers = (
        muon_on_processor(ours, period=1, **options),
        torch.optim.Muon(theirs, adjust_lr_fn="original", **options),
    )
    for step in range(10):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + math.sin(step))
            optimizer.step()
    assert_close(ours, theirs, rtol=0, atol=4e-3)
    moved = [(p - q).abs().max() for p, q in zip(ours, parameters(), strict=False)]
    assert min(moved) > 0.05


def test_matrices_take_turns_with_all_of_their_gradients() -> None:
    """After each of its turns, a matrix is where one is that is changed in these steps alone, with period times lr."""
    ours, alone = parameters_of([(8, 6)] * 4), parameters_of([(8, 6)] * 4)
    optimizer = Muon(ours, lr=0.01, weight_decay=0.3, period=3)
    each = [Muon([p], lr=0.0, weight_decay=0.3, period=1) for p in alone]
    for step in range(7):
        before = [p.detach().clone() for p in ours]
        for params in (ours, alone):
            set_gradients(params, step)
        optimizer.step()
        for number, single in enumerate(each):
            single.param_groups[0]["lr"] = 0.03 if (number + step) % 3 == 0 else 0.0
            single.step()
        moved = [not torch.equal(*pair) for pair in zip(ours, before, strict=True)]
        assert moved == [(number + step) % 3 == 0 for number in range(4)]
        assert_close(ours, alone, rtol=0, atol=1e-6)


def test_all_parameters_except_hidden_matrices_are_updated_by_adamw() -> None:
    ours, theirs = parameters(), parameters()
    rest = [2, 4, 5]  # not flagged, and not matrices
    optimizers = (
        Muon(groups(ours), lr=0.1, adamw_lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2),
        AdamW([theirs[n] for n in rest], lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2),
    )
    for step in range(5):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
    assert_close([ours[n] for n in rest], [theirs[n] for n in rest], rtol=0, atol=0)
    assert all(set(optimizers[0].state[ours[n]]) == {"step", "momentum"} for n in (0, 1, 3))


def test_muon_updates_the_matrices_of_the_blocks_with_its_own_rate() -> None:
    model = Transformer(TransformerConfig(vocab_size=20, context_length=4, d_model=8, num_layers=1, num_heads=2))
    optimizer = Muon(parameter_groups(model, model.hidden_matrices()), lr=0.1, adamw_lr=0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    found = [({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    vectors = {name for name in names.values() if "norm" in name}
    rest = {"embedding.weight", "head.weight"}
    assert found == [
        (set(names.values()) - vectors - rest, 0.1, 0.1),
        (rest, 0.01, 0.1),
        (vectors, 0.01, 0.0),
    ]


def test_torch_optimizers_accept_the_parameter_groups() -> None:
    model = Transformer(TransformerConfig(vocab_size=20, context_length=4, d_model=8, num_layers=1, num_heads=2))
    optimizer = torch.optim.AdamW(parameter_groups(model))
    model(torch.tensor([[1, 2]])).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_restored_optimizer_continues_exactly() -> None:
    def steps(params: list[nn.Parameter], optimizer: Muon, numbers: range) -> None:
        for step in numbers:
            set_gradients(params, step)
            optimizer.step()

    straight = parameters()
    optimizer = Muon(groups(straight), lr=0.1)
    steps(straight, optimizer, range(5))
    resumed = [nn.Parameter(p.detach().clone()) for p in straight]
    state = copy.deepcopy(optimizer.state_dict())
    steps(straight, optimizer, range(5, 10))

    optimizer = Muon(groups(resumed), lr=0.7)
    optimizer.load_state_dict(state)
    steps(resumed, optimizer, range(5, 10))
    assert_close(resumed, straight, rtol=0, atol=0)


def test_parameters_without_a_gradient_are_unchanged() -> None:
    params = parameters()
    set_gradients(params, 0)
    params[0].grad = None
    optimizer = Muon(groups(params), weight_decay=0.5, period=1)
    optimizer.step()
    before = parameters()
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [True] + [False] * 5
    assert params[0] not in optimizer.state


def test_a_closure_is_called_with_gradients_enabled_and_its_loss_is_returned() -> None:
    parameter = nn.Parameter(torch.eye(2))
    optimizer = Muon([parameter])

    def closure() -> Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 2.0
    assert parameter[0, 0].item() < 1.0


def test_gradients_are_divided_by_grad_scale_and_ignored_if_found_inf_is_1() -> None:
    ours, scaled = parameters(), parameters()
    optimizers = Muon(groups(ours), period=1), Muon(groups(scaled), period=1)
    optimizers[1].grad_scale = torch.tensor(4.0)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(scaled, step)
        for parameter in scaled:
            assert parameter.grad is not None
            parameter.grad *= 4
        optimizers[0].step()
        optimizers[1].step()
    assert_close(scaled, ours)

    momenta = [state["momentum"] for state in optimizers[0].state.values() if "momentum" in state]
    before = copy.deepcopy([p.detach() for p in ours] + momenta)
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, math.nan)
    optimizers[0].found_inf = torch.tensor(1.0)
    optimizers[0].step()
    assert_close([p.detach() for p in ours] + momenta, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1; it must be at least 0"),
        ({"adamw_lr": -0.1}, "adamw_lr is -0.1; it must be at least 0"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and less than 1"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps is 0; it must be at least 1"),
        ({"period": 0}, "period is 0; it must be at least 1"),
    ],
)
def test_values_out_of_range_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Muon(parameters(), **options)
