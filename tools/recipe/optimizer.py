"""Optimizers of the recipes: weight decay and learning rate by parameter, gradient clipping."""

import math

import paddle

from recipe.freeze import lies_in


def decays(network):
    """The names of the parameters with weight decay in the official recipes.

    Excluded are biases, parameters with one axis, and the network's `no_weight_decay`.
    """
    return {name for name, parameter in network.named_parameters()
            if parameter.ndim > 1 and not name.endswith('.bias')
            and name not in network.no_weight_decay}


def rate_scales(network, backbone_scale=1.0, layer_decay=1.0):
    """The learning rate factor of every parameter.

    Args:
        network: an ImageClassifier.
        backbone_scale: factor of all parameters outside the heads (0.01 in the official transfer
            recipe).
        layer_decay: ratio of the factors of a layer and the one above it (BEiT, Bao et al., ICLR
            2022, appendix): 1 for the last norm and the heads, `layer_decay` for the last block,
            the smallest for the embeddings below the first block.

    Returns:
        dict: {parameter name: factor}.
    """
    layers, scales = network.layers(), {}
    for name, _ in network.named_parameters():
        depth = next((depth for depth, prefixes in enumerate(layers, 1)
                      if lies_in(name, prefixes)), 0)
        scales[name] = layer_decay ** (len(layers) - depth)
        if not lies_in(name, network.heads):
            scales[name] *= backbone_scale
    return scales


def build_optimizer(network, learning_rate, weight_decay, decay_all=True, kind='adamw',
                    momentum=0.9, backbone_scale=1.0, layer_decay=1.0):
    """Build an optimizer of the trainable parameters.

    Args:
        network: the unwrapped network (an ImageClassifier).
        learning_rate: a number or a Paddle LRScheduler.
        weight_decay: for 'adamw' decoupled (Loshchilov and Hutter, ICLR 2019); for 'sgd' added to
            the gradient, as in PyTorch.
        decay_all: True: all parameters decay, as in the Paddle repository; False: only those of
            `decays`, as in the official recipes.
        kind: 'adamw' or 'sgd'.
        momentum: of 'sgd'.
        backbone_scale, layer_decay: see `rate_scales`.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if not p.stop_gradient]
    scales = rate_scales(network, backbone_scale, layer_decay)
    official = decays(network)
    # Paddle identifies parameters by automatic names (linear_0.w_0).
    decayed = {p.name for name, p in trainable if decay_all or name in official}
    for name, parameter in trainable:
        parameter.optimize_attr = {'learning_rate': scales[name]}
        parameter.regularizer = (paddle.regularizer.L2Decay(float(weight_decay))
                                 if kind == 'sgd' and parameter.name in decayed else None)
    common = dict(learning_rate=learning_rate, parameters=[p for _, p in trainable])
    if kind == 'sgd':
        return paddle.optimizer.Momentum(momentum=momentum, **common)
    return paddle.optimizer.AdamW(weight_decay=float(weight_decay),
                                  apply_decay_param_fun=decayed.__contains__, **common)


@paddle.no_grad()
def clip_gradients(parameters, limit=0.0, loss_scale=1.0):
    """Unscale all gradients and clip them by their global norm, in place.

    Gradients are not changed if any is not finite, so that the caller can skip the step; the
    optimizer's own clipping would not allow this.

    Args:
        parameters: those without a gradient are ignored.
        limit: largest global norm; 0: no clipping.
        loss_scale: factor by which the loss was multiplied.

    Returns:
        The global norm before clipping, without the loss scale, as a float; inf or nan if any
        gradient is not finite.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    # In float32: the squares of float16 gradients overflow early.
    squares = [(gradient if gradient.dtype == paddle.float32 else gradient.astype('float32'))
               .square().sum() for gradient in gradients]
    norm = math.sqrt(paddle.add_n(squares).item()) / loss_scale
    if not math.isfinite(norm):
        return norm
    factor = 1 / loss_scale
    if 0 < limit < norm:
        factor *= limit / norm
    for gradient in gradients:
        if factor != 1:
            gradient.scale_(factor)
    return norm
