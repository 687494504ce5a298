"""AdamW as the recipes use it: which parameters decay, and gradient clipping."""

import math

import paddle


def is_matrix(name, parameter):
    """Whether a parameter decays in the official recipe: not 1-D, no bias, no class token."""
    return (parameter.ndim > 1 and not name.endswith('.bias')
            and name.split('.')[-1] != 'cls_token')


def build_optimizer(network, learning_rate, weight_decay, decay_all=True):
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8, decoupled decay) over what is trainable.

    Args:
        network: the bare network; names are its structured ones.
        learning_rate: a number or a Paddle LRScheduler.
        weight_decay: the decay, multiplied by the rate at every step.
        decay_all: True decays every parameter, as the Paddle repository does; False leaves out
            1-D parameters, biases and the class token, as the official recipe does.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if not p.stop_gradient]
    # Paddle asks by automatic names (linear_0.w_0), hence the detour.
    decayed = {p.name for name, p in trainable if decay_all or is_matrix(name, p)}
    return paddle.optimizer.AdamW(
        learning_rate=learning_rate, parameters=[p for _, p in trainable],
        beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=float(weight_decay),
        apply_decay_param_fun=decayed.__contains__)


@paddle.no_grad()
def clip_gradients(parameters, max_norm=0.0):
    """Scale all gradients so that their common norm is at most `max_norm`; 0 leaves them.

    Returns:
        The norm before, a float: inf or nan where any gradient is not finite. Clipping here and
        not in the optimizer lets a step with such gradients be skipped.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(paddle.add_n([gradient.square().sum() for gradient in gradients]).item())
    if max_norm and max_norm < norm < math.inf:
        for gradient in gradients:
            gradient.scale_(max_norm / norm)
    return norm
