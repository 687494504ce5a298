"""From the names and layouts in which weights circulate to the network's own.

The networks here have the names of the official PyTorch codes: those of T2T-ViT, of naver-ai's
PiT, of timm's ViT and DeiT. Files of those, of the Paddle repository and of PaddleClas need no
new names, files of PaddleViT and timm's PiT do. A Linear's weight is `[in, out]` in Paddle and
`[out, in]` in PyTorch. No value is changed, and every type of number stays.

Sources of the names: image_classification/{T2T_ViT,ViT,DeiT} of BR-IDL/PaddleViT (their
load_pytorch_weights.py, in all of its versions) and timm/models/pit.py.
"""

import contextlib
import dataclasses
import functools
import math
import re

import paddle

from weights.files import WeightsError, read_weights
from zoo import MODELS, create_model, load_state

# naming: (pattern, replacement) in order, each applied once to every name.
NAMINGS = {
    'official': (),
    'PaddleViT T2T-ViT': (
        (r'^patch_embed\.attn(?=\d\.)', 'tokens_to_token.attention'),
        (r'^patch_embed\.proj\.', 'tokens_to_token.project.')),
    'PaddleViT ViT': (
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
        (r'^(classifier_dist|head_distill)\.', 'head_dist.')),
    # A pooling opens the stage behind it in timm today, and closed the one before it in 0.4.
    'timm PiT': ((r'^transformers\.1\.pool\.', 'pools.0.'),
                 (r'^transformers\.2\.pool\.', 'pools.1.')),
    'timm 0.4 PiT': ((r'^transformers\.(?=\d\.pool\.)', 'pools.'),
                     (r'^(pools\.\d)\.pool\.', r'\1.')),
}
# What differs between image sizes and numbers of classes of one model.
ADAPTABLE = re.compile(r'pos_embed|head(_dist)?\.(weight|bias)')
MOST_ADAPTABLE = 5    # of them in one network
MOST_PIXELS = 2048    # that a file is believed without a look at its weights
USUAL_SIZES = (224, 384, 256, 288, 320, 192, 160, 128, 96, 64, 48, 32)


@dataclasses.dataclass
class Fitted:
    """Weights under a network's own names, each Linear's weight `[in, out]`, and what they lacked.

    Attributes:
        state: {name: ndarray} in the network's order, then what it has no place for.
        naming: the key of NAMINGS that fitted.
        layout, evidence: 'paddle' or 'pytorch', as found in the file, and how that was told.
        renamed: {name: name in the file}, where the two differ.
        transposed: names.
        missing, unexpected: names.
        other_shape: {name: (shape found, shape wanted)}.
    """

    state: dict
    naming: str
    layout: str
    evidence: str
    renamed: dict
    transposed: list
    missing: list
    unexpected: list
    other_shape: dict

    def foreign(self):
        """Whether it takes more than another image size or number of classes to use them."""
        return not all(ADAPTABLE.fullmatch(name)
                       for name in [*self.missing, *self.unexpected, *self.other_shape])


def weights_for(network, path):
    """Read a weights file of any of the known origins for a network.

    Returns:
        (state, metadata): named and laid out as the network's own, fit for zoo.load_state, which
        reports what is missing.

    Raises:
        WeightsError: for a file that can't be read, or that holds another model's weights, with
            the name of that model.
    """
    state, metadata = read_weights(path)
    return _for_network(network, state, metadata, path), metadata


def pretrained_model(name, path, **options):
    """create_model(name) with the weights of a file, of their image size and number of classes.

    Args:
        **options: of create_model; a `num_classes` or `img_size` that the weights don't have
            gets a fresh head or an interpolated position table.

    Raises:
        WeightsError: for a file that can't be read or belongs to another model.
        ValueError: for impossible options.
    """
    state, metadata = read_weights(path)
    try:
        network = create_model(name, **{**options_for(name, state, metadata), **options})
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    load_state(network, _for_network(network, state, metadata, path), path,
               adapt='num_classes' in options or 'img_size' in options)
    return network


def _for_network(network, state, metadata, path):
    fitted = fit(state, shapes_of(network), metadata)
    models = recognise(state, metadata) if fitted.foreign() else []
    if models:
        raise WeightsError(f'{path}: does not fit the network, it looks like the weights of '
                           f'{" or ".join(models)} (MODEL.NAME={models[0]}, and no other key that '
                           'changes the network)')
    return fitted.state


def fit(state, wanted, metadata=None):
    """Give weights the names and the layout that a network wants.

    The naming is the one under which most names are known. The layout is the one in which the
    Linears fit that are not square; where none tells, it is what `metadata['layout']` says, else
    Paddle's. Square weights are transposed with the others.

    Args:
        state: {name: ndarray}, as read_weights gives it.
        wanted: {name: shape} of the network.

    Returns:
        Fitted.
    """
    naming, origin = _best_naming(state, wanted)
    ordered = [name for name in wanted if name in origin]
    ordered += [name for name in origin if name not in wanted]
    found = {name: state[origin[name]] for name in ordered}
    layout, evidence = _layout(found, wanted, (metadata or {}).get('layout'))
    transposed = [name for name, array in found.items()
                  if layout == 'pytorch' and is_linear(name, array.shape)]
    found.update((name, found[name].T) for name in transposed)
    return Fitted(
        found, naming, layout, evidence,
        renamed={name: origin[name] for name in ordered if name != origin[name]},
        transposed=transposed,
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
        other_shape={name: (found[name].shape, shape) for name, shape in wanted.items()
                     if name in found and found[name].shape != shape})


def is_linear(name, shape):
    """Whether a parameter is the weight of a Linear; a Performer's `w` is none."""
    return name.endswith('.weight') and len(shape) == 2


def in_pytorch_layout(state):
    """Weights as the networks here have them with each Linear's weight as `[out, in]`."""
    return {name: array.T if is_linear(name, array.shape) else array
            for name, array in state.items()}


def shapes_of(network):
    """{name: shape} of a network's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def recognise(state, metadata=None):
    """The models of the zoo that have these names and shapes, in the zoo's order.

    The image size and the number of classes may be any, but models of the very image size come
    alone. Models that differ in their number of heads only, as t2t_vit_14 and t2t_vit_14_resnext
    do, have the same names and shapes.
    """
    found, exact = [], []
    for name in MODELS:
        wanted = shapes_of(unfilled(name))
        if abs(len(wanted) - len(state)) <= MOST_ADAPTABLE:
            fitted = fit(state, wanted, metadata)
            if not fitted.foreign():
                found.append(name)
                exact += [name] * ('pos_embed' not in fitted.other_shape)
    return exact or found


def options_for(name, state, metadata=None):
    """The `num_classes` and `img_size` with which create_model(name) takes these weights.

    Weights of another model have none; loading them says what is wrong.

    Raises:
        WeightsError: where no image size gives a position table of their shape.
    """
    network, metadata = unfilled(name), metadata or {}
    wanted = shapes_of(network)
    found, options = fit(state, wanted, metadata).state, {}
    if {'head.weight', 'head.bias'} <= set(found) and (
            found['head.weight'].shape[1:] == found['head.bias'].shape):
        options['num_classes'] = len(found['head.bias'])
    table, own = found.get('pos_embed'), wanted['pos_embed']
    width = 1 if len(own) == 4 else -1    # [1, C, side, side] in PiT, else [1, N, C]
    if (table is None or table.shape == own or table.ndim != len(own)
            or table.shape[width] != own[width]):
        return dict(options, img_size=network.img_size)
    # The class token's row is a small mistake in this ratio of areas, which rounding mends.
    side = network.img_size * math.sqrt(table.size / math.prod(own))
    sizes = [16 * round(side / 16), 4 * round(side / 4), *USUAL_SIZES]
    if type(metadata.get('image_size')) is int and metadata['image_size'] <= MOST_PIXELS:
        sizes.insert(0, metadata['image_size'])
    for size in sizes:
        with contextlib.suppress(ValueError):    # a size that this model can't have
            if shapes_of(unfilled(name, img_size=size))['pos_embed'] == table.shape:
                return dict(options, img_size=size)
    raise WeightsError(f'pos_embed {list(table.shape)} belongs to no usual image size of {name}: '
                       'give a configuration with its MODEL.IMAGE_SIZE')


@functools.cache
def unfilled(name, **options):
    """A network that knows its shapes; its weights are neither drawn nor in memory."""
    with paddle.LazyGuard():
        return create_model(name, **options)


def _best_naming(state, wanted):
    """(key of NAMINGS, {new name: name in the file}) under which most names are wanted."""
    best = None
    for naming, rules in NAMINGS.items():
        origin = {}
        for old in state:
            new = old
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            origin[new] = old
        known = sum(name in wanted for name in origin)
        if len(origin) == len(state) and (best is None or known > best[0]):
            best = known, naming, origin
    return best[1:]


def _layout(found, wanted, claimed):
    """('paddle' or 'pytorch', how that was told)."""
    telling = [(found[name].shape, shape) for name, shape in wanted.items()
               if is_linear(name, shape) and shape[0] != shape[1] and name in found]
    paddle_like = sum(shape == other for shape, other in telling)
    pytorch_like = sum(shape == other[::-1] for shape, other in telling)
    if bool(paddle_like) == bool(pytorch_like):
        if claimed in ('paddle', 'pytorch'):
            return claimed, 'the file says so, no shape does'
        return 'paddle', 'neither the file nor a shape says so, it is the default'
    layout = 'paddle' if paddle_like else 'pytorch'
    evidence = f'{paddle_like or pytorch_like} Linear weights that are not square say so'
    if claimed not in (None, layout):
        evidence += f', though the file claims {claimed}'
    return layout, evidence
