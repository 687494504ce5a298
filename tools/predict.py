"""Classify images: files, folders or globs.

    python tools/predict.py photo.jpg holiday/ 'scans/*.png' --top-k 3
"""

import glob
import json
import os
import sys
from pathlib import Path

from runtime import cpu  # noqa: F401  # before paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F

import build
import config as configuration
import engines
from dataset import ImageError, decode_image
from runtime import command
from samples import IMAGE_EXTENSIONS

PLATE = configuration.ROOT / 'lit_data/val/n07579787/lit_val_00000097.JPEG'


def find_images(names):
    """Expand files, folders (with all below them) and globs, in the order they were given."""
    found = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found += sorted(str(file) for file in path.rglob('*')
                            if file.suffix.lower() in IMAGE_EXTENSIONS and file.is_file())
        elif path.exists():
            found.append(name)
        else:
            # A name that matches nothing stays, and is reported as a file that can't be read.
            found += sorted(glob.glob(name, recursive=True)) or [name]
    return found


def predict(network, transform, paths, decoder='pillow', batch_size=16):
    """Classify image files.

    Yields:
        (path, probabilities, error) in the order of `paths`: float32 `[num_classes]` and None,
        or None and an ImageError for a file that is no image.
    """
    network.eval()
    for start in range(0, len(paths), batch_size):
        results = []
        for path in paths[start:start + batch_size]:
            try:
                results.append((path, transform(decode_image(path, decoder)), None))
            except ImageError as error:
                results.append((path, None, error))
        images = [image for _, image, error in results if error is None]
        if images:
            with paddle.no_grad():
                logits = network(paddle.to_tensor(np.stack(images)))     # (B, num_classes)
            probabilities = iter(F.softmax(logits, axis=1).numpy())
        for path, _, error in results:
            yield path, None if error else next(probabilities), error


def top_k(probabilities, names, k):
    """The k most probable classes, best first: dicts of class_id, name and probability.

    k is cut to the number of classes; a class that nobody named has an empty name.
    """
    best = np.argsort(-probabilities, kind='stable')[:k]
    return [dict(class_id=int(label), name=names[label] if names else '',
                 probability=float(probabilities[label])) for label in best]


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('images', nargs='*', default=[os.path.relpath(PLATE)], metavar='IMAGE',
                        help='file, folder or glob (default: a plate of lit_data)')
    engines.add_arguments(parser)
    parser.add_argument('--top-k', type=int, default=5, metavar='K',
                        help='how many classes to show (default: 5)')
    parser.add_argument('--json', action='store_true', help='one JSON object a line and image')
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        raise command.UsageError(f'--top-k {options.top_k}: show at least 1 class')
    config = configuration.load_config(options.config, options.override)
    paths = find_images(options.images)
    if not paths:
        raise command.UsageError(f'{" ".join(options.images)}: no images in there')
    network, transform, names = build.open_model(
        config, build.weights_path(config, options.weights), options.engine)

    failed = 0
    for path, probabilities, error in predict(network, transform, paths,
                                              config.DATA.DECODER, config.TRAIN.VAL_BATCH_SIZE):
        if error:
            failed += 1
            print(f'error: {error}', file=sys.stderr)
            if options.json:
                print(json.dumps(dict(image=path, error=str(error))))
            continue
        classes = top_k(probabilities, names, options.top_k)
        if options.json:
            print(json.dumps(dict(image=path, class_id=classes[0]['class_id'], top=classes)))
            continue
        print(f'class_id is: {classes[0]["class_id"]}')
        print(path)
        for place in classes:
            print(f'    {place["probability"]:.4f}  {place["class_id"]:>4}  {place["name"]}')
    return 1 if failed else 0


if __name__ == '__main__':
    command.run(main)
