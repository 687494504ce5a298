"""Mixed precision: a forward in float16 or bfloat16, and the loss scale that float16 needs.

It works on GPUs only: Paddle ignores it on a CPU, silently, and has no kernels for it there. So
what is below has been tested as far as a CPU shows it (the arithmetic of the loss scale, names
and dtypes, checkpoints) and was not run on a GPU here.
"""

import math

import paddle
from paddle import nn

HALF = (paddle.float16, paddle.bfloat16)


class LossScaleError(ValueError):
    """A checkpoint without a usable loss scale: one line naming the file."""

    exit_code = 2


class LossScale:
    """The factor on the loss that keeps small float16 gradients from becoming 0.

    Dynamic (Micikevicius et al., ICLR 2018, section 3.2): a step whose gradients are not finite
    halves it, `growth_steps` good ones in a row double it. All processes see the same gradients,
    so their scales stay equal.

    Args:
        value: where it starts; 1 for the precisions that need none.
        dynamic: whether it moves.
    """

    def __init__(self, value=2.0 ** 16, dynamic=True, growth_steps=2000):
        self.value = value
        self.dynamic = dynamic
        self.growth_steps = growth_steps
        self.good_steps = 0    # in a row, since the scale last moved

    def update(self, finite):
        """Move on after a step; `finite` says whether its gradients were."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)    # a scale below 1 would hide a real fault
        elif self.good_steps == self.growth_steps:
            self.value, self.good_steps = self.value * 2, 0

    def state(self):
        """What a checkpoint must hold, of plain numbers."""
        return dict(value=self.value, good_steps=self.good_steps)

    def restore(self, state, path):
        """Go on from the `state()` that stood in the file `path`; without `dynamic` stay at 1.

        Raises:
            LossScaleError: for a state that is none.
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
    """How a run computes: float32, or mixed precision of one of Paddle's levels.

    Args:
        network, optimizer: 'O2' turns the network's weights into `dtype` (norms excepted in
            float16) and has the optimizer keep float32 copies of them, here in place.
        level: 'none', 'O1' (the operations on Paddle's white list run in `dtype`) or 'O2' (all
            do but those on its short black list).
        dtype: 'float16' or 'bfloat16', which has float32's range and needs no loss scale.
    """

    def __init__(self, network, optimizer, level='none', dtype='float16'):
        self.level, self.dtype = level, dtype
        scaled = level != 'none' and dtype == 'float16'
        self.loss_scale = LossScale() if scaled else LossScale(1.0, dynamic=False)
        self.frozen = {}
        if level == 'O2':
            # Half precision would round what no master weight remembers.
            self.frozen = {name: parameter.clone() for name, parameter
                           in network.named_parameters() if parameter.stop_gradient}
            paddle.amp.decorate(network, optimizer, level='O2', dtype=dtype, master_weight=True,
                                master_grad=True)

    def wrap(self, network):
        """The network as it is to be called; in float32 the network itself."""
        return network if self.level == 'none' else InMixedPrecision(network, self)

    def autocast(self):
        """The context of a forward."""
        return paddle.amp.auto_cast(enable=True, level=self.level, dtype=self.dtype)

    def scaled(self, loss):
        """The loss to call backward() on; clip_gradients takes the scale out again."""
        return loss if self.loss_scale.value == 1 else loss * self.loss_scale.value

    def float32_state(self, network, optimizer):
        """The network's state dict in float32: the weights that the optimizer goes on from."""
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
    """A network whose forward runs in mixed precision and gives float32."""

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
