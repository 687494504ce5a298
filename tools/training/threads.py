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
LEAST_PIXELS = 2 * 224 ** 2


def work_here():
    """Return whether copies of a network can share its weights."""
    return paddle_private.share_memory(paddle.zeros([1]), paddle.zeros([1]))


class Threads:
    """A network and copies of it that share its weights and compute at the same time.

    It can be called like a network without gradients: images `[B, 3, S, S]` to logits.

    Args:
        network: the network; for training after fast.speed_up, which makes the draws of dropout
            and drop path independent of how a batch is divided.
        count: number of threads, 2 or more.
    """

    def __init__(self, network, count):
        self.networks, self.tensors = [], []
        for number in range(count):
            one = copy.deepcopy(network) if number else network
            self.networks.append(one)
            self.tensors.append(one.parameters() + one.buffers())
            self._share_weights()    # before the next copy: frees the memory of this one
        self.pool = ThreadPoolExecutor(count - 1)
        self._claim_memory()

    @property
    def training(self):
        return self.networks[0].training

    def train(self):
        """Set training mode, as that of a network."""
        for one in self.networks:
            one.train()

    def eval(self):
        """Set evaluation mode, as that of a network."""
        for one in self.networks:
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
        self._at_once(self._add_gradients, range(len(self.networks)))
        return results

    def _run(self, function, *batch, seed=None):
        self._share_weights()    # what loads weights may give the network's parameters other memory
        images = len(batch[0])
        bounds = np.linspace(0, images, min(len(self.networks), images) + 1).astype(int).tolist()

        def compute(network, first, last):
            with paddle.set_grad_enabled(seed is not None), fast.draw_for(seed, first):
                return function(network, (last - first) / images,
                                *(tensor[first:last] for tensor in batch))

        return self._at_once(compute, self.networks, bounds, bounds[1:])

    def _claim_memory(self):
        """Compute the gradients of one image in each thread, and forget them.

        This makes MKL allocate the buffers that it keeps. If the first step did, they would end up
        among its activations, and those of later steps would no longer fit where they were.
        """
        was_training, side = self.training, self.networks[0].img_size
        self.eval()    # draws no random numbers
        images = paddle.zeros([len(self.networks), 3, side, side])
        self.gradients(lambda network, share, part: network(part).sum().backward(), 0, images)
        for parameter in self.networks[0].parameters():
            parameter.clear_gradient(set_to_zero=False)
        if was_training:
            self.train()

    def _share_weights(self):
        for tensor, *others in zip(*self.tensors):
            for other in others:
                paddle_private.share_memory(other, tensor)

    @paddle.no_grad()
    def _add_gradients(self, number):
        """Add the gradients of the copies; each thread does so for every n-th parameter."""
        for total, *others in [*zip(*self.tensors)][number::len(self.networks)]:
            for other in others:
                if other.grad is not None:
                    total.grad.add_(other.grad)
                    other.clear_gradient(set_to_zero=False)

    def _at_once(self, function, *arguments):
        """[function(*these) for these in zip(*arguments)], in this thread and those of the pool."""
        first, *others = zip(*arguments)
        paddle_private.set_num_threads(1)    # in each of these
        others = [self.pool.submit(function, *these) for these in others]
        try:
            results = [function(*first)]
        finally:
            wait(others)
            paddle_private.set_num_threads(start.threads())
        return results + [other.result() for other in others]
