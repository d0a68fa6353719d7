#!/usr/bin/env bash
# Install and run the fast tests; with --slow all of them. Other flags are pytest's.
source "$(dirname "$0")/setup.sh" requirements-dev.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest -q -n auto --maxprocesses 4 "$@"
