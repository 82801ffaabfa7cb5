# mlflow-stack, the template. 'make' alone prints the targets.
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop test test-all update-matrix golden lock lint release clean

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade
STACK_LOCKS := $(wildcard template/mlflow/requirements/*.txt)

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/copier.stamp ## render the default answers into build/demo, start that stack without Docker, and log a run to it
	@$(VENV)/bin/python scripts/demo.py start

demo-stop: ## stop what 'make demo' started
	@$(PYTHON) scripts/demo.py stop

test: $(VENV)/tests.stamp ## run the tests; those that need a Docker engine skip where none answers
	@scripts/test.sh $(ARGS)

test-all: ARGS += --everything
test-all: test ## run every test, also the long ones that have not passed on these files: hours, and it goes on where it was stopped

update-matrix: $(VENV)/tests.stamp ## update the named stacks from every release to what is here, and write docs/updates.md
	@$(VENV)/bin/pytest -q --everything --golden-update tests/test_update_matrix.py

golden: $(VENV)/tests.stamp ## write tests/golden anew, after a change that is meant to change what is rendered
	$(VENV)/bin/pytest tests/test_golden.py --golden-update

lint: $(VENV)/tests.stamp ## check the files of this repository
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/yamllint --strict copier.yml extensions/questions extensions/data

lock: $(VENV)/copier.stamp ## raise every locked Python package: of the rendered stack, then of the tests
	cd template/mlflow/requirements && $(COMPILE) --override left-out.in base.in -o base.txt && $(COMPILE) build.in -o build.txt
	cd template/mlflow/requirements && for set in auth azure basic gcs metrics postgres s3; do $(COMPILE) -c base.txt $$set.in -o $$set.txt || exit 1; done
	cd template/mlflow/requirements && $(COMPILE) -c base.txt -c azure.txt -c gcs.txt -c s3.txt transfer.in -o transfer.txt
	$(COMPILE) requirements.in -o requirements.txt
	$(COMPILE) tests/requirements.in -o tests/requirements.txt
	cd tests/clients && for client in *.in; do $(COMPILE) $$client -o $${client%.in}.txt || exit 1; done
	cd tests/checkov && $(COMPILE) checkov.in -o checkov.txt

release: $(VENV)/tests.stamp ## make a release: VERSION=1.2.0; run 'make test-all' before
	@$(VENV)/bin/python scripts/release.py '$(VERSION)' "$$ALTHOUGH"

clean: demo-stop ## remove what the targets above have made
	rm -rf build $(VENV)

$(VENV)/copier.stamp: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or later is needed, and this is $$($(PYTHON) -V)" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@$(VENV)/bin/pip install --quiet --require-hashes -r requirements.txt
	@touch $@

$(VENV)/tests.stamp: $(VENV)/copier.stamp tests/requirements.txt $(STACK_LOCKS)
	@echo "installing the test tools and the MLflow client"
	@VIRTUAL_ENV=$(VENV) uv pip install --quiet --require-hashes -r tests/requirements.txt $(addprefix -r ,$(STACK_LOCKS))
	@touch $@
