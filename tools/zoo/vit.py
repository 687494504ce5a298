"""Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) and DeiT (Touvron et al.,
ICML 2021, arXiv 2012.12877).

DeiT trains ViT's networks with another recipe. Its distilled networks have a second prefix token
with a head of its own, which learns from a teacher (DeiT, section 4). Parameter names are those of
timm and of the DeiT repository.
"""

import numpy as np
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
)


class ViT(ImageClassifier):
    """Vision transformer on non-overlapping patches: images `[B, in_chans, S, S]` to logits.

    Args:
        img_size: S, in pixels; a multiple of patch_size.
        num_classes: width of each head; 0: no heads, the network returns features.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of tokens, of attention maps, and of
            residual branches (growing linearly over the depth up to this rate).
        distilled: add a distillation token `dist_token` and its head `head_dist`.

    Raises:
        ValueError: for an invalid image size or number of heads.
    """

    norm_epsilon = 1e-6
    no_weight_decay = ('cls_token', 'dist_token', 'pos_embed')
    position_axes = {'pos_embed': (1,)}
    # image_classification/{ViT,DeiT} of BR-IDL/PaddleViT (all versions of load_pytorch_weights.py).
    namings = {'PaddleViT ViT': (
        (r'^transformer\.(embeddings\.)?', ''),
        (r'^(patch_embedding\.)?(class_token|cls_token)$', 'cls_token'),
        (r'^distill_token$', 'dist_token'),
        (r'^(patch_embedding\.)?position_embeddings?$', 'pos_embed'),
        (r'^(patch_embeddings?|patch_embedding\.patch_embeddings?)\.(?=weight|bias)',
         'patch_embed.proj.'),
        (r'^(encoder\.)?layers\.', 'blocks.'),
        (r'^(blocks\.\d+)\.attn_norm\.', r'\1.norm1.'),
        (r'^(blocks\.\d+)\.mlp_norm\.', r'\1.norm2.'),
        (r'^(blocks\.\d+)\.attn\.out\.', r'\1.attn.proj.'),
        (r'^encoder\.encoder_norm\.', 'norm.'),
        (r'^classifier\.', 'head.'),
        (r'^(classifier_dist|head_distill)\.', 'head_dist.'))}

    def __init__(self, img_size=224, num_classes=1000, in_chans=3, patch_size=16, embed_dim=768,
                 depth=12, num_heads=12, mlp_ratio=4.0, qkv_bias=True, drop_rate=0.0,
                 attn_drop_rate=0.0, drop_path_rate=0.0, distilled=False):
        super().__init__()
        self.img_size = square_side(img_size)
        if self.img_size % patch_size:
            above = (self.img_size // patch_size + 1) * patch_size
            raise ValueError(f'img_size {self.img_size} cannot be divided into patches: use a '
                             f'multiple of {patch_size}, such as {above}')
        self.grid_size = self.img_size // patch_size
        self.num_features = embed_dim
        self.patch_embed = nn.Sequential(
            ('proj', nn.Conv2D(in_chans, embed_dim, patch_size, patch_size)))
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        if distilled:
            self.heads = ('head', 'head_dist')
            self.dist_token = self.create_parameter([1, 1, embed_dim])
        self.pos_embed = self.create_parameter(
            [1, self.num_prefix_tokens + self.grid_size ** 2, embed_dim])
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.LayerList([
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, drop_path,
                  self.norm_epsilon)
            for drop_path in np.linspace(0, drop_path_rate, depth).tolist()])
        self.norm = nn.LayerNorm(embed_dim, self.norm_epsilon)
        self.reset_head(num_classes)

        initialise(self)
        for token in self.prefix_tokens() + [self.pos_embed]:
            nn.initializer.Normal(std=0.02)(token)

    def prefix_tokens(self):
        """The learned tokens before the image tokens, each `[1, 1, C]`, in order."""
        names = ('cls_token', 'dist_token')[:self.num_prefix_tokens]
        return [getattr(self, name) for name in names]

    def forward_prefix(self, x):
        check_size(x, self.img_size)
        x = grid_to_tokens(self.patch_embed(x))                 # (B, N, C)
        prefix = [for_each_image(token, x) for token in self.prefix_tokens()]
        x = paddle.concat(prefix + [x], axis=1)                 # (B, prefix + N, C)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, :self.num_prefix_tokens]         # (B, prefix, C)

    def grid_layers(self):
        return [('patch_embed.proj', self.patch_embed.proj, self.grid_size)]
