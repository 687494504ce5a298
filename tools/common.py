"""Layers and helpers that all networks of the zoo share.

Images are `[B, 3, H, W]`, tokens `[B, N, C]`: B images, N tokens, C channels.
Sub-layer names are those of the official PyTorch code, so that published weights load. A Linear's
weight is `[in, out]` in Paddle and `[out, in]` in PyTorch.
"""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F


def full_precision():
    """A context that turns mixed precision off.

    It does not convert inputs: use `as_float32(x)`.
    """
    if paddle.in_dynamic_mode() or paddle.framework.in_pir_mode():
        return paddle.amp.auto_cast(enable=False)
    return contextlib.nullcontext()    # export with Paddle 2.6: auto_cast would warn


def as_float32(x):
    """Convert a tensor to float32; a float32 tensor is returned itself."""
    return x if x.dtype == paddle.float32 else x.astype('float32')


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., ECCV 2016): drop a residual branch `[B, ...]` by image.

    The kept ones are divided by the probability of being kept, which preserves the expectation.
    """

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        shape = [x.shape[0]] + [1] * (x.ndim - 1)               # (B, 1, ..., 1)
        kept = (paddle.rand(shape, dtype='float32') < keep_prob).astype(x.dtype)
        return x * kept / keep_prob

    def extra_repr(self):
        return f'drop_prob={self.drop_prob}'


class Mlp(nn.Layer):
    """Linear layer, exact GELU, linear layer: `[B, N, C]` to `[B, N, C]`."""

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

    Scores are scaled by head_dim ** -0.5, as for all published T2T-ViT weights. Variants override
    `query_key_value` (with `build_projections`) or `output`.

    Raises:
        ValueError: if num_heads does not divide dim.
    """

    def __init__(self, dim, num_heads, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'embed_dim {dim} cannot be divided into {num_heads} heads: '
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
        """Project tokens `[B, N, C]` to queries, keys and values, each `[B, N, C]`."""
        return paddle.split(self.qkv(x), 3, axis=-1)

    def output(self, x):
        """Project the weighted sum of the values: `[B, N, C]` to `[B, N, C]`."""
        return self.proj_drop(self.proj(x))

    def attention_macs(self, num_tokens):
        """Multiply-accumulates of queries with keys and of attention maps with values."""
        return 2 * num_tokens ** 2 * self.num_heads * self.head_dim

    def split_heads(self, x):
        """`[B, N, C]` to `[B, heads, N, head_dim]`."""
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
    """Pre-norm transformer block, `[B, N, C]` to `[B, N, C]`: residual attention, residual MLP."""

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
    """Base class of all networks: heads, forward, and a description for optimizers and files.

    A subclass sets `img_size`, the side of its input in pixels, and `num_features`, the input width
    of the heads, then calls `reset_head`. It implements `forward_prefix` and `grid_layers`.
    Optimizers, weight files and fine-tuning use only the attributes below and `layers`; they know
    no network by name.

    Attributes:
        heads: names of the linear classifiers, one for each prefix token: that of the class token,
            then in distilled networks (Touvron et al., ICML 2021) that of the distillation token.
        linear_std: standard deviation of initial Linear weights; None: see `initialise`.
        norm_epsilon: epsilon of the LayerNorms; see `set_norm_epsilon`.
        no_weight_decay: names of tokens and position tables that the official recipes don't decay.
            Biases and parameters with one axis never decay and need not be listed.
        position_axes: {name of a position table: its axes that count positions}. One axis: prefix
            tokens, then a square grid row by row; two axes: height and width of the grid.
        namings: {codebase: ((pattern, replacement), ...)}: regular expressions that turn its
            parameter names into those used here. All are applied in order to every name.
    """

    heads = ('head',)
    linear_std = 0.02
    norm_epsilon = 1e-5
    no_weight_decay = ()
    position_axes = {}
    namings = {}

    @property
    def num_prefix_tokens(self):
        """The number of tokens before the image tokens."""
        return len(self.heads)

    def forward_prefix(self, x):
        """Images `[B, in_chans, S, S]` to prefix tokens `[B, num_prefix_tokens, C]`, after norm."""
        raise NotImplementedError

    def grid_layers(self):
        """The layers whose outputs `recording` keeps: list of (name, layer, side of its grid)."""
        raise NotImplementedError

    def layers(self):
        """The layers from the first block to the heads, each a tuple of parameter name prefixes.

        The last one is the norm and the heads. Parameters that no prefix covers (patch embedding,
        tokens, position tables) count as one layer below the first.
        """
        blocks = [(f'blocks.{index}',) for index in range(len(getattr(self, 'blocks', ())))]
        return blocks + [('norm', *self.heads)]

    def set_norm_epsilon(self, epsilon):
        """Set the epsilon of every LayerNorm."""
        self.norm_epsilon = epsilon
        for layer in self.sublayers():
            if isinstance(layer, nn.LayerNorm):
                layer._epsilon = epsilon

    def epsilon_of_origin(self, naming, state):
        """The LayerNorm epsilon that weights of another codebase were trained with.

        Args:
            naming: the key of `namings` that was applied to the weights.
            state: {name: float ndarray}, with the network's own names.

        Returns:
            A number, or None if it is unknown.
        """
        return None

    def can_resize(self, name, shape):
        """Whether a position table of that shape differs only in its number of positions."""
        own, axes = self.state_dict()[name].shape, self.position_axes[name]
        return len(shape) == len(own) and all(
            axis in axes or length == own[axis] for axis, length in enumerate(shape))

    def resize_positions(self, name, table):
        """Interpolate (bicubic) the position table `name` of another image size to the network's.

        Raises:
            ValueError: if the table is not prefix tokens and a square grid.
        """
        shape, axes = self.state_dict()[name].shape, self.position_axes[name]
        if len(axes) == 2:
            return resize_grid(table, shape[axes[0]])
        return resize_pos_embed(table, shape[axes[0]], self.num_prefix_tokens)

    def reset_head(self, num_classes):
        """Replace the heads by newly initialised ones; num_classes 0 makes them identities.

        Raises:
            ValueError: for a negative number of classes.
        """
        if num_classes < 0:
            raise ValueError(f'num_classes is {num_classes}: use 1 or more, or 0 for no head')
        self.num_classes = num_classes
        for name in self.heads:
            head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
            initialise(head, self.linear_std)
            self.add_sublayer(name, head)

    def forward_features(self, x):
        """Images `[B, in_chans, S, S]` to the class token after the last norm, `[B, C]`."""
        return self.forward_prefix(x)[:, 0]

    def forward(self, x):
        """Images `[B, in_chans, S, S]`, float32, normalised, to logits `[B, num_classes]`.

        A distilled network returns in training a tuple of both heads' logits, as each has its own
        target, and in evaluation their mean.

        Raises:
            ValueError: for images of another size than the network was built for.
        """
        prefix = self.forward_prefix(x)                         # (B, num_prefix_tokens, C)
        logits = tuple(getattr(self, name)(prefix[:, index])
                       for index, name in enumerate(self.heads))
        if len(logits) == 1:
            return logits[0]
        return logits if self.training else sum(logits) / len(logits)

    @contextlib.contextmanager
    def recording(self):
        """Record attention maps and token grids of a forward inside `with`.

        Uses hooks that exist only inside `with`. Yields an object with two dicts by layer name,
        which hold tensors of the latest forward:
            attention: `[B, heads, N, N]` after the softmax; `[B, N, N]` for a Token_transformer.
                A Performer computes no attention map.
            feature_maps: outputs of `grid_layers` as grids `[B, C, side, side]`.
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
    """Repeat learned tokens `[1, n, C]` for each image of `x` `[B, N, C]`: `[B, n, C]`."""
    # Added to zeros, not expanded: the batch size may be unknown in an exported graph.
    return paddle.zeros_like(x[:, :1]) + token


def tokens_to_grid(tokens, side):
    """Arrange tokens `[B, side * side, C]`, in rows, as a grid `[B, C, side, side]`."""
    channels = tokens.shape[-1]
    return tokens.transpose([0, 2, 1]).reshape([0, channels, side, side])


def grid_to_tokens(grid):
    """Flatten a grid `[B, C, side, side]` row by row to tokens `[B, side * side, C]`."""
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
    """Raise ValueError for images `[B, C, H, W]` of another size than img_size x img_size."""
    height, width = x.shape[2], x.shape[3]
    if (height, width) != (img_size, img_size):
        raise ValueError(
            f'the network was built for {img_size} x {img_size} pixels and got '
            f'{height} x {width}: resize the image or build it with img_size={height}')


def sinusoid_table(num_positions, dim):
    """The sinusoidal position table of Vaswani et al. (2017, section 3.5).

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

    The rows of the prefix tokens (class token) are copied. The others are arranged as a square
    grid and resized with a bicubic filter, as in the official code for fine-tuning.

    Args:
        pos_embed: `[1, num_prefix + side * side, C]`, array or tensor.
        num_positions: new length, prefix included.
        num_prefix: number of prefix tokens.

    Returns:
        float32 tensor `[1, num_positions, C]`.

    Raises:
        ValueError: if one of the two lengths, without the prefix, is not a square.
    """
    pos_embed = paddle.to_tensor(np.asarray(pos_embed, dtype='float32'))
    old_side = math.isqrt(max(pos_embed.shape[1] - num_prefix, 0))
    new_side = math.isqrt(max(num_positions - num_prefix, 0))
    for side, length in ((old_side, pos_embed.shape[1]), (new_side, num_positions)):
        if not side or side * side + num_prefix != length:
            raise ValueError(f'pos_embed with {length} positions is no square grid '
                             f'after {num_prefix} prefix token(s)')
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    grid = resize_grid(tokens_to_grid(grid, old_side), new_side)           # (1, C, side, side)
    return paddle.concat([prefix, grid_to_tokens(grid)], axis=1)


def resize_grid(grid, side):
    """Interpolate (bicubic) a position grid `[1, C, h, w]` to `[1, C, side, side]`."""
    grid = paddle.to_tensor(np.asarray(grid, dtype='float32'))
    return F.interpolate(grid, size=[side, side], mode='bicubic', align_corners=False)


def initialise(network, linear_std=0.02):
    """Initialise every layer of a network as the official code does.

    Linear weights are normal with standard deviation `linear_std`, biases 0. timm truncates at
    +-2, a hundred deviations away and without effect; Paddle's TruncatedNormal would truncate at
    two deviations. Convolutions, and Linears if `linear_std` is None, have PyTorch's default:
    weights and biases uniform within +-1 / sqrt(fan_in).
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
