# make demo: register an example pair.  make test: run the tests.  Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXAMPLE := output/example
MONAILABEL := .venv-monailabel
MONAILABEL_PIP := $(MONAILABEL)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench clean monailabel test-monailabel

demo: $(VENV)/.installed
	$(PY) -m scripts.example_pair $(EXAMPLE)/pair
	$(PY) -m monai.bundle run inference --config_file configs/inference.yaml \
		--fixed $(EXAMPLE)/pair/fixed.nii.gz --moving $(EXAMPLE)/pair/moving.nii.gz \
		--fixed_label $(EXAMPLE)/pair/fixed_label.nii.gz --moving_label $(EXAMPLE)/pair/moving_label.nii.gz \
		--fixed_landmarks $(EXAMPLE)/pair/fixed_landmarks.csv --moving_landmarks $(EXAMPLE)/pair/moving_landmarks.csv \
		--output_dir $(EXAMPLE)/result --preset fast

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 # two processes of one thread use two cores better than one of two

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV)/.installed-dev
	$(PY) -m benchmarks.performance
	$(PY) -m benchmarks.dev_pairs
	$(PY) -m benchmarks.methods

$(VENV)/.installed: requirements.txt constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-reference.txt requirements-comparators.txt
	$(PIP) -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-reference.txt -r requirements-comparators.txt
	touch $@

# the server for annotators, in an environment of its own: make monailabel STUDIES=DIR
monailabel: $(if $(STUDIES),,$(if $(filter monailabel,$(MAKECMDGOALS)),$(error give the folder of the studies: make monailabel STUDIES=DIR))) $(MONAILABEL)/.installed
	$(MONAILABEL)/bin/python monailabel_app/serve.py --studies $(STUDIES)

test-monailabel: $(MONAILABEL)/.installed
	$(MONAILABEL_PIP) -c monailabel_app/constraints.txt pytest
	$(MONAILABEL)/bin/python -m pytest -q monailabel_app/tests

$(MONAILABEL)/.installed: monailabel_app/requirements.txt monailabel_app/constraints.txt
	test -x $(MONAILABEL)/bin/python || $(PYTHON) -m venv $(MONAILABEL)
	$(MONAILABEL_PIP) torch==2.13.0
	$(MONAILABEL_PIP) -r monailabel_app/requirements.txt
	touch $@

clean:
	rm -rf output .mypy_cache .pytest_cache .ruff_cache
