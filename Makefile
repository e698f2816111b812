# `make book` and `make test` do everything, on a machine with Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# How long an OpenMP thread waits actively for the next piece of work: long enough for the next small operation, and
# not so long that every step is slowed as soon as another process wants the cores.
export GOMP_SPINCOUNT = 2000
# Constraints that hold for the build backend too, which pip installs in an environment of its own.
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
PACKAGE := $(shell find companion -name '*.py' -o -name '*.npz' -o -name '*.json')

.DEFAULT_GOAL := help
.PHONY: help book test browser mathjax release bench verify serve notebooks colab lint constraints repository clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1 — \2/p' Makefile

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
		f"Python 3.11 or newer is needed and {v[0]}.{v[1]} was found: call make with PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[book,test]'
	# Peers to compare with, without what they ask for: torchvision is not needed, and would bring another torch.
	$(BIN)/pip install --quiet --no-deps pytorch-fid torch-fidelity
	@touch $@

# Checks run anew, and executed notebooks are forgotten, when the package has changed: the cache of
# executed notebooks looks at their cells alone.
_build/ledger.json: $(VENV)/.installed $(PACKAGE)
	rm -rf _build/.jupyter_cache
	$(BIN)/companion verify --json $@ || (rm -f $@; exit 1)

book: $(VENV)/.installed _build/ledger.json  ## check the equations, execute the chapters, build the HTML
	$(BIN)/jupyter-book build -W -n --keep-going -q .

test: $(VENV)/.installed  ## unit tests, then every chapter executed and compared with its stored outputs
	$(BIN)/pytest
	$(BIN)/pytest --nbval --nbval-current-env book/*.ipynb

browser: book mathjax  ## look at every page of the executed book with chromium
	COMPANION_BOOK=_build/html $(BIN)/pytest tests/browser

mathjax: .cache/node_modules/mathjax  ## MathJax for the tests that open the pages, from npm

.cache/node_modules/mathjax:
	npm install --silent --no-audit --no-fund --prefix .cache mathjax@3.2.2

bench: $(VENV)/.installed  ## speed beside peer libraries
	$(BIN)/pip install --quiet '.[bench]'
	# Without what they ask for: torchvision is not needed here, and would bring another torch.
	$(BIN)/pip install --quiet --no-deps denoising-diffusion-pytorch ema-pytorch pytorch-fid
	$(BIN)/python -m benchmarks

verify: $(VENV)/.installed  ## the checks of all equations, as a table
	$(BIN)/companion verify

serve: book  ## build the book and open it in a browser
	$(BIN)/python tools/serve.py

notebooks: $(VENV)/.installed  ## execute the chapters and store them in the form that git keeps
	$(BIN)/ruff format --quiet --line-length 84 book/*.ipynb
	$(BIN)/python tools/notebooks.py book/*.ipynb

colab: $(VENV)/.installed  ## run every chapter alone in an empty folder, as Colab would
	COMPANION_COLAB=all $(BIN)/pytest tests/test_colab.py

lint: $(VENV)/.installed  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/ruff format --check --line-length 84 book/*.ipynb

release: $(VENV)/.installed  ## build the wheel, install it in an empty environment, and run a trained model there
	$(BIN)/python tools/release.py

constraints: $(VENV)/.installed  ## write constraints.txt anew from the environment
	$(BIN)/python tools/constraints.py

repository: $(VENV)/.installed  ## carry the address of the repository everywhere: make repository URL=https://...
	$(BIN)/python tools/repository.py $(URL)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) _build .cache
