"""Tasks in several processes that end with the command, however it ends.

concurrent.futures would do, but its threads can wait for ever on exit when a process was killed.
"""

import itertools
import multiprocessing
import multiprocessing.connection

from system import start


class WorkerKilled(RuntimeError):
    """A process of the pool was killed, perhaps because memory is short."""

    kind = 'failed'


def run(tasks, processes, setup=None):
    """Run tasks in several processes; yield their results in the order in which they finish.

    Args:
        tasks: an iterable of (function of a module, arguments ...). They are started in its order.
        processes: number of processes.
        setup: a function without arguments that each process calls first.

    Raises:
        The exception of the first task that fails; WorkerKilled.
    """
    tasks, workers = iter(tasks), {}    # {our end of the pipe: process}
    try:
        for task in itertools.islice(tasks, processes):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_work, args=(theirs, setup), daemon=True)
            with start.stop_signals_held():
                process.start()
                workers[ours] = process
            theirs.close()    # so that the end of the process closes the pipe
            ours.send(task)
        while workers:
            for pipe in multiprocessing.connection.wait(list(workers)):
                try:
                    error, result = pipe.recv()
                except (EOFError, ConnectionError) as lost:
                    raise WorkerKilled('a process was killed, perhaps because memory is short; '
                                       'start the same command with fewer --workers') from lost
                if error:
                    raise error
                task = next(tasks, None)
                if task is None:
                    _end(workers.pop(pipe))
                    pipe.close()
                else:
                    pipe.send(task)
                yield result
    finally:
        for process in workers.values():
            _end(process)


def _end(process):
    process.kill()
    process.join()


def _work(pipe, setup):
    start.leave_stopping_to_parent()
    if setup:
        setup()
    while True:
        function, *arguments = pipe.recv()
        try:
            answer = None, function(*arguments)
        except Exception as error:
            answer = error, None
        pipe.send(answer)
