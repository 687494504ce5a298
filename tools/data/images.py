"""The request to a data format and its result, and the checks that all formats share."""

import os
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np

from data import DataError
from data.decode import IMAGE_EXTENSIONS
from data.samples import Samples


@dataclass(frozen=True)
class Request:
    """The images to find.

    Attributes:
        root: a folder or file.
        list_file: the image list, or None.
        class_ids: {class name: class id}, such as ImageNet's WordNet ids. If it holds every class
            of the data, its ids are the labels, so that a subset of ImageNet keeps ImageNet's
            labels. Otherwise the labels are 0, 1, ... in the order of the class names.
        num_classes: if given, all labels must be below it; a data set with a fixed list of
            classes must have exactly as many.
        split: 'train' or 'val', for data that holds both.
        classes: for validation data, {class name: label} of the training data.
        read_ahead: images are read shard by shard, so let whole shards be read ahead.
    """

    root: str
    list_file: Optional[str] = None
    class_ids: Optional[dict] = None
    num_classes: Optional[int] = None
    split: str = 'train'
    classes: Optional[dict] = None
    read_ahead: bool = False


@dataclass
class Images:
    """The images of one split of a data set.

    Attributes:
        samples: a Samples, a sequence of (name, label). The name is the path of the image file;
            with an opener it is the image's name in messages, below the root of the data.
        classes: {class name: label}; empty if the data holds labels without class names.
        opener: None if each image is a file. Otherwise a function of a sample's index that
            returns pixels, uint8 [H, W, 3], or the bytes of an image file, and may raise
            ImageError. It is inherited by worker processes, which call it in any order.
        shard: None, or the number of the file that holds each image, int32 [N].
    """

    samples: Samples
    classes: dict = field(default_factory=dict)
    opener: Optional[Callable] = None
    shard: Optional[np.ndarray] = None


def numbered(names, class_ids=None):
    """{class name: label}: from class_ids if it holds all names, else in the order of names."""
    if class_ids and all(name in class_ids for name in names):
        return {name: class_ids[name] for name in sorted(names)}
    return {name: number for number, name in enumerate(sorted(names))}


def label_of(name, classes, num_classes, where):
    """The label of a class name; DataError if it is not in `classes` or not below num_classes."""
    if name not in classes:
        known = ', '.join(list(classes)[:5]) + (', ...' if len(classes) > 5 else '')
        raise DataError(f'{where}: the class {name!r} is none of the training data\'s '
                        f'{len(classes)} ({known}); rename it, or add it there')
    require_class(classes[name], num_classes, where)
    return classes[name]


def require_class(label, num_classes, where):
    """Raise a DataError if the network has no output for a label."""
    if num_classes is not None and label >= num_classes:
        raise DataError(f'{where}: class id {label}, but the network has {num_classes} classes '
                        f'(0 to {num_classes - 1}); set the number of classes to fit the data')


def require_some(samples, root):
    """Return the samples; DataError if there are none."""
    if not len(samples):
        raise DataError(f'{root}: no images found; expected CLASS/IMAGE in it, or files with names '
                        'such as CLASS_7.png, with one of the extensions '
                        f'{" ".join(IMAGE_EXTENSIONS)}')
    return samples


def no_folder(root):
    """The DataError for a root that no data format matches."""
    if os.path.isfile(root):
        return DataError(f'{root}: is a file; data is a folder, a pattern of tar shards, or an '
                         'archive of CIFAR-10 or CIFAR-100 (.tar.gz or .tgz or .tar)')
    return DataError(f'{root}: no such folder; set the data root to where the images are')
