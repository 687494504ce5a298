"""Results of the official implementations in tests/golden, and networks to compare with them."""

import numpy as np
import paddle

from zoo import golden
from zoo.golden import (
    GOLDEN,
    fill,
    golden_network,
    image_batch,
    is_linear_weight,
    official_tensor,
    stream,
)

__all__ = ['FORWARDS', 'GOLDEN', 'LABELS', 'VARIANTS', 'fill', 'golden_network', 'image_batch',
           'is_linear_weight', 'official_tensor', 'stream']

VARIANTS = golden.variants()
LABELS = paddle.to_tensor(np.array(golden.LABELS))
FORWARDS = sorted(path.stem[len('forward_'):] for path in GOLDEN.glob('forward_*.npz'))
