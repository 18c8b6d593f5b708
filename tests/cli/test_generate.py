"""`lit-lm generate`: prompts, output and sessions, in this process and in subprocesses."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Command

from lit_lm.__main__ import main
from lit_lm.runs import find_checkpoint

FEW = ("--max_new_tokens", 6)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Standard input as a pipe."""
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data, encoding="utf-8"))
    return data


def test_the_prompt_is_an_argument_a_file_or_standard_input(
    run_folder: Path, lit_lm: Command, stdin: io.BytesIO
) -> None:
    printed = lit_lm("generate", "--ckpt_path", run_folder, "The 猫\nsaw", *FEW)
    assert printed.startswith("The 猫\nsaw")
    Path("prompt.txt").write_bytes("The 猫\nsaw\n".encode())
    assert lit_lm("generate", "--ckpt_path", run_folder, "--prompt_file=prompt.txt", *FEW) == printed
    assert lit_lm("generate", "--ckpt_path", run_folder, "--prompt", "The 猫\nsaw", *FEW) == printed
    stdin.write("The 猫\nsaw\n".encode())
    stdin.seek(0)
    assert lit_lm("generate", "--ckpt_path", run_folder, *FEW) == printed


def test_json_contains_the_printed_text(run_folder: Path, lit_lm: Command) -> None:
    arguments = ["generate", "--ckpt_path", run_folder, "The cat", *FEW]
    row = json.loads(lit_lm(*arguments, "--json", "--alternatives=2"))
    assert lit_lm(*arguments) == row["prompt"] + row["continuation"] + "\n"
    assert row["ended"] == "max_new_tokens"
    assert row["num_tokens"] == len(row["tokens"]) == 6
    assert all(len(token["alternatives"]) == 2 for token in row["tokens"])
    samples = [json.loads(line) for line in lit_lm(*arguments, "--json", "--num_samples=3").splitlines()]
    assert [sample["sample"] for sample in samples] == [0, 1, 2]
    assert samples[0]["continuation"] == row["continuation"]
    printed = lit_lm(*arguments, "--num_samples=3")
    assert printed == "".join(f"The cat{sample['continuation']}\n\n" for sample in samples)


def test_sampling_options_and_seed_change_the_text(run_folder: Path, lit_lm: Command) -> None:
    arguments = ["generate", "--ckpt_path", run_folder, "The cat", *FEW]
    greedy = lit_lm(*arguments, "--temperature=0")
    assert greedy == lit_lm(*arguments, "--top_k=1", "--seed=9")
    assert lit_lm(*arguments, "--seed=1") != lit_lm(*arguments, "--seed=2")
    stop = greedy.removeprefix("The cat")[2]
    assert lit_lm(*arguments, "--temperature=0", "--stop", stop) == greedy[: greedy.index(stop, 7)] + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--temprature=3"], "did you mean --temperature?"),
        (["a", "--temperature=hot"], "temperature is 'hot'; it must be a number"),
        (["a", "--temperature=-1", "--top_p=2"], "temperature is -1.0; it must be at least 0\ntop_p is 2.0"),
        (["a", "--stop="], "stop must not be an empty string"),
        (["a", "b"], "unknown argument b; a text with spaces needs quotes"),
        (["a", "--prompt_file=prompt.txt"], "pass one prompt: PROMPT, --prompt or --prompt_file"),
        (["a", "--prompt=b"], "lit-lm predict continues several"),
        (["a", "--sliding_window=maybe"], "sliding_window is 'maybe'; it must be true or false"),
        (["a", "--ckpt_path=quick.yaml"], "quick.yaml is a config, not a checkpoint"),
        (["--prompt_file=missing.txt"], "error: missing.txt: No such file or directory"),
        (["--prompt_file=empty.txt"], "empty.txt is empty"),
        (["--prompt_file=latin1.txt"], "latin1.txt is not UTF-8: byte 3 is 0xe9"),
        ([], "standard input is empty"),
        (["a\udcff"], "the prompt is not UTF-8 at character 2"),
        (["word " * 40], "do not fit into the context of 32"),
        (["a", "--device=abacus"], "device is abacus; it must be auto or available on this machine: "),
        (["a", "--alternatives=-1"], "alternatives is -1"),
        (["a", "--json", "--interactive"], "--interactive cannot be combined with PROMPT, --prompt_file or --json"),
        (["a", "--num_samples=2", "--alternatives=1"], "for one text at a time"),
        (["a", "--stop_tokens=300"], "stop_tokens has 300; token ids range from 0 to 299"),
        (["a", "--ckpt_path=cut.ckpt"], "cut.ckpt cannot be read as a checkpoint"),
        (["a", "--ckpt_path=other.ckpt"], "other.ckpt was not written by lit-lm"),
        (["a", "--ckpt_path=missing"], "there is no checkpoint at missing"),
        (["a", "--ckpt_path=best"], "there is no checkpoint in logs"),
        (["a", "--ckpt_path=last", "--name=none"], "there is no checkpoint in logs/none"),
        (["a", "--ckpt_path=."], "there is no checkpoint in ."),
    ],
)
def test_a_user_error_is_reported(
    arguments: list[str], message: str, run_folder: Path, lit_lm: Command, stdin: io.BytesIO
) -> None:
    for name, content in {"prompt.txt": b"x", "empty.txt": b"\n", "latin1.txt": b"caf\xe9", "cut.ckpt": b"PK"}.items():
        Path(name).write_bytes(content)
    torch.save({"state_dict": {}}, "other.ckpt")
    if not any(argument.startswith("--ckpt_path") for argument in arguments):
        arguments = [*arguments, f"--ckpt_path={run_folder}"]
    assert message in lit_lm("generate", *arguments, fails=True)


def test_a_default_checkpoint_is_named_on_standard_error(
    run_folder: Path, lit_lm: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder, Path("logs/mine/version_0"), symlinks=True)
    explicit = lit_lm("generate", "The cat", "--ckpt_path=logs/mine", *FEW)
    for options in ([], ["--name=mine"], ["--ckpt_path=mine"]):
        capsys.readouterr()
        main(["generate", "The cat", *options, *map(str, FEW)])
        printed = capsys.readouterr()
        assert printed.out == explicit
        named = options != ["--ckpt_path=mine"]
        assert printed.err == ("checkpoint: logs/mine/version_0/checkpoints/best.ckpt\n" if named else "")


def test_a_flag_is_a_boolean_with_or_without_a_value(run_folder: Path, lit_lm: Command) -> None:
    arguments = ["generate", "--ckpt_path", run_folder, "--max_new_tokens=40"]
    assert "do not fit" in lit_lm(*arguments, "--sliding_window", "false", "The cat", fails=True)
    text = lit_lm(*arguments, "--sliding_window", "true", "The cat")
    assert text == lit_lm(*arguments, "--sliding_window", "The cat")
    assert text.startswith("The cat")


def test_checkpoints_are_found_by_path_folder_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, (name, files) in enumerate(
        {"a/version_2": ["last"], "a/version_10": ["best", "last"], "b/version_0": ["last"], "b/version_1": []}.items()
    ):
        folder = Path("logs") / name / "checkpoints"
        folder.mkdir(parents=True)
        for file in files:
            (folder / f"{file}.ckpt").touch()
        os.utime(folder, (age, age))
    newest, other = Path("logs/a/version_10/checkpoints"), Path("logs/b/version_0/checkpoints")
    for where in ("logs/a", "logs/a/version_10", newest, newest / "best.ckpt"):
        assert find_checkpoint(str(where)) == newest / "best.ckpt"
    assert find_checkpoint("last", "a") == newest / "last.ckpt"
    assert find_checkpoint("logs/a/version_2") == Path("logs/a/version_2/checkpoints/last.ckpt")
    assert find_checkpoint("best") == other / "last.ckpt"  # of the newest run that has a checkpoint


def test_a_session_reads_lines_from_a_pipe(run_folder: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO("/set max_new_tokens 3\nThe cat\n/nope\n")
    monkeypatch.setattr(sys, "stdin", lines)
    printed = lit_lm("generate", "--ckpt_path", run_folder, "--interactive")
    assert "a context of 32 tokens" not in printed  # only on a terminal
    assert "\nThe cat" in printed
    assert "unknown command /nope" in printed


def test_generate_does_not_import_training_dependencies(run_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lit_lm.__main__ import main; main(sys.argv[1:])\n"
        "assert not {'lightning', 'torchmetrics', 'datasets', 'matplotlib', 'tensorboard'} & sys.modules.keys()"
    )
    for arguments in (["a", "--ckpt_path", str(run_folder), "--max_new_tokens=2"],):
        subprocess.run([sys.executable, "-c", code, "generate", *arguments], cwd=tmp_path, check=True, timeout=100,
                       env=ENVIRONMENT, capture_output=True)  # fmt: skip


def test_a_closed_pipe_ends_the_command_quietly(run_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_lm", "generate", "--ckpt_path", str(run_folder), "The cat",
               "--sliding_window", "--max_new_tokens=1000000", "--temperature=0"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(20).startswith(b"The cat")
    process.stdout.close()
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, b"")


def test_ctrl_c_on_a_terminal_stops_the_text_and_history_is_saved(run_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_lm", "generate", "--ckpt_path", str(run_folder), "--interactive",
               "--sliding_window", "--max_new_tokens=1000000", "--temperature=0"]  # fmt: skip
    here, there = pty.openpty()
    environment = ENVIRONMENT | {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}

    def prepare_child() -> None:
        os.close(here)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored if the tests run in the background

    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=there, stdout=there, stderr=there,
                               start_new_session=True, preexec_fn=prepare_child)  # fmt: skip
    os.close(there)
    output = b""

    def wait_for(text: bytes) -> None:
        nonlocal output
        while text not in output:
            assert select.select([here], [], [], 60)[0], output
            output += os.read(here, 4096)
        output = output.partition(text)[2]

    wait_for(b"a context of 32 tokens")
    wait_for(b"> ")
    os.write(here, b"The cat\r")
    wait_for(b"The cat")
    wait_for(b"The cat")  # once as typed, once as shown
    process.send_signal(2)
    wait_for(b"(stopped; ")
    wait_for(b"> ")
    os.write(here, b"\x04")  # Ctrl-D
    wait_for(b"\n")
    assert process.wait(timeout=60) == 0
    os.close(here)
    assert (tmp_path / "lit-lm" / "history").read_text(encoding="utf-8").splitlines() == ["The cat"]
