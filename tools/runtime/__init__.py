"""What keeps a run alive and seen.

Importing any of it ties a process that paddle.distributed.launch started to its launcher. That
has to happen before the seconds that Paddle's import takes: a launcher that is killed in those
would leave processes behind that nobody knows of, and that go on to train.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1    # linux/prctl.h
LAUNCHER = 'T2T_LAUNCHER_PID'


def follow_parent(signal_number):
    """Have this process get a signal when its parent ends, in whatever way (Linux only)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


if 'PADDLE_TRAINER_ID' in os.environ:
    # SIGKILL, for a process that is stopped or stuck hears no other.
    follow_parent(signal.SIGKILL)
    # tools/launch.py names itself; it may have been killed before this process got this far.
    if int(os.environ.pop(LAUNCHER, os.getppid())) != os.getppid():
        os._exit(1)
