"""Worker processes that fill batches in memory shared with the main process.

They replace the workers of paddle.io.DataLoader. With those, a worker that is stopped or blocked by
a network disk blocks the main process, which then handles no signal (`timeout` has no effect while
the worker lives); files are left in /dev/shm; and the shutdown is a private function. Here the main
process polls, and each worker publishes which image it is reading. The shared memory is anonymous:
it takes no space in /dev/shm and is freed with the last process. A pool takes at most an eighth of
the memory that is free when it starts, so training and validation together take a quarter.
"""

import gc
import json
import logging
import mmap
import os
import select
import signal
import time
from collections import deque

import numpy as np

from data import jpeg
from data.decode import ImageError
from system import start

BATCHES_AHEAD = 2     # batches that each worker reads ahead, if there is memory
SHARE_OF_MEMORY = 1 / 8    # of the free memory, for the batches of one pool
# Files read before the first of them is decoded. Decoding displaces Python's code and data from the
# core's cache, so that reading a file, or making random numbers, takes longer after it.
FILES_AHEAD = 8
POLL_SECONDS = 0.1    # longest time in wait()
STATES = {'T': 'the process is stopped', 'D': 'it waits for a disk'}    # see proc_pid_stat(5)


class LoaderError(RuntimeError):
    """A worker died or timed out, or a transform failed. The message names the image."""


def fill_batch(dataset, keys, images, labels, on_row):
    """Read the samples of `keys` into images [B, 3, H, W] and labels [B].

    Args:
        dataset: an ImageDataset.
        keys: tuples, the keys of its samples.
        images, labels: arrays to write to.
        on_row: called with the row of each sample before its file is read, and again before it is
            decoded.

    Returns:
        A dict for JSON with one entry: 'bad', {path: error message} of unreadable images; or the
        message of the first error as 'image_error' or 'error'.
    """
    bad, keys, contents = {}, list(keys), deque()
    generators = [dataset.generator(key) for key in keys]
    for row, key in enumerate(keys):
        if not contents:
            for ahead, (_, index, *_) in enumerate(keys[row:row + FILES_AHEAD], row):
                on_row(ahead)
                contents.append(dataset.fetch(index))
        on_row(row)
        try:
            image, (labels[row], bad_paths) = dataset.read(key, contents.popleft(), generators[row])
            if dataset.decoder == 'fast':
                jpeg.copy_planes(image, images[row])
            else:
                np.copyto(images[row], image, casting='no')
        except ImageError as error:
            return {'image_error': str(error)}
        except Exception as error:
            return {'error': f'a loader worker (pid {os.getpid()}) failed on '
                             f'{dataset.path_of(key)}: {type(error).__name__}: {error}'}
        bad.update(bad_paths)
    return {'bad': bad}


class Workers:
    """A pool of processes that fill batches. Batches are returned in the order of begin().

    Batches are assigned round robin. At most `capacity` batches may be begun but not returned: as
    many as the memory allows, up to BATCHES_AHEAD for each process. If it does not allow one for
    each, fewer processes are started, at least one.

    Args:
        dataset: an ImageDataset; the processes are forked and read it in its present state.
        count: number of processes.
        batch_size: largest number of samples in a batch.
        memory: bytes for the batches; None: a share of the free memory.

    Attributes:
        begun, done: number of batches begun, and of batches that wait() has returned.

    Raises:
        LoaderError: if the processes cannot be started or their memory not be allocated.
    """

    def __init__(self, dataset, count, batch_size, memory=None):
        self.dataset = dataset
        side, dtype = dataset.transform.image_size, np.dtype(dataset.transform.dtype)
        if memory is None:
            memory = SHARE_OF_MEMORY * start.free_memory() / start.processes_here()
        fitting = max(int(memory / (batch_size * 3 * side * side * dtype.itemsize)), 1)
        self.capacity = min(count * BATCHES_AHEAD, fitting)
        if self.capacity < count:
            logging.getLogger(__name__).warning(
                '%d instead of %d loader workers: their batches would take more than %d MiB of '
                'memory', self.capacity, count, memory / 2 ** 20)
            count = self.capacity
        self.begun = self.done = 0
        self.waited, self.waited_row = 0.0, None    # seconds waited for this row of batch `done`
        self.workers = []
        try:
            # Batch n has slot n % capacity and worker n % count.
            self.images = shared_array((self.capacity, batch_size, 3, side, side), dtype)
            self.labels = shared_array((self.capacity, batch_size), np.int64)
            self.keys = shared_array((self.capacity, batch_size, 3), np.int64)
            self.sizes = shared_array((self.capacity,), np.int64)
            self.rows = shared_array((self.capacity,), np.int64)    # the row being read
            self.poller = select.poll()
            # Workers must not collect inherited garbage: its finalizers would wait for threads, or
            # end processes, of the main process.
            gc.freeze()
            try:
                while len(self.workers) < count:
                    self._start()
            finally:
                gc.unfreeze()
        except OSError as error:
            self.close()
            raise LoaderError(f'{count} loader workers cannot be started ({error}); set fewer or '
                              'smaller batches') from error

    def _start(self):
        task_reader, task_writer = os.pipe()
        report_reader, report_writer = os.pipe()
        parent = os.getpid()
        with start.stop_signals_held():
            pid = os.fork()
            if pid == 0:
                try:
                    start.leave_stopping_to_parent()
                    if os.getppid() == parent:
                        self._serve(task_reader, report_writer)
                finally:
                    os._exit(1)
        # The worker holds the only copy of the write end, so its death closes the pipe.
        os.close(task_reader)
        os.close(report_writer)
        os.set_blocking(report_reader, False)
        self.workers.append(_Worker(pid, task_writer, report_reader))
        self.poller.register(report_reader, select.POLLIN)

    def _serve(self, tasks, reports):
        with os.fdopen(reports, 'wb') as file:
            while True:
                slot = int.from_bytes(os.read(tasks, 4), 'little')

                def publish(row, slot=slot):
                    self.rows[slot] = row

                keys = self.keys[slot, :self.sizes[slot]].tolist()
                report = fill_batch(self.dataset, map(tuple, keys), self.images[slot],
                                    self.labels[slot], publish)
                file.write(json.dumps(report).encode() + b'\n')
                file.flush()

    def begin(self, keys):
        """Assign a batch of the samples of `keys` to the next worker."""
        slot, worker = self.begun % self.capacity, self.workers[self.begun % len(self.workers)]
        for row, key in enumerate(keys):
            self.keys[slot, row] = (*key, 0)[:3]    # without a repetition it is 0
        self.sizes[slot], self.rows[slot] = len(keys), 0
        worker.slots.append(slot)
        self.begun += 1
        try:
            os.write(worker.tasks, slot.to_bytes(4, 'little'))
        except BrokenPipeError:    # it died while idle; wait() raises the error
            self.poller.register(worker.reports_from, select.POLLIN)

    def wait(self, timeout):
        """Wait up to POLL_SECONDS for the oldest batch that was not returned yet.

        Args:
            timeout: seconds that its worker may take for one image; 0 for no limit.

        Returns:
            None if it is not complete. Otherwise the result of fill_batch, and views of images
            [B, 3, H, W] and labels [B], which are valid until the next batch is begun.

        Raises:
            LoaderError: if the worker died or timed out.
        """
        slot, worker = self.done % self.capacity, self.workers[self.done % len(self.workers)]
        if not worker.reports:
            self._poll(slot, worker, timeout)
        if not worker.reports:
            return None
        self.done += 1
        self.waited, self.waited_row = 0.0, None
        size = self.sizes[slot]
        return worker.reports.popleft(), self.images[slot, :size], self.labels[slot, :size]

    def _poll(self, slot, worker, timeout):
        """Receive reports for up to POLL_SECONDS; raise LoaderError on a timeout."""
        started = time.monotonic()
        for descriptor, _ in self.poller.poll(1000 * POLL_SECONDS):
            self._receive(next(w for w in self.workers if w.reports_from == descriptor))
        if self.waited_row != self.rows[slot]:
            self.waited, self.waited_row = 0.0, int(self.rows[slot])
        else:    # time in which this process was stopped does not count
            self.waited += min(time.monotonic() - started, 1.0)
        if timeout and self.waited >= timeout and not worker.reports:
            raise LoaderError(
                f'loader worker pid {worker.pid} has not read {self._path(worker)} within '
                f'{timeout:g} s (TRAIN.LOADER_TIMEOUT): {process_state(worker.pid)}')

    def _receive(self, worker):
        data = os.read(worker.reports_from, 1 << 16)
        if not data and worker.slots:
            raise LoaderError(self._death_message(worker))
        if not data:    # an idle worker died: no error unless it is needed again
            return self.poller.unregister(worker.reports_from)
        *lines, worker.rest = (worker.rest + data).split(b'\n')
        for line in lines:
            worker.slots.popleft()
            worker.reports.append(json.loads(line))

    def _death_message(self, worker):
        code = worker.reap(seconds=5)
        if code is None:
            cause = ''
        elif code >= 0:
            cause = f' (exit code {code})'
        else:
            cause = f' ({signal.Signals(-code).name})'
        hint = ('; memory may have run out: fewer workers take less'
                if code == -signal.SIGKILL else '')
        return f'loader worker pid {worker.pid} died{cause} reading {self._path(worker)}{hint}'

    def _path(self, worker):
        """The path of the image that a worker is reading."""
        slot = worker.slots[0]
        return self.dataset.path_of(tuple(self.keys[slot, self.rows[slot]].tolist()))

    def close(self):
        """Kill the processes; unfinished batches are dropped."""
        for worker in self.workers:
            if worker.alive:
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers:
            # A process that is blocked by a dead disk cannot be reaped yet: don't wait for it.
            worker.reap(seconds=5)
            os.close(worker.tasks)
            os.close(worker.reports_from)
        self.workers = []


class _Worker:
    """A worker process, as the main process sees it."""

    def __init__(self, pid, tasks, reports_from):
        self.pid = pid
        self.tasks = tasks                  # file descriptors: where slots are written to,
        self.reports_from = reports_from    # and where reports are read from
        self.slots = deque()                # slots of batches that were begun, not reported
        self.reports = deque()              # reports of batches that were not returned
        self.rest = b''                     # incomplete report
        self.alive = True

    def reap(self, seconds):
        """Wait for the process to end; return its exit code as in subprocess, None if unknown."""
        deadline = time.monotonic() + seconds
        while self.alive:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:    # SIGCHLD is ignored, or other code has reaped it
                self.alive = False
                return None
            if pid:
                self.alive = False
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.002)
        return None


def shared_array(shape, dtype):
    """An array of zeros shared with forked processes. Pages are allocated when written to."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(size, 1)))


def process_state(pid):
    """The state of a process, for the message of a timeout."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
            letter = file.read().rpartition(')')[2].split()[0]
    except OSError:
        letter = ''
    return STATES.get(letter, 'it is still running')
