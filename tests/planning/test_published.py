"""Time on GPUs on paper against published runs, and compute-optimal sizes against the paper's table."""

import pytest

from lit_lm.model.config import TransformerConfig
from lit_lm.planning.compute import compute_optimal
from lit_lm.planning.hardware import PAPER
from lit_lm.planning.setup import Setup
from lit_lm.planning.speed import assumed_step


def gpt2(d_model: int, num_layers: int, num_heads: int) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=50_257, context_length=1024, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        norm="layernorm", mlp="gelu", positions="learned", bias=True, tie_embeddings=True,
    )  # fmt: skip


LLAMA3_8B = TransformerConfig(
    vocab_size=128_256, context_length=8192, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=14_336
)
LLAMA2_13B = TransformerConfig(
    vocab_size=32_000, context_length=4096, d_model=5120, num_layers=40, num_heads=40, d_ff=13_824
)

PUBLISHED = {
    # github.com/karpathy/llm.c/discussions/481: 10 B tokens in 90 min on 8 A100 80GB SXM
    "llm.c, GPT-2 124M": ("a100", gpt2(768, 12, 12), 10e9 / (90 * 60) / 8),
    # github.com/karpathy/llm.c/discussions/677: 32,000 steps of 1,048,576 tokens in 24 h on 8 H100
    "llm.c, GPT-2 1558M": ("h100", gpt2(1600, 48, 25), 32_000 * 1_048_576 / (24 * 3600) / 8),
    # docs/performance.md of torchtitan, June 2024: 64 A100 80GB, selective activation checkpointing of operations
    "torchtitan, Llama 3 8B, A100": ("a100", LLAMA3_8B, 2973),
    # the same, without activation checkpointing
    "torchtitan, Llama 2 13B, A100": ("a100", LLAMA2_13B, 2162),
    # benchmarks/llama3_h100_202412_torchtitan.md: 8 H100 at 500 W, FSDP and torch.compile
    "torchtitan, Llama 3.1 8B, H100": ("h100", LLAMA3_8B, 6667),
}
"""GPU, model, and tokens per second and GPU."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_are_within_a_quarter(name: str) -> None:
    gpu, net, speed = PUBLISHED[name]
    setup = Setup(net, "AdamW", rows=64, bfloat16=True, on_cpu=False)  # the time of a step is that of its FLOPs
    planned = setup.num_tokens / assumed_step(setup, PAPER[gpu]).total
    assert planned == pytest.approx(speed, rel=0.25)


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [(1.92e19, 0.4e9, 8.0e9), (1.21e20, 1e9, 20.2e9), (1.23e22, 10e9, 205.1e9), (5.76e23, 67e9, 1.5e12)],
)
def test_the_compute_optimal_model_is_that_of_the_paper(flops: float, parameters: float, tokens: float) -> None:
    """Hoffmann et al. 2022, table 3."""
    assert compute_optimal(flops) == (pytest.approx(parameters, rel=0.1), pytest.approx(tokens, rel=0.1))
