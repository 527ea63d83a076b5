.DEFAULT_GOAL := help
.PHONY: help install test test-all test-lowest test-newest tables lint format type imports spelling check docs serve-docs wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: ## install the package and what its development needs
	pip install -e '.[dev]'

test: ## the fast tests on two processes: at most 10 minutes on 2 cores
	pytest

test-all: ## all tests, the slow ones too
	pytest -m 'not gpu'

test-lowest: ## the fast tests with the lowest versions that pyproject.toml claims
	python -m venv build/lowest
	python tests/lowest.py > build/lowest/versions.txt
	build/lowest/bin/pip install -c build/lowest/versions.txt -e '.[dev]'
	build/lowest/bin/pytest

test-newest: ## the fast tests with the newest versions that there are
	python -m venv build/newest
	build/newest/bin/pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	build/newest/bin/pytest

tables: ## render the tables of the docs from the records in results/
	python -m benchmarks.tables

lint: ## style and format
	ruff check .
	ruff format --check .

format: ## mend style and format
	ruff check --fix .
	ruff format .

type: ## static types
	mypy

imports: ## import rules: who may import whom
	lint-imports

spelling: ## common misspellings
	codespell

check: lint type imports spelling ## everything but the tests and the site

docs: ## build the documentation site in build/site; pip install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

serve-docs: ## show the documentation site at http://127.0.0.1:8000, and follow changes
	NO_MKDOCS_2_WARNING=1 python -m mkdocs serve

wheel: ## build dist/*.whl
	python -m build --wheel

clean: ## remove what tools left behind
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
