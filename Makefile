# `make demo` and `make test` set up all they need in .venv: Python 3.11+ and git suffice. A second run starts at once,
# because the stamps in .venv say what is installed; they fall with pyproject.toml and constraints.txt.
#
# PYTHON=python3.12 chooses the interpreter of .venv, PYTEST_ARGS="-m 'not slow'" what is tested.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
DEMO_OUTPUT := outputs/demo

# Torch comes first, in its own step and in exactly the version of constraints.txt. A bare `torch`, also as something
# else's dependency, is the newest one, which on Linux is built for CUDA and brings several GB of NVIDIA packages. The
# pin is met by the CPU build of that version, `+cpu`, which pip prefers where its indexes or wheel folders have it;
# where they do not, PIP_EXTRA_INDEX_URL can name PyTorch's own index of CPU builds.
# With a GPU, install your own torch into .venv first: this step leaves it alone if its version is the pinned one.
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)

# Accelerate guesses those of these that are missing, with a warning.
LAUNCH_FLAGS := --quiet --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

# Only pip uses the network.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pips must not write into one .venv.
.NOTPARALLEL:
.PHONY: help demo test lint docs clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: $(VENV)/.installed ## train on real icons, on the CPU, in minutes: results in outputs/demo
	@rm -rf $(DEMO_OUTPUT)  # training refuses an output directory with something in it; this one is the demo's own
	@# One thread: the tensors of the small CLIP are so small that several would only wait for each other.
	@$(BIN)/accelerate launch $(LAUNCH_FLAGS) --num_cpu_threads_per_process 1 \
		recipes/train.py recipes/configs/demo.yaml --output_dir $(DEMO_OUTPUT)
	@$(BIN)/python -c "from jscpt_peft.data import load_task_set; \
		load_task_set('icons', 'recipes/assets/icons').tasks[0].test[125]['image'].save('$(DEMO_OUTPUT)/icon.png')"
	@echo "The adapter loads again and classifies an image it has not seen:"
	@$(BIN)/python recipes/predict.py --adapter $(DEMO_OUTPUT) --task outline $(DEMO_OUTPUT)/icon.png

test: $(VENV)/.test-installed ## run all tests, the slow ones too
	@# Two files at a time, each on one thread: most tests are too small for more, or wait for processes to start.
	@# Files in the order of tests/conftest.py: not, as xdist would have it, those with the most tests first.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.linters-installed ## check style, format and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs-installed ## build the documentation: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove .venv, caches, builds and the demo's output
	@rm -rf $(VENV) $(DEMO_OUTPUT) build dist .pytest_cache .ruff_cache *.egg-info
	@find . -type d -name __pycache__ -prune -exec rm -rf {} +

# A .venv that works is kept, whoever made it, and one that lacks pip gets it.
$(VENV)/.made:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "error: '$(PYTHON)' is missing or older than Python 3.11: name another with make PYTHON=..." >&2; \
			exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "error: '$(PYTHON)' has no venv module: install it (on Debian or Ubuntu: apt install python3-venv)," \
				"or name another Python with make PYTHON=..." >&2; \
			exit 1; }; \
		echo "Making $(VENV) ..."; \
		$(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.torch-installed: constraints.txt $(VENV)/.made
	@echo "Installing $(TORCH) ..."
	@$(PIP) install -c constraints.txt $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	@echo "Installing jscpt_peft and what it needs ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	@echo "Installing jscpt_peft and what its tests need ..."
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $(VENV)/.installed $@  # the demo needs nothing more

$(VENV)/.linters-installed: constraints.txt $(VENV)/.made
	@echo "Installing the linters ..."
	@$(PIP) install -c constraints.txt import-linter ruff
	@touch $@

$(VENV)/.docs-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	@echo "Installing what the documentation needs ..."
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@
