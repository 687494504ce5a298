"""Multiply-accumulates (MACs) of a network, layer by layer.

Papers and tools call different counts FLOPs. Two kinds are counted separately here:

- `linear`: linear layers and convolutions. Tools that identify layers by class count only these.
  T2T-ViT-7 at 224 pixels: 975,534,080, or 0.98 G.
- `attention`: products of two computed matrices: queries with keys, attention maps with values;
  for a Performer, the random features and the products that replace these. A layer reports them
  with its method `attention_macs(num_tokens)`.

Their sum for T2T-ViT-7 is 1.15 G, the paper's 1.1 G (arXiv 2101.11986, table 2). The sums agree
with the paper, to the decimal it gives, for every T2T-ViT and T2T-ViT_t except T2T-ViT-24: 13.66 G
here, 13.8 G in the paper. The difference is unexplained. A kind of layer that the paper counts
differently does not explain it: with 3 M more T2T-ViT-7 would round to 1.2 G, and no kind of
layer grows more than 21-fold from T2T-ViT-7 to T2T-ViT-24, so this explains at most 65 M; 88 M
are missing. The paper's figures are not consistent either: Performer and Transformer versions
have the same blocks and differ by 1.3 G for 14 and 19 blocks, but by 1.2 G for 24.

Biases, norms, softmax, GELU and other elementwise operations are not counted, as is usual.
"""

import math
from dataclasses import dataclass

import paddle
from paddle import nn


@dataclass
class LayerMacs:
    """MACs of one call of a layer for one image."""

    name: str
    kind: str    # 'linear' or 'attention'
    macs: int


def count_macs(network, image_size):
    """The MACs of one image `[1, 3, S, S]`, in the order in which the layers are called.

    Runs the network once, as defined: what an export saves by merging layers or by dropping unused
    tokens is still counted.

    Returns:
        list of LayerMacs; a layer that is called twice is listed twice.
    """
    calls, handles = [], []

    def count(name, kind, formula):
        def hook(layer, inputs, output):
            calls.append(LayerMacs(name, kind, int(formula(layer, inputs[0], output))))
        return hook

    for name, layer in network.named_sublayers(include_self=True):
        formula = next((formula for layer_type, formula in FORMULAS.items()
                        if isinstance(layer, layer_type)), None)
        if formula:
            handles.append(layer.register_forward_post_hook(count(name, 'linear', formula)))
        elif hasattr(layer, 'attention_macs'):
            handles.append(layer.register_forward_post_hook(count(
                name, 'attention', lambda layer, x, _: layer.attention_macs(x.shape[1]))))
    was_training = network.training
    network.eval()
    try:
        with paddle.no_grad():
            network(paddle.zeros([1, 3, image_size, image_size]))
    finally:
        for handle in handles:
            handle.remove()
        if was_training:
            network.train()
    return calls


def total_macs(layers):
    """Sums over the result of `count_macs`: a dict with linear, attention and total."""
    sums = {kind: sum(layer.macs for layer in layers if layer.kind == kind)
            for kind in ('linear', 'attention')}
    return dict(sums, total=sum(sums.values()))


def _linear(layer, x, output):
    return math.prod(output.shape) * layer.weight.shape[0]


def _convolution(layer, x, output):
    return math.prod(output.shape) * math.prod(layer.weight.shape[1:])    # (out, in/groups, k, k)


FORMULAS = {nn.Linear: _linear, nn.Conv2D: _convolution}
