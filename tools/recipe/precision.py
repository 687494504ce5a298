"""Mixed precision: forward in float16 or bfloat16, and the loss scale that float16 needs.

It works on GPUs only; on a CPU Paddle silently ignores it. It was not run on a GPU here: tests on
a CPU cover the arithmetic of the loss scale, names and dtypes, and checkpoints.
"""

import math

import paddle
from paddle import nn

HALF = (paddle.float16, paddle.bfloat16)


class LossScaleError(ValueError):
    """A checkpoint without a valid loss scale: one line naming the file."""

    exit_code = 2


class LossScale:
    """The factor on the loss that keeps small float16 gradients from becoming 0.

    Dynamic (Micikevicius et al., ICLR 2018, section 3.2): halved after a step with gradients that
    are not finite, doubled after `growth_steps` finite steps in a row. Gradients are equal on all
    ranks, and so are the scales.

    Args:
        value: initial scale; 1 for float32 and bfloat16.
        dynamic: whether `update` changes it.
        growth_steps: finite steps before the scale doubles.
    """

    def __init__(self, value=2.0 ** 16, dynamic=True, growth_steps=2000):
        self.value = value
        self.dynamic = dynamic
        self.growth_steps = growth_steps
        self.good_steps = 0    # finite steps since the scale last changed

    def update(self, finite):
        """Adapt the scale after a step whose gradients were finite or not."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)    # below 1 it would hide actual overflows
        elif self.good_steps == self.growth_steps:
            self.value, self.good_steps = self.value * 2, 0

    def state(self):
        """The state for a checkpoint, a dict of numbers."""
        return dict(value=self.value, good_steps=self.good_steps)

    def restore(self, state, path):
        """Restore a `state()` read from the checkpoint `path`; a scale not dynamic stays.

        Raises:
            LossScaleError: for an invalid state.
        """
        if not self.dynamic:
            return
        try:
            value, good_steps = float(state['value']), int(state['good_steps'])
            if not (1 <= value < math.inf and 0 <= good_steps < self.growth_steps):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LossScaleError(f'{path}: holds no state of a loss scale but {state!r}: start '
                                 'afresh with TRAIN.RESUME=false') from error
        self.value, self.good_steps = value, good_steps


class Precision:
    """The precision of a run: float32, or one of Paddle's levels of mixed precision.

    Args:
        network, optimizer: changed in place by 'O2': weights become `dtype` (in float16 except
            norms), and the optimizer keeps float32 master weights.
        level: 'none', 'O1' (operations on Paddle's white list run in `dtype`) or 'O2' (all except
            those on its black list).
        dtype: 'float16' or 'bfloat16', which has float32's range and needs no loss scale.
    """

    def __init__(self, network, optimizer, level='none', dtype='float16'):
        self.level, self.dtype = level, dtype
        scaled = level != 'none' and dtype == 'float16'
        self.loss_scale = LossScale() if scaled else LossScale(1.0, dynamic=False)
        self.frozen = {}
        if level == 'O2':
            # Frozen parameters have no master weights: keep their exact values.
            self.frozen = {name: parameter.clone() for name, parameter
                           in network.named_parameters() if parameter.stop_gradient}
            paddle.amp.decorate(network, optimizer, level='O2', dtype=dtype, master_weight=True,
                                master_grad=True)

    def wrap(self, network):
        """The network to call in training; in float32 the network itself."""
        return network if self.level == 'none' else InMixedPrecision(network, self)

    def autocast(self):
        """The auto_cast context of a forward."""
        return paddle.amp.auto_cast(enable=True, level=self.level, dtype=self.dtype)

    def scaled(self, loss):
        """The loss to call backward() on; clip_gradients divides by the scale."""
        return loss if self.loss_scale.value == 1 else loss * self.loss_scale.value

    def float32_state(self, network, optimizer):
        """The network's state dict with float32 master weights in place of half precision ones."""
        state = network.state_dict()
        if self.level != 'O2':
            return state
        masters = optimizer.state_dict().get('master_weights', {})
        for name, tensor in state.items():
            if tensor.dtype in HALF:
                exact = self.frozen.get(name, masters.get(tensor.name))
                state[name] = tensor.astype('float32') if exact is None else exact
        return state


class InMixedPrecision(nn.Layer):
    """A network whose forward runs in mixed precision and returns float32 logits.

    Images `[B, 3, S, S]` to logits `[B, num_classes]`, or a tuple of two.
    """

    def __init__(self, network, precision):
        super().__init__()
        self.network = network
        self.precision = precision

    def forward(self, images):
        with self.precision.autocast():
            outputs = self.network(images)
        if isinstance(outputs, (tuple, list)):    # of two heads
            return tuple(output.astype('float32') for output in outputs)
        return outputs.astype('float32')
