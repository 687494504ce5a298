"""The terminal that a person sees, on which progress bars are drawn.

The processes of tools/launch.py write to files. The first one draws its bar on the launcher's
terminal, and the launcher prints that process's lines above it. A line and a drawing of the bar are
one write each, which begins at the start of the line: so their order does not matter.
"""

import contextlib
import functools
import os
import sys

VARIABLE = 'T2T_TERMINAL'    # path of the launcher's terminal
CLEAR = '\r\x1b[K'           # clears the line of a bar


def path():
    """Return the path of the terminal that shows both stdout and stderr, or None.

    Only one of them is not enough: lines that come through a pipe would be mixed with the bar.
    """
    if os.environ.get('TERM') != 'dumb' and sys.stdout.isatty() and sys.stderr.isatty():
        with contextlib.suppress(OSError):    # a container may not have it in its file system
            return os.ttyname(sys.stderr.fileno())
    return None


def drawing():
    """Return the stream to draw on, that of the launcher's terminal or stderr; None without."""
    given = os.environ.get(VARIABLE)
    return _open(given) if given else sys.stderr if path() else None


@functools.cache
def _open(name):
    try:    # not as the terminal of this session, whose end would be a SIGHUP
        return open(os.open(name, os.O_WRONLY | os.O_NOCTTY), 'w', encoding='utf-8')
    except OSError:
        return None
