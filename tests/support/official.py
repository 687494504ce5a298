"""The weights and inputs of the results in tests/golden, which are not stored there.

Every tensor has PyTorch's shape and a random stream seeded with its name; see the table in
tests/golden/README.md.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import paddle

import zoo

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'
VARIANTS = json.loads((GOLDEN / 'variants.json').read_text())


def stream(name):
    """The random generator of a named tensor."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def official_tensor(name, shape):
    """The float32 values of a named tensor, in PyTorch's shape."""
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
    official = {name: tuple(shape) for name, shape in VARIANTS[variant]['state'].items()}
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
    """The golden images, a tensor `[2, 3, size, size]`."""
    return paddle.to_tensor(
        stream(f'image{size}').standard_normal((2, 3, size, size), dtype=np.float32))


LABELS = paddle.to_tensor(np.array([3, 7]))

FORWARDS = sorted(path.stem[len('forward_'):] for path in GOLDEN.glob('forward_*.npz'))


def golden_network(variant, **options):
    """(network with golden weights, image size in pixels) of a variant of tests/golden."""
    name, _, size = variant.rpartition('_')
    if size not in ('96', '384'):
        name, size = variant, 224
    paddle.seed(0)
    return fill(zoo.create_model(name, img_size=int(size), **options), variant), int(size)
