# make demo: register an example pair.  make test: run the tests.  Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
LOCKED := -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-build-isolation
EXAMPLE := output/example
MONAILABEL := .venv-monailabel
MONAILABEL_PIP := $(MONAILABEL)/bin/python -m pip install --quiet --disable-pip-version-check
TOOLS := .venv-tools
# threads that wait are to sleep soon: docs/performance.md
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test lint docs linkcheck bench fuzz soak faults coverage mutants matrix clean monailabel test-monailabel lock audit licenses sbom \
	bundle huggingface zoo-check tag

demo: $(VENV)/.installed
	$(PY) -m scripts.data.example_pair $(EXAMPLE)/pair
	$(PY) -m monai.bundle run inference --config_file configs/inference.yaml \
		--fixed $(EXAMPLE)/pair/fixed.nii.gz --moving $(EXAMPLE)/pair/moving.nii.gz \
		--fixed_label $(EXAMPLE)/pair/fixed_label.nii.gz --moving_label $(EXAMPLE)/pair/moving_label.nii.gz \
		--fixed_landmarks $(EXAMPLE)/pair/fixed_landmarks.csv --moving_landmarks $(EXAMPLE)/pair/moving_landmarks.csv \
		--fixed_modality ct --moving_modality ct --output_dir $(EXAMPLE)/result --preset fast

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 # two processes of one thread use two cores better than one of two

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# the site in output/docs; a warning, such as a dead link, is an error
docs: $(VENV)/.installed-dev output/tutorial/tutorial.ipynb
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -W --keep-going -b html docs output/docs

# the tutorial with its results; nbmake fails where a cell does
output/tutorial/tutorial.ipynb: docs/tutorial.ipynb $(VENV)/.installed-dev
	mkdir -p $(@D)
	cp $< $(@D)/run.ipynb
	$(PY) -m pytest -q --nbmake --overwrite --nbmake-timeout=600 $(@D)/run.ipynb
	mv $(@D)/run.ipynb $@

# asks the network for every external link; not a part of CI
linkcheck: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -b linkcheck docs output/linkcheck

bench: $(VENV)/.installed-dev
	$(PY) -m tools.benchmarks.performance
	$(PY) -m tools.benchmarks.dev_pairs
	$(PY) -m tools.benchmarks.methods

# what tries to break it (docs/robustness.md); CI runs samples of it with the tests
fuzz: $(VENV)/.installed-dev
	$(PIP) -r requirements-campaigns.txt
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.fuzz --count 12000
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.fuzz_bytes --runs 20000

soak: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.soak
	$(MAKE) $(MONAILABEL)/.installed
	$(MONAILABEL_PIP) -c monailabel_app/constraints.txt pytest
	SOAK_REQUESTS=200 $(MONAILABEL)/bin/python -m pytest -q -s monailabel_app/tests/test_server.py -k many_requests

faults: $(VENV)/.installed-dev
	$(PY) -m tools.campaigns.faults

coverage: $(VENV)/.installed-dev
	$(PIP) -r requirements-campaigns.txt
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --cov --cov-report=term:skip-covered

mutants: $(VENV)/.installed-dev
	$(PIP) -r requirements-campaigns.txt
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.mutants

matrix: # docs/compatibility.md
	.ci/matrix

# Only files whose hashes are listed; what comes as source is built with what the first line installs. torch without CUDA
# is taken where pip finds it (a folder or an index that pip's settings name), else PyPI's build, with what that needs.
$(VENV)/.installed: requirements.lock requirements-build.lock requirements-cpu.lock requirements-cuda.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) $(LOCKED) -r requirements-build.lock
	$(PY) $(LOCKED) -r requirements-cpu.lock 2>/dev/null || echo "torch comes from PyPI: no listed build without CUDA was found"
	$(PY) $(LOCKED) -r requirements.lock
	if $(PY) -m tools.supply_chain.cuda_build; then $(PY) $(LOCKED) -r requirements-cuda.lock; fi
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-docs.txt requirements-reference.txt requirements-comparators.txt
	$(PIP) -r requirements-dev.txt -r requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-reference.txt -r requirements-comparators.txt
	touch $@

# the server for annotators, in an environment of its own: make monailabel STUDIES=DIR
monailabel: $(if $(STUDIES),,$(if $(filter monailabel,$(MAKECMDGOALS)),$(error give the folder of the studies: make monailabel STUDIES=DIR))) $(MONAILABEL)/.installed
	@echo "starting the server for $(STUDIES); it answers within a minute, when the log says 'Application startup complete'"
	$(MONAILABEL)/bin/python monailabel_app/serve.py --studies $(STUDIES)

test-monailabel: $(MONAILABEL)/.installed
	$(MONAILABEL_PIP) -c monailabel_app/constraints.txt pytest
	$(MONAILABEL)/bin/python -m pytest -q monailabel_app/tests

$(MONAILABEL)/.installed: monailabel_app/requirements.txt monailabel_app/constraints.txt
	@echo "MONAI Label gets an environment of its own, $(MONAILABEL): several minutes, only this time"
	test -x $(MONAILABEL)/bin/python || $(PYTHON) -m venv $(MONAILABEL)
	@echo "1 of 2: installing PyTorch, 200 MB to 3 GB; nothing is printed until it is done"
	$(MONAILABEL_PIP) torch==2.13.0
	@echo "2 of 2: installing MONAI Label and about 150 packages that it needs; nothing is printed until it is done"
	$(MONAILABEL_PIP) -r monailabel_app/requirements.txt
	@echo "$(MONAILABEL) is installed"
	touch $@

# what is installed: the locks anew, known vulnerabilities, licences, bill of materials; docs/security.md
lock: $(TOOLS)/.installed
	$(TOOLS)/bin/python -m tools.supply_chain.lock

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/python -m tools.supply_chain.audit

licenses: $(VENV)/.installed
	$(PY) -m tools.supply_chain.licenses

sbom: $(VENV)/.installed $(TOOLS)/.installed
	$(TOOLS)/bin/python -m tools.supply_chain.sbom $(PY)

$(TOOLS)/.installed: tools/supply_chain/tools.lock
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) -r tools/supply_chain/tools.lock
	touch $@

# a release: the zip file of the model zoo, the folder for Hugging Face, the zoo's checks, the tag; docs/release.md
bundle: $(VENV)/.installed
	$(PY) -m tools.release.bundle

huggingface: $(VENV)/.installed
	rm -rf output/huggingface
	$(PY) -m tools.release.huggingface

zoo-check: $(VENV)/.installed-dev
	$(PY) -m tools.release.zoo_check

tag: $(VENV)/.installed
	$(PY) -m tools.release.tag

clean:
	rm -rf output mutants .coverage* .mypy_cache .pytest_cache .ruff_cache
