"""Every shipped config trains two steps, with a smaller model and another source."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command

from lit_lm.__main__ import main
from lit_lm.model.config import TransformerConfig
from lit_lm.model.cost import num_parameters
from lit_lm.model.transformer import Transformer

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_two_steps(config: Path, corpus: Path, cache: Path, lit_lm: Command) -> None:
    printed = lit_lm(
        "fit", f"--config={config}", f"--data.source={corpus}", f"--data.cache_dir={cache}", "--data.batch_size=2",
        "--data.micro_batch_size=1", "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--model.compile=false",
        "--model.net={vocab_size: 300, context_length: 32, d_model: 16, num_layers: 1, num_heads: 2, d_ff: 64}",
    )  # fmt: skip
    name = yaml.safe_load(config.read_text(encoding="utf-8"))["name"]
    assert name == config.stem
    assert "2 steps, 128 tokens" in printed
    assert Path(f"logs/{name}/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("size", "shape"),
    [("tiny", (10_000, 256, 128, 2, 2)), ("small", (30_000, 256, 256, 4, 4)), ("medium", (50_000, 512, 512, 6, 8))],
)
def test_the_chinese_config_has_three_sizes(
    size: str, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parents[1] / "configs"
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                f"--config={folder / 'chinese.yaml'}",
                f"--model.net={folder / 'sizes' / size}.yaml",
                "--print_config",
            ]
        )
    net = yaml.safe_load(capsys.readouterr().out)["model"]["net"]
    assert tuple(net[name] for name in ("vocab_size", "context_length", "d_model", "num_layers", "num_heads")) == shape


def built(options: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Number of parameters of the model that some options make, built on the meta device, which takes no memory."""
    with pytest.raises(SystemExit):
        main(["fit", *options, "--print_config"])
    net = yaml.safe_load(capsys.readouterr().out)["model"]["net"]
    with torch.device("meta"):
        return num_parameters(Transformer(TransformerConfig(**net)))


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
README_ZH = (Path(__file__).parents[1] / "README.zh-CN.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_model_of_each_config_has_the_size_that_the_readme_gives(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = built([f"--config={config}"], capsys)
    row = re.search(rf"^\| `{re.escape(config.name)}` \|.*? ([\d.]+) M parameters", README, re.MULTILINE)
    if config.stem == "gpt2-124m":
        assert number == 124_439_808  # that of OpenAI's checkpoint
    assert row is not None
    assert float(row[1]) == pytest.approx(number / 1e6, abs=0.5 if "." not in row[1] else 0.05)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("4x256", (1000, 256, 4, 4, 704)),
        ("12x768", (10_000, 768, 12, 12, 2048)),
        ("24x1024", (50_000, 1024, 24, 16, 2752)),
    ],
)
def test_the_other_sizes_can_be_built(size: str, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    vocab_size, d_model, num_layers, num_heads, d_ff = shape
    folder = Path(__file__).parents[1] / "configs"
    number = built(["--trainer.max_steps=1", f"--model.net={folder / 'sizes' / size}.yaml"], capsys)
    block = 4 * d_model**2 + 3 * d_model * d_ff + 2 * d_model
    assert d_model % num_heads == 0
    assert number == 2 * vocab_size * d_model + num_layers * block + d_model


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_the_sizes_of_the_chinese_recipe_are_those_of_the_readme(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[1] / "configs"
    number = built([f"--config={folder / 'chinese.yaml'}", f"--model.net={folder / 'sizes' / size}.yaml"], capsys)
    (row,) = re.findall(rf"^\| `{size}`.*$", README_ZH, re.MULTILINE)
    assert f"| {number:,} |" in row
