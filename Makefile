# Everything runs in .venv; the set-up step is repeated only when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-all test-docs test-portable test-oldest test-newest gpu fuzz kills lint build bench studies docs site clean
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

# the documentation does what it says: guides, commands of README and pages, the site without a warning
test-docs: setup
	$(BIN)/python -m pytest -q -n 2 --dist load tests/test_guides.py tests/test_commands.py tests/test_site.py

# what users have who lack AVX-512, and two threads where the library's own kernels or its solvers meet them
test-portable: setup
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile
	CONVSMITH_TEST_THREADS=2 $(BIN)/python -m pytest -q -m "not slow and not gpu" tests/pooling tests/compression/operators tests/adaptation/losses

# the oldest and the newest torch and timm that are supported, each in a virtual environment of its own
test-oldest test-newest: test-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q $(if $(filter oldest,$*),-c constraints-oldest.txt,--upgrade) -e ".[dev]"
	.venv-$*/bin/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile

# every device test, then the suites on the device; at most nine minutes
gpu: setup
	$(BIN)/python -m pytest -q -m gpu
	$(BIN)/python -m experiments bench all --device cuda --quick --out results/benchmarks

fuzz: setup
	$(BIN)/python -m tests.fuzz --cases 20000 --write docs/reliability.md

# a hundred commands killed at random moments; each must go on to the result of an uninterrupted one
kills: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills --times 100 --write docs/reliability.md

# wheel and sdist, checked, and the wheel used from outside the checkout
build: setup
	rm -rf dist build/wheel
	$(BIN)/python -m build -q
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pip install -q --no-deps --target build/wheel dist/*.whl
	cd / && PYTHONPATH=$(CURDIR)/build/wheel $(CURDIR)/$(BIN)/python -c "import convsmith, sys; sys.exit(not convsmith.__file__.startswith('$(CURDIR)/build'))"
	cd / && PYTHONPATH=$(CURDIR)/build/wheel $(CURDIR)/$(BIN)/python -m convsmith --version
	cd / && PYTHONPATH=$(CURDIR)/build/wheel $(CURDIR)/$(BIN)/python -m convsmith init

bench: setup
	$(BIN)/python -m experiments bench all

studies: setup
	$(BIN)/python -m experiments data emoji --least 12
	$(BIN)/python -m experiments study all --quick

docs: setup
	$(BIN)/python -m experiments pages

# the documentation as pages under site/; a warning or a dead link is an error
site: docs
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src:. $(BIN)/python -m mkdocs build -q

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist site runs .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
