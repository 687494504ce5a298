"""How tools/benchmark.py talks to the processes that measure for it.

The first line on stdin is a JSON request with what to load, each further line a request for timed
calls; answers are lines of JSON on stdout. So each engine has its own threads, BLAS settings and
peak memory, and a crash does not affect the others. Output of libraries goes to stderr.

This module imports neither Paddle nor PyTorch, because one of them is missing on either side.
"""

import json
import os
import sys
import time
from pathlib import Path


def serve(runners, peak_memory, **about):
    """Answer requests until stdin ends. An error is sent as the last answer.

    Args:
        runners: {name: function}; the function named by the first request gets that request and
            returns what it is about, a dict, and {name: function of a number of repeats that
            returns the seconds of each}.
        peak_memory: a function that returns MiB.
        about: added to the answer to the first request.
    """
    answers = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)    # keeps output of libraries out of the answers

    def answer(**content):
        print(json.dumps(content), file=answers, flush=True)

    try:
        request = json.loads(sys.stdin.readline())
        loaded, calls = runners[request['run']](request)
        answer(**about, **loaded)
        for line in sys.stdin:
            request = json.loads(line)
            seconds = calls[request['call']](request['repeats'])
            answer(seconds=seconds, peak_memory=peak_memory())
    except Exception as error:
        message = ' '.join(str(error).split()) or 'no message'
        expected = getattr(error, 'exit_code', 1) == 2
        answer(error=message if expected else f'{type(error).__name__}: {message}')
        raise


def timed(call):
    """A function of a number of repeats that returns the seconds of each, after a warm-up."""
    def times(repeats):
        call()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds
    return times


def peak_host_memory():
    """Peak resident memory of this process in MiB, or None if it is not known."""
    # getrusage may return the memory of the parent at the time of the fork.
    peak = _status('VmHWM')
    if peak is not None:
        return peak
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10)


def _status(key):
    """A size in /proc/self/status in MiB, or None where it does not exist."""
    try:
        for line in Path('/proc/self/status').read_text(encoding='utf-8').splitlines():
            if line.startswith(f'{key}:'):
                return int(line.split()[1]) / 2 ** 10
    except OSError:
        pass
    return None
