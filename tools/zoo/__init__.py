"""Every network by name, `create_model('t2t_vit_7')`, and named weights into it."""

import difflib
from dataclasses import dataclass

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


@dataclass
class Loaded:
    """What load_state did, in names of parameters.

    Attributes:
        source: where the weights came from.
        taken: those that have the file's values.
        adapted: those that were made from the file's values.
        fresh: those that stayed as they were, which is: freshly initialised.
    """

    source: str
    taken: list
    adapted: list
    fresh: list

    def __str__(self):
        said = [f'{len(self.taken)} tensors taken']
        said += [f'{_shorten(names)} {what}' for names, what in (
            (self.adapted, 'interpolated'), (self.fresh, 'fresh')) if names]
        return f'weights of {self.source}: {"; ".join(said)}'


def load_state(network, state, source, adapt=False):
    """Put named weights into a network, all of them or none.

    Args:
        state: {parameter name: ndarray}, a Linear's weight as `[in, out]`.
        source: where it came from, for messages.
        adapt: take weights of another image size (pos_embed is interpolated, bicubic, the class
            token apart) and of another number of classes (the network's own head stays; of one
            that is distilled, each of its `heads`).

    Returns:
        Loaded.

    Raises:
        WeightsError: listing what is missing, unexpected, or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state, adapted, fresh = dict(state), [], []
    if adapt:
        fresh = _fresh_heads(network, state, wanted)
        state.update((name, network.state_dict()[name].numpy()) for name in fresh)
        table, shape = state.get('pos_embed'), wanted.get('pos_embed')
        if (table is not None and shape and table.ndim == len(shape) == 3
                and table.shape != shape and table.shape[2] == shape[2]):
            try:
                state['pos_embed'] = resize_pos_embed(
                    table, shape[1], getattr(network, 'num_prefix_tokens', 1)).numpy()
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
    taken = [name for name in wanted if name not in adapted and name not in fresh]
    return Loaded(str(source), taken, adapted, fresh)


def _fresh_heads(network, state, wanted):
    """The parameters of heads that have another number of classes in `state`."""
    fresh = []
    for head in getattr(network, 'heads', ('head',)):
        names = [name for name in wanted if name.startswith(f'{head}.')]
        if (all(name in state and state[name].shape[:-1] == wanted[name][:-1] for name in names)
                and any(state[name].shape != wanted[name] for name in names)):
            fresh += names
    return fresh


def _shorten(names, most=6):
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
