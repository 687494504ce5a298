"""Images: from samples, as samples.py finds them, to batches of tensors.

Read from top to bottom: how an image is decoded, how it is cropped and resized, how samples
become epochs and batches, and how worker processes deliver them.
"""

import gc
import glob
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import stat
import threading
import warnings
from contextlib import closing

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset, DistributedBatchSampler
from PIL import Image, UnidentifiedImageError

from runtime import follow_parent
from samples import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pillow knows dozens of formats, and for some it starts other programs. Files may come from
# strangers, so only these are tried, whatever the name says.
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP')

INTERPOLATIONS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# A strip of 65,000 x 1 pixels, its shorter side scaled to 248, would take 16 GB. No photograph
# comes near this limit on the longer side.
LONGEST_SIDE = 100_000
LARGEST_FILE = 1 << 28    # bytes; ImageNet's largest file has 15 MB
# Each scan of a JPEG passes over all its pixels and may be 60 bytes long, so that a file of a few
# megabytes can take an hour. A progressive photograph has ten.
MOST_SCANS = 100
START_OF_SCAN = re.compile(rb'\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)')

# Some ImageNet files hold broken EXIF data. Nothing here uses EXIF, so Pillow need not complain.
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.TiffImagePlugin')


class ImageError(DataError):
    """One image file cannot be read. The message names it and says why."""


def printable(text):
    """Escape what a file's name can do to a terminal or a log: control characters, broken UTF-8."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def name_bad_images(messages, most=20):
    """List the messages of ImageErrors in one line, the first `most` of them."""
    more = f'; and {len(messages) - most} more' if len(messages) > most else ''
    return '; '.join(messages[:most]) + more


def decode_image(path, decoder='pillow', root=None):
    """Read an image file of any common kind as RGB.

    Both decoders give the same pixels: OpenCV reads ordinary JPEGs, Pillow everything else.
    EXIF rotation is ignored and transparency dropped, as by torchvision's loader, with which the
    published weights were trained and measured.

    Args:
        path: the file. Its content decides the format, not its name.
        decoder: 'pillow' or 'opencv'.
        root: if given, a path that is written so that it leads out of this folder is refused.
            Symbolic links are followed: the folder's owner has set them, not the author of a
            list, and ImageNet is often a folder of them.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: if the file is missing, empty, cut off, not an image, no regular file, or
            would be so large once decoded that Pillow takes it for an attack.
        DataError: if there is no such decoder.
    """
    _import_opencv(decoder)
    if root is not None and _leads_out(path, root):
        raise ImageError(f"{path}: leads out of {root}; write it relative to that folder, without "
                         "'..'")
    try:
        # Looked at before it is opened: a named pipe would be waited for, a device set to work.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f'{path}: cannot be read (not a regular file)')
        if status.st_size > LARGEST_FILE:
            raise ImageError(f'{path}: too large an image file ({status.st_size} bytes)')
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror})') from error
    return decode_bytes(data, path, decoder)


def decode_bytes(data, name, decoder='pillow', most_pixels=None):
    """Read an image that is in memory already, an upload for one, as decode_image reads a file.

    Args:
        data: the bytes of the file.
        name: what messages call it.
        decoder: 'pillow' or 'opencv'.
        most_pixels: if given, an image whose header claims more than that is not decoded.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError, DataError: as decode_image does.
    """
    opencv = _import_opencv(decoder)
    if not data:
        raise ImageError(f'{name}: the file is empty')
    # A damaged file makes Pillow raise any of a dozen kinds of exception.
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise ValueError(f'{image.width} x {image.height} pixels, at most {most_pixels} '
                             'altogether')
        if image.format == 'JPEG' and len(START_OF_SCAN.findall(data)) > MOST_SCANS:
            raise ValueError(f'more than {MOST_SCANS} scans')
        if opencv and image.format == 'JPEG' and image.mode in ('L', 'RGB'):
            return _decode_jpeg(data, opencv) or _to_rgb(image)
        return _to_rgb(image)
    except UnidentifiedImageError as error:
        known = ', '.join(IMAGE_FORMATS)
        raise ImageError(f'{name}: not an image of a known format ({known})') from error
    except Exception as error:
        raise ImageError(f'{name}: damaged or too large an image ({error})') from error


def _leads_out(path, root):
    prefix = os.path.join(root, '')
    listed = path[len(prefix):].replace('\\', '/')
    return not path.startswith(prefix) or '..' in listed.split('/')


def _to_rgb(image):
    """Convert a PIL image of any mode to RGB; what was transparent shows its hidden colour."""
    if image.mode.startswith('I'):
        # 16-bit grey: convert would clip at 255. Of 16-bit colour Pillow keeps the high byte.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    image.info.pop('transparency', None)    # of a palette; convert would warn of it
    return image.convert('RGB')


def _decode_jpeg(data, opencv):
    """Decode a grey or RGB JPEG, or return None to leave a doubtful one to Pillow."""
    # Of a file that is cut off, OpenCV 4.5 makes an image with a grey end. Compressed data holds
    # no markers, so in a whole file an end of image (FFD9) follows the last start of scan (FFDA);
    # the end of a thumbnail comes before that.
    if data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        return None
    pixels = opencv.imdecode(np.frombuffer(data, dtype=np.uint8),
                             opencv.IMREAD_COLOR | opencv.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        return None
    height, width, _ = pixels.shape    # the third axis is blue, green, red
    return Image.frombuffer('RGB', (width, height), pixels, 'raw', 'BGR', 0, 1)


def _import_opencv(decoder):
    """Return the module cv2 for 'opencv', None for 'pillow'; servers may lack what cv2 needs."""
    if decoder == 'pillow':
        return None
    if decoder != 'opencv':
        raise DataError(f"decoder must be 'pillow' or 'opencv', not {decoder!r}")
    try:
        import cv2
    except ImportError as error:
        raise DataError(f"decoder 'opencv' cannot be used ({error}); install "
                        "opencv-python-headless or choose the decoder 'pillow'") from error
    return cv2


def normalise(pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Turn uint8 [H, W, 3] into float32 [3, H, W]: (pixels / 255 - mean) / std."""
    mean, std = np.float32(mean).reshape(3, 1, 1), np.float32(std).reshape(3, 1, 1)
    image = pixels.transpose(2, 0, 1).astype(np.float32, order='C')    # [3, H, W]
    image *= 1 / (255 * std)
    image -= mean / std
    return image


def shorter_side_at(shorter, *sides):
    """The sides of an image whose shorter one becomes `shorter`, as torchvision rounds them."""
    return [min(int(shorter * side / min(sides)), LONGEST_SIDE) for side in sides]


class EvalTransform:
    """The transform of validation, prediction and export: the same image every time.

    'center_crop' is the official evaluation: the shorter side to floor(image_size / crop_ratio),
    then the central square. 'squash' scales both sides to image_size, with which the Paddle
    repository's figures were measured. Pixel by pixel, both equal torchvision's Resize and
    CenterCrop on PIL images.

    Args:
        image_size: side of the result, in pixels.
        mode: 'center_crop' or 'squash'.
        crop_ratio: the part of the shorter side that center_crop keeps, in (0, 1].
        interpolation: 'bilinear', 'bicubic', or 'auto': bicubic for center_crop, bilinear for
            squash.
        mean, std: one number a channel, for pixels in [0, 1].
    """

    dtype = np.float32    # what it makes of an image

    def __init__(self, image_size=224, mode='center_crop', crop_ratio=0.9, interpolation='auto',
                 mean=IMAGENET_MEAN, std=IMAGENET_STD):
        if mode not in ('center_crop', 'squash'):
            raise ValueError(f"mode must be 'center_crop' or 'squash', not {mode!r}")
        if not 0 < crop_ratio <= 1:
            raise ValueError(f'crop_ratio must be in (0, 1], not {crop_ratio}')
        if interpolation == 'auto':
            interpolation = 'bicubic' if mode == 'center_crop' else 'bilinear'
        self.image_size = image_size
        self.mode = mode
        self.crop_ratio = crop_ratio
        self.resampling = INTERPOLATIONS[interpolation]
        self.mean, self.std = mean, std

    def pixels(self, image, rng=None):
        """Resize and crop a PIL RGB image to uint8 [image_size, image_size, 3]."""
        size = self.image_size
        if self.mode == 'squash':
            return np.asarray(image.resize((size, size), self.resampling))
        scaled = shorter_side_at(math.floor(size / self.crop_ratio), *image.size)
        left, top = (round((side - size) / 2) for side in scaled)
        resized = image.resize(scaled, self.resampling)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def __call__(self, image, rng=None):
        """Turn a PIL RGB image into float32 [3, image_size, image_size]; rng is not used."""
        return normalise(self.pixels(image), self.mean, self.std)


class TrainTransform:
    """Random crop and horizontal flip, with torchvision's distributions, then operations.

    Args:
        image_size: side of the result, in pixels.
        crop: 'resized', a part of the image of random size, place and shape; or 'padded': the
            image with its shorter side at image_size, an eighth of that in black around it, and
            of this a square at a random place, as in the official transfer to CIFAR.
        scale: range of the crop's area, as a part of the image's.
        ratio: range of the crop's width / height.
        interpolation: 'bilinear', 'bicubic', or 'random': one of the two for each image.
        flip: probability of a horizontal flip.
        operations: what a recipe adds: each makes a PIL image of a PIL image and a Generator.
    """

    dtype = np.uint8    # what it makes of an image

    def __init__(self, image_size=224, scale=(0.05, 1.0), ratio=(3 / 4, 4 / 3),
                 interpolation='bilinear', flip=0.0, operations=(), crop='resized'):
        names = INTERPOLATIONS if interpolation == 'random' else [interpolation]
        self.resamplings = [INTERPOLATIONS[name] for name in names]
        self.image_size = image_size
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.operations = operations
        self.random_crop = {'resized': self.resized_crop, 'padded': self.padded_crop}[crop]

    def crop_box(self, width, height, rng):
        """Draw the crop of a width x height image: (left, top, right, bottom) in pixels.

        The area is uniform in scale, the logarithm of width / height uniform in ratio. If ten
        draws do not fit into the image, it is the central part with the nearest ratio.
        """
        narrowest, widest = self.ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left = int(rng.integers(width - crop_width + 1))
                top = int(rng.integers(height - crop_height + 1))
                return left, top, left + crop_width, top + crop_height
        crop_width = min(width, round(height * widest))
        crop_height = min(height, round(width / narrowest))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height

    def resized_crop(self, image, rng):
        # Not resize(box=...), whose filter looks beyond the crop's edges.
        image = image.crop(self.crop_box(*image.size, rng))
        return image.resize((self.image_size, self.image_size), self.resampling(rng))

    def padded_crop(self, image, rng):
        size, padding = self.image_size, self.image_size // 8
        image = image.resize(shorter_side_at(size, *image.size), self.resampling(rng))
        # PIL fills with black what a box has outside of the image.
        left, top = (int(rng.integers(-padding, side + padding - size + 1)) for side in image.size)
        return image.crop((left, top, left + size, top + size))

    def resampling(self, rng):
        return self.resamplings[rng.integers(len(self.resamplings))]

    def pixels(self, image, rng):
        """Augment a PIL RGB image to uint8 [image_size, image_size, 3]."""
        image = self.random_crop(image, rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in self.operations:
            image = operation(image, rng)
        return np.asarray(image)

    def __call__(self, image, rng):
        """Turn a PIL RGB image into uint8 [3, image_size, image_size].

        Pixels, because images are mixed before they are normalised: recipe.batch does both, for a
        whole batch. Every random number comes from rng, a numpy Generator.
        """
        return np.ascontiguousarray(self.pixels(image, rng).transpose(2, 0, 1))    # [3, H, W]


class ImageDataset(Dataset):
    """Images and labels, where the key alone decides how an image is augmented.

    A key is (epoch, index), or (epoch, index, repetition) where an epoch holds an image more than
    once; repetition 0 is the same as none.

    Neither the number of workers and processes nor the order of reading changes a sample. Every
    epoch draws anew, and the same seed draws the same again, so that a resumed run goes on as if
    it had never stopped.

    Args:
        samples: a list of (path, label), or of (name, label) with pixels.
        transform: called with a PIL RGB image and a numpy Generator.
        decoder: 'pillow' or 'opencv'.
        seed: an int, not negative.
        root: the folder that no path may lead out of; None allows all.
        bad_images: what to do about a file that cannot be read. 'raise' raises its ImageError.
            'replace' takes the next image of the same class in the order of samples, beginning
            anew at their end. 'blank' gives an image of zeros with the label -1, so that a batch
            keeps its size and order.
        pixels: uint8 [N, H, W, 3], images that lie in memory in the order of samples; nothing is
            read from disk then. Worker processes share it with their parent.

    Raises:
        DataError: if there is no such decoder.
    """

    def __init__(self, samples, transform, decoder='pillow', seed=0, root=None,
                 bad_images='raise', pixels=None):
        super().__init__()
        _import_opencv(decoder)    # raises now what would otherwise stop the first image
        choices = ('raise', 'replace', 'blank')
        if bad_images not in choices:
            raise ValueError(f'bad_images must be one of {choices}, not {bad_images!r}')
        self.samples = samples
        self.transform = transform
        self.decoder = decoder
        self.seed = seed
        self.root = root
        self.bad_images = bad_images
        self.pixels = pixels

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
            ImageError: if its file cannot be read.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        return decode_image(self.samples[index][0], self.decoder, self.root)

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
