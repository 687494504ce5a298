"""Optimizers as the recipes use them: who decays, who learns how fast, and gradient clipping."""

import math

import paddle

from recipe.freeze import lies_in


def decays(network):
    """The names of the parameters that decay in the official recipes.

    Not those with one axis, biases, and what the network itself names in `no_weight_decay`: the
    official T2T-ViT freezes its position table, and DeiT, ViT and PiT leave theirs out.
    """
    return {name for name, parameter in network.named_parameters()
            if parameter.ndim > 1 and not name.endswith('.bias')
            and name not in network.no_weight_decay}


def rate_scales(network, backbone_scale=1.0, layer_decay=1.0):
    """The factor on the learning rate of every parameter.

    Args:
        network: tells its `heads` and, from the first block to the heads, its `layers`.
        backbone_scale: factor of all that is no head (the official transfer recipe has 0.01).
        layer_decay: factor from a layer to the one below it (BEiT, Bao et al., ICLR 2022,
            appendix): the last norm and the heads have 1, the last block `layer_decay`, and
            tokens and tables below the first block the lowest power.

    Returns:
        dict: name to factor.
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
    """An optimizer over what is trainable.

    Args:
        network: the bare network; names are its structured ones.
        learning_rate: a number or a Paddle LRScheduler.
        weight_decay: for 'adamw' (Loshchilov and Hutter, ICLR 2019) multiplied by the rate and
            taken from the parameter; for 'sgd' added to the gradient, as PyTorch's does.
        decay_all: True decays every parameter, as the Paddle repository does; False only those
            of `decays`, as the official recipes do.
        kind: 'adamw' or 'sgd'.
        momentum: of 'sgd'.
        backbone_scale, layer_decay: see `rate_scales`.
    """
    trainable = [(name, p) for name, p in network.named_parameters() if not p.stop_gradient]
    scales = rate_scales(network, backbone_scale, layer_decay)
    official = decays(network)
    # Paddle asks by automatic names (linear_0.w_0), hence the detour.
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
    """Take the loss scale out of all gradients and clip them, in place.

    Gradients that are not finite are left as they are: their step is to be skipped, and that
    clipping happens here and not in the optimizer allows it.

    Args:
        parameters: those without a gradient are passed over.
        limit: the largest norm of all gradients together; 0 clips nothing.
        loss_scale: what the loss was multiplied by before its gradients were computed.

    Returns:
        The norm before clipping and without the loss scale, a float: inf or nan where any
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
