# `make setup` needs python3 (3.10 or newer) and a package index; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done
UV := uv==0.13.8
# Detectron2 as published on the package index. Its wheel is tagged for Python 3.10, but all that
# we use of it is plain Python; its compiled part is not needed.
DETECTRON2 ?= sal-detectron2==0.7.2
# Two workers with one thread each are faster than one worker with two threads.
WORKERS ?= 2
ROUNDS ?= 2000

.PHONY: help setup demo photos test test-newest lint format typecheck docs bench growth soak fuzz check lock clean

help:
	@echo "make setup      own .venv with pinned versions (repeat it freely)"
	@echo "make demo       train and compare the baseline and AlignZeg: output/demo/report.html"
	@echo "make photos DATA=FOLDER   the same on photographs, MSRC v2: output/photos/report.html"
	@echo "make test       every test;  make check  lint + typecheck + test"
	@echo "make test-newest   every test with the newest of all packages, in .venv-newest"
	@echo "make lint | format | typecheck | docs | bench | growth | soak | fuzz | lock | clean"

setup: $(STAMP)

$(STAMP): requirements.lock setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10; try make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "error: $(PYTHON) cannot make a virtual environment; install its venv package" >&2; exit 2; }
	@$(PY) -m uv --version >/dev/null 2>&1 \
		|| $(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	$(PY) -m uv pip install --quiet --python $(PY) -r requirements.lock
	$(PY) -m uv pip install --quiet --python-version 3.10 --no-deps \
		--target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$(DETECTRON2)"
	$(PY) -m uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: setup
	$(PY) -m alignzeg demo

# Another folder is refused before the set-up, which may take minutes; the command looks closer.
DATA ?=
MSRC := http://research.microsoft.com/en-us/um/people/antcrim/data_objrec/msrc_objcategimagedatabase_v2.zip
photos:
	@for folder in GroundTruth MSRC_ObjCategImageDatabase_v2/GroundTruth annotations; do \
		test -n "$(DATA)" && test -d "$(DATA)/$$folder" && exit 0; done; \
	echo "error: DATA is '$(DATA)'; make photos DATA=FOLDER needs MSRC v2, unpacked: Images/ and GroundTruth/ of" \
		"$(MSRC) (if it is gone: web.archive.org has it), or the same images with cleaned-up labels," \
		"images/ and annotations/, each with train/ and val/" >&2; exit 2
	@$(MAKE) --no-print-directory setup
	$(PY) -m alignzeg photos --data "$(DATA)"

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist worksteal

# Without the lock: what somebody gets who installs this today. Detectron2 alone stays as it is.
NEWEST := .venv-newest
test-newest: setup
	$(PY) -m uv venv --quiet --clear --python $(PY) $(NEWEST)
	$(PY) -m uv pip install --quiet --python $(NEWEST)/bin/python --upgrade \
		--editable ".[imagenet,export,results,web,dev]"
	$(PY) -m uv pip install --quiet --python-version 3.10 --no-deps \
		--target "$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$(DETECTRON2)"
	$(PY) -m uv pip list --python $(NEWEST)/bin/python
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: setup
	$(PY) -m mypy

# The pages of docs/, with every link checked: output/site/index.html
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m uv tool run --quiet --from "mkdocs<2" --with "mkdocs-material>=9.5,<10" mkdocs build --strict

# Ratios beside what people would use instead: docs/benchmarks.md and output/bench/results.json.
# About a quarter of an hour on two idle cores; a part of it: make bench BENCH="--only label_map".
BENCH ?=
bench: setup
	$(PY) dev/bench $(BENCH)

# How cost grows with each size: output/bench/growth.png.
growth: setup
	PYTHONPATH=dev $(PY) -m bench.growth

# Long stress runs: make soak KILLS=200 FAILURES=20 ROUNDS=2000
KILLS ?= 200
FAILURES ?= 20
soak: setup
	OMP_NUM_THREADS=1 $(PY) dev/stress_kills.py --kills $(KILLS)
	OMP_NUM_THREADS=1 $(PY) dev/stress_failures.py --rounds $(FAILURES)
	OMP_NUM_THREADS=1 $(PY) dev/fuzz.py --rounds $(ROUNDS)

# Damaged inputs of every kind: each must run or end with one line. About 20 minutes.
fuzz: setup
	OMP_NUM_THREADS=1 $(PY) dev/fuzz.py --rounds $(ROUNDS)
	OMP_NUM_THREADS=1 $(PY) dev/fuzz_data.py

check: lint typecheck test

# Writes requirements.lock anew, for every supported Python, keeping the versions that still fit.
lock: setup
	$(PY) -m uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
		--extra demo --extra dev --extra imagenet --extra export --extra results --extra web setup.py -o requirements.lock

clean:
	rm -rf $(VENV) $(NEWEST) *.egg-info .pytest_cache .mypy_cache .ruff_cache
