#!/usr/bin/env bash
# Tests: sets up Python, Paddle and pytest if they are missing, then runs ruff (if installed) and
# pytest, in four processes (if pytest-xdist is installed). Arguments go to pytest:
# bash scripts/test.sh tests/system/test_scripts.py -k gpu
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
set_up tests

unset PYTHONDONTWRITEBYTECODE    # tests start hundreds of programs, each would compile all modules
options=(-q)
if imports "$python" xdist; then
    options+=(-n 4 --dist worksteal)    # on two cores: tests also wait for what they started
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # several processes on all cores would be slower
fi
# A style error fails the run, but the tests still run.
lint=0
if imports "$python" ruff; then "$python" -m ruff check --quiet . || lint=$?; fi
if ((lint == 0)); then exec "$python" -m pytest "${options[@]}" "$@"; fi
"$python" -m pytest "${options[@]}" "$@" || lint=$?
exit "$lint"
