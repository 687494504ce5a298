"""Draw what a network sees, what a recipe does, how runs went, and what is mistaken for what.

    python tools/visualize.py attention photo.jpg holiday/ --out output/attention
    python tools/visualize.py tokens holiday/ --out output/tokens
    python tools/visualize.py augment -c config/t2t_vit_7_official.yaml --out augment.png
    python tools/visualize.py schedule config/t2t_vit_7.yaml config/pit_ti.yaml --out schedule.svg
    python tools/visualize.py curves output/lit_data/log.jsonl --out curves.svg
    python tools/visualize.py confusion output/predictions.csv --out confusion.svg
    python tools/visualize.py worst output/predictions.csv --out worst.png
"""

import functools
import os
import sys
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets
start.require('matplotlib')

# isort: split
import numpy as np

import build
import config as configuration
from data import DataError
from data.decode import ImageError, decode_image, image_files
from dataset import ImageDataset
from deploy import engines, predictions
from figures import augment, channels, curves, mistakes, rollout, schedule, style
from system import command

# A plate, and images of other classes.
EXAMPLES = [os.path.relpath(path) for path in (
    build.EXAMPLE_IMAGE, configuration.ROOT / 'lit_data' / 'val' / '*' / '*5.JPEG')]
COLUMNS = 6            # of a sheet of augmented images
BATCHES = 3            # on it
STEPS = 100            # batches in an epoch, where the training data are missing
CONFUSIONS = 10        # printed
WORST_COLUMNS = 4


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


def images_of(options):
    """Return the paths of the images that the options name."""
    paths = image_files(options.images)
    if not paths:
        raise command.UsageError(f'{" ".join(options.images)}: no images found')
    return paths


def opened(options):
    """Load what the options name; return (config, network, transform, image paths, folder)."""
    config = build.load_config(options.config, options.override)
    weights = build.weights_path(config, options.weights)
    if engines.is_export(weights):
        raise command.UsageError(f'{weights}: an exported graph gives logits only; name the '
                                 'weights that it was exported from')
    paths, folder = images_of(options), Path(options.out)
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


def rollout_pictures(network, transform, image, feature_maps):
    """Yield (name, heat map as PIL image) for a PIL RGB image; feature maps only if wanted."""
    _, shares, record = rollout.forward_with_attention(network, transform(image)[None])
    box = rollout.seen_box(transform, image.size)
    yield 'attention', rollout.overlay(image, shares[0], box)
    if feature_maps:
        for layer, grid in record.feature_maps.items():    # (1, C, side, side)
            strength = grid.abs().mean(axis=1)[0].numpy()
            yield layer.rpartition('.')[2], rollout.overlay(image, strength, box)


def block_sheet(network, transform, image, blocks, heads):
    """Return a sheet of the class token's attention: a row for each block, a column a head."""
    maps = rollout.class_attention(network, transform(image)[None])
    box, rows = rollout.seen_box(transform, image.size), []
    for block in blocks:
        if not 0 <= block < len(maps):
            raise ValueError(f'has no block {block}: blocks are 0 to {len(maps) - 1}')
        (grids,) = maps[block]                             # (heads, side, side)
        for head in heads or ():
            if not 0 <= head < len(grids):
                raise ValueError(f'block {block} has no head {head}: heads are 0 to '
                                 f'{len(grids) - 1}')
        rows.append((f'block {block}', [
            (rollout.overlay(image, grids[head], box), f'head {head}')
            for head in heads or range(len(grids))]))
    return style.sheet(rows)


def draw_attention(options):
    """Draw where the class token looks, over each image.

    For each image NAME it writes the attention rollout over all blocks, NAME.attention.png, and
    with --feature-maps a heat map for each step of the Tokens-to-Token module: the mean absolute
    value of its channels. With --blocks it writes the attention of single blocks and heads,
    NAME.blocks.png, instead; this also suits networks that pool their tokens.
    """
    config, network, transform, paths, folder = opened(options)
    names, failed = dict(zip(paths, free_names(paths))), []
    for path, image in decoded(paths, failed):
        try:
            if options.blocks is not None:
                target = folder / f'{names[path]}.blocks.{options.format}'
                style.save(block_sheet(network, transform, image, options.blocks, options.heads),
                           str(target))
                print(target)
                continue
            for shown, picture in rollout_pictures(network, transform, image,
                                                   options.feature_maps):
                target = folder / f'{names[path]}.{shown}.{options.format}'
                style.save_picture(picture, str(target))
                print(target)
        except ValueError as error:
            raise command.UsageError(f'{config.MODEL.NAME}: {error}') from error
    return 1 if failed else 0


def draw_tokens(options):
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
        target = folder / f'{layer}.{options.format}'
        style.save_picture(channels.mosaic(grids[0][0], judged), str(target))
        print(f'{target}: {judged} over {len(grids)} image(s)')
    return 1 if failed else 0


def draw_augment(options):
    """Draw what a recipe does to images, by the code that training runs, as .svg or .png.

    The first rows show the first image and what becomes of it in the first epochs of a run: share
    of the area that is cropped, flip, operations with magnitudes of 0 to 10. The last rows, if the
    recipe has mixing or erasing, are batches of all the images, in which each is mixed with that of
    the mirrored place. TRAIN.SEED is the seed.
    """
    style.check_place(options.out)
    config = build.load_config(options.config, options.override)
    paths = images_of(options)
    images = ImageDataset([(path, 0) for path in paths], build.train_transform(config),
                          config.DATA.DECODER, config.TRAIN.SEED)
    original = decode_image(paths[0])
    tiles = [(original, f'original\n{original.width} x {original.height}')]
    tiles += [augment.drawn_image(images, (epoch, 0)) for epoch in range(options.draws)]
    rows = [('', tiles[first:first + COLUMNS]) for first in range(0, len(tiles), COLUMNS)]
    prepare = build.batch_transform(config)
    if prepare.mixup or prepare.erase:
        rows += [augment.drawn_batch(images, prepare, COLUMNS, step) for step in range(BATCHES)]
    style.save(style.sheet(rows), options.out)
    print(options.out)


def draw_schedule(options):
    """Draw the learning rate over the epochs of a run, for each configuration, as .svg or .png.

    The rates are those of a run with one process. With --log the rates that logs print are drawn
    beside them: text with the lines of the Paddle repositories, or train.log of a run. For each
    configuration and log it prints how many of the printed rates are those of the configuration.
    """
    style.check_place(options.out)
    if len(options.configs) + len(options.log) > style.MAX_LINES:
        raise command.UsageError(f'at most {style.MAX_LINES} configurations and logs')
    logs = dict(zip(free_names(options.log), map(curves.read_rates, options.log)))
    runs = {}
    for name, path in zip(free_names(options.configs), options.configs):
        config = build.load_config(path, options.override)
        steps = steps_of(config, options.steps)
        rate = build.rate_of_batch(config, steps)
        runs[name] = schedule.curve(rate, config.SCHEDULER.NUM_EPOCHS, steps)
        print(f'{name}: {build.describe_schedule(config)}')
        for log, printed in logs.items():
            same = schedule.agreement(functools.partial(build.rate_of_batch, config), printed)
            print(f'{name}: {same:,} of {len(printed):,} rates of {log}')
    style.save(schedule.draw(runs, logs), options.out)
    print(options.out)


def steps_of(config, given):
    """Return the number of different rates in an epoch: 1, or its batches."""
    if config.SCHEDULER.UPDATE == 'epoch':
        return 1
    try:
        return given or len(build.train_loader(config))
    except DataError as error:
        print(f'{error}; drawn with {STEPS} steps an epoch, or name them with --steps',
              file=sys.stderr)
        return STEPS


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


def read_predictions(options):
    """Return (config, class names, predictions) of what the options name."""
    style.check_place(options.out)
    config = build.load_config(options.config, options.override)
    found = predictions.read(options.predictions)
    highest = max((label for each in found for label in (*each.labels, *each.top)), default=0)
    if highest >= config.MODEL.NUM_CLASSES:
        raise command.UsageError(
            f'{options.predictions}: has a class {highest}, and MODEL.NUM_CLASSES of '
            f'{options.config} is {config.MODEL.NUM_CLASSES}: name the configuration of the '
            'validation with -c')
    left_out = len(found) - len(mistakes.judged(found))
    if left_out:
        print(f'left out: {left_out} images without a label or a prediction')
    if left_out == len(found):
        raise command.UsageError(f'{options.predictions}: no image has a label and a prediction')
    return config, build.class_names(config), found


def draw_confusion(options):
    """Draw the confusion matrix of a predictions file, as .svg or .png.

    Of many classes it draws the largest confusions as bars. They are also printed.
    """
    _, names, found = read_predictions(options)
    pairs = mistakes.count(found)
    for pair, images in mistakes.confusions(pairs)[:CONFUSIONS]:
        print(mistakes.describe(pair, images, pairs, names))
    style.save(mistakes.confusion(pairs, names), options.out)
    print(options.out)


def draw_worst(options):
    """Draw the most confident mistakes of a predictions file: images and classes, as .svg or .png.

    The images are those of DATA_PATH.VAL_DATASET_PATH.
    """
    config, names, found = read_predictions(options)
    wrong = mistakes.worst(found)[:options.count]
    if not wrong:
        raise command.UsageError(f'{options.predictions}: all predictions are right: there is '
                                 'nothing to draw')
    tiles = [(image, mistakes.caption(each, names))
             for each, image in zip(wrong, images_named(config, [each.path for each in wrong]))]
    rows = [('', tiles[first:first + WORST_COLUMNS])
            for first in range(0, len(tiles), WORST_COLUMNS)]
    style.save(style.sheet(rows), options.out)
    print(options.out)


def images_named(config, names):
    """Yield the validation images, PIL, with the given names below VAL_DATASET_PATH."""
    root = configuration.project_path(config.DATA_PATH.VAL_DATASET_PATH)
    images = places = None
    for name in names:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            yield decode_image(path, root)
            continue
        if images is None:    # of an archive
            images = build.eval_loader(config).dataset
            places = {os.path.relpath(path, root): index
                      for index, (path, _) in enumerate(images.samples)}
        if name not in places:
            raise command.UsageError(f'{path}: no such image; name the configuration of the '
                                     'validation with -c, or its DATA_PATH with -o')
        yield images.open(places[name])


def number(text):
    """Return a positive number of the command line."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def add_images(parser, default):
    parser.add_argument('images', nargs='*', metavar='IMAGE', default=default,
                        help='file, folder or glob (default: of lit_data)')


def add_figure(parser):
    parser.add_argument('--out', required=True, metavar='FILE', help='the figure, .svg or .png')


def main(arguments):
    parser = command.parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, run, text in (('attention', draw_attention, 'where the class token looks'),
                            ('tokens', draw_tokens, 'feature maps of layers and blocks')):
        sub = command.sub_command(commands, name, run, text)
        configuration.add_arguments(sub, configuration.PHOTOGRAPHS)
        add_images(sub, EXAMPLES[:1])
        sub.add_argument('--weights', metavar='FILE', help='weights; default: MODEL_PATH')
        sub.add_argument('--out', default=f'output/{name}', metavar='FOLDER',
                         help=f'folder for the files (default: output/{name})')
        sub.add_argument('--format', choices=('png', 'svg'), default='png',
                         help='of the files (default: png)')
        if name == 'attention':
            sub.add_argument('--feature-maps', action='store_true',
                             help='also draw the steps of the Tokens-to-Token module')
            sub.add_argument('--blocks', nargs='+', type=int, metavar='N',
                             help='draw the heads of these blocks, from 0, not the rollout')
            sub.add_argument('--heads', nargs='+', type=int, metavar='N',
                             help='of --blocks, from 0 (default: all)')
    sub = command.sub_command(commands, 'augment', draw_augment, 'what a recipe does to images')
    configuration.add_arguments(sub)
    add_images(sub, EXAMPLES)
    sub.add_argument('--draws', type=number, default=2 * COLUMNS - 1, metavar='N',
                     help='augmented copies of the first image (default: 11)')
    add_figure(sub)
    sub = command.sub_command(commands, 'schedule', draw_schedule, 'learning rates of runs')
    sub.add_argument('configs', nargs='+', metavar='CONFIG', help='configurations')
    sub.add_argument('-o', '--override', nargs='+', action='extend', default=[],
                     metavar='SECTION.KEY=VALUE', help='values over those of the files')
    sub.add_argument('--log', nargs='+', action='extend', default=[], metavar='FILE',
                     help='logs whose printed rates are drawn, too')
    sub.add_argument('--steps', type=number, metavar='N', help='batches in an epoch, where rates '
                     'change in every step (default: those of the training data)')
    add_figure(sub)
    sub = command.sub_command(commands, 'curves', draw_curves, 'loss and accuracy of runs')
    sub.add_argument('logs', nargs='+', metavar='LOG', help='log.jsonl or train.log of a run')
    add_figure(sub)
    for name, run, text in (('confusion', draw_confusion, 'which classes are confused'),
                            ('worst', draw_worst, 'the most confident mistakes')):
        sub = command.sub_command(commands, name, run, text)
        sub.add_argument('predictions', metavar='FILE',
                         help='.csv or .jsonl file of tools/val.py --predictions')
        configuration.add_arguments(sub)
        add_figure(sub)
        if name == 'worst':
            sub.add_argument('--count', type=number, default=3 * WORST_COLUMNS, metavar='N',
                             help='of the mistakes (default: 12)')
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == '__main__':
    command.run(main)
