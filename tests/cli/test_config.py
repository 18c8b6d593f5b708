"""Reading config files."""

import pytest

from lit_lm.cli.config import read_config


@pytest.mark.parametrize("number", ["1e-3", ".5", "1.", "-2.5E+3", "0.1"])
def test_numbers_are_those_of_yaml_1_2(number: str) -> None:
    assert read_config(f"{{model: {{z_loss: {number}}}}}") == {"model": {"z_loss": float(number)}}


@pytest.mark.parametrize("text", ["32-true", "16-mixed", "1e3x", "2026-11-30-b"])
def test_a_text_that_starts_with_a_number_is_a_text(text: str) -> None:
    assert read_config(f"{{trainer: {{precision: {text}}}}}") == {"trainer": {"precision": text}}
