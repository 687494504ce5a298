"""Tokens-to-Token ViT (Yuan et al., ICCV 2021, arXiv 2101.11986).

An image becomes tokens by three overlapping *soft splits* (unfold); between them a small
transformer of width 64 lets neighbouring tokens exchange what they saw (section 3.1). The
tokens then pass a deep, narrow stack of transformer blocks (section 3.2), and the class token
is classified.

    image (B, 3, 224, 224)
      soft split 7/4/2 -> (B, 3136, 147), Token_performer -> (B, 3136, 64)
      soft split 3/2/1 -> (B,  784, 576), Token_performer -> (B,  784, 64)
      soft split 3/2/1 -> (B,  196, 576), project         -> (B,  196, embed_dim)
      class token, position table, blocks, norm           -> (B, embed_dim)
      head                                                -> (B, num_classes)
"""

import math

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from common import (
    Block,
    ImageClassifier,
    Mlp,
    as_float32,
    check_size,
    for_each_image,
    full_precision,
    grid_to_tokens,
    initialise,
    sinusoid_table,
    square_side,
    tokens_to_grid,
)

SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))    # kernel, stride, padding


class Token_performer(nn.Layer):
    """Performer with positive random features (Choromanski et al., ICLR 2021, lemma 1).

    Attention costs O(N) here, which the 3136 tokens behind the first soft split need:
    `[B, N, dim]` to `[B, N, in_dim]`. The width changes, so the values serve as the skip
    connection.

    Features and attention are computed in float32 also where the rest is not: in float16 the
    exponentials overflow and epsilon is 0, which ends in nan.
    """

    def __init__(self, dim, in_dim, kernel_ratio=0.5, drop=0.1, frozen=True):
        super().__init__()
        self.in_dim = in_dim
        self.num_features = int(in_dim * kernel_ratio)
        self.epsilon = 1e-8
        self.kqv = nn.Linear(dim, 3 * in_dim)
        self.dp = nn.Dropout(drop)
        self.proj = nn.Linear(in_dim, in_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(in_dim)
        self.mlp = nn.Sequential(nn.Linear(in_dim, in_dim), nn.GELU(),
                                 nn.Linear(in_dim, in_dim), nn.Dropout(drop))
        # Orthogonal rows of norm sqrt(num_features), drawn once.
        self.w = self.create_parameter(
            [self.num_features, in_dim],
            default_initializer=nn.initializer.Orthogonal(math.sqrt(self.num_features)))
        self.w.stop_gradient = frozen

    def prm_exp(self, x):
        """Positive random features of the softmax kernel: `[B, N, in_dim]` to `[B, N, m]`.

        exp(w x - |x|^2 / 2) / sqrt(m), so that features(q) . features(k) estimates exp(q . k).
        They are float32, whatever comes in.
        """
        x, w = as_float32(x), as_float32(self.w)
        with full_precision():
            half_square_norm = (x * x).sum(axis=-1, keepdim=True) / 2      # (B, N, 1)
            projected = paddle.matmul(x, w, transpose_y=True)              # (B, N, m)
            return paddle.exp(projected - half_square_norm) / math.sqrt(self.num_features)

    def single_attn(self, x):
        """One attention head without a softmax: `[B, N, dim]` to `[B, N, in_dim]`."""
        key, query, value = paddle.split(self.kqv(x), 3, axis=-1)          # k, q, v: official order
        key, query = self.prm_exp(key), self.prm_exp(query)                # (B, N, m)
        with full_precision():
            key_sum = key.sum(axis=1, keepdim=True)                        # (B, 1, m)
            normaliser = paddle.matmul(query, key_sum, transpose_y=True)   # (B, N, 1)
            key_value = paddle.matmul(key, as_float32(value), transpose_x=True)  # (B, m, in_dim)
            y = paddle.matmul(query, key_value) / (normaliser + self.epsilon)    # (B, N, in_dim)
        y = y if y.dtype == value.dtype else y.astype(value.dtype)
        return value + self.dp(self.proj(y))

    def attention_macs(self, num_tokens):
        """See common.Attention. What replaces it here: a token's features of key and query, key
        times value, query times that, the normaliser."""
        return num_tokens * self.num_features * (4 * self.in_dim + 1)

    def forward(self, x):
        x = self.single_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Layer):
    """The one-head attention of Token_transformer: `[B, N, dim]` to `[B, N, in_dim]`."""

    def __init__(self, dim, in_dim):
        super().__init__()
        self.scale = dim ** -0.5    # of the input's width, not of the head's: as published
        self.qkv = nn.Linear(dim, 3 * in_dim, bias_attr=False)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(in_dim, in_dim)

    def attention_macs(self, num_tokens):
        """See common.Attention."""
        return 2 * num_tokens ** 2 * self.proj.weight.shape[0]

    def forward(self, x):
        query, key, value = paddle.split(self.qkv(x), 3, axis=-1)          # (B, N, in_dim)
        scores = paddle.matmul(query * self.scale, key, transpose_y=True)  # (B, N, N)
        attention = self.attn_drop(F.softmax(scores, axis=-1))
        return value + self.proj(paddle.matmul(attention, value))


class Token_transformer(nn.Layer):
    """The exact attention in Performer's place, for T2T-ViT_t: `[B, N, dim]` to `[B, N, in_dim]`.

    Its cost is O(N^2): at 224 pixels the first one holds 3136 x 3136 scores an image.
    """

    def __init__(self, dim, in_dim, mlp_ratio=1.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TokenAttention(dim, in_dim)
        self.norm2 = nn.LayerNorm(in_dim)
        self.mlp = Mlp(in_dim, int(in_dim * mlp_ratio))

    def forward(self, x):
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class T2T_module(nn.Layer):
    """Tokens-to-Token (section 3.1): image `[B, in_chans, S, S]` to tokens `[B, N, embed_dim]`.

    Args:
        img_size: S, in pixels.
        tokens_type: 'performer', 'transformer', or 'convolution' (the paper's comparison, three
            plain convolutions with the soft splits' kernels).
        token_dim: width between the soft splits.
        soft_splits: one (kernel, stride, padding) a split.
        frozen: whether the Performers keep their random features `w`.

    Raises:
        ValueError: where the soft splits don't divide the image size, or for an unknown type.
    """

    def __init__(self, img_size=224, tokens_type='performer', in_chans=3, embed_dim=768,
                 token_dim=64, soft_splits=SOFT_SPLITS, frozen=True):
        super().__init__()
        if tokens_type not in ('performer', 'transformer', 'convolution'):
            raise ValueError(f"tokens_type {tokens_type!r} is unknown: use 'performer', "
                             "'transformer' or 'convolution'")
        self.img_size = square_side(img_size)
        self.soft_splits = tuple(soft_splits)
        self.grid_sizes = grid_sizes(self.img_size, self.soft_splits)
        self.num_patches = self.grid_sizes[-1] ** 2
        self.convolutional = tokens_type == 'convolution'

        width = in_chans
        last = len(self.soft_splits) - 1
        for index, (kernel, stride, padding) in enumerate(self.soft_splits):
            if self.convolutional:
                name = 'project' if index == last else f'soft_split{index}'
                out_dim = embed_dim if index == last else token_dim
                self.add_sublayer(name, nn.Conv2D(width, out_dim, kernel, stride, padding))
            elif index == last:
                self.project = nn.Linear(width * kernel * kernel, embed_dim)
            elif tokens_type == 'performer':
                self.add_sublayer(f'attention{index + 1}', Token_performer(
                    width * kernel * kernel, token_dim, frozen=frozen))
            else:
                self.add_sublayer(f'attention{index + 1}', Token_transformer(
                    width * kernel * kernel, token_dim))
            width = token_dim

    def forward(self, x):
        check_size(x, self.img_size)
        if self.convolutional:
            for index in range(len(self.soft_splits) - 1):
                x = getattr(self, f'soft_split{index}')(x)      # (B, token_dim, side, side)
            return grid_to_tokens(self.project(x))              # (B, N, embed_dim)
        last = len(self.soft_splits) - 1
        for index in range(last):
            x = soft_split(x, self.soft_splits[index])          # (B, side * side, C * k * k)
            x = getattr(self, f'attention{index + 1}')(x)       # (B, side * side, token_dim)
            x = tokens_to_grid(x, self.grid_sizes[index])       # (B, token_dim, side, side)
        return self.project(soft_split(x, self.soft_splits[last]))         # (B, N, embed_dim)


class T2T_ViT(ImageClassifier):
    """Tokens-to-Token vision transformer: images `[B, in_chans, S, S]` to logits.

    Args:
        img_size: S, in pixels; a multiple of 16 with the paper's soft splits.
        num_classes: width of the head; 0 leaves it out, and features come out.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention maps, and of
            residual branches (growing linearly over the depth up to this rate). The Performers
            have a dropout of 0.1 of their own, whatever is given here.
        frozen: whether `pos_embed` and the Performers' `w` stay as they were initialised, as in
            the official model; they are in the state dict either way.

    Raises:
        ValueError: for a size, a type or a number of heads that can't work.
    """

    block = Block
    no_weight_decay = ('cls_token', 'pos_embed')
    position_axes = {'pos_embed': (1,)}
    # image_classification/T2T_ViT of BR-IDL/PaddleViT (its load_pytorch_weights.py).
    namings = {'PaddleViT T2T-ViT': (
        (r'^patch_embed\.attn(?=\d\.)', 'tokens_to_token.attention'),
        (r'^patch_embed\.proj\.', 'tokens_to_token.project.'))}

    def __init__(self, img_size=224, num_classes=1000, tokens_type='performer', in_chans=3,
                 embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0, qkv_bias=False,
                 drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, token_dim=64,
                 soft_splits=SOFT_SPLITS, frozen=True):
        super().__init__()
        self.tokens_to_token = T2T_module(img_size, tokens_type, in_chans, embed_dim, token_dim,
                                          soft_splits, frozen)
        self.img_size = self.tokens_to_token.img_size
        num_positions = self.tokens_to_token.num_patches + 1
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        self.pos_embed = self.create_parameter([1, num_positions, embed_dim])
        self.pos_drop = nn.Dropout(drop_rate)

        self.blocks = nn.LayerList()
        # Width of what goes into the head; the dense variant grows it block by block.
        self.num_features = self.build_blocks(
            embed_dim, depth, drop_path_rate, num_heads=num_heads, mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias, drop=drop_rate, attn_drop=attn_drop_rate)
        self.norm = nn.LayerNorm(self.num_features)
        self.reset_head(num_classes)

        initialise(self)
        nn.initializer.Normal(std=0.02)(self.cls_token)
        self.pos_embed.set_value(sinusoid_table(num_positions, embed_dim))
        self.pos_embed.stop_gradient = frozen

    def build_blocks(self, embed_dim, depth, drop_path_rate, **block_options):
        """Fill `self.blocks` and return the width that comes out of them."""
        for drop_path in np.linspace(0, drop_path_rate, depth).tolist():
            self.blocks.append(self.block(embed_dim, drop_path=drop_path, **block_options))
        return embed_dim

    def epsilon_of_origin(self, naming, state):
        """PaddleViT trains with 1e-6, and ports official weights, which were trained with 1e-5.

        The official code freezes the sinusoid table and random features of length sqrt(m); in
        PaddleViT the table starts at 0, the features at length 1 / sqrt(m), and both train.
        """
        if naming not in self.namings:
            return None
        table = np.asarray(state['pos_embed'] if 'pos_embed' in state else 0, 'float32')
        official = table.ndim == 3 and np.allclose(table, sinusoid_table(*table.shape[1:]),
                                                   atol=0.02)
        for name, w in state.items():
            if name.endswith('.w') and w.ndim == 2:
                lengths = np.linalg.norm(np.asarray(w, 'float32'), axis=1)
                official = official or np.allclose(lengths, math.sqrt(len(w)), rtol=0.02)
        return 1e-5 if official else 1e-6

    def forward_prefix(self, x):
        x = self.tokens_to_token(x)                             # (B, N, C)
        x = paddle.concat([for_each_image(self.cls_token, x), x], axis=1)  # (B, 1 + N, C)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, :1]                              # (B, 1, C)

    def grid_layers(self):
        sides = self.tokens_to_token.grid_sizes
        return [(f'tokens_to_token.{name}', layer, side) for (name, layer), side in zip(
            self.tokens_to_token.named_children(), sides)]


def soft_split(x, split):
    """Cut a grid into overlapping windows: `[B, C, H, W]` to tokens `[B, N, C * k * k]`.

    In float32 also under mixed precision: backward, the overlapping windows are summed.
    """
    kernel, stride, padding = split
    x = as_float32(x)
    with full_precision():
        return F.unfold(x, kernel, stride, padding).transpose([0, 2, 1])


def grid_sizes(img_size, soft_splits=SOFT_SPLITS):
    """The side of the token grid behind every soft split, e.g. [56, 28, 14] for 224 pixels.

    Raises:
        ValueError: for impossible soft splits, and where the strides don't divide the image
            size, with the sizes that work.
    """
    for split in soft_splits:
        kernel, stride, padding = split
        if kernel < 1 or stride < 1 or padding < 0:
            raise ValueError(f'soft split {list(split)} is impossible: write kernel, stride, '
                             'padding; the first two at least 1, the last at least 0')
    if not soft_splits:
        raise ValueError('soft_splits is empty: at least one (kernel, stride, padding) is needed')
    step = math.prod(stride for _, stride, _ in soft_splits)
    if img_size % step:
        below, above = img_size // step * step, (img_size // step + 1) * step
        nearest = f'{below} or {above}' if below else f'{above}'
        raise ValueError(f'img_size {img_size} cannot be divided by the soft splits: use a '
                         f'multiple of {step}, such as {nearest}')
    sides, side = [], img_size
    for kernel, stride, padding in soft_splits:
        side = (side + 2 * padding - kernel) // stride + 1
        sides.append(side)
    if sides[-1] * step != img_size:
        raise ValueError(f'soft splits {soft_splits} turn {img_size} pixels into {sides[-1]} x '
                         f'{sides[-1]} tokens instead of {img_size // step} x {img_size // step}: '
                         'check their kernels and paddings')
    return sides
