"""Batches from concurrent requests: one worker thread runs the model."""

import contextlib
import queue
import threading
from concurrent.futures import Future


class Full(RuntimeError):
    """The queue is full; the client must retry later."""


class Batcher:
    """A bounded queue of items and one worker thread, which processes them in batches.

    The worker does not wait for full batches: a batch is what was queued while it was busy. So the
    latency of a single item is short, and batches grow with the load.

        with batcher.places(len(items)):
            results = [future.result() for future in map(batcher.submit, items)]

    Args:
        run: called in the worker thread with a list of 1 to `batch_size` items; returns a result
            for each. What it raises is raised by every future of that batch.
        batch_size: largest number of items in a batch.
        capacity: largest number of reserved places.
        prepare: called once in the worker thread before the first batch.

    Attributes:
        taken: number of reserved places.

    Raises:
        Exception: of any class, raised by `prepare`.
    """

    def __init__(self, run, batch_size, capacity, prepare=None):
        self.run = run
        self.batch_size = batch_size
        self.capacity = capacity
        self.taken = 0
        self._lock = threading.Lock()
        self._queue = queue.SimpleQueue()
        ready = Future()
        self._worker = threading.Thread(target=self._work, args=(prepare, ready), name='batcher',
                                        daemon=True)
        self._worker.start()
        ready.result()

    @contextlib.contextmanager
    def places(self, count):
        """Reserve `count` places in the queue within `with`.

        Raises:
            Full: if fewer are free.
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
        """Queue an item; return the Future of its result."""
        future = Future()
        self._queue.put((item, future))
        return future

    def is_alive(self):
        return self._worker.is_alive()

    def close(self):
        """Process the queued items, then end the worker."""
        self._queue.put(None)
        self._worker.join()

    def _work(self, prepare, ready):
        try:
            ready.set_result(prepare() if prepare else None)
        except Exception as error:
            ready.set_exception(error)
            return
        ended = False
        while not ended:
            waiting = [self._queue.get()]
            while len(waiting) < self.batch_size and waiting[-1] is not None:
                try:
                    waiting.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = waiting[-1] is None
            # Leaves out cancelled futures, of requests that timed out.
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
