"""Which networks are there?

`create_model('t2t_vit_7')` builds one; `load_state` loads named weights into it.

    t2t_variants    squeeze-and-excitation, ghost and dense T2T-ViT
    vit             ViT and DeiT
    pit             PiT
    golden          results of the official implementations
    names           tensor names and layouts of other codebases
    published       published weights by name
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

# (kernel, stride, padding) for 32 x 32 pixels. The paper's strides 4, 2, 2 would leave 2 x 2
# tokens. With strides 1, 2, 2 the token transformers work on grids of 32 x 32 and 16 x 16, and
# 8 x 8 = 64 tokens remain.
SMALL_IMAGE_SPLITS = ((3, 1, 1), (3, 2, 1), (3, 2, 1))
# For 64 x 64 pixels: the paper's, but the last one keeps its grid, so that 8 x 8 tokens remain.
MINI_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 1, 1))


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


def _mini(embed_dim=128, depth=7, num_heads=4, mlp_ratio=2.0, tokens_type='performer',
          network=T2T_ViT):
    return _t2t(embed_dim, depth, num_heads, mlp_ratio, tokens_type, network,
                soft_splits=MINI_SPLITS, img_size=64)


# name: (network, options). img_size and num_classes are given where they differ from 224 and 1000.
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
    # config/tiny_imagenet_mini.yaml: 64 x 64 pixels in 8 x 8 tokens (PiT: 15 x 15 to 4 x 4), and
    # 1.30 to 1.35 million parameters.
    't2t_vit_mini': _mini(),
    't2t_vit_t_mini': _mini(tokens_type='transformer'),
    't2t_vit_c_mini': _mini(mlp_ratio=2.5, tokens_type='convolution'),
    't2t_vit_mini_wide': _mini(224, 2, 7),
    't2t_vit_mini_se': _mini(network=T2T_ViT_SE),
    't2t_vit_mini_ghost': _mini(depth=9, mlp_ratio=3.0, network=T2T_ViT_Ghost),
    'vit_mini': (ViT, dict(patch_size=8, embed_dim=128, depth=7, num_heads=4, mlp_ratio=3.0,
                           qkv_bias=False, img_size=64)),
    'pit_mini': (PiT, dict(patch_size=8, stride=4, head_dim=24, depth=(2, 3, 2),
                           num_heads=(2, 4, 8), mlp_ratio=3.0, qkv_bias=False, img_size=64)),
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
    """Return (class, options) of a name in MODELS.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest known one.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        hint = f'did you mean {nearest[0]}?' if nearest else f'known are {", ".join(MODELS)}'
        raise ValueError(f'model {name!r} is unknown, {hint}')
    return MODELS[name]


def create_model(name, num_classes=None, img_size=None, norm_epsilon=None, **kwargs):
    """Build a network of the zoo, newly initialised.

    Args:
        name: a key of MODELS.
        num_classes: width of the head; None: the default of MODELS or of the network.
        img_size: side of the square input, in pixels; None: the default, as above.
        norm_epsilon: of every LayerNorm; None: the network's own.
        **kwargs: further options of the network; they override those in MODELS.

    Raises:
        ValueError: for an unknown name or option (the message suggests the nearest known one) or
            invalid options.
    """
    network, options = entry(name)
    for option in kwargs:
        if not takes(name, option):
            known = sorted(_options_of(network))
            nearest = difflib.get_close_matches(option, known, n=1)
            hint = f'did you mean {nearest[0]}?' if nearest else f'known are {", ".join(known)}'
            raise ValueError(f'{name} has no option {option!r}, {hint}')
    given = {key: value for key, value in dict(num_classes=num_classes, img_size=img_size).items()
             if value is not None}
    built = network(**{**options, **given, **kwargs})
    if norm_epsilon is not None:
        built.set_norm_epsilon(norm_epsilon)
    return built


def takes(name, option):
    """Whether the network called `name` has an option, e.g. drop_path_rate."""
    return option in _options_of(MODELS[name][0])


def _options_of(network):
    """The names of a network's options; for **options those of its base class are included."""
    names = set()
    for each in network.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def same_network(name, other):
    """Whether two names differ at most in image size and number of classes.

    An example is vit_tiny_patch16_224 and deit_tiny_patch16_224.
    """
    def row(each):
        network, options = MODELS[each]
        return network, {key: value for key, value in options.items()
                         if key not in ('img_size', 'num_classes')}
    return row(name) == row(other)


@dataclass
class Loaded:
    """What load_state did: lists of parameter names.

    Attributes:
        source: where the weights came from.
        taken: loaded unchanged.
        adapted: interpolated from the file's values.
        fresh: not loaded; newly initialised.
    """

    source: str
    taken: list
    adapted: list
    fresh: list

    def __str__(self):
        parts = [f'{len(self.taken)} tensors loaded']
        parts += [f'{_shorten(names)} {what}' for names, what in (
            (self.adapted, 'interpolated'), (self.fresh, 'newly initialised')) if names]
        return f'weights of {self.source}: {"; ".join(parts)}'


def load_state(network, state, source, adapt=False, new_head=False):
    """Load named weights into a network, all of them or none.

    Args:
        network: the network. Without new_head, its own weights need not be allocated: it may be
            built under paddle.LazyGuard.
        state: {parameter name: ndarray}, a Linear's weight as `[in, out]`.
        source: where the weights came from, for messages.
        adapt: accept another image size: position tables are interpolated (bicubic), the rows of
            prefix tokens are copied.
        new_head: accept another number of classes, or no head: the network's heads keep their
            initial values.

    Returns:
        Loaded.

    Raises:
        WeightsError: lists the parameters that are missing, unexpected, or of another shape.
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
    listed = [f'{kind}: {_shorten(names)}' for kind, names in problems.items() if names]
    if listed:
        hint = ''
        if not problems['missing'] and not problems['unexpected'] and not adapt:
            hint = (' (MODEL.ADAPT=true accepts another image size or number of classes, '
                    'if that is intended)')
        elif listed == [f'missing: {_shorten(head_parameters(network))}']:
            hint = ' (the file has no head: train one with MODEL.PRETRAINED)'
        raise WeightsError(f'{source}: does not fit the network; {"; ".join(listed)}{hint}')
    for name, tensor in network.state_dict().items():
        tensor.set_value(np.ascontiguousarray(state[name]).astype('float32'))
    taken = [name for name in wanted if name not in adapted and name not in fresh]
    return Loaded(str(source), taken, adapted, fresh)


def head_parameters(network):
    """The names of the parameters of a network's heads."""
    return [name for name in network.state_dict() if name.split('.')[0] in network.heads]


def _fresh_heads(network, state, wanted):
    """The parameters of heads that `state` lacks or has with another number of classes."""
    fresh = []
    for head in network.heads:
        names = [name for name in wanted if name.startswith(f'{head}.')]
        given = [name for name in names if name in state]
        if not given or (given == names and any(state[name].shape != wanted[name] for name in names)
                         and all(state[name].shape[:-1] == wanted[name][:-1] for name in names)):
            fresh += names
    return fresh


def _shorten(names, most=6):
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(shown(name, 120) for name in names[:most]) + more
