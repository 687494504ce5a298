"""The dataset, and the sampler: which rank reads which samples of an epoch, in which order."""

import numpy as np
from paddle.io import Dataset, DistributedBatchSampler
from PIL import Image

from data import DataError, jpeg
from data.decode import (
    ImageError,
    decode_bytes,
    name_bad_images,
    printable,
    read_image_file,
    request_image_file,
)
from data.samples import Samples


class ImageDataset(Dataset):
    """Images and labels. A sample depends only on its key and the seed.

    A key is (epoch, index), or (epoch, index, repetition) if an epoch holds an image more than
    once; repetition 0 is the default. An index alone is a key of epoch 0.

    The key and the seed determine the augmentation, so the number of workers and ranks and the
    order of reading do not change a sample, and a resumed run gets the samples of an uninterrupted
    one.

    Args:
        samples: Samples, or any sequence of (path, label); with an opener, of (name, label).
        transform: called with an image and a numpy Generator; returns an array [3, H, W]. Its
            image_size and dtype are those of the result.
        decoder: 'exact': the transform gets PIL RGB images. 'fast': of a JPEG that data.jpeg is
            made for it gets a Jpeg, which decodes only what a random crop needs.
        seed: an int, not negative.
        root: the folder that all paths must be in; None allows all paths.
        bad_images: what to do with an unreadable file. 'raise' raises its ImageError. 'replace'
            takes the next image of the same class in the order of samples, cyclically. 'blank'
            returns an image of zeros with the label -1, so that a batch keeps its size and order.
        opener: None if each image is a file, else a function of an index that returns pixels,
            uint8 [H, W, 3], or the bytes of an image file (see data.images.Images).

    Raises:
        DataError: if the packages for 'fast' are not installed.
    """

    def __init__(self, samples, transform, decoder='exact', seed=0, root=None,
                 bad_images='raise', opener=None):
        super().__init__()
        for name, value, choices in (('decoder', decoder, ('exact', 'fast')),
                                     ('bad_images', bad_images, ('raise', 'replace', 'blank'))):
            if value not in choices:
                raise ValueError(f'{name} must be one of {choices}, not {value!r}')
        if decoder == 'fast':
            jpeg.libraries()    # raises before the first image is read
        self.samples = samples if isinstance(samples, Samples) else Samples(root, samples)
        self.transform = transform
        self.decoder = decoder
        self.seed = seed
        self.root = root
        self.bad_images = bad_images
        self.opener = opener

    def __getitem__(self, key):
        """Return the image [3, H, W], of the transform's dtype, and the label, int64, of a key.

        Raises:
            ImageError: if the file cannot be read; with 'replace', if no image of its class can.
        """
        image, (label, _) = self.read(key)
        return image, np.int64(label)

    def read(self, key, content=None, generator=None):
        """Return (image, (label, bad)); bad is {path: error message} of unreadable files.

        Args:
            content, generator: what fetch(index) and generator(key) have returned, if they were
                called before.
        """
        _, index, *_ = _parts(key)
        label = self.samples[index][1]
        bad = {}
        for candidate in self._candidates(index):
            content = self.fetch(candidate) if content is None else content
            # The key determines the augmentation of a replacement, too.
            generator = generator or self.generator(key)
            try:
                return self.transform(self._decode(content, candidate), generator), (label, bad)
            except ImageError as error:
                if self.bad_images == 'raise':
                    raise
                bad[self.samples[candidate][0]] = printable(str(error))
            content = generator = None
        if self.bad_images == 'replace':
            raise ImageError(f'no image of class {label} can be read: '
                             f'{name_bad_images(list(bad.values()), 3)}')
        size = self.transform.image_size
        return np.zeros((3, size, size), self.transform.dtype), (-1, bad)

    def generator(self, key):
        """The random numbers of a key: a numpy Generator."""
        epoch, index, *repetition = _parts(key)
        return np.random.default_rng((self.seed, epoch, index, *filter(None, repetition)))

    def fetch(self, index):
        """Read the file of a sample, and decode nothing.

        Returns:
            The bytes of an image file; a Jpeg; pixels, uint8 [H, W, 3]; or the exception that
            reading raised: open() and read() raise it.
        """
        name = self.samples[index][0]
        try:
            content = (read_image_file(name, self.root) if self.opener is None
                       else self.opener(index))
            if self.decoder == 'fast' and not isinstance(content, np.ndarray):
                return jpeg.open_jpeg(content, name) or content
            return content
        except Exception as error:
            return error

    def request(self, index):
        """Let the system read the file of a sample while this process does something else."""
        if self.opener is None:
            request_image_file(self.samples[index][0], self.root)

    def open(self, index):
        """The image of a sample: a PIL image of mode RGB, or a Jpeg.

        Raises:
            ImageError: if it cannot be read.
        """
        return self._decode(self.fetch(index), index)

    def _decode(self, content, index):
        """The image of what fetch(index) has returned."""
        if isinstance(content, Exception):
            raise content
        if isinstance(content, jpeg.Jpeg):
            return content
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        return decode_bytes(content, self.samples[index][0])

    def _candidates(self, index):
        """Yield the index of a sample, then the indices of its replacements."""
        yield index
        if self.bad_images == 'replace':
            labels = self.samples.labels
            same = np.flatnonzero(labels == labels[index])
            place = np.searchsorted(same, index)
            yield from np.concatenate([same[place + 1:], same[:place]])

    def path_of(self, key):
        """The path of a sample for messages, with unprintable characters escaped."""
        return printable(self.samples[key[1]][0])

    def __len__(self):
        return len(self.samples)


def _parts(key):
    """The parts of a key; an index alone is a key of epoch 0."""
    return key if isinstance(key, tuple) else (0, key)


class EpochBatchSampler(DistributedBatchSampler):
    """Batches of an ImageDataset's keys for one rank.

    The order depends only on (seed, epoch). The global batch of a step is split into equal,
    consecutive parts, one for each rank. To make the last one divisible, up to num_replicas - 1
    samples from the start of the epoch are repeated at its end. An evaluation without shuffling
    concatenates the parts in the order of the ranks and drops these padding samples. All ranks get
    the same number of batches, of the same sizes.

    With `repeats` above 1 the epoch is DeiT's repeated augmentation (Hoffer et al., CVPR 2020):
    each image occurs `repeats` times in a row, and the ranks take turns, so that they get different
    augmentations of it. The length of an epoch stays len(dataset), rounded down to a multiple of
    256, so each epoch leaves out a part of the images. Keys are then (epoch, index, repetition),
    else (epoch, index).

    Args:
        dataset: an object with a length.
        batch_size: samples in a batch of one rank.
        num_replicas, rank: world size and rank; None takes those of paddle.distributed.
        shuffle: draw a new order for every epoch.
        drop_last: drop the last batch if it is not full.
        seed: an int, not negative.
        repeats: augmentations of each image.
        shard, window: with a window, the number of the shard of each sample, int [N]: shards are
            shuffled, then the samples within each `window` of them, so that reads stay near each
            other. 0 shuffles all samples together.

    Raises:
        DataError: if there is no batch.
    """

    def __init__(self, dataset, batch_size, num_replicas=None, rank=None, shuffle=False,
                 drop_last=False, seed=0, repeats=1, shard=None, window=0):
        super().__init__(dataset, batch_size, num_replicas, rank, shuffle, drop_last)
        self.seed = seed
        self.repeats = repeats
        self.shard, self.window = shard, window
        if repeats > 1:
            # DeiT would leave none of fewer than 256 images; here all of them are kept.
            images = len(dataset) // 256 * 256 or len(dataset)
            self.num_samples = images // self.nranks
            self.total_size = self.num_samples * self.nranks
        self.start_batch = 0
        if len(self) == 0:
            raise DataError(f'{len(dataset)} image(s) for {self.nranks} process(es) do not fill a '
                            f'batch of {batch_size}; make the batch smaller or add images')

    def set_epoch(self, epoch, start_batch=0):
        """Set the epoch, and the batch to start at in a resumed run.

        The length remains that of the whole epoch.
        """
        self.epoch = epoch
        self.start_batch = start_batch

    def batch_length(self, batch):
        """The number of samples in batch number `batch` of an epoch, equal on all ranks."""
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    def __iter__(self):
        return self.batches(self.epoch, self.start_batch)

    def order(self, epoch):
        """The indices of the dataset in the order of an epoch, int64 [N]."""
        # The base class has no seed, and increments the epoch with every iteration.
        order = np.arange(len(self.dataset))
        if self.shuffle:
            rng = np.random.default_rng((self.seed, epoch))
            rng.shuffle(order)
            if self.window and self.shard is not None:
                places = rng.permutation(self.shard.max() + 1)
                windows = (places // self.window)[self.shard]
                order = order[np.argsort(windows[order], kind='stable')]
        return order

    def batches(self, epoch, start=0):
        """Yield an epoch's batches from number `start` on."""
        order = self.order(epoch)
        global_size = self.batch_size * self.nranks
        for batch in range(start, len(self)):
            places = np.arange(batch * global_size,
                               min((batch + 1) * global_size, self.total_size))
            if self.repeats == 1:
                local = np.split(places, self.nranks)[self.local_rank]
                # Padding samples wrap around to the start of the order.
                yield [(epoch, int(index)) for index in order[local % len(order)]]
            else:
                local = places[self.local_rank::self.nranks]
                yield [(epoch, int(index), int(repetition)) for index, repetition
                       in zip(order[local // self.repeats], local % self.repeats)]
