# Each target creates .venv and installs what it needs. PIP_ARGS is passed to pip. PYTHON names the interpreter, 3.11 or later.
PYTHON ?= python3
PROFILE ?= digits
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.installed

.PHONY: figures test test-all lab site bench soak readme exercises lint clean
.DELETE_ON_ERROR:

figures: $(READY)  ## draw every figure and table; restrict with PROFILE=digits ONLY=02,05 SEED=1 SEEDS=3
	$(BIN)/python -m mnv3nb figures --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),-p seed $(SEED)) $(if $(SEEDS),-p seeds $(SEEDS))

test: $(READY) lint  ## facts, properties, oracles, notebooks, browser: some 8 minutes on 2 quiet cores
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-all: $(READY) lint  ## the same, with kills, grids on Dask and the soak: some hours
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "slow or not slow"
	$(MAKE) soak

lab: $(READY)  ## open JupyterLab on runs/notebooks, a copy of the notebooks that is yours to edit
	$(BIN)/python notebooks/working_copy.py

site: .venv/.site  ## build a static site of the pages and of the notebooks in figures/$(PROFILE) in build/site; only the installation needs a network
	$(BIN)/python docs/build_site.py --profile $(PROFILE)

.venv/.site: $(READY) docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r docs/requirements.txt
	@touch $@

bench: $(READY)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable -s --ignore tests/benchmarks/test_torchvision.py

soak: $(READY)  ## long: a thousand kills and a grid of 500 runs
	MNV3NB_KILLS=1000 MNV3NB_GRID=500 $(BIN)/python -m pytest tests/test_faults.py -m "slow or not slow" -k "killed or long_grid"

readme: $(READY)  ## write the generated tables of the README and of the other pages, from recorded runs and measurements
	$(BIN)/python docs/pages.py

exercises: $(READY)  ## make the students' and the solved copies of notebooks/exercises/source
	$(BIN)/python notebooks/exercises/build.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv once. This takes a few minutes and some 5 GB; docs/guide.md says how to install a smaller, CPU-only torch."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -e .
	@touch $(READY)

clean:
	rm -rf .venv build dist *.egg-info
