"""Every network by name: `create_model('t2t_vit_7')`."""

import difflib

from t2t import T2T_ViT
from zoo.t2t_variants import T2T_ViT_Dense, T2T_ViT_Ghost, T2T_ViT_SE


def _t2t(embed_dim, depth, num_heads, mlp_ratio, tokens_type='performer', network=T2T_ViT):
    return network, dict(tokens_type=tokens_type, embed_dim=embed_dim, depth=depth,
                         num_heads=num_heads, mlp_ratio=mlp_ratio)


# name: (network, options). Table 1 and table 2 of arXiv 2101.11986.
MODELS = {
    't2t_vit_7': _t2t(256, 7, 4, 2.0),
    't2t_vit_10': _t2t(256, 10, 4, 2.0),
    't2t_vit_12': _t2t(256, 12, 4, 2.0),
    't2t_vit_14': _t2t(384, 14, 6, 3.0),
    't2t_vit_19': _t2t(448, 19, 7, 3.0),
    't2t_vit_24': _t2t(512, 24, 8, 3.0),
    't2t_vit_t_14': _t2t(384, 14, 6, 3.0, 'transformer'),
    't2t_vit_t_19': _t2t(448, 19, 7, 3.0, 'transformer'),
    't2t_vit_t_24': _t2t(512, 24, 8, 3.0, 'transformer'),
    't2t_vit_14_resnext': _t2t(384, 14, 32, 3.0),
    't2t_vit_14_wide': _t2t(768, 4, 12, 3.0),
    't2t_vit_14_se': _t2t(384, 14, 6, 3.0, network=T2T_ViT_SE),
    't2t_vit_16_ghost': _t2t(384, 16, 6, 3.0, network=T2T_ViT_Ghost),
    't2t_vit_dense': (T2T_ViT_Dense, dict(growth_rate=64, block_config=(3, 6, 6, 4),
                                          embed_dim=128, num_heads=8, mlp_ratio=2.0)),
}


def create_model(name, num_classes=1000, img_size=224, **kwargs):
    """Build a network of the zoo, freshly initialised.

    Args:
        name: a key of MODELS.
        num_classes: width of the head.
        img_size: side of the square input, in pixels.
        **kwargs: further options of the network, over those of the table.

    Raises:
        ValueError: for an unknown name (with the nearest known one) or impossible options.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        hint = f', did you mean {nearest[0]}?' if nearest else ''
        raise ValueError(f'model {name!r} is unknown{hint} Known: {", ".join(MODELS)}')
    network, options = MODELS[name]
    return network(num_classes=num_classes, img_size=img_size, **{**options, **kwargs})
