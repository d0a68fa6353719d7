# Sourced by the other scripts: makes .venv in the repository and installs the given requirements file into it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
echo "installing $1 into .venv (the first time this takes a few minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
