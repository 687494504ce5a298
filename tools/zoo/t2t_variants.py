"""The designs that the paper compares (sections 3.2 and 4.3): squeeze-and-excitation, ghost, dense.

ResNeXt and wide only have other sizes; they are rows of MODELS in `zoo/__init__.py`.
"""

import numpy as np
import paddle
from paddle import nn

from common import Attention, Block
from t2t import T2T_ViT


class SqueezeExcitation(nn.Layer):
    """Channel attention (Hu et al., CVPR 2018) over tokens: `[B, N, C]` to `[B, N, C]`."""

    def __init__(self, dim, reduction=16):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, dim // reduction, bias_attr=False), nn.ReLU(),
                                nn.Linear(dim // reduction, dim, bias_attr=False), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean(axis=1, keepdim=True))        # (B, N, C) * (B, 1, C)


class SqueezeExcitationAttention(Attention):
    """Attention followed by squeeze-and-excitation of its output channels."""

    def __init__(self, dim, *args, **kwargs):
        super().__init__(dim, *args, **kwargs)
        self.se_layer = SqueezeExcitation(dim)

    def output(self, x):
        return self.proj_drop(self.se_layer(self.proj(x)))


class ChannelScale(nn.Layer):
    """One learned factor for each channel: `[B, N, C]` to `[B, N, C]`.

    The "cheap operation" of GhostNet (Han et al., CVPR 2020). The official code writes it as a
    grouped convolution of kernel size 1, hence the weight's shape `[C, 1, 1]`.
    """

    def __init__(self, dim):
        super().__init__()
        self.weight = self.create_parameter(
            [dim, 1, 1], default_initializer=nn.initializer.Uniform(-1.0, 1.0))

    def forward(self, x):
        return x * self.weight.flatten()                        # (B, N, C) * (C)


class GhostAttention(Attention):
    """Attention whose queries, keys and values are half projected and half scaled copies of these.

    The copies are scaled by `ChannelScale`.
    """

    def build_projections(self, dim, qkv_bias):
        half = dim // 2
        for name in 'qkv':
            self.add_sublayer(name, nn.Linear(dim, half, bias_attr=None if qkv_bias else False))
            self.add_sublayer(f'cheap_operation_{name}', ChannelScale(half))

    def query_key_value(self, x):
        halves = [(getattr(self, name)(x), getattr(self, f'cheap_operation_{name}'))
                  for name in 'qkv']
        return [paddle.concat([half, scale(half)], axis=-1)     # (B, N, C)
                for half, scale in halves]


class GhostMlp(nn.Layer):
    """MLP of three times the input's width, two thirds of it scaled copies of the first third.

    Raises:
        ValueError: if hidden_dim is not 3 * dim.
    """

    def __init__(self, dim, hidden_dim, drop=0.0):
        super().__init__()
        if hidden_dim != 3 * dim:
            raise ValueError(f'a ghost MLP is three times as wide as its input: {hidden_dim} is '
                             f'not 3 * {dim}, set mlp_ratio to 3')
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)
        self.cheap_operation2 = ChannelScale(dim)
        self.cheap_operation3 = ChannelScale(dim)

    def forward(self, x):
        x = self.act(self.fc1(x))                               # (B, N, C)
        ghosts = [self.act(self.cheap_operation2(x)), self.act(self.cheap_operation3(x))]
        x = self.drop(paddle.concat([x] + ghosts, axis=-1))     # (B, N, 3 * C)
        return self.drop(self.fc2(x))                           # (B, N, C)


class SqueezeExcitationBlock(Block):
    """Block with SqueezeExcitationAttention."""

    attention = SqueezeExcitationAttention


class GhostBlock(Block):
    """Block with GhostAttention and GhostMlp."""

    attention = GhostAttention
    feed_forward = GhostMlp


class DenseBlock(Block):
    """Block that appends its projected output: `[B, N, C]` to `[B, N, C + growth_rate]`."""

    def __init__(self, dim, growth_rate, **block_options):
        super().__init__(dim, **block_options)
        self.dense_linear = nn.Linear(dim, growth_rate)

    def forward(self, x):
        return paddle.concat([x, self.dense_linear(super().forward(x))], axis=-1)


class Transition(nn.Layer):
    """Halve the width between two dense stages: `[B, N, C]` to `[B, N, C // 2]`."""

    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.linear(x))


class T2T_ViT_SE(T2T_ViT):
    """T2T-ViT with squeeze-and-excitation in its attention."""

    block = SqueezeExcitationBlock


class T2T_ViT_Ghost(T2T_ViT):
    """T2T-ViT with ghost attention and ghost MLPs."""

    block = GhostBlock


class T2T_ViT_Dense(T2T_ViT):
    """T2T-ViT with dense connections (DenseNet, Huang et al., CVPR 2017).

    Args:
        growth_rate: channels that every block adds.
        block_config: number of blocks in each stage. `depth` keeps its default: it only sets the
            steps of `drop_path_rate`, and all blocks of a stage have the same rate.
        **options: of T2T_ViT.
    """

    def __init__(self, growth_rate=64, block_config=(3, 6, 6, 4), **options):
        self._stages = (growth_rate, tuple(block_config))
        super().__init__(**options)

    def build_blocks(self, embed_dim, depth, drop_path_rate, **block_options):
        growth_rate, block_config = self._stages
        drop_paths = np.linspace(0, drop_path_rate, depth).tolist()
        width = embed_dim
        for stage, num_blocks in enumerate(block_config):
            if stage:
                self.blocks.append(Transition(width))
                width //= 2
            for _ in range(num_blocks):
                self.blocks.append(DenseBlock(width, growth_rate, drop_path=drop_paths[stage],
                                              **block_options))
                width += growth_rate
        return width
