"""Where a network looks: attention rollout, and its picture over the image.

    logits, rollout, record = forward_with_attention(network, images)
    overlay(photo, rollout[0], seen_box(transform, photo.size)).save('attention.png')
"""

import math

import numpy as np
import paddle
from PIL import Image

# Dark violet to light yellow, each lighter than the one before, so that it reads the same in grey.
HEAT_COLOURS = ((24, 12, 72), (112, 26, 110), (190, 55, 82), (240, 120, 40), (252, 246, 160))


def forward_with_attention(network, images):
    """Classify images and follow the class token's attention back to the patches.

    Args:
        network: a network of the zoo, in evaluation mode.
        images: float32 `[B, 3, S, S]`, array or tensor, normalised.

    Returns:
        Logits, a tensor `[B, num_classes]`; the rollout, float32 `[B, side, side]`; and what
        `network.recording()` kept.

    Raises:
        ValueError: where the network's attention can't be followed; see attention_rollout.
    """
    with paddle.no_grad(), network.recording() as record:
        logits = network(paddle.to_tensor(images))
    # The blocks' maps have an axis of heads; those of the Token_transformers, over the finer
    # grids before the class token joins, have none.
    maps = [attention.numpy() for attention in record.attention.values() if attention.ndim == 4]
    return logits, attention_rollout(maps, getattr(network, 'num_prefix_tokens', 1)), record


def attention_rollout(maps, num_prefix=1):
    """Attention rollout (Abnar and Zuidema, ACL 2020, arXiv 2005.00928, section 3).

    A block's residual branch passes half of each token on as it is, so its map, averaged over
    the heads, counts as (map + identity) / 2; the product over the blocks says how much of every
    patch is in the class token behind the last one.

    Args:
        maps: one array `[B, heads, N, N]` a block, first block first, behind the softmax.
        num_prefix: tokens in front of the patches; the first of them is the class token.

    Returns:
        float32 `[B, side, side]`: the share of every patch. What is missing to a sum of 1 is the
        share of the prefix tokens.

    Raises:
        ValueError: where there are no maps, where they differ in N (the network pools its
            tokens), or where the patches form no square.
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
    # From the last block back: a row times a matrix each, instead of the whole product.
    for attention in reversed(maps):
        share = (share + share @ attention.mean(axis=1, dtype='float32')) / 2
    return share[:, 0, num_prefix:].reshape(-1, side, side)                 # (B, side, side)


def seen_box(transform, size):
    """The part of an image that an evaluation transform lets through.

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
    """A grid of values as colours, smallest to largest: `[h, w]` to a PIL RGB image of `size`."""
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
        values: `[h, w]`; shown from their smallest to their largest.
        box: (left, top, right, bottom) that the grid covers, in pixels of the image; what lies
            outside is darkened, because the network has not seen it. None: all of it.
        opacity: of the heat map, 0 to 1, over the image in grey: colours are the map's alone.
        longest_side: a larger image is scaled down to this, in pixels.

    Returns:
        A PIL RGB image.
    """
    scale = min(1, longest_side / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    small = image.resize(size, Image.Resampling.BILINEAR)
    left, top, right, bottom = (
        min(max(round(edge * length / whole), 0), length) for edge, length, whole in
        zip(box or (0, 0, *image.size), size * 2, image.size * 2))
    # Of a strip that is a few pixels high, rounding may leave nothing.
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    result = small.point(lambda value: value // 3)
    seen = small.crop((left, top, right, bottom)).convert('L').convert('RGB')
    result.paste(Image.blend(seen, heat_map(values, seen.size), opacity), (left, top))
    return result
