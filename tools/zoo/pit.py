"""Pooling-based Vision Transformer (Heo et al., ICCV 2021, arXiv 2103.16302).

As in a convolutional network, the token grid shrinks and the width grows from stage to stage: a
strided depthwise convolution pools the grid, a linear layer widens the class token (section 3.2).

    image (B, 3, 224, 224)        pit_ti
      patches 16, stride 8        -> (B,  64, 27, 27), position table, first stage
      pool, second stage          -> (B, 128, 14, 14)
      pool, third stage           -> (B, 256,  7,  7)
      norm of the class token     -> (B, 256)
      head                        -> (B, num_classes)

Parameter names are those of the official repository, github.com/naver-ai/pit.
"""

import paddle
from paddle import nn

from common import (
    Block,
    ImageClassifier,
    check_size,
    for_each_image,
    grid_to_tokens,
    initialise,
    square_side,
    tokens_to_grid,
)


class Stage(nn.Layer):
    """Transformer blocks over prefix tokens `[B, n, C]` and a token grid `[B, C, side, side]`.

    Returns (prefix, grid) of the same shapes.
    """

    def __init__(self, blocks, side):
        super().__init__()
        self.blocks = nn.LayerList(blocks)
        self.side = side

    def forward(self, prefix, grid):
        num_prefix = prefix.shape[1]
        x = paddle.concat([prefix, grid_to_tokens(grid)], axis=1)          # (B, n + N, C)
        for block in self.blocks:
            x = block(x)
        return x[:, :num_prefix], tokens_to_grid(x[:, num_prefix:], self.side)


class Pool(nn.Layer):
    """Halve the side of the grid and widen grid and prefix tokens from dim to out_dim channels.

    (prefix `[B, n, dim]`, grid `[B, dim, side, side]`) to (`[B, n, out_dim]`,
    `[B, out_dim, (side + 1) // 2, (side + 1) // 2]`).
    """

    def __init__(self, dim, out_dim):
        super().__init__()
        self.conv = nn.Conv2D(dim, out_dim, 3, stride=2, padding=1, groups=dim)
        self.fc = nn.Linear(dim, out_dim)

    def forward(self, prefix, grid):
        return self.fc(prefix), self.conv(grid)


class PiT(ImageClassifier):
    """Pooling-based vision transformer: images `[B, in_chans, S, S]` to logits.

    Args:
        img_size: S, in pixels; at least patch_size. Up to stride - 1 pixels at the right and
            lower edge lie outside all patches and are ignored, as in the official code.
        num_classes: width of each head; 0: no heads, the network returns features.
        patch_size, stride: of the overlapping patches, in pixels.
        head_dim: width of an attention head; a stage has head_dim * num_heads channels.
        depth, num_heads: one number for each stage.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention maps, and of
            residual branches. Block i of n, counted over all stages, has drop_path_rate * i / n;
            as in the official code the last block does not reach the full rate.
        distilled: add a distillation token and its head `head_dist`.

    Raises:
        ValueError: for an image size smaller than a patch, or an invalid number of heads.
    """

    linear_std = None    # the official code keeps PyTorch's default initialisation
    norm_epsilon = 1e-6
    no_weight_decay = ('cls_token', 'pos_embed')
    position_axes = {'pos_embed': (2, 3)}
    # timm/models/pit.py: a pooling layer belongs to the next stage in current timm, and to the
    # previous stage in timm 0.4.
    namings = {'timm PiT': ((r'^transformers\.1\.pool\.', 'pools.0.'),
                            (r'^transformers\.2\.pool\.', 'pools.1.')),
               'timm 0.4 PiT': ((r'^transformers\.(?=\d\.pool\.)', 'pools.'),
                                (r'^(pools\.\d)\.pool\.', r'\1.'))}

    def __init__(self, img_size=224, num_classes=1000, in_chans=3, patch_size=16, stride=8,
                 head_dim=48, depth=(2, 6, 4), num_heads=(2, 4, 8), mlp_ratio=4.0, qkv_bias=True,
                 drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, distilled=False):
        super().__init__()
        self.img_size = square_side(img_size)
        if self.img_size < patch_size:
            raise ValueError(f'img_size {self.img_size} is smaller than a patch: use '
                             f'{patch_size} or more')
        if distilled:
            self.heads = ('head', 'head_dist')
        widths = [head_dim * heads for heads in num_heads]
        side = (self.img_size - patch_size) // stride + 1
        self.patch_embed = nn.Sequential(
            ('conv', nn.Conv2D(in_chans, widths[0], patch_size, stride)))
        self.pos_embed = self.create_parameter([1, widths[0], side, side])
        self.cls_token = self.create_parameter([1, self.num_prefix_tokens, widths[0]])
        self.pos_drop = nn.Dropout(drop_rate)

        drop_paths = iter([drop_path_rate * index / sum(depth) for index in range(sum(depth))])
        self.transformers, self.pools = nn.LayerList(), nn.LayerList()
        for stage, width in enumerate(widths):
            if stage:
                self.pools.append(Pool(widths[stage - 1], width))
                side = (side + 1) // 2
            self.transformers.append(Stage([
                Block(width, num_heads[stage], mlp_ratio, qkv_bias, drop_rate, attn_drop_rate,
                      next(drop_paths), self.norm_epsilon) for _ in range(depth[stage])], side))
        self.num_features = widths[-1]
        self.norm = nn.LayerNorm(self.num_features, self.norm_epsilon)
        self.reset_head(num_classes)

        initialise(self, self.linear_std)
        for table in (self.cls_token, self.pos_embed):
            nn.initializer.Normal(std=0.02)(table)

    def forward_prefix(self, x):
        check_size(x, self.img_size)
        grid = self.pos_drop(self.patch_embed(x) + self.pos_embed)         # (B, C, side, side)
        prefix = for_each_image(self.cls_token, grid_to_tokens(grid))      # (B, prefix, C)
        for stage, transformer in enumerate(self.transformers):
            if stage:
                prefix, grid = self.pools[stage - 1](prefix, grid)
            prefix, grid = transformer(prefix, grid)
        return self.norm(prefix)                                           # (B, prefix, C)

    def layers(self):
        """See ImageClassifier. A pooling layer counts to the last block of the previous stage."""
        layers = []
        for stage, transformer in enumerate(self.transformers):
            layers += [(f'transformers.{stage}.blocks.{index}',)
                       for index in range(len(transformer.blocks))]
            layers[-1] += (f'pools.{stage}',)
        return layers + [('norm', *self.heads)]

    def grid_layers(self):
        sides = [transformer.side for transformer in self.transformers]
        layers = [('patch_embed.conv', self.patch_embed.conv)] + [
            (f'pools.{index}.conv', pool.conv) for index, pool in enumerate(self.pools)]
        return [(name, layer, side) for (name, layer), side in zip(layers, sides)]
