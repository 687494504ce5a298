# Sourced by train.sh, val.sh and test.sh: goes to the repository's root and finds a Python with
# Paddle, or makes one in .venv. What it says goes to stderr.

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 2; }

# A signal ends the set-up as it ends the programs: with 75 (130 for Ctrl-C), and what it runs.
leave() { kill $(jobs -p) 2>/dev/null || true; exit "$1"; }
trap 'leave 75' TERM USR1 HUP
trap 'leave 130' INT

# Runs at all (a version manager's shim may exist and fail), and is a version Paddle is built for.
usable() { "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

# imports PYTHON MODULE. Looking costs milliseconds and importing Paddle seconds, so look first.
imports() {
    "$1" -c 'import importlib.util, sys
sys.exit(1) if importlib.util.find_spec(sys.argv[1]) is None else __import__(sys.argv[1])' "$2" >/dev/null 2>&1 &
    wait $!    # which a signal ends
}

nvidia_driver() {
    local gpus
    [[ -e /proc/driver/nvidia/version ]] || { gpus=$(nvidia-smi -L 2>/dev/null) && [[ -n $gpus ]]; }
}

# Sets $python: PYTHON if given, else an activated environment's, else the first on PATH that will do.
find_python() {
    if [[ -n ${PYTHON:-} ]]; then
        usable "$PYTHON" || die "PYTHON=$PYTHON does not run, or is not Python 3.9 to 3.13."
        python=$PYTHON
        return
    fi
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} \
        python3 python3.13 python3.12 python3.11 python3.10 python3.9 python; do
        if usable "$python"; then return; fi
    done
    die "found no Python 3.9 to 3.13: install one, or set PYTHON to its path."
}

# True where $python is that of our own .venv (activated, or named by PYTHON).
is_own() {
    [[ -d .venv ]] && "$python" -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, ".venv"))'
}

# .venv/unfinished stands from the first package to the last: an import alone cannot tell a whole
# environment from one whose installation was interrupted after Paddle.
has_runtime() { [[ ! -e .venv/unfinished ]] && imports "$own" paddle; }
is_complete() { has_runtime && { [[ $1 != tests ]] || imports "$own" pytest; }; }

# Makes or completes .venv. $1 is "tests" where pytest is needed too.
install() {
    local files=()
    # Two set-ups started at once must not write into one .venv. The root itself is the lock file.
    exec 9<.
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Waiting for another set-up in this directory."
        flock 9 || true
    fi
    # The other one may have finished just now.
    if is_complete "$1"; then exec 9<&-; return; fi

    if ! has_runtime; then
        files=(-r requirements.txt)
        if nvidia_driver; then
            files=(-r requirements-gpu.txt)
            "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
                die "paddlepaddle-gpu 2.6.2 needs Python 3.9 to 3.12 and $python is newer: set PYTHON, or install a newer build into it (see docs/training.md)."
        fi
    fi
    if [[ $1 == tests ]]; then files+=(-r requirements-dev.txt); fi

    if ! "$own" -c '' 2>/dev/null; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            die "$python has no venv or ensurepip module: install it (on Debian and Ubuntu: apt install python3-venv)."
        say "Making .venv with $("$python" --version)."
        "$python" -m venv --clear .venv
    fi
    "$own" -m pip --version >/dev/null 2>&1 || "$own" -m ensurepip >/dev/null

    say "Installing into .venv, once; the download is large: ${files[*]}"
    : >.venv/unfinished
    # pip retries a connection that fails, but not a download that breaks off in the middle.
    pip_install "${files[@]}" || { say "pip failed; trying once more."; pip_install "${files[@]}"; }
    "$own" -W ignore -c 'import paddle'
    rm .venv/unfinished
    exec 9<&-
}
pip_install() { "$own" -m pip install --quiet --disable-pip-version-check "$@" & wait $!; }

# Leaves in $python an interpreter that has what is needed. $1 is "tests" where pytest is needed too;
# what follows is a Python command that must succeed before anything is installed.
set_up() {
    own=$PWD/.venv/bin/python
    find_python
    if ! is_own && imports "$python" paddle; then
        [[ $1 != tests ]] || imports "$python" pytest ||
            die "$python has Paddle but no pytest: $python -m pip install -r requirements-dev.txt"
        return
    fi
    if ! is_complete "$1"; then
        (($# == 1)) || "$python" "${@:2}" || exit
        install "$1"
    fi
    python=$own
}

# Says what the script's first comment says, where the command line asks for it.
show_help() {
    local argument
    for argument; do
        [[ $argument != -h && $argument != --help ]] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"; exit 0; }
    done
}

# PYTHON may be relative to where the caller stands.
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
