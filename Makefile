# make demo: from a fresh clone to a federated result; test, lint and bench set up what they need themselves.
# What is installed is remembered in stamp files next to it, and installed again when its list changes.

PYTHON ?= python3
# The peers' is 3.12, after which pfl has no release, and before which BlazeFL has none: from the path, or from pyenv.
PEERS_PYTHON ?= $(shell for found in python3.12 "$$HOME"/.pyenv/versions/3.12.*/bin/python3.12; do \
	"$$found" -c "import ensurepip" 2>/dev/null && echo "$$found" && break; done)
VENV := .venv
BENCH := .venv-bench

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	OMP_NUM_THREADS=1 $(VENV)/bin/torchrun --nproc-per-node 2 launch.py run configs/quickstart.yaml --resume

test: $(VENV)/.dev $(VENV)/.assets
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run -Werror fedsim/kernels/*.h fedsim/kernels/*.cpp
	$(VENV)/bin/mypy

bench: $(VENV)/.installed $(BENCH)/.installed
	$(VENV)/bin/python -m benchmarks.throughput --small

clean:
	rm -rf $(VENV) $(BENCH) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps. An installation that breaks off leaves none, and the next start takes it up again.
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "fedsim needs Python 3.11 or newer, found: $$($(PYTHON) --version 2>&1). Choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	$(PYTHON) -m venv $*

$(BENCH)/bin/python:
	@test -n "$(PEERS_PYTHON)" || \
		{ echo "The peers need Python 3.12 with venv, found none. Name one: make PEERS_PYTHON=PATH $(MAKECMDGOALS)"; exit 1; } >&2
	$(PEERS_PYTHON) -m venv $(BENCH)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements.txt in $(VENV); PyTorch is large, so this may take minutes."
	@$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(BENCH)/.installed: requirements-bench.txt | $(BENCH)/bin/python
	@$(BENCH)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
		{ echo "The peers need Python 3.12, $(BENCH) has: $$($(BENCH)/bin/python --version). Remove it: rm -r $(BENCH)"; exit 1; } >&2
	$(BENCH)/bin/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

# What the demo needs, and what the tests need.
$(VENV)/.demo: fedsim/data/assets/__init__.py $(VENV)/.installed
	$(VENV)/bin/python launch.py assets fetch vit_small_dino brain_mri
	@touch $@

$(VENV)/.assets: fedsim/data/assets/__init__.py $(VENV)/.installed
	$(VENV)/bin/python launch.py assets fetch
	@touch $@
