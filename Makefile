# make run | test | check | docs | install     variables: ARGS, VENV, GPU, PYTHON
PYTHON ?= python3
VENV ?= .venv
GPU ?= $(if $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep GPU),1,0)
FAISS := $(if $(filter 1,$(GPU)),gpu,cpu)
OTHER_FAISS := $(if $(filter 1,$(GPU)),cpu,gpu)
ARGS ?= dataset=demo
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed-$(FAISS)

NEW_ENOUGH := import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])
define NO_ENVIRONMENT
$(PYTHON) cannot make the environment $(VENV). Make it with one of these, then type make again:
  make PYTHON=/path/to/python3.11                               (Debian, Ubuntu: apt-get install python3-venv)
  uv venv --seed --python 3.12 $(VENV)
  conda create --yes --prefix $(VENV) python=3.12 pip
endef
export NO_ENVIRONMENT

.PHONY: run test check docs install

run: install
	$(VENV)/bin/python -m balance.run $(ARGS)

test: install
	$(VENV)/bin/python -m pytest -q -n 2

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: install
	$(VENV)/bin/python tools/configuration.py > docs/configuration.md
	$(VENV)/bin/zensical build --clean --strict

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PIP) --version >/dev/null 2>&1 || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv $(VENV); } || { echo "$$NO_ENVIRONMENT" >&2; exit 1; }
	$(PIP) install $(TORCH)
	@rm -f $(VENV)/.installed-*
	@$(PIP) uninstall --yes faiss-$(OTHER_FAISS) 2>/dev/null || true  # both builds own the same folder: never both
	$(PIP) install --constraint constraints.txt --editable '.[$(FAISS),dev]'
	@touch $@
