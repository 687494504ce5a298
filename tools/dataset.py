"""What this project trains on: the dataset, and the order of its samples over epochs and ranks."""

import numpy as np
from paddle.io import Dataset, DistributedBatchSampler
from PIL import Image

from data import DataError
from data.decode import (
    ImageError,
    decode_bytes,
    decode_image,
    import_opencv,
    name_bad_images,
    printable,
)


class ImageDataset(Dataset):
    """Images and labels, where the key alone decides how an image is augmented.

    A key is (epoch, index), or (epoch, index, repetition) where an epoch holds an image more than
    once; repetition 0 is the same as none.

    Neither the number of workers and processes nor the order of reading changes a sample. Every
    epoch draws anew, and the same seed draws the same again, so that a resumed run goes on as if
    it had never stopped.

    Args:
        samples: a list of (path, label), or with an opener of (name, label).
        transform: called with a PIL RGB image and a numpy Generator.
        decoder: 'pillow' or 'opencv'.
        seed: an int, not negative.
        root: the folder that no path may lead out of; None allows all.
        bad_images: what to do about a file that cannot be read. 'raise' raises its ImageError.
            'replace' takes the next image of the same class in the order of samples, beginning
            anew at their end. 'blank' gives an image of zeros with the label -1, so that a batch
            keeps its size and order.
        opener: where images are no files of their own (data.images.Images): called with an index,
            it returns pixels, uint8 [H, W, 3], or the bytes of an image file.

    Raises:
        DataError: if there is no such decoder.
    """

    def __init__(self, samples, transform, decoder='pillow', seed=0, root=None,
                 bad_images='raise', opener=None):
        super().__init__()
        import_opencv(decoder)    # raises now what would otherwise stop the first image
        choices = ('raise', 'replace', 'blank')
        if bad_images not in choices:
            raise ValueError(f'bad_images must be one of {choices}, not {bad_images!r}')
        self.samples = samples
        self.transform = transform
        self.decoder = decoder
        self.seed = seed
        self.root = root
        self.bad_images = bad_images
        self.opener = opener

    def __getitem__(self, key):
        """Return the image [3, H, W] and its label, int64, of a key.

        The image is float32 or uint8, as the transform makes it. A plain index stands for epoch 0.

        Raises:
            ImageError: if the file cannot be read, or with 'replace' none of its class.
        """
        image, (label, _) = self.read(key)
        return image, np.int64(label)

    def read(self, key):
        """Return (image, (label, bad)), where bad maps paths that cannot be read to messages."""
        epoch, index, *repetition = key if isinstance(key, tuple) else (0, key)
        label = self.samples[index][1]
        bad = {}
        for candidate in self._candidates(index):
            try:
                image = self.open(candidate)
            except ImageError as error:
                if self.bad_images == 'raise':
                    raise
                bad[self.samples[candidate][0]] = printable(str(error))
                continue
            # The key alone decides on the augmentation, whichever image it falls on.
            rng = np.random.default_rng((self.seed, epoch, index, *filter(None, repetition)))
            return self.transform(image, rng), (label, bad)
        if self.bad_images == 'replace':
            raise ImageError(f'no image of class {label} can be read: '
                             f'{name_bad_images(list(bad.values()), 3)}')
        size = self.transform.image_size
        return np.zeros((3, size, size), self.transform.dtype), (-1, bad)

    def open(self, index):
        """The image of a sample as it is stored, a PIL image of mode RGB.

        Raises:
            ImageError: if it cannot be read.
        """
        name = self.samples[index][0]
        if self.opener is None:
            return decode_image(name, self.decoder, self.root)
        found = self.opener(index)
        if isinstance(found, np.ndarray):
            return Image.fromarray(found)
        return decode_bytes(found, name, self.decoder)

    def _candidates(self, index):
        """The samples to try for a sample, itself first."""
        yield index
        if self.bad_images == 'replace':
            label = self.samples[index][1]
            for offset in range(1, len(self.samples)):
                candidate = (index + offset) % len(self.samples)
                if self.samples[candidate][1] == label:
                    yield candidate

    def path_of(self, key):
        """The path of a key, fit to be printed."""
        return printable(self.samples[key[1]][0])

    def __len__(self):
        return len(self.samples)


class EpochBatchSampler(DistributedBatchSampler):
    """Batches of an ImageDataset's keys for one of num_replicas processes.

    The order depends on (seed, epoch) alone. Every step's global batch is cut into equal,
    consecutive parts, one for each rank. To make the last one divisible the epoch's first
    samples are repeated at its end, fewer than num_replicas of them. That does no harm in
    training. An evaluation without shuffling joins the parts in the order of the ranks and cuts
    them at len(dataset). All ranks get batches of the same number and sizes.

    With repeats an epoch is that of DeiT's repeated augmentation (Hoffer et al., CVPR 2020): every
    image of the order stands there `repeats` times in a row, and the ranks take turns, so that
    they see different augmentations of one image; the epoch ends after as many samples as the
    data set has, down to a multiple of 256, so that the rest of the order is not seen in it. Keys
    are (epoch, index, repetition) then, else (epoch, index).

    Args:
        dataset: anything with a length.
        batch_size: samples in a batch of one process.
        num_replicas, rank: how many processes there are, and which this is; None asks Paddle.
        shuffle: a new order every epoch instead of that of the data set.
        drop_last: leave out the last batch if it is not full.
        seed: an int, not negative.
        repeats: copies of an image in a row.

    Raises:
        DataError: if there is no image, or drop_last leaves none.
    """

    def __init__(self, dataset, batch_size, num_replicas=None, rank=None, shuffle=False,
                 drop_last=False, seed=0, repeats=1):
        super().__init__(dataset, batch_size, num_replicas, rank, shuffle, drop_last)
        self.seed = seed
        self.repeats = repeats
        if repeats > 1:
            # Of fewer than 256 images DeiT would leave none; here they all count.
            images = len(dataset) // 256 * 256 or len(dataset)
            self.num_samples = images // self.nranks
            self.total_size = self.num_samples * self.nranks
        self.start_batch = 0
        if len(self) == 0:
            raise DataError(f'{len(dataset)} image(s) for {self.nranks} process(es) do not fill a '
                            f'batch of {batch_size}; make the batch smaller or add images')

    def set_epoch(self, epoch, start_batch=0):
        """Choose the epoch, and the batch to begin with: a resumed run skips those before it.

        The length stays that of the whole epoch.
        """
        self.epoch = epoch
        self.start_batch = start_batch

    def batch_length(self, batch):
        """How many samples batch number `batch` of an epoch has, the same on every rank."""
        return min(self.batch_size, self.num_samples - batch * self.batch_size)

    def __iter__(self):
        return self.batches(self.start_batch)

    def batches(self, start):
        """The epoch's batches from number `start` on."""
        # The base class's order knows no seed, and every iteration would move on the epoch.
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        global_size = self.batch_size * self.nranks
        for batch in range(start, len(self)):
            places = np.arange(batch * global_size,
                               min((batch + 1) * global_size, self.total_size))
            if self.repeats == 1:
                local = np.split(places, self.nranks)[self.local_rank]
                # Beyond the end the order begins again.
                yield [(self.epoch, int(index)) for index in order[local % len(order)]]
            else:
                local = places[self.local_rank::self.nranks]
                yield [(self.epoch, int(index), int(repetition)) for index, repetition
                       in zip(order[local // self.repeats], local % self.repeats)]
