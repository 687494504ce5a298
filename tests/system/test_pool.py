"""Catches results that are lost, and processes that outlive a failure."""

import functools
import os
import signal

import pytest
from support.processes import gone

from system import pool, start
from system.start import STOP_SIGNALS

_start = 0


def setup(start):
    global _start
    _start = start


def add(number):
    return _start + number, os.getpid()


def fail(number):
    raise FileNotFoundError(number, 'no such number', 'name')


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(number):
    os.kill(os.getpid(), number)
    return number, signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_every_task_has_one_result():
    results = list(pool.run(((add, number) for number in range(50)), 3,
                            functools.partial(setup, 100)))
    assert sorted(number for number, _ in results) == list(range(100, 150))
    processes = {process for _, process in results}
    assert 1 <= len(processes) <= 3 and os.getpid() not in processes
    assert gone(processes) and list(pool.run([], 3)) == []


@pytest.mark.parametrize('task, error', [(fail, FileNotFoundError), (die, pool.WorkerKilled)])
def test_a_failure_ends_all_processes(task, error):
    results = pool.run([*((add, number) for number in range(8)), (task, 7),
                        *((add, number) for number in range(1000))], 2)
    processes = {next(results)[1], next(results)[1]}
    with pytest.raises(error) as caught:
        list(results)
    assert gone(processes)
    if task is fail:
        assert (caught.value.errno, caught.value.filename) == (7, 'name')


def test_signals_to_stop_are_left_to_the_parent():
    """A job sends them to all processes, and the first one to end must not be a worker."""
    tasks = [(stop, number) for number in STOP_SIGNALS]
    assert sorted(pool.run(tasks, 2)) == sorted((number, set()) for number in STOP_SIGNALS)


def test_a_signal_before_a_process_has_begun():
    with start.stop_signals_held():
        process = os.fork()
        if process == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            start.leave_stopping_to_parent()
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
