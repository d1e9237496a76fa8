# One command each, on a fresh clone: `make demo` shows the effect, `make test` runs what CI runs.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
RESIDUAL := $(addprefix tests/experiments/,images/test_residual.py images/test_residual_run.py test_class_incremental.py test_warm_starting.py)

TORCHVISION := $(addprefix tests/integrations/test_,avalanche.py recipes.py sb3_contrib.py timm.py torchrl.py)

.PHONY: demo test package floors slow faults integrations docs zoo format clean

demo: .venv/lab
	$(BIN)/pliant run slowly-changing-regression --profile quick --out runs/demo
	$(BIN)/pliant plot runs/demo

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal $(RESIDUAL:%=--ignore=%)
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -n 2 $(RESIDUAL)  # as a CPU without AVX-512 computes

package: .venv/dev  # wheel and sdist, in build/dist; the wheel at work where the source is not
	rm -rf build/dist
	$(BIN)/python -m build --no-isolation --outdir build/dist
	$(BIN)/pytest -m package tests/release

floors: .venv-floors/floors  # the lowest versions that pyproject.toml allows, of all but torch and River
	.venv-floors/bin/python -m pytest -n 2 -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning tests --ignore tests/test_site.py

slow: .venv/dev  # the whole grid of promises; fuzzing
	$(BIN)/pytest -n 2 -m "slow and not faults"

faults: .venv/dev  # a hundred kills over every experiment; signals, disks, clocks, damaged files (`test` runs a few of each)
	$(BIN)/pytest -n 2 --dist worksteal -m faults

integrations: .venv/dev .venv-integrations/integrations .venv-torchvision/integrations  # other libraries' training loops, most in an environment of their own
	$(BIN)/pytest -n 2 -m integrations
	.venv-integrations/bin/python -m pytest -n 2 -m integrations tests/integrations
	.venv-torchvision/bin/python -m pytest -n 2 -m integrations $(TORCHVISION)
	.venv-integrations/bin/python -m pytest -W ignore tests/test_documentation.py -k integrations.md

docs: .venv/dev  # the site, in build/site
	rm -rf build/site
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

zoo: .venv-zoo/zoo  # other libraries' models, in an environment of their own
	.venv-zoo/bin/python -m pytest -m zoo tests/zoo

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-floors .venv-zoo .venv-integrations .venv-torchvision runs/demo build

.venv/lab .venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(@F)]"
	touch $@

.venv-floors/floors: pyproject.toml constraints.txt
	test -x .venv-floors/bin/python || $(PYTHON) -m venv .venv-floors
	.venv-floors/bin/pip install --quiet packaging
	.venv-floors/bin/python -m tests.release.floors > .venv-floors/floors.txt
	.venv-floors/bin/pip install --quiet --constraint .venv-floors/floors.txt --editable ".[lab,sklearn,rl,sb3]" hypothesis pytest pytest-xdist schedulefree
	touch $@

.venv-integrations/integrations: tests/integrations/requirements.txt constraints.txt
	test -x .venv-integrations/bin/python || $(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/pip install --quiet torch --constraint constraints.txt
	.venv-integrations/bin/pip install --quiet -r tests/integrations/requirements.txt --constraint constraints.txt --editable ".[lab]"
	touch $@

.venv-torchvision/integrations: tests/integrations/torchvision.txt tests/integrations/libraries.txt constraints.txt
	test -x .venv-torchvision/bin/python || $(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/pip install --quiet torch --constraint constraints.txt
	.venv-torchvision/bin/pip install --quiet --no-deps -r tests/integrations/libraries.txt
	.venv-torchvision/bin/pip install --quiet -r tests/integrations/torchvision.txt --constraint constraints.txt --editable .
	touch $@

.venv-zoo/zoo: tests/zoo/requirements.txt tests/zoo/libraries.txt constraints.txt
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/pip install --quiet torch --constraint constraints.txt
	.venv-zoo/bin/pip install --quiet -r tests/zoo/requirements.txt --constraint constraints.txt
	.venv-zoo/bin/pip install --quiet --no-deps --constraint constraints.txt -r tests/zoo/libraries.txt --editable .
	touch $@
