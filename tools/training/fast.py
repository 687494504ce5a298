"""The same networks, computed with fewer and cheaper operations in training on a CPU.

`speed_up(network)` gives layers of a network another forward, which computes the same function of
the same parameters; names, state dict and results (up to rounding) stay. The other forward is used
only while gradients are recorded: evaluation, export and recordings of attention maps run the
layers as they are written in common.py and t2t.py. On a GPU, where Paddle has fused kernels and
mixed precision, nothing is changed. Nor is anything with few pixels in a step, where starting more
and smaller operations takes longer than they save.

What is done, and why:

- Gradients of whole branches are written by hand (`PyLayer`). They keep only what the gradients
  need, compute in place, and leave out the gradient of images, which nobody asks for.
- Some operations are NumPy's, in the memory of the tensors (`array`): its exp, its sums of squares
  and its addition of a bias are faster than Paddle's. Soft splits copy their windows row by row,
  and the weights that read them are put in that order; Paddle's unfold moves single numbers.
- The weight and bias of a LayerNorm are multiplied into the linear layer that follows. Centring the
  columns of that weight centres the gradient of the normalised tokens, so a LayerNorm's backward is
  four passes over the tokens, which are faster than Paddle's kernel.
- The gradient of a bias is a product with a vector of ones, which is faster than Paddle's sum over
  rows.
- GELU and its derivative are computed from erf and exp, whose kernels are faster than GELU's.
- A softmax divides by its sum after the product with the values, which has fewer columns.
- Dropout takes 16 random bits for each number from NumPy's SFC64, whose seed Paddle's generator
  draws; Paddle's own random numbers take longer.
- Keys and queries of a Performer are one tensor, whose features are computed together. The
  projection is multiplied into the product of keys and values, once for all tokens. The
  1 / sqrt(m) of the features cancels, except in epsilon.
- The last block computes only the tokens that the heads use, but keys and values of all.
"""

import ctypes
import functools
import math

import numpy as np
import paddle
from numpy.lib.stride_tricks import sliding_window_view
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from common import Attention, Block, Mlp, check_size
from t2t import T2T_module, T2T_ViT, Token_performer, Token_transformer

LEAST_PIXELS = 224 ** 2    # of a process in a step
LARGEST_SCORE = 60         # exp(60) = 1e26


def speed_up(network):
    """Use the faster forward in all layers of `network` that have one, on a CPU; return it."""
    views = paddle.get_flags('FLAGS_use_stride_kernel')['FLAGS_use_stride_kernel']
    if paddle.device.get_device() != 'cpu' or views:    # `array` needs tensors without strides
        return network
    for layer in network.sublayers(include_self=True):
        forward = next((FORWARDS[base] for base in type(layer).__mro__
                        if base in FORWARDS and type(layer).forward is base.forward), None)
        if forward:
            layer.forward = functools.partial(_forward, forward, layer)
    if isinstance(network, T2T_ViT) and type(network.blocks[-1]).forward is Block.forward:
        network.blocks[-1].forward = functools.partial(
            _forward, functools.partial(block, num_tokens=network.num_prefix_tokens),
            network.blocks[-1])
    return network


def _forward(fast, layer, x):
    recorded = paddle.in_dynamic_mode() and paddle.is_grad_enabled()
    return fast(layer, x) if recorded else type(layer).forward(layer, x)


# ---- layers

def block(layer, x, num_tokens=None):
    """See common.Block; num_tokens: compute only the first ones, `[B, num_tokens, C]`."""
    branch = attention(layer.norm1, layer.attn, x, num_tokens)
    x = x if num_tokens is None else x[:, :num_tokens]
    x = x + layer.drop_path(branch)
    return x + layer.drop_path(mlp(layer.norm2, layer.mlp, x))


def tokens_to_token(layer, x):
    """See t2t.T2T_module."""
    *inner, last = layer.soft_splits
    attentions = [getattr(layer, f'attention{index + 1}', None) for index in range(len(inner))]
    if layer.convolutional or any(type(module) is not Token_performer for module in attentions):
        return T2T_module.forward(layer, x)
    check_size(x, layer.img_size)
    x = x.transpose([0, 2, 3, 1])                               # (B, S, S, C)
    for attention, split, side in zip(attentions, inner, layer.grid_sizes):
        x = token_performer(attention, Windows.apply(x, *split), split[0])
        x = x.reshape([0, side, side, -1])
    return linear(layer.project, Windows.apply(x, *last), last[0])


def token_performer(layer, x, kernel):
    """See t2t.Token_performer; x: tokens of Windows, `kernel`: their side."""
    weight, bias = merged(layer.norm1, layer.kqv)
    weight = by_window(weight, kernel)
    value, branch = PerformerAttention.apply(
        x, weight, bias, layer.w, layer.proj.weight, layer.proj.bias, layer.norm1._epsilon,
        layer.epsilon)
    x = value + layer.dp(branch)
    fc1, _, fc2, drop = layer.mlp
    branch = NormMlp.apply(x, *merged(layer.norm2, fc1), fc2.weight, fc2.bias,
                           layer.norm2._epsilon)
    return x + drop(branch)


def token_transformer(layer, x):
    """See t2t.Token_transformer."""
    x = layer.attn(layer.norm1(x))
    return x + mlp(layer.norm2, layer.mlp, x)


def attention(norm, layer, x, num_tokens=None):
    """A LayerNorm and an Attention: `[B, N, C]` to `[B, num_tokens, C]`."""
    kind = type(layer)
    if layer.attn_drop.p or any(getattr(kind, name) is not getattr(Attention, name) for name in (
            'forward', 'query_key_value', 'output')):
        x = layer(norm(x))
        return x if num_tokens is None else x[:, :num_tokens]
    x = NormAttention.apply(x, *merged(norm, layer.qkv), layer.proj.weight, layer.proj.bias,
                            layer.num_heads, layer.scale, norm._epsilon, num_tokens)
    return layer.proj_drop(x)


def mlp(norm, layer, x):
    """A LayerNorm and an Mlp: `[B, N, C]` to `[B, N, C]`."""
    if type(layer) is not Mlp or layer.drop.p:
        return layer(norm(x))
    return NormMlp.apply(x, *merged(norm, layer.fc1), layer.fc2.weight, layer.fc2.bias,
                         norm._epsilon)


def dropout(layer, x):
    """See nn.Dropout."""
    return MaskedDropout.apply(x, layer.p) if layer.training and layer.p else x


def linear(layer, x, kernel=1):
    """See nn.Linear; kernel: see token_performer."""
    weight = by_window(layer.weight, kernel)
    return paddle.matmul(x, weight) if layer.bias is None else BiasedLinear.apply(
        x, weight, layer.bias)


FORWARDS = {Block: block, T2T_module: tokens_to_token, Token_transformer: token_transformer,
            nn.Dropout: dropout, nn.Linear: linear}


def merged(norm, linear):
    """The weight and bias of a linear layer with those of the LayerNorm before it multiplied in."""
    weight, bias = Merged.apply(norm.weight, norm.bias, linear.weight)
    return weight, bias if linear.bias is None else bias + linear.bias


def by_window(weight, kernel):
    """Move rows from the order (channel, row, column) of `soft_split` to that of Windows."""
    if kernel == 1:
        return weight
    inputs, outputs = weight.shape
    weight = weight.reshape([-1, kernel ** 2, outputs])         # (C, k * k, D)
    return weight.transpose([1, 0, 2]).reshape([inputs, outputs])


# ---- arithmetic without autograd

def array(x):
    """The memory of a tensor as a NumPy array, which must not outlive the tensor."""
    kind = ctypes.c_float if x.dtype == paddle.float32 else ctypes.c_double
    return np.ctypeslib.as_array((kind * x.size).from_address(x.data_ptr())).reshape(x.shape)


def exp_(x):
    """exp, in place."""
    with np.errstate(all='ignore'):    # a loss that is not finite is found by the stepper
        np.exp(array(x), out=array(x))
    return x


def rows(x):
    """`[..., C]` as a matrix of rows `[R, C]`."""
    return x.reshape([-1, x.shape[-1]])


def sum_rows(x):
    """The sum of all rows of `[..., C]`: `[C]`."""
    x = rows(x)
    return paddle.matmul(paddle.ones([1, x.shape[0]], x.dtype), x).squeeze(0)


def sum_last(x, factor=1.0):
    """The sum over the last axis of `[..., C]`, times a factor: `[..., 1]`."""
    return paddle.matmul(x, paddle.full([x.shape[-1], 1], factor, x.dtype))


def sum_squares(x, factor=1.0):
    """The sum of squares over the last axis of `[..., C]`, times a factor: `[..., 1]`."""
    sums = np.einsum('...c,...c->...', array(x), array(x))
    return paddle.to_tensor(sums).unsqueeze(-1).scale_(factor)


def normal_cdf(x):
    """The cumulative distribution function of the normal distribution."""
    return x.scale(0.5 ** 0.5).erf().scale_(0.5, 0.5)


def softmax(scores):
    """Compute exponentials in place of scores `[..., N]`; return them and their sums `[..., 1]`.

    Their quotient is the softmax.
    """
    # Without the maximum, which takes as long as exp, where exp cannot overflow and its sum cannot
    # become 0.
    view = array(scores)
    if view.max() > LARGEST_SCORE or view.min() < -LARGEST_SCORE:
        scores.subtract_(scores.max(axis=-1, keepdim=True))
    return exp_(scores), sum_last(scores)


def normalise(x, epsilon, wanted):
    """Normalise the last axis of `[..., C]`; return it and 1 / standard deviation `[..., 1]`.

    The latter is None if the gradient of `x` is not wanted.
    """
    width = x.shape[-1]
    normalised = F.layer_norm(x, [width], epsilon=epsilon)
    if not wanted:
        return normalised, None
    # Less accurate than the variance in layer_norm where the mean is large, but it is only the
    # scale of a gradient.
    mean = sum_last(x, 1 / width)
    variance = (sum_squares(x, 1 / width) - mean * mean).clip(0)
    return normalised, paddle.rsqrt(variance + epsilon)


def normalised_backward(ctx, normalised, scale, weights, gradients):
    """The gradients of x and of a weight in normalise(x) @ weight, column by column.

    Args:
        ctx: of a Branch whose first inputs are x and the weight.
        normalised, scale: result of `normalise`.
        weights, gradients: the columns `[C, D]`, whose means are 0, so that the gradient of the
            normalised rows is centred, each with the gradient `[..., D]` of its product.

    Returns:
        The two gradients; None for those that are not wanted.
    """
    of_x = of_weight = None
    if ctx.wanted[1]:
        of_weight = paddle.concat([product_backward(normalised, gradient)
                                   for gradient in gradients], axis=1)
    if ctx.wanted[0]:
        for weight, gradient in zip(weights, gradients):
            part = paddle.matmul(gradient, weight, transpose_y=True)
            of_x = part if of_x is None else of_x.add_(part)
        share = sum_last(of_x * normalised, 1 / normalised.shape[-1])      # (..., 1)
        of_x.subtract_(normalised * share).multiply_(scale)
    return of_x, of_weight


def product_backward(x, gradient):
    """The gradient of the weight in x @ weight, whose result has the gradient `[..., D]`."""
    return paddle.matmul(rows(x), rows(gradient), transpose_x=True)


def affine(x, weight, bias):
    """x @ weight + bias."""
    x = paddle.matmul(x, weight)
    if bias is not None:
        np.add(array(x), array(bias), out=array(x))
    return x


class Branch(PyLayer):
    """A function with its gradient: `compute(ctx, ...)` and `gradients(ctx, ...)`.

    `compute` leaves tensors for `gradients` in `ctx.saved`. They are released as soon as the
    gradients are computed, so that there can be only one backward pass. An output among them has to
    be detached: it would keep itself alive.
    """

    @classmethod
    def forward(cls, ctx, *inputs):
        ctx.wanted = [not x.stop_gradient for x in inputs if isinstance(x, paddle.Tensor)]
        return cls.compute(ctx, *inputs)

    @classmethod
    def backward(cls, ctx, *gradients):
        results, ctx.saved = cls.gradients(ctx, *gradients), None
        # PyLayer demands None for inputs that need no gradient.
        return tuple(result if wanted else None for result, wanted in zip(results, ctx.wanted))


class Merged(Branch):
    """scale * weight, row by row, and shift @ weight: `[C]`, `[C]`, `[C, D]`.

    The columns of the first are centred. Products with normalised rows, whose mean is 0, stay the
    same, and so do gradients, as those products give it columns with mean 0.
    """

    @staticmethod
    def compute(ctx, scale, shift, weight):
        ctx.saved = (scale, shift, weight)
        merged = weight * scale.unsqueeze(1)
        return merged.subtract_(sum_rows(merged) / weight.shape[0]), paddle.matmul(shift, weight)

    @staticmethod
    def gradients(ctx, of_weight, of_bias):
        scale, shift, weight = ctx.saved
        of_scale = sum_last(of_weight * weight).squeeze(-1)
        of_weight = of_weight * scale.unsqueeze(1)
        of_weight.add_(paddle.matmul(shift.unsqueeze(1), of_bias.unsqueeze(0)))
        return of_scale, paddle.matmul(weight, of_bias), of_weight


class Windows(Branch):
    """A soft split: `[B, H, W, C]` to tokens `[B, N, kernel * kernel * C]`.

    The numbers of a token are in the order (row, column, channel), so that a row of a window is
    contiguous in memory; those of t2t.soft_split are in the order (channel, row, column).
    """

    @staticmethod
    def compute(ctx, x, kernel, stride, padding):
        batch, height, width, channels = ctx.shape = x.shape
        ctx.kernel, ctx.stride, ctx.padding = kernel, stride, padding
        padded = np.pad(array(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
        windows = windows.transpose(0, 1, 2, 4, 5, 3)           # (B, rows, columns, k, k, C)
        ctx.grid = windows.shape[1:3]
        tokens = paddle.empty([batch, math.prod(ctx.grid), kernel * kernel * channels], x.dtype)
        array(tokens).reshape(windows.shape)[...] = windows
        return tokens

    @staticmethod
    def gradients(ctx, gradient):
        if not ctx.wanted[0]:
            return (None,)
        batch, height, width, channels = ctx.shape
        windows = array(gradient).reshape(batch, *ctx.grid, ctx.kernel, ctx.kernel, channels)
        edge = ctx.padding
        padded = np.zeros((batch, height + 2 * edge, width + 2 * edge, channels), windows.dtype)
        rows, columns = (ctx.stride * count for count in ctx.grid)
        for row, column in np.ndindex(ctx.kernel, ctx.kernel):
            padded[:, row:row + rows:ctx.stride, column:column + columns:ctx.stride] += \
                windows[:, :, :, row, column]
        of_x = paddle.empty(ctx.shape, gradient.dtype)
        array(of_x)[...] = padded[:, edge:edge + height, edge:edge + width]
        return (of_x,)


class BiasedLinear(Branch):
    """x @ weight + bias."""

    @staticmethod
    def compute(ctx, x, weight, bias):
        ctx.saved = (x, weight)
        return affine(x, weight, bias)

    @staticmethod
    def gradients(ctx, gradient):
        x, weight = ctx.saved
        return (paddle.matmul(gradient, weight, transpose_y=True) if ctx.wanted[0] else None,
                product_backward(x, gradient) if ctx.wanted[1] else None, sum_rows(gradient))


class MaskedDropout(Branch):
    """Dropout with the rate p, to 16 bits; the expectation is kept exactly."""

    @staticmethod
    def compute(ctx, x, p):
        threshold = min(round(p * 2 ** 16), 2 ** 16 - 1)
        ctx.scale = 1 / (1 - threshold / 2 ** 16)
        seed = paddle.randint(0, 2 ** 31 - 1, [1], dtype='int64').item()
        size = int(np.prod(x.shape))
        bits = np.random.SFC64(seed).random_raw((size + 3) // 4).view(np.uint16)[:size]
        kept = paddle.to_tensor((bits >= threshold).reshape(x.shape))
        ctx.saved = (kept,)
        return kept.astype(x.dtype).multiply_(x).scale_(ctx.scale)

    @staticmethod
    def gradients(ctx, gradient):
        kept, = ctx.saved
        return (kept.astype(gradient.dtype).multiply_(gradient).scale_(ctx.scale),)


class NormMlp(Branch):
    """gelu(normalise(x) @ weight1 + bias1) @ weight2 + bias2."""

    @staticmethod
    def compute(ctx, x, weight1, bias1, weight2, bias2, epsilon):
        normalised, scale = normalise(x, epsilon, ctx.wanted[0])
        hidden = affine(normalised, weight1, bias1)             # (..., D)
        ctx.saved = (normalised, scale, hidden, weight1, weight2)
        return affine(normal_cdf(hidden).multiply_(hidden), weight2, bias2)

    @staticmethod
    def gradients(ctx, gradient):
        normalised, scale, hidden, weight1, weight2 = ctx.saved
        # gelu(z) = z cdf(z); its derivative is cdf(z) + z pdf(z).
        cdf = normal_cdf(hidden)
        slope = exp_(hidden.square().scale_(-0.5)).scale_((2 * np.pi) ** -0.5)
        slope = slope.multiply_(hidden).add_(cdf)
        activated = cdf.multiply_(hidden)
        of_weight2 = product_backward(activated, gradient) if ctx.wanted[3] else None
        of_bias2 = sum_rows(gradient)
        gradient = slope.multiply_(paddle.matmul(gradient, weight2, transpose_y=True))
        of_x, of_weight1 = normalised_backward(ctx, normalised, scale, [weight1], [gradient])
        return of_x, of_weight1, sum_rows(gradient), of_weight2, of_bias2


class NormAttention(Branch):
    """Attention of normalise(x): `[B, N, C]` to `[B, num_tokens, C]`; weight, bias: of qkv.

    A bias of the keys adds the same to all scores of a query and is left out. That of the values
    passes through the softmax and is added to the bias of the projection.
    """

    @staticmethod
    def compute(ctx, x, weight, bias, out_weight, out_bias, num_heads, scale, epsilon, num_tokens):
        batch, tokens, dim = x.shape
        ctx.num_heads, ctx.scale = num_heads, scale
        normalised, norm_scale = normalise(x, epsilon, ctx.wanted[0])
        weights = paddle.split(weight, 3, axis=1)               # each (C, C)
        bias, _, value_bias = paddle.split(bias, 3)
        first = normalised if num_tokens is None else normalised[:, :num_tokens]
        query = split_heads(affine(first, weights[0], bias), num_heads).scale_(scale)
        key, value = (split_heads(paddle.matmul(normalised, part), num_heads)
                      for part in weights[1:])                  # (B, heads, N, d)
        attended, total = softmax(paddle.matmul(query, key, transpose_y=True))
        joined = paddle.matmul(attended, value).divide_(total)
        joined = join_heads(joined)                             # (B, num_tokens, C)
        ctx.saved = (normalised, norm_scale, query, key, value, attended, total, joined, value_bias,
                     out_weight, *weights)
        return affine(joined, out_weight, out_bias + paddle.matmul(value_bias, out_weight))

    @staticmethod
    def gradients(ctx, gradient):
        (normalised, norm_scale, query, key, value, attended, total, joined, value_bias,
         out_weight, *weights) = ctx.saved
        of_out_bias = sum_rows(gradient)
        of_out_weight = product_backward(joined, gradient) if ctx.wanted[3] else None
        if ctx.wanted[3]:
            of_out_weight.add_(paddle.matmul(value_bias.unsqueeze(1), of_out_bias.unsqueeze(0)))
        gradient = paddle.matmul(gradient, out_weight, transpose_y=True)
        # Softmax: p (dp - sum(p dp)); that sum is the one over heads * gradient. As `attended` is
        # p * total, the bracket is divided by it.
        share = sum_last((gradient * joined).reshape([0, 0, ctx.num_heads, -1]))
        share = share.transpose([0, 2, 1, 3]).divide_(total)
        gradient = split_heads(gradient, ctx.num_heads).divide_(total)
        of_scores = paddle.matmul(gradient, value, transpose_y=True)
        of_scores.subtract_(share).multiply_(attended)
        of_query = join_heads(paddle.matmul(of_scores, key).scale_(ctx.scale))
        of_key = join_heads(paddle.matmul(of_scores, query, transpose_x=True))
        of_value = join_heads(paddle.matmul(attended, gradient, transpose_x=True))
        of_bias = sum_rows(of_query)
        missing = of_key.shape[1] - of_query.shape[1]
        if missing:
            of_query = F.pad(of_query, [0, missing], data_format='NLC')
        of_x, of_weight = normalised_backward(ctx, normalised, norm_scale, weights,
                                              [of_query, of_key, of_value])
        of_bias = paddle.concat([of_bias, paddle.zeros_like(of_bias),
                                 paddle.matmul(out_weight, of_out_bias)])
        return of_x, of_weight, of_bias, of_out_weight, of_out_bias


def split_heads(x, num_heads):
    """`[B, N, C]` to `[B, heads, N, d]`."""
    return x.reshape([0, 0, num_heads, -1]).transpose([0, 2, 1, 3])


def join_heads(x):
    """`[B, heads, N, d]` to `[B, N, C]`."""
    return x.transpose([0, 2, 1, 3]).flatten(2)


class PerformerAttention(Branch):
    """The attention of a Token_performer: `[B, N, dim]` to values and projection `[B, N, C]`.

    E = exp(w x - |x|^2 / 2) of keys and queries is one tensor `[B, N, 2 m]`: m features of the
    key, then m of the query. E^T value and E^T 1, with the rows of the keys moved to those of the
    queries and 0 elsewhere, are attention's numerator and normaliser after one more product with E.
    """

    @staticmethod
    def compute(ctx, x, weight, bias, w, out_weight, out_bias, norm_epsilon, epsilon):
        batch, tokens, _ = x.shape
        features, dim = w.shape
        normalised, scale = normalise(x, norm_epsilon, ctx.wanted[0])
        weights = paddle.split(weight, [2 * dim, dim], axis=1)
        bias, value_bias = paddle.split(bias, [2 * dim, dim])
        # (B, 2 N, C): each key, then its query.
        key_query = affine(normalised, weights[0], bias).reshape([batch, 2 * tokens, dim])
        value = affine(normalised, weights[1], value_bias)      # (B, N, C)
        exponentials = paddle.matmul(key_query, w, transpose_y=True)       # (B, 2 N, m)
        exp_(exponentials.subtract_(sum_squares(key_query, 0.5)))
        exponentials = exponentials.reshape([batch, tokens, 2 * features])
        attended = moved(paddle.matmul(exponentials, value, transpose_x=True), 1)   # (B, 2 m, C)
        ones = paddle.ones([batch, 1, tokens], x.dtype)
        key_sum = moved(paddle.matmul(ones, exponentials), 2)   # (B, 1, 2 m)
        # E is sqrt(m) times prm_exp.
        normaliser = paddle.matmul(exponentials, key_sum, transpose_y=True).scale_(
            1.0, epsilon * features)                            # (B, N, 1)
        ctx.saved = (normalised, scale, key_query, value.detach(), exponentials, attended, key_sum,
                     normaliser, w, out_weight, *weights)
        output = paddle.matmul(exponentials, paddle.matmul(attended, out_weight))
        return value, output.divide_(normaliser).add_(out_bias)

    @staticmethod
    def gradients(ctx, of_value, gradient):
        (normalised, scale, key_query, value, exponentials, attended, key_sum, normaliser, w,
         out_weight, *weights) = ctx.saved
        batch, tokens, dim = value.shape
        features = w.shape[0]
        of_out_bias = sum_rows(gradient)
        # output = E projected / normaliser, normaliser = E key_sum^T + epsilon
        projected = paddle.matmul(attended, out_weight)         # (B, 2 m, C)
        gradient = gradient / normaliser
        of_normaliser = sum_last(paddle.matmul(exponentials, projected).multiply_(gradient), -1.0)
        of_normaliser.divide_(normaliser)                       # (B, N, 1)
        of_projected = paddle.matmul(exponentials, gradient, transpose_x=True)      # (B, 2 m, C)
        of_out_weight = product_backward(attended, of_projected)
        of_attended = moved(paddle.matmul(of_projected, out_weight, transpose_y=True), 1, back=True)
        of_key_sum = moved(paddle.matmul(of_normaliser.reshape([batch, 1, tokens]), exponentials),
                           2, back=True)                        # (B, 1, 2 m)
        # The gradients of E by both sums, one product of rank 2.
        of_exponent = paddle.matmul(
            paddle.concat([of_normaliser, paddle.ones_like(of_normaliser)], axis=2),
            paddle.concat([key_sum, of_key_sum], axis=1))       # (B, N, 2 m)
        of_exponent.add_(paddle.matmul(gradient, projected, transpose_y=True))
        of_exponent.add_(paddle.matmul(value, of_attended, transpose_y=True))
        of_exponent = of_exponent.multiply_(exponentials).reshape([batch, 2 * tokens, features])
        of_value = paddle.matmul(exponentials, of_attended).add_(of_value)
        of_w = product_backward(of_exponent, key_query) if ctx.wanted[3] else None
        of_key_query = paddle.matmul(of_exponent, w)            # (B, 2 N, C)
        of_key_query.subtract_(key_query * sum_last(of_exponent))
        of_key_query = of_key_query.reshape([batch, tokens, 2 * dim])
        of_x, of_weight = normalised_backward(ctx, normalised, scale, weights,
                                              [of_key_query, of_value])
        of_bias = paddle.concat([sum_rows(of_key_query), sum_rows(of_value)])
        return of_x, of_weight, of_bias, of_w, of_out_weight, of_out_bias


def moved(x, axis, back=False):
    """The first half of an axis moved to the second, with 0 in its place; back: the reverse."""
    first, second = paddle.split(x, 2, axis=axis)
    parts = [second, paddle.zeros_like(second)] if back else [paddle.zeros_like(first), first]
    return paddle.concat(parts, axis=axis)
