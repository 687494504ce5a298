"""Which networks are there?

`create_model('t2t_vit_7')` makes one; `load_state` puts named weights into it.

    t2t_variants    squeeze-and-excitation, ghost and dense T2T-ViT
    vit             ViT and DeiT
    pit             PiT
    names           tensor names in other people's files
    macs            multiply-accumulates
"""

import difflib
import inspect
from dataclasses import dataclass

import numpy as np

from t2t import T2T_ViT
from weights.files import WeightsError, shown
from zoo.pit import PiT
from zoo.t2t_variants import T2T_ViT_Dense, T2T_ViT_Ghost, T2T_ViT_SE
from zoo.vit import ViT

# For 32 x 32 pixels: the paper's first split of stride 4 would leave 8 x 8 tokens before anything
# was exchanged, and a grid of 2 x 2 in the end. A first split of stride 1 keeps every pixel, so
# both exchanges happen on finer grids (32 x 32, 16 x 16), and 8 x 8 = 64 tokens are left.
SMALL_IMAGE_SPLITS = ((3, 1, 1), (3, 2, 1), (3, 2, 1))


def _t2t(embed_dim, depth, num_heads, mlp_ratio, tokens_type='performer', network=T2T_ViT,
         **options):
    return network, dict(tokens_type=tokens_type, embed_dim=embed_dim, depth=depth,
                         num_heads=num_heads, mlp_ratio=mlp_ratio, **options)


def _vit(size, patch_size, **options):
    embed_dim, depth, num_heads = {'tiny': (192, 12, 3), 'small': (384, 12, 6),
                                   'base': (768, 12, 12), 'large': (1024, 24, 16)}[size]
    return ViT, dict(patch_size=patch_size, embed_dim=embed_dim, depth=depth,
                     num_heads=num_heads, **options)


def _pit(size, **options):
    shared = dict(patch_size=16, stride=8, depth=(2, 6, 4))
    return PiT, {**shared, **{
        'ti': dict(head_dim=32, num_heads=(2, 4, 8)),
        'xs': dict(head_dim=48, num_heads=(2, 4, 8)),
        's': dict(head_dim=48, num_heads=(3, 6, 12)),
        'b': dict(head_dim=64, num_heads=(4, 8, 16), patch_size=14, stride=7, depth=(3, 6, 4)),
    }[size], **options}


# name: (network, options). The options hold an image size or a number of classes where the name
# implies one that is not ImageNet's at 224 pixels.
MODELS = {
    # Tables 1 and 2 of arXiv 2101.11986.
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
    # T2T-ViT-7 for CIFAR; the paper itself resizes CIFAR to 224.
    't2t_vit_cifar': _t2t(256, 7, 4, 2.0, soft_splits=SMALL_IMAGE_SPLITS, img_size=32,
                          num_classes=10),
    # Table 1 of arXiv 2010.11929; tiny and small are DeiT's widths.
    'vit_tiny_patch16_224': _vit('tiny', 16),
    'vit_tiny_patch16_384': _vit('tiny', 16, img_size=384),
    'vit_small_patch16_224': _vit('small', 16),
    'vit_small_patch16_384': _vit('small', 16, img_size=384),
    'vit_small_patch32_224': _vit('small', 32),
    'vit_small_patch32_384': _vit('small', 32, img_size=384),
    'vit_base_patch16_224': _vit('base', 16),
    'vit_base_patch16_384': _vit('base', 16, img_size=384),
    'vit_base_patch32_224': _vit('base', 32),
    'vit_base_patch32_384': _vit('base', 32, img_size=384),
    'vit_large_patch16_224': _vit('large', 16),
    'vit_large_patch16_384': _vit('large', 16, img_size=384),
    # Table 1 of arXiv 2012.12877.
    'deit_tiny_patch16_224': _vit('tiny', 16),
    'deit_small_patch16_224': _vit('small', 16),
    'deit_base_patch16_224': _vit('base', 16),
    'deit_base_patch16_384': _vit('base', 16, img_size=384),
    'deit_tiny_distilled_patch16_224': _vit('tiny', 16, distilled=True),
    'deit_small_distilled_patch16_224': _vit('small', 16, distilled=True),
    'deit_base_distilled_patch16_224': _vit('base', 16, distilled=True),
    'deit_base_distilled_patch16_384': _vit('base', 16, distilled=True, img_size=384),
    # Table 1 of arXiv 2103.16302.
    'pit_ti': _pit('ti'),
    'pit_xs': _pit('xs'),
    'pit_s': _pit('s'),
    'pit_b': _pit('b'),
    'pit_ti_distilled': _pit('ti', distilled=True),
    'pit_xs_distilled': _pit('xs', distilled=True),
    'pit_s_distilled': _pit('s', distilled=True),
    'pit_b_distilled': _pit('b', distilled=True),
}


def entry(name):
    """The (class, options) of a name in MODELS.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        hint = f'did you mean {nearest[0]}?' if nearest else f'known are {", ".join(MODELS)}'
        raise ValueError(f'model {name!r} is unknown, {hint}')
    return MODELS[name]


def create_model(name, num_classes=None, img_size=None, norm_epsilon=None, **kwargs):
    """Build a network of the zoo, freshly initialised.

    Args:
        name: a key of MODELS.
        num_classes: width of the head; None: what the name implies, else 1000.
        img_size: side of the square input, in pixels; None: what the name implies, else 224.
        norm_epsilon: of every LayerNorm; None: the network's own.
        **kwargs: further options of the network, over those of the table.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one) or impossible
            options.
    """
    network, options = entry(name)
    for option in kwargs:
        if not takes(name, option):
            known = sorted(_options_of(network))
            nearest = difflib.get_close_matches(option, known, n=1)
            hint = f'did you mean {nearest[0]}?' if nearest else f'known are {", ".join(known)}'
            raise ValueError(f'{name} has no option {option!r}, {hint}')
    said = {key: value for key, value in dict(num_classes=num_classes, img_size=img_size).items()
            if value is not None}
    built = network(**{**options, **said, **kwargs})
    if norm_epsilon is not None:
        built.set_norm_epsilon(norm_epsilon)
    return built


def takes(name, option):
    """Whether the network of that name has an option, e.g. drop_path_rate."""
    return option in _options_of(MODELS[name][0])


def _options_of(network):
    """The names of a network's options; **options are those of the class it inherits from."""
    names = set()
    for each in network.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def same_network(name, other):
    """Whether two names differ in image size and number of classes at most, e.g. vit_tiny_* and
    deit_tiny_*."""
    def row(each):
        network, options = MODELS[each]
        return network, {key: value for key, value in options.items()
                         if key not in ('img_size', 'num_classes')}
    return row(name) == row(other)


@dataclass
class Loaded:
    """What load_state did, in names of parameters.

    Attributes:
        source: where the weights came from.
        taken: those that have the file's values.
        adapted: those that were made from the file's values.
        fresh: those that are not in the file and keep their initial values.
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


def load_state(network, state, source, adapt=False, new_head=False):
    """Put named weights into a network, all of them or none.

    Args:
        state: {parameter name: ndarray}, a Linear's weight as `[in, out]`.
        source: where it came from, for messages.
        adapt: take weights of another image size: position tables are interpolated, bicubic,
            their prefix tokens apart.
        new_head: take weights of another number of classes, and those without a head: the
            network's own heads stay.

    Returns:
        Loaded.

    Raises:
        WeightsError: listing what is missing, unexpected, or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state, adapted, fresh = dict(state), [], []
    if new_head:
        fresh = _fresh_heads(network, state, wanted)
        state.update((name, network.state_dict()[name].numpy()) for name in fresh)
    for name in network.position_axes if adapt else ():
        if (name in state and state[name].shape != wanted[name]
                and network.can_resize(name, state[name].shape)):
            try:
                state[name] = network.resize_positions(name, state[name]).numpy()
            except ValueError as error:
                raise WeightsError(f'{source}: {error}') from error
            adapted.append(name)
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
        elif found == [f'missing: {_shorten(head_parameters(network))}']:
            hint = ' (a file without a head: train one with MODEL.PRETRAINED)'
        raise WeightsError(f'{source}: does not fit the network; {"; ".join(found)}{hint}')
    for name, tensor in network.state_dict().items():
        tensor.set_value(np.ascontiguousarray(state[name]).astype('float32'))
    taken = [name for name in wanted if name not in adapted and name not in fresh]
    return Loaded(str(source), taken, adapted, fresh)


def head_parameters(network):
    """The names of the parameters of a network's heads."""
    return [name for name in network.state_dict() if name.split('.')[0] in network.heads]


def _fresh_heads(network, state, wanted):
    """The parameters of heads that `state` does not have, or with another number of classes."""
    fresh = []
    for head in network.heads:
        names = [name for name in wanted if name.startswith(f'{head}.')]
        found = [name for name in names if name in state]
        if not found or (found == names and any(state[name].shape != wanted[name] for name in names)
                         and all(state[name].shape[:-1] == wanted[name][:-1] for name in names)):
            fresh += names
    return fresh


def _shorten(names, most=6):
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(shown(name, 120) for name in names[:most]) + more
