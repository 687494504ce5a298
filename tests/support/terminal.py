"""Runs commands in a pseudo-terminal, and shows what would stand on its screen."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from conftest import ROOT


def run_in_terminal(command, columns=120, seconds=200, **variables):
    """Run a command whose stdout and stderr are a terminal; return (exit code, what it wrote)."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    process = subprocess.Popen(command, stdout=follower, stderr=follower, cwd=ROOT,
                               env={**os.environ, 'TERM': 'xterm', **variables})
    os.close(follower)
    written, end = b'', time.monotonic() + seconds
    while True:
        if not select.select([leader], [], [], max(end - time.monotonic(), 0))[0]:
            process.kill()
            raise TimeoutError(f'still running after {seconds} s: {written.decode()}')
        try:
            part = os.read(leader, 1 << 16)
        except OSError:    # the last process has closed the terminal
            break
        if not part:
            break
        written += part
    os.close(leader)
    return process.wait(), written.decode()


def screen(written):
    """Return the lines of a terminal without an edge after all that was written to it.

    It knows what is used here: line feed, carriage return, and erasing to the end of the line.
    """
    lines, column = [''], 0
    for token in re.findall(r'\n|\r|\x1b\[K|[^\n\r\x1b]+', written):
        if token == '\n':
            lines.append('')
            column = 0
        elif token == '\r':
            column = 0
        elif token == '\x1b[K':
            lines[-1] = lines[-1][:column]
        else:
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + token + line[column + len(token):]
            column += len(token)
    assert '\x1b' not in re.sub(r'\x1b\[K', '', written), 'a sequence that is not known here'
    return [line.rstrip() for line in lines]


def bars(written, start='Epoch'):
    """Return the progress bars that were drawn, as (columns of the bar, text behind it)."""
    return re.findall(rf'\r({start}[^|\r\n]*\|[^|\r\n]*\| )([^\r\n\x1b]*)', written)
