"""Image lists: written for class folders, split into training and validation, subsets.

What is drawn at random depends on the seed and the names only, on every machine and with every
version of Python.
"""

import os
import random

from data import DataError
from data.folders import class_folders, is_image
from weights.writer import replacing


def write_lines(path, lines):
    """Write a text file in a single step; returns the number of lines."""
    count = 0
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        for line in lines:
            file.write(f'{line}\n')
            count += 1
    return count


def folder_lines(root, class_ids):
    """Yield the lines of the list of a class folder: in class order, within a class by name."""
    for name, label in sorted(class_ids.items(), key=lambda item: item[1]):
        folder = os.path.join(root, name)
        if os.path.isdir(folder):
            yield from (f'{name}/{file} {label}' for file in sorted(os.listdir(folder))
                        if is_image(file))


def count_images(root, classes):
    """{class name: number of images} of class folders."""
    counts = {}
    for name in classes:
        folder = os.path.join(root, name)
        counts[name] = (sum(map(is_image, os.listdir(folder))) if os.path.isdir(folder) else 0)
    return counts


def split_folder(root, part, seed):
    """Split a folder of class folders into training and validation, each class by itself.

    Args:
        part: of each class for validation, above 0 and below 1; rounded, at least one image, and
            one image stays for training.

    Returns:
        (training lines, validation lines, class names). Paths are relative to root.

    Raises:
        DataError: if there are no classes, a name can't stand in a list, or a class has one image.
    """
    names = class_folders(root)
    if {'train', 'val'} <= set(names):
        raise DataError(f'{root}: is split already, into train and val; name these two folders in '
                        'DATA_PATH')
    if len(names) < 2:
        raise DataError(f'{root}: {len(names)} class folders; expected CLASS/IMAGE in it, and at '
                        'least two classes')
    training, validation = [], []
    for label, name in enumerate(names):
        files = sorted(os.path.relpath(os.path.join(below, file), root).replace(os.sep, '/')
                       for below, _, files in os.walk(os.path.join(root, name))
                       for file in files if is_image(file))
        if len(files) < 2:
            raise DataError(f'{os.path.join(root, name)}: {len(files)} images; a class needs two '
                            'to be split, so add some or remove the folder')
        for file in files:
            if not file.isprintable() or file != file.strip():
                raise DataError(f'{os.path.join(root, file)!r}: cannot stand in a list; rename it')
        count = min(max(1, round(part * len(files))), len(files) - 1)
        chosen = set(_shuffled(files, seed, name)[:count])
        training += [f'{file} {label}' for file in files if file not in chosen]
        validation += [f'{file} {label}' for file in files if file in chosen]
    return training, validation, names


def choose_classes(labels, count, seed):
    """`count` of the labels at random, sorted."""
    labels = sorted(set(labels))
    if count > len(labels):
        raise DataError(f'{count} classes wanted of {len(labels)}')
    return sorted(_shuffled(labels, seed, 'classes')[:count])


def subset(samples, seed, classes=None, images=None, part=None, renumber=False):
    """Some images of each of some classes. A smaller subset with the same seed lies in a larger.

    Args:
        samples: (path, label) pairs.
        classes: labels to keep; None: all.
        images: of each class; None: all.
        part: of each class, above 0 and at most 1, rounded; at least one image.
        renumber: number the kept classes from 0.

    Returns:
        Lines in the order of samples.
    """
    kept = sorted({label for _, label in samples} if classes is None else classes)
    new = {label: number if renumber else label for number, label in enumerate(kept)}
    by_label = {label: [] for label in kept}
    for path, label in samples:
        if label in by_label:
            by_label[label].append(path)
    chosen = set()
    for label, paths in by_label.items():
        count = len(paths) if images is None else images
        if count > len(paths):
            raise DataError(f'class {label} has {len(paths)} images, {count} are wanted')
        if part is not None:
            count = max(1, round(part * len(paths)))
        chosen.update(_shuffled(sorted(paths), seed, label)[:count])
    return [f'{path} {new[label]}' for path, label in samples
            if label in new and path in chosen]


def _shuffled(values, seed, name):
    """Values in random order. Python keeps random() of a seed the same, but not shuffle()."""
    generator = random.Random(f'{seed} {name}')
    return [value for _, _, value in sorted((generator.random(), number, value)
                                            for number, value in enumerate(values))]
