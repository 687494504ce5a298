"""Collectives and synchronisation that work alike with one process and with several."""

import contextlib
import io
import itertools
import pickle
import signal

import numpy as np
import paddle
import paddle.distributed as dist

from system import command, paddle_private
from system.lockstep import Lockstep, PeerError

MAX_BYTES = 16 << 20    # of one broadcast: gloo ends a collective after 30 seconds

_lockstep = None    # set by init() where there are several processes


class DisagreementError(RuntimeError):
    """Processes that have different values where all must have the same."""


def init():
    """Connect to the other processes of the job; with one process do nothing."""
    global _lockstep
    if world_size() > 1:
        with contextlib.redirect_stderr(io.StringIO()):    # Paddle prints its flags
            dist.init_parallel_env()
        store = paddle_private.global_store()
        if store is not None:
            _lockstep = Lockstep(rank(), world_size(), store)
            command.before_exit(_lockstep.end)


def rank():
    """Return the rank of this process, from 0."""
    return dist.get_rank()


def world_size():
    """Return the number of processes."""
    return dist.get_world_size()


def is_main():
    """Return whether this is rank 0, which prints and saves."""
    return rank() == 0


def all_reduce_sum(values):
    """Sum a list of numbers element by element over all processes, in float64.

    Args:
        values: numbers; the same length on every process.

    Returns:
        list of float.
    """
    if world_size() == 1:
        return [float(value) for value in values]
    tensor = paddle.to_tensor([float(value) for value in values], dtype='float64')
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_rows(tensor):
    """Concatenate the rows of all processes in rank order: `[B, ...]` to `[world_size * B, ...]`.

    B must be the same on every process: otherwise all_gather returns wrong values.
    """
    if world_size() == 1:
        return tensor
    parts = []
    dist.all_gather(parts, tensor)
    return paddle.concat(parts, axis=0)


def gather_objects(value):
    """Return a list of the values of all processes, in rank order; values are small objects."""
    if world_size() == 1:
        return [value]
    values = []
    dist.all_gather_object(values, value)
    return values


def any_of(*flags):
    """Return, for each flag (a bool), whether it is true on any process."""
    return tuple(total > 0 for total in all_reduce_sum(flags))


def broadcast_object(value):
    """Send the value of rank 0 to every process.

    Large arrays, as in a checkpoint, are sent in parts, because gloo ends a collective after 30
    seconds. Rank 0 may call this much later than the others.

    Args:
        value: an object that can be pickled; ignored on other ranks than 0.

    Returns:
        `value` on rank 0, and a copy of it on the others.
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
        for first in range(0, len(part), MAX_BYTES):
            received = _broadcast(part[first:first + MAX_BYTES])
            if not is_main():
                part[first:first + MAX_BYTES] = received
    return value if is_main() else pickle.loads(parts[0].tobytes(), buffers=parts[1:])


def _broadcast(array):
    tensor = paddle.to_tensor(array)
    dist.broadcast(tensor, src=0)
    return tensor.numpy()


def from_main(function, *arguments):
    """Call a function on rank 0; return its result, or raise its exception, on every process.

    Only rank 0 needs access to the files that the function reads.
    """
    def call():
        try:
            return function(*arguments), None
        except Exception as error:
            return None, error

    result, error = broadcast_object(call() if is_main() else None)
    if error is not None:
        raise error
    return result


def everywhere(function, *arguments):
    """Call a function on every process; an exception on any of them is raised on all."""
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
    """Check that all processes have the same values.

    Args:
        **values: small objects; their names appear in the message.

    Raises:
        DisagreementError: on every process; lists the values that differ, by rank.
    """
    wait_for_all()
    found = gather_objects(values)
    differing = [name for name in found[0] if any(other[name] != found[0][name] for other in found)]
    if differing:
        raise DisagreementError('the processes disagree: ' + '; '.join(
            f'rank {number}: ' + ', '.join(f'{name} {other[name]}' for name in differing)
            for number, other in enumerate(found)))


def in_step(batches, on_failure=lambda: None):
    """Yield each batch once all processes have their next one.

    Args:
        batches: an iterable of the same length on every process.
        on_failure: called on all processes, for example to save a checkpoint, when one of them
            cannot get its next batch. It may use collectives.

    Raises:
        Exception: on the process that failed, whatever `batches` raised there.
        PeerError: on the others.
    """
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except Exception:
            if _lockstep:
                _lockstep.synchronise(failed=True)
            on_failure()
            raise
        if _lockstep and _lockstep.synchronise(failed=False):
            on_failure()
            raise PeerError('another process failed to get its next batch')
        if batch is None:
            return
        yield batch


_barriers = itertools.count()


def wait_for_all():
    """Wait until every process has called this, without a time limit.

    A collective would end after 30 seconds (gloo), which saving a large checkpoint on rank 0 may
    exceed. Waiting through the store of the job has no such limit.
    """
    if world_size() == 1:
        return
    store = paddle_private.global_store()
    if store is None:
        return dist.barrier()
    barrier = next(_barriers)
    # A signal would interrupt a read of the store: block signals until all processes are here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        store.set(f'barrier/{barrier}/{rank()}', b'here')
        for other in range(world_size()):
            store.wait(f'barrier/{barrier}/{other}')
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
