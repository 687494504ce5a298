"""Classify images: files, folders or globs.

    python tools/predict.py photo.jpg holiday/ 'scans/*.png' --top-k 3
"""

import json
import os
import sys
import textwrap

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F

import build
import config as configuration
from data.decode import ImageError, decode_image, image_files
from deploy import engines
from system import command


def predict(network, transform, paths, batch_size=16):
    """Classify image files.

    Args:
        network: a network of the zoo, or an engines.Engine.
        transform: its data.transforms.EvalTransform.
        paths: image files.
        batch_size: largest number of images in a batch.

    Yields:
        (path, probabilities float32 `[num_classes]`, None) in the order of `paths`, or
        (path, None, ImageError) for an unreadable file.
    """
    network.eval()
    for first in range(0, len(paths), batch_size):
        results = []
        for path in paths[first:first + batch_size]:
            try:
                results.append((path, transform(decode_image(path)), None))
            except ImageError as error:
                results.append((path, None, error))
        images = [image for _, image, error in results if error is None]
        if images:
            with paddle.no_grad():
                logits = network(paddle.to_tensor(np.stack(images)))     # (B, num_classes)
            probabilities = iter(F.softmax(logits, axis=1).numpy())
        for path, _, error in results:
            yield path, None if error else next(probabilities), error


def class_label(label, names):
    """Return a class as `923 plate`: its id and the first of its names, if it has any."""
    return f'{label} {names[label].split(",")[0]}' if names else str(label)


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser, configuration.PHOTOGRAPHS)
    parser.add_argument('images', nargs='*', metavar='IMAGE',
                        help='file, folder or glob (default: a drawn plate, classified by '
                             f'{configuration.DRAWINGS}, whose weights know drawings)')
    engines.add_arguments(parser)
    parser.add_argument('--top-k', type=int, default=5, metavar='K',
                        help='number of classes to print (default: 5)')
    parser.add_argument('--json', action='store_true', help='print a JSON object for each image')
    options = parser.parse_args(arguments)
    if options.top_k < 1:
        raise command.UsageError(f'--top-k {options.top_k}: show at least 1 class')
    drawing = (not options.images and not options.weights
               and options.config == configuration.PHOTOGRAPHS)
    if drawing:
        options.config = configuration.DRAWINGS
    config = build.load_config(options.config, options.override)
    paths = image_files(options.images or [os.path.relpath(build.EXAMPLE_IMAGE)])
    if not paths:
        raise command.UsageError(f'{" ".join(options.images)}: no images found')
    weights = build.weights_path(config, options.weights)
    network, transform, names, metadata = build.open_model(config, weights, options.engine)
    known = build.trained_on(config, weights, metadata)['known_classes']

    failed = doubtful = 0
    for path, probabilities, error in predict(network, transform, paths,
                                              config.TRAIN.VAL_BATCH_SIZE):
        if error:
            failed += 1
            print(f'error: {error}', file=sys.stderr)
            if options.json:
                print(json.dumps(dict(image=path, error=str(error))))
            continue
        classes = engines.top_k(probabilities, names, options.top_k)
        note = engines.doubt(classes[0]['probability'], known)
        doubtful += bool(note)
        if options.json:
            print(json.dumps(dict(image=path, class_id=classes[0]['class_id'], top=classes,
                                  note=note)))
            continue
        print(f'class_id is: {classes[0]["class_id"]}')
        print(path)
        for entry in classes:
            print(f'    {entry["probability"]:.4f}  {entry["class_id"]:>4}  {entry["name"]}')
        if note:
            print(f'    {note}')
    if doubtful and not options.json:
        listed = '; '.join(class_label(label, names) for label in known)
        print(textwrap.fill(f'These weights know {len(known)} classes: {listed}', 100))
    if drawing and not options.json:
        print(f'a drawing, classified by the weights of {configuration.DRAWINGS};')
        print(f'without -c, your images are classified by those of {configuration.PHOTOGRAPHS}')
    return 1 if failed else 0


if __name__ == '__main__':
    command.run(main)
