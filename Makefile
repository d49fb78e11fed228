# Needs make and Python 3.11 or newer. Another Python: make PYTHON=python3.13 ... (after `make clean`).

PYTHON ?= python3
UV := .venv-uv/bin/uv pip
PARALLEL := --numprocesses auto --dist worksteal
COMPILE := $(UV) compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	--custom-compile-command "make lock" --extra tables --extra plots pyproject.toml

# The site's figures are made as tests are: compiled quickly, on one thread of BLAS, and no window.
SPHINX := JAX_DISABLE_MOST_OPTIMIZATIONS=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MPLBACKEND=agg \
	.venv-docs/bin/python -m sphinx --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-grids test-claims test-slow test-torch test-browser test-cluster test-libraries test-lowest docs dist format lock clean bench bench-full bench-gpu

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.ready  ## Run the demonstration
	.venv/bin/widelimit demo

test: .venv/.ready-dev  ## Run style, types and tests, of every grid a covering choice: the check before a commit
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	@echo ".venv/bin/mypy, beside the tests; its report comes last"; .venv/bin/mypy >.venv/types 2>&1 & types=$$!; \
		.venv/bin/pytest -m "not claims and not grid" $(PARALLEL); tests=$$?; wait $$types; types=$$?; cat .venv/types; \
		exit $$((tests + types))

test-grids: .venv/.ready-dev  ## Run the cells of grids that `make test` leaves out (tests/grids.py)
	.venv/bin/pytest -m "grid and not claims" $(PARALLEL)

test-claims: .venv/.ready-dev  ## Run all claims with quick settings, each with a planted error, and the tests of digits, as users compile
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/pytest -m "not slow" tests/test_every_claim.py tests/test_kernel_values.py tests/test_images.py $(PARALLEL)
	.venv/bin/pytest -m claims tests/test_architectures.py tests/test_gradients_at_cusps.py $(PARALLEL)

test-slow: .venv/.ready-dev  ## Run finite networks of all layers against their limits, and the values of neural-tangents: after changes of layers
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/pytest -m slow $(PARALLEL)

test-torch: .venv-torch/.ready  ## Run the tests that need PyTorch
	.venv-torch/bin/python -m pytest tests/test_torch.py tests/test_torch_uses.py tests/test_torch_rows.py tests/test_torch_tangents.py tests/test_torch_devices.py tests/test_networkx.py $(PARALLEL)

test-browser: .venv-browser/.ready  ## Run the tests of the explorer's page in Chromium (apt-get install chromium)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "make test-browser needs Chromium: apt-get install -y chromium" >&2; exit 1; }
	.venv-browser/bin/python -m pytest tests/test_explorer_in_a_browser.py

test-cluster: .venv-cluster/.ready  ## Run the tests on a simulated cluster and object store: workers killed, disks full
	.venv-cluster/bin/python -m pytest tests/test_cluster.py tests/test_cluster_cholesky.py tests/test_cluster_docs.py

test-libraries: .venv-libraries/.ready  ## Run the tests of kernels inside GPyTorch, BoTorch, tinygp and GPJax
	.venv-libraries/bin/python -m pytest tests/test_libraries.py

test-lowest: .venv-lowest/.ready  ## Run the tests with the oldest supported dependencies (Python 3.11 or 3.12)
	.venv-lowest/bin/pytest $(PARALLEL)

docs: .venv-docs/.ready  ## Build the site in build/site: pages, reference, tutorials and figures; warnings and broken links are errors
	$(SPHINX) --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site

bench: .venv/.ready  ## Measure the claims of speed that take minutes (benchmarks/README.md)
	@$(call run_benchmarks,^SMALL = True)

bench-full: .venv/.ready  ## Measure all of them
	@$(call run_benchmarks,^SMALL = )

bench-gpu: .venv-gpu/.ready  ## Measure one GPU, in at most 8 minutes (docs/accelerators.md)
	.venv-gpu/bin/python benchmarks/gpu.py

format: .venv/.ready-dev  ## Format the code and fix what can be fixed automatically
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock: .venv-uv/.ready  ## Lock the dependencies again, at their newest versions
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

dist: .venv-uv/.ready  ## Build wheel and sdist in dist/, install them in empty environments, try them there
	$(PYTHON) tests/distribution.py

clean:  ## Remove the environments, caches and builds
	rm -rf docs/generated
	rm -rf .venv .venv-gpu .venv-torch .venv-browser .venv-cluster .venv-docs .venv-libraries .venv-lowest .venv-uv .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Benchmarks are the scripts that say SMALL = True or SMALL = False.
define run_benchmarks
set -e; for script in $$(grep -l '$(1)' benchmarks/*.py); do echo "== $$script"; .venv/bin/python $$script; done; \
	.venv/bin/python benchmarks/summary.py
endef

# An environment is made from nothing, and its stamp is written last: one without a stamp is unfinished and made again.

define new_environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "widelimit needs Python 3.11 or newer, which '$(PYTHON)' is not; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@echo "Installing into $(@D) (once; a minute or more) ..."
@rm -rf $(@D)
@$(PYTHON) -m venv $(@D)
endef

PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))
# Python compiles what it imports: a third of the modules.
PIP_INSTALL = @$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

.venv/.ready: pyproject.toml requirements.lock
	$(new_environment)
	$(PIP_INSTALL) --requirement requirements.lock
	$(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv/.ready-dev: pyproject.toml requirements-dev.lock
	$(new_environment)
	$(PIP_INSTALL) --requirement requirements-dev.lock
	$(PIP_INSTALL) --no-deps --editable .
	@touch .venv/.ready $@

# On top of the other environment: what is in that one is not installed twice.
define environment_above
$(new_environment)
@echo "import site; site.addsitedir('$$(.venv/bin/python -c "$(PACKAGES)")')" >"$$($(@D)/bin/python -c "$(PACKAGES)")/below.pth"
endef

.venv-torch/.ready: .venv/.ready-dev
	$(environment_above)
	$(PIP_INSTALL) torch==2.13.0
	@touch $@

.venv-browser/.ready: .venv/.ready-dev
	$(environment_above)
	$(PIP_INSTALL) playwright==1.65.2
	@touch $@

# On top of that with PyTorch, whose own .pth file names .venv.
.venv-docs/.ready: docs/requirements.txt .venv-torch/.ready
	$(new_environment)
	@echo "import site; site.addsitedir('$$(.venv-torch/bin/python -c "$(PACKAGES)")')" \
		>"$$($(@D)/bin/python -c "$(PACKAGES)")/below.pth"
	$(PIP_INSTALL) --requirement docs/requirements.txt
	@touch $@

# PyTorch first, so that the others do not bring a build with CUDA.
.venv-libraries/.ready: .venv/.ready-dev
	$(environment_above)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) gpytorch==1.15.2 botorch==0.18.1 tinygp==0.3.1 gpjax==1.0.0
	@touch $@

# moto serves S3; its extra "server" would install the servers of all other services.
.venv-cluster/.ready: .venv/.ready-dev
	$(environment_above)
	$(PIP_INSTALL) distributed==2026.8.0 dask-jobqueue==0.9.0 obstore==0.12.1 'moto[s3]==5.2.5' flask flask-cors
	@touch $@

# make bench-gpu CUDA=cuda13 GPU_EXTRA="torch gpytorch"
CUDA := cuda12
GPU_EXTRA :=

.venv-gpu/.ready: pyproject.toml requirements-dev.lock | .venv-uv/.ready
	$(new_environment)
	@$(UV) install --quiet --python .venv-gpu/bin/python --requirement requirements-dev.lock
	@$(UV) install --quiet --python .venv-gpu/bin/python --no-deps --editable .
	@$(UV) install --quiet --python .venv-gpu/bin/python $(GPU_EXTRA) \
		"jax[$(CUDA)]==$$(.venv-gpu/bin/python -c 'from importlib.metadata import version; print(version("jax"))')"
	@touch $@

.venv-lowest/.ready: pyproject.toml | .venv-uv/.ready
	$(new_environment)
	@$(UV) install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --group dev --editable '.[tables,plots]'
	@touch $@

.venv-uv/.ready:
	$(new_environment)
	$(PIP_INSTALL) uv
	@touch $@
