"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019), as timm has them.

Both mix a batch with itself in reverse order. Mixup adds two images with the weights lambda and
1 - lambda; CutMix puts a box of one image into the other, and lambda is what is left of its area.
The labels are mixed alike. Works on pixels before they are normalised, and rounds as pixels are.
"""

import numpy as np
import paddle
from paddle.nn import functional as F

MODES = ('batch', 'pair', 'elem')
ROUNDING = 2.0 ** 23    # float32 numbers of this size have no fraction


class Mixup:
    """Mixes a batch of images and their labels.

    Args:
        mixup_alpha: lambda of mixup is drawn from Beta(alpha, alpha); 0: no mixup.
        cutmix_alpha: the same for CutMix, whose box takes sqrt(1 - lambda) of both sides around
            a uniform centre, and is cut off at the image's edges; 0: no CutMix.
        cutmix_minmax: least and largest share of a side for the boxes' sides, drawn by themselves
            and placed inside the image; used instead of cutmix_alpha if given.
        probability: of mixing at all.
        switch_probability: of CutMix, where both are on.
        mode: what a draw is for: the whole 'batch', a 'pair' of images that are each other's
            partner, or every image by itself ('elem').
        correct_lambda: make lambda the share of the area that the box has left, not the one drawn.
        smoothing: share of every label spread over all classes.
        num_classes: width of the targets.

    Raises:
        ValueError: for an unknown mode, or where there is nothing to mix with.
    """

    def __init__(self, mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_minmax=(), probability=1.0,
                 switch_probability=0.5, mode='batch', correct_lambda=True, smoothing=0.1,
                 num_classes=1000):
        if mode not in MODES:
            raise ValueError(f'mode must be one of {", ".join(MODES)}, not {mode!r}')
        if cutmix_minmax:
            cutmix_alpha, correct_lambda = 1.0, True
        if not (mixup_alpha or cutmix_alpha):
            raise ValueError('mixup_alpha and cutmix_alpha are both 0: there is nothing to do')
        self.mixup_alpha = mixup_alpha or cutmix_alpha    # never used where it was 0
        self.cutmix_alpha = cutmix_alpha or mixup_alpha
        self.cutmix_minmax = cutmix_minmax
        self.probability = probability
        self.cutmix_share = (0.0 if not cutmix_alpha else 1.0 if not mixup_alpha
                             else switch_probability)
        self.mode = mode
        self.correct_lambda = correct_lambda
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
        shares, is_cutmix, boxes = self.draw(len(labels), images.shape[2:], rng)
        return (mix_images(images, shares, is_cutmix, boxes),
                mix_labels(labels, shares, self.num_classes, self.smoothing))

    def draw(self, batch_size, image_size, rng):
        """What is to be done with each image.

        Returns:
            (shares, is_cutmix, boxes): lambda, float32 `[B]`, 1 where nothing is mixed; whether
            it is CutMix, bool `[B]`; its box, int `[B, 4]` as top, bottom, left, right.
        """
        images = np.arange(batch_size)
        draw_of_image = {'batch': np.zeros_like(images), 'elem': images,
                         'pair': np.minimum(images, images[::-1])}[self.mode]
        count = draw_of_image.max() + 1
        is_mixed = rng.random(count) < self.probability
        is_cutmix = rng.random(count) < self.cutmix_share
        alpha = np.where(is_cutmix, self.cutmix_alpha, self.mixup_alpha)
        shares = np.where(is_mixed, rng.beta(alpha, alpha), 1).astype('float32')
        is_cutmix &= is_mixed
        boxes = self.draw_boxes(shares, image_size, rng)
        if self.correct_lambda:
            top, bottom, left, right = boxes.T
            left_over = 1 - (bottom - top) * (right - left) / np.prod(image_size)
            shares = np.where(is_cutmix, left_over, shares).astype('float32')
        return shares[draw_of_image], is_cutmix[draw_of_image], boxes[draw_of_image]

    def draw_boxes(self, shares, image_size, rng):
        """A box for each lambda, int `[len(shares), 4]`: top, bottom, left, right."""
        edges = []
        for side in image_size:
            if self.cutmix_minmax:
                low, high = (int(side * share) for share in self.cutmix_minmax)
                lengths = rng.integers(low, high, len(shares))
                start = rng.integers(0, side - lengths)
                edges += [start, start + lengths]
            else:
                half = (side * np.sqrt(1 - shares.astype('float64'))).astype(int) // 2
                centre = rng.integers(0, side, len(shares))
                edges += [np.clip(centre - half, 0, side), np.clip(centre + half, 0, side)]
        return np.stack(edges, axis=1)


def mix_images(images, shares, is_cutmix, boxes):
    """Mix images `[B, 3, H, W]` with their reverse, as `Mixup.draw` says; returns float32.

    Mixup is addition in the whole image, and CutMix is addition with the weights 0 and 1 in its
    box: so one sum does both, also where a batch has some of each.
    """
    height, width = images.shape[2:]
    whole = np.array([0, height, 0, width])
    top, bottom, left, right = np.where(is_cutmix[:, None], boxes, whole).T[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= top) & (rows < bottom)                              # (B, H)
    in_columns = (columns >= left) & (columns < right)                     # (B, W)
    inside = (_as_weights(in_rows).reshape([0, 1, height, 1])
              * _as_weights(in_columns).reshape([0, 1, 1, width]))         # (B, 1, H, W)
    own = _as_weights(np.where(is_cutmix, 0, shares)).reshape([-1, 1, 1, 1])
    other = _as_weights(np.where(is_cutmix, 1, 1 - shares)).reshape([-1, 1, 1, 1])
    images = images.astype('float32')
    mixed = (images * (inside * own + (1 - inside))
             + images.flip([0]) * (inside * other))                        # (B, 3, H, W)
    # paddle.round takes halves up in 2.6 and to the even neighbour in 3.3, as NumPy does.
    return (mixed + ROUNDING) - ROUNDING


def mix_labels(labels, shares, num_classes, smoothing=0.0):
    """Targets float32 `[B, num_classes]`: smoothed labels `[B]`, mixed with their reverse."""
    spread = smoothing / num_classes
    hot = F.one_hot(labels, num_classes)                                   # (B, num_classes)
    targets = hot * (1 - smoothing + spread) + (1 - hot) * spread
    own, other = (_as_weights(part).reshape([-1, 1]) for part in (shares, 1 - shares))
    return targets * own + targets.flip([0]) * other


def _as_weights(array):
    return paddle.to_tensor(np.asarray(array, dtype='float32'))
