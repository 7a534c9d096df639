# `make demo` and `make test` are the two commands to know. Each first installs what is missing into .venv.
#
#   PYTHON=python3.12    another Python than python3
#   TORCH_ARGS=...       where pip finds torch, such as TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
#   TORCH=2.14.1         another torch than the pinned one, in an environment of its own, such as make test TORCH=2.14.1
#   MINUTES=60           how long make fuzz and make sanitize draw calls, 5 minutes if not given
#   ARGS=...             more arguments for the program a target runs, such as make test ARGS="-k lrn"

PYTHON ?= python3
TORCH ?=
TORCH_ARGS ?=
MINUTES ?= 5
ARGS ?=

VENV := .venv$(addprefix -torch-,$(TORCH))
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
PINNED := $(if $(TORCH),torch==$(TORCH),$(shell grep '^torch==' constraints.txt))
CONSTRAINTS := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)

.PHONY: help install demo test test-triton test-rounding test-browser fuzz sanitize slow lint bench bench-peers count docs wheel clean

help:
	@echo 'make demo    the main experiment, the quick version: what deformable layers do on real images'
	@echo 'make test    the tests; make test-triton: those of the GPU kernels, without a GPU'
	@echo 'make test-rounding  the tests once for each way in which a machine may round'
	@echo 'make test-browser   the tests of the explorer in Chromium, which it installs where it is missing'
	@echo 'make fuzz    random calls of every operator, right and wrong ones, for MINUTES=5'
	@echo 'make sanitize   the same with a library that checks every access (ASan, UBSan), at every instruction level'
	@echo 'make bench   the speed of every operator beside its limit'
	@echo 'make bench-peers   the same beside other libraries, which it installs into .venv-peers'
	@echo 'make count   instructions of every kernel, compared with the recorded counts (needs valgrind)'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    the documentation, into site/'
	@echo 'make slow    the tests that take longer'
	@echo 'make wheel   a wheel for this platform, into dist/'
	@echo 'make clean   remove everything that make created, except runs/'

demo: install
	$(VENV)/bin/pliant study geometry --quick $(ARGS)

test: install
	$(PY) -m pytest $(ARGS)

# First interpreted on CPU tensors, then compiled ahead of time. One process cannot do both.
test-triton: install
	TRITON_INTERPRET=1 $(PY) -m pytest tests/triton $(ARGS)
	TRITON_INTERPRET=0 $(PY) -m pytest tests/triton $(ARGS)

# Other matrix products, numbers of threads and instruction sets give other last bits; no test may depend on them.
test-rounding: install
	PLIANT_PRODUCTS=torch $(PY) -m pytest $(ARGS)
	PLIANT_TEST_THREADS=1 $(PY) -m pytest $(ARGS)
	PLIANT_TEST_THREADS=2 $(PY) -m pytest $(ARGS)
	ATEN_CPU_CAPABILITY=default $(PY) -m pytest $(ARGS)
	ATEN_CPU_CAPABILITY=avx2 $(PY) -m pytest $(ARGS)
	ONEDNN_MAX_CPU_ISA=SSE41 $(PY) -m pytest $(ARGS)
	ONEDNN_MAX_CPU_ISA=AVX2 $(PY) -m pytest $(ARGS)

fuzz: install
	$(PY) -m pytest tests/ops/test_fuzz.py --minutes $(MINUTES) $(ARGS)

# A library that checks every access, in an environment of its own that finds everything else in the usual one. Python
# leaks on purpose; a failed allocation is an error that torch reports.
SANITIZE := build/sanitize
sanitize: install
	$(PY) -m venv $(SANITIZE)
	$(PY) -c "import site; print(*site.getsitepackages(), sep='\n')" > $$(echo $(SANITIZE)/lib/python*/site-packages)/usual.pth
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(SANITIZE)/bin/python -m pip install --disable-pip-version-check --no-build-isolation \
	    --no-deps --force-reinstall -Cbuild-dir=$(SANITIZE)/objects -Cinstall.strip=false \
	    -Ccmake.define.CMAKE_CXX_FLAGS="-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer" .
	for level in baseline v3 v4; do \
	    PLIANT_LEVEL=$$level $(PY) -c "import pliant.ops" 2> /dev/null || { echo "this processor lacks $$level"; continue; }; \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512 \
	    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PLIANT_LEVEL=$$level \
	    $(SANITIZE)/bin/python -m pytest -p no:cacheprovider tests/ops/test_fuzz.py --minutes $(MINUTES) $(ARGS) || exit 1; \
	done

test-browser: $(VENV)/.browser
	$(PY) -m pytest tests/explore/browser $(ARGS)

slow: install
	$(PY) -m pytest -m slow $(ARGS)

bench: install
	$(PY) benchmarks/run.py $(ARGS)

bench-peers: .venv-peers/.installed
	.venv-peers/bin/python benchmarks/run.py --peers all $(ARGS)

count: install
	$(PY) benchmarks/instructions/count.py $(ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.docs
	$(VENV)/bin/mkdocs build --strict

wheel: install
	$(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .venv-torch-* .venv-peers build dist site .pytest_cache .mypy_cache .ruff_cache

# The file .venv/.installed stands for the installation: it is out of date when a file that the installation depends on is
# newer.
install: $(VENV)/.installed

define CHECK
@failed=; say() { failed=1; printf 'pliant: %s\n' "$$1" >&2; }; \
if ! command -v $(PYTHON) > /dev/null; then \
  say "there is no $(PYTHON) here; install Python 3.10 or newer (Debian: apt install python3 python3-venv) or name one: make PYTHON=..."; \
elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
  say "$(PYTHON) is $$($(PYTHON) -V 2>&1), older than 3.10; name a newer one: make PYTHON=python3.12"; \
elif ! $(PYTHON) -c 'import venv, ensurepip' 2> /dev/null; then \
  say "$(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3-venv)"; \
fi; \
if [ -n "$$CXX" ]; then set -- "$$CXX"; else set -- c++ g++ clang++; fi; \
compiler=; for name; do \
  if echo 'int main() {}' | $$name -std=c++20 -fsyntax-only -x c++ - 2> /dev/null; then compiler=$$name; fi; \
done; \
if [ -z "$$compiler" ]; then \
  say "there is no C++20 compiler here; install one (Debian: apt install g++, macOS: xcode-select --install) or name one: CXX=..."; \
fi; \
test -z "$$failed"
endef

# Of another torch, what it brought along stays, and the constraints of all other packages hold.
KEPT := awk -F '[=; ]+' '{ name = tolower($$1); gsub(/[-_.]+/, "-", name) } FILENAME == "-" { have[name] = 1 } \
  FILENAME == "-" || !(name in have)'
# CMake remembers where torch is.
BUILD := $(if $(TORCH),--config-settings build-dir=build/$(VENV))

# Torch is installed first and alone, so that its pinned version is there before pip resolves what depends on torch; pip
# shows its progress, for it may be hundreds of megabytes. The build then uses that torch (--no-build-isolation), because
# -c has no effect in an isolated build environment.
$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)
	$(CHECK)
	@$(PY) -m pip --version > /dev/null 2>&1 || { echo 'making $(VENV)'; $(PYTHON) -m venv --clear $(VENV); }
	@echo 'installing $(PINNED)'
	@$(PIP) $(TORCH_ARGS) $(PINNED) \
	  || { echo 'pliant: $(PINNED) could not be installed; TORCH_ARGS="--index-url ..." points pip elsewhere' >&2; exit 1; }
	$(if $(TORCH),@$(PY) -m pip freeze --all --exclude pip --exclude-editable | $(KEPT) - constraints.txt > $(CONSTRAINTS))
	@echo 'installing build tools'
	@$(PIP) --quiet -c $(CONSTRAINTS) pip scikit-build-core cmake ninja
	@echo 'compiling and installing pliant, with what training, studies and tests need'
	@$(PIP) --quiet -c $(CONSTRAINTS) --no-build-isolation $(BUILD) --group test -e '.[study,convert,export,train]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	@echo 'installing ruff and mypy'
	@$(PIP) --quiet -c $(CONSTRAINTS) --group lint
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@echo 'installing mkdocs'
	@$(PIP) --quiet -c $(CONSTRAINTS) --group docs
	@touch $@

# An installed Chromium is used if there is one; Playwright's own needs the libraries of a desktop system.
$(VENV)/.browser: $(VENV)/.installed
	@echo 'installing playwright'
	@$(PIP) --quiet -c $(CONSTRAINTS) --group browser
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name > /dev/null && exit; done; \
	  echo 'installing Chromium' && $(PY) -m playwright install chromium \
	  || { echo 'pliant: there is no Chromium here; install one (Debian: apt install chromium)' >&2; exit 1; }
	@touch $@

# The other libraries stay out of .venv, whose torch and pliant .venv-peers uses too.
.venv-peers/.installed: $(VENV)/.installed
	@echo 'installing ONNX Runtime, OpenVINO and ncnn'
	@$(PYTHON) -m venv --clear .venv-peers
	@$(PY) -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/pliant-beside.pth"
	@.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --upgrade -c $(CONSTRAINTS) pip
	@.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS) --no-deps --group peers
	@touch $@
