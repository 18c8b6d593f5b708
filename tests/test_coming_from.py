"""docs/coming-from.md: every option and name in its tables exists, and means what its line says.

Its blocks of commands run in tests/test_docs.py.
"""

import io
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Command

from lit_lm.__main__ import main
from lit_lm.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
SPAN = re.compile(r"`([^`]+)`")

THEIRS = re.findall(
    r"\S+",
    """
    train_data val_data vocab_path merges_path vocab_size context_length max_seq_len max_length d_model emb_dim n_layers
    num_layers n_heads num_heads d_ff rope_theta batch_size max_iters iterations num_epochs learning_rate weight_decay
    beta1 beta2 gradient_clip_norm max_grad_norm device save_dir checkpoint_dir log_interval eval_interval
    num_eval_batches save_interval load_checkpoint corpus checkpoint model_path config tokenizer_path prompt max_tokens
    temperature top_k top_p interactive eval_freq eval_iter stride num_workers start_context drop_rate qkv_bias DEVICE
    SEED LOG_EVERY model_size warmup_steps save_every training_losses.png config.json Linear Embedding RMSNorm SiLU
    SwiGLU FFN RoPE softmax ScaledDotProductAttention MultiHeadAttention TransformerBlock Transformer BPETokenizer
    CrossEntropyLoss SGDDecay AdamW gradient_clip encode_iterable
    """,
)
"""Options, files and classes of other projects that must be found on the page."""


def tables() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The heading of the right column of each table, and its rows."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        rows = [tuple(cell.strip().replace("\\|", "|") for cell in line) for line in lines]
        yield rows[0][1], [(left, right) for left, right in rows[2:]]


def rows(heading: str) -> list[tuple[str, list[str]]]:
    """Left cell and code spans of the right cell, of the tables with this heading."""
    return [(left, SPAN.findall(right)) for head, part in tables() if head == heading for left, right in part]


def test_everything_of_theirs_is_on_the_page() -> None:
    left = {re.sub("^-+", "", word) for _, part in tables() for cell, _ in part for word in re.split("[`, :]+", cell)}
    assert not set(THEIRS) - left


FIT_ROWS = [(left, found) for left, spans in rows("here") if (found := [s for s in spans if re.match("--.* ", s)])]


def batches() -> list[list[str]]:
    """The options of all rows, in as few calls as possible: an option occurs once in a call."""
    made: list[list[str]] = []
    for _, options in FIT_ROWS:
        names = {shlex.split(option)[0] for option in options}
        own = any("torch." in option or option.startswith("--model.net ") for option in options)
        fitting = (
            b for b in made if not own and not names & {shlex.split(option)[0] for option in b} and b[0] != "own"
        )
        batch = next(fitting, None)
        if batch is None:
            made.append(batch := ["own"] if own else [])
        batch += options
    return [batch[batch[:1] == ["own"] :] for batch in made]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "my.txt").write_text("The cat saw the dog. " * 200, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("options", batches(), ids=lambda options: shlex.split(options[0])[0])
def test_the_options_of_fit_exist_and_have_these_values(
    options: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config=configs/quick.yaml", "--model.optimizer=AdamW", "--model.schedule=WarmupCosine"]
    given = [shlex.split(option) for option in options]
    values = [f"{name}={value}" for name, value in given if name != "--ckpt_path"]
    with pytest.raises(SystemExit):
        main(["fit", *base, *values, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, value in given:
        if name not in ("--config", "--ckpt_path"):
            check(name.removeprefix("--"), value, printed, here)


def check(name: str, value: str, printed: dict[str, Any], here: Path) -> None:
    for group in ("model.optimizer", "model.schedule", "trainer.logger"):
        name = f"{group}.class_path" if name == group else name.replace(f"{group}.", f"{group}.init_args.")
    name = name.replace("init_args.class_path", "class_path")
    found = reduce(lambda part, key: part[key], name.split("."), printed)
    if name.endswith("class_path"):
        assert found.endswith(value)
    elif name == "model.net":
        assert yaml.safe_load(Path(value).read_text(encoding="utf-8")).items() <= found.items()
    elif name == "data.tokenizer" and value == "gpt2":
        assert found == "hub:openai-community/gpt2"
    elif name in ("data.source", "data.val_source", "data.tokenizer") and "hub:" not in value:
        assert found == ",".join(str(here / part) for part in value.split(","))
    else:
        expected = yaml.safe_load(re.sub("e-", ".0e-", value) if re.fullmatch(r"\de-\d", value) else value)
        assert found in (expected, value)


GENERATE_ROWS = [[s for s in spans if s.startswith("--")] for _, spans in rows("option of `lit-lm generate`")]


@pytest.mark.parametrize("options", [row for row in GENERATE_ROWS if row], ids=str)
def test_the_options_of_generate_work(
    options: list[str], run_folder: Path, lit_lm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder.parents[2])
    given = shlex.split(" ".join(options).replace("100", "10"))  # the context of this model is short
    prompt = [] if "--interactive" in given else ["The"]
    short = [] if "--max_new_tokens" in given else ["--max_new_tokens=3"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The\n")))
    assert "The" in lit_lm("generate", *prompt, *short, *given)


def test_the_commands_in_the_tables_run(here: Path, lit_lm: Command, cache: Path) -> None:
    spans = [span for head, part in tables() for _, right in part for span in SPAN.findall(right)]
    commands = [shlex.split(span)[1:] for span in spans if span.startswith("lit-lm ") and not span.endswith("generate")]
    assert len(commands) == 4
    for command in commands:
        smaller = ["--vocab_size=300"] if command[:2] == ["tokenizer", "train"] else []
        if command[0] == "prepare":
            smaller = ["--model.net.vocab_size=300", f"--data.cache_dir={cache}"]
        lit_lm(*command, *smaller)
    assert {"<|user|>", "<|assistant|>"} <= Tokenizer.load("tokenizer.json").special_tokens.keys()
    assert Path("prepared/train/meta.json").is_file()


def test_the_names_in_the_tables_can_be_imported() -> None:
    names = [span for _, spans in rows("here") for span in spans if re.match(r"(lit_lm|torch|lightning)\.", span)]
    assert len(names) > 20
    for name in names:
        module, _, last = name.rpartition(".")
        try:
            assert hasattr(import_module(module), last), name
        except ModuleNotFoundError:  # an attribute of a class
            module, _, kind = module.rpartition(".")
            assert hasattr(getattr(import_module(module), kind), last), name


def test_the_outputs_are_written(run_folder: Path) -> None:
    found = [span for _, spans in rows("here, in `logs/NAME/version_0`") for span in spans]
    files = [name for name in found if " " not in name]
    assert len(files) == 4
    for name in files:
        assert (run_folder / name).is_file(), name


def test_the_lines_that_the_page_shows_are_those_of_a_run(corpus: Path, cache: Path, lit_lm: Command) -> None:
    data = [f"--data.source={corpus}", f"--data.cache_dir={cache}"]
    printed = lit_lm("fit", *TINY, *data, "--trainer.max_steps=20", "--console.every_n_steps=10")
    lines = {masked(line) for line in printed.splitlines()}
    for shown in ("step 100/1,600: .*", r"validation loss: best [^`]*"):
        line = re.search(shown, PAGE)
        assert line is not None
        assert masked(line[0]) in lines


def masked(line: str) -> str:
    """A line with N for its numbers."""
    return re.sub(r"\d[\d,]*(\.\d+)?(e-\d+)?(?!\w)", "N", line)


def test_the_path_of_a_checkpoint_continues_it_as_a_new_version(corpus: Path, cache: Path, lit_lm: Command) -> None:
    fit = [
        "fit",
        *TINY,
        f"--data.source={corpus}",
        f"--data.cache_dir={cache}",
        "--trainer.default_root_dir=checkpoints",
    ]
    lit_lm(*fit, "--trainer.max_steps=2")
    last = "checkpoints/run/version_0/checkpoints/last.ckpt"
    printed = lit_lm(*fit, "--trainer.max_steps=4", f"--ckpt_path={last}")
    assert f"continuing {last} as a new version of checkpoints/run\n" in printed
    assert "2 of them since resuming" in printed
    assert Path("checkpoints/run/version_1/checkpoints/last.ckpt").exists()
    printed = lit_lm(*fit, "--trainer.max_steps=6", "--ckpt_path=last")
    assert "resuming from checkpoints/run/version_1/checkpoints/step_00000004.ckpt" in printed
