PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv fit test browser chromium check docs bench

venv: .venv/installed

# On Linux, PyPI's torch brings 5 GB of CUDA. Without an NVIDIA GPU, take the CPU build (0.2 GB) from PyTorch's index, or
# PyPI's if that index cannot be reached. To choose yourself: make venv TORCH=cpu, or TORCH=cuda.
TORCH ?= $(if $(filter Linux,$(shell uname)),$(if $(shell command -v nvidia-smi),cuda,cpu),cuda)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --retries 0 \
		--timeout 15 --index-url https://download.pytorch.org/whl/cpu torch 2> /dev/null \
		|| echo "download.pytorch.org cannot be reached: installing PyPI's torch"
endif
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# what tests and checks need: export, eval, serve and their libraries
.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

fit: venv
	$(BIN)/lit-lm fit --config configs/quick.yaml
	$(BIN)/lit-lm predict --ckpt_path quick --prompt "Once upon a time"

test: .venv/installed-dev
	$(BIN)/pytest --quiet --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# tests of the page of `lit-lm serve` in Chromium
browser: .venv/installed-browser chromium
	BROWSER_TESTS=1 $(BIN)/pytest --quiet tests/browser

chromium:
	@command -v chromedriver > /dev/null || command -v apt-get > /dev/null \
		|| { echo "make browser needs Chromium or Chrome, and chromedriver on the PATH: install them first"; exit 1; }
	command -v chromedriver > /dev/null \
		|| $(if $(filter 0,$(shell id -u)),,sudo )apt-get install --yes chromium chromium-driver

.venv/installed-browser: .venv/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	touch $@

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# the variable silences the notice that Zensical will succeed Material for MkDocs in 2027
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# with peers to compare with: make bench NANOGPT=../nanoGPT PEERS=../peers/bin/python LLAMA2C=../llama2.c
bench: .venv/installed-dev
	$(BIN)/python tools/bench.py train $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python tools/bench.py generate $(if $(LLAMA2C),--llama2c $(LLAMA2C))
	$(BIN)/python tools/bench.py prepare
	$(BIN)/python tools/bench.py attention
	$(BIN)/python tools/bench.py start
