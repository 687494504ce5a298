"""An exponential moving average of a network's weights, which often scores better than they do."""

import contextlib

import numpy as np
import paddle


class Ema:
    """Averages of everything in a network's state dict.

    After each update, average = decay * average + (1 - decay) * value for floating numbers,
    frozen ones included; anything else is copied. Averages are float32, whatever the weights are:
    half precision would lose what a decay of 0.9999 adds.

    Args:
        network: the bare network; the averages start as its present values.
        decay: below 1. The larger, the longer back an average reaches: about 1 / (1 - decay)
            updates.
        warmup: use min(decay, (1 + t) / (10 + t)) in update t, counted from 1. Without it the
            averages of a run shorter than 1 / (1 - decay) updates are little more than the
            weights at its start.

    Attributes:
        average: {name: tensor}.
        updates: how many there were.
    """

    def __init__(self, network, decay=0.9999, warmup=True):
        self.network = network
        self.decay = decay
        self.warmup = warmup
        self.start()

    @paddle.no_grad()
    def start(self):
        """Begin anew, with the network's present values."""
        self.updates = 0
        # Cloned first: astype may hand back the tensor that the optimizer goes on changing.
        self.average = {
            name: value.clone().astype('float32' if _is_floating(value) else value.dtype)
            for name, value in self.network.state_dict().items()}

    @paddle.no_grad()
    def update(self, state=None):
        """Take in the network's values; to be called after every step of the optimizer.

        Args:
            state: these values, where there are more exact ones than the network's own.
        """
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        for name, value in (state or self.network.state_dict()).items():
            if _is_floating(value):
                # average + (1 - decay) * (value - average): a frozen value stays, to the bit.
                self.average[name].lerp_(value.detach().astype('float32'), 1 - decay)
            else:
                paddle.assign(value, self.average[name])

    @contextlib.contextmanager
    def in_network(self):
        """Inside `with`, the network holds the averages; then, come what may, its own values."""
        own = {}
        try:
            with paddle.no_grad():
                for name, value in self.network.state_dict().items():
                    own[name] = value, value.clone()
                    paddle.assign(self.average[name].astype(value.dtype), value)
            yield
        finally:
            with paddle.no_grad():
                for value, before in own.values():
                    paddle.assign(before, value)

    def state_dict(self):
        """All that `load_state_dict` needs to go on: {name: ndarray}, `updates` among them."""
        return {'updates': np.int64(self.updates),
                **{name: value.numpy() for name, value in self.average.items()}}

    def load_state_dict(self, state):
        """Put back what `state_dict` gave.

        Raises:
            ValueError: naming what is missing, unexpected or of another shape.
        """
        shapes = {name: tuple(value.shape) for name, value in self.average.items()}
        shapes['updates'] = ()
        wrong = sorted(set(shapes) ^ set(state)) or sorted(
            name for name in shapes if shapes[name] != state[name].shape)
        if wrong:
            raise ValueError(f'averages of another network ({", ".join(wrong[:5])})')
        self.updates = int(state['updates'])
        for name, value in self.average.items():
            value.set_value(state[name])


def _is_floating(value):
    return paddle.is_floating_point(value)
