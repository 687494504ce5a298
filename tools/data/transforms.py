"""Transforms from a decoded image to the input of a network: crop, resize, flip, normalise."""

import math

import numpy as np
from PIL import Image

from data import jpeg

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# In pixels. Without a limit, an image of 65,000 x 1 pixels, with its shorter side scaled to 248,
# would take 16 GB.
LONGEST_SIDE = 100_000


def normalise(pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Normalise uint8 [H, W, 3] to float32 [3, H, W]: (pixels / 255 - mean) / std."""
    mean, std = np.float32(mean).reshape(3, 1, 1), np.float32(std).reshape(3, 1, 1)
    image = pixels.transpose(2, 0, 1).astype(np.float32, order='C')    # [3, H, W]
    image *= 1 / (255 * std)
    image -= mean / std
    return image


def shorter_side_at(shorter, *sides):
    """The sides of an image scaled so that the shorter is `shorter`; rounds as torchvision does."""
    return [min(int(shorter * side / min(sides)), LONGEST_SIDE) for side in sides]


class EvalTransform:
    """The deterministic transform of validation, prediction and exported models.

    'center_crop' is the official evaluation: it scales the shorter side to
    floor(image_size / crop_ratio) and crops the central square. 'squash' scales both sides to
    image_size, as for the published figures of the Paddle repository. Both are equal, pixel by
    pixel, to torchvision's Resize and CenterCrop on PIL images.

    Args:
        image_size: side of the result, pixels.
        mode: 'center_crop' or 'squash'.
        crop_ratio: share of the shorter side that center_crop keeps, in (0, 1].
        interpolation: 'bilinear', 'bicubic', or 'auto': bicubic for center_crop, bilinear for
            squash.
        mean, std: one number for each channel, for pixels in [0, 1].

    Raises:
        ValueError: if mode or crop_ratio is invalid.
    """

    dtype = np.float32    # of the result

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
        """Transform a PIL RGB image to float32 [3, image_size, image_size]; rng is not used."""
        return normalise(self.pixels(image), self.mean, self.std)


class TrainTransform:
    """Random crop and horizontal flip, distributed as torchvision's, then further operations.

    Args:
        image_size: side of the result, pixels.
        crop: 'resized' crops a rectangle of random area, aspect ratio and position and resizes
            it. 'padded' resizes the shorter side to image_size, pads each side with black by an
            eighth of image_size and crops a square at a random position, as the official code
            does when it transfers to CIFAR.
        scale: range of the crop's area, as a share of the image's.
        ratio: range of the crop's width / height.
        interpolation: 'bilinear', 'bicubic', or 'random': one of the two for each image.
        flip: probability of a horizontal flip.
        operations: augmentations of the recipe: functions of a PIL image and a numpy Generator
            that return a PIL image.
    """

    dtype = np.uint8    # of the result

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

        The area is uniform in scale, the logarithm of width / height uniform in ratio. If none of
        ten draws fits into the image, the crop is the largest central one within ratio.
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
        box = self.crop_box(*image.size, rng)
        size, resampling = (self.image_size, self.image_size), self.resampling(rng)
        if isinstance(image, jpeg.Jpeg):
            return image.resized_crop(box, size, resampling)
        # Not resize(box=...), whose filter also reads pixels outside of the crop.
        return image.crop(box).resize(size, resampling)

    def padded_crop(self, image, rng):
        if isinstance(image, jpeg.Jpeg):
            image = image.decoded()
        scaled = shorter_side_at(self.image_size, *image.size)
        image = image.resize(scaled, self.resampling(rng))
        # PIL fills the part of a box that is outside of the image with black.
        return image.crop(self.padded_box(*scaled, rng))

    def padded_box(self, width, height, rng):
        """Draw the padded crop of a width x height image: (left, top, right, bottom) in pixels."""
        size, padding = self.image_size, self.image_size // 8
        left, top = (int(rng.integers(-padding, side + padding - size + 1))
                     for side in (width, height))
        return left, top, left + size, top + size

    def resampling(self, rng):
        return self.resamplings[rng.integers(len(self.resamplings))]

    def is_flipped(self, rng):
        return rng.random() < self.flip

    def pixels(self, image, rng):
        """Augment a PIL RGB image, or a Jpeg, to uint8 [image_size, image_size, 3]."""
        image = self.random_crop(image, rng)
        if self.is_flipped(rng):
            image = (jpeg.mirror(image) if isinstance(image, np.ndarray)
                     else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        if self.operations and isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        for operation in self.operations:
            image = operation(image, rng)
        return np.asarray(image)

    def __call__(self, image, rng):
        """Transform a PIL RGB image, or a Jpeg, to uint8 [3, image_size, image_size].

        Mixing (Mixup, CutMix) comes before normalising; recipe.batch does both on whole batches.
        All random numbers come from rng, a numpy Generator.
        """
        return self.pixels(image, rng).transpose(2, 0, 1)       # [3, H, W]
