PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv fit test check

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

fit: venv
	$(BIN)/lit-lm fit --config configs/quick.yaml
	$(BIN)/lit-lm predict --ckpt_path "$$(ls -td logs/quick/version_* | head -n 1)/checkpoints/best.ckpt" \
		--prompt "Once upon a time"

test: venv
	$(BIN)/pytest --quiet

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
