#!/usr/bin/env bash
# Tests: sets up Python, Paddle and pytest where they are missing, then runs ruff (if it is there)
# and pytest. Arguments go to pytest: bash scripts/test.sh tests/test_scripts.py -k gpu
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up tests

# A fault in style fails the run, but only after the tests have had their say.
lint=0
if imports "$python" ruff; then "$python" -m ruff check --quiet . || lint=$?; fi
if ((lint == 0)); then exec "$python" -m pytest -q "$@"; fi
"$python" -m pytest -q "$@" || lint=$?
exit "$lint"
