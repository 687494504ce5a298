"""What happens to a batch of pixels on its way into the network: mix, normalise, erase.

Runs on the device, where a batch arrives as bytes: a quarter of what float32 would take in
memory and on the way to a card.
"""

import numpy as np
import paddle

STREAM = 1    # keeps these draws apart from those of orders and images, which end in other numbers


class BatchTransform:
    """Turns a training batch of pixels into what the network and the loss take.

    All random numbers follow from the seed and the batch's place in the run, so a resumed run
    repeats them, and every process mixes its own batch in its own way.

    Args:
        mean, std: one number a channel, for pixels in [0, 1].
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
            (images float32 `[B, 3, S, S]`, targets): the labels `[B]` where nothing was to be
            mixed, else float32 `[B, num_classes]`.
        """
        # Never shorter: NumPy pads seeds with zeros, so (seed, epoch, 5) is (seed, epoch, 5, 0).
        rng = np.random.default_rng((self.seed, epoch, step, self.rank, STREAM))
        if self.mixup:
            images, labels = self.mixup(images, labels, rng)
        # The same two float32 operations as data.transforms.normalise, so the same bits.
        images = images.astype('float32') * self.scale - self.shift
        if self.erase:
            images = self.erase(images, rng)
        return images, labels
