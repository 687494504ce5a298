"""Batches: worker processes that read samples, and what happens when one of them fails."""

import gc
import glob
import itertools
import json
import logging
import math
import os
import re
import signal
import threading
from contextlib import closing

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset

from data.decode import ImageError
from system.start import follow_parent


class LoaderError(RuntimeError):
    """A loader process died, or a transform failed. The message names it and its images."""


class Loader:
    """The batches of an ImageDataset, in the order of a sampler, read by a paddle.io.DataLoader.

    Iterating yields [images [B, 3, H, W], labels int64 [B]], as Paddle tensors; images are uint8
    pixels in training and normalised float32 in evaluation. Worker processes end with the
    iteration, also when it is left early.

    Args:
        dataset: an ImageDataset.
        batch_sampler: an EpochBatchSampler; its set_epoch is called before an iteration.
        num_workers: worker processes; 0 reads in the calling process.
        use_shared_memory: hand batches over in /dev/shm if there is room for them.

    Attributes:
        bad_images: what this iteration, or the last one, could not read so far: path to message.

    Raises:
        ImageError: while iterating, for a file that cannot be read and is not to be replaced.
        LoaderError: while iterating, for a worker that died and for an error in a transform.
    """

    def __init__(self, dataset, batch_sampler, num_workers, use_shared_memory=True):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.bad_images = {}
        self.delivered = 0
        self.workers = None
        if num_workers == 0:
            return
        # For each worker Paddle keeps two batches in store, on every rank of this machine.
        pixel_bytes = np.dtype(dataset.transform.dtype).itemsize
        batch_bytes = pixel_bytes * batch_sampler.batch_size * 3 * dataset.transform.image_size ** 2
        needed = batch_bytes * 2 * num_workers * batch_sampler.nranks
        if use_shared_memory and _free_shared_memory() < needed:
            logging.getLogger(__name__).warning(
                '/dev/shm lacks the %d MiB that the loader may need: going on without shared '
                'memory, which is slower (docker run --shm-size gives more)',
                math.ceil(needed / 2**20))
            use_shared_memory = False
        self.workers = DataLoader(
            _Reader(dataset), batch_sampler=batch_sampler, collate_fn=_collate,
            num_workers=num_workers, use_shared_memory=use_shared_memory,
            worker_init_fn=_start_worker)

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        self.bad_images, self.delivered = {}, self.batch_sampler.start_batch
        batches = self._read() if self.workers is None else self._receive()
        with closing(batches):
            for batch in batches:
                news = json.loads(batch[-1].numpy().tobytes())
                if 'image_error' in news:
                    raise ImageError(news['image_error'])
                if 'error' in news:
                    raise LoaderError(news['error'])
                self.bad_images.update(news)
                self.delivered += 1
                yield batch[:2]

    def _read(self):
        # Paddle's loader without workers hangs for ever when a sample raises an exception.
        reader = _Reader(self.dataset)
        for keys in self.batch_sampler:
            yield [paddle.to_tensor(field) for field in _collate([reader[key] for key in keys])]

    def _receive(self):
        # A worker must not collect garbage that it inherits: the iterator of a loop left early
        # would wait in it, for ever, for a thread that only this process has.
        gc.freeze()
        batches = iter(self.workers)
        gc.unfreeze()
        try:
            yield from batches
        except Exception as error:
            raise LoaderError(self.obituary(error) or str(error)) from error
        finally:
            _end_workers(batches)

    def obituary(self, error):
        """What a dead worker was about to read, if `error` is of one; else None.

        Paddle notices a death in a signal handler, so its exception may come up anywhere in the
        main process, and not only where a batch is waited for.
        """
        if 'DataLoader' not in str(error):
            return None
        number = re.search(r'pid\s+(\d+)', str(error))
        following = itertools.islice(
            self.batch_sampler.batches(min(self.delivered, len(self) - 1)),
            2 * self.workers.num_workers)
        names = [self.dataset.path_of(key) for keys in following for key in keys]
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        return (f'loader worker {"pid " + number[1] if number else "process"} died, on one of '
                f'{", ".join(names[:3])}{more}; memory or /dev/shm may have run out: fewer workers '
                'take less')


def _end_workers(batches):
    """End the workers of a Paddle iterator, which holds on to them when a loop is left early."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Paddle's handler reports a dead worker anew with every one that ends, in the middle of this.
    reporter = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
    try:
        batches._try_shutdown_all(timeout=5)
        for worker in batches._workers:
            if worker.is_alive():    # it waits for a lock that a dead one took with it
                worker.kill()
                worker.join()
            if worker.exitcode:    # killed: its files in /dev/shm would stay for ever
                for file in glob.glob(f'/dev/shm/paddle_{worker.pid}_*'):
                    os.unlink(file)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGCHLD, reporter)


class _Reader(Dataset):
    """Read samples for _collate, errors included: Paddle would lose their messages in a worker."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            image, (label, bad) = self.dataset.read(key)
            return image, np.int64(label), bad
        except ImageError as error:
            return None, None, {'image_error': str(error)}
        except Exception as error:
            return None, None, {'error': f'a loader worker (pid {os.getpid()}) failed on '
                                f'{self.dataset.path_of(key)}: {type(error).__name__}: {error}'}

    def __len__(self):
        return len(self.dataset)


def _collate(samples):
    """Stack samples to [images, labels, news]; news is JSON in a uint8 array.

    News maps the paths that could not be read to messages. The first error of all, if there is
    one, comes alone.
    """
    for image, _, news in samples:
        if image is None:
            return [_as_bytes(news)]
    images, labels, news = zip(*samples)
    return [np.stack(images), np.stack(labels),
            _as_bytes({path: said for bad in news for path, said in bad.items()})]


def _as_bytes(news):
    return np.frombuffer(json.dumps(news).encode(), dtype=np.uint8)


def _start_worker(worker_id):
    """Make a worker process leave signals to the whole group to its parent, and not outlive it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, _end_with_parent)
    follow_parent(signal.SIGUSR2)


def _end_with_parent(*_):
    """End a worker whose parent is dead, with its files in /dev/shm, which nobody will read."""
    paddle.base.core._cleanup_mmap_fds()
    os._exit(1)


def _free_shared_memory():
    """Return the free bytes of /dev/shm, 0 where there is none."""
    try:
        status = os.statvfs('/dev/shm')
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
