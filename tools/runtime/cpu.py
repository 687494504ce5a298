"""Thread and BLAS settings, and the order of imports. Import this before paddle is imported.

Paddle computes on one thread unless OMP_NUM_THREADS says otherwise, and on an AMD processor
its MKL takes a slow path unless MKL_DEBUG_CPU_TYPE=5; together they cost more than half of the
speed. A variable that is set already is left alone.
"""

import os
import warnings

# Paddle 2.6.2 brings a zlib of its own. Modules that are loaded after it mix that one with theirs,
# and then no PNG image and no .gz file can be read.
import zlib  # noqa: F401

from PIL import Image  # noqa: F401


def available_cores():
    """Cores that this process may use (a container or taskset can leave fewer than there are)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:    # macOS, Windows
        return os.cpu_count() or 1


def _is_amd():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return 'AuthenticAMD' in file.read(4096)
    except OSError:
        return False


def threads():
    """Threads that this process computes on."""
    processes_here = int(os.environ.get('PADDLE_LOCAL_SIZE')
                         or os.environ.get('PADDLE_TRAINERS_NUM') or 1)
    return int(THREADS_SET_BY_USER or max(1, available_cores() // processes_here))


# Paddle sets this variable to 1 on import, and complains on stderr of a larger one.
THREADS_SET_BY_USER = os.environ.get('OMP_NUM_THREADS')
if _is_amd():
    os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
os.environ.setdefault('GLOG_minloglevel', '2')
warnings.filterwarnings('ignore', message='No ccache found')
warnings.filterwarnings('ignore', message="Tensor do not have 'place' interface")

import paddle  # noqa: E402

if not THREADS_SET_BY_USER:
    paddle.base.core.set_num_threads(threads())
