"""Requests that come at once share a batch; one thread alone owns the model."""

import contextlib
import queue
import threading
from concurrent.futures import Future


class Full(RuntimeError):
    """No place is free; the request must come again later."""


class Batcher:
    """A bounded line of items before one worker thread, which takes up to a batch at a time.

    The worker never waits for a batch to fill: it takes what has come while it was busy, so that
    a single item is answered at once and a crowd in large batches.

        with batcher.places(len(items)):
            results = [future.result() for future in map(batcher.submit, items)]

    Args:
        run: called in the worker thread with a list of 1 to `batch_size` items; returns a result
            for each. What it raises is raised by every future of that batch.
        batch_size: most items of a call.
        capacity: most items that are in the line or on their way to it.
        prepare: called once in the worker thread before the first batch; what it raises is raised
            here.
    """

    def __init__(self, run, batch_size, capacity, prepare=None):
        self.run = run
        self.batch_size = batch_size
        self.capacity = capacity
        self.taken = 0
        self._lock = threading.Lock()
        self._line = queue.SimpleQueue()
        ready = Future()
        self._worker = threading.Thread(target=self._work, args=(prepare, ready), name='batcher',
                                        daemon=True)
        self._worker.start()
        ready.result()

    @contextlib.contextmanager
    def places(self, count):
        """Hold `count` places of the line for what happens inside `with`.

        Raises:
            Full: where so many are not free.
        """
        with self._lock:
            if self.taken + count > self.capacity:
                raise Full(f'{self.taken} of {self.capacity} places are taken')
            self.taken += count
        try:
            yield
        finally:
            with self._lock:
                self.taken -= count

    def submit(self, item):
        """Put an item into the line and return the Future of its result."""
        future = Future()
        self._line.put((item, future))
        return future

    def is_alive(self):
        return self._worker.is_alive()

    def close(self):
        """Work off the line, then end the worker."""
        self._line.put(None)
        self._worker.join()

    def _work(self, prepare, ready):
        try:
            ready.set_result(prepare() if prepare else None)
        except Exception as error:
            ready.set_exception(error)
            return
        ended = False
        while not ended:
            waiting = [self._line.get()]
            while len(waiting) < self.batch_size and waiting[-1] is not None:
                try:
                    waiting.append(self._line.get_nowait())
                except queue.Empty:
                    break
            ended = waiting[-1] is None
            # A future that was cancelled belongs to somebody who has given up.
            batch = [entry for entry in waiting
                     if entry is not None and entry[1].set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self.run([item for item, _ in batch])
                for (_, future), result in zip(batch, results):
                    future.set_result(result)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
