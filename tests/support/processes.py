"""Other processes: started for a block, and looked at through /proc (Linux)."""

import contextlib
import subprocess
import time
from pathlib import Path

from conftest import ROOT

from support import fork


@contextlib.contextmanager
def running(command, **options):
    """subprocess.Popen(command) in the project's folder, killed at the end of the block.

    Popen's own `with` would wait for it, for ever if the test has failed before it stopped it.
    """
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, **options) as process:
        try:
            yield process
        finally:
            process.kill()    # does nothing if it has ended


def children_of(pid):
    """Return the ids of the child processes of a process, except the server of support.fork."""
    return [int(child) for path in Path(f'/proc/{pid}/task').glob('*/children')
            for child in path.read_text().split() if int(child) != fork.server_pid()]


def state_of_process(pid):
    """Return the state letter of proc_pid_stat(5), such as T (stopped); empty: no such process."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return ''


def gone(pids, seconds=10):
    """Return whether all processes end within some seconds; a zombie has not ended."""
    return wait_until(lambda: not any(map(state_of_process, pids)), seconds)


def wait_until(condition, seconds=10):
    """Return whether a condition becomes true within some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
