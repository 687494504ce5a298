"""An equal network with fewer operations, for deployment.

`simplified(network)` computes the same logits as a T2T-ViT in evaluation mode, from weights that
are merged in float64:

- The weight and bias of a LayerNorm are merged into the linear layer that follows.
- The attention scale is merged into the weights of the query. The bias of the key is dropped, as a
  constant in all keys does not change the softmax; the bias of the value, as a constant in all
  values passes through the softmax, is merged into the bias of the projection.
- The class token is merged into the position table.
- The head uses only the class token, so the last block has a query and an MLP for it alone.
- A soft split divides the grid into cells with the side of its stride. A window is a cell and parts
  of its neighbours, so four slices make all windows, which is faster than unfold. The elements of a
  window then have another order, and so have the rows of the weights that follow.
- The Performer's 1 / sqrt(m) cancels between numerator and normaliser, except in the epsilon. Its
  sums are products with constant vectors, as engines are fastest at matrix products.
- The Performer's keys and queries are turned so that the features' products with w are their first
  numbers; turning changes no length.
- The Performer's projection is merged into value_key, which is computed once for all tokens; its
  bias is merged into that of the value, and subtracted in value_key. Key, query and value are three
  products, as slices of one would be copied.
"""

import copy

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from common import Attention, Block, Mlp
from t2t import T2T_ViT, Token_performer, soft_split


def simplified(network):
    """Return a layer with the function of `network` in evaluation mode; `network` is not changed.

    Blocks of variants, other token transformers and other networks are not simplified.

    Returns:
        A layer in evaluation mode: images `[B, 3, S, S]` to logits `[B, num_classes]`, equal up to
        rounding.
    """
    network = copy.deepcopy(network)
    network.eval()
    simple = SimpleT2T(network) if isinstance(network, T2T_ViT) else network
    simple.eval()
    return simple


class SimpleT2T(nn.Layer):
    """A simplified T2T_ViT: images `[B, 3, S, S]` to logits `[B, num_classes]`."""

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
    """A simplified T2T_module: images `[B, 3, S, S]` to tokens `[B, N, embed_dim]`."""

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
    """Whether `windows` supports a soft split: a window is a cell and parts of the next ones."""
    kernel, stride, padding = split
    return stride < kernel <= 2 * stride and padding <= stride and side_before == side * stride


def unfolded(pixels, split, side_before):
    """Soft split of square channels-last grids, by unfold.

    Args:
        pixels: `[B, side_before, side_before, C]` or `[B, side_before * side_before, C]`.
        split: kernel, stride and padding.

    Returns:
        `[B, side * side, C * k * k]`.
    """
    grid = pixels.reshape([-1, side_before, side_before, pixels.shape[-1]])
    return soft_split(grid.transpose([0, 3, 1, 2]), split)


def windows(pixels, split, side_before):
    """`unfolded` by slices, if `can_be_sliced`; the elements of a window are in `window_order`."""
    kernel, stride, padding = split
    channels, rest, side = pixels.shape[-1], kernel - stride, side_before // stride
    behind, cells = stride - padding, side + 1
    # As one channel with rows of W * C, because oneDNN in Paddle crashes if it pads channels-last
    # grids; with an axis of depth, because Paddle would add one and remove it by a copy.
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
    """Indices `[C * k * k]` of the elements of `windows` in a window of unfold."""
    kernel, stride, _ = split
    place = np.arange(channels * kernel * kernel).reshape(channels, kernel, kernel)
    place = place.transpose(1, 2, 0)                            # (k, k, C)
    own, rest = slice(stride), slice(stride, kernel)
    return np.concatenate([place[rows, columns].ravel()
                           for rows in (own, rest) for columns in (own, rest)])


def reorder(linear, norm, order):
    """Permute the input of a linear layer, and of the norm before it, in place."""
    for parameter in (linear.weight,) if norm is None else (linear.weight, norm.weight, norm.bias):
        parameter.set_value(parameter.numpy()[order])


class SimplePerformer(nn.Layer):
    """A simplified Token_performer with orthogonal features, for `num_tokens` tokens.

    Maps `[B, N, C * k * k]` to `[B, N, in_dim]`.
    """

    def __init__(self, performer, num_tokens):
        super().__init__()
        self.num_features = performer.num_features
        self.norm1 = Normalise(performer.norm1)
        proj, proj_bias = float64(performer.proj.weight), float64(performer.proj.bias)
        weight, bias = merged(performer.norm1, performer.kqv)
        key, query, value = np.split(weight, 3, axis=1)
        key_bias, query_bias, value_bias = np.split(bias, 3)
        axes = feature_axes(performer)
        self.key = Affine(key @ axes, key_bias @ axes)
        self.query = Affine(query @ axes, query_bias @ axes)
        self.value = Affine(value, value_bias + proj_bias)
        # Left operands of their products, which int8 does not quantise: the rows of value_key have
        # very different scales, and one scale for all of them cost 6 points of top-1.
        self.proj = constant(proj.T[None])                      # (1, in_dim, in_dim)
        self.minus_bias = constant(-(proj_bias @ proj)[None, :, None])     # (1, in_dim, 1)
        self.minus_half = constant(np.full([len(proj), self.num_features],
                                           -0.5 / self.num_features))      # (in_dim, m)
        self.ones = constant(np.ones((1, 1, num_tokens)))
        # A tensor, because paddle2onnx 1.3 drops the addition of so small a scalar.
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
        # The reciprocal of the normaliser would be faster, but is wrong in Paddle 2.6's oneDNN.
        query = query / (normaliser + self.epsilon)
        x = paddle.matmul(query, value_key, transpose_y=True) + value
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def has_orthogonal_features(performer):
    """Whether the rows of w are orthogonal and of length sqrt(m), as initialised."""
    w, m = float64(performer.w), performer.num_features
    return np.allclose(w @ w.T, m * np.eye(m), rtol=0, atol=1e-4 * m)


def feature_axes(performer):
    """An orthogonal basis of keys and queries, `[in_dim, in_dim]`; first come the rows of w.

    In this basis the first m coordinates of a vector are its products with w, and the sum of the
    squares of all coordinates is m times the squared length of the vector.
    """
    w, m = float64(performer.w), performer.num_features
    rest = np.linalg.qr(w.T, mode='complete')[0][:, m:]         # (in_dim, in_dim - m)
    return np.concatenate([w.T, np.sqrt(m) * rest], axis=1)


class SimpleBlock(nn.Layer):
    """A simplified Block: `[B, N, C]` to `[B, N, C]`; with `only_class_token` to `[B, 1, C]`."""

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
        weight, bias = float64(attention.proj.weight), float64(attention.proj.bias)
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
    """x @ weight + bias with constant arrays."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = constant(weight), constant(bias)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Normalise(nn.Layer):
    """A LayerNorm without weight and bias."""

    def __init__(self, norm):
        super().__init__()
        self.shape, self.epsilon = list(norm.weight.shape), norm._epsilon

    def forward(self, x):
        return F.layer_norm(x, self.shape, epsilon=self.epsilon)


def is_plain(block):
    """Whether a block is the paper's, without parts of a variant."""
    return type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp


def float64(values):
    """A tensor or array as a float64 array."""
    return np.asarray(values, dtype='float64')


def merged(norm, linear):
    """(weight, bias) of a linear layer merged with the LayerNorm before it, float64."""
    weight = float64(linear.weight)
    bias = float64(norm.bias) @ weight
    if linear.bias is not None:
        bias = bias + float64(linear.bias)
    return float64(norm.weight)[:, None] * weight, bias


def constant(values):
    """A frozen float32 parameter."""
    values = np.ascontiguousarray(values, dtype='float32')
    parameter = paddle.create_parameter(list(values.shape), 'float32')
    parameter.set_value(values)
    parameter.stop_gradient = True
    return parameter
