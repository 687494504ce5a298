"""Draw attention maps and feature maps of networks, and curves of training runs.

    python tools/visualize.py attention photo.jpg holiday/ --out output/attention
    python tools/visualize.py tokens holiday/ --out output/tokens
    python tools/visualize.py curves output/lit_data/log.jsonl --out curves.svg
"""

import os
import sys
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np

import build
import config as configuration
from data.decode import ImageError, decode_image, image_files
from deploy import engines
from figures import channels, curves, rollout, style
from system import command


def free_names(paths):
    """Yield the stem of each path, with a number appended if it is not unique."""
    taken = set()
    for path in paths:
        stem = name = Path(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f'{stem}-{number}'
        taken.add(name)
        yield name


def pictures(network, transform, image, feature_maps):
    """Yield (name, heat map as PIL image) for a PIL RGB image; feature maps only if wanted."""
    _, shares, record = rollout.forward_with_attention(network, transform(image)[None])
    box = rollout.seen_box(transform, image.size)
    yield 'attention', rollout.overlay(image, shares[0], box)
    if feature_maps:
        for layer, grid in record.feature_maps.items():    # (1, C, side, side)
            strength = grid.abs().mean(axis=1)[0].numpy()
            yield layer.rpartition('.')[2], rollout.overlay(image, strength, box)


def opened(options):
    """Load what the options name; return (config, network, transform, image paths, folder)."""
    config = build.load_config(options.config, options.override)
    weights = build.weights_path(config, options.weights)
    if engines.is_export(weights):
        raise command.UsageError(f'{weights}: an exported graph gives logits only; name the '
                                 'weights that it was exported from')
    paths = image_files(options.images)
    if not paths:
        raise command.UsageError(f'{" ".join(options.images)}: no images found')
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise command.UsageError(f'--out {folder}: cannot be made ({error.strerror})') from error
    network, _ = build.trained_network(config, weights)
    network.eval()
    return config, network, build.eval_transform(config), paths, folder


def decoded(paths, failed):
    """Yield (path, PIL image); print the error of an unreadable one and add it to `failed`."""
    for path in paths:
        try:
            yield path, decode_image(path)
        except ImageError as error:
            failed.append(path)
            print(f'error: {error}', file=sys.stderr)


def attention(options):
    """Draw the attention rollout of images, as heat maps in PNG files.

    For each image NAME it writes NAME.attention.png, and with --feature-maps a heat map for each
    step of the Tokens-to-Token module: the mean absolute value of its channels.
    """
    config, network, transform, paths, folder = opened(options)
    names, failed = dict(zip(paths, free_names(paths))), []
    for path, image in decoded(paths, failed):
        name = names[path]
        try:
            for shown, picture in pictures(network, transform, image, options.feature_maps):
                target = folder / f'{name}.{shown}.png'
                picture.save(target)
                print(target)
        except ValueError as error:
            raise command.UsageError(f'{config.MODEL.NAME}: {error}') from error
    return 1 if failed else 0


def tokens(options):
    """Draw all channels of some layers, and count those without information.

    The layers are those that make the tokens and the first, the middle and the last block. For each
    it writes LAYER.png, with the channels for the first image, and prints how many of them are dead
    or saturated over all images: the same all over every image, or of values far above those of the
    other channels (paper, figure 2).
    """
    config, network, transform, paths, folder = opened(options)
    maps, failed = {}, []
    for _, image in decoded(paths, failed):
        for layer, grid in channels.grids(network, transform(image)[None]).items():
            maps.setdefault(layer, []).append(grid)                # (1, C, side, side)
    for layer, grids in maps.items():
        judged = channels.judge(np.concatenate(grids))
        target = folder / f'{layer}.png'
        channels.mosaic(grids[0][0], judged).save(target)
        print(f'{target}: {judged} over {len(grids)} image(s)')
    return 1 if failed else 0


def draw_curves(options):
    """Draw loss and top-1 of runs over epochs, from their logs, as .svg or .png.

    A log is the log.jsonl of a run, or text with the lines of the Paddle repositories. A curve is
    labelled with its file and its last value; EMA weights are dashed, training is dotted.
    """
    style.check_place(options.out)
    if len(options.logs) > style.MAX_LINES:
        raise command.UsageError(f'{len(options.logs)} logs: at most {style.MAX_LINES}')
    paths = [path.parent if path.name in ('log.jsonl', 'train.log') else path
             for path in map(Path, options.logs)]
    figure = curves.draw({name: curves.read_log(path)
                          for name, path in zip(free_names(paths), options.logs)})
    style.save(figure, options.out)
    print(options.out)


def main(arguments):
    parser = command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='attention | tokens | curves')
    for name, run, text in (
            ('attention', attention, 'attention maps of images'),
            ('tokens', tokens, 'feature maps of layers and blocks')):
        sub = command.sub_command(commands, name, run, text)
        configuration.add_arguments(sub)
        sub.add_argument('images', nargs='*', metavar='IMAGE',
                         default=[os.path.relpath(build.EXAMPLE_IMAGE)],
                         help='file, folder or glob (default: an image of lit_data)')
        sub.add_argument('--weights', metavar='FILE', help='weights; default: MODEL_PATH')
        sub.add_argument('--out', default=f'output/{name}', metavar='FOLDER',
                         help=f'folder for the PNG files (default: output/{name})')
        if run is attention:
            sub.add_argument('--feature-maps', action='store_true',
                             help='also draw the steps of the Tokens-to-Token module')
    sub = command.sub_command(commands, 'curves', draw_curves, 'loss and accuracy of runs')
    sub.add_argument('logs', nargs='+', metavar='LOG', help='log.jsonl or train.log of a run')
    sub.add_argument('--out', required=True, metavar='FILE', help='the figure, .svg or .png')
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == '__main__':
    command.run(main)
