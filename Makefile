# `make demo` and `make test` are the two commands to know. Each first installs what is missing into .venv.
#
#   PYTHON=python3.12    another Python than python3
#   TORCH_ARGS=...       where pip finds torch, such as TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
#   ARGS=...             more arguments for the program a target runs, such as make test ARGS="-k lrn"

PYTHON ?= python3
TORCH_ARGS ?=
ARGS ?=

PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help install demo test test-triton test-rounding test-browser slow lint bench bench-peers count docs wheel clean

help:
	@echo 'make demo    the main experiment, the quick version: what deformable layers do on real images'
	@echo 'make test    the tests; make test-triton: those of the GPU kernels, without a GPU'
	@echo 'make test-rounding  the tests once for each way in which a machine may round'
	@echo 'make test-browser   the tests of the explorer in Chromium, which it installs where it is missing'
	@echo 'make bench   the speed of every operator beside its limit'
	@echo 'make bench-peers   the same beside other libraries, which it installs into .venv-peers'
	@echo 'make count   instructions of every kernel, compared with the recorded counts (needs valgrind)'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    the documentation, into site/'
	@echo 'make slow    the tests that take longer'
	@echo 'make wheel   a wheel for this platform, into dist/'
	@echo 'make clean   remove everything that make created, except runs/'

demo: install
	.venv/bin/pliant study geometry --quick $(ARGS)

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

test-browser: .venv/.browser
	$(PY) -m pytest tests/explore/browser $(ARGS)

slow: install
	$(PY) -m pytest -m slow $(ARGS)

bench: install
	$(PY) benchmarks/run.py $(ARGS)

bench-peers: .venv-peers/.installed
	.venv-peers/bin/python benchmarks/run.py --peers all $(ARGS)

count: install
	$(PY) benchmarks/instructions/count.py $(ARGS)

lint: .venv/.lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/.docs
	.venv/bin/mkdocs build --strict

wheel: install
	$(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf .venv .venv-peers build dist site .pytest_cache .mypy_cache .ruff_cache

# The file .venv/.installed stands for the installation: it is out of date when a file that the installation depends on is
# newer.
install: .venv/.installed

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

# Torch is installed first and alone, so that its pinned version is there before pip resolves what depends on torch; it may
# be hundreds of megabytes, so pip's progress is seen. The build then uses that torch (--no-build-isolation), because -c has no effect in an isolated build environment.
.venv/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)
	$(CHECK)
	@$(PY) -m pip --version > /dev/null 2>&1 || { echo 'making .venv'; $(PYTHON) -m venv --clear .venv; }
	@echo 'installing $(TORCH)'
	@$(PIP) $(TORCH_ARGS) $(TORCH) \
	  || { echo 'pliant: $(TORCH) could not be installed; TORCH_ARGS="--index-url ..." points pip elsewhere' >&2; exit 1; }
	@echo 'installing build tools'
	@$(PIP) --quiet -c constraints.txt pip scikit-build-core cmake ninja
	@echo 'compiling and installing pliant, with what training, studies and tests need'
	@$(PIP) --quiet -c constraints.txt --no-build-isolation --group test -e '.[study,convert,export,train]'
	@touch $@

.venv/.lint: .venv/.installed
	@echo 'installing ruff and mypy'
	@$(PIP) --quiet -c constraints.txt --group lint
	@touch $@

.venv/.docs: .venv/.installed
	@echo 'installing mkdocs'
	@$(PIP) --quiet -c constraints.txt --group docs
	@touch $@

# An installed Chromium is used if there is one; Playwright's own needs the libraries of a desktop system.
.venv/.browser: .venv/.installed
	@echo 'installing playwright'
	@$(PIP) --quiet -c constraints.txt --group browser
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name > /dev/null && exit; done; \
	  echo 'installing Chromium' && $(PY) -m playwright install chromium \
	  || { echo 'pliant: there is no Chromium here; install one (Debian: apt install chromium)' >&2; exit 1; }
	@touch $@

# The other libraries stay out of .venv, whose torch and pliant .venv-peers uses too.
.venv-peers/.installed: .venv/.installed
	@echo 'installing ONNX Runtime, OpenVINO and ncnn'
	@$(PYTHON) -m venv --clear .venv-peers
	@$(PY) -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/pliant-beside.pth"
	@.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --upgrade -c constraints.txt pip
	@.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt --no-deps --group peers
	@touch $@
