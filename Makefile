PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv fit test check bench

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

# with peers to compare with: make bench NANOGPT=../nanoGPT PEERS=../peers/bin/python LLAMA2C=../llama2.c
bench: venv
	$(BIN)/python tools/bench.py train $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python tools/bench.py generate $(if $(LLAMA2C),--llama2c $(LLAMA2C))
	$(BIN)/python tools/bench.py prepare
