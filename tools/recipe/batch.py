"""Prepare a batch of pixels for the network: mix, normalise, erase.

Runs on the device, which receives a batch as bytes, a quarter of the size of float32.
"""

import numpy as np
import paddle

STREAM = 1    # last element of the seed: a random stream of its own, apart from order and images


class BatchTransform:
    """Turn a training batch of pixels into the inputs of the network and the loss.

    Random numbers depend only on seed, rank, epoch and step: a resumed run repeats them, and every
    process draws its own.

    Args:
        mean, std: one number for each channel, for pixels in [0, 1].
        seed, rank: of the run and of this process.
        mixup: called with (images uint8, labels, rng) and returns (images, targets); None: no
            mixing.
        erase: called with (normalised images, rng) and returns images; None: no erasing.
    """

    def __init__(self, mean, std, seed=0, rank=0, mixup=None, erase=None):
        mean, std = np.float32(mean).reshape(3, 1, 1), np.float32(std).reshape(3, 1, 1)
        self.scale, self.shift = paddle.to_tensor(1 / (255 * std)), paddle.to_tensor(mean / std)
        self.seed, self.rank = seed, rank
        self.mixup = mixup
        self.erase = erase

    @paddle.no_grad()
    def __call__(self, images, labels, epoch, step):
        """Prepare the batch number `step` of an epoch.

        Args:
            images: uint8 `[B, 3, S, S]`.
            labels: int64 `[B]`.

        Returns:
            (images float32 `[B, 3, S, S]`, targets): the labels int64 `[B]` without mixup, else
            float32 `[B, num_classes]`.
        """
        # Always five numbers: NumPy pads seeds with zeros, so (s, e, 5) equals (s, e, 5, 0).
        rng = np.random.default_rng((self.seed, epoch, step, self.rank, STREAM))
        if self.mixup:
            images, labels = self.mixup(images, labels, rng)
        # The same two float32 operations as in data.transforms.normalise, for equal bits.
        images = images.astype('float32') * self.scale - self.shift
        if self.erase:
            images = self.erase(images, rng)
        return images, labels
