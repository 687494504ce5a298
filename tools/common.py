"""Layers and helpers that every network of the zoo is built from.

Images are `[B, 3, H, W]`, tokens `[B, N, C]`: B images, N tokens, C channels.
Sub-layer names are those of the official PyTorch code, so that published weights load; a
`Linear` weight is `[in, out]` here, the transpose of PyTorch's.
"""

import contextlib
import math

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F


def full_precision():
    """A context inside which mixed precision is off; nothing changes where it was off.

    It covers operations, not values: bring those along as `as_float32(x)`.
    """
    if paddle.in_dynamic_mode() or paddle.framework.in_pir_mode():
        return paddle.amp.auto_cast(enable=False)
    return contextlib.nullcontext()    # Paddle 2.6's graphs for export: it warns of auto_cast there


def as_float32(x):
    """A tensor as float32; the tensor itself where it is that already."""
    return x if x.dtype == paddle.float32 else x.astype('float32')


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., ECCV 2016): drops a residual branch for whole images.

    What is kept is divided by the probability of keeping it, so that the expectation stays.
    """

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        one_draw_an_image = [x.shape[0]] + [1] * (x.ndim - 1)
        kept = (paddle.rand(one_draw_an_image, dtype='float32') < keep_prob).astype(x.dtype)
        return x * kept / keep_prob

    def extra_repr(self):
        return f'drop_prob={self.drop_prob}'


class Mlp(nn.Layer):
    """Two linear layers with the exact GELU between them: `[B, N, C]` to `[B, N, C]`."""

    def __init__(self, dim, hidden_dim, drop=0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class Attention(nn.Layer):
    """Multi-head self-attention: `[B, N, C]` to `[B, N, C]`.

    Scores are scaled by head_dim ** -0.5, as in every published T2T-ViT weight. Variants
    replace one of the two ends: `query_key_value` or `output`.
    """

    def __init__(self, dim, num_heads, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'embed_dim {dim} cannot be shared by {num_heads} heads: '
                             'choose a number of heads that divides it')
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim ** -0.5
        self.attn_drop = nn.Dropout(attn_drop)
        self.build_projections(dim, qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def build_projections(self, dim, qkv_bias):
        """Create the layers that `query_key_value` uses."""
        self.qkv = nn.Linear(dim, 3 * dim, bias_attr=None if qkv_bias else False)

    def query_key_value(self, x):
        """`[B, N, C]` to queries, keys and values, each `[B, N, C]`."""
        return paddle.split(self.qkv(x), 3, axis=-1)

    def output(self, x):
        """What follows the weighted sum of values: `[B, N, C]` to `[B, N, C]`."""
        return self.proj_drop(self.proj(x))

    def split_heads(self, x):
        x = x.reshape([0, 0, self.num_heads, self.head_dim])    # (B, N, heads, head_dim)
        return x.transpose([0, 2, 1, 3])                        # (B, heads, N, head_dim)

    def forward(self, x):
        query, key, value = (self.split_heads(part) for part in self.query_key_value(x))
        scores = paddle.matmul(query * self.scale, key, transpose_y=True)  # (B, heads, N, N)
        attention = self.attn_drop(F.softmax(scores, axis=-1))
        x = paddle.matmul(attention, value)                     # (B, heads, N, head_dim)
        x = x.transpose([0, 2, 1, 3]).flatten(2)                # (B, N, C)
        return self.output(x)


class Block(nn.Layer):
    """A pre-norm transformer block: attention, then MLP, each on a residual branch."""

    attention = Attention
    feed_forward = Mlp

    def __init__(self, dim, num_heads, mlp_ratio=4.0, qkv_bias=False, drop=0.0, attn_drop=0.0,
                 drop_path=0.0, epsilon=1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, epsilon=epsilon)
        self.attn = self.attention(dim, num_heads, qkv_bias, attn_drop, proj_drop=drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, epsilon=epsilon)
        self.mlp = self.feed_forward(dim, int(dim * mlp_ratio), drop)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def sinusoid_table(num_positions, dim):
    """The fixed position table of Vaswani et al. (2017, section 3.5).

    Returns:
        float32 array `[1, num_positions, dim]`: sine on even channels, cosine on odd ones.
    """
    position = np.arange(num_positions)[:, None]                # (N, 1)
    channel = np.arange(dim)[None, :]                           # (1, C)
    angle = position / np.power(10000.0, 2 * (channel // 2) / dim)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return table[None].astype('float32')                        # (1, N, C)


def resize_pos_embed(pos_embed, num_positions, num_prefix=1):
    """Interpolate a position table to another image size.

    The tokens in front (the class token) keep their rows; the others are laid out as the
    square grid that they stand for and resized with a bicubic filter, as the official code
    does when it fine-tunes at another resolution.

    Args:
        pos_embed: `[1, num_prefix + side * side, C]`, array or tensor.
        num_positions: the length that is wanted, prefix included.

    Returns:
        float32 tensor `[1, num_positions, C]`.

    Raises:
        ValueError: where one of the two lengths is no square grid.
    """
    pos_embed = paddle.to_tensor(np.asarray(pos_embed, dtype='float32'))
    old_side = math.isqrt(pos_embed.shape[1] - num_prefix)
    new_side = math.isqrt(num_positions - num_prefix)
    for side, length in ((old_side, pos_embed.shape[1]), (new_side, num_positions)):
        if side * side + num_prefix != length:
            raise ValueError(f'pos_embed with {length} positions is no square grid '
                             f'behind {num_prefix} prefix token(s)')
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    dim = grid.shape[-1]
    grid = grid.reshape([1, old_side, old_side, dim]).transpose([0, 3, 1, 2])  # (1, C, s, s)
    grid = F.interpolate(grid, size=[new_side, new_side], mode='bicubic', align_corners=False)
    grid = grid.flatten(2).transpose([0, 2, 1])                 # (1, side * side, C)
    return paddle.concat([prefix, grid], axis=1)


def initialise(network):
    """Set every layer of a network to the initial values of the official code.

    Linear: normal with standard deviation 0.02 (timm cuts at +-2, a hundred deviations away,
    which is no cut at all; Paddle's TruncatedNormal would cut at two deviations) and zero
    bias. Convolutions: PyTorch's default, uniform within 1 / sqrt(fan_in).
    """
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, nn.Linear):
            nn.initializer.Normal(std=0.02)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Constant(0.0)(layer.bias)
        elif isinstance(layer, nn.Conv2D):
            bound = 1 / math.sqrt(np.prod(layer.weight.shape[1:]))
            nn.initializer.Uniform(-bound, bound)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Uniform(-bound, bound)(layer.bias)
