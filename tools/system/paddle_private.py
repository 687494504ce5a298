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


def older_form():
    """(Variable, LayerHelper, OldIrGuard), with which Paddle 3 writes graphs in Paddle 2's form, or
    None. Tried on 3.3.1 only: Paddle 2.6.2 has no other form, and nothing to guard.

    Without them an export has no inference.pdmodel, the only form that OpenVINO in Paddle reads.
    """
    try:
        from paddle.base.framework import Variable
        from paddle.base.layer_helper import LayerHelper
        from paddle.pir_utils import OldIrGuard
    except ImportError as error:
        return _gone(f'{error.name}, with which older graphs are written',
                     'exports are written without inference.pdmodel, and oneDNN computes them')
    return Variable, LayerHelper, OldIrGuard


def read_program(content):
    """The graph (ProgramDesc) that the bytes of an inference.pdmodel hold, or None.

    Without it the graph is not compared with inference.yml, and oneDNN computes it, not OpenVINO.
    """
    try:
        from paddle.base.core import ProgramDesc
    except ImportError:
        return _gone('ProgramDesc', 'an inference.pdmodel is not compared with inference.yml, and '
                     'oneDNN computes it')
    return ProgramDesc(content)
