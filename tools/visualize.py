"""Show where a network looks: attention rollout over images, as PNG files.

    python tools/visualize.py photo.jpg holiday/ --out output/attention

For each image NAME it writes NAME.attention.png, and with --feature-maps one picture for each step
of the Tokens-to-Token module: the mean strength of its channels, over the image.
"""

import os
import sys
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import build
import config as configuration
from data.decode import ImageError, decode_image, image_files
from deploy import engines, rollout
from system import command


def free_names(paths):
    """A file name without its ending for each path, numbered where two would be the same."""
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
    """Yield (what is shown, PIL image) for one PIL RGB image."""
    _, flow, record = rollout.forward_with_attention(network, transform(image)[None])
    box = rollout.seen_box(transform, image.size)
    yield 'attention', rollout.overlay(image, flow[0], box)
    if feature_maps:
        for layer, grid in record.feature_maps.items():    # (1, C, side, side)
            strength = grid.abs().mean(axis=1)[0].numpy()
            yield layer.rpartition('.')[2], rollout.overlay(image, strength, box)


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('images', nargs='*', metavar='IMAGE',
                        default=[os.path.relpath(build.EXAMPLE_IMAGE)],
                        help='file, folder or glob (default: a plate of lit_data)')
    parser.add_argument('--weights', metavar='FILE', help='weights; default: MODEL_PATH')
    parser.add_argument('--out', default='output/attention', metavar='FOLDER',
                        help='where the pictures go (default: output/attention)')
    parser.add_argument('--feature-maps', action='store_true',
                        help='also the steps of the Tokens-to-Token module')
    options = parser.parse_args(arguments)
    config = build.load_config(options.config, options.override)
    weights = build.weights_path(config, options.weights)
    if engines.is_export(weights):
        raise command.UsageError(f'{weights}: an exported graph gives logits only; name the '
                                 'weights that it was exported from')
    paths = image_files(options.images)
    if not paths:
        raise command.UsageError(f'{" ".join(options.images)}: no images in there')
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise command.UsageError(f'--out {folder}: cannot be made ({error.strerror})') from error
    network, _ = build.trained_network(config, weights)
    network.eval()
    transform = build.eval_transform(config)

    failed = 0
    for path, name in zip(paths, free_names(paths)):
        try:
            image = decode_image(path, config.DATA.DECODER)
        except ImageError as error:
            failed += 1
            print(f'error: {error}', file=sys.stderr)
            continue
        try:
            for shown, picture in pictures(network, transform, image, options.feature_maps):
                target = folder / f'{name}.{shown}.png'
                picture.save(target)
                print(target)
        except ValueError as error:
            raise command.UsageError(f'{config.MODEL.NAME}: {error}') from error
    return 1 if failed else 0


if __name__ == '__main__':
    command.run(main)
