"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), as implemented in timm.

Both mix a batch with itself in reverse order. Mixup adds two images with the weights lambda and
1 - lambda; CutMix replaces a box of one image by that of the other, and lambda is the remaining
share of the area. Labels are mixed with the same weights. Works on pixels before normalisation and
rounds to whole numbers.
"""

import math

import numpy as np
import paddle
from paddle.nn import functional as F

ROUNDING = 2.0 ** 23    # float32 numbers of this size have no fraction
CUTMIX_SHARE = 0.5      # probability of CutMix if both are enabled


class Mixup:
    """Mix a batch of images and their labels.

    Args:
        mixup_alpha: lambda of mixup is drawn from Beta(alpha, alpha); 0: no mixup.
        cutmix_alpha: the same for CutMix. Its box has sqrt(1 - lambda) of both sides and a uniform
            centre, and is clipped at the image's edges; 0: no CutMix.
        probability: of mixing a batch.
        smoothing: share of every label that is spread evenly over all classes.
        num_classes: width of the targets.

    Raises:
        ValueError: if both alphas are 0.
    """

    def __init__(self, mixup_alpha=0.8, cutmix_alpha=1.0, probability=1.0, smoothing=0.1,
                 num_classes=1000):
        if not (mixup_alpha or cutmix_alpha):
            raise ValueError('mixup_alpha and cutmix_alpha are both 0: there is nothing to do')
        self.mixup_alpha = mixup_alpha or cutmix_alpha    # not used if it was 0
        self.cutmix_alpha = cutmix_alpha or mixup_alpha
        self.probability = probability
        self.cutmix_share = 0.0 if not cutmix_alpha else 1.0 if not mixup_alpha else CUTMIX_SHARE
        self.smoothing = smoothing
        self.num_classes = num_classes

    def __call__(self, images, labels, rng):
        """Mix one batch.

        Args:
            images: uint8 `[B, 3, H, W]`. In an odd batch the middle image is mixed with itself.
            labels: int64 `[B]`.
            rng: the NumPy Generator of all random numbers.

        Returns:
            (images float32 `[B, 3, H, W]` of whole numbers from 0 to 255, targets float32
            `[B, num_classes]` that sum to 1).
        """
        share, box = self.draw(images.shape[2:], rng)
        return (mix_images(images, share, box),
                mix_labels(labels, share, self.num_classes, self.smoothing))

    def draw(self, image_size, rng):
        """Draw the parameters of one batch.

        Args:
            image_size: (height, width) in pixels.

        Returns:
            (share, box): lambda as float32, 1 if the batch is not mixed; CutMix's box in pixels
            as (top, bottom, left, right), else None.
        """
        # All numbers are always drawn, so that later draws don't depend on the outcome.
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
        # Lambda is the area outside the clipped box, not the drawn one.
        return np.float32(1 - (bottom - top) * (right - left) / math.prod(image_size)), box


def mix_images(images, share, box=None):
    """Mix images `[B, 3, H, W]` with their reverse; share and box are those of `Mixup.draw`.

    Returns float32 images of the same shape, whole numbers from 0 to 255.
    """
    images = images.astype('float32')
    partners = images.flip([0])
    if box is not None:
        top, bottom, left, right = box
        inside = np.zeros((1, 1, *images.shape[2:]), dtype=bool)           # (1, 1, H, W)
        inside[..., top:bottom, left:right] = True
        return paddle.where(paddle.to_tensor(inside), partners, images)
    mixed = images * float(share) + partners * float(1 - share)            # (B, 3, H, W)
    # Rounds half to even in all versions; paddle.round rounds half up in Paddle 2.6.
    return (mixed + ROUNDING) - ROUNDING


def mix_labels(labels, share, num_classes, smoothing=0.0):
    """Targets float32 `[B, num_classes]`: smoothed labels `[B]`, mixed with their reverse."""
    spread = smoothing / num_classes
    one_hot = F.one_hot(labels, num_classes)                               # (B, num_classes)
    targets = one_hot * (1 - smoothing + spread) + (1 - one_hot) * spread
    return targets * float(share) + targets.flip([0]) * float(1 - share)
