"""Convert a weights file to another format, and verify the result.

    python tools/convert.py 71.7_T2T_ViT_7.pth.tar t2t_vit_7.pdparams
    python tools/convert.py output/t2t_vit_7_lit_data.pdparams t2t_vit_7.pth
    python tools/convert.py published:t2t_vit_7 t2t_vit_7.safetensors
    python tools/convert.py published:t2t_vit_7 t2t_vit_7/
    python tools/convert.py --list

IN may be published:NAME, a name that --list shows; or a .pth or .pth.tar of the official code or
of timm, a .pdparams of the Paddle repository, AI Studio, PaddleClas or PaddleViT, a .safetensors of
either layout, or a checkpoint of this project; it is recognised by its content. The extension of
OUT is the format to write: .pdparams, .pth or .safetensors, always with the official names. The
weight of a Linear is [in, out] in .pdparams, [out, in] in .pth, and set by --layout in
.safetensors. Arrays keep their data type, float16 and bfloat16 too; --float16 rounds them.

OUT/ is a folder as timm publishes weights: model.safetensors in PyTorch's layout, a README.md and
config.json, which also needs the evaluation of a configuration: -c, unless IN is published:NAME.

OUT is kept only if, when read again, all arrays are equal bit by bit and, unless weights are
missing, the network gives logits with both files that are equal bit by bit.
"""

import collections
import dataclasses
import hashlib
import math
import os
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle

import build
import zoo
from system import command
from weights.files import (
    PARTS,
    WRITERS,
    WeightsError,
    read_weights,
    widened,
    write_weights,
)
from weights.folder import WEIGHTS, timm_config, write_texts
from weights.unpickle import shown
from zoo import names, published

# .safetensors may have either; a folder has that of timm.
LAYOUTS = {'.pdparams': 'paddle', '.pth': 'pytorch', '': 'pytorch'}


def output_ending(source, target, force):
    """Check that OUT may be written; return its extension, '' for a folder.

    Raises:
        UsageError: if the extension is unknown, the folder missing, or OUT exists without `force`.
    """
    target, written = Path(target), str(target)
    ending = target.suffix.lower()
    if written.endswith('/') or (target.is_dir() and ending not in WRITERS):
        if not force and target.is_dir() and os.listdir(target):
            raise command.UsageError(f'{target}: is a folder that is not empty; name another one, '
                                     'or replace the files in it with --force')
        return ''
    if ending not in WRITERS:
        raise command.UsageError(f'{target}: its ending is no known format; known: '
                                 f'{", ".join(WRITERS)}, and / for a folder')
    if not target.absolute().parent.is_dir():
        raise command.UsageError(f'{target}: no such folder, make it first')
    if target.is_dir():
        raise command.UsageError(f'{target}: is a folder, name a file')
    if target.exists() and not force:
        what = 'is IN itself' if source.exists() and target.samefile(source) else 'is there already'
        raise command.UsageError(f'{target}: {what}; name another file, or replace it with --force')
    return ending


def network_for(state, metadata, source, model, config, config_name=''):
    """Create the network of a state dict.

    It is the one of the configuration if given, else `model` if given, else the one that the file
    names, else the only one of the zoo with these names and shapes.

    Returns:
        (network, its name, how the name was determined)

    Raises:
        WeightsError: if the model cannot be determined, or does not fit.
        UsageError: if `model` is unknown.
    """
    if config:
        return build.network(config), config.MODEL.NAME, f'by {config_name}'
    name, how = model, 'by --model'
    if not name:
        name, how = names.model_of(state, metadata), 'by the file itself'
    if not name:
        found = names.recognise(state, metadata)
        if len(found) != 1:
            known = (f'could be of {" or ".join(found)}, which have the same shapes' if found
                     else f'{len(state)} weights of no model of the zoo')
            raise WeightsError(f'{source}: {known}: name it with --model, or give its '
                               'configuration with -c')
        name, how = found[0], 'by its shapes'
    try:
        return zoo.create_model(name, **names.options_for(name, state, metadata)), name, how
    except WeightsError as error:
        raise WeightsError(f'{source}: {error}') from error
    except ValueError as error:
        raise command.UsageError(f'--model: {error}') from error


def list_published():
    """Print the published weights: name, accuracy, evaluation, address, whether they are here."""
    for name, found in published.PUBLISHED.items():
        config, path = build.published_config(found), published.cached_file(found)
        print(f'{published.PREFIX + name:<36} {found.top1:g} % of {config.MODEL.NUM_CLASSES} '
              f'classes, {found.model} at {build.describe_evaluation(config)}\n'
              f'    {found.address}' + (f'\n    in {path}' if path.exists() else ''))


def table(fitted):
    """The lines of a table: how many weights are loaded, renamed, missing, ..., and some names."""
    rows = {
        'loaded': [name for name in fitted.state
                   if name not in fitted.unexpected and name not in fitted.other_shape],
        'transposed': fitted.transposed,
        'renamed': [f'{old} -> {name}' for name, old in fitted.renamed.items()],
        'missing': fitted.missing,
        'unexpected': fitted.unexpected,
        'other shape': [f'{name} {list(found)} instead of {list(wanted)}'
                        for name, (found, wanted) in fitted.other_shape.items()]}
    return [f'    {kind:<12}{len(entries):>5}  {_first(entries)}'.rstrip()
            for kind, entries in rows.items()]


def _first(entries, most=2):
    return ', '.join([shown(entry, 90) for entry in entries[:most]]
                     + ['...'] * (len(entries) > most))


def require_fit(fitted, source, allow_missing, drop_unexpected):
    """Raise WeightsError if weights do not fit and no option allows it; suggest a better model."""
    refused = []
    if fitted.missing and not allow_missing:
        refused.append(f'{len(fitted.missing)} missing (--allow-missing goes on without them)')
    if fitted.unexpected and not drop_unexpected:
        refused.append(f'{len(fitted.unexpected)} unexpected (--drop-unexpected leaves them out)')
    if fitted.other_shape:
        refused.append(f'{len(fitted.other_shape)} of another shape')
    if refused:
        others = names.recognise(fitted.state) if fitted.foreign() else []
        hint = f'; it looks like --model {" or ".join(others)}' if others else ''
        raise WeightsError(f'{source}: does not fit the network: {"; ".join(refused)}{hint}')


def logits_with(network, state, source):
    """Logits `[2, num_classes]` of a network with a state dict, for two fixed random images."""
    zoo.load_state(network, state, source)
    network.eval()
    size = network.img_size
    images = np.random.default_rng(0).standard_normal((2, 3, size, size), dtype='float32')
    with paddle.no_grad():
        return network(paddle.to_tensor(images)).numpy()


def rounded(state, network, source):
    """Round the floating-point arrays of a state dict to float16.

    Returns:
        (state dict, largest change of the logits of two random images; nan if weights are missing)

    Raises:
        WeightsError: if float16 has no place for a value.
    """
    result = {}
    for name, array in widened(state).items():
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_float and np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise WeightsError(f'{source}: {shown(name)} has values that are too large for '
                               'float16: leave out --float16')
        result[name] = array.astype(np.float16) if is_float else array
    if set(state) != set(network.state_dict()):
        return result, math.nan
    change = np.abs(logits_with(network, widened(result), source)
                    - logits_with(network, widened(state), source)).max()
    return result, float(change)


def compare(network, state, path, target):
    """Read the written file again and compare it with the state dict it was written from.

    Returns:
        A message with what was compared.

    Raises:
        WeightsError: if a name, a data type or a bit differs.
    """
    read, metadata = read_weights(path, widen=False)
    again = names.fit(read, network, metadata).state
    differing = sorted(set(state) ^ set(again)) or [
        name for name, array in state.items() if not same_bits(array, again[name])]
    if differing:
        raise WeightsError(f'{target}: was not written, what was read back differs in '
                           f'{", ".join(shown(name) for name in differing[:5])}')
    if set(state) != set(network.state_dict()):
        return f'{len(state)} arrays are equal bit by bit; no logits, as weights are missing'
    before = logits_with(network, widened(state), target)
    after = logits_with(network, names.weights_for(network, path)[0], target)
    if before.tobytes() != after.tobytes():
        raise WeightsError(f'{target}: was not written, logits differ by '
                           f'{np.abs(before - after).max():.1e}')
    return f'{len(state)} arrays and the logits of two images are equal bit by bit'


CARD = """---
tags:
- image-classification
---
# {model}, {image_size} x {image_size} pixels, {num_classes} classes

{parameters:,} parameters in `model.safetensors`, with the names of the official implementation and
Linear weights as `[out, in]` (PyTorch's layout). SHA-256: `{digest}`

Evaluation: {evaluation}, mean {mean}, standard deviation {std}.
{accuracy}
Converted from `{source}` by the tools/convert.py of a PaddlePaddle reproduction of T2T-ViT. In that
project:

    python tools/predict.py --weights FOLDER photo.jpg -o MODEL.NAME={model} \\
        MODEL.NUM_CLASSES={num_classes} MODEL.IMAGE_SIZE={image_size}
"""


def write_folder_texts(folder, config, network, metadata, source, found):
    """Write config.json and README.md beside model.safetensors.

    Args:
        config: configuration with the evaluation.
        metadata: of the weights.
        source: name of the file that was converted.
        found: the zoo.published.Published that it is, or None.
    """
    about = build.description(config, metadata)
    write_texts(folder, timm_config(
        about.model, about.num_classes, network.num_features, network.heads, about.image_size,
        about.eval_transform, about.eval_crop_ratio, about.eval_interpolation, about.mean,
        about.std, about.class_names), CARD.format(
            **dataclasses.asdict(about), evaluation=build.describe_evaluation(config),
            parameters=sum(math.prod(shape) for shape in names.shapes_of(network).values()),
            digest=hashlib.sha256((folder / WEIGHTS[0]).read_bytes()).hexdigest(),
            source=source, accuracy='' if found is None else
            f'\nPublished top-1 accuracy: {found.top1:g} %, {found.address}\n'))


def same_bits(array, other):
    return (array.dtype == other.dtype and array.shape == other.shape
            and array.tobytes() == other.tobytes())


def number_types(state):
    """The data types of the arrays as text, such as `float32` or `110 float16, 1 int64`."""
    counts = collections.Counter('bfloat16' if array.dtype == np.uint16 else str(array.dtype)
                                 for array in state.values())
    return ', '.join(f'{count} {kind}' if len(counts) > 1 else kind
                     for kind, count in counts.items())


def main(arguments):
    parser = command.parser(__doc__)
    parser.add_argument('source', metavar='IN', nargs='?', help='file to read')
    parser.add_argument('target', metavar='OUT', nargs='?',
                        help='file to write; its extension is the format')
    parser.add_argument('--list', action='store_true', help='show the published weights')
    parser.add_argument('--model', metavar='NAME', help='name of the network in the zoo; default: '
                        'by the names and shapes in IN')
    parser.add_argument('-c', '--config', metavar='FILE',
                        help='configuration of the network, in place of --model')
    parser.add_argument('--part', choices=sorted(PARTS), help='weights of a checkpoint; '
                        'default: the averaged ones (ema) if it has them')
    parser.add_argument('--layout', choices=('paddle', 'pytorch'), help='layout of Linears in a '
                        '.safetensors file; default: paddle')
    parser.add_argument('--float16', action='store_true', help='round the weights to float16')
    parser.add_argument('--allow-missing', action='store_true',
                        help='convert also if weights of the network are missing')
    parser.add_argument('--drop-unexpected', action='store_true',
                        help='leave out weights that the network does not have')
    parser.add_argument('--force', action='store_true', help='replace OUT, which may be IN')
    options = parser.parse_args(arguments)
    if options.list:
        return list_published()
    if not options.target:
        parser.error('IN and OUT are needed, or --list')
    if options.model and options.config:
        raise command.UsageError('--model and -c both name the network: give one of them')
    found = published.entry(options.source)
    ending = output_ending(Path(options.source), options.target, options.force)
    config = options.config and build.load_config(options.config)
    if not ending:
        if not config and not found:
            raise command.UsageError(f'{options.target}: config.json also holds the evaluation of '
                                     'images: name the configuration with -c')
        config = config or build.published_config(found)
    source, target = Path(published.local_file(options.source)), Path(options.target)
    layout = options.layout or LAYOUTS.get(ending, 'paddle')
    if layout != LAYOUTS.get(ending, layout):
        raise command.UsageError(f'--layout {layout}: a {ending or "folder"} has the layout of '
                                 f'{LAYOUTS[ending]}; only .safetensors files have either')

    state, metadata = read_weights(source, options.part, widen=False)
    with paddle.LazyGuard():    # without random weights: load_state replaces all
        network, model, how = network_for(state, metadata, source, options.model, config,
                                          options.config or options.source)
    fitted = names.fit(state, network, metadata)
    part = f', {metadata["part"]} of a checkpoint' if 'part' in metadata else ''
    print(f'{source}: {model} ({how}), {network.img_size} pixels, {number_types(state)}{part}')
    print(f'    names: {fitted.naming}; layout: {fitted.layout} ({fitted.evidence})')
    if fitted.naming != 'official' and fitted.norm_epsilon:
        origin, own = fitted.naming.split()[0], type(network).norm_epsilon
        print(f'    LayerNorm epsilon: {fitted.norm_epsilon:g}, ' + (
            f'ported to {origin} from the official weights' if fitted.norm_epsilon == own else
            f'trained in {origin} (MODEL.NORM_EPSILON={fitted.norm_epsilon:g})'))
    print('\n'.join(table(fitted)), flush=True)
    require_fit(fitted, source, options.allow_missing, options.drop_unexpected)

    state = {name: array for name, array in fitted.state.items() if name not in fitted.unexpected}
    if options.float16:
        state, change = rounded(state, network, source)
        print(f'    rounded to float16: the logits of two images change by at most {change:.1e}')
    written = names.in_pytorch_layout(state) if layout == 'pytorch' else state
    metadata = {key: value for key, value in metadata.items()
                if key not in ('layout', 'part', 'arch', 'norm_epsilon', 'LR_Scheduler')}
    metadata.update(model=model, image_size=network.img_size, layout=layout)
    if network.norm_epsilon != type(network).norm_epsilon:
        metadata['norm_epsilon'] = network.norm_epsilon
    file, compared = target, []
    if not ending:
        target.mkdir(parents=True, exist_ok=True)
        file, ending = target / WEIGHTS[0], '.safetensors'
    write_weights(file, written, metadata, ending,
                  check=lambda path: compared.append(compare(network, state, path, target)))
    if file != target:
        write_folder_texts(target, config, network, metadata, options.source, found)
    print(f'{file}: {ending}, official names, layout: {layout}; read again, {compared[0]}')
    if ending == '.pth' and 'class_names' in metadata:
        print('    class names stay behind: a .pth file holds weights only')


if __name__ == '__main__':
    command.run(main)
