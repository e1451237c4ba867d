# `make demo` and `make test` set up .venv themselves; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
NEWEST ?= .venv-newest
RUN := $(VENV)/bin/python

# Else what is left of an environment that could not be made would pass for one.
.DELETE_ON_ERROR:

.PHONY: help demo test newest studies style clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

demo: $(VENV)/installed  ## run the whole loop on built-in images: python iterate.py
	$(RUN) iterate.py

test: $(VENV)/installed-dev  ## run the tests: pytest, in two processes
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

newest:  ## run the tests, except XLA's, with the newest torch and torchvision that pip finds
	test -x $(NEWEST)/bin/pip || $(PYTHON) -m venv --clear $(NEWEST)
	grep -hEv '^(#|-r|torch)' requirements.txt requirements-dev.txt > $(NEWEST)/others.txt
	$(NEWEST)/bin/python -m pip install --no-cache-dir --upgrade torch torchvision -r $(NEWEST)/others.txt
	$(NEWEST)/bin/python -c "import torch, torchvision; print(torch.__version__, torchvision.__version__)"
	$(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

studies: $(VENV)/installed  ## measure the paper's claims: make studies DATA=DIR RESULTS=mine.json
	$(RUN) results/studies.py --data $(DATA) $(if $(RESULTS),--results $(RESULTS))

style: $(VENV)/installed-dev  ## check the style: ruff check
	$(RUN) -m ruff check .

clean:  ## remove the virtual environments
	rm -rf $(VENV) $(NEWEST)

# Debian's Python may come without ensurepip: then pip is put into the environment from outside.
$(RUN):
	$(PYTHON) -m venv $(VENV) || ( \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip install --target "$$($(RUN) -c 'import site; print(site.getsitepackages()[0])')" pip )

$(VENV)/installed: requirements.txt | $(RUN)
	$(RUN) -m pip install --no-cache-dir -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-xla.txt requirements.txt | $(RUN)
	$(RUN) -m pip install --no-cache-dir -r requirements-dev.txt
	touch $@ $(VENV)/installed
