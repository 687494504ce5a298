"""Functions of Paddle that are not public, each with what happens where a version lacks it.

All of them were tried on Paddle 3.3.1 and 2.6.2. No other file uses a name of Paddle that begins
with an underscore or stands in paddle.base; a test checks that. Where one is gone, what it was for
is off, and a line on stderr says so, once a process.
"""

import functools
import sys


@functools.cache
def _gone(name, consequence):
    import paddle

    print(f'Paddle {paddle.__version__} has no {name}: {consequence}', file=sys.stderr, flush=True)


def set_num_threads(number):
    """Set the threads of this process, at run time. Without it they are OMP_NUM_THREADS, or 1."""
    try:
        from paddle.base.core import set_num_threads
    except ImportError:
        return _gone('set_num_threads', 'it computes on OMP_NUM_THREADS threads, or on one')
    set_num_threads(number)


def global_store():
    """The store through which the processes of a job met (set, get, wait); None: there is none.

    Without it processes wait for each other in a barrier, which gloo ends after 30 seconds.
    """
    try:
        from paddle.base.core import create_or_get_global_tcp_store
    except ImportError:
        return _gone('create_or_get_global_tcp_store',
                     'saving a checkpoint may not take longer than 30 seconds')
    return create_or_get_global_tcp_store()
