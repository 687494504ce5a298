"""Inspection of other processes, through /proc (Linux)."""

import time
from pathlib import Path

from support import fork


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
