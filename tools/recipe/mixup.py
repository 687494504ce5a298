"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), as timm has them.

Both mix a batch with itself in reverse order. Mixup adds two images with the weights lambda and
1 - lambda; CutMix puts a box of one image into the other, and lambda is what is left of its area.
The labels are mixed alike. Works on pixels before they are normalised, and rounds as pixels are.
"""

import math

import numpy as np
import paddle
from paddle.nn import functional as F

ROUNDING = 2.0 ** 23    # float32 numbers of this size have no fraction
CUTMIX_SHARE = 0.5      # of the batches, where both are on


class Mixup:
    """Mixes a batch of images and their labels.

    Args:
        mixup_alpha: lambda of mixup is drawn from Beta(alpha, alpha); 0: no mixup.
        cutmix_alpha: the same for CutMix, whose box takes sqrt(1 - lambda) of both sides around
            a uniform centre, and is cut off at the image's edges; 0: no CutMix.
        probability: of mixing at all.
        smoothing: share of every label spread over all classes.
        num_classes: width of the targets.

    Raises:
        ValueError: where there is nothing to mix with.
    """

    def __init__(self, mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0, smoothing=0.1,
                 num_classes=1000):
        if not (mixup_alpha or cutmix_alpha):
            raise ValueError('mixup_alpha and cutmix_alpha are both 0: there is nothing to do')
        self.mixup_alpha = mixup_alpha or cutmix_alpha    # never used where it was 0
        self.cutmix_alpha = cutmix_alpha or mixup_alpha
        self.probability = probability
        self.cutmix_share = 0.0 if not cutmix_alpha else 1.0 if not mixup_alpha else CUTMIX_SHARE
        self.smoothing = smoothing
        self.num_classes = num_classes

    def __call__(self, images, labels, rng):
        """Mix one batch.

        Args:
            images: uint8 `[B, 3, H, W]`. The middle one of an odd number is its own partner.
            labels: int64 `[B]`.
            rng: the numpy Generator that every draw comes from.

        Returns:
            (images float32 `[B, 3, H, W]` of whole numbers from 0 to 255, targets float32
            `[B, num_classes]` that sum to 1).
        """
        share, box = self.draw(images.shape[2:], rng)
        return (mix_images(images, share, box),
                mix_labels(labels, share, self.num_classes, self.smoothing))

    def draw(self, image_size, rng):
        """What is to be done with the images, which share one draw.

        Returns:
            (share, box): lambda, float32, 1 where nothing is mixed; and CutMix's box as (top,
            bottom, left, right), None where it is not CutMix.
        """
        # Everything is drawn, whatever comes of it: what is drawn next does not depend on it.
        is_mixed, is_cutmix = rng.random() < self.probability, rng.random() < self.cutmix_share
        alpha = self.cutmix_alpha if is_cutmix else self.mixup_alpha
        share = np.float32(rng.beta(alpha, alpha))
        if not is_mixed:
            share = np.float32(1)
        box = []
        for side in image_size:
            half = int(side * math.sqrt(1 - float(share))) // 2
            centre = int(rng.integers(0, side))
            box += [max(centre - half, 0), min(centre + half, side)]
        if not (is_mixed and is_cutmix):
            return share, None
        top, bottom, left, right = box
        # Not the lambda that was drawn, but the share of the area that the box has left.
        return np.float32(1 - (bottom - top) * (right - left) / math.prod(image_size)), box


def mix_images(images, share, box=None):
    """Mix images `[B, 3, H, W]` with their reverse, as `Mixup.draw` says; returns float32."""
    images = images.astype('float32')
    partners = images.flip([0])
    if box is not None:
        top, bottom, left, right = box
        inside = np.zeros((1, 1, *images.shape[2:]), dtype=bool)           # (1, 1, H, W)
        inside[..., top:bottom, left:right] = True
        return paddle.where(paddle.to_tensor(inside), partners, images)
    mixed = images * float(share) + partners * float(1 - share)            # (B, 3, H, W)
    # paddle.round takes halves up in 2.6 and to the even neighbour in 3.3, as NumPy does.
    return (mixed + ROUNDING) - ROUNDING


def mix_labels(labels, share, num_classes, smoothing=0.0):
    """Targets float32 `[B, num_classes]`: smoothed labels `[B]`, mixed with their reverse."""
    spread = smoothing / num_classes
    hot = F.one_hot(labels, num_classes)                                   # (B, num_classes)
    targets = hot * (1 - smoothing + spread) + (1 - hot) * spread
    return targets * float(share) + targets.flip([0]) * float(1 - share)
