"""Code of the benchmarks, at a tiny shape; speed is not tested."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import bench_attention
import bench_gpu
import bench_train
import bench_turns
import pytest
import torch
from bench_train import FIT, MUON, Results, fit, targets
from bench_turns import Row, bare, measure
from bench_worker import Task

from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import flops_per_token

TASK = Task(TransformerConfig(vocab_size=300, context_length=16, d_model=16, num_layers=1, num_heads=2), 2, threads=1)
PEAKS = {"float32": 1e9, "bf16": 1e9}


def row(contender: str, *seconds: float, precision: str = "float32", peak_bytes: int = 10**9) -> Row:
    task = replace(TASK, precision=precision)
    return Row(contender, task, [], seconds=list(seconds), peak_bytes=peak_bytes)


@pytest.fixture
def results() -> Results:
    """Made-up measurements."""
    peer = row("nanoGPT", 0.4, 0.8, 0.4, peak_bytes=3 * 10**9)
    step, whole = row("lit-lm", 0.2, 0.4, 0.1), row(FIT, 0.201, 0.4, 0.11)
    return Results(PEAKS, [peer, step, whole], [peer, step], [step, whole], [step, whole])


def test_the_bare_step_and_fit_are_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_turns, "TURN", 1e-3)
    rows = [bare("lit-lm", TASK), fit(TASK, tmp_path), fit(TASK, tmp_path, MUON)]
    measure(rows, 2, tmp_path)
    for each in rows:
        assert len(each.seconds) == 2
        assert all(0 < seconds < 60 for seconds in each.seconds)
        assert each.peak_bytes > 10**7
    assert list(tmp_path.glob("logs/*/version_0/events*"))  # fit logs as usual


def test_flops_match_flops_per_token() -> None:
    tokens, own = 2 * 16, flops_per_token(TASK.config)
    assert row("litgpt", 0.5).flops == pytest.approx(tokens / 0.5 * own)
    assert row("nanoGPT", 0.5).flops == pytest.approx(tokens / 0.5 * (own + 6 * (8 * 16**2 - 3 * 16 * 64)))


def test_table_and_targets(results: Results) -> None:
    name, rate, *_, memory, to_best = bench_turns.table(results.steps, PEAKS)[-1].strip("| ").split(" | ")
    assert (name, rate) == ("lit-lm fit, float32, eager", "159 (80 to 291)")
    assert (memory, to_best) == ("1,000 MB", "2.00")  # the median of 1.99, 2 and 3.64
    found = {each.metric: (each.measured, each.met) for each in targets(results)}
    assert found == {
        "lit-lm fit, float32, eager, relative to nanoGPT, float32, eager, the fastest peer": ("2.00", True),
        "lit-lm fit, float32, eager, relative to nanoGPT, float32, eager": ("2.00", False),
        "peak memory at vocabulary 50,257, context 1,024: nanoGPT, float32, eager, relative to lit-lm": ("3.00", True),
        "lit-lm fit, float32, eager: cost over the bare loop": ("0.5%", True),
        "smallest model: cost of a step of fit over that of the bare loop": ("1.00 ms", False),
    }


def test_results_are_written(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_train, "measure_all", lambda *_: results)
    bench_train.run(Namespace(threads=1, rounds=3, peers="", output=tmp_path / "bench"))
    kept = json.loads((tmp_path / "bench" / "train.json").read_text())
    assert kept["steps"][0]["seconds"] == [0.4, 0.8, 0.4]
    assert len(kept["targets"]) == capsys.readouterr().out.count("met |")
    assert (tmp_path / "bench" / "train.png").read_bytes().startswith(b"\x89PNG")


def test_without_peers_only_the_targets_of_fit_remain(results: Results) -> None:
    alone = replace(results, steps=results.steps[1:], memory=results.memory[1:])
    assert len(targets(alone)) == 2
    assert bench_turns.table(alone.steps, PEAKS)[-1].endswith("|  |")


def test_attention_is_compared_with_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_attention, "SHAPES", [(1, 2, 5, 4, torch.float32)])
    bench_attention.run(Namespace(rounds=1, threads=1))
    *_, found = (cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("| ").split("|"))
    assert 0 < float(found) < 1e-5


def test_the_gpu_benchmark_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_turns, "TURN", 1e-3)
    small = replace(bench_gpu.SHAPE, vocab_size=100, context_length=16, d_model=16, num_layers=1, num_heads=2)
    printed = bench_gpu.bench(replace(TASK, config=small, precision="bf16"), {}, rounds=1)
    assert printed.splitlines()[-1].startswith("| lit-lm, bf16, eager | ")


@pytest.mark.parametrize(
    ("nanogpt", "python", "message"),
    [("nowhere", "", "--nanogpt nowhere has no model.py"), ("", "nowhere", "--peers nowhere is not a Python")],
)
def test_missing_peers_are_reported(nanogpt: str, python: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        bench_train.peers(nanogpt, python)
