# One command each, on a fresh clone: `make demo` shows the effect, `make test` runs what CI runs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1

.PHONY: demo test zoo format clean

demo: .venv/lab
	$(BIN)/pliant run slowly-changing-regression --profile quick --out runs/demo
	$(BIN)/pliant plot runs/demo

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=.venv/boundscheck $(BIN)/pytest -n 2 tests/online/test_parity.py tests/online/test_variants.py tests/online/test_noise.py

zoo: .venv-zoo/zoo  # other libraries' models, in an environment of their own
	.venv-zoo/bin/python -m pytest -m zoo tests/zoo

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-zoo runs/demo

.venv/lab .venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(@F)]"
	touch $@

.venv-zoo/zoo: tests/zoo/requirements.txt constraints.txt
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet torch --constraint constraints.txt
	.venv-zoo/bin/pip install --quiet -r tests/zoo/requirements.txt --constraint constraints.txt
	.venv-zoo/bin/pip install --quiet --no-deps timm==1.0.31 transformers==5.23.0 --editable .
	touch $@
