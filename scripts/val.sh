#!/usr/bin/env bash
# Validates: sets up Python and Paddle if they are missing, then runs tools/val.py.
#
#     bash scripts/val.sh [CONFIG] [--weights FILE] [--gpus 0,1,2,3 | --nproc N]
#         [-o SECTION.KEY=VALUE ...]
#
# CONFIG            a YAML file, also as -c FILE (default: config/lit_data.yaml)
# --gpus 0,1,2,3    one process per GPU
# --nproc N         N processes (default: 1; on a CPU as many as cores, which share the batch of the
#                   configuration, unless its images are few and small)
# Other arguments go to tools/val.py; see its --help. Paths are relative to the repository's root.
# PYTHON=/path/to/python selects the interpreter.
#
# The exit code is that of tools/val.py (2: wrong input, 75: stopped, 130: interrupted). With several
# processes it is 0 if all succeed, else that of the first one that failed (1 if a signal killed
# it). log/launch/ contains the output of each process.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
show_help "$@"
launch=(tools/launch.py tools/val.py --split-batch --per-core)
set_up program "${launch[@]}" --check "$@"
exec "$python" "${launch[@]}" "$@"
