"""What tests ask of other processes, on Linux."""

import time
from pathlib import Path


def children_of(pid):
    """The processes that a process has started and not yet waited for."""
    return [int(child) for path in Path(f'/proc/{pid}/task').glob('*/children')
            for child in path.read_text().split()]


def state_of_process(pid):
    """The letter of proc_pid_stat(5), such as T for stopped; empty if there is no such process."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return ''


def gone(pids, seconds=10):
    """Whether processes end within some time; a zombie has not ended."""
    return wait_until(lambda: not any(map(state_of_process, pids)), seconds)


def wait_until(condition, seconds=10):
    """Whether a condition becomes true within some time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
