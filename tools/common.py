"""Layers and helpers that every network of the zoo is built from.

Images are `[B, 3, H, W]`, tokens `[B, N, C]`: B images, N tokens, C channels.
Sub-layer names are those of the official PyTorch code, so that published weights load; a
`Linear` weight is `[in, out]` here, the transpose of PyTorch's.
"""

import contextlib
import math
from types import SimpleNamespace

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

    def attention_macs(self, num_tokens):
        """Multiply-accumulates of queries with keys and of maps with values, for zoo.macs."""
        return 2 * num_tokens ** 2 * self.num_heads * self.head_dim

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


class ImageClassifier(nn.Layer):
    """What every network of the zoo shares: heads, forward, and a description of itself.

    A network sets `img_size`, the side of its input in pixels, and `num_features`, the width of
    what goes into a head, then calls `reset_head`. It implements `forward_prefix` and
    `grid_layers`. Optimizers, weight files and fine-tuning know no network by name; they ask for
    the attributes below and for `layers`.

    Attributes:
        heads: names of the linear layers that classify, one on each prefix token: the class
            token's, then for distilled networks (Touvron et al., ICML 2021) that of the
            distillation token.
        linear_std: standard deviation of a fresh Linear, for `initialise`.
        norm_epsilon: what its LayerNorms add to the variance; see `set_norm_epsilon`.
        no_weight_decay: names of parameters that the official recipes don't decay, besides biases
            and all that have one axis: tokens and position tables.
        position_axes: {name of a position table: its axes that count positions}. One axis: prefix
            tokens, then a square grid row by row; two axes: the grid itself.
        namings: {origin: ((pattern, replacement), ...)}, how other codes name the parameters:
            regular expressions that are applied in order, each once to every name.
    """

    heads = ('head',)
    linear_std = 0.02
    norm_epsilon = 1e-5
    no_weight_decay = ()
    position_axes = {}
    namings = {}

    @property
    def num_prefix_tokens(self):
        """How many tokens stand in front of those of the image."""
        return len(self.heads)

    def forward_prefix(self, x):
        """Images `[B, in_chans, S, S]` to normalised prefix tokens `[B, num_prefix_tokens, C]`."""
        raise NotImplementedError

    def grid_layers(self):
        """What `recording` shows as feature maps: (name, layer, side of its token grid)."""
        raise NotImplementedError

    def layers(self):
        """The layers from the first block on: a list of tuples of prefixes of parameter names.

        The last one is the norm and the heads; what no prefix covers (embedding, tokens, tables)
        lies below the first.
        """
        blocks = [(f'blocks.{index}',) for index in range(len(getattr(self, 'blocks', ())))]
        return blocks + [('norm', *self.heads)]

    def set_norm_epsilon(self, epsilon):
        """Give every LayerNorm another epsilon."""
        self.norm_epsilon = epsilon
        for layer in self.sublayers():
            if isinstance(layer, nn.LayerNorm):
                layer._epsilon = epsilon

    def epsilon_of_origin(self, naming, state):
        """The epsilon that weights were trained with, where their origin has another.

        Args:
            naming: the key of `namings` that they had.
            state: {name: ndarray, float}, with the network's own names.

        Returns:
            A number, or None where nothing tells.
        """
        return None

    def can_resize(self, name, shape):
        """Whether a position table of that shape differs from the network's in positions only."""
        own, axes = self.state_dict()[name].shape, self.position_axes[name]
        return len(shape) == len(own) and all(
            axis in axes or length == own[axis] for axis, length in enumerate(shape))

    def resize_positions(self, name, table):
        """A position table of another image size, interpolated (bicubic) to the network's.

        Raises:
            ValueError: where it is no square grid behind the prefix tokens.
        """
        shape, axes = self.state_dict()[name].shape, self.position_axes[name]
        if len(axes) == 2:
            return resize_grid(table, shape[axes[0]])
        return resize_pos_embed(table, shape[axes[0]], self.num_prefix_tokens)

    def reset_head(self, num_classes):
        """Put fresh heads of `num_classes` classes in place; 0 leaves them out."""
        if num_classes < 0:
            raise ValueError(f'num_classes is {num_classes}: use 1 or more, or 0 for no head')
        self.num_classes = num_classes
        for name in self.heads:
            head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
            initialise(head, self.linear_std)
            self.add_sublayer(name, head)

    def forward_features(self, x):
        """Images `[B, in_chans, S, S]` to the class token behind the last norm, `[B, C]`."""
        return self.forward_prefix(x)[:, 0]

    def forward(self, x):
        """Images `[B, in_chans, S, S]`, float32, normalised, to logits `[B, num_classes]`.

        A distilled network returns a tuple of both heads' logits in training, so that each can
        have its own target, and their mean in evaluation.
        """
        prefix = self.forward_prefix(x)                         # (B, num_prefix_tokens, C)
        logits = tuple(getattr(self, name)(prefix[:, index])
                       for index, name in enumerate(self.heads))
        if len(logits) == 1:
            return logits[0]
        return logits if self.training else sum(logits) / len(logits)

    @contextlib.contextmanager
    def recording(self):
        """Keep attention maps and token grids of the forwards run inside `with`.

        Yields an object with two dicts, by layer name, of the latest forward:
            attention: `[B, heads, N, N]` (behind the softmax), or `[B, N, N]` for a
                Token_transformer. A Performer never forms such a map.
            feature_maps: what the layers that make tokens give, as grids `[B, C, side, side]`.

        It listens through hooks that exist only inside `with`, so a forward outside of it does
        no work for it.
        """
        record = SimpleNamespace(attention={}, feature_maps={})
        handles = []

        def keep_attention(name):
            def hook(layer, inputs):
                record.attention[name] = inputs[0]
            return hook

        def keep_grid(name, side):
            def hook(layer, inputs, output):
                is_grid = output.ndim == 4
                record.feature_maps[name] = output if is_grid else tokens_to_grid(output, side)
            return hook

        for name, layer in self.named_sublayers():
            if name.endswith('.attn_drop'):
                handles.append(layer.register_forward_pre_hook(
                    keep_attention(name[:-len('.attn_drop')])))
        for name, layer, side in self.grid_layers():
            handles.append(layer.register_forward_post_hook(keep_grid(name, side)))
        try:
            yield record
        finally:
            for handle in handles:
                handle.remove()


def for_each_image(token, x):
    """Repeat learned tokens `[1, n, C]` for the images of tokens `[B, N, C]`: `[B, n, C]`."""
    # Added to zeros rather than expanded: the batch axis may be unknown in an exported graph.
    return paddle.zeros_like(x[:, :1]) + token


def tokens_to_grid(tokens, side):
    """Lay tokens out as the grid they came from: `[B, side * side, C]` to `[B, C, side, side]`."""
    channels = tokens.shape[-1]
    return tokens.transpose([0, 2, 1]).reshape([0, channels, side, side])


def grid_to_tokens(grid):
    """The tokens of a grid, row by row: `[B, C, side, side]` to `[B, side * side, C]`."""
    return grid.flatten(2).transpose([0, 2, 1])


def square_side(img_size):
    """The side of a square image, given as S or (S, S).

    Raises:
        ValueError: for a size that is not square or not positive.
    """
    sides = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f'img_size {img_size} is not square: the networks take S x S pixels')
    if int(sides[0]) != sides[0] or sides[0] < 1:
        raise ValueError(f'img_size {img_size} must be a positive whole number of pixels')
    return int(sides[0])


def check_size(x, img_size):
    """Refuse images `[B, C, H, W]` that are not of the size a network was built for."""
    height, width = x.shape[2], x.shape[3]
    if (height, width) != (img_size, img_size):
        raise ValueError(
            f'the network was built for {img_size} x {img_size} pixels and got '
            f'{height} x {width}: resize the image or build it with img_size={height}')


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
    old_side = math.isqrt(max(pos_embed.shape[1] - num_prefix, 0))
    new_side = math.isqrt(max(num_positions - num_prefix, 0))
    for side, length in ((old_side, pos_embed.shape[1]), (new_side, num_positions)):
        if not side or side * side + num_prefix != length:
            raise ValueError(f'pos_embed with {length} positions is no square grid '
                             f'behind {num_prefix} prefix token(s)')
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    grid = resize_grid(tokens_to_grid(grid, old_side), new_side)
    return paddle.concat([prefix, grid_to_tokens(grid)], axis=1)


def resize_grid(grid, side):
    """Interpolate positions laid out as a grid, bicubic: `[1, C, h, w]` to `[1, C, side, side]`."""
    grid = paddle.to_tensor(np.asarray(grid, dtype='float32'))
    return F.interpolate(grid, size=[side, side], mode='bicubic', align_corners=False)


def initialise(network, linear_std=0.02):
    """Set every layer of a network to the initial values of the official code.

    Linear: normal with standard deviation `linear_std` (timm cuts at +-2, a hundred deviations
    away, which is no cut at all; Paddle's TruncatedNormal would cut at two deviations) and zero
    bias. Convolutions, and with `linear_std` None linear layers too: PyTorch's default, uniform
    within 1 / sqrt(fan_in).
    """
    for layer in network.sublayers(include_self=True):
        if isinstance(layer, nn.Linear) and linear_std is not None:
            nn.initializer.Normal(std=linear_std)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Constant(0.0)(layer.bias)
        elif isinstance(layer, (nn.Linear, nn.Conv2D)):
            fan_in = (layer.weight.shape[0] if isinstance(layer, nn.Linear)
                      else np.prod(layer.weight.shape[1:]))
            bound = 1 / math.sqrt(fan_in)
            nn.initializer.Uniform(-bound, bound)(layer.weight)
            if layer.bias is not None:
                nn.initializer.Uniform(-bound, bound)(layer.bias)
