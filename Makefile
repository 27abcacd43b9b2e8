# make demo   generate a world into outputs/demo.mp4     make serve  start the server on port 8000 (ARGS="--port 9000 ...")
# make test   linters, types and tests                   make shell  a shell in which `cosmorama` and `python` are .venv's
# make microcosm  train the embedded model from nothing (hours)
# All of them install what they need into .venv first; PYTHON=python3.12 chooses the interpreter, TORCH=cpu or
# TORCH=default the build of torch.
BIN := .venv/bin
PROMPT ?= a red ball rolls to the right and hits a blue cube on a green floor
DEMO_ARGS ?=
ARGS ?=

.PHONY: demo serve test shell install install-test microcosm clean

demo: install
	$(BIN)/cosmorama generate "$(PROMPT)" --seed 7 --force -o outputs/demo.mp4 $(DEMO_ARGS)

serve: install
	$(BIN)/cosmorama serve $(ARGS)

test: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

shell: install
	@echo "Leave it with exit or Ctrl-D."; PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" "$${SHELL:-sh}"

install:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/install serve

install-test:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/install test

microcosm: install-test
	$(BIN)/python -m microcosm

clean:
	rm -rf .venv outputs build
