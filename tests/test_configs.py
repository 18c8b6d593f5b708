"""Every shipped config trains two steps, with a smaller model and another source."""

from pathlib import Path

import pytest
import yaml
from conftest import Command

from lit_lm.__main__ import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_two_steps(config: Path, corpus: Path, cache: Path, lit_lm: Command) -> None:
    printed = lit_lm(
        "fit", f"--config={config}", f"--data.source={corpus}", f"--data.cache_dir={cache}", "--data.batch_size=2",
        "--data.micro_batch_size=1", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
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
