# Thin lines over what a person would type. A changed pyproject.toml or constraints file installs again.
# JOBS tests run at once: most of their time they wait, for a shell, an engine or a daemon on the same few cores.
PYTHON ?= python3
JOBS ?= 5
VENV := .venv
BIN := $(VENV)/bin
CHOICE := $(if $(TARGET),--target $(TARGET)) $(if $(ENGINE),--engine $(ENGINE))

.PHONY: demo test check engine bench soak dev clean

demo: $(VENV)/.installed       ## launch a first run, follow it, end it
	$(BIN)/run-launcher demo

test: $(VENV)/.installed-test  ## TARGET=process ENGINE=cli ARGS="-k name" narrow it; JOBS=0: one after the other
	$(BIN)/run-launcher setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(CHOICE) $(ARGS)

check: $(VENV)/.installed-test ## what a reviewer would say first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/wheel_check.py

# Not TestCancel: Pulumi's engine, when it is stopped at once, closes a channel that it may still write to, and takes
# the panic for an answer, which the detector counts as a race.
engine:                        ## the warm engine's Go: vet, and its tests under the race detector
	cd stacks/warm && go vet . && go test -count=1 .
	cd stacks/warm && CGO_ENABLED=1 go test -race -count=1 -skip '^TestCancel$$' .

bench: $(VENV)/.installed-test ## speed, side by side with the tools that it replaces
	$(BIN)/python -m tests.benchmarks $(ARGS)

soak: $(VENV)/.installed-test  ## lives by the thousand, kills by the hundred
	$(BIN)/python -m pytest -m soak $(CHOICE) $(ARGS)

dev: $(VENV)/.installed-test   ## everything to work on this, ready
	@echo "Ready: . $(BIN)/activate"

clean:
	rm -rf $(VENV) .venv-lowest

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' -c tests/constraints.txt
	touch $@ $(VENV)/.installed
