# make demo: register an example pair.  make test: run the tests.  Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LOCKED := -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps
EXAMPLE := output/example
MONAILABEL := .venv-monailabel
# threads that wait are to sleep soon: docs/performance.md
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test dev lint docs linkcheck bench fuzz soak faults coverage mutants matrix clean monailabel test-monailabel lock audit \
	licenses sbom bundle huggingface zoo-check tag

demo: $(VENV)/.installed
	$(PY) -m scripts example_pair $(EXAMPLE)/pair
	$(PY) -m monai.bundle run inference --config_file configs/inference.yaml \
		--fixed $(EXAMPLE)/pair/fixed.nii.gz --moving $(EXAMPLE)/pair/moving.nii.gz \
		--fixed_label $(EXAMPLE)/pair/fixed_label.nii.gz --moving_label $(EXAMPLE)/pair/moving_label.nii.gz \
		--fixed_landmarks $(EXAMPLE)/pair/fixed_landmarks.csv --moving_landmarks $(EXAMPLE)/pair/moving_landmarks.csv \
		--fixed_modality ct --moving_modality ct --output_dir $(EXAMPLE)/result --preset fast

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal # two processes of one thread use two cores better than one of two

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

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
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.fuzz --count 12000
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.fuzz_bytes --runs 20000

soak: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m tools.campaigns.soak
	$(MAKE) $(MONAILABEL)/.installed
	SOAK_REQUESTS=200 $(MONAILABEL)/bin/python -m pytest -q -s monailabel_app/tests/test_server.py -k many_requests

faults: $(VENV)/.installed-dev
	$(PY) -m tools.campaigns.faults

coverage: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --cov --cov-report=term:skip-covered

mutants: $(VENV)/.installed-dev # docs/mutants.md
	OMP_NUM_THREADS=1 $(VENV)/bin/mutmut run

matrix: $(VENV)/.installed-dev # docs/compatibility.md
	$(VENV)/bin/nox --noxfile tools/noxfile.py

# Installs only files whose hashes are listed; fire comes as source, and the setuptools of the lock builds it. Where pip
# finds the torch of requirements-cpu.lock (in a folder or an index that pip's settings name), that lock is installed, else
# requirements.lock: torch from PyPI, on Linux with CUDA.
$(VENV)/.installed: requirements.lock requirements-cpu.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	lock=requirements-cpu.lock; \
	$(PY) -m pip install --quiet --dry-run --no-deps $$(grep -o '^torch==[^ ]*' $$lock) 2>/dev/null || lock=requirements.lock; \
	echo "installing $$lock"; \
	grep -A 2 '^setuptools==' $$lock | $(PY) $(LOCKED) -r /dev/stdin && $(PY) $(LOCKED) --no-build-isolation -r $$lock
	touch $@

# what developers need besides: checks, documentation, the methods to compare with, campaigns, tools for the locks
dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PY) $(LOCKED) --no-build-isolation -r requirements-dev.lock
	touch $@

# the server for annotators, in an environment of its own: make monailabel STUDIES=DIR
monailabel: $(if $(STUDIES),,$(if $(filter monailabel,$(MAKECMDGOALS)),$(error give the folder of the studies: make monailabel STUDIES=DIR))) $(MONAILABEL)/.installed
	@echo "starting the server for $(STUDIES); it answers within a minute, when the log says 'Application startup complete'"
	$(MONAILABEL)/bin/python monailabel_app/serve.py --studies $(STUDIES)

test-monailabel: $(MONAILABEL)/.installed
	$(MONAILABEL)/bin/python -m pytest -q monailabel_app/tests

$(MONAILABEL)/.installed: monailabel_app/requirements.lock
	@echo "MONAI Label gets an environment of its own, $(MONAILABEL): several minutes, only this time"
	test -x $(MONAILABEL)/bin/python || $(PYTHON) -m venv $(MONAILABEL)
	@echo "1 of 2: installing PyTorch, 200 MB to 3 GB; nothing is printed until it is done"
	$(MONAILABEL)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@echo "2 of 2: installing MONAI Label and about 150 packages that it needs; nothing is printed until it is done"
	$(MONAILABEL)/bin/python $(LOCKED) -r monailabel_app/requirements.lock
	@echo "$(MONAILABEL) is installed"
	touch $@

# The locks, from the lists in pyproject.toml. They keep the versions that they have; to raise some:
# make lock UPGRADE="--upgrade-package numpy". CPU_TORCH tells uv where torch without CUDA is.
CPU_TORCH ?= --torch-backend cpu
COMPILE = $(VENV)/bin/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make lock" $(UPGRADE)
lock: $(VENV)/.installed-dev
	$(COMPILE) pyproject.toml --universal --python-version 3.11 --output-file requirements.lock
	$(COMPILE) pyproject.toml --group cpu --universal --python-version 3.11 $(CPU_TORCH) --constraints requirements.lock \
		--output-file requirements-cpu.lock
	$(COMPILE) pyproject.toml --group dev --group cpu --universal --python-version 3.11.5 $(CPU_TORCH) \
		--constraints requirements-cpu.lock --no-emit-package torch --output-file requirements-dev.lock
	$(COMPILE) --group pyproject.toml:monailabel --group pyproject.toml:cpu --python-version 3.11.5 \
		--python-platform x86_64-manylinux_2_28 $(CPU_TORCH) --no-emit-package torch --output-file monailabel_app/requirements.lock

# asks PyPI for known vulnerabilities of what users install; fails where no answer comes, too
audit: $(VENV)/.installed-dev
	$(VENV)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# output/licenses.md; fails if a package is under GPL or LGPL
licenses: $(VENV)/.installed-dev
	mkdir -p output
	$(VENV)/bin/pip-licenses --format markdown --with-urls --with-system --partial-match --fail-on "GPL;General Public" \
		--packages $$(grep -o '^[a-z][^=]*' requirements-cpu.lock) > output/licenses.md

# output/sbom.cdx.json, a bill of materials in CycloneDX
sbom: $(VENV)/.installed-dev
	mkdir -p output
	$(VENV)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
		--output-file output/sbom.cdx.json

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
