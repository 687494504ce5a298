"""All uses of functions of Paddle that are not public.

They were tested with Paddle 3.3.1 and 2.6.2. No other file uses a name of Paddle that begins with
an underscore or belongs to paddle.base; a test checks that. If a version of Paddle lacks one, the
feature is off, and one line on stderr per process says so.
"""

import contextlib
import functools
import importlib
import sys
import types


@functools.cache
def _report_missing(name, consequence):
    import paddle

    print(f'Paddle {paddle.__version__} has no {name}: {consequence}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def compiler_on_demand():
    """Import Paddle within this context: without setuptools, with which it compiles operators.

    Nothing here needs that, and importing it takes long. It is imported when it is used. Does
    nothing if Paddle is imported already.
    """
    if 'paddle' in sys.modules:
        yield
        return
    package_name = 'paddle.utils.cpp_extension'
    module_name = f'{package_name}.cpp_extension'
    placeholder, names = types.ModuleType(module_name), []

    def remember(name):
        if name.startswith('__'):
            raise AttributeError(name)
        names.append(name)

    placeholder.__getattr__ = remember
    sys.modules[module_name] = placeholder
    try:
        yield
    finally:
        del sys.modules[module_name]
        package = sys.modules.get(package_name)
        for name in names:
            delattr(package, name)
        if package:
            package.__getattr__ = lambda name: getattr(importlib.import_module(module_name), name)


def set_num_threads(number):
    """Set the number of threads that Paddle computes on; the default is OMP_NUM_THREADS, or 1."""
    try:
        from paddle.base.core import set_num_threads
    except ImportError:
        return _report_missing('set_num_threads',
                               'it computes on OMP_NUM_THREADS threads, or on one')
    set_num_threads(number)


def share_memory(tensor, other):
    """Let a tensor use the memory of another one, of the same shape; return whether it does."""
    try:
        tensor.get_tensor()._share_data_with(other.get_tensor())
    except AttributeError:
        _report_missing('_share_data_with', 'a step computes on one thread where its operations do')
        return False
    return True


def global_store():
    """Return the key-value store of a job (methods set, get, wait), or None.

    Without it processes synchronise with a barrier, which gloo ends after 30 seconds.
    """
    try:
        from paddle.base.core import create_or_get_global_tcp_store
    except ImportError:
        return _report_missing('create_or_get_global_tcp_store',
                               'saving a checkpoint may not take longer than 30 seconds')
    return create_or_get_global_tcp_store()


def older_form():
    """Return (Variable, LayerHelper, OldIrGuard), which write graphs in the form of Paddle 2.

    None if they are missing: then an export has no inference.pdmodel, the only form that
    OpenVINO in Paddle reads. Tested with 3.3.1 only: Paddle 2.6.2 has no other form.
    """
    try:
        from paddle.base.framework import Variable
        from paddle.base.layer_helper import LayerHelper
        from paddle.pir_utils import OldIrGuard
    except ImportError as error:
        return _report_missing(f'{error.name}, with which older graphs are written',
                               'exports are written without inference.pdmodel, and oneDNN '
                               'computes them')
    return Variable, LayerHelper, OldIrGuard


def read_program(content):
    """Parse the bytes of an inference.pdmodel; return a ProgramDesc, or None if that is missing.

    Then the graph is not compared with inference.yml, and oneDNN computes it instead of OpenVINO.
    """
    try:
        from paddle.base.core import ProgramDesc
    except ImportError:
        return _report_missing('ProgramDesc', 'an inference.pdmodel is not compared with '
                               'inference.yml, and oneDNN computes it')
    return ProgramDesc(content)
