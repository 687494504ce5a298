# Sourced by train.sh, val.sh and test.sh: changes to the repository's root and finds a Python with
# Paddle, or installs one in .venv. Messages go to stderr.

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 2; }

# A signal ends the set-up and its child processes, with 75 (130 for Ctrl-C) as in the programs.
leave() { kill $(jobs -p) 2>/dev/null || true; exit "$1"; }
trap 'leave 75' TERM USR1 HUP
trap 'leave 130' INT

# True if $1 runs (a version manager's shim may fail) and Paddle is built for its version.
usable() { "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

# imports PYTHON MODULE. find_spec takes milliseconds, importing Paddle seconds.
imports() {
    "$1" -c 'import importlib.util, sys
sys.exit(1) if importlib.util.find_spec(sys.argv[1]) is None else __import__(sys.argv[1])' "$2" >/dev/null 2>&1 &
    wait $!    # unlike a foreground process, a signal interrupts this
}

nvidia_driver() {
    local gpus
    [[ -e /proc/driver/nvidia/version ]] || { gpus=$(nvidia-smi -L 2>/dev/null) && [[ -n $gpus ]]; }
}

# Sets $python: PYTHON if set, else that of an activated environment, else the first usable on PATH.
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

# True if $python is that of our .venv (activated, or named by PYTHON).
is_own() {
    [[ -d .venv ]] && "$python" -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, ".venv"))'
}

# .venv/unfinished exists during the installation: Paddle can be imported even if the installation
# was interrupted after it.
has_runtime() { [[ ! -e .venv/unfinished ]] && imports "$own" paddle; }
is_complete() { has_runtime && { [[ $1 != tests ]] || imports "$own" pytest; }; }

# Creates or completes .venv. $1 is "tests" if pytest is needed.
install() {
    local files=()
    # Concurrent set-ups must not write to one .venv. The root folder is the lock file.
    exec 9<.
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Waiting for another set-up in this directory."
        flock 9 || true
    fi
    # The other one may have completed it.
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
    # pip retries failed connections, but not interrupted downloads.
    pip_install "${files[@]}" || { say "pip failed; trying once more."; pip_install "${files[@]}"; }
    "$own" -W ignore -c 'import paddle'
    rm .venv/unfinished
    exec 9<&-
}
pip_install() { "$own" -m pip install --quiet --disable-pip-version-check "$@" & wait $!; }

# Sets $python to an interpreter with Paddle. $1 is "tests" if pytest is needed; further arguments are
# a Python command that must succeed before anything is installed.
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

# Prints the first comment of the script if the arguments contain -h or --help.
show_help() {
    local argument
    for argument; do
        [[ $argument != -h && $argument != --help ]] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "scripts/${0##*/}"; exit 0; }
    done
}

# PYTHON may be relative to the caller's folder.
if [[ ${PYTHON:-} == */* && $PYTHON != /* ]]; then PYTHON=$PWD/$PYTHON; fi
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit
