# make demo   generate a world into outputs/demo.mp4     make serve  start the server on port 8000
# make test   linters, types and tests                   make microcosm  train the embedded model from nothing (hours)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= a red ball rolls to the right and hits a blue cube on a green floor
DEMO_ARGS ?=
WITH_TEST_TOOLS := .[test,train,cosmos,otel,quantize,s3,bench,deploy]

.PHONY: demo test serve install microcosm clean

demo: $(VENV)/.installed
	$(BIN)/cosmorama generate "$(PROMPT)" --seed 7 -o outputs/demo.mp4 $(DEMO_ARGS)

serve: $(VENV)/.installed
	$(BIN)/cosmorama serve

# The generic adapter's threads hung once after a long run of other tests in the same process, so they get their own.
test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/world/generic/test_generic.py
	$(BIN)/pytest tests/world/generic/test_generic.py

install: $(VENV)/.installed

# constraints.txt pins every package, and torch to its CPU build. Where pip's indexes offer only the default build of
# torch (on Linux: with several GB of CUDA libraries), that one is taken; it runs as well. For the small one, add
# PyTorch's own index of CPU builds to pip's configuration first (PIP_EXTRA_INDEX_URL).
define pip_install
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt -e "$(1)" || { \
	    echo "No CPU build of torch in reach: taking the default build."; \
	    sed 's/+cpu$$//' constraints.txt > $(VENV)/constraints.txt; \
	    $(BIN)/pip install -q -c $(VENV)/constraints.txt -e "$(1)"; }
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call pip_install,.)
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt Makefile
	$(call pip_install,$(WITH_TEST_TOOLS))
	@touch $@ $(VENV)/.installed

microcosm: $(VENV)/.installed-test
	$(BIN)/python -m microcosm

clean:
	rm -rf $(VENV) outputs build
