"""How a command's process starts: signals, threads, BLAS, memory, and the tie to the launcher.

Importing this changes nothing; every command calls `prepare()` before it imports Paddle, which
reads what is set here.

Paddle computes on one thread unless OMP_NUM_THREADS says otherwise. On an AMD processor its MKL
takes a slow path unless MKL_DEBUG_CPU_TYPE names a better one: AVX-512, where there is that, is
twice as fast as AVX2. A variable that is set already is left alone. And every operation allocates
its result anew: memory that glibc gives back to the system comes back page by page, cleared.

A signal to stop ends a command in one line, with exit code 130 (SIGINT) or 75 (SIGTERM, SIGUSR1,
and SIGHUP, which comes from a closed terminal, unless nohup has set it to be ignored). This holds
in the seconds that Paddle's import takes, too: until command.run() nothing has begun, and the
process ends at once; then an exception ends it (or, in training, a step and a checkpoint).
"""

import contextlib
import ctypes
import os
import signal
import sys
import warnings

from system import paddle_private

PR_SET_PDEATHSIG = 1    # linux/prctl.h
LAUNCHER = 'T2T_LAUNCHER_PID'
STOP_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
                     if hasattr(signal, name))
MKL_AVX2, MKL_AVX512 = '5', '7'
AVX512 = {'avx512f', 'avx512dq', 'avx512bw', 'avx512vl'}    # what MKL's code for it uses
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                  # of malloc.h

_chosen_threads = None    # OMP_NUM_THREADS as prepare() found it


def prepare():
    """Prepare this process for a command. Call it before Paddle is imported."""
    global _chosen_threads
    if _chosen_threads is not None:    # by a command that this one imports
        return
    prepare_signals()
    follow_launcher()
    # Paddle sets this variable to 1 on import, and complains on stderr of a larger one.
    _chosen_threads = os.environ.get('OMP_NUM_THREADS', '')
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            cpu_type = mkl_cpu_type(file.read(8192))
    except OSError:    # macOS, Windows
        cpu_type = None
    if cpu_type:
        os.environ.setdefault('MKL_DEBUG_CPU_TYPE', cpu_type)
    os.environ.setdefault('GLOG_minloglevel', '2')
    # Paddle's default leaves a transpose as a view, and each of the operations behind it copies
    # that element by element. With 0 a fast kernel copies once: twice the speed in training.
    os.environ.setdefault('FLAGS_use_stride_kernel', '0')
    keep_freed_memory()
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message="Tensor do not have 'place' interface")
    # Some ImageNet files hold broken EXIF data. Nothing here uses EXIF.
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.TiffImagePlugin')

    # Paddle 2.6.2 brings a zlib of its own. Modules that are loaded after it mix that one with
    # theirs, and then no PNG image and no .gz file can be read.
    import zlib  # noqa: F401

    from PIL import Image  # noqa: F401

    # Paddle's own handler of SIGTERM, which prints a native trace, takes the place of ours.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    # isort: split
    import paddle  # noqa: F401

    on_stop_signals(_leave)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not _chosen_threads:
        paddle_private.set_num_threads(threads())


def prepare_signals():
    """Have a signal to stop end this process at once, in one line; open streams that are closed."""
    on_stop_signals(_leave)
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        try:
            os.fstat(number)
        except OSError:    # started with `>&-`: the next file to be opened would be taken for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, 'w' if number else 'r', closefd=False))


def on_stop_signals(handler):
    """Give the signals to stop a handler; returns {number: the one before}."""
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS
            if signal.Signals(number).name != 'SIGHUP'
            or signal.getsignal(number) != signal.SIG_IGN}    # as nohup sets it


def exit_code(number):
    """The exit code of a process that a signal asked to stop."""
    return 130 if number == signal.SIGINT else 75


def reason(number):
    """The last line of a process that a signal asked to stop."""
    return 'interrupted' if number == signal.SIGINT else f'stopped: {signal.Signals(number).name}'


def _leave(number, _frame):
    with contextlib.suppress(OSError):    # nobody listens
        os.write(2, f'{reason(number)}\n'.encode())
    os._exit(exit_code(number))


def follow_launcher():
    """Tie a process that tools/launch.py started to its launcher; others are left alone.

    To be called before the seconds that Paddle's import takes: a launcher that is killed in those
    would leave processes behind that nobody knows of, and that go on to train.
    """
    if 'PADDLE_TRAINER_ID' not in os.environ and LAUNCHER not in os.environ:
        return
    # SIGKILL, because a process that is stopped or stuck reacts to no other.
    follow_parent(signal.SIGKILL)
    # tools/launch.py names itself; it may have been killed before this process got this far.
    if int(os.environ.pop(LAUNCHER, os.getppid())) != os.getppid():
        os._exit(1)


def follow_parent(signal_number):
    """Have this process get a signal when its parent ends, in whatever way (Linux only)."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def available_cores():
    """Cores that this process may use (a container or taskset can leave fewer than there are)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:    # macOS, Windows
        return os.cpu_count() or 1


def threads():
    """Threads that this process computes on."""
    chosen = os.environ.get('OMP_NUM_THREADS') if _chosen_threads is None else _chosen_threads
    processes_here = int(os.environ.get('PADDLE_LOCAL_SIZE')
                         or os.environ.get('PADDLE_TRAINERS_NUM') or 1)
    return int(chosen or max(1, available_cores() // processes_here))


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
