"""tools/ablate.py: its runs, its output, and resuming."""

import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import TextIO

import pytest
from conftest import TINY, Command

LR = "--model.optimizer.init_args.lr"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    monkeypatch.chdir(tmp_path)
    import ablate

    return ablate


@pytest.fixture
def here(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the tool run `fit` in this process, without new imports; returns the names of the started runs."""
    started: list[str] = []

    def run(command: list[str], output: TextIO) -> bool:
        started.append(command[command.index("--name") + 1])
        with redirect_stdout(output), redirect_stderr(output):
            try:
                tool.lit_lm(command[command.index("fit") :])
            except SystemExit:
                return False
        return True

    monkeypatch.setattr(tool, "run", run)
    return started


@pytest.fixture
def options(corpus: Path, cache: Path) -> list[str]:
    return [*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.max_steps=4",
            "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]  # fmt: skip


def test_compares_over_seeds_and_does_not_repeat_finished_runs(
    tool: ModuleType, here: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*options, "--seeds", "0", "1", f"--change=fast: {LR} 0.1"]
    tool.main(command)
    runs = [f"ablation/{change}/seed_{seed}" for seed in (0, 1) for change in ("baseline", "fast")]
    assert here == runs
    printed = capsys.readouterr().out
    losses = {name: [float(loss) for loss in re.findall(rf"^{name}, seed \d: val/loss (\S+)", printed, re.M)]
              for name in ("baseline", "fast")}  # fmt: skip
    differences = [fast - base for fast, base in zip(losses["fast"], losses["baseline"], strict=True)]
    row = next(line for line in printed.splitlines() if line.startswith("| fast |")).split(" | ")
    seen = [float(number) for number in re.findall(r"[\d.]+", row[1])]
    assert seen == pytest.approx(
        [mean(losses["fast"]), stdev(losses["fast"]), min(losses["fast"]), max(losses["fast"])], abs=2e-4
    )
    seen = [float(number) for number in re.findall(r"[+-]?[\d.]+", row[2])]
    assert seen == pytest.approx([mean(differences), stdev(differences)], abs=2e-4)

    results = json.loads(Path("logs/ablation/results.json").read_text())
    assert [point[0] for point in results[1]["seeds"]["1"]["curve"]] == [2, 4]
    assert Path("logs/ablation/curves.png").stat().st_size > 10_000

    here.clear()
    tool.main([*command, f"--change=slow: {LR} 1e-5"])
    assert here == ["ablation/slow/seed_0", "ablation/slow/seed_1"]
    assert losses["fast"] == [round(seed["curve"][-1][1], 4) for seed in results[1]["seeds"].values()]


def test_resumes_an_interrupted_run(tool: ModuleType, here: list[str], options: list[str], lit_lm: Command) -> None:
    tool.main([*options, "--name=whole"])
    lit_lm("fit", *options, "--trainer.max_steps=2", "--name=broken/baseline/seed_0")
    tool.main([*options, "--name=broken"])
    assert "resuming from" in Path("logs/broken/baseline/seed_0/output.txt").read_text()
    whole, broken = (json.loads(Path(f"logs/{name}/results.json").read_text()) for name in ("whole", "broken"))
    assert whole[0]["seeds"]["0"]["curve"] == broken[0]["seeds"]["0"]["curve"]


def test_sweeps_one_option_for_each_change(
    tool: ModuleType, here: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["--sweep", LR.removeprefix("--"), "1e-3", "1e-2"]
    tool.main([*options, "--baseline=narrow", "--change=wide: --model.net.d_model 32", *sweep])
    rows = re.findall(r"^\| (\w+, \S+) \|.*\| (\S*) \| \S+ \| \d+ \|$", capsys.readouterr().out, re.M)
    assert [name for name, _ in rows] == ["narrow, 1e-3", "narrow, 1e-2", "wide, 1e-3", "wide, 1e-2"]
    assert [bool(difference) for _, difference in rows] == [False, False, True, True]
    assert Path("logs/ablation/curves.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--change=wide: --model.net.d_modle 32"], "did you mean --model.net.d_model?"),
        (["--change=wide: --model.net.d_model 33"], "d_model 33 is not divisible by num_heads 2"),
        (["--change=wide --model.net.d_model 33"], "it must be 'NAME: OPTIONS'"),
        (["--change=baseline: --model.net.d_model 32"], "with another NAME for each"),
        (["--change=luck: --seed 7"], "--seed cannot be changed"),
        ([f"--change=a b: {LR} 1", f"--change=a_b: {LR} 2"], "two changes have the same folder"),
    ],
)
def test_a_user_error_is_reported_before_training(
    tool: ModuleType, here: list[str], capsys: pytest.CaptureFixture[str], corpus: Path, cache: Path,
    options: list[str], message: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        tool.main([*TINY, f"--data.source={corpus}", f"--data.cache_dir={cache}", "--trainer.max_steps=4", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not here


def test_runs_with_a_different_config_are_rejected(
    tool: ModuleType, here: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(options)
    with pytest.raises(SystemExit):
        tool.main([*options, f"{LR}=1"])
    assert "the runs in logs/ablation/baseline have a different config" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_the_others_continue(
    tool: ModuleType, here: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main([*options, f"--change=backwards: {LR} -1"])
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "lr is -1.0; it must be at least 0" in printed.err
    assert "| backwards | failed | | | |" in printed.out
    assert re.search(r"\| baseline \| \d+\.\d{4} \|", printed.out)
    with pytest.raises(SystemExit):
        tool.main([*options, f"{LR}=-1", "--name=hopeless"])
    assert "| baseline | failed | | | |" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "good"), [(0, True), (2, False)])
def test_run_starts_a_process_and_returns_whether_it_succeeded(
    tool: ModuleType, tmp_path: Path, code: int, good: bool
) -> None:
    with open(tmp_path / "output.txt", "w") as output:
        assert tool.run([sys.executable, "-c", f"print('hello'); raise SystemExit({code})"], output) == good
    assert (tmp_path / "output.txt").read_text() == "hello\n"


@pytest.mark.parametrize(("end", "code"), [("sys.exit(143)", 143), ("os.kill(os.getpid(), 9)", 137)])
def test_a_run_stopped_by_a_signal_stops_the_tool(tool: ModuleType, tmp_path: Path, end: str, code: int) -> None:
    with open(tmp_path / "output.txt", "w") as output, pytest.raises(SystemExit) as stop:
        tool.run([sys.executable, "-c", f"import os, sys; {end}"], output)
    assert stop.value.code == code
