#!/usr/bin/env bash
# Trains: sets up Python and Paddle if they are missing, then runs tools/train.py.
#
#     bash scripts/train.sh [CONFIG] [--gpus 0,1,2,3 | --nproc N] [--restarts N]
#         [--nnodes N --master HOST:PORT] [-o SECTION.KEY=VALUE ...]
#
# CONFIG            a YAML file, also as -c FILE (default: config/lit_data.yaml)
# --gpus 0,1,2,3    one process per GPU
# --nproc N         N processes (default: 1, which uses all cores of a CPU; on a CPU processes share
#                   the batch of the configuration)
# --restarts N      start again from the last checkpoint after a failure, up to N times
# --nnodes N        machines; run the same command on each, with the first one's --master HOST:PORT
# Other arguments go to tools/train.py; see its --help. Paths are relative to the repository's root.
# PYTHON=/path/to/python selects the interpreter.
#
# The exit code is that of tools/train.py (2: wrong input, 75: stopped and saved, 130: interrupted).
# With several processes it is 0 if all succeed, else that of the first one that failed (1 if a
# signal killed it). log/launch/ contains the output of each process.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
show_help "$@"
# Resumes an earlier run by default; -o TRAIN.RESUME=false starts a new one.
launch=(tools/launch.py tools/train.py --default TRAIN.RESUME=auto --split-batch)
set_up program "${launch[@]}" --check "$@"
exec "$python" "${launch[@]}" "$@"
