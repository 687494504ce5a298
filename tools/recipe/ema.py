"""Exponential moving average (EMA) of a network's weights."""

import contextlib

import numpy as np
import paddle


class Ema:
    """Averages of all tensors in a network's state dict.

    Each update sets average = decay * average + (1 - decay) * value for floating-point tensors,
    frozen ones included, and copies others. Averages are float32 also for half precision weights,
    in which the small updates of a decay of 0.9999 would be lost.

    Args:
        network: the unwrapped network; the averages start from its current values.
        decay: below 1; an average covers about 1 / (1 - decay) updates.
        warmup: use min(decay, (1 + t) / (10 + t)) in update t, counted from 1. Otherwise the
            initial weights dominate in runs shorter than 1 / (1 - decay) updates.

    Attributes:
        average: {name: tensor}.
        updates: number of updates.
    """

    def __init__(self, network, decay=0.9999, warmup=True):
        self.network = network
        self.decay = decay
        self.warmup = warmup
        self.start()

    @paddle.no_grad()
    def start(self):
        """Restart from the network's current values."""
        self.updates = 0
        # Cloned first: astype may return the same tensor, which the optimizer changes.
        self.average = {
            name: value.clone().astype('float32' if _is_floating(value) else value.dtype)
            for name, value in self.network.state_dict().items()}

    @paddle.no_grad()
    def update(self, state=None):
        """Update the averages; to be called after every optimizer step.

        Args:
            state: {name: tensor} to use instead of the network's state dict, e.g. the float32
                weights of mixed precision.
        """
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        for name, value in (state or self.network.state_dict()).items():
            if _is_floating(value):
                # average + (1 - decay) * (value - average) keeps frozen values bit by bit.
                self.average[name].lerp_(value.detach().astype('float32'), 1 - decay)
            else:
                paddle.assign(value, self.average[name])

    @contextlib.contextmanager
    def in_network(self):
        """Inside `with`, the network has the averages; afterwards its own values are restored."""
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
        """The averages and `updates` as {name: ndarray}."""
        return {'updates': np.int64(self.updates),
                **{name: value.numpy() for name, value in self.average.items()}}

    def load_state_dict(self, state):
        """Restore the result of `state_dict`.

        Raises:
            ValueError: names tensors that are missing, unexpected or of another shape.
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
