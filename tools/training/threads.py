"""Computes the parts of a batch at the same time, each in a thread of this process.

Many operations use one thread only: Paddle's elementwise kernels, and NumPy in fast.py. Both let
other threads of Python run meanwhile. Unlike a process for each core, threads share weights,
optimizer states and libraries, and send no gradients.
"""

import copy
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import paddle

from system import paddle_private, start
from training import fast

# Of each thread in a step. With fewer, what only one thread of Python can do at a time takes longer
# than threads save.
LEAST_PIXELS = 3 * 224 ** 2


class Threads:
    """A network and copies of it that share its weights and compute at the same time.

    It can be called like a network without gradients: images `[B, 3, S, S]` to logits.

    Args:
        network: the network; for training after fast.speed_up, which makes the draws of dropout
            and drop path independent of how a batch is divided.
        count: number of threads, 2 or more.
    """

    def __init__(self, network, count):
        self.network = network
        self.copies = [copy.deepcopy(network) for _ in range(count - 1)]
        self.pool = ThreadPoolExecutor(len(self.copies))

    @property
    def training(self):
        return self.network.training

    def train(self):
        """Set training mode, as that of a network."""
        for one in (self.network, *self.copies):
            one.train()

    def eval(self):
        """Set evaluation mode, as that of a network."""
        for one in (self.network, *self.copies):
            one.eval()

    def __call__(self, images):
        return paddle.concat(self._run(lambda network, share, part: network(part), images))

    def gradients(self, function, seed, *batch):
        """Call function(network, share, *part) for equal parts of a batch; return its results.

        share is the part's number of images divided by the batch's. The gradients that the calls
        leave in the parameters of the copies are added to those of the network.

        Args:
            seed: of the draws of dropout and drop path.
            batch: tensors `[B, ...]`.
        """
        results = self._run(function, *batch, seed=seed)
        with paddle.no_grad():
            for one in self.copies:
                for parameter, total in zip(one.parameters(), self.network.parameters()):
                    if parameter.grad is not None:
                        total.grad.add_(parameter.grad)
                        parameter.clear_gradient(set_to_zero=False)
        return results

    def _run(self, function, *batch, seed=None):
        self._share_weights()
        images, networks = len(batch[0]), [self.network, *self.copies]
        bounds = np.linspace(0, images, min(len(networks), images) + 1).astype(int).tolist()

        def compute(network, first, last):
            with paddle.set_grad_enabled(seed is not None), fast.draw_for(seed, first):
                return function(network, (last - first) / images,
                                *(tensor[first:last] for tensor in batch))

        paddle_private.set_num_threads(1)    # in each of these
        others = [self.pool.submit(compute, *part)
                  for part in zip(self.copies, bounds[1:], bounds[2:])]
        try:
            results = [compute(self.network, *bounds[:2])]
        finally:
            wait(others)
            paddle_private.set_num_threads(start.threads())
        return results + [other.result() for other in others]

    def _share_weights(self):
        # For each batch: what loads weights may give the parameters of the network other memory.
        tensors = self.network.parameters() + self.network.buffers()
        for one in self.copies:
            for tensor, other in zip(one.parameters() + one.buffers(), tensors):
                paddle_private.share_memory(tensor, other)
