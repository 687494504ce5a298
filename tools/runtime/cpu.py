"""Thread, BLAS and memory settings, and the order of imports. Import this before paddle.

Paddle computes on one thread unless OMP_NUM_THREADS says otherwise. On an AMD processor its MKL
takes a slow path unless MKL_DEBUG_CPU_TYPE names a better one: AVX-512, where there is that, is
twice as fast as AVX2. A variable that is set already is left alone. And every operation allocates
its result anew: memory that glibc gives back to the system comes back page by page, cleared.
"""

import ctypes
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


def mkl_cpu_type(cpuinfo):
    """What MKL_DEBUG_CPU_TYPE should be, of the text of /proc/cpuinfo; None: as it is."""
    if 'AuthenticAMD' not in cpuinfo:
        return None
    flags = cpuinfo.partition('\nflags')[2].partition('\n')[0].split()
    return MKL_AVX512 if AVX512 <= set(flags) else MKL_AVX2


def keep_freed_memory():
    """Have glibc keep freed memory for the next allocation; harmless on other systems."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):    # musl, macOS, Windows
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)    # bytes, the most that it accepts
    mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def threads():
    """Threads that this process computes on."""
    processes_here = int(os.environ.get('PADDLE_LOCAL_SIZE')
                         or os.environ.get('PADDLE_TRAINERS_NUM') or 1)
    return int(THREADS_SET_BY_USER or max(1, available_cores() // processes_here))


MKL_AVX2, MKL_AVX512 = '5', '7'
AVX512 = {'avx512f', 'avx512dq', 'avx512bw', 'avx512vl'}    # what MKL's code for it uses
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                  # of malloc.h

# Paddle sets this variable to 1 on import, and complains on stderr of a larger one.
THREADS_SET_BY_USER = os.environ.get('OMP_NUM_THREADS')
try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        MKL_CPU_TYPE = mkl_cpu_type(file.read(8192))
except OSError:    # macOS, Windows
    MKL_CPU_TYPE = None
if MKL_CPU_TYPE:
    os.environ.setdefault('MKL_DEBUG_CPU_TYPE', MKL_CPU_TYPE)
os.environ.setdefault('GLOG_minloglevel', '2')
keep_freed_memory()
warnings.filterwarnings('ignore', message='No ccache found')
warnings.filterwarnings('ignore', message="Tensor do not have 'place' interface")

import paddle  # noqa: E402

if not THREADS_SET_BY_USER:
    paddle.base.core.set_num_threads(threads())
