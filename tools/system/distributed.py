"""Processes: the same calls work with one process and with many (one a card)."""

import itertools
import signal

import paddle
import paddle.distributed as dist


def init():
    """Join the processes that paddle.distributed.launch started; nothing to do for one."""
    if world_size() > 1:
        dist.init_parallel_env()


def rank():
    """The number of this process, from 0."""
    return dist.get_rank()


def world_size():
    """How many processes work together."""
    return dist.get_world_size()


def is_main():
    """Whether this is the process that prints and saves."""
    return rank() == 0


def all_reduce_sum(values):
    """Sum a list of numbers over all processes, exactly for counts.

    Args:
        values: numbers, the same many on every process.

    Returns:
        list of float.
    """
    if world_size() == 1:
        return [float(value) for value in values]
    tensor = paddle.to_tensor([float(value) for value in values], dtype='float64')
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_rows(tensor):
    """Join the rows of all processes in rank order: `[B, ...]` to `[world_size * B, ...]`.

    Every process must bring the same number of rows: an uneven all_gather gives garbage.
    """
    if world_size() == 1:
        return tensor
    parts = []
    dist.all_gather(parts, tensor)
    return paddle.concat(parts, axis=0)


def gather_objects(value):
    """Every process's value, a small object of any kind, in rank order."""
    if world_size() == 1:
        return [value]
    values = []
    dist.all_gather_object(values, value)
    return values


def any_of(*wishes):
    """For each wish (a bool) whether any process has it; all processes get the same answer."""
    return tuple(total > 0 for total in all_reduce_sum(wishes))


_meetings = itertools.count()


def wait_for_all():
    """Wait until every process is here, however long it takes.

    A collective would do, were it not for gloo's fixed limit of 30 seconds, within which the
    main process may not have saved a large checkpoint. The store that the processes met through
    knows no such limit.
    """
    if world_size() == 1:
        return
    store = paddle.base.core.create_or_get_global_tcp_store()
    meeting = next(_meetings)
    # A signal would break off what the store is reading; it waits until all are here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        store.set(f'meeting/{meeting}/{rank()}', b'here')
        for other in range(world_size()):
            store.wait(f'meeting/{meeting}/{other}')
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
