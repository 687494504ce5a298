"""Results of the official implementations, to compare a network with on any machine.

tests/golden holds them without the weights: every tensor has PyTorch's shape and a random stream
that is seeded with its name (tests/golden/README.md has the rules).
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import paddle

from zoo import create_model

GOLDEN = Path(__file__).resolve().parents[2] / 'tests' / 'golden'
LABELS = (3, 7)    # of the two images, for losses and gradients


@functools.cache
def variants():
    """Return the content of variants.json: parameters, tensors and their shapes by variant."""
    return json.loads((GOLDEN / 'variants.json').read_text())


def figures(name):
    """Return the arrays of a file, by name."""
    with np.load(GOLDEN / f'{name}.npz') as file:
        return dict(file)


def stream(name):
    """Return the random generator of a named tensor."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def official_tensor(name, shape):
    """Return the float32 values of a named tensor, in PyTorch's shape."""
    values = stream(name).standard_normal(shape, dtype=np.float32)
    last = name.split('.')[-1]
    if last == 'w':
        return np.float32(0.7) * values
    if last == 'bias':
        return np.float32(0.05) * values
    if last == 'weight' and len(shape) == 1:
        return 1 + np.float32(0.1) * values
    return np.float32(0.04) * values


def is_linear_weight(name, shape):
    """Whether a tensor is the weight of a Linear, which is transposed in Paddle."""
    return name.endswith('weight') and len(shape) == 2


def fill(network, variant):
    """Load the golden weights into a network; names and shapes must match."""
    state = network.state_dict()
    official = {name: tuple(shape) for name, shape in variants()[variant]['state'].items()}
    assert set(state) == set(official)
    for name, shape in official.items():
        if name == 'pos_embed' and variant.startswith('t2t'):    # the sinusoid table stays
            assert tuple(state[name].shape) == shape
            continue
        values = official_tensor(name, shape)
        values = values.T if is_linear_weight(name, shape) else values
        assert tuple(state[name].shape) == values.shape, name
        state[name].set_value(np.ascontiguousarray(values))
    return network


def image_batch(size=224):
    """Return the golden images, a tensor `[2, 3, size, size]`."""
    return paddle.to_tensor(
        stream(f'image{size}').standard_normal((2, 3, size, size), dtype=np.float32))


def name_and_size(variant):
    """Return (name of the network, image size in pixels) of a variant."""
    name, _, size = variant.rpartition('_')
    return (name, int(size)) if size in ('96', '384') else (variant, 224)


def golden_network(variant, **options):
    """Return (network with golden weights, image size in pixels) of a variant."""
    name, size = name_and_size(variant)
    with paddle.LazyGuard():    # without random weights: all are replaced
        network = create_model(name, img_size=size, **options)
    return fill(network, variant), size
