#!/usr/bin/env bash
# Tests: sets up Python, Paddle and pytest where they are missing, then runs ruff (if it is there)
# and pytest, in two processes (if pytest-xdist is there). Arguments go to pytest:
# bash scripts/test.sh tests/system/test_scripts.py -k gpu
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up tests

options=(-q)
if imports "$python" xdist; then
    options+=(-n 2 --dist worksteal)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # two processes with all cores each would be slower
fi
# A fault in style fails the run, but only after the tests have had their say.
lint=0
if imports "$python" ruff; then "$python" -m ruff check --quiet . || lint=$?; fi
if ((lint == 0)); then exec "$python" -m pytest "${options[@]}" "$@"; fi
"$python" -m pytest "${options[@]}" "$@" || lint=$?
exit "$lint"
