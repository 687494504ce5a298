"""How much a network computes: multiply-accumulates (MACs), layer by layer.

Papers and tools count different things and call them all FLOPs. Two kinds are told apart here:

- `linear`: linear layers and convolutions. Tools that know layers by their class see only these;
  for T2T-ViT-7 at 224 pixels they are 975,534,080, or 0.98 G.
- `attention`: products of two computed matrices, queries with keys and maps with values; of a
  Performer all that replaces them, the random features included. With them T2T-ViT-7 comes to
  1.15 G, the 1.1 G of the paper (arXiv 2101.11986, table 2). A layer tells them itself by a method
  `attention_macs(num_tokens)`.

Both together are the paper's figures, to the decimal it gives, of all T2T-ViT and T2T-ViT_t but
one: T2T-ViT-24 comes to 13.66 G here and to 13.8 G there. The difference is unexplained. It is in
no layer that the paper could count more of: T2T-ViT-7 has the same kinds of layers and room for 3
M more before it would be 1.2 G; from it to T2T-ViT-24 no kind of layer grows more than 21-fold
(the MLPs), which makes 65 M, and 88 M are missing. The paper's own figures disagree as well: the
two kinds of token transformer differ by 1.3 G, whatever the blocks, as for 14 and 19, and by 1.2 G
for 24.

Biases, norms, softmax, GELU and other elementwise work are left out, as everywhere.
"""

import math
from dataclasses import dataclass

import paddle
from paddle import nn


@dataclass
class LayerMacs:
    """What one call of a layer computes for one image."""

    name: str
    kind: str    # 'linear' or 'attention'
    macs: int


def count_macs(network, image_size):
    """The MACs of one image `[1, 3, S, S]`, in the order in which the layers are called.

    The network runs once. It is counted as it is written: what an export saves by merging layers
    or by leaving out unused tokens stays counted.

    Returns:
        list of LayerMacs; a layer that is called twice is there twice.
    """
    found, handles = [], []

    def count(name, kind, formula):
        def hook(layer, inputs, output):
            found.append(LayerMacs(name, kind, int(formula(layer, inputs[0], output))))
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
    return found


def total_macs(layers):
    """Sums of what `count_macs` returns: dict of linear, attention and total."""
    sums = {kind: sum(layer.macs for layer in layers if layer.kind == kind)
            for kind in ('linear', 'attention')}
    return dict(sums, total=sum(sums.values()))


def _linear(layer, x, output):
    return math.prod(output.shape) * layer.weight.shape[0]


def _convolution(layer, x, output):
    return math.prod(output.shape) * math.prod(layer.weight.shape[1:])    # (out, in/groups, k, k)


FORMULAS = {nn.Linear: _linear, nn.Conv2D: _convolution}
