# One entry for people and machines. Every target sets up .venv first when something it depends on has changed.
#   make demo      train, evaluate and predict on handwritten digits; a photograph to the shipped weights; all in runs/demo
#   make test      the test suite without its slow part   (make test ARGS="tests/ops -x", ARGS="-m slow")
#   make lint      ruff and the import-direction check
#   make types     mypy --strict on src
#   make sanitize  tests of the native kernel under AddressSanitizer and UndefinedBehaviorSanitizer
#   make bench     timings into results/
#   make clean     remove everything that can be rebuilt

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
SANITIZED := build/sanitize

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types sanitize bench clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

# Build isolation is off so that the build tools come from the constraints file too; CMake and Ninja are taken from the
# package index only where the machine has none.
# An editable install knows the modules that were there when it was made: a folder that changed makes it anew.
$(READY): pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -type f) $(shell find src -type d -not -name __pycache__)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "vision-ssm needs Python 3.11 or newer; make PYTHON=/path/to/python3.11 picks one"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt scikit-build-core \
	  $$(command -v cmake > /dev/null || echo cmake) $$(command -v ninja > /dev/null || echo ninja)
	@echo "installing into $(VENV); the first time this downloads PyTorch"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt \
	  --no-build-isolation -e '.[demo,large,segmentation,dev]'
	@$(BIN)/python -c 'import pathlib, sys, vision_ssm as v; \
	  sys.exit(not any(list(pathlib.Path(p).glob("libvision_ssm_cpu.*")) for p in v.__path__))' \
	  || echo "note: no C++ kernel could be built, so the slower pure-torch scan will be used (see: $(BIN)/vision-ssm doctor)"
	@touch $@

demo: $(READY)
	@$(BIN)/vision-ssm train digits --recipe digits --name demo --overwrite
	@$(BIN)/vision-ssm evaluate runs/demo/best.safetensors digits
	@$(BIN)/python examples/digit_files.py runs/demo/samples
	@$(BIN)/vision-ssm predict runs/demo/best.safetensors runs/demo/samples --output runs/demo/predictions.json
	@$(BIN)/python examples/cat_photograph.py runs/demo/photograph.png
	@$(BIN)/vision-ssm predict runs/demo/photograph.png

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

# The instrumented build lives apart and is put on the path with -S, which keeps the ordinary (editable) install out.
sanitize: $(READY)
	rm -rf $(SANITIZED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps \
	  --no-build-isolation -C cmake.define.VISION_SSM_SANITIZE=ON -C build-dir=$(SANITIZED)/cmake --target $(SANITIZED)/site .
	@test -e $(SANITIZED)/site/vision_ssm/libvision_ssm_cpu.so || { echo "the instrumented kernel did not compile"; exit 1; }
	SITE="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	PYTHONPATH="$(SANITIZED)/site:$$SITE" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -S -m pytest -p no:cacheprovider tests/ops $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/scan.py --output results/scan_cpu.json $(ARGS)

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
