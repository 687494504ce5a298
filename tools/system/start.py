"""Prepares the process of a command: signals, threads, BLAS, memory; ends it with its launcher.

Importing this module changes nothing. Every command calls `prepare()` before it imports Paddle,
because Paddle reads these settings on import:

- Paddle computes on one thread unless OMP_NUM_THREADS is set.
- On AMD processors MKL takes a slow path unless MKL_DEBUG_CPU_TYPE selects a better one. AVX-512,
  where available, is faster than AVX2.
- Every operation allocates its result. glibc would return freed memory to the system, which
  clears each page before it is used again.

Environment variables that are already set are kept.

A signal to stop ends a command with one line and exit code 130 (SIGINT) or 75 (SIGTERM, SIGUSR1,
SIGHUP). SIGHUP, sent when a terminal closes, stays ignored under nohup. Before command.run() the
process ends at once, also during the seconds that importing Paddle takes. After that an exception
ends it; training first finishes its step and saves a checkpoint.
"""

import contextlib
import ctypes
import gc
import importlib.util
import math
import os
import signal
import sys
import warnings
from pathlib import Path

from system import paddle_private

PR_SET_PDEATHSIG = 1    # linux/prctl.h
LAUNCHER = 'T2T_LAUNCHER_PID'
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
                     if hasattr(signal, name))
MKL_AVX2, MKL_AVX512 = '5', '7'
AVX512 = {'avx512f', 'avx512dq', 'avx512bw', 'avx512vl'}    # used by MKL's AVX-512 code
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8    # malloc.h

NEEDED = ('paddle', 'numpy', 'PIL', 'yaml', 'tqdm')    # packages that every command imports

_chosen_threads = None    # OMP_NUM_THREADS before prepare()


def prepare():
    """Prepare this process for a command, and import Paddle. Call it before Paddle is imported."""
    global _chosen_threads
    if _chosen_threads is not None:    # already called, by the command that imports this one
        return
    require(*NEEDED)
    prepare_signals()
    follow_launcher()
    # Paddle sets this variable to 1 on import, and prints a warning if it is larger.
    _chosen_threads = os.environ.get('OMP_NUM_THREADS', '')
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            cpu_type = mkl_cpu_type(file.read(8192))
    except OSError:    # macOS, Windows
        cpu_type = None
    if cpu_type:
        os.environ.setdefault('MKL_DEBUG_CPU_TYPE', cpu_type)
    # More threads of NumPy would wait for cores on which those of Paddle look out for work.
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    os.environ.setdefault('GLOG_minloglevel', '2')
    # By default a transpose is a view, which each following operation copies element by element.
    # With 0 a fast kernel copies it once, which makes training faster.
    os.environ.setdefault('FLAGS_use_stride_kernel', '0')
    keep_freed_memory()
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message="Tensor do not have 'place' interface")
    # Some ImageNet files have invalid EXIF data, which is not used here.
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.TiffImagePlugin')

    # Paddle 2.6.2 contains its own zlib. Modules loaded after it would use parts of both, and
    # could not read PNG images or .gz files.
    import zlib  # noqa: F401

    from PIL import Image  # noqa: F401

    # On import Paddle replaces the handler of SIGTERM with one that prints a native traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    # A search for garbage finds next to nothing while modules are imported, and takes a tenth of
    # that time. Later ones leave out what is here by then.
    gc.disable()
    # isort: split
    with paddle_private.compiler_on_demand():
        import paddle  # noqa: F401

    gc.freeze()
    gc.enable()
    on_stop_signals(_leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not _chosen_threads:
        paddle_private.set_num_threads(threads())


def prepare_signals():
    """Make signals to stop end this process with one line; open closed standard streams."""
    on_stop_signals(_leave)
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:    # started with `>&-`: the next file opened would get this number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, 'w' if number else 'r', closefd=False))


def on_stop_signals(handler):
    """Set a handler for the signals to stop; return {signal number: previous handler}."""
    with stop_signals_held():    # one that comes meanwhile goes to the new handler
        return {number: signal.signal(number, handler) for number in STOP_SIGNALS
                if signal.Signals(number).name != 'SIGHUP'
                or signal.getsignal(number) != signal.SIG_IGN}    # as nohup sets it


@contextlib.contextmanager
def stop_signals_held():
    """Hold back signals to stop within this context.

    A process forked in it calls leave_stopping_to_parent() before it gets one; otherwise it would
    run the handlers of its parent.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stopping_to_parent():
    """Let the parent of this process handle signals to stop, which a job sends to all processes.

    If this process ended by itself, the parent might see that before it gets the signal, and
    report a failure. It kills this process when it stops, and this process ends with it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    follow_parent(signal.SIGKILL)


def exit_code(number):
    """Return the exit code of a process that a signal has stopped."""
    return 130 if number == signal.SIGINT else 75


def reason(number):
    """Return the last line of a process that a signal has stopped."""
    return 'interrupted' if number == signal.SIGINT else f'stopped: {signal.Signals(number).name}'


def _leave(number, _frame):
    with contextlib.suppress(OSError):    # stderr is closed
        os.write(2, f'{reason(number)}\n'.encode())
    os._exit(exit_code(number))


def follow_launcher():
    """Kill this process when its launcher ends; do nothing if tools/launch.py did not start it.

    Called before Paddle is imported: a launcher killed during those seconds would leave processes
    behind that train without supervision.
    """
    if 'PADDLE_TRAINER_ID' not in os.environ and LAUNCHER not in os.environ:
        return
    # SIGKILL, because a stopped or stuck process does not react to other signals.
    follow_parent(signal.SIGKILL)
    # The launcher may have been killed before the call above: then the parent is another process.
    if int(os.environ.pop(LAUNCHER, os.getppid())) != os.getppid():
        os._exit(1)


def follow_parent(signal_number):
    """Request a signal for the time when the parent process ends, for any reason (Linux only)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def available_cores():
    """Return the number of cores this process may use; containers and taskset can limit it."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:    # macOS, Windows
        return os.cpu_count() or 1
    return max(1, min(cores, int(cpu_quota() or cores)))


def cpu_quota(cgroups=Path('/sys/fs/cgroup')):
    """Return the number of cores of a container's CPU quota, such as 1.5; None without one."""
    with contextlib.suppress(OSError, ValueError):    # version 2: 'max 100000' without a quota
        quota, period = (cgroups / 'cpu.max').read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):    # version 1: -1 without a quota
        quota = int((cgroups / 'cpu/cpu.cfs_quota_us').read_text())
        if quota > 0:
            return quota / int((cgroups / 'cpu/cpu.cfs_period_us').read_text())
    return None


def threads():
    """Return the number of threads that this process computes on."""
    chosen = os.environ.get('OMP_NUM_THREADS') if _chosen_threads is None else _chosen_threads
    return int(chosen or max(1, available_cores() // processes_here()))


def claim_cores():
    """Bind this process to cores of its own, as many as threads, if its job has several here.

    OpenVINO binds its threads to the first cores that it may use, which would be the same ones in
    all processes. Processes that are started later, such as loader workers, inherit the binding.
    """
    global _chosen_threads
    if processes_here() == 1 or not hasattr(os, 'sched_setaffinity'):    # macOS, Windows
        return
    count, number = threads(), int(os.environ.get('PADDLE_LOCAL_RANK') or 0)
    own = sorted(os.sched_getaffinity(0))[number * count:(number + 1) * count]
    if len(own) == count:
        _chosen_threads = str(count)    # which no longer follows from the available cores
        os.sched_setaffinity(0, own)


def processes_here():
    """Return the number of processes of this job on this machine, at most."""
    return int(os.environ.get('PADDLE_LOCAL_SIZE') or os.environ.get('PADDLE_TRAINERS_NUM') or 1)


def free_memory(root='/'):
    """Return the bytes that this process can still allocate; infinity if they are not known.

    They are the machine's available memory, or what is left of a smaller limit of a container or a
    batch system (control groups, version 2). Cached files count as free.

    Args:
        root: where /proc and /sys are.
    """
    def values(*names):
        """The numbers of a file with lines of a name and a number."""
        try:
            lines = Path(root, *names).read_text(encoding='utf-8').splitlines()
        except OSError:
            return {}
        pairs = [line.replace(':', ' ').split()[:2] for line in lines]
        return {name: int(value) for name, value in filter(lambda p: len(p) == 2, pairs)
                if value.isdigit()}

    sizes = [1024 * values('proc/meminfo').get('MemAvailable', math.inf)]
    try:
        group = Path(root, 'proc/self/cgroup').read_text(encoding='utf-8').partition('0::/')[2]
    except OSError:
        group = ''
    top = Path(root, 'sys/fs/cgroup')
    own = top / group.strip()
    for folder in (own, *(parent for parent in own.parents if top in (parent, *parent.parents))):
        try:
            limit = int((folder / 'memory.max').read_text())
        except (OSError, ValueError):    # no limit: the word max
            continue
        used = values(folder, 'memory.stat')
        sizes.append(max(limit - used.get('anon', 0) - used.get('shmem', 0), 0))
    return min(sizes)


def require(*packages):
    """End with exit code 2 and one line if this Python lacks one of the packages."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            print(missing_package(package), file=sys.stderr)
            sys.exit(2)


def missing_package(package):
    """The message that this Python lacks a package."""
    return (f'{sys.executable} has no package {package}: run `source .venv/bin/activate`, if a '
            'script has made .venv, or install requirements.txt')


def mkl_cpu_type(cpuinfo):
    """Return a value for MKL_DEBUG_CPU_TYPE from the text of /proc/cpuinfo, or None."""
    if 'AuthenticAMD' not in cpuinfo:
        return None
    flags = cpuinfo.partition('\nflags')[2].partition('\n')[0].split()
    return MKL_AVX512 if AVX512 <= set(flags) else MKL_AVX2


def keep_freed_memory():
    """Make glibc keep freed memory for later allocations; no effect on other systems."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):    # musl, macOS, Windows
        return
    mallopt(M_MMAP_MAX, 0)    # large allocations are mapped by default, and unmapped when freed
    mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
    mallopt(M_ARENA_MAX, 1)    # memory that one thread has freed serves the others, too
