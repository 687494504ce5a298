"""The data formats, and the functions that find the images of a data set in any of them.

    shards     tar shards in WebDataset's layout
    cifar      CIFAR-10 and CIFAR-100 in the files of their authors
    folders    an image list; class folders; files with the class in their name

A data format is an object with three methods, each of which takes an images.Request: `matches`
returns whether the data has this format, `samples` returns an images.Images, and `classes` returns
{class name: label} without reading images. A new format is one file and one entry in SOURCES.
"""

import numpy as np

from data.cifar import Cifar
from data.folders import ClassFolders, ImageList, NamedFiles
from data.images import Request, no_folder
from data.shards import Shards

# The first that matches is taken: a new form stands before those that would take its data. Cifar
# refuses any other archive; ImageList takes all that has a list, the last two any folder.
SOURCES = [
    Cifar(),
    ImageList(),
    Shards(),
    ClassFolders(),
    NamedFiles(),
]


def find_images(root, list_file=None, **wanted):
    """Find the images of a data set of any format.

    Args: the fields of images.Request.

    Returns:
        images.Images.

    Raises:
        DataError: if no format matches, or the data is invalid.
    """
    request = Request(str(root), list_file, **wanted)
    source = source_of(request)
    if source is None:
        raise no_folder(request.root)
    return source.samples(request)


def find_classes(root):
    """{class name: label} of a data set without an image list, in the order of labels.

    Empty if no format matches, or a file has no class in its name. No image is read.

    Raises:
        DataError: for a damaged archive.
    """
    request = Request(str(root))
    source = source_of(request)
    return source.classes(request) if source else {}


def source_of(request):
    """The first of SOURCES that matches, or None."""
    return next((source for source in SOURCES if source.matches(request)), None)


def label_warnings(training, validation=(), most_uneven=100):
    """Warnings about the labels of a training set.

    There are three: all labels are the same, so that any network reaches 100 %; the largest class
    has more than `most_uneven` times as many images as the smallest non-empty one, so that
    accuracy hardly depends on the small classes; classes of the validation data have no training
    image. Classes without images in both are accepted: a subset of ImageNet keeps 1000 classes.

    Args:
        training, validation: arrays of labels; those below 0 are skipped.
        most_uneven: largest accepted ratio of the images of two classes. 100 is the strongest
            imbalance of the common long-tailed benchmarks; ImageNet has 1.8.

    Returns:
        A list of lines for the log.
    """
    labels, counts = np.unique(_known(training), return_counts=True)
    if not labels.size:
        return []
    largest, most = labels[counts.argmax()], counts.max()
    smallest, fewest = labels[counts.argmin()], counts.min()
    lines = []
    if len(labels) == 1:
        lines.append(f'all {most} training images have the label {largest}: the network can only '
                     'learn to give it; check the labels of the training list or the class folders')
    elif most > most_uneven * fewest:
        lines.append(f'training classes are very uneven: label {largest} has {most} of '
                     f'{counts.sum()} images, label {smallest} has {fewest}; check the '
                     'labels, or expect a low accuracy of the small classes')
    expected = np.unique(_known(validation))
    missing = np.setdiff1d(expected, labels)
    if missing.size:
        shown = ', '.join(map(str, missing[:5])) + (', ...' if len(missing) > 5 else '')
        lines.append(f'{len(missing)} of the {len(expected)} classes of validation have no '
                     f'training image (labels {shown}): no network can get them right')
    return lines


def _known(labels):
    labels = np.asarray(labels, np.int64)
    return labels[labels >= 0]
