# make demo   from nothing to labels: environment, two simulated surveys, a network carried from one to the other, a report, labelled files
# make test   everything the continuous integration runs; each step is also a target of its own
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEMO ?=

export PATH := $(BIN):$(PATH)
export SPECNB_SHARED_DATA ?= $(abspath ../shared/data)
STEPS := in-step readme-check docs-check notebooks tutorials wheel pytest

.NOTPARALLEL:
.PHONY: help env demo test $(STEPS) bench docs readme export clean

help:
	@echo 'make demo     environment, quick showdown of transfer strategies, labelled files (DEMO="--help" shows its options)'
	@echo 'make test     everything the continuous integration runs: $(STEPS)'
	@echo 'make export   notebooks to modules, notebooks cleaned, README written'
	@echo 'make bench    measured speeds'
	@echo 'make docs     the website, where Quarto is installed'

env: $(READY)

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): some minutes the first time'
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: env
	$(BIN)/specnb_demo $(DEMO)

test: env $(STEPS)

# modules in step with notebooks, notebooks clean
in-step: env
	$(BIN)/python tools/in_step.py

readme-check: env
	$(BIN)/python tools/readme.py --check

# sidebar, links, nbdev's preprocessing
docs-check: env
	$(BIN)/python tools/check_docs.py

notebooks: env
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing

# index and tutorials again, each in a kernel of its own
tutorials: env
	$(BIN)/python tools/run_tutorials.py

# built, installed elsewhere with the newest fastai and fastcore, labels a spectrum
wheel: env
	$(BIN)/python tools/check_wheel.py

# last, so that its closing line closes the run
pytest: env
	$(BIN)/python -m pytest tests

bench: env
	$(BIN)/python -m pytest tests/bench -s -q -W ignore -o python_files='bench_*.py' -o python_functions='bench_*'

docs: env readme docs-check
	@if command -v quarto >/dev/null; then $(BIN)/nbdev_docs && $(BIN)/python tools/readme.py && echo 'the site is in _docs/'; \
	else echo 'Quarto is not installed (https://quarto.org): the pages were checked, not rendered'; fi

readme: env
	$(BIN)/python tools/readme.py

export: env
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

clean:
	rm -rf _docs _proc build dist demo showdown *.egg-info .pytest_cache .hypothesis
