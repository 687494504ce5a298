"""Batches in the order of a sampler, read here or by worker processes."""

import itertools
import logging
import sys
from contextlib import closing

import numpy as np
import paddle

from data.decode import ImageError
from data.workers import LoaderError, Workers, fill_batch


class Loader:
    """The batches of an ImageDataset, in the order of a sampler.

    Iterating yields [images [B, 3, H, W], labels int64 [B]], as Paddle tensors; images are uint8
    pixels in training and normalised float32 in evaluation. Worker processes end with the
    iteration, also when it is left early.

    Args:
        dataset: an ImageDataset.
        batch_sampler: an EpochBatchSampler; its set_epoch is called before an iteration.
        num_workers: worker processes; 0 reads in the calling process.
        timeout: seconds that a worker may take for one image; 0 for no limit.

    Attributes:
        bad_images: what this iteration, or the last one, could not read so far: path to message.
        poll: called while a batch is waited for, ten times a second; without workers before every
            image. What it raises ends the iteration.

    Raises:
        ImageError: while iterating, for a file that cannot be read and is not to be replaced.
        LoaderError: while iterating, for a worker that died or is stuck, and for an error in a
            transform.
    """

    def __init__(self, dataset, batch_sampler, num_workers, timeout=0):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.timeout = timeout
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
        for keys in self.batch_sampler:
            images = np.empty((len(keys), 3, transform.image_size, transform.image_size),
                              transform.dtype)
            labels = np.empty(len(keys), np.int64)
            report = fill_batch(self.dataset, keys, images, labels, lambda _: self.poll())
            yield report, paddle.to_tensor(images), paddle.to_tensor(labels)

    def _receive(self):
        keys = iter(self.batch_sampler)
        batch_size = self.batch_sampler.batch_size
        with closing(Workers(self.dataset, self.num_workers, batch_size)) as workers:
            for batch in itertools.islice(keys, workers.capacity):
                workers.begin(batch)
            while workers.done < workers.begun:
                report, images, labels = workers.wait(self.timeout, self.poll)
                # Copied before their place in memory is given to the next batch.
                tensors = paddle.to_tensor(images), paddle.to_tensor(labels)
                for batch in itertools.islice(keys, 1):
                    workers.begin(batch)
                yield report, *tensors
