"""Every network by name, `create_model('t2t_vit_7')`, and named weights into it."""

import difflib

import numpy as np

from common import resize_pos_embed
from runtime.weights import WeightsError
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
        raise ValueError(f'model {name!r} is unknown{hint}; known: {", ".join(MODELS)}')
    network, options = MODELS[name]
    return network(num_classes=num_classes, img_size=img_size, **{**options, **kwargs})


def load_state(network, state, source, adapt=False):
    """Put named weights into a network, all of them or none.

    Args:
        state: {parameter name: ndarray}, a Linear's weight as `[in, out]`.
        source: where it came from, for messages.
        adapt: take weights of another image size (pos_embed is interpolated, bicubic, the class
            token apart) and of another number of classes (the fresh head stays).

    Returns:
        The names that were adapted.

    Raises:
        WeightsError: listing what is missing, unexpected, or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state, adapted = dict(state), []
    if adapt:
        for name in ('head.weight', 'head.bias'):
            if name in state and name in wanted and state[name].shape != wanted[name]:
                state[name] = network.state_dict()[name].numpy()
                adapted.append(name)
        table = state.get('pos_embed')
        if (table is not None and table.ndim == 3 and table.shape != wanted['pos_embed']
                and table.shape[2] == wanted['pos_embed'][2]):
            try:
                state['pos_embed'] = resize_pos_embed(table, wanted['pos_embed'][1]).numpy()
            except ValueError as error:
                raise WeightsError(f'{source}: {error}') from error
            adapted.append('pos_embed')
    problems = {
        'missing': [name for name in wanted if name not in state],
        'unexpected': [name for name in state if name not in wanted],
        'of another shape': [
            f'{name} {list(state[name].shape)} instead of {list(shape)}'
            for name, shape in wanted.items() if name in state and state[name].shape != shape],
    }
    found = [f'{kind}: {_shorten(names)}' for kind, names in problems.items() if names]
    if found:
        hint = ''
        if not problems['missing'] and not problems['unexpected'] and not adapt:
            hint = (' (MODEL.ADAPT=true takes another image size or number of classes, '
                    'where that is meant)')
        raise WeightsError(f'{source}: does not fit the network; {"; ".join(found)}{hint}')
    for name, tensor in network.state_dict().items():
        tensor.set_value(np.ascontiguousarray(state[name]).astype('float32'))
    return adapted


def _shorten(names, most=6):
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
