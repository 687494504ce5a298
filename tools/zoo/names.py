"""From the names and layouts in which weights circulate to the network's own.

The networks here have the names of the official PyTorch codes: those of T2T-ViT, of naver-ai's
PiT, of timm's ViT and DeiT. Files of those, of the Paddle repository and of PaddleClas need no
new names, files of PaddleViT and timm's PiT do; each network lists them in `namings`. A Linear's
weight is `[in, out]` in Paddle and `[out, in]` in PyTorch. No value is changed, and every type of
number stays.
"""

import contextlib
import dataclasses
import functools
import math
import re

import paddle

from weights.files import WeightsError, read_weights, widened
from zoo import MODELS, create_model, head_parameters, load_state, same_network

MOST_PIXELS = 2048    # that a file is believed without a look at its weights
USUAL_SIZES = (224, 384, 256, 288, 320, 192, 160, 128, 96, 64, 48, 32)


@dataclasses.dataclass
class Fitted:
    """Weights under a network's own names, each Linear's weight `[in, out]`, and what they lacked.

    Attributes:
        state: {name: ndarray} in the network's order, then what it has no place for.
        naming: 'official', or the key of the network's `namings` that fitted.
        layout, evidence: 'paddle' or 'pytorch', as found in the file, and how that was told.
        renamed: {name: name in the file}, where the two differ.
        transposed: names.
        missing, unexpected: names.
        other_shape: {name: (shape found, shape wanted)}.
        adaptable: names of what differs between image sizes and numbers of classes of a network.
        norm_epsilon: LayerNorm's at the origin of the weights; None: nothing tells.
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
        """Whether it takes more than another image size or number of classes to use them."""
        return not self.adaptable.issuperset(
            [*self.missing, *self.unexpected, *self.other_shape])


def weights_for(network, path):
    """Read a weights file of any of the known origins for a network.

    Returns:
        (state, metadata): named and laid out as the network's own, fit for zoo.load_state, which
        reports what is missing. Metadata holds what else is known of the weights, `model` and
        `norm_epsilon` for example.

    Raises:
        WeightsError: for a file that can't be read, or that holds another model's weights, with
            the name of that model.
    """
    state, metadata = read_weights(path)
    return _for_network(network, state, metadata, path)


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
    state, metadata = _for_network(network, state, metadata, path)
    if metadata.get('model') and not same_network(metadata['model'], name):
        raise WeightsError(f'{path}: is of {metadata["model"]}, not of {name}')
    load_state(network, state, path, adapt='img_size' in options,
               new_head='num_classes' in options)
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
    """The model that a file names for its weights, or None.

    It is what this project wrote, else the `arch` of other codes if the weights are such.
    """
    if metadata.get('model') in list(MODELS):
        return metadata['model']
    arch = str(metadata.get('arch')).lower().split('.')[0]    # timm's, without its training data
    for name in (arch, re.sub(r'_\d+$', '', arch)):    # timm's PiT, without its image size
        if name in MODELS and not fit(state, unfilled(name), metadata).foreign():
            return name
    return None


def fit(state, network, metadata=None):
    """Give weights the names and the layout that a network wants.

    The naming is the one under which most names are known. The layout is the one in which the
    Linears fit that are not square; where none tells, it is what `metadata['layout']` says, else
    Paddle's. Square weights are transposed with the others.

    Args:
        state: {name: ndarray}, as read_weights gives it.
        network: it tells its names, shapes and `namings`.

    Returns:
        Fitted.
    """
    wanted = shapes_of(network)
    naming, origin = _best_naming(state, wanted, {'official': (), **network.namings})
    ordered = [name for name in wanted if name in origin]
    ordered += [name for name in origin if name not in wanted]
    found = {name: state[origin[name]] for name in ordered}
    layout, evidence = _layout(found, wanted, (metadata or {}).get('layout'))
    transposed = [name for name, array in found.items()
                  if layout == 'pytorch' and is_linear(name, array.shape)]
    found.update((name, found[name].T) for name in transposed)
    epsilon = (metadata or {}).get('norm_epsilon')
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        epsilon = (None if naming == 'official'
                   else network.epsilon_of_origin(naming, widened(found)))
    return Fitted(
        found, naming, layout, evidence,
        adaptable={*network.position_axes, *head_parameters(network)},
        norm_epsilon=epsilon,
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
    alone, and so does the one that the file names. Of names for the same network, as vit_tiny_*
    and deit_tiny_* are, the first one is taken. Models that differ in their number of heads only,
    as t2t_vit_14 and t2t_vit_14_resnext do, have the same names and shapes.
    """
    found, exact = [], []
    for name in MODELS:
        network = unfilled(name)
        if abs(len(network.state_dict()) - len(state)) <= (
                len(network.position_axes) + len(head_parameters(network))):
            fitted = fit(state, network, metadata)
            if not fitted.foreign():
                found.append(name)
                exact += [name] * fitted.other_shape.keys().isdisjoint(network.position_axes)
    named = model_of(state, metadata or {})
    if named in found:
        return [named]
    found = exact or found
    return [name for index, name in enumerate(found)
            if not any(same_network(name, before) for before in found[:index])]


def options_for(name, state, metadata=None):
    """The options with which create_model(name) takes these weights.

    They are `num_classes`, `img_size`, and `norm_epsilon` where the weights had another than the
    network has. Weights of another model have none; loading them says what is wrong.

    Raises:
        WeightsError: where no image size gives a position table of their shape.
    """
    network, metadata = unfilled(name), metadata or {}
    fitted, options = fit(state, network, metadata), {}
    found, claimed = fitted.state, metadata.get('image_size')
    claimed = [claimed] if type(claimed) is int and 0 < claimed <= MOST_PIXELS else []
    if fitted.norm_epsilon and fitted.norm_epsilon != network.norm_epsilon:
        options['norm_epsilon'] = fitted.norm_epsilon
    head = network.heads[0]
    if {f'{head}.weight', f'{head}.bias'} <= set(found) and (
            found[f'{head}.weight'].shape[1:] == found[f'{head}.bias'].shape):
        options['num_classes'] = len(found[f'{head}.bias'])
    if not network.position_axes:    # its weights are the same for every image size
        return dict(options, img_size=(claimed or [network.img_size])[0])
    resized = [table for table, (shape, _) in fitted.other_shape.items()
               if table in network.position_axes and network.can_resize(table, shape)]
    if not resized:
        return dict(options, img_size=network.img_size)
    table, own = found[resized[0]], fitted.other_shape[resized[0]][1]
    # The class token's row is a small mistake in this ratio of areas, which rounding mends.
    side = network.img_size * math.sqrt(table.size / math.prod(own))
    for size in [*claimed, 16 * round(side / 16), 4 * round(side / 4), *USUAL_SIZES]:
        with contextlib.suppress(ValueError):    # a size that this model can't have
            if shapes_of(unfilled(name, img_size=size))[resized[0]] == table.shape:
                return dict(options, img_size=size)
    raise WeightsError(f'{resized[0]} {list(table.shape)} belongs to no usual image size of '
                       f'{name}: give a configuration with its MODEL.IMAGE_SIZE')


@functools.cache
def unfilled(name, **options):
    """A network that knows its shapes; its weights are neither drawn nor in memory."""
    with paddle.LazyGuard():
        return create_model(name, **options)


def _best_naming(state, wanted, namings):
    """(key of namings, {new name: name in the file}) under which most names are wanted."""
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
