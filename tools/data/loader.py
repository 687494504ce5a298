"""Batches in the order of a sampler, from worker processes through paddle.io.DataLoader."""

import itertools
import json
import logging
import sys
from contextlib import closing

import numpy as np
import paddle
from paddle.io import DataLoader, IterableDataset

from data.decode import ImageError
from data.workers import LoaderError, Workers, fill_batch

WAITING = ''                   # in place of a report: no batch is complete
EMPTY = np.zeros(1, np.uint8)


class Loader:
    """The batches of an ImageDataset, in the order of a sampler.

    Iterating yields Paddle tensors [images [B, 3, H, W], labels int64 [B]]; images are uint8 pixels
    in training and normalised float32 in evaluation.

    The worker processes read ahead into the epoch that `following` names, so that its first batches
    are ready when it begins. They end with the loader, with an iteration that is not exhausted or
    that no other one follows, and if another epoch begins than the named one.

    Args:
        dataset: an ImageDataset.
        batch_sampler: an EpochBatchSampler; its set_epoch is called before an iteration.
        num_workers: worker processes; 0 reads in the calling process. Fewer run if their batches
            would take too much memory (see data.workers).
        timeout: seconds that a worker may take for one image; 0 for no limit.
        following: a function of an epoch that returns the next one, or None after the last one.

    Attributes:
        bad_images: {path: error message} of unreadable images in this or the last iteration.
        poll: a function that is called ten times a second while a batch is waited for; without
            workers, before every image. An exception in it ends the iteration.

    Raises:
        ImageError: while iterating, for an unreadable file that the dataset does not replace.
        LoaderError: while iterating, for a worker that died or timed out, and for an error in a
            transform.
    """

    stream = None    # of the running worker processes

    def __init__(self, dataset, batch_sampler, num_workers, timeout=0,
                 following=lambda epoch: None):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.timeout = timeout
        self.following = following
        self.bad_images = {}
        self.poll = lambda: None
        if num_workers and sys.platform != 'linux':
            logging.getLogger(__name__).warning(
                'loader workers need Linux: going on without, which is slower')
            self.num_workers = 0

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        self.bad_images = {}
        with closing(self._receive() if self.num_workers else self._read()) as batches:
            for report, *batch in batches:
                if 'image_error' in report:
                    raise ImageError(report['image_error'])
                if 'error' in report:
                    raise LoaderError(report['error'])
                self.bad_images.update(report['bad'])
                yield batch

    def _read(self):
        transform = self.dataset.transform
        for keys in self._requested():
            images = np.empty((len(keys), 3, transform.image_size, transform.image_size),
                              transform.dtype)
            labels = np.empty(len(keys), np.int64)
            report = fill_batch(self.dataset, keys, images, labels, lambda _: self.poll())
            yield report, tensor_of(images), paddle.to_tensor(labels)

    def _requested(self):
        """Yield the sampler's batches; before each, request the files of the next one."""
        batches = iter(self.batch_sampler)
        ahead = list(itertools.islice(batches, 1))
        for following in batches:
            for _, index, *_ in following:
                self.dataset.request(index)
            yield ahead.pop()
            ahead.append(following)
        yield from ahead

    def _receive(self):
        sampler = self.batch_sampler
        if self.stream is None or self.stream.place != (sampler.epoch, sampler.start_batch):
            self.close()
            self.stream = _Stream(Workers(self.dataset, self.num_workers, sampler.batch_size),
                                  sampler, self.timeout, self.following)
        stream = self.stream
        stream.closed = False
        # A thread of DataLoader copies batches to the device while the network computes.
        batches = iter(DataLoader(stream, batch_size=None, num_workers=0))
        at_end = False
        try:
            for report, *batch in batches:
                if report == WAITING:
                    self.poll()
                else:
                    yield (json.loads(report), *batch)
            at_end = True
        finally:
            stream.closed = True
            if not at_end:    # DataLoader's thread ends only with the stream
                for _ in batches:
                    pass
            if not at_end or stream.place is None:
                self.close()

    def close(self):
        """End the worker processes; an iteration starts new ones."""
        if self.stream is not None:
            self.stream.workers.close()
            self.stream = None

    def __del__(self):
        self.close()


def tensor_of(array):
    """The array as a tensor; on a CPU they share memory, where Paddle's version allows it."""
    if paddle.get_device() == 'cpu':
        return paddle.utils.dlpack.from_dlpack(array.__dlpack__())
    return paddle.to_tensor(array)


class _Stream(IterableDataset):
    """The batches of Workers for paddle.io.DataLoader: (report as JSON, images, labels).

    Iterating yields the batches of one epoch; in the meantime, the workers begin the next one.

    DataLoader waits in C++, where Python handles no signals, and an exception in its thread would
    make it wait for ever. So every POLL_SECONDS at the latest the stream yields something, WAITING
    if no batch is complete, and errors are yielded as reports.

    Attributes:
        place: (epoch, number of its first batch) of the next iteration; None if there is none.
        closed: set to end an iteration.
    """

    def __init__(self, workers, batch_sampler, timeout, following):
        super().__init__()
        self.workers, self.timeout = workers, timeout
        self.batch_sampler, self.following = batch_sampler, following
        self.place = batch_sampler.epoch, batch_sampler.start_batch
        self.keys = self._keys(*self.place)
        self.closed = False

    def _keys(self, epoch, start):
        while epoch is not None:
            yield from self.batch_sampler.batches(epoch, start)
            epoch, start = self.following(epoch), 0

    def __iter__(self):
        workers, (epoch, start) = self.workers, self.place
        following = self.following(epoch)
        self.place = None if following is None else (following, 0)
        end = workers.done + len(self.batch_sampler) - start
        try:
            self._begin(workers.capacity - (workers.begun - workers.done))
            while workers.done < end and not self.closed:
                ready = workers.wait(self.timeout)
                if ready is None:
                    yield WAITING, EMPTY, EMPTY
                    continue
                report, images, labels = ready
                yield json.dumps(report), images, labels
                self._begin(1)    # Paddle has copied the batch, so its memory is free
        except Exception as error:
            said = str(error) if isinstance(error, LoaderError) else f'a loader failed: {error!r}'
            yield json.dumps({'error': said}), EMPTY, EMPTY

    def _begin(self, count):
        for keys in itertools.islice(self.keys, count):
            self.workers.begin(keys)
