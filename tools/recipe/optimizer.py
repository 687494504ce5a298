"""AdamW as the recipes use it: which parameters decay, and gradient clipping."""

import paddle


def is_matrix(name, parameter):
    """Whether a parameter decays in the official recipe: not 1-D, no bias, no class token."""
    return (parameter.ndim > 1 and not name.endswith('.bias')
            and name.split('.')[-1] != 'cls_token')


def build_optimizer(network, learning_rate, weight_decay, decay_all=True, clip_norm=1.0):
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8, decoupled decay) over what is trainable.

    Args:
        network: the bare network; names are its structured ones.
        learning_rate: a number or a Paddle LRScheduler.
        weight_decay: the decay, multiplied by the rate at every step.
        decay_all: True decays every parameter, as the Paddle repository does; False leaves out
            1-D parameters, biases and the class token, as the official recipe does.
        clip_norm: the global gradient norm is cut to this; 0 leaves gradients as they are.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if not p.stop_gradient]
    # Paddle asks by automatic names (linear_0.w_0), hence the detour.
    decayed = {p.name for name, p in trainable if decay_all or is_matrix(name, p)}
    clip = paddle.nn.ClipGradByGlobalNorm(clip_norm) if clip_norm else None
    return paddle.optimizer.AdamW(
        learning_rate=learning_rate, parameters=[p for _, p in trainable],
        beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=float(weight_decay),
        apply_decay_param_fun=decayed.__contains__, grad_clip=clip)
