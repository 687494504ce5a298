"""Processes: the same calls work with one process and with many (one a card)."""

import contextlib
import io
import itertools
import pickle
import signal

import numpy as np
import paddle
import paddle.distributed as dist

from system import paddle_private
from system.lockstep import Lockstep, PeerError

PIECE = 16 << 20    # bytes that a collective moves at most; gloo allows each 30 seconds


_lockstep = None       # between the processes of a job


class DisagreementError(RuntimeError):
    """Processes that are not at the same point of the same run."""


def init():
    """Join the processes that a launcher started; nothing to do for one."""
    global _lockstep
    if world_size() > 1:
        with contextlib.redirect_stderr(io.StringIO()):    # Paddle lists flags that it has set
            dist.init_parallel_env()
        store = paddle_private.global_store()
        if store is not None:
            _lockstep = Lockstep(rank(), world_size(), store)


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


def share(value):
    """The main process's value, given to every process; theirs are ignored.

    Large arrays, a checkpoint's for one, go in pieces, so that none meets gloo's limit of 30
    seconds, and the main process may have taken any time to get the value.

    Args:
        value: anything that pickle can store.

    Returns:
        The same object in the main process, and an equal one in the others.
    """
    if world_size() == 1:
        return value
    wait_for_all()
    parts, buffers = [], []
    if is_main():
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        views = [memoryview(data), *(buffer.raw() for buffer in buffers)]
        parts = [np.ndarray(len(view), np.uint8, view) for view in views]
    sizes = np.array([len(part) for part in parts], np.int64)
    count = _broadcast(np.array([len(sizes)]))[0]
    sizes = _broadcast(sizes if is_main() else np.zeros(count, np.int64))
    if not is_main():
        parts = [np.empty(size, np.uint8) for size in sizes]
    for part in parts:
        for first in range(0, len(part), PIECE):
            received = _broadcast(part[first:first + PIECE])
            if not is_main():
                part[first:first + PIECE] = received
    return value if is_main() else pickle.loads(parts[0].tobytes(), buffers=parts[1:])


def _broadcast(array):
    tensor = paddle.to_tensor(array)
    dist.broadcast(tensor, src=0)
    return tensor.numpy()


def from_main(function, *arguments):
    """What a function returns in the main process, or the exception that it raises there.

    So only the main process needs the files that it reads.
    """
    def call():
        try:
            return function(*arguments), None
        except Exception as error:
            return None, error

    result, error = share(call() if is_main() else None)
    if error is not None:
        raise error
    return result


def everywhere(function, *arguments):
    """Call a function in every process; where it raises in one of them, it raises in all."""
    result = error = None
    try:
        result = function(*arguments)
    except Exception as raised:
        error = raised
    wait_for_all()
    for other in [error, *gather_objects(error)]:
        if other is not None:
            raise other
    return result


def agree(**values):
    """Check that all processes have the same values, before they work together.

    Args:
        **values: anything small, by the name that a message calls it.

    Raises:
        DisagreementError: in every process, with each one's values of those that differ.
    """
    wait_for_all()
    found = gather_objects(values)
    differing = [name for name in found[0] if any(other[name] != found[0][name] for other in found)]
    if differing:
        raise DisagreementError('the processes disagree: ' + '; '.join(
            f'rank {number}: ' + ', '.join(f'{name} {other[name]}' for name in differing)
            for number, other in enumerate(found)))


def in_step(batches, before_leaving=lambda: None):
    """Yield from `batches` on every process, when all of them have their next one.

    Args:
        batches: an iterable, which gives the same number of them on every process.
        before_leaving: called on all processes where one of them cannot get its next batch, to
            save for one; they may use collectives in it.

    Raises:
        what getting a batch raised, in the process where it did.
        PeerError: in the others.
    """
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except Exception:
            if _lockstep:
                _lockstep.meet(broken=True)
            before_leaving()
            raise
        if _lockstep and _lockstep.meet(broken=False):
            before_leaving()
            raise PeerError('another process has no next batch, and says why')
        if batch is None:
            return
        yield batch


_meetings = itertools.count()


def wait_for_all():
    """Wait until every process is here, however long it takes.

    A collective would do, were it not for gloo's fixed limit of 30 seconds, within which the
    main process may not have saved a large checkpoint. The store that the processes met through
    knows no such limit.
    """
    if world_size() == 1:
        return
    store = paddle_private.global_store()
    if store is None:
        return dist.barrier()
    meeting = next(_meetings)
    # A signal would break off what the store is reading; it waits until all are here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        store.set(f'meeting/{meeting}/{rank()}', b'here')
        for other in range(world_size()):
            store.wait(f'meeting/{meeting}/{other}')
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
