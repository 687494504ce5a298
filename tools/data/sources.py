"""Which images there are, and what they are: where training and validation get their samples.

    cifar      CIFAR-10 and CIFAR-100 in the form of their authors
    folders    a list of files; a folder of class folders; files with the class in their name

A form of data is an object with three methods, all of which are given an images.Request:
`matches` says whether the data has this form, `samples` returns an images.Images, and `classes`
{class name: label} without looking at an image. A new form is a file of its own and an entry in
SOURCES.
"""

from collections import Counter

from data.cifar import Cifar
from data.folders import ClassFolders, ImageList, NamedFiles
from data.images import Request, no_folder

# The first that matches is taken: a new form stands before those that would take its data. Cifar
# refuses any other archive; ImageList takes all that has a list, the last two any folder.
SOURCES = [
    Cifar(),
    ImageList(),
    ClassFolders(),
    NamedFiles(),
]


def find_images(root, list_file=None, **wanted):
    """Find the images of a data set, in whichever form it has.

    Args: those of Request.

    Returns:
        images.Images.

    Raises:
        DataError: naming the file or folder, for data that is not what it should be.
    """
    request = Request(str(root), list_file, **wanted)
    source = source_of(request)
    if source is None:
        raise no_folder(request.root)
    return source.samples(request)


def find_classes(root):
    """{class name: label} of a data set without a list, in the order of labels.

    Empty where there is no such data, or a file carries no class. Only names are read, no image.

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
    """What is suspicious about the labels of a training set.

    Three things are. All labels are the same: any network reaches 100 %. The largest class has
    more than `most_uneven` times the images of the smallest one that has any: accuracy then says
    little about the small ones (100 is the strongest imbalance of the usual long-tailed
    benchmarks; ImageNet has 1.8). Classes that validation asks for have no training image.
    Classes that neither of the two has are fine: a part of ImageNet keeps its 1000 classes.

    Args:
        training, validation: lists of (name, label), labels below 0 are skipped.
        most_uneven: largest ratio of two classes' images that is not named.

    Returns:
        A list of lines for the log, empty for most data.
    """
    counts = Counter(label for _, label in training if label >= 0)
    if not counts:
        return []
    (largest, most), (smallest, fewest) = counts.most_common(1)[0], counts.most_common()[-1]
    lines = []
    if len(counts) == 1:
        lines.append(f'all {most} training images have the label {largest}: the network can only '
                     'learn to give it; check the labels of the training list or the class folders')
    elif most > most_uneven * fewest:
        lines.append(f'training classes are very uneven: label {largest} has {most} of '
                     f'{sum(counts.values())} images, label {smallest} has {fewest}; check the '
                     'labels, or expect a low accuracy of the small classes')
    asked = Counter(label for _, label in validation if label >= 0)
    missing = sorted(asked.keys() - counts.keys())
    if missing:
        shown = ', '.join(map(str, missing[:5])) + (', ...' if len(missing) > 5 else '')
        lines.append(f'{len(missing)} of the {len(asked)} classes of validation have no training '
                     f'image (labels {shown}): no network can get them right')
    return lines
