"""What every form of data is asked for, and what it answers: images with their classes."""

import os
from dataclasses import dataclass, field
from typing import Callable, Optional

from data import DataError
from data.decode import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Request:
    """Which images are wanted.

    Attributes:
        root: a folder or file.
        list_file: the list of images, where there is one.
        class_ids: a mapping of class name to class id, such as ImageNet's WordNet ids. If it
            knows every class, its ids are the labels, so that a part of ImageNet's classes
            keeps the true ones. Otherwise classes are numbered in the order of their names.
        num_classes: if given, labels must be below it; data with classes of its own must have
            as many.
        split: 'train' or 'val', for data that holds both.
        classes: {class name: label} of the training data, for validation data to agree with.
    """

    root: str
    list_file: Optional[str] = None
    class_ids: Optional[dict] = None
    num_classes: Optional[int] = None
    split: str = 'train'
    classes: Optional[dict] = None


@dataclass
class Images:
    """The images of one part of a data set.

    Attributes:
        samples: a list of (name, label). The name is the path of the image's file; with an
            opener it is what messages call the image, below the root of the data.
        classes: {class name: label}, empty where a list gives labels without names.
        opener: where images are no files of their own: called with the place of a sample, it
            returns the image's pixels, uint8 [H, W, 3], or the bytes of its file. It may raise
            ImageError. Worker processes inherit what it holds, and call it in any order.
    """

    samples: list
    classes: dict = field(default_factory=dict)
    opener: Optional[Callable] = None


def numbered(names, class_ids=None):
    """{class name: label}: the known ids if all classes are known, else the order of names."""
    if class_ids and all(name in class_ids for name in names):
        return {name: class_ids[name] for name in sorted(names)}
    return {name: number for number, name in enumerate(sorted(names))}


def label_of(name, numbers, num_classes, where):
    """The label of a class; DataError if training does not have it or the network too few."""
    if name not in numbers:
        known = ', '.join(list(numbers)[:5]) + (', ...' if len(numbers) > 5 else '')
        raise DataError(f'{where}: the class {name!r} is none of the training data\'s '
                        f'{len(numbers)} ({known}); rename it, or add it there')
    require_class(numbers[name], num_classes, where)
    return numbers[name]


def require_class(label, num_classes, where):
    """Raise a DataError for a label that the network has no output for."""
    if num_classes is not None and label >= num_classes:
        raise DataError(f'{where}: class id {label}, but the network has {num_classes} classes '
                        f'(0 to {num_classes - 1}); set the number of classes to fit the data')


def require_some(samples, root):
    """The samples; DataError if there are none."""
    if not samples:
        raise DataError(f'{root}: no images found; expected CLASS/IMAGE in it, or files with names '
                        'such as CLASS_7.png, with one of the extensions '
                        f'{" ".join(IMAGE_EXTENSIONS)}')
    return samples


def no_folder(root):
    """The error for a root at which there is no data that is known."""
    if os.path.isfile(root):
        return DataError(f'{root}: is a file; data is a folder, or an archive of CIFAR-10 or '
                         'CIFAR-100 (.tar.gz or .tgz or .tar)')
    return DataError(f'{root}: no such folder; set the data root to where the images are')
