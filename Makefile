# Two commands: `make demo` trains a small VAE and explains it, `make test` runs every test.
# Both work in .venv, made here; another Python or environment: make test PYTHON=python3.12 VENV=/path

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test
demo: $(VENV)/.installed
	$(RUN) -m data_prep.images --source=digits --split=train:0.8,test:0.2 --out=datasets/digits --overwrite
	$(RUN) -m vae_jax train --config=experiments/digits.py --workdir=runs/demo
	$(RUN) -m vae_jax report --workdir=runs/demo

test: $(VENV)/.installed-test
	$(RUN) -m pytest -n 2 --dist loadfile $(TESTS)

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@
