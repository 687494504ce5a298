"""From an image as it is stored to what a network reads: crop, resize, flip, normalise."""

import math

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# A strip of 65,000 x 1 pixels, its shorter side scaled to 248, would take 16 GB. No photograph
# comes near this limit on the longer side.
LONGEST_SIDE = 100_000


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
