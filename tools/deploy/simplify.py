"""The same function of a network with less work, for deployment.

`simplified(network)` computes what a T2T-ViT computes in evaluation, from tables that were merged
beforehand in float64:

- A LayerNorm's weight and bias go into the linear layer behind it.
- The attention scale goes into the queries' weights. A constant added to all keys changes no
  softmax, and one added to all values passes through it: both biases leave the inner loop.
- Positions and the class token are one table.
- Of the last block only the class token is used, so only it gets a query and an MLP.
- A soft split cuts the grid into cells as large as its stride. A window is a cell and parts of
  the next ones, so four slices hold all windows; unfold copies them number by number instead. The
  numbers of a window then stand in another order, and so do the rows of the weights behind it.
- The Performer's 1 / sqrt(m) cancels between numerator and normaliser, but for its epsilon. Its
  sums are products with constant vectors, for which engines have their fastest code.
- The Performer's keys and queries are turned so that the features' products with w are their first
  numbers; turning changes no length.
- The Performer's projection goes into value_key, of which there is one for all tokens, and its bias
  into the values' bias, which value_key then has to leave out. Key, query and value are three
  products: a slice of one would be copied.
"""

import copy

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from common import Attention, Block, Mlp
from t2t import T2T_ViT, Token_performer, soft_split


def simplified(network):
    """A layer that computes what `network` does in evaluation; the network stays as it is.

    Parts that are no plain T2T-ViT (variants' blocks, other token transformers, other networks)
    are used as they are.

    Returns:
        A layer in evaluation mode: images `[B, 3, S, S]` to logits, equal up to rounding.
    """
    network = copy.deepcopy(network)
    network.eval()
    simple = SimpleT2T(network) if isinstance(network, T2T_ViT) else network
    simple.eval()
    return simple


class SimpleT2T(nn.Layer):
    """What `simplified` makes of a T2T_ViT."""

    def __init__(self, network):
        super().__init__()
        tokens = network.tokens_to_token
        self.tokens = tokens if tokens.convolutional else SimpleTokens(tokens)
        positions = network.pos_embed.numpy()
        self.class_token = constant(network.cls_token.numpy() + positions[:, :1])    # (1, 1, C)
        self.positions = constant(positions[:, 1:])             # (1, N, C)
        last = len(network.blocks) - 1
        self.blocks = nn.LayerList([
            SimpleBlock(block, only_class_token=index == last) if is_plain(block) else block
            for index, block in enumerate(network.blocks)])
        self.norm = network.norm
        self.head = network.head

    def forward(self, x):
        x = self.tokens(x) + self.positions                     # (B, N, C)
        class_token = paddle.zeros_like(x[:, :1]) + self.class_token       # (B, 1, C)
        x = paddle.concat([class_token, x], axis=1)             # (B, 1 + N, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))                    # (B, num_classes)


class SimpleTokens(nn.Layer):
    """What `simplified` makes of a T2T_module: images to tokens `[B, N, embed_dim]`."""

    def __init__(self, tokens):
        super().__init__()
        self.splits = list(zip(tokens.soft_splits, tokens.grid_sizes))
        self.sliced = [can_be_sliced(split, before, after) for split, before, after in zip(
            tokens.soft_splits, (tokens.img_size, *tokens.grid_sizes), tokens.grid_sizes)]
        self.stages = nn.LayerList()
        for index, (split, side) in enumerate(self.splits):
            if index == len(self.splits) - 1:
                stage = tokens.project
                first, norm = stage, None
            else:
                stage = getattr(tokens, f'attention{index + 1}')
                performs = type(stage) is Token_performer
                first, norm = stage.kqv if performs else stage.attn.qkv, stage.norm1
            if self.sliced[index]:
                width = first.weight.shape[0]
                reorder(first, norm, window_order(width // split[0] ** 2, split))
            if norm is not None and performs and has_orthogonal_features(stage):
                stage = SimplePerformer(stage, side * side)
            self.stages.append(stage)

    def forward(self, x):
        side_before = x.shape[-1]
        x = x.transpose([0, 2, 3, 1])                           # (B, S, S, C)
        for index, (split, side) in enumerate(self.splits):
            cut = windows if self.sliced[index] else unfolded
            x = self.stages[index](cut(x, split, side_before))  # (B, side * side, token_dim)
            side_before = side
        return x


def can_be_sliced(split, side_before, side):
    """Whether `windows` can make a soft split: a window is a cell and parts of the next ones."""
    kernel, stride, padding = split
    return stride < kernel <= 2 * stride and padding <= stride and side_before == side * stride


def unfolded(pixels, split, side_before):
    """Any soft split of square channels-last grids.

    Args:
        pixels: `[B, side_before, side_before, C]`, or its middle axes as one.
        split: kernel, stride and padding.

    Returns:
        `[B, side * side, C * k * k]`.
    """
    grid = pixels.reshape([-1, side_before, side_before, pixels.shape[-1]])
    return soft_split(grid.transpose([0, 3, 1, 2]), split)


def windows(pixels, split, side_before):
    """The soft splits that `can_be_sliced`, as `unfolded`, but of numbers in `window_order`."""
    kernel, stride, padding = split
    channels, rest, side = pixels.shape[-1], kernel - stride, side_before // stride
    behind, cells = stride - padding, side + 1
    # As one channel of rows W * C wide: oneDNN in Paddle crashes on padding channels-last grids.
    # With an axis of depth, which Paddle would add and then take away by a copy.
    grid = F.pad(pixels.reshape([-1, 1, 1, side_before, side_before * channels]),
                 [padding * channels, behind * channels, padding, behind, 0, 0],
                 data_format='NCDHW')
    grid = grid.reshape([-1, cells, stride, cells, stride, channels])
    grid = grid.transpose([0, 1, 3, 2, 4, 5])    # (B, cells, cells, stride, stride, C)
    parts = [grid[:, :-1, :-1], grid[:, :-1, 1:, :, :rest], grid[:, 1:, :-1, :rest],
             grid[:, 1:, 1:, :rest, :rest]]
    sizes = [stride * stride, stride * rest, rest * stride, rest * rest]
    return paddle.concat([part.reshape([-1, side * side, size * channels])
                          for part, size in zip(parts, sizes)], axis=-1)


def window_order(channels, split):
    """Where the numbers of `windows` stand in a window of unfold: an index array `[C * k * k]`."""
    kernel, stride, _ = split
    place = np.arange(channels * kernel * kernel).reshape(channels, kernel, kernel)
    place = place.transpose(1, 2, 0)                            # (k, k, C)
    own, rest = slice(stride), slice(stride, kernel)
    return np.concatenate([place[rows, columns].ravel()
                           for rows in (own, rest) for columns in (own, rest)])


def reorder(linear, norm, order):
    """Make a linear layer, and the norm in front of it, take their input in another order."""
    for parameter in (linear.weight,) if norm is None else (linear.weight, norm.weight, norm.bias):
        parameter.set_value(parameter.numpy()[order])


class SimplePerformer(nn.Layer):
    """What `simplified` makes of a Token_performer with orthogonal features over `num_tokens`."""

    def __init__(self, performer, num_tokens):
        super().__init__()
        self.num_features = performer.num_features
        self.norm1 = Normalise(performer.norm1)
        proj, proj_bias = exactly(performer.proj.weight), exactly(performer.proj.bias)
        weight, bias = merged(performer.norm1, performer.kqv)
        key, query, value = np.split(weight, 3, axis=1)
        key_bias, query_bias, value_bias = np.split(bias, 3)
        axes = feature_axes(performer)
        self.key = Affine(key @ axes, key_bias @ axes)
        self.query = Affine(query @ axes, query_bias @ axes)
        self.value = Affine(value, value_bias + proj_bias)
        # They stand on the left, where int8 leaves them alone: the rows of value_key are of very
        # different sizes, and one scale for them all cost 6 points of top-1.
        self.proj = constant(proj.T[None])                      # (1, in_dim, in_dim)
        self.minus_bias = constant(-(proj_bias @ proj)[None, :, None])     # (1, in_dim, 1)
        self.minus_half = constant(np.full([len(proj), self.num_features],
                                           -0.5 / self.num_features))      # (in_dim, m)
        self.ones = constant(np.ones((1, 1, num_tokens)))
        # A tensor: paddle2onnx 1.3 leaves out the addition of so small a number.
        self.epsilon = constant([[[performer.epsilon * performer.num_features]]])
        self.norm2 = Normalise(performer.norm2)
        self.fc1 = Affine(*merged(performer.norm2, performer.mlp[0]))
        self.fc2 = Affine(performer.mlp[2].weight, performer.mlp[2].bias)

    def features(self, x):
        """`prm_exp` without its constant factor: `[B, N, in_dim]` to `[B, N, m]`."""
        return paddle.exp(paddle.matmul(x * x, self.minus_half) + x[:, :, :self.num_features])

    def forward(self, x):
        x = self.norm1(x)
        value = self.value(x)                                   # (B, N, in_dim)
        key, query = self.features(self.key(x)), self.features(self.query(x))    # (B, N, m)
        key_sum = paddle.matmul(self.ones, key)                 # (B, 1, m)
        normaliser = paddle.matmul(query, key_sum, transpose_y=True)       # (B, N, 1)
        key_value = paddle.matmul(key, value, transpose_x=True)            # (B, m, in_dim)
        value_key = (paddle.matmul(self.proj, key_value, transpose_y=True)
                     + paddle.matmul(self.minus_bias, key_sum))            # (B, in_dim, m)
        # A reciprocal of the N normalisers would be less work; Paddle 2.6's oneDNN gets it wrong.
        query = query / (normaliser + self.epsilon)
        x = paddle.matmul(query, value_key, transpose_y=True) + value
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def has_orthogonal_features(performer):
    """Whether the rows of w are orthogonal and of length sqrt(m), as they are drawn."""
    w, m = exactly(performer.w), performer.num_features
    return np.allclose(w @ w.T, m * np.eye(m), rtol=0, atol=1e-4 * m)


def feature_axes(performer):
    """Orthogonal axes of keys and queries, of which the first m are the rows of w.

    Along them a vector's first m numbers are its products with w, and the sum of all its squares
    is m times the square of its length: `[in_dim, in_dim]`.
    """
    w, m = exactly(performer.w), performer.num_features
    rest = np.linalg.qr(w.T, mode='complete')[0][:, m:]         # (in_dim, in_dim - m)
    return np.concatenate([w.T, np.sqrt(m) * rest], axis=1)


class SimpleBlock(nn.Layer):
    """What `simplified` makes of a Block: `[B, N, C]` to `[B, N, C]`.

    With `only_class_token` the result is `[B, 1, C]`, the first token's.
    """

    def __init__(self, block, only_class_token=False):
        super().__init__()
        attention = block.attn
        self.only_class_token = only_class_token
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        weight, bias = merged(block.norm1, attention.qkv)
        query, key, value = np.split(weight, 3, axis=1)
        query_bias, _, value_bias = np.split(bias, 3)
        self.norm1 = Normalise(block.norm1)
        self.query = Affine(query * attention.scale, query_bias * attention.scale)
        self.key = Affine(key, np.zeros_like(query_bias))
        self.value = Affine(value, np.zeros_like(query_bias))
        weight, bias = exactly(attention.proj.weight), exactly(attention.proj.bias)
        self.proj = Affine(weight, value_bias @ weight + bias)
        self.norm2 = Normalise(block.norm2)
        self.fc1 = Affine(*merged(block.norm2, block.mlp.fc1))
        self.fc2 = Affine(block.mlp.fc2.weight, block.mlp.fc2.bias)

    def split_heads(self, x):
        x = x.reshape([0, 0, self.num_heads, self.head_dim])    # (B, N, heads, head_dim)
        return x.transpose([0, 2, 1, 3])                        # (B, heads, N, head_dim)

    def forward(self, x):
        normed = self.norm1(x)
        key, value = self.split_heads(self.key(normed)), self.split_heads(self.value(normed))
        if self.only_class_token:
            x, normed = x[:, :1], normed[:, :1]
        query = self.split_heads(self.query(normed))            # (B, heads, N, head_dim)
        attention = F.softmax(paddle.matmul(query, key, transpose_y=True), axis=-1)
        y = paddle.matmul(attention, value)                     # (B, heads, N, head_dim)
        y = y.transpose([0, 2, 1, 3])                           # (B, N, heads, head_dim)
        y = y.reshape([-1, y.shape[1], self.num_heads * self.head_dim])    # (B, N, C)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Affine(nn.Layer):
    """x @ weight + bias, of arrays that were merged from several layers'."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = constant(weight), constant(bias)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Normalise(nn.Layer):
    """A LayerNorm whose weight and bias were merged into the next layer."""

    def __init__(self, norm):
        super().__init__()
        self.shape, self.epsilon = list(norm.weight.shape), norm._epsilon

    def forward(self, x):
        return F.layer_norm(x, self.shape, epsilon=self.epsilon)


def is_plain(block):
    """Whether a block is the paper's own, without a variant's parts."""
    return type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp


def exactly(values):
    """float64 array of a tensor or array."""
    return np.asarray(values, dtype='float64')


def merged(norm, linear):
    """(weight, bias) of a linear layer behind a LayerNorm without weight and bias, float64."""
    weight = exactly(linear.weight)
    bias = exactly(norm.bias) @ weight
    if linear.bias is not None:
        bias = bias + exactly(linear.bias)
    return exactly(norm.weight)[:, None] * weight, bias


def constant(values):
    """A frozen float32 parameter."""
    values = np.ascontiguousarray(values, dtype='float32')
    parameter = paddle.create_parameter(list(values.shape), 'float32')
    parameter.set_value(values)
    parameter.stop_gradient = True
    return parameter
