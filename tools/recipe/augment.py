"""Augmentation of a training recipe: AutoAugment, RandAugment, colour jitter, random erasing.

All but the last change one PIL image, before it becomes an array; random erasing changes a
normalised batch, on the device where it lies. Every random number comes from the numpy Generator
that is handed in, so that the same seed gives the same images, in any process.

Operations, magnitudes and policies have timm's meaning, with which the official T2T-ViT was
trained: `rand-m9-mstd0.5-inc1`, and erasing with probability 0.25.
"""

import difflib
import math
import re
from typing import NamedTuple

import numpy as np
import paddle
from PIL import Image, ImageEnhance, ImageOps

FULL_MAGNITUDE = 10    # where an operation has its full strength


def _posterize(image, bits):
    # Full strength keeps no bit at all, which ImageOps.posterize refuses from Pillow 13 on.
    kept = 256 - 2 ** (8 - min(max(bits, 0), 8))
    return image.point([value & kept for value in range(256)] * 3)


def _solarize_add(image, addend):
    return image.point([min(255, value + addend) if value < 128 else value
                        for value in range(256)] * 3)


# Three kinds of one operation: the plain one may grow weaker with the magnitude (TensorFlow's
# EfficientNet has it so), Increasing always grows stronger, Original is the AutoAugment paper's.
# A strength is magnitude / 10.
TONES = {
    'AutoContrast': lambda image, strength: ImageOps.autocontrast(image),
    'Equalize': lambda image, strength: ImageOps.equalize(image),
    'Invert': lambda image, strength: ImageOps.invert(image),
    'Posterize': lambda image, strength: _posterize(image, int(strength * 4)),
    'PosterizeIncreasing': lambda image, strength: _posterize(image, 4 - int(strength * 4)),
    'PosterizeOriginal': lambda image, strength: _posterize(image, 4 + int(strength * 4)),
    'Solarize': lambda image, strength: ImageOps.solarize(image, min(256, int(strength * 256))),
    'SolarizeIncreasing': lambda image, strength: ImageOps.solarize(
        image, 256 - min(256, int(strength * 256))),
    'SolarizeAdd': lambda image, strength: _solarize_add(image, min(128, int(strength * 110))),
}
# Each also exists as Increasing. The names are those of Pillow's classes.
ENHANCEMENTS = ('Color', 'Contrast', 'Brightness', 'Sharpness')
# Where a pixel comes from: x' = ax + by + c, y' = dx + ey + f as (a, b, c, d, e, f), of a strength
# with a sign, the image's size, and the canvas' translate.
MOVES = {
    'ShearX': lambda amount, size, translate: (1, amount * 0.3, 0, 0, 1, 0),
    'ShearY': lambda amount, size, translate: (1, 0, 0, amount * 0.3, 1, 0),
    'TranslateX': lambda amount, size, translate: (1, 0, amount * translate, 0, 1, 0),
    'TranslateY': lambda amount, size, translate: (1, 0, 0, 0, 1, amount * translate),
    'TranslateXRel': lambda amount, size, translate: (1, 0, amount * 0.45 * size[0], 0, 1, 0),
    'TranslateYRel': lambda amount, size, translate: (1, 0, 0, 0, 1, amount * 0.45 * size[1]),
}
OPERATIONS = (*TONES, *ENHANCEMENTS, *(f'{name}Increasing' for name in ENHANCEMENTS), *MOVES,
              'Rotate')


class Canvas(NamedTuple):
    """How operations move pixels.

    fill: RGB colour of what comes in from outside the image. resampling: Pillow's filter.
    translate: pixels that TranslateX and TranslateY move at magnitude 10.
    """

    fill: tuple = (124, 116, 104)    # ImageNet's mean
    resampling: Image.Resampling = Image.Resampling.BICUBIC
    translate: float = 100


CANVAS = Canvas()


def apply_operation(image, name, magnitude, sign=1, canvas=CANVAS):
    """Apply one operation to a PIL RGB image, bit by bit as timm does.

    Args:
        name: one of OPERATIONS.
        magnitude: at least 0; 10 is full strength.
        sign: 1 or -1, the direction of what moves, turns, or has a neutral middle (Increasing
            enhancements); of no consequence elsewhere.
        canvas: a Canvas, of consequence to Rotate, Shear and Translate.

    Raises:
        ValueError: if there is no such operation.
    """
    strength = magnitude / FULL_MAGNITUDE
    if name in TONES:
        return TONES[name](image, strength)
    if name in MOVES:
        matrix = MOVES[name](sign * strength, image.size, canvas.translate)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, canvas.resampling,
                               fillcolor=canvas.fill)
    if name == 'Rotate':
        return image.rotate(sign * (strength * 30), canvas.resampling, fillcolor=canvas.fill)
    if name not in OPERATIONS:
        raise ValueError(f'{name} is an unknown operation{_hint(name, OPERATIONS)}')
    if name in ENHANCEMENTS:
        factor = strength * 1.8 + 0.1
    else:
        factor = max(0.1, 1 + sign * strength * 0.9)
    enhancer = getattr(ImageEnhance, name.replace('Increasing', ''))
    return enhancer(image).enhance(factor)


class AutoAugment:
    """AutoAugment (Cubuk et al., CVPR 2019) and RandAugment (Cubuk et al., NeurIPS 2020).

    Draws sequences of steps (operation, probability, magnitude) and applies them one after the
    other. AutoAugment draws one of its 25 pairs; RandAugment draws some of its one-step sequences.

    Args:
        choices: the sequences.
        count: how many of them to draw.
        weights: a probability for each, then none is drawn twice; None: all the same, with
            replacement.
        noise: standard deviation of a magnitude; inf makes it uniform from 0 to what it says.
        largest: magnitudes are cut off at 0 and here.
        canvas: the Canvas of all operations, apart from its resampling.
        resamplings: Pillow's filters, one of which is drawn for each operation.
    """

    def __init__(self, choices, count=1, weights=None, noise=0.0, largest=FULL_MAGNITUDE,
                 canvas=CANVAS, resamplings=(Image.Resampling.BICUBIC,)):
        self.choices = choices
        self.count = count
        self.weights = weights
        self.noise = noise
        self.largest = largest
        self.canvas = canvas
        self.resamplings = resamplings

    def plan(self, rng):
        """Draw what to do to an image: a list of apply_operation's arguments after the image."""
        plan = []
        drawn = rng.choice(len(self.choices), self.count, replace=self.weights is None,
                           p=self.weights)
        for number in drawn:
            for name, probability, magnitude in self.choices[number]:
                if rng.random() < probability:
                    resampling = self.resamplings[rng.integers(len(self.resamplings))]
                    plan.append((name, self.vary(magnitude, rng), int(rng.choice((-1, 1))),
                                 self.canvas._replace(resampling=resampling)))
        return plan

    def vary(self, magnitude, rng):
        if self.noise == math.inf:
            magnitude = rng.uniform(0, magnitude)
        elif self.noise:
            magnitude = rng.normal(magnitude, self.noise)
        return min(max(magnitude, 0), self.largest)

    def __call__(self, image, rng):
        """Augment a PIL RGB image with random numbers of a numpy Generator."""
        for arguments in self.plan(rng):
            image = apply_operation(image, *arguments)
        return image


RAND_OPERATIONS = ('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize',
                   'SolarizeAdd', 'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX',
                   'ShearY', 'TranslateXRel', 'TranslateYRel')
# Shares of RAND_OPERATIONS in their order: timm 0.3's w0 and timm 1.0's tweights.
RAND_WEIGHTS = {
    'w0': (0.025, 0.005, 0, 0.3, 0, 0.005, 0.005, 0.025, 0.005, 0.005, 0.025, 0.2, 0.2, 0.1, 0.1),
    'tweights': (0.25, 0.05, 0.05, 3, 0.05, 0.05, 0.05, 0.25, 0.05, 0.05, 0.25, 2, 2, 1, 1),
}
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
V0 = (    # the policy of TensorFlow's EfficientNet
    (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
    (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
    (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
    (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
    (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
    (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
    (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
    (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
    (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
    (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
    (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
    (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
    (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
    (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
    (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
    (('Rotate', 1.0, 7), ('TranslateYRel', 0.8, 9)),
    (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
    (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
    (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
    (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
    (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
    (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
    (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
    (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
    (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
)


def _with_research_posterize(policy):
    """A policy whose Posterize grows stronger with the magnitude, as in Google's research code."""
    return tuple(tuple(('PosterizeIncreasing', *step[1:]) if step[0].startswith('Posterize')
                       else step for step in pair) for pair in policy)


POLICIES = {'original': ORIGINAL, 'originalr': _with_research_posterize(ORIGINAL),
            'v0': V0, 'v0r': _with_research_posterize(V0)}
# The parts of a text after its name: type, smallest and largest value.
PARTS = {'m': (int, 0, 30), 'n': (int, 1, 100), 'p': (float, 0, 1),
         'mstd': (float, 0, math.inf), 'mmax': (int, 1, math.inf), 'inc': (int, 0, 1)}


def auto_augment(text, image_size=224, mean=(0.485, 0.456, 0.406), interpolation='random'):
    """Build an AutoAugment from a text in timm's language.

    `rand`, RandAugment, may be followed by these parts, in any order, each after a dash:
    m9: magnitude (default 10; above mmax it counts as mmax); n2: operations an image (2); p0.5:
    probability of each (0.5); mstd0.5: standard deviation of the magnitude (0), above 100 or
    `inf`: uniform from 0 to m; mmax15: largest magnitude (10); inc1: operations that grow stronger
    with the magnitude (inc0);
    w0 or tweights: operations of unequal probability, none twice (tweights includes inc1).
    `original`, `originalr`, `v0`, `v0r`, policies of AutoAugment, may be followed by mstd.

    Args:
        text: such as `rand-m9-mstd0.5-inc1` or `original-mstd0.5`.
        image_size: side of the image in pixels.
        mean: of the channels, of values in 0 to 1; the colour of what comes in from outside.
        interpolation: 'bilinear', 'bicubic', or 'random': one of the two for each operation.

    Returns:
        A callable of a PIL RGB image and a numpy Generator that returns a PIL image.

    Raises:
        ValueError: naming the part of the text that is wrong.
    """
    policy, *parts = text.split('-')
    if policy not in (*POLICIES, 'rand'):
        known = (*POLICIES, 'rand')
        raise ValueError(f'{text!r}: {policy!r} is unknown{_hint(policy, known)}: a text begins '
                         f'with {", ".join(known)}')
    weightings = [part for part in parts if policy == 'rand' and part in RAND_WEIGHTS]
    if len(weightings) > 1:
        raise ValueError(f'{text!r}: it has {" and ".join(weightings)}: keep one of them')
    weighting = weightings[0] if weightings else None
    said = _read_parts(text, [part for part in parts if part != weighting],
                       tuple(PARTS) if policy == 'rand' else ('mstd',))
    noise = said.get('mstd', 0.0)
    names = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
    options = dict(
        noise=math.inf if noise > 100 else noise, largest=said.get('mmax', FULL_MAGNITUDE),
        canvas=Canvas(fill=tuple(min(max(round(255 * channel), 0), 255) for channel in mean),
                      translate=int(image_size * 0.45)),
        resamplings=[Image.Resampling[name.upper()] for name in names])
    if policy == 'rand':
        return AutoAugment(*_rand_augment(text, said, weighting), **options)
    return AutoAugment(POLICIES[policy], **options)


def _rand_augment(text, said, weighting):
    """RandAugment as the arguments (choices, count, weights) of AutoAugment."""
    magnitude = said.get('m', FULL_MAGNITUDE)
    names = RAND_OPERATIONS
    if said.get('inc') or weighting == 'tweights':
        names = [f'{name}Increasing' if f'{name}Increasing' in OPERATIONS else name
                 for name in names]
    choices = [[(name, said.get('p', 0.5), magnitude)] for name in names]
    count = said.get('n', 2)
    if weighting is None:
        return choices, count, None
    weights = np.array(RAND_WEIGHTS[weighting], dtype=float)
    if count > (weights > 0).sum():
        raise ValueError(f'{text!r}: n is {count}, but {weighting} draws none of its '
                         f'{(weights > 0).sum()} operations twice: lower n')
    return choices, count, weights / weights.sum()


def _read_parts(text, parts, known):
    """Read parts such as ['m9', 'mstd0.5'] as {'m': 9, 'mstd': 0.5}."""
    said = {}
    for part in parts:
        match = re.fullmatch(r'([a-z]+?)([0-9.]{1,9}|inf)', part)
        name = match[1] if match else part
        if name not in known:
            extra = ', w0 or tweights' if 'm' in known else ''
            raise ValueError(f'{text!r}: {part!r} is an unknown part: after a dash may stand '
                             f'{", ".join(known)} and a number{extra}')
        if name in said:
            raise ValueError(f'{text!r}: {part!r} says {name} once more: keep one of the two')
        kind, low, high = PARTS[name]
        try:
            said[name] = kind(match[2])
        except (TypeError, ValueError):    # no match, or no such number
            said[name] = math.nan
        if not low <= said[name] <= high:
            raise ValueError(f'{text!r}: {part!r} must be {name} and a '
                             f'{"whole " if kind is int else ""}number of at least {low}'
                             + (f' and at most {high}' if high < math.inf else ''))
    return said


def _hint(word, known):
    nearest = difflib.get_close_matches(word, known, n=1)
    return f', did you mean {nearest[0]}?' if nearest else ''


class ColorJitter:
    """Change brightness, contrast and saturation, in random order, as torchvision does.

    Args:
        factor: each of them is multiplied by a number that is uniform in 1 - factor (at least 0)
            to 1 + factor; timm's default is 0.4.
    """

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image, rng):
        """Change a PIL RGB image with random numbers of a numpy Generator."""
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for number in rng.permutation(len(enhancers)):
            factor = rng.uniform(max(0, 1 - self.factor), 1 + self.factor)
            image = enhancers[number](image).enhance(factor)
        return image


class RandomErasing:
    """Random erasing (Zhong et al., AAAI 2020) of a normalised batch, with timm's distributions.

    Args:
        probability: of an image to be erased at all.
        mode: what comes into a box. 'const': zeros, which is the mean colour; 'rand': one colour,
            'pixel': a colour for every pixel, both of the normal distribution.
        min_area, max_area: range of a box's area as a part of the image's, before it is divided
            by the image's number of boxes.
        min_aspect: smallest height / width of a box; the largest is 1 / min_aspect.
        count: most boxes in an image; their number is drawn from 1 to count.

    Raises:
        ValueError: if there is no such mode.
    """

    def __init__(self, probability, mode='pixel', min_area=0.02, max_area=1 / 3, min_aspect=0.3,
                 count=1):
        if mode not in ('const', 'rand', 'pixel'):
            raise ValueError(f"mode must be 'const', 'rand' or 'pixel', not {mode!r}")
        self.probability = probability
        self.mode = mode
        self.min_area, self.max_area = min_area, max_area
        self.min_aspect = min_aspect
        self.count = count

    def boxes(self, height, width, rng):
        """Draw the boxes of one image, none for most: a list of (top, left, height, width).

        The area is uniform, the logarithm of height / width too. A box that is as high or as wide
        as the image is drawn again, at most ten times.
        """
        if rng.random() >= self.probability:
            return []
        found = []
        count = int(rng.integers(1, self.count + 1))
        for _ in range(count):
            for _ in range(10):
                area = rng.uniform(self.min_area, self.max_area) * height * width / count
                limit = -math.log(self.min_aspect)
                aspect = math.exp(rng.uniform(-limit, limit))
                box_height = round(math.sqrt(area * aspect))
                box_width = round(math.sqrt(area / aspect))
                if box_height < height and box_width < width:
                    found.append((int(rng.integers(height - box_height + 1)),
                                  int(rng.integers(width - box_width + 1)), box_height, box_width))
                    break
        return found

    def __call__(self, images, rng):
        """Erase boxes of a batch.

        The noise is drawn on the host too, and only for the boxes: so that it is the same on every
        device. What travels to the device are the images that are erased, a fourth of the batch
        in the official recipe.

        Args:
            images: float tensor `[B, 3, H, W]`; is left as it is.
            rng: a numpy Generator, the source of boxes and noise.

        Returns:
            A tensor like images.
        """
        batch, channels, height, width = images.shape
        drawn = [self.boxes(height, width, rng) for _ in range(batch)]
        erased = [number for number, boxes in enumerate(drawn) if boxes]
        if not erased:
            return images
        mask = np.zeros((len(erased), 1, height, width), dtype=bool)
        noise = np.zeros((len(erased), channels, height, width), dtype=np.float32)
        for row, number in enumerate(erased):
            for top, left, box_height, box_width in drawn[number]:
                box = np.s_[row, :, top:top + box_height, left:left + box_width]
                mask[box] = True
                noise[box] = self.colours((channels, box_height, box_width), rng)
        rows = paddle.to_tensor(erased)
        noise = paddle.to_tensor(noise).astype(images.dtype)     # (erased, 3, H, W)
        kept = paddle.gather(images, rows)                       # (erased, 3, H, W)
        return paddle.scatter(images, rows, paddle.where(paddle.to_tensor(mask), noise, kept))

    def colours(self, shape, rng):
        """Draw what fills a box: an array that fits the shape (3, height, width)."""
        if self.mode == 'const':
            return 0
        return rng.standard_normal(shape if self.mode == 'pixel' else (shape[0], 1, 1),
                                   dtype=np.float32)
