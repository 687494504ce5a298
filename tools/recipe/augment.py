"""Augmentation: AutoAugment, RandAugment, colour jitter, random erasing.

All but random erasing change a PIL image; random erasing changes a normalised batch on its device.
All random numbers come from the NumPy Generator that is passed, so that the same seed gives the
same images in every process.

Operations, magnitudes and policies are timm's, with which the official T2T-ViT was trained:
`rand-m9-mstd0.5-inc1`, and erasing with probability 0.25.
"""

import difflib
import math
import re
from typing import NamedTuple

import numpy as np
import paddle
from PIL import Image, ImageEnhance, ImageOps

FULL_MAGNITUDE = 10    # magnitude of an operation at full strength


def _posterize(image, bits):
    # Full strength keeps 0 bits, which ImageOps.posterize refuses from Pillow 13 on.
    kept = 256 - 2 ** (8 - min(max(bits, 0), 8))
    return image.point([value & kept for value in range(256)] * 3)


def _solarize_add(image, addend):
    return image.point([min(255, value + addend) if value < 128 else value
                        for value in range(256)] * 3)


# Functions of (image, strength = magnitude / 10). The plain operations may become weaker with the
# magnitude (as in TensorFlow's EfficientNet), Increasing ones become stronger, Original ones are
# those of the AutoAugment paper.
TONES = {
    'AutoContrast': lambda image, strength: ImageOps.autocontrast(image),
    'Equalize': lambda image, strength: ImageOps.equalize(image),
    'Invert': lambda image, strength: ImageOps.invert(image),
    'Posterize': lambda image, strength: _posterize(image, int(strength * 4)),
    'PosterizeIncreasing': lambda image, strength: _posterize(image, 4 - int(strength * 4)),
    'PosterizeOriginal': lambda image, strength: _posterize(image, 4 + int(strength * 4)),
    'Solarize': lambda image, strength: ImageOps.solarize(image, int(strength * 256)),
    'SolarizeIncreasing': lambda image, strength: ImageOps.solarize(
        image, 256 - int(strength * 256)),
    'SolarizeAdd': lambda image, strength: _solarize_add(image, int(strength * 110)),
}
# Each also exists as Increasing. The names are those of classes in PIL.ImageEnhance.
ENHANCEMENTS = ('Color', 'Contrast', 'Brightness', 'Sharpness')
# Functions of (signed strength, image size) to the affine map (a, b, c, d, e, f) from an output
# pixel (x, y) to its source x' = ax + by + c, y' = dx + ey + f.
MOVES = {
    'ShearX': lambda amount, size: (1, amount * 0.3, 0, 0, 1, 0),
    'ShearY': lambda amount, size: (1, 0, 0, amount * 0.3, 1, 0),
    'TranslateXRel': lambda amount, size: (1, 0, amount * 0.45 * size[0], 0, 1, 0),
    'TranslateYRel': lambda amount, size: (1, 0, 0, 0, 1, amount * 0.45 * size[1]),
}
DIRECTED = (*(f'{name}Increasing' for name in ENHANCEMENTS), *MOVES, 'Rotate')
OPERATIONS = (*TONES, *ENHANCEMENTS, *DIRECTED)
WITHOUT_MAGNITUDE = ('AutoContrast', 'Equalize', 'Invert')


class Canvas(NamedTuple):
    """How operations move pixels.

    fill: RGB colour outside the image. resampling: Pillow's filter. fast: whether OpenCV moves
    them, in a fraction of Pillow's time, with slightly different values.
    """

    fill: tuple = (124, 116, 104)    # ImageNet's mean
    resampling: Image.Resampling = Image.Resampling.BICUBIC
    fast: bool = False


CANVAS = Canvas()


def apply_operation(image, name, magnitude, sign=1, canvas=CANVAS):
    """Apply one operation to a PIL RGB image, with the same result as timm, bit by bit.

    (With a fast canvas Rotate, Shear and Translate differ by less than 2 of 255 in the mean.)

    Args:
        name: one of OPERATIONS.
        magnitude: 0 to 10 (full strength).
        sign: 1 or -1, the direction of Rotate, Shear, Translate and the Increasing enhancements;
            the others ignore it.
        canvas: a Canvas, used by Rotate, Shear and Translate.

    Raises:
        ValueError: for an unknown operation.
    """
    strength = magnitude / FULL_MAGNITUDE
    if name in TONES:
        return TONES[name](image, strength)
    if name in MOVES:
        matrix = MOVES[name](sign * strength, image.size)
        if canvas.fast:
            return _move(image, matrix, canvas)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, canvas.resampling,
                               fillcolor=canvas.fill)
    if name == 'Rotate':
        degrees = sign * (strength * 30)
        if canvas.fast:
            return _move(image, _rotation(degrees, image.size), canvas)
        return image.rotate(degrees, canvas.resampling, fillcolor=canvas.fill)
    if name not in OPERATIONS:
        raise ValueError(f'{name} is an unknown operation{_hint(name, OPERATIONS)}')
    if name in ENHANCEMENTS:
        factor = strength * 1.8 + 0.1
    else:
        factor = max(0.1, 1 + sign * strength * 0.9)
    enhancer = getattr(ImageEnhance, name.replace('Increasing', ''))
    return enhancer(image).enhance(factor)


def _rotation(degrees, size):
    """The affine map of a counterclockwise rotation about the centre; see MOVES."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = size[0] / 2, size[1] / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


def _move(image, matrix, canvas):
    """Move the pixels of a PIL image by an affine map, see MOVES, with OpenCV."""
    import cv2
    cv2.setNumThreads(0)    # forked workers would wait for threads that they don't have
    a, b, c, d, e, f = matrix
    # The first pixel's centre is at (0, 0) for OpenCV, at (0.5, 0.5) for Pillow.
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    bilinear = canvas.resampling == Image.Resampling.BILINEAR
    return Image.fromarray(cv2.warpAffine(
        np.asarray(image), matrix, image.size, borderValue=canvas.fill,
        flags=cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if bilinear else cv2.INTER_CUBIC)))


class AutoAugment:
    """AutoAugment (Cubuk et al., CVPR 2019) and RandAugment (Cubuk et al., NeurIPS 2020).

    Draws sequences of (operation, probability, magnitude) and applies them in order. AutoAugment
    draws one of 25 pairs, RandAugment several sequences of one operation.

    Args:
        choices: the sequences.
        count: number of sequences to draw, with replacement.
        noise: standard deviation of the magnitude, which is clipped to 0 to 10.
        canvas: the Canvas of all operations; its resampling is not used.
        resamplings: Pillow's filters; one is drawn for each operation.
    """

    def __init__(self, choices, count=1, noise=0.0, canvas=CANVAS,
                 resamplings=(Image.Resampling.BICUBIC,)):
        self.choices = choices
        self.count = count
        self.noise = noise
        self.canvas = canvas
        self.resamplings = resamplings

    def plan(self, rng):
        """Draw the operations for an image: a list of apply_operation's further arguments."""
        plan = []
        for index in rng.integers(len(self.choices), size=self.count):
            for name, probability, magnitude in self.choices[index]:
                if rng.random() < probability:
                    resampling = self.resamplings[rng.integers(len(self.resamplings))]
                    plan.append((name, self.vary(magnitude, rng), 2 * int(rng.integers(2)) - 1,
                                 self.canvas._replace(resampling=resampling)))
        return plan

    def vary(self, magnitude, rng):
        """Add noise to a magnitude and clip it."""
        if self.noise:
            magnitude = rng.normal(magnitude, self.noise)
        return min(max(magnitude, 0), FULL_MAGNITUDE)

    def __call__(self, image, rng):
        """Augment a PIL RGB image with random numbers of a NumPy Generator."""
        for arguments in self.plan(rng):
            image = apply_operation(image, *arguments)
        return image

    @staticmethod
    def describe(plan):
        """Return texts such as `Rotate -9.2` for a plan: operations and magnitudes."""
        texts = []
        for name, magnitude, sign, _ in plan:
            magnitude *= sign if name in DIRECTED else 1
            number = '' if name in WITHOUT_MAGNITUDE else f' {magnitude:.1f}'
            texts.append(re.sub('Increasing|Original|Rel', '', name) + number)
        return texts


RAND_OPERATIONS = ('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize',
                   'SolarizeAdd', 'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX',
                   'ShearY', 'TranslateXRel', 'TranslateYRel')
ORIGINAL = (    # the paper's ImageNet policy (arXiv 1805.09501)
    (('PosterizeOriginal', 0.4, 8), ('Rotate', 0.6, 9)),
    (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
    (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
    (('PosterizeOriginal', 0.6, 7), ('PosterizeOriginal', 0.6, 6)),
    (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
    (('Equalize', 0.4, 4), ('Rotate', 0.8, 8)),
    (('Solarize', 0.6, 3), ('Equalize', 0.6, 7)),
    (('PosterizeOriginal', 0.8, 5), ('Equalize', 1.0, 2)),
    (('Rotate', 0.2, 3), ('Solarize', 0.6, 8)),
    (('Equalize', 0.6, 8), ('PosterizeOriginal', 0.4, 6)),
    (('Rotate', 0.8, 8), ('Color', 0.4, 0)),
    (('Rotate', 0.4, 9), ('Equalize', 0.6, 2)),
    (('Equalize', 0.0, 7), ('Equalize', 0.8, 8)),
    (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
    (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
    (('Rotate', 0.8, 8), ('Color', 1.0, 2)),
    (('Color', 0.8, 8), ('Solarize', 0.8, 7)),
    (('Sharpness', 0.4, 7), ('Invert', 0.6, 8)),
    (('ShearX', 0.6, 5), ('Equalize', 1.0, 9)),
    (('Color', 0.4, 0), ('Equalize', 0.6, 3)),
    (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
    (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
    (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
    (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
    (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
)
# Parameters of a policy text: type, smallest and largest value.
PARTS = {'m': (int, 0, FULL_MAGNITUDE), 'n': (int, 1, 100), 'mstd': (float, 0, 100),
         'inc': (int, 0, 1)}
PROBABILITY = 0.5    # of applying an operation that RandAugment has drawn


def auto_augment(text, mean=(0.485, 0.456, 0.406), interpolation='random', fast=False):
    """Build an AutoAugment from a text in timm's syntax.

    `rand`, RandAugment, may be followed by these parts, in any order, each after a dash:
    m9: magnitude (default 10); n2: operations for each image (2), each applied with probability
    0.5; mstd0.5: standard deviation of the magnitude (0); inc1: use Increasing operations (inc0).
    `original`, AutoAugment's policy for ImageNet, may be followed by mstd.

    Args:
        text: e.g. `rand-m9-mstd0.5-inc1` or `original`.
        mean: of the channels, in 0 to 1: the colour outside the image.
        interpolation: 'bilinear', 'bicubic', or 'random': one of the two for each operation.
        fast: see Canvas.

    Returns:
        A callable of a PIL RGB image and a NumPy Generator that returns a PIL image.

    Raises:
        ValueError: names the invalid part of the text.
    """
    policy, *parts = text.split('-')
    if policy not in ('rand', 'original'):
        hint = _hint(policy, ('rand', 'original'))
        raise ValueError(f'{text!r}: {policy!r} is unknown{hint}: a text begins with rand or '
                         'original')
    values = _read_parts(text, parts, tuple(PARTS) if policy == 'rand' else ('mstd',))
    names = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
    options = dict(
        noise=values.get('mstd', 0.0),
        canvas=Canvas(fill=tuple(min(max(round(255 * channel), 0), 255) for channel in mean),
                      fast=fast),
        resamplings=[Image.Resampling[name.upper()] for name in names])
    if policy == 'original':
        return AutoAugment(ORIGINAL, **options)
    operations = [f'{name}Increasing' if values.get('inc') and f'{name}Increasing' in OPERATIONS
                  else name for name in RAND_OPERATIONS]
    choices = [[(name, PROBABILITY, values.get('m', FULL_MAGNITUDE))] for name in operations]
    return AutoAugment(choices, values.get('n', 2), **options)


def _read_parts(text, parts, known):
    """Read parts such as ['m9', 'mstd0.5'] as {'m': 9, 'mstd': 0.5}."""
    values = {}
    for part in parts:
        match = re.fullmatch(r'([a-z]+?)([0-9.]{1,9})', part)
        name = match[1] if match else part
        if name not in known:
            raise ValueError(f'{text!r}: {part!r} is an unknown part: use '
                             f'{", ".join(known)}, each with a number')
        if name in values:
            raise ValueError(f'{text!r}: {part!r} sets {name} a second time: keep one of the two')
        kind, low, high = PARTS[name]
        try:
            values[name] = kind(match[2])
        except (TypeError, ValueError):    # no match, or no such number
            values[name] = math.nan
        if not low <= values[name] <= high:
            raise ValueError(f'{text!r}: {part!r} must be {name} and a '
                             f'{"whole " if kind is int else ""}number of at least {low} '
                             f'and at most {high}')
    return values


def _hint(word, known):
    nearest = difflib.get_close_matches(word, known, n=1)
    return f', did you mean {nearest[0]}?' if nearest else ''


class ColorJitter:
    """Change brightness, contrast and saturation in random order, as torchvision does.

    Args:
        factor: each is multiplied by a number drawn uniformly from max(0, 1 - factor) to
            1 + factor; timm's default is 0.4.
    """

    def __init__(self, factor):
        self.factor = factor

    def plan(self, rng):
        """Draw the changes of an image: a list of (class in PIL.ImageEnhance, factor)."""
        names = ('Brightness', 'Contrast', 'Color')
        return [(names[index], rng.uniform(max(0, 1 - self.factor), 1 + self.factor))
                for index in rng.permutation(len(names))]

    def __call__(self, image, rng):
        """Change a PIL RGB image with random numbers of a NumPy Generator."""
        for name, factor in self.plan(rng):
            image = getattr(ImageEnhance, name)(image).enhance(factor)
        return image

    @staticmethod
    def describe(plan):
        """Return texts such as `Contrast x 1.21` for a plan."""
        return [f'{name} x {factor:.2f}' for name, factor in plan]


class RandomErasing:
    """Random erasing (Zhong et al., AAAI 2020) of a normalised batch, with timm's distributions.

    A box in each erased image is filled with standard normal noise for every pixel and channel.

    Args:
        probability: of erasing a box of an image.
        min_area, max_area: range of the box's area as a fraction of the image's.
        min_aspect: smallest height / width of the box; the largest is 1 / min_aspect.
    """

    def __init__(self, probability, min_area=0.02, max_area=1 / 3, min_aspect=0.3):
        self.probability = probability
        self.min_area, self.max_area = min_area, max_area
        self.min_aspect = min_aspect

    def box(self, height, width, rng):
        """Draw the box of one image in pixels, (top, left, height, width), or None.

        The area and the logarithm of height / width are uniform. A box as high or as wide as the
        image is drawn again; after ten such boxes there is none.
        """
        if rng.random() >= self.probability:
            return None
        for _ in range(10):
            area = rng.uniform(self.min_area, self.max_area) * height * width
            limit = -math.log(self.min_aspect)
            aspect = math.exp(rng.uniform(-limit, limit))
            box_height = round(math.sqrt(area * aspect))
            box_width = round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                return (int(rng.integers(height - box_height + 1)),
                        int(rng.integers(width - box_width + 1)), box_height, box_width)
        return None

    def __call__(self, images, rng):
        """Erase boxes of a batch.

        Boxes and noise are drawn on the CPU, so that they are the same on every device. Noise is
        copied to the device only for the erased images, a quarter of the batch in the official
        recipe.

        Args:
            images: float tensor `[B, 3, H, W]`; not changed.
            rng: a NumPy Generator.

        Returns:
            A new tensor of the same shape and type.
        """
        batch, channels, height, width = images.shape
        boxes = [self.box(height, width, rng) for _ in range(batch)]
        erased = [index for index, box in enumerate(boxes) if box]
        if not erased:
            return images
        mask = np.zeros((len(erased), 1, height, width), dtype=bool)
        noise = np.zeros((len(erased), channels, height, width), dtype=np.float32)
        for row, index in enumerate(erased):
            top, left, box_height, box_width = boxes[index]
            box = np.s_[row, :, top:top + box_height, left:left + box_width]
            mask[box] = True
            noise[box] = rng.standard_normal((channels, box_height, box_width), dtype=np.float32)
        rows = paddle.to_tensor(erased)
        noise = paddle.to_tensor(noise).astype(images.dtype)     # (erased, 3, H, W)
        kept = paddle.gather(images, rows)                       # (erased, 3, H, W)
        return paddle.scatter(images, rows, paddle.where(paddle.to_tensor(mask), noise, kept))
