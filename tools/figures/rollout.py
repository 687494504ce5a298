"""Attention rollout, and its heat map over the image.

    logits, rollout, record = forward_with_attention(network, images)
    overlay(photo, rollout[0], seen_box(transform, photo.size)).save('attention.png')
"""

import math

import numpy as np
import paddle
from PIL import Image

# Dark violet to light yellow, of increasing lightness, so that it is readable in grey.
HEAT_COLOURS = ((24, 12, 72), (112, 26, 110), (190, 55, 82), (240, 120, 40), (252, 246, 160))


def forward_with_attention(network, images):
    """Compute the logits and the attention rollout of the class token.

    Args:
        network: a network of the zoo, in evaluation mode.
        images: float32 `[B, 3, S, S]`, array or tensor, normalised.

    Returns:
        (logits, a tensor `[B, num_classes]`; the rollout, float32 `[B, side, side]`; the record of
        `network.recording()`)

    Raises:
        ValueError: if rollout is not defined for the network; see attention_rollout.
    """
    with paddle.no_grad(), network.recording() as record:
        logits = network(paddle.to_tensor(images))
    # The maps of the blocks have an axis of heads. Those of Token_transformers, before the class
    # token is added, have none.
    maps = [attention.numpy() for attention in record.attention.values() if attention.ndim == 4]
    return logits, attention_rollout(maps, getattr(network, 'num_prefix_tokens', 1)), record


def class_attention(network, images):
    """Compute the attention that the class token pays to the patches, in every block.

    Args:
        network: a network of the zoo, in evaluation mode.
        images: float32 `[B, 3, S, S]`, array or tensor, normalised.

    Returns:
        list of arrays `[B, heads, side, side]`, first block first; networks that pool their tokens
        have several sides.

    Raises:
        ValueError: if the network has no attention maps.
    """
    with paddle.no_grad(), network.recording() as record:
        network(paddle.to_tensor(images))
    rows = [attention.numpy()[:, :, 0, network.num_prefix_tokens:]    # (B, heads, patches)
            for attention in record.attention.values() if attention.ndim == 4]
    if not rows:
        raise ValueError('the network has no attention maps')
    return [row.reshape(*row.shape[:2], *2 * [math.isqrt(row.shape[-1])]) for row in rows]


def attention_rollout(maps, num_prefix=1):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928, section 3).

    A block counts as (map + identity) / 2, where the map is the mean over the heads and the
    identity stands for the residual connection. The row of the class token in the product over
    the blocks holds the share of each patch.

    Args:
        maps: attention after the softmax, one array `[B, heads, N, N]` for each block in order.
        num_prefix: number of tokens before the patches; the first one is the class token.

    Returns:
        float32 `[B, side, side]`, the share of each patch. The rest to a sum of 1 is the share of
        the prefix tokens.

    Raises:
        ValueError: if there are no maps, if they differ in N (the network pools its tokens), or if
            the number of patches is no square.
    """
    if not maps:
        raise ValueError('the network has no attention maps')
    num_tokens = maps[0].shape[-1]
    if any(attention.shape[-1] != num_tokens for attention in maps):
        raise ValueError('attention rollout needs the same tokens in every block, and this '
                         'network pools them')
    side = math.isqrt(num_tokens - num_prefix)
    if side * side != num_tokens - num_prefix:
        raise ValueError(f'{num_tokens - num_prefix} patches form no square')
    share = np.zeros((maps[0].shape[0], 1, num_tokens), dtype='float32')    # (B, 1, N)
    share[:, :, 0] = 1
    # From the last block to the first, each step is a row times a matrix.
    for attention in reversed(maps):
        share = (share + share @ attention.mean(axis=1, dtype='float32')) / 2
    return share[:, 0, num_prefix:].reshape(-1, side, side)                 # (B, side, side)


def seen_box(transform, size):
    """The part of an image that the network gets from an evaluation transform.

    Args:
        transform: a data.transforms.EvalTransform.
        size: (width, height) of the image, in pixels.

    Returns:
        (left, top, right, bottom) in pixels of the image, not rounded.
    """
    if transform.mode == 'squash':
        return (0, 0, *size)
    side = transform.image_size / math.floor(transform.image_size / transform.crop_ratio)
    side *= min(size)
    left, top = ((length - side) / 2 for length in size)
    return left, top, left + side, top + side


def heat_map(values, size):
    """Colour a grid `[h, w]`, scaled to its range; returns a PIL RGB image of `size`."""
    values = np.asarray(values, dtype='float32')
    spread = float(values.max() - values.min())
    values = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    steps = np.linspace(0, 1, len(HEAT_COLOURS))
    colours = [np.interp(smooth, steps, channel) for channel in zip(*HEAT_COLOURS)]
    return Image.fromarray(np.stack(colours, axis=-1).round().astype('uint8'))


def overlay(image, values, box=None, opacity=0.5, longest_side=512):
    """Lay a grid of values over an image as a heat map.

    Args:
        image: PIL RGB image.
        values: `[h, w]`; colours are scaled to their range.
        box: (left, top, right, bottom) of the grid in pixels of the image, as from seen_box; the
            rest is darkened. None is the whole image.
        opacity: of the heat map over the grey image, 0 to 1.
        longest_side: a larger image is scaled down to this, pixels.

    Returns:
        A PIL RGB image.
    """
    scale = min(1, longest_side / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    small = image.resize(size, Image.Resampling.BILINEAR)
    left, top, right, bottom = (
        min(max(round(edge * length / whole), 0), length) for edge, length, whole in
        zip(box or (0, 0, *image.size), size * 2, image.size * 2))
    # Rounding may leave an empty box in an image of a few pixels.
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    result = small.point(lambda value: value // 3)
    seen = small.crop((left, top, right, bottom)).convert('L').convert('RGB')
    result.paste(Image.blend(seen, heat_map(values, seen.size), opacity), (left, top))
    return result
