"""Tasks in several processes that end with the command, however it ends."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import signal

from system import start


class WorkerKilled(RuntimeError):
    """A process of the pool was killed, perhaps because memory is short."""

    kind = 'failed'


def run(tasks, processes, setup=None):
    """Run tasks in several processes; yield their results in the order in which they finish.

    Args:
        tasks: a list of (function of a module, arguments ...). They are started in their order.
        processes: number of processes.
        setup: a function without arguments that each process calls first.

    Raises:
        The exception of the first task that fails; WorkerKilled.
    """
    if not tasks:
        return
    pool = concurrent.futures.ProcessPoolExecutor(min(processes, len(tasks)), initializer=_begin,
                                                  initargs=(setup,))
    try:
        for future in concurrent.futures.as_completed([pool.submit(*task) for task in tasks]):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise WorkerKilled('a process was killed, perhaps because memory is short; start the same '
                           'command again, with fewer --workers') from error
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown(wait=False)


def _begin(setup):
    """Let the process end with the command, which alone answers to Ctrl+C."""
    start.on_stop_signals(signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start.follow_parent(signal.SIGKILL)
    if setup:
        setup()
