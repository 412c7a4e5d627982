# Everything runs in .venv; the set-up step is repeated only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-all lint bench studies docs clean
setup: $(STAMP)

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	rm -f .venv/.ready-*
	touch $@

demo: setup
	$(BIN)/convsmith demo --out runs/demo --overwrite

lint: setup
	$(BIN)/ruff format --check src experiments tests
	$(BIN)/ruff check src experiments tests
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: setup
	$(BIN)/python -m experiments bench all

studies: setup
	$(BIN)/python -m experiments study all --quick

docs: setup
	$(BIN)/python -m experiments pages

clean:
	rm -rf .venv build dist runs .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
