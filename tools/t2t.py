"""Tokens-to-Token ViT (Yuan et al., ICCV 2021, arXiv 2101.11986).

Three overlapping *soft splits* (unfold) turn an image into tokens. After each of the first two, a
transformer of width 64 relates the tokens to each other (section 3.1). A deep, narrow stack of
transformer blocks follows (section 3.2); the head classifies the class token.

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

    `[B, N, dim]` to `[B, N, in_dim]`. Attention costs O(N), which makes the 3136 tokens after the
    first soft split affordable. As the width changes, the values are the skip connection.

    Features and attention are always computed in float32: in float16 the exponentials overflow
    and epsilon becomes 0, which gives nan.

    Args:
        dim, in_dim: width of input and output.
        kernel_ratio: number of random features, as a multiple of in_dim.
        drop: dropout of the attention's and the MLP's output.
        frozen: whether the random features `w` are not trained.
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
        """Positive random features of the softmax kernel: `[B, N, in_dim]` to float32 `[B, N, m]`.

        exp(w x - |x|^2 / 2) / sqrt(m), so that features(q) . features(k) estimates exp(q . k).
        """
        x, w = as_float32(x), as_float32(self.w)
        with full_precision():
            half_square_norm = (x * x).sum(axis=-1, keepdim=True) / 2      # (B, N, 1)
            projected = paddle.matmul(x, w, transpose_y=True)              # (B, N, m)
            return paddle.exp(projected - half_square_norm) / math.sqrt(self.num_features)

    def single_attn(self, x):
        """One attention head without softmax: `[B, N, dim]` to `[B, N, in_dim]`."""
        # Order k, q, v as in the official code; each (B, N, in_dim).
        key, query, value = paddle.split(self.kqv(x), 3, axis=-1)
        key, query = self.prm_exp(key), self.prm_exp(query)                # (B, N, m)
        with full_precision():
            key_sum = key.sum(axis=1, keepdim=True)                        # (B, 1, m)
            normaliser = paddle.matmul(query, key_sum, transpose_y=True)   # (B, N, 1)
            key_value = paddle.matmul(key, as_float32(value), transpose_x=True)  # (B, m, in_dim)
            y = paddle.matmul(query, key_value) / (normaliser + self.epsilon)    # (B, N, in_dim)
        y = y if y.dtype == value.dtype else y.astype(value.dtype)
        return value + self.dp(self.proj(y))

    def attention_macs(self, num_tokens):
        """See common.Attention. Counts the features of keys and queries, the product of keys and
        values, the product of queries with it, and the normaliser."""
        return num_tokens * self.num_features * (4 * self.in_dim + 1)

    def forward(self, x):
        x = self.single_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenAttention(nn.Layer):
    """The one-head attention of Token_transformer: `[B, N, dim]` to `[B, N, in_dim]`."""

    def __init__(self, dim, in_dim):
        super().__init__()
        self.scale = dim ** -0.5    # dim, not in_dim: as in the official code
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
        return value + self.proj(paddle.matmul(attention, value))          # (B, N, in_dim)


class Token_transformer(nn.Layer):
    """Exact attention instead of a Performer, for T2T-ViT_t: `[B, N, dim]` to `[B, N, in_dim]`.

    The cost is O(N^2): at 224 pixels the first one computes 3136 x 3136 scores for each image.
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
        tokens_type: 'performer', 'transformer', or 'convolution' (compared in the paper: three
            convolutions with the kernels, strides and paddings of the soft splits).
        token_dim: width of the tokens between the soft splits.
        soft_splits: (kernel, stride, padding) of each split, in pixels or tokens.
        frozen: whether the Performers' random features `w` are not trained.

    Raises:
        ValueError: for an image size that the strides don't divide, or for an unknown type.
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
        num_classes: width of the head; 0: no head, the network returns features.
        tokens_type, token_dim, soft_splits: see T2T_module.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention maps, and of
            residual branches (growing linearly over the depth up to this rate). The Performers'
            dropout is always 0.1.
        frozen: whether `pos_embed` and the Performers' `w` are not trained, as in the official
            model. The state dict holds them in both cases.

    Raises:
        ValueError: for an invalid image size, type or number of heads.
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
        # Input width of the head; in the dense variant it grows from block to block.
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
        """Fill `self.blocks` and return the width of the last block's output."""
        for drop_path in np.linspace(0, drop_path_rate, depth).tolist():
            self.blocks.append(self.block(embed_dim, drop_path=drop_path, **block_options))
        return embed_dim

    def epsilon_of_origin(self, naming, state):
        """See ImageClassifier. PaddleViT's weights were trained with 1e-6 or ported, with 1e-5.

        Ported official weights have the sinusoid table or random features of length sqrt(m),
        which the official code freezes. PaddleViT initialises the table with 0 and the features
        with length 1 / sqrt(m), and trains both.
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
    """Unfold a grid into overlapping windows: `[B, C, H, W]` to tokens `[B, N, C * k * k]`.

    Always in float32, as the backward pass sums the overlapping windows.
    """
    kernel, stride, padding = split
    x = as_float32(x)
    with full_precision():
        windows = F.unfold(x, kernel, stride, padding)          # (B, C * k * k, N)
        return windows.transpose([0, 2, 1])                     # (B, N, C * k * k)


def grid_sizes(img_size, soft_splits=SOFT_SPLITS):
    """The side of the token grid after each soft split, e.g. [56, 28, 14] for 224 pixels.

    Raises:
        ValueError: for invalid soft splits, and for an image size that the strides don't divide;
            the message names the nearest sizes that work.
    """
    for split in soft_splits:
        kernel, stride, padding = split
        if kernel < 1 or stride < 1 or padding < 0:
            raise ValueError(f'soft split {list(split)} is invalid: write kernel, stride, '
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
