"""Worker processes that fill batches in memory they share with the main process.

The workers of paddle.io.DataLoader are not used. There a worker that is stopped, or waits for a
network disk, blocks the main process for ever and makes it deaf to signals (`timeout` has no effect
while the worker lives), files stay behind in /dev/shm, and the shutdown is a private function. Here
waiting is done in short slices, and it is known which image each worker is reading. The shared
memory is anonymous: it needs no room in /dev/shm and is gone with the last process.
"""

import gc
import json
import mmap
import os
import select
import signal
import time
from collections import deque

import numpy as np

from data.decode import ImageError
from system.start import STOP_SIGNALS, follow_parent

BATCHES_AHEAD = 2    # that each worker has in memory, finished or in work
SLICE = 0.1          # seconds that wait() takes at most
STATES = {'T': 'the process is stopped', 'D': 'it waits for a disk'}    # of proc_pid_stat(5)


class LoaderError(RuntimeError):
    """A worker process died or is stuck, or a transform failed. The message names the image."""


def fill_batch(dataset, keys, images, labels, before):
    """Read the samples of `keys` into images [B, 3, H, W] and labels [B].

    Args:
        dataset: an ImageDataset.
        keys: of its samples, tuples.
        images, labels: arrays to write to.
        before: called with the row before each sample is read.

    Returns:
        A dict that JSON can hold, with one entry: 'bad', {path: why it cannot be read}; or, for
        the first error, 'image_error' or 'error', its message.
    """
    bad = {}
    for row, key in enumerate(keys):
        before(row)
        try:
            image, (labels[row], found) = dataset.read(key)
            np.copyto(images[row], image, casting='no')
        except ImageError as error:
            return {'image_error': str(error)}
        except Exception as error:
            return {'error': f'a loader worker (pid {os.getpid()}) failed on '
                             f'{dataset.path_of(key)}: {type(error).__name__}: {error}'}
        bad.update(found)
    return {'bad': bad}


class Workers:
    """Processes that fill batches, which come back in the order in which they were begun.

    The workers take turns. At most `capacity` batches are begun and not yet waited for.

    Args:
        dataset: an ImageDataset; workers read what it is now.
        count: how many processes.
        batch_size: the largest number of samples in a batch.

    Attributes:
        begun, done: how many batches were begun, and how many waited for.

    Raises:
        LoaderError: if the processes or their memory cannot be had.
    """

    def __init__(self, dataset, count, batch_size):
        self.dataset = dataset
        self.capacity = count * BATCHES_AHEAD
        self.begun = self.done = 0
        self.waited, self.waited_row = 0.0, None    # seconds for one image of the next batch
        self.workers = []
        side = dataset.transform.image_size
        try:
            # Batch n is in slot n % capacity, and worker n % count fills it.
            self.images = shared_array((self.capacity, batch_size, 3, side, side),
                                       dataset.transform.dtype)
            self.labels = shared_array((self.capacity, batch_size), np.int64)
            self.keys = shared_array((self.capacity, batch_size, 3), np.int64)
            self.sizes = shared_array((self.capacity,), np.int64)
            self.rows = shared_array((self.capacity,), np.int64)    # which one is being read
            self.arrivals = select.poll()
            # A worker must not collect garbage that it inherits: its finalizers would wait for
            # threads, or end processes, that are those of the main process.
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
        pid = os.fork()
        if pid == 0:
            try:
                for number in STOP_SIGNALS:    # sent to all of a job, they are for the parent
                    signal.signal(number, signal.SIG_IGN)
                follow_parent(signal.SIGKILL)
                if os.getppid() == parent:
                    self._serve(task_reader, report_writer)
            finally:
                os._exit(1)
        # The worker has the only copy of the end that it writes to: its death closes the pipe.
        os.close(task_reader)
        os.close(report_writer)
        os.set_blocking(report_reader, False)
        self.workers.append(_Worker(pid, task_writer, report_reader))
        self.arrivals.register(report_reader, select.POLLIN)

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
        """Have the next batch filled with the samples of `keys`."""
        slot, worker = self.begun % self.capacity, self.workers[self.begun % len(self.workers)]
        for row, key in enumerate(keys):
            self.keys[slot, row] = (*key, 0)[:3]    # a key without a repetition is that of 0
        self.sizes[slot], self.rows[slot] = len(keys), 0
        worker.slots.append(slot)
        self.begun += 1
        try:
            os.write(worker.tasks, slot.to_bytes(4, 'little'))
        except BrokenPipeError:    # it died when it had nothing to do; wait() says so now
            self.arrivals.register(worker.reports_from, select.POLLIN)

    def wait(self, timeout):
        """Wait a moment for the batch that was begun first of those not waited for.

        Args:
            timeout: seconds that its worker may take for one image; 0 for no limit.

        Returns:
            None while it is not there. Then what fill_batch returned, and views of images
            [B, 3, H, W] and labels [B], which hold until the next batch is begun.

        Raises:
            LoaderError: for a worker that died, and for one that is stuck.
        """
        slot, worker = self.done % self.capacity, self.workers[self.done % len(self.workers)]
        if not worker.reports:
            self._look(slot, worker, timeout)
        if not worker.reports:
            return None
        self.done += 1
        self.waited, self.waited_row = 0.0, None
        size = self.sizes[slot]
        return worker.reports.popleft(), self.images[slot, :size], self.labels[slot, :size]

    def _look(self, slot, worker, timeout):
        """Take what arrives within a slice of time; notice a worker that is stuck."""
        started = time.monotonic()
        for descriptor, _ in self.arrivals.poll(1000 * SLICE):
            self._receive(next(one for one in self.workers if one.reports_from == descriptor))
        if self.waited_row != self.rows[slot]:
            self.waited, self.waited_row = 0.0, int(self.rows[slot])
        else:    # a job that is stopped for an hour and then goes on has not waited for it
            self.waited += min(time.monotonic() - started, 1.0)
        if timeout and self.waited >= timeout and not worker.reports:
            raise LoaderError(
                f'loader worker pid {worker.pid} has not read {self._path(worker)} within '
                f'{timeout:g} s (TRAIN.LOADER_TIMEOUT): {process_state(worker.pid)}')

    def _receive(self, worker):
        data = os.read(worker.reports_from, 1 << 16)
        if not data and worker.slots:
            raise LoaderError(self._death(worker))
        if not data:    # nothing is lost yet, and it may not be needed any more
            return self.arrivals.unregister(worker.reports_from)
        *lines, worker.rest = (worker.rest + data).split(b'\n')
        for line in lines:
            worker.slots.popleft()
            worker.reports.append(json.loads(line))

    def _death(self, worker):
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
        """The image that a worker is reading."""
        slot = worker.slots[0]
        return self.dataset.path_of(tuple(self.keys[slot, self.rows[slot]].tolist()))

    def close(self):
        """End the processes at once; what they are reading is dropped."""
        for worker in self.workers:
            if worker.alive:
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers:
            # One that waits for a dead disk may stay until the disk answers; nobody waits for it.
            worker.reap(seconds=5)
            os.close(worker.tasks)
            os.close(worker.reports_from)
        self.workers = []


class _Worker:
    """What the main process knows of a worker."""

    def __init__(self, pid, tasks, reports_from):
        self.pid = pid
        self.tasks = tasks                  # the file descriptors of two pipes
        self.reports_from = reports_from
        self.slots = deque()                # begun, not yet reported
        self.reports = deque()              # not yet waited for
        self.rest = b''                     # the beginning of a report
        self.alive = True

    def reap(self, seconds):
        """Wait for the end of the process; its exit code as subprocess gives it, None if unknown.
        """
        deadline = time.monotonic() + seconds
        while self.alive:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:    # SIGCHLD is ignored, or someone else has waited
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
    """Zeros that this process and those it forks share. A page takes memory once written to."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(size, 1)))


def process_state(pid):
    """What a process that takes long is doing."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
            letter = file.read().rpartition(')')[2].split()[0]
    except OSError:
        letter = ''
    return STATES.get(letter, 'it is still running')
