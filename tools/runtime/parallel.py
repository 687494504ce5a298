"""One function of a batch, computed by several processes.

An engine on two threads is slower than two engines on one thread each: threads wait for each other
after every layer, processes only once a batch. (Threads with an engine each don't help: Paddle's
predictor holds the interpreter's lock while it computes.)
"""

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import threading

import numpy as np

from runtime import follow_parent

SHARED_BYTES = 32 << 20    # memory for the images of one process; more images come in turns
STOPPED_BY_PARENT = ('SIGINT', 'SIGTERM', 'SIGUSR1')    # which come to a whole group


class ParallelError(RuntimeError):
    """A part of a batch that was not computed: why, in one line."""


class Parallel:
    """Calls `compute` on parts of a batch at once, here and in processes of its own.

    A process that dies or fails makes the call fail; the next one starts new processes.

    Args:
        load: picklable function without arguments that returns `compute`, ndarray float32
            `[B, *image_shape]` to `[B, outputs]`; every process calls it once.
        processes: number of parts, at least 2; the first one is computed here.
        alone: computes batches of less than `processes` images, here.
        image_shape, outputs: shapes of one image and of its result.

    Raises:
        ParallelError: where a process can't load.
    """

    def __init__(self, load, processes, alone, image_shape, outputs):
        self.load, self.processes, self.alone = load, processes, alone
        self.image_shape, self.outputs = image_shape, outputs
        self.most = max(1, SHARED_BYTES // (4 * max(int(np.prod(image_shape)), outputs)))
        self.closed = False
        self.helpers = []
        # Not weakref's: this one runs before multiprocessing waits for its processes, and never in
        # a fork of this process, which has no right to them.
        multiprocessing.util.Finalize(self, _end, (self.helpers,), exitpriority=1)
        with self._or_none():
            self._start()
            self.compute = load()
            self._wait_until_loaded()

    def _start(self):
        for _ in range(self.processes - 1):
            self.helpers.append(_Helper(self.load, self.most, self.image_shape, self.outputs))

    def _wait_until_loaded(self):
        for helper in self.helpers:
            helper.answer()

    @contextlib.contextmanager
    def _or_none(self):
        """End all processes if anything fails: a late answer would pass for the next batch's."""
        try:
            yield
        except BaseException:
            _end(self.helpers)
            raise

    def __call__(self, images):
        if self.closed:
            raise ParallelError('the engine was closed')
        if len(images) < self.processes:
            return self.alone(images)
        with self._or_none():
            if not self.helpers:
                self._start()
                self._wait_until_loaded()
            step = self.most * self.processes
            return np.concatenate([self._turn(images[start:start + step])
                                   for start in range(0, len(images), step)])

    def _turn(self, images):
        """Compute at most `most` images a process."""
        own, *others = np.array_split(images, min(self.processes, len(images)))
        asked = self.helpers[:len(others)]
        for helper, part in zip(asked, others):
            helper.ask(part)
        return np.concatenate([self.compute(own)] + [helper.answer() for helper in asked])

    def close(self):
        """End the processes; harmless if they have ended."""
        self.closed = True
        _end(self.helpers)


class _Helper:
    """A process that computes, and the memory that it shares with this one."""

    def __init__(self, load, most, image_shape, outputs):
        # A fork would hold the locks of threads that it lacks.
        context = multiprocessing.get_context('spawn')
        shapes = (most, *image_shape), (most, outputs)
        shared = [context.RawArray('f', int(np.prod(shape))) for shape in shapes]
        self.images, self.results = _arrays(shared, shapes)
        self.connection, other = context.Pipe()
        # The system counts the thread that started a process as its parent.
        follow = threading.current_thread() is threading.main_thread()
        self.process = context.Process(target=_help, args=(load, shared, shapes, other, follow),
                                       daemon=True)
        self.process.start()
        other.close()    # so that reading from it ends when the process does
        self.asked = 0

    def ask(self, images):
        """Have images computed, at most `most`."""
        self.asked = len(images)
        self.images[:self.asked] = images
        with contextlib.suppress(OSError):    # it is dead: the missing answer tells how
            self.connection.send(self.asked)

    def answer(self):
        """Wait for the result of `ask`, `[B, outputs]`, or for the end of loading."""
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            error = 'it ended ' + (f'by signal {-code}' if code and code < 0
                                   else f'with exit code {code}')
        if error:
            raise ParallelError(f'one of several processes failed: {error}')
        return self.results[:self.asked]


def _arrays(shared, shapes):
    return [np.frombuffer(memory, 'float32').reshape(shape)
            for memory, shape in zip(shared, shapes)]


def _end(helpers):
    while helpers:
        helper = helpers.pop()
        helper.process.kill()    # it holds nothing but what it computes
        helper.process.join()
        helper.connection.close()


def _help(load, shared, shapes, connection, follow):
    """What a helping process does: load, then compute as many images as it is told."""
    for name in STOPPED_BY_PARENT:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if follow:
        follow_parent(signal.SIGKILL)
    images, results = _arrays(shared, shapes)
    try:
        compute = load()
        connection.send(None)
        while True:
            count = connection.recv()
            try:
                results[:count] = compute(images[:count])
                error = None
            except Exception as problem:
                error = ' '.join(str(problem).split()) or type(problem).__name__
            connection.send(error)
    except (EOFError, OSError):    # the parent has ended
        os._exit(1)
    except Exception as problem:
        connection.send(' '.join(str(problem).split()) or type(problem).__name__)
