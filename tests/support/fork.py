"""Starts Python programs as forks of a process that has imported Paddle, which takes 1.5 seconds.

`install()` replaces subprocess.Popen by a class that forks commands of the form

    sys.executable [-u] PROGRAM.py ARGUMENTS ...
    sys.executable -m paddle.distributed.launch ARGUMENTS ...

and starts all others as before. Forked programs are real processes: with their own pid, arguments
in /proc, streams, environment, working directory, session, signals and exit code, and the process
that started them as parent. They import the modules of this project anew. Programs that a forked
program starts are forked as well, such as the processes of tools/launch.py.

A program starts as before, in a fresh interpreter, if its environment differs in a variable that
Python or Paddle read when they start, if subprocess.Popen gets an argument that is unknown here, in
tests with the marker `fresh_interpreter`, and on other systems than Linux.
"""

import ctypes
import gc
import os
import pickle
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Prefixes of variables that Python, Paddle or its libraries read when they start.
READ_AT_START = ('PYTHON', 'FLAGS_', 'GLOG_', 'OMP_', 'MKL_', 'KMP_', 'OPENBLAS_', 'MALLOC_',
                 'GLIBC_', 'LD_', 'CUDA_', 'COVERAGE_')
PR_SET_CHILD_SUBREAPER = 36    # linux/prctl.h
ARGUMENTS = 4096               # bytes for the arguments that /proc shows
LARGEST_REQUEST = 1 << 18      # bytes; sending a larger one fails

Fresh = subprocess.Popen       # the class that starts fresh interpreters
enabled = True
_at_start = None               # read_at_start of the environment that this process started with


class Forked(Fresh):
    """subprocess.Popen for commands of Python programs."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env,
                       startupinfo, creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite,
                       errread, errwrite, restore_signals, gid, gids, uid, umask,
                       start_new_session, process_group=-1):
        arguments = [] if shell or isinstance(args, (str, bytes, os.PathLike)) else [
            os.fsdecode(argument) for argument in args]
        cwd = os.path.join(os.getcwd(), os.fsdecode(cwd or ''))
        env = {os.fsdecode(name): os.fsdecode(value)
               for name, value in (os.environ if env is None else env).items()}
        unknown = (executable, preexec_fn, pass_fds, gid, gids, uid) != (None, None, (), None, None,
                                                                         None)
        if (not enabled or unknown or umask != -1 or process_group != -1 or not close_fds
                or not is_program(arguments, cwd) or read_at_start(env) != _at_start
                or threading.active_count() > 1 and _start is start_here):
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
                restore_signals, gid, gids, uid, umask, start_new_session,
                *([process_group] if sys.version_info >= (3, 11) else []))
        streams = [given if given != -1 else standard
                   for given, standard in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        self.pid = _start(dict(arguments=arguments, cwd=cwd, env=env, session=start_new_session),
                          streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def is_program(arguments, cwd):
    """Return whether a command line is one of those that are forked."""
    if arguments[:1] != [sys.executable]:
        return False
    program, *rest = [*arguments[1 + (arguments[1:2] == ['-u']):], '']
    return (bool(rest) and program == '-m' and rest[0] == 'paddle.distributed.launch'
            or program.endswith('.py') and os.path.isfile(os.path.join(cwd, program)))


def read_at_start(environment):
    """Return the variables of an environment that are read when a program starts."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


def install():
    """Fork the Python programs that this process starts, from now on."""
    global _at_start
    if sys.platform == 'linux':
        _at_start = read_at_start(os.environ)
        subprocess.Popen = Forked


# ---- in the process that runs the tests

_server = None    # the socket to the process that has imported Paddle, and its Popen


def server_pid():
    """Return the pid of the process that programs are forked from, None before the first one."""
    return _server and _server[1].pid


def start_from_server(request, streams):
    """Fork a program from the server, as a child of this process; return its pid."""
    global _server
    if _server is None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        its.set_inheritable(True)
        _server = ours, Fresh([sys.executable, __file__, str(its.fileno()), ' ' * ARGUMENTS],
                              pass_fds=[its.fileno()], cwd=ROOT, start_new_session=True)
        its.close()
    # The program is orphaned while this flag is set, so this process becomes its parent.
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        socket.send_fds(_server[0], [pickle.dumps(request)], streams)
        answer = _server[0].recv(8)
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    if not answer:
        raise ChildProcessError(f'the server of {__file__} has ended')
    return int.from_bytes(answer, 'little')


_start = start_from_server


# ---- in the server, and in the programs

def serve(connection):
    """Fork a program for each request; return the request in that program, None at the end."""
    while True:
        content, streams, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
        if not content:
            return None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            between = os.getpid()
            if program := os.fork():
                os.write(writer, program.to_bytes(8, 'little'))
                os._exit(0)    # orphans the program
            while os.getppid() == between:
                time.sleep(0.001)
            return pickle.loads(content), streams
        os.waitpid(child, 0)
        connection.send(os.read(reader, 8))
        for descriptor in (reader, writer, *streams):
            os.close(descriptor)


def start_here(request, streams):
    """Fork a program from this process; return its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    run(request, streams)


def run(request, streams):
    """Become the program of a request: set up this forked process, run it, exit."""
    status = 1
    try:
        set_up(request, streams)
        status = execute(request['arguments'])
    finally:    # ends the interpreter and the libraries as at the end of a program
        ctypes.pythonapi.Py_Exit(status)


def set_up(request, streams):
    """Give this process the streams, environment, session and fresh state of a new one."""
    global _start, _at_start
    _start, _at_start = start_here, read_at_start(request['env'])
    streams = [os.dup(descriptor) for descriptor in streams]    # not among 0, 1, 2 any more
    for standard, descriptor in enumerate(streams):
        os.dup2(descriptor, standard)
    os.closerange(3, os.sysconf('SC_OPEN_MAX'))
    if request['session']:
        os.setsid()
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for name in set(sys.modules) - MODULES:
        del sys.modules[name]
    random.seed()
    sys.modules['numpy'].random.seed()
    unbuffered = request['arguments'][1] == '-u'
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, 'w', closefd=False)
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=unbuffered)
    sys.stderr = open(2, 'w', closefd=False, errors='backslashreplace')
    sys.stderr.reconfigure(line_buffering=True)
    show_arguments(request['arguments'])


def execute(arguments):
    """Run a Python program as `__main__`; return its exit code."""
    sys.argv = arguments[1 + (arguments[1] == '-u'):]
    try:
        if sys.argv[0] == '-m':
            sys.argv = sys.argv[1:]
            sys.path[:] = [os.getcwd(), *PATH]
            runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
        else:
            sys.path[:] = [os.path.dirname(os.path.abspath(sys.argv[0])), *PATH]
            main = sys.modules['__main__'] = types.ModuleType('__main__')
            main.__file__ = sys.argv[0]
            with open(sys.argv[0], 'rb') as file:
                code = compile(file.read(), sys.argv[0], 'exec')
            exec(code, main.__dict__)
        return 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xff
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1


def show_arguments(arguments):
    """Write the arguments of a program to where /proc/PID/cmdline shows them."""
    text = b'\0'.join(map(os.fsencode, arguments))[:ARGUMENTS - 1]
    first, last = map(int, Path('/proc/self/stat').read_text().rpartition(')')[2].split()[45:47])
    ctypes.memmove(first, text.ljust(last - first, b'\0'), last - first)


if __name__ == '__main__':
    PATH = sys.path[1:]
    sys.path[0] = str(ROOT / 'tools')
    import yaml  # noqa: F401

    from system import start
    start.prepare()
    MODULES = {name for name, module in sys.modules.items()
               if not str(getattr(module, '__file__', '')).startswith(str(ROOT / 'tools'))}
    install()
    gc.collect()
    gc.freeze()
    received = serve(socket.socket(fileno=int(sys.argv[1])))
    if received:
        run(*received)
