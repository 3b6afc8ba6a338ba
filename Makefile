# Everything runs in a virtual environment of its own, .venv, which is made when it is needed.
#
#   make demo    the main job on a real llama.cpp with a tiny model; Ctrl-C ends it
#   make test    all checks and tests
#   make lint    the checks alone
#   make wheel   the packages of the last commit in dist/, the same bytes each time
#   make bench   how fast it is: direct, through 15 lines of Klein and treq, and through bioproxy
#   make soak    is it right also under load? a thousand waiting clients, users in the middle of warm-ups, slow clients,
#                coding agents, llama-server and bioproxy killed at random moments, real clients from PyPI and npm
#   make screenshots  the pictures of the live page, anew (needs Debian's chromium and chromium-driver)
#   make clean   remove what these made

PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint wheel bench soak screenshots clean

demo: .venv/with-demo
	$(BIN)/twistd --pidfile= -n bioproxy --demo

test: lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses 3 --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/trial --jobs 2 tests

lint: .venv/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

wheel: .venv/with-test
	$(BIN)/python tools/packages.py

bench: .venv/with-test
	$(BIN)/python -m benchmarks.bench

soak: .venv/with-test
	$(BIN)/python -m benchmarks.soak

screenshots: .venv/with-pictures
	$(BIN)/python -m benchmarks.screenshots

# The stamp files remember that an installation was finished; a new pyproject.toml asks for another.
.venv/with-%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .coverage* .hypothesis .nox .mypy_cache .pytest_cache .ruff_cache _trial_temp*
