#!/usr/bin/env bash
# Install and run the tests.
source "$(dirname "$0")/setup.sh" requirements-dev.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest -q -n auto --maxprocesses 4 "$@"
