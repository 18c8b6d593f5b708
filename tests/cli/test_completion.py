"""Completion, in real shells."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Command

from lit_lm.cli import COMMANDS
from lit_lm.cli.recipes import recipes

COMPLETE = """
complete_words() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _lit_lm
  printf '%s\\n' "${COMPREPLY[@]}"
}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("completion")


@pytest.fixture
def script(lit_lm: Command, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return lit_lm("completion", "bash")


def completed(script: str, *words: str) -> list[str]:
    code = f'{script}{COMPLETE}complete_words "$@"'
    done = subprocess.run(["bash", "-c", code, "bash", "lit-lm", *words], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


CONFIGS = [name for name in recipes() if "/" not in name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], [*COMMANDS, "--help", "--version"]),
        (["ge"], ["generate"]),
        (["fit", "--conf"], ["--config"]),
        (["fit", "--config", ""], CONFIGS),
        (["fit", "--config", "qu"], ["quick"]),
        (["fit", "--config", "=", "qu"], ["quick"]),  # as bash splits --config=qu
        (["fit", "--config", "="], CONFIGS),
        (["fit", "--config=qu"], ["--config=quick"]),  # as zsh passes it
        (["fit", "--config", "quick", "--name", ""], ["quick", "wide"]),
        (["generate", "--ckpt_path", ""], ["best", "last", "quick", "wide"]),
        (["fit", "--model.optimizer.l"], ["--model.optimizer.lr"]),
        (["fit", "--model.optimizer", ""], ["AdamW", "Muon", "SGDDecay"]),
        (["fit", "--model.net.posi"], ["--model.net.positions"]),
        (["fit", "--model.net.positions", ""], ["rope", "learned"]),
        (["generate", "--sliding_window", "t"], ["true"]),
        (["generate", "--sliding_window", "--temp"], ["--temperature"]),
        (["eval", "--tasks", "grammar_en_a"], ["grammar_en_argument_structure", "grammar_en_article"]),
        (["data", ""], ["info", "show"]),
        (["data", "show", "--st"], ["--step"]),
        (["tokenizer", "en"], ["encode"]),
        (["generate", "--prompt_file", ""], []),  # then bash completes files
    ],
    ids=" ".join,
)
def test_words_are_completed(
    words: list[str], expected: list[str], script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quick", "wide", "$(touch ran)", "`touch ran`", "x;touch ran", "two words"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    (tmp_path / "logs" / "README.md").touch()
    assert set(completed(script, *words)) == set(expected)
    assert not (tmp_path / "ran").exists()


def test_only_options_are_completed(script: str) -> None:
    words = re.findall(r'^    \*:(?:fit|generate):-\*\) words="(.*)" ;;$', script, re.MULTILINE)
    assert len(words) == 2
    assert all(word.startswith("-") for line in words for word in line.split())


def test_the_script_is_registered_and_does_not_start_python(script: str) -> None:
    code = f"{script}\nPATH=\ncomplete -p lit-lm\nCOMP_WORDS=(lit-lm fit --config q) COMP_CWORD=3\n_lit_lm\n"
    code += "echo $COMPREPLY"
    done = subprocess.run(["/bin/bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["complete -o bashdefault -o default -F _lit_lm lit-lm", "quick"]


def test_the_script_is_collected_once(script: str, cache: Path, lit_lm: Command) -> None:
    cached = cache / "lit-lm" / "completion.bash"
    assert cached.read_text(encoding="utf-8") == script
    digest = script.partition("\n")[0]
    cached.write_text(f"{digest}\necho cached\n")
    assert lit_lm("completion", "bash") == f"{digest}\necho cached\n"
    cached.write_text("# of older modules\n")
    assert lit_lm("completion", "bash") == script
    assert "invalid choice: 'fish'" in lit_lm("completion", "fish", fails=True)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_the_script(lit_lm: Command, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    code = lit_lm("completion", "zsh") + "\nprint $_comps[lit-lm]"
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert "_bash_complete" in done.stdout
