"""Convert the parameter names and layouts of other codebases to those of the networks here.

The networks use the parameter names of the official PyTorch implementations: T2T-ViT, naver-ai's
PiT, timm's ViT and DeiT. Files of these, of the Paddle repository and of PaddleClas need no
renaming; files of PaddleViT and of timm's PiT do, by the rules in each network's `namings`. A
Linear's weight is `[in, out]` in Paddle and `[out, in]` in PyTorch. Values and data types stay.
"""

import contextlib
import dataclasses
import functools
import math
import re

import paddle

from weights.files import WeightsError, read_weights, widened
from zoo import MODELS, create_model, head_parameters, load_state, same_network

MOST_PIXELS = 2048    # largest image size that is accepted from a file's metadata
USUAL_SIZES = (224, 384, 256, 288, 320, 192, 160, 128, 96, 64, 48, 32)


@dataclasses.dataclass
class Fitted:
    """Weights under a network's own names and layout, and how they differ from the network's.

    Attributes:
        state: {name: ndarray} in the network's order, then unexpected ones. A Linear's weight is
            `[in, out]`.
        naming: 'official', or the key of the network's `namings` that was applied.
        layout: of the file, 'paddle' or 'pytorch'.
        evidence: how the layout was determined.
        renamed: {name: name in the file}, where the two differ.
        transposed: names.
        missing, unexpected: names.
        other_shape: {name: (shape in the file, shape in the network)}.
        adaptable: names of the parameters that depend on the image size or number of classes.
        norm_epsilon: of the LayerNorms the weights were trained with; None: unknown.
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
    adaptable: set
    norm_epsilon: float = None

    def foreign(self):
        """Whether the weights differ in more than image size and number of classes."""
        return not self.adaptable.issuperset(
            [*self.missing, *self.unexpected, *self.other_shape])


def weights_for(network, path):
    """Read a weights file of any known origin for a network.

    Returns:
        (state, metadata). State has the network's names and layout; zoo.load_state takes it and
        reports what is missing. Metadata holds what else is known, e.g. `model` and
        `norm_epsilon`.

    Raises:
        WeightsError: for a file that can't be read, or that holds another model's weights; the
            message names that model.
    """
    state, metadata = read_weights(path)
    return _for_network(network, state, metadata, path)


def pretrained_model(name, path, **options):
    """Build a model with the weights of a file; image size and number of classes are the file's.

    Args:
        **options: of create_model. If `num_classes` differs from the file's, the head is newly
            initialised; if `img_size` differs, the position table is interpolated.

    Raises:
        WeightsError: for a file that can't be read or belongs to another model.
        ValueError: for invalid options.
    """
    state, metadata = read_weights(path)
    new_head = 'num_classes' in options
    try:
        with contextlib.nullcontext() if new_head else paddle.LazyGuard():    # see load_state
            network = create_model(name, **{**options_for(name, state, metadata), **options})
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    state, metadata = _for_network(network, state, metadata, path)
    if metadata.get('model') and not same_network(metadata['model'], name):
        raise WeightsError(f'{path}: holds weights of {metadata["model"]}, not of {name}')
    load_state(network, state, path, adapt='img_size' in options, new_head=new_head)
    return network


def _for_network(network, state, metadata, path):
    fitted = fit(state, network, metadata)
    models = recognise(state, metadata) if fitted.foreign() else []
    if models:
        raise WeightsError(f'{path}: does not fit the network, it looks like the weights of '
                           f'{" or ".join(models)} (MODEL.NAME={models[0]}, and no other key that '
                           'changes the network)')
    metadata = dict(metadata, model=model_of(state, metadata))
    if fitted.norm_epsilon:
        metadata['norm_epsilon'] = fitted.norm_epsilon
    return fitted.state, metadata


def model_of(state, metadata):
    """The name of the model that a file states for its weights, or None.

    It is the `model` that this project writes, else the `arch` of other codebases, which must fit
    the weights.
    """
    if metadata.get('model') in list(MODELS):
        return metadata['model']
    arch = str(metadata.get('arch')).lower().split('.')[0]    # timm's, without its training data
    for name in (arch, re.sub(r'_\d+$', '', arch)):    # timm's PiT, without its image size
        if name in MODELS and not fit(state, unfilled(name), metadata).foreign():
            return name
    return None


def fit(state, network, metadata=None):
    """Give weights the names and the layout of a network.

    Of the network's `namings` the one that yields most known names is applied. The layout is the
    one in which the shapes of non-square Linear weights match; without such weights it is
    `metadata['layout']`, else Paddle's. Square weights are transposed with the others.

    Args:
        state: {name: ndarray}, as read_weights returns it.
        network: defines the names, shapes and `namings`.

    Returns:
        Fitted.
    """
    wanted = shapes_of(network)
    naming, origin = _best_naming(state, wanted, {'official': (), **network.namings})
    ordered = [name for name in wanted if name in origin]
    ordered += [name for name in origin if name not in wanted]
    renamed = {name: state[origin[name]] for name in ordered}
    layout, evidence = _layout(renamed, wanted, (metadata or {}).get('layout'))
    transposed = [name for name, array in renamed.items()
                  if layout == 'pytorch' and is_linear(name, array.shape)]
    renamed.update((name, renamed[name].T) for name in transposed)    # (out, in) to (in, out)
    epsilon = (metadata or {}).get('norm_epsilon')
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        epsilon = (None if naming == 'official'
                   else network.epsilon_of_origin(naming, widened(renamed)))
    return Fitted(
        renamed, naming, layout, evidence,
        adaptable={*network.position_axes, *head_parameters(network)},
        norm_epsilon=epsilon,
        renamed={name: origin[name] for name in ordered if name != origin[name]},
        transposed=transposed,
        missing=[name for name in wanted if name not in renamed],
        unexpected=[name for name in renamed if name not in wanted],
        other_shape={name: (renamed[name].shape, shape) for name, shape in wanted.items()
                     if name in renamed and renamed[name].shape != shape})


def is_linear(name, shape):
    """Whether a parameter is the weight of a Linear (a Performer's `w` is not)."""
    return name.endswith('.weight') and len(shape) == 2


def in_pytorch_layout(state):
    """Weights of the networks here with each Linear's weight transposed to `[out, in]`."""
    return {name: array.T if is_linear(name, array.shape) else array
            for name, array in state.items()}


def shapes_of(network):
    """{name: shape} of a network's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def recognise(state, metadata=None):
    """The names of the zoo's models with these parameter names and shapes, in the zoo's order.

    Image size and number of classes may differ, but if models with exactly this image size exist,
    only they are returned; if the file names its model, only that one. Of several names for the
    same network (vit_tiny_* and deit_tiny_*) only the first is returned. Models that differ only
    in their number of heads (t2t_vit_14, t2t_vit_14_resnext) can't be told apart.
    """
    matching, exact = [], []
    for name in MODELS:
        network = unfilled(name)
        if abs(len(network.state_dict()) - len(state)) <= (
                len(network.position_axes) + len(head_parameters(network))):
            fitted = fit(state, network, metadata)
            if not fitted.foreign():
                matching.append(name)
                exact += [name] * fitted.other_shape.keys().isdisjoint(network.position_axes)
    named = model_of(state, metadata or {})
    if named in matching:
        return [named]
    matching = exact or matching
    return [name for index, name in enumerate(matching)
            if not any(same_network(name, before) for before in matching[:index])]


def options_for(name, state, metadata=None):
    """The options of create_model(name) for which the network fits these weights.

    They are `num_classes`, `img_size`, and `norm_epsilon` if it differs from the network's. For
    weights of another model the result is meaningless; loading them raises the error.

    Raises:
        WeightsError: if no usual image size gives a position table of this shape.
    """
    network, metadata = unfilled(name), metadata or {}
    fitted, options = fit(state, network, metadata), {}
    arrays, claimed = fitted.state, metadata.get('image_size')
    claimed = [claimed] if type(claimed) is int and 0 < claimed <= MOST_PIXELS else []
    if fitted.norm_epsilon and fitted.norm_epsilon != network.norm_epsilon:
        options['norm_epsilon'] = fitted.norm_epsilon
    head = network.heads[0]
    if {f'{head}.weight', f'{head}.bias'} <= set(arrays) and (
            arrays[f'{head}.weight'].shape[1:] == arrays[f'{head}.bias'].shape):
        options['num_classes'] = len(arrays[f'{head}.bias'])
    if not network.position_axes:    # the shapes don't depend on the image size
        return dict(options, img_size=(claimed or [network.img_size])[0])
    resized = [table for table, (shape, _) in fitted.other_shape.items()
               if table in network.position_axes and network.can_resize(table, shape)]
    if not resized:
        return dict(options, img_size=network.img_size)
    table, own = arrays[resized[0]], fitted.other_shape[resized[0]][1]
    # The row of the class token distorts this ratio of areas slightly; rounding corrects that.
    side = network.img_size * math.sqrt(table.size / math.prod(own))
    for size in [*claimed, 16 * round(side / 16), 4 * round(side / 4), *USUAL_SIZES]:
        with contextlib.suppress(ValueError):    # a size that this model doesn't support
            if shapes_of(unfilled(name, img_size=size))[resized[0]] == table.shape:
                return dict(options, img_size=size)
    raise WeightsError(f'{resized[0]} {list(table.shape)} fits no usual image size of '
                       f'{name}: give a configuration with its MODEL.IMAGE_SIZE')


@functools.cache
def unfilled(name, **options):
    """A network for its names and shapes only: its weights are not allocated."""
    with paddle.LazyGuard():
        return create_model(name, **options)


def _best_naming(state, wanted, namings):
    """(key of namings, {new name: name in the file}) of the rules with most names in `wanted`."""
    best = None
    for naming, rules in namings.items():
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


def _layout(arrays, wanted, claimed):
    """('paddle' or 'pytorch', how that was determined)."""
    rectangular = [(arrays[name].shape, shape) for name, shape in wanted.items()
                   if is_linear(name, shape) and shape[0] != shape[1] and name in arrays]
    paddle_like = sum(shape == other for shape, other in rectangular)
    pytorch_like = sum(shape == other[::-1] for shape, other in rectangular)
    if bool(paddle_like) == bool(pytorch_like):
        if claimed in ('paddle', 'pytorch'):
            return claimed, "from the file's metadata; no shape decides"
        return 'paddle', 'the default; neither metadata nor shapes decide'
    layout = 'paddle' if paddle_like else 'pytorch'
    evidence = f'from the shapes of {paddle_like or pytorch_like} Linear weights'
    if claimed not in (None, layout):
        evidence += f'; the file claims {claimed}'
    return layout, evidence
