"""The same networks, computed with fewer and cheaper operations in training on a CPU.

`speed_up(network)` gives layers of a network another forward, which computes the same function of
the same parameters; names, state dict and results (up to rounding) stay. The other forward is used
only while gradients are recorded: evaluation, export and recordings of attention maps run the
layers as they are written in common.py and t2t.py. On a GPU, where Paddle has fused kernels and
mixed precision, nothing is changed. Nor is anything with few pixels in a step, where starting more
and smaller operations takes longer than they save.

What is done, and why:

- Gradients of whole branches, with the residual addition and what drops a part of them, are written
  by hand (`PyLayer`). They keep only what the gradients need, compute in place, and leave out the
  gradient of images, which nobody asks for.
- Large matrix products are Paddle's. What is between them is NumPy's, in the memory of the tensors
  (`array`) and a few rows at a time (`blocks`), so that one operation after another finds its
  numbers in the cache. Attention goes image by image for the same reason, and its products read and
  write heads where they are, without transposing them first.
- Soft splits copy their windows row by row, and the weights that read them are put in that order;
  Paddle's unfold moves single numbers.
- The weight and bias of a LayerNorm are multiplied into the linear layer that follows. Centring the
  columns of that weight centres the gradient of the normalised tokens, which makes the backward
  pass of a LayerNorm short.
- The gradient of a bias is a product with a vector of ones, which is faster than Paddle's sum over
  rows.
- GELU and its derivative are computed from erf and exp, whose kernels are faster than GELU's.
  The root of 2 in its argument is multiplied into the weights.
- A softmax divides by its sum after the product with the values, which has fewer columns.
- Dropout takes 16 random bits for each number from a generator of NumPy; Paddle's own random
  numbers take longer.
- The 1 / sqrt(m) of a Performer's features cancels, except in epsilon.
- The last block computes only the tokens that the heads use, but keys and values of all.
"""

import contextlib
import functools
import itertools
import math
import threading

import numpy as np
import paddle
from numpy.lib.stride_tricks import sliding_window_view
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from common import Attention, Block, DropPath, Mlp, check_size
from t2t import T2T_module, T2T_ViT, Token_performer, Token_transformer

LEAST_PIXELS = 224 ** 2    # of a process in a step
LARGEST_SCORE = 60         # exp(60) = 1e26
BLOCK = 2 ** 18            # numbers; an array of this size fits into a core's cache

_thread = threading.local()    # draws: see draw_for


def speed_up(network):
    """Use the faster forward in all layers of `network` that have one; return the network.

    Nothing changes unless `works_here()`.
    """
    if not works_here():
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


def works_here():
    """Return whether this is a CPU, and tensors have no strides, which `array` does not see."""
    views = paddle.get_flags('FLAGS_use_stride_kernel')['FLAGS_use_stride_kernel']
    return paddle.device.get_device() == 'cpu' and not views


def _forward(fast, layer, x):
    recorded = paddle.in_dynamic_mode() and paddle.is_grad_enabled()
    return fast(layer, x) if recorded else type(layer).forward(layer, x)


# ---- layers

def block(layer, x, num_tokens=None):
    """See common.Block; num_tokens: compute only the first ones, `[B, num_tokens, C]`."""
    x = attention(layer.norm1, layer.attn, x, num_tokens, layer.drop_path)
    return mlp(layer.norm2, layer.mlp, x, layer.drop_path)


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
    fc1, _, fc2, drop = layer.mlp
    shape = [*x.shape[:-1], layer.in_dim]
    x = PerformerAttention.apply(
        x, weight, bias, layer.w, layer.proj.weight, layer.proj.bias, layer.norm1._epsilon,
        layer.epsilon, Kept.by_number(layer.dp, shape))
    return NormMlp.apply(x, *merged(layer.norm2, fc1), fc2.weight, fc2.bias, layer.norm2._epsilon,
                         Kept.by_number(drop, shape))


def token_transformer(layer, x):
    """See t2t.Token_transformer."""
    x = layer.attn(layer.norm1(x))
    return mlp(layer.norm2, layer.mlp, x)


def attention(norm, layer, x, num_tokens=None, drop_path=None):
    """x + drop_path(layer(norm(x))) with an Attention: `[B, N, C]` to `[B, num_tokens, C]`."""
    first = x if num_tokens is None else x[:, :num_tokens]
    kind = type(layer)
    if layer.attn_drop.p or layer.proj_drop.p or any(
            getattr(kind, name) is not getattr(Attention, name)
            for name in ('forward', 'query_key_value', 'output')):
        branch = layer(norm(x))
        branch = branch if num_tokens is None else branch[:, :num_tokens]
        return first + (branch if drop_path is None else drop_path(branch))
    return NormAttention.apply(
        x, *merged(norm, layer.qkv), layer.proj.weight, layer.proj.bias, layer.num_heads,
        layer.scale, norm._epsilon, first.shape[1], Kept.by_image(drop_path, first.shape))


def mlp(norm, layer, x, drop_path=None):
    """x + drop_path(layer(norm(x))) with an Mlp: `[B, N, C]` to `[B, N, C]`."""
    if type(layer) is not Mlp or layer.drop.p:
        branch = layer(norm(x))
        return x + (branch if drop_path is None else drop_path(branch))
    return NormMlp.apply(x, *merged(norm, layer.fc1), layer.fc2.weight, layer.fc2.bias,
                         norm._epsilon, Kept.by_image(drop_path, x.shape))


def dropout(layer, x):
    """See nn.Dropout; the first axis of x is that of the images."""
    if not (layer.training and layer.p):
        return x
    return MaskedDropout.apply(x, Kept.by_number(layer, x.shape))


def drop_path(layer, x):
    """See common.DropPath."""
    if not (layer.training and layer.drop_prob):
        return x
    return MaskedDropout.apply(x, Kept.by_image(layer, x.shape))


def linear(layer, x, kernel=1):
    """See nn.Linear; kernel: see token_performer."""
    weight = by_window(layer.weight, kernel)
    return paddle.matmul(x, weight) if layer.bias is None else BiasedLinear.apply(
        x, weight, layer.bias)


FORWARDS = {Block: block, T2T_module: tokens_to_token, Token_transformer: token_transformer,
            nn.Dropout: dropout, DropPath: drop_path, nn.Linear: linear}


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


class Kept:
    """What dropout or drop path keep of `[..., C]`, the rest being 0; None: everything.

    Rows are multiplied by `factors`: `[R, C]`, booleans, or `[R, 1]`, one number for each row; and
    by `scale`, which preserves the expectation.
    """

    def __init__(self, factors=None, scale=1.0):
        self.factors, self.scale = factors, scale

    @classmethod
    def by_number(cls, layer, shape):
        """Draw for each number `[B, ..., C]` with the rate of an nn.Dropout, to 16 bits."""
        if not (layer.training and layer.p):
            return cls()
        batch, size = shape[0], math.prod(shape[1:])
        words = (size + 3) // 4                                 # of 64 bits, for each image
        bits = generator(words).random_raw(batch * words).view(np.uint16)
        bits = bits.reshape(batch, -1)[:, :size].reshape(-1, shape[-1])
        threshold = min(round(layer.p * 2 ** 16), 2 ** 16 - 1)
        return cls(bits >= threshold, 1 / (1 - threshold / 2 ** 16))

    @classmethod
    def by_image(cls, layer, shape):
        """Draw for each image of `[B, ..., C]` with the rate of a DropPath; None: keep all."""
        if layer is None or not (layer.training and layer.drop_prob):
            return cls()
        keep_prob = 1 - layer.drop_prob
        kept = np.random.Generator(generator(1)).random(shape[0]) < keep_prob
        return cls(kept.repeat(math.prod(shape[1:-1]))[:, np.newaxis], 1 / keep_prob)

    def of(self, x):
        """What is kept of a tensor; it may be the tensor itself."""
        if self.factors is None:
            return x
        result = paddle.empty_like(x)
        for source, factor, target in blocks(rows(array(x)), self.factors, rows(array(result))):
            np.multiply(source, factor, out=target)
            target *= self.scale
        return result

    def add_(self, branch, bias, x):
        """Compute x + kept(branch + bias) in place of a tensor `branch`; return it.

        bias and x are arrays: `[C]` and `[R, C]`.
        """
        result = rows(array(branch))
        factors = result if self.factors is None else self.factors    # not used if None
        for target, factor, source in blocks(result, factors, x):
            target += bias
            if self.factors is not None:
                target *= factor
                target *= self.scale
            target += source
        return branch


@contextlib.contextmanager
def draw_for(seed, first_image):
    """A context in which dropout and drop path draw for a part of a batch, in this thread.

    Each image gets the same random numbers in any part as in the whole batch.

    Args:
        seed: of the whole batch.
        first_image: index in the batch of the part's first image.
    """
    _thread.draws = seed, first_image, itertools.count()
    try:
        yield
    finally:
        del _thread.draws


def generator(words):
    """Return NumPy's generator of random bits for the next operation that draws.

    Its first numbers are for the first image of `draw_for`. Outside of that context Paddle's
    generator draws its seed.

    Args:
        words: numbers of 64 bits that the operation draws for each image.
    """
    draws = getattr(_thread, 'draws', None)
    if draws is None:
        return np.random.PCG64DXSM(paddle.randint(0, 2 ** 31 - 1, [1], dtype='int64').item())
    seed, first_image, operations = draws
    bits = np.random.PCG64DXSM(np.random.SeedSequence((seed, next(operations))))
    return bits.advance(first_image * words)


# ---- arithmetic without autograd

class Memory:
    """The memory of a tensor, as np.asarray takes it. The array keeps the tensor alive."""

    def __init__(self, x):
        self.tensor = x
        self.__array_interface__ = dict(
            version=3, shape=tuple(x.shape), data=(x.data_ptr(), False),
            typestr='=f4' if x.dtype == paddle.float32 else '=f8')


def array(x):
    """The memory of a tensor as a NumPy array."""
    return np.asarray(Memory(x))


def rows(x):
    """`[..., C]` as a matrix of rows `[R, C]`."""
    return x.reshape([-1, x.shape[-1]])


def blocks(*arrays):
    """A few rows of each array `[R, ...]`, which stay in the cache, then the next ones."""
    step = max(1, BLOCK // max(x[0].size for x in arrays))
    for first in range(0, len(arrays[0]), step):
        yield [x[first:first + step] for x in arrays]


def parts(x, count):
    """Views of `count` equal parts of the last axis of an array."""
    width = x.shape[-1] // count
    return [x[..., number * width:(number + 1) * width] for number in range(count)]


def heads(x, num_heads):
    """A view of an array `[B, N, heads * d]` as `[B, heads, N, d]`."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(1, 2)


def sum_rows(x):
    """The sum of all rows of a tensor `[..., C]`: `[C]`."""
    total, x = paddle.empty([x.shape[-1]], x.dtype), rows(array(x))
    np.matmul(np.ones(len(x), x.dtype), x, out=array(total))
    return total


def sum_products(x, y):
    """The sum of x * y over the last axis of arrays `[..., C]`: `[..., 1]`."""
    return np.einsum('...c,...c->...', x, y)[..., np.newaxis]


def sum_last(x):
    """The sum over the last axis of an array `[..., C]`: `[..., 1]`."""
    return (x @ np.ones(x.shape[-1], x.dtype))[..., np.newaxis]


def product_backward(x, gradient):
    """The gradient of the weight in x @ weight, whose result has the gradient `[..., D]`."""
    return paddle.matmul(rows(x), rows(gradient), transpose_x=True)


def affine(x, weight, bias):
    """x @ weight + bias."""
    product, bias = paddle.matmul(x, weight), array(bias)
    for block, in blocks(rows(array(product))):
        block += bias
    return product


def normalise(x, epsilon, in_place=False):
    """Normalise the last axis of `[..., C]`; return it and 1 / standard deviation, `[R, 1]`."""
    normalised = x if in_place else paddle.empty_like(x)
    tokens = rows(array(x))
    scale = np.empty((len(tokens), 1), tokens.dtype)
    for source, target, factor in blocks(tokens, rows(array(normalised)), scale):
        np.subtract(source, sum_last(source) / source.shape[1], out=target)
        variance = sum_products(target, target) / target.shape[1]
        np.divide(1, np.sqrt(variance + epsilon), out=factor)
        target *= factor
    return normalised, scale


def normalised_backward(ctx, normalised, scale, weight, gradient, residual=None):
    """The gradients of x and of the weight in normalise(x) @ weight.

    Args:
        ctx: of a Branch whose first inputs are x and the weight.
        normalised, scale: result of `normalise`.
        weight: `[C, D]`; the means of its columns are 0, so that the gradient of the normalised
            rows is centred.
        gradient: of the product, `[..., D]`.
        residual: added to the gradient of x.

    Returns:
        The two gradients; None for those that are not wanted.
    """
    of_weight = product_backward(normalised, gradient) if ctx.wanted[1] else None
    if not ctx.wanted[0]:
        return None, of_weight
    of_x = paddle.matmul(gradient, weight, transpose_y=True)
    result = rows(array(of_x))
    others = result if residual is None else rows(array(residual))    # not used if None
    for target, source, factor, other in blocks(result, rows(array(normalised)), scale, others):
        target -= source * (sum_products(target, source) / source.shape[1])
        target *= factor
        if residual is not None:
            target += other
    return of_x, of_weight


class Branch(PyLayer):
    """A function with its gradient: `compute(ctx, ...)` and `gradients(ctx, ...)`.

    `compute` leaves tensors for `gradients` in `ctx.saved`. They are released as soon as the
    gradients are computed, so that there can be only one backward pass. An output among them has to
    be detached: it would keep itself alive. The gradients of outputs belong to others, too, and
    stay as they are.
    """

    @classmethod
    def forward(cls, ctx, *inputs):
        ctx.wanted = [not x.stop_gradient for x in inputs if isinstance(x, paddle.Tensor)]
        with np.errstate(all='ignore'):    # a loss that is not finite is found by the stepper
            return cls.compute(ctx, *inputs)

    @classmethod
    def backward(cls, ctx, *gradients):
        with np.errstate(all='ignore'):
            results = cls.gradients(ctx, *gradients)
        ctx.saved = None
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
        merged = paddle.empty_like(weight)
        product = np.multiply(array(weight), array(scale)[:, np.newaxis], out=array(merged))
        product -= sum_last(product.T).T / len(product)
        return merged, paddle.matmul(shift, weight)

    @staticmethod
    def gradients(ctx, of_weight, of_bias):
        scale, shift, weight = ctx.saved
        of_scale, result = paddle.empty_like(scale), paddle.empty_like(weight)
        array(of_scale)[:] = sum_products(array(of_weight), array(weight))[:, 0]
        np.multiply(array(of_weight), array(scale)[:, np.newaxis], out=array(result))
        array(result)[...] += np.outer(array(shift), array(of_bias))
        return of_scale, paddle.matmul(weight, of_bias), result


class Windows(Branch):
    """A soft split: `[B, H, W, C]` to tokens `[B, N, kernel * kernel * C]`.

    The numbers of a token are in the order (row, column, channel), so that a row of a window is
    contiguous in memory; those of t2t.soft_split are in the order (channel, row, column).
    """

    @staticmethod
    def compute(ctx, x, kernel, stride, padding):
        batch, height, width, channels = ctx.shape = x.shape
        ctx.kernel, ctx.stride, ctx.padding = kernel, stride, padding
        ctx.grid = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        tokens = paddle.empty([batch, math.prod(ctx.grid), kernel * kernel * channels], x.dtype)
        edge = (padding, padding)
        for images, windows in blocks(array(x), array(tokens)):
            padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
            views = sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
            views = views[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
            windows.reshape(views.shape)[...] = views           # (images, rows, columns, k, k, C)
        return tokens

    @staticmethod
    def gradients(ctx, gradient):
        if not ctx.wanted[0]:
            return (None,)
        batch, height, width, channels = ctx.shape
        kernel, stride, padding = ctx.kernel, ctx.stride, ctx.padding
        end_row, end_column = (stride * count for count in ctx.grid)
        of_x = paddle.empty(ctx.shape, gradient.dtype)
        for of_images, windows in blocks(array(of_x), array(gradient)):
            windows = windows.reshape(-1, *ctx.grid, kernel, kernel, channels)
            padded = np.zeros((len(windows), height + 2 * padding, width + 2 * padding, channels),
                              windows.dtype)
            for row, column in np.ndindex(kernel, kernel):
                padded[:, row:row + end_row:stride, column:column + end_column:stride] += \
                    windows[:, :, :, row, column]
            of_images[...] = padded[:, padding:padding + height, padding:padding + width]
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
    """What is kept of x."""

    @staticmethod
    def compute(ctx, x, kept):
        ctx.kept = kept
        return kept.of(x)

    @staticmethod
    def gradients(ctx, gradient):
        return (ctx.kept.of(gradient),)


class NormMlp(Branch):
    """x + kept(gelu(normalise(x) @ weight1 + bias1) @ weight2 + bias2).

    With h = z / sqrt(2), gelu(z) = h (1 + erf(h)) / sqrt(2). Both roots are in the weights.
    """

    @staticmethod
    def compute(ctx, x, weight1, bias1, weight2, bias2, epsilon, kept):
        weight1, bias1, weight2 = (weight * 0.5 ** 0.5 for weight in (weight1, bias1, weight2))
        normalised, scale = normalise(x, epsilon)
        hidden = affine(normalised, weight1, bias1)             # (..., D)
        activated = hidden.erf()
        for h, gelu in blocks(rows(array(hidden)), rows(array(activated))):
            gelu += 1
            gelu *= h
        ctx.kept, ctx.saved = kept, (normalised, scale, hidden, weight1, weight2)
        return kept.add_(paddle.matmul(activated, weight2), array(bias2), rows(array(x)))

    @staticmethod
    def gradients(ctx, residual):
        normalised, scale, hidden, weight1, weight2 = ctx.saved
        gradient = ctx.kept.of(residual)
        of_bias2 = sum_rows(gradient)
        of_hidden = paddle.matmul(gradient, weight2, transpose_y=True)
        activated = hidden.erf()
        for h, of_h, gelu in blocks(*(rows(array(x)) for x in (hidden, of_hidden, activated))):
            # The derivative of h (1 + erf(h)) is 1 + erf(h) + h exp(-h^2) 2 / sqrt(pi).
            gelu += 1
            slope = h * h
            np.subtract(math.log(2 * np.pi ** -0.5), slope, out=slope)
            np.exp(slope, out=slope)
            slope *= h
            slope += gelu
            of_h *= slope
            gelu *= h
        of_weight2 = product_backward(activated, gradient) if ctx.wanted[3] else None
        of_x, of_weight1 = normalised_backward(ctx, normalised, scale, weight1, of_hidden,
                                               residual)
        of_weights = (None if of_weight is None else of_weight.scale_(0.5 ** 0.5)
                      for of_weight in (of_weight1, sum_rows(of_hidden), of_weight2))
        return of_x, *of_weights, of_bias2


class NormAttention(Branch):
    """The first tokens of x, plus kept(attention of normalise(x)): `[B, num_tokens, C]`.

    x is `[B, N, C]`; weight and bias are those of queries, keys and values.
    """

    @staticmethod
    def compute(ctx, x, weight, bias, out_weight, out_bias, num_heads, scale, epsilon, num_tokens,
                kept):
        batch, tokens, dim = x.shape
        normalised, norm_scale = normalise(x, epsilon)
        qkv = paddle.matmul(normalised, weight)                 # (B, N, 3 C)
        attended = paddle.empty([batch, num_heads, num_tokens, tokens], x.dtype)
        total = paddle.empty([batch, num_heads, num_tokens, 1], x.dtype)
        joined = paddle.empty([batch, num_tokens, dim], x.dtype)
        bias = array(bias)
        queries, keys, values = (heads(part, num_heads) for part in parts(array(qkv), 3))
        for images, query, key, value, scores, sums, result in blocks(
                array(qkv), queries[:, :, :num_tokens], keys, values, array(attended),
                array(total), heads(array(joined), num_heads)):
            images += bias
            query *= scale
            np.matmul(query, key.swapaxes(2, 3), out=scores)    # (images, heads, num_tokens, N)
            exp_of_scores_(scores)
            sums[...] = sum_last(scores)
            np.matmul(scores, value, out=result)
            result /= sums
        ctx.num_heads, ctx.scale, ctx.kept = num_heads, scale, kept
        ctx.saved = (normalised, norm_scale, qkv, attended, total, joined, weight, out_weight)
        first = x if num_tokens == tokens else x[:, :num_tokens]
        return kept.add_(paddle.matmul(joined, out_weight), array(out_bias), rows(array(first)))

    @staticmethod
    def gradients(ctx, residual):
        normalised, norm_scale, qkv, attended, total, joined, weight, out_weight = ctx.saved
        gradient = ctx.kept.of(residual)
        of_out_bias = sum_rows(gradient)
        of_out_weight = product_backward(joined, gradient) if ctx.wanted[3] else None
        of_joined = paddle.matmul(gradient, out_weight, transpose_y=True)
        num_tokens, missing = joined.shape[1], qkv.shape[1] - joined.shape[1]
        of_qkv = paddle.zeros_like(qkv) if missing else paddle.empty_like(qkv)
        (queries, keys, values), (of_queries, of_keys, of_values) = (
            [heads(part, ctx.num_heads) for part in parts(array(x), 3)] for x in (qkv, of_qkv))
        results, of_results = (heads(array(x), ctx.num_heads) for x in (joined, of_joined))
        for query, key, value, scores, sums, result, of_query, of_key, of_value, of_result in (
                blocks(queries[:, :, :num_tokens], keys, values, array(attended), array(total),
                       results, of_queries[:, :, :num_tokens], of_keys, of_values, of_results)):
            # Softmax: p (dp - sum(p dp)); that sum is the one over result * of_result. As `scores`
            # are p * sums now, the bracket is divided by these.
            of_result /= sums
            of_scores = of_result @ value.swapaxes(2, 3)        # (images, heads, num_tokens, N)
            of_scores -= sum_products(result, of_result)
            of_scores *= scores
            np.matmul(of_scores, key, out=of_query)
            of_query *= ctx.scale
            np.matmul(of_scores.swapaxes(2, 3), query, out=of_key)
            np.matmul(scores.swapaxes(2, 3), of_result, out=of_value)
        if missing:
            residual = F.pad(residual, [0, missing], data_format='NLC')
        of_x, of_weight = normalised_backward(ctx, normalised, norm_scale, weight, of_qkv,
                                              residual)
        return of_x, of_weight, sum_rows(of_qkv), of_out_weight, of_out_bias


def exp_of_scores_(scores):
    """Replace scores `[..., N]` by numbers whose quotients by their sum are the softmax."""
    # Without the maximum, which takes as long as exp, where exp cannot overflow and its sum cannot
    # become 0.
    if scores.max() > LARGEST_SCORE or scores.min() < -LARGEST_SCORE:
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)


class PerformerAttention(Branch):
    """Values plus kept(projection) of a Token_performer: `[B, N, dim]` to `[B, N, C]`.

    x, which nothing else may use, is normalised in place.
    E = exp(w x - |x|^2 / 2) of keys and queries is one tensor `[B, N, 2 m]`: m features of the
    key, then m of the query. They are sqrt(m) times prm_exp.
    """

    @staticmethod
    def compute(ctx, x, weight, bias, w, out_weight, out_bias, norm_epsilon, epsilon, kept):
        batch, tokens, _ = x.shape
        features, dim = w.shape
        normalised, scale = normalise(x, norm_epsilon, in_place=True)
        kqv = paddle.matmul(normalised, weight)                 # (B, N, 3 C)
        exponentials = paddle.empty([batch, tokens, 2 * features], x.dtype)
        normaliser = paddle.empty([batch, tokens, 1], x.dtype)
        output = paddle.empty([batch, tokens, dim], x.dtype)
        key_value = paddle.empty([batch, features, dim], x.dtype)           # key features^T values
        key_sum = paddle.empty([batch, features, 1], x.dtype)
        bias, w_array, projection = array(bias), array(w), array(out_weight)
        for images, exponents, divisor, y, sum_kv, sum_k in blocks(*map(array, (
                kqv, exponentials, normaliser, output, key_value, key_sum))):
            for block, e in blocks(rows(images), rows(exponents)):
                block += bias
                for x, exponent in zip(parts(block, 3), parts(e, 2)):       # keys, then queries
                    np.matmul(x, w_array.T, out=exponent)       # (rows, m)
                    exponent -= sum_products(x, x) * 0.5
                np.exp(e, out=e)
            key, query = parts(exponents, 2)                    # (images, N, m)
            np.matmul(key.swapaxes(1, 2), parts(images, 3)[2], out=sum_kv)
            sum_k[...] = sum_last(key.swapaxes(1, 2))
            np.matmul(query, sum_k, out=divisor)
            divisor += epsilon * features
            np.matmul(query, sum_kv @ projection, out=y)
            y /= divisor
        ctx.kept = kept
        ctx.saved = (normalised, scale, kqv, exponentials, normaliser, key_value, key_sum, weight,
                     w, out_weight)
        return kept.add_(output, array(out_bias), rows(array(kqv))[:, 2 * dim:])

    @staticmethod
    def gradients(ctx, residual):
        (normalised, scale, kqv, exponentials, normaliser, key_value, key_sum, weight, w,
         out_weight) = ctx.saved
        features, dim = w.shape
        gradient = ctx.kept.of(residual)
        of_out_bias, of_kqv = sum_rows(gradient), paddle.empty_like(kqv)
        of_w, of_out_weight = paddle.zeros_like(w), paddle.zeros_like(out_weight)
        w_array, of_w_array, projection = array(w), array(of_w), array(out_weight)
        of_projection = array(of_out_weight)
        for images, exponents, divisor, kv, sum_k, of_y, of_sum, of_images in blocks(*map(array, (
                kqv, exponentials, normaliser, key_value, key_sum, gradient, residual, of_kqv))):
            (key, query), value = parts(exponents, 2), parts(images, 3)[2]
            # y = top / divisor, top = query projected, divisor = query sum_k + epsilon
            projected = kv @ projection                         # (images, m, C)
            of_top = of_y / divisor                             # (images, N, C)
            of_divisor = sum_products(query @ projected, of_top) / -divisor
            of_projected = query.swapaxes(1, 2) @ of_top
            of_sum_k = query.swapaxes(1, 2) @ of_divisor        # (images, m, 1)
            of_projection += (kv.swapaxes(1, 2) @ of_projected).sum(axis=0)
            of_kv = of_projected @ projection.T
            of_value = parts(of_images, 3)[2]
            np.matmul(key, of_kv, out=of_value)
            of_value += of_sum
            of_exponents = np.empty_like(exponents)
            of_key, of_query = parts(of_exponents, 2)           # (images, N, m)
            np.matmul(value, of_kv.swapaxes(1, 2), out=of_key)
            of_key += of_sum_k.swapaxes(1, 2)
            np.matmul(of_top, projected.swapaxes(1, 2), out=of_query)
            of_query += of_divisor * sum_k.swapaxes(1, 2)
            for block, of_block, e, of_e in blocks(*map(rows, (
                    images, of_images, exponents, of_exponents))):
                of_e *= e
                for x, of_x, of_exponent in zip(parts(block, 3), parts(of_block, 3),
                                                parts(of_e, 2)):            # keys, then queries
                    np.matmul(of_exponent, w_array, out=of_x)
                    of_x -= x * sum_last(of_exponent)
                    if ctx.wanted[3]:
                        of_w_array += of_exponent.T @ x
        of_x, of_weight = normalised_backward(ctx, normalised, scale, weight, of_kqv)
        return of_x, of_weight, sum_rows(of_kqv), of_w, of_out_weight, of_out_bias
