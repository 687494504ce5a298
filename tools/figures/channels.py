"""Channels of feature maps that carry no information, and pictures of all channels.

    maps = grids(network, images)['blocks.0']    # [images, C, side, side]
    mosaic(maps[0], judge(maps)).save('maps.png')

The paper (figure 2) shows many feature maps of ViT that are zero or too large, few of T2T-ViT.
Here a channel is dead if it is the same all over every image, and saturated if its values are far
above those of the other channels.
"""

import math
from typing import NamedTuple

import numpy as np
import paddle
from PIL import Image

from common import Block, tokens_to_grid

DEAD = 0.1         # of the median channel's standard deviation over positions
SATURATED = 10     # times the median channel's mean absolute value
FRAMES = {'dead': (220, 50, 47), 'saturated': (240, 160, 0)}    # colours
GAP = 2            # pixels around a channel, and of its frame


class Judged(NamedTuple):
    """Which channels are dead and which saturated, bool `[C]` each; no channel is both."""

    dead: np.ndarray
    saturated: np.ndarray

    def __str__(self):
        """`64 channels: 2 dead (3.1 %), 0 saturated (0.0 %)`."""
        count = len(self.dead)
        parts = [f'{marked.sum()} {name} ({100 * marked.mean():.1f} %)'
                 for name, marked in self._asdict().items()]
        return f'{count} channels: {", ".join(parts)}'


def grids(network, images):
    """Compute the feature maps of the layers that make the tokens and of three blocks.

    Args:
        network: a network of the zoo, in evaluation mode.
        images: float32 `[B, 3, S, S]`, normalised.

    Returns:
        {layer name: array `[B, C, side, side]`}; the first, middle and last block come last. Prefix
        tokens are left out.
    """
    blocks = [(name, layer) for name, layer in network.named_sublayers()
              if isinstance(layer, Block)]
    chosen = dict(blocks[index] for index in (0, len(blocks) // 2, -1)) if blocks else {}
    found, handles = {}, []

    def keep(name):
        def hook(layer, inputs, output):
            tokens = output[:, network.num_prefix_tokens:]                 # (B, N, C)
            found[name] = tokens_to_grid(tokens, math.isqrt(tokens.shape[1])).numpy()
        return hook

    for name, layer in chosen.items():
        handles.append(layer.register_forward_post_hook(keep(name)))
    try:
        with paddle.no_grad(), network.recording() as record:
            network(paddle.to_tensor(images))
    finally:
        for handle in handles:
            handle.remove()
    return {**{name: grid.numpy() for name, grid in record.feature_maps.items()}, **found}


def judge(maps):
    """Return the Judged channels of feature maps `[images, C, side, side]`."""
    maps = np.asarray(maps, dtype='float64')
    variation = maps.std(axis=(2, 3)).mean(axis=0)       # (C)
    size = np.abs(maps).mean(axis=(0, 2, 3))             # (C)
    dead = variation <= DEAD * np.median(variation)
    return Judged(dead, ~dead & (size > SATURATED * np.median(size)))


def mosaic(grids, judged, columns=16, tile=32):
    """Draw each channel in grey, from its lowest to its highest value; returns a PIL RGB image.

    Dead channels have a red frame, saturated ones a yellow one.

    Args:
        grids: feature maps of one image, `[C, side, side]`.
        judged: its Judged channels.
        columns: channels in a row.
        tile: side of a channel, in pixels.
    """
    rows, step = -(-len(grids) // columns), tile + 2 * GAP
    picture = Image.new('RGB', (min(columns, len(grids)) * step, rows * step), 'white')
    for index, grid in enumerate(np.asarray(grids, dtype='float64')):
        corner = index % columns * step, index // columns * step
        for name, colour in FRAMES.items():
            if getattr(judged, name)[index]:
                picture.paste(colour, (*corner, *(edge + step for edge in corner)))
        spread = np.ptp(grid)
        grey = (grid - grid.min()) / spread * 255 if spread > 0 else np.zeros_like(grid)
        picture.paste(Image.fromarray(grey.round().astype('uint8')).resize(
            (tile, tile), Image.Resampling.NEAREST), tuple(edge + GAP for edge in corner))
    return picture
