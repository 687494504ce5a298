"""ImageNet-1k (ILSVRC 2012) as it is published: archives, class folders, devkit.

Source: https://image-net.org/challenges/LSVRC/2012/ ; the layout of class folders with
LOC_val_solution.csv is that of the Kaggle competition "ImageNet Object Localization Challenge".
"""

import collections
import csv
import io
import os
import re
import tarfile
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data import DataError
from data.folders import ImageList
from data.images import Request

IMAGES = {'train': 1281167, 'val': 50000}
CLASSES = 1000
TRAIN, VAL, DEVKIT = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar',
                      'ILSVRC2012_devkit_t12.tar.gz')


class Published(NamedTuple):
    """A published file: bytes (None: not known) and MD5."""

    size: int
    md5: str


PUBLISHED = {
    TRAIN: Published(147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
    VAL: Published(6744924160, '29b22e2961454d5413ddabcf34fc5622'),
    DEVKIT: Published(None, 'fa75699e90414af021442c21a62c3abf'),
}
# Published beside them, and not needed: test images, the dogs of task 3, bounding boxes.
NOT_NEEDED = re.compile(r'ILSVRC2012_(img_test|img_train_t3|bbox)|ILSVRC2012_devkit_t3')
LARGEST_TEXT = 1 << 26    # bytes of a list or of meta.mat; the published ones have 3 MB
WORDNET_ID = re.compile(r'n\d{8}')
IMAGE_NAME = re.compile(r'(?:(ILSVRC2012_val_\d{8})|(n\d{8})_\d+)\.(?:jpe?g|png)', re.IGNORECASE)


class Place(NamedTuple):
    """Where an image belongs, by its path in an archive or folder.

    Attributes:
        split: 'train' or 'val'.
        named: the WordNet id in its file name, or None.
        folder: the WordNet id that is its folder, or None.
        name: file name.
    """

    split: str
    named: str
    folder: str
    name: str

    @property
    def stem(self):
        """The name without extension."""
        return self.name.partition('.')[0]


def place_of(path):
    """The Place of an image, or None for any other file."""
    *folders, name = path.split('/')
    match = IMAGE_NAME.fullmatch(name)
    if not match:
        return None
    folder = folders[-1] if folders and WORDNET_ID.fullmatch(folders[-1]) else None
    return Place('val' if match[1] else 'train', match[2], folder, name)


@dataclass
class Devkit:
    """What the challenge says about its classes and validation images.

    Attributes:
        classes: {WordNet id: words}, sorted by id: the position is the class id.
        truth: {'ILSVRC2012_val_00000001': WordNet id}.
        numbers: {WordNet id: ILSVRC2012_ID}, the devkit's own numbers from 1 to 1000.
        counts: {WordNet id: training images}.
        source: the file it comes from, for messages.
    """

    classes: dict
    truth: dict = field(default_factory=dict)
    numbers: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    source: str = ''

    @property
    def class_ids(self):
        """{WordNet id: class id}."""
        return {name: number for number, name in enumerate(self.classes)}

    def class_of(self, place):
        """The WordNet id of the image at a Place; None if neither devkit nor path tells."""
        return self.truth.get(place.stem) or place.named or place.folder


# ---- the devkit

def read_devkit(path):
    """Read meta.mat and the validation truth from a devkit, .tar.gz or folder, by SciPy.

    Raises:
        DataError: if it is missing, damaged or another file; if SciPy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f'{path}: reading its meta.mat needs SciPy; pip install scipy') from error
    meta, truth = (_devkit_file(path, name) for name in
                   ('meta.mat', 'ILSVRC2012_validation_ground_truth.txt'))
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)['synsets'])
        # Inner nodes of the hierarchy follow the 1000 classes.
        leaves = sorted((str(entry['WNID']), str(entry['words']), int(entry['ILSVRC2012_ID']),
                         int(entry['num_train_images']))
                        for entry in synsets if int(entry['num_children']) == 0)
        names = {number: name for name, _, number, _ in leaves}
        if len(names) != len(leaves) or not all(map(WORDNET_ID.fullmatch, names.values())):
            raise ValueError('its classes are not distinct')
        labels = [names[int(line)] for line in truth.split()]
    except Exception as error:    # a damaged file can raise any exception
        raise DataError(f'{path}: is damaged, meta.mat and the validation truth do not fit '
                        f'({type(error).__name__}: {error}); download {DEVKIT} again') from error
    return Devkit({name: words for name, words, _, _ in leaves},
                  {f'ILSVRC2012_val_{number:08d}': name for number, name in enumerate(labels, 1)},
                  {name: number for name, _, number, _ in leaves},
                  {name: count for name, _, _, count in leaves}, str(path))


def _devkit_file(path, wanted):
    """The content of a file of the devkit."""
    try:
        if os.path.isdir(path):
            for folder in (path, os.path.join(path, 'data')):
                if os.path.isfile(os.path.join(folder, wanted)):
                    return _read(os.path.join(folder, wanted))
        else:
            with tarfile.open(path, 'r:gz') as archive:
                for entry in archive:
                    if entry.isreg() and os.path.basename(entry.name) == wanted:
                        if entry.size > LARGEST_TEXT:
                            break
                        return archive.extractfile(entry).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(f'{path}: cannot be read ({error.strerror})') from error
        raise DataError(f'{path}: is no devkit, or damaged ({error}); download {DEVKIT} again'
                        ) from error
    raise DataError(f'{path}: holds no {wanted}; download {DEVKIT} of tasks 1 and 2')


def read_solution(path):
    """{image: WordNet id} of a LOC_val_solution.csv."""
    rows = csv.reader(io.StringIO(_text(path)))
    next(rows, None)
    try:
        return {image: boxes.split()[0] for image, boxes in rows}
    except (ValueError, IndexError) as error:
        raise DataError(f'{path}:{rows.line_num}: expected an image and its boxes, such as '
                        'ILSVRC2012_val_00048981,n03995372 85 1 499 272') from error


def read_classes(path):
    """{WordNet id: words} of a file with a line `n01440764 tench` for each class."""
    classes = dict(line.split(' ', 1) for line in _text(path).splitlines() if ' ' in line)
    if not classes or not all(map(WORDNET_ID.fullmatch, classes)):
        raise DataError(f'{path}: expected lines such as `n01440764 tench`')
    return dict(sorted(classes.items()))


def _text(path):
    try:
        return str(_read(path), 'utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not UTF-8; download it again') from error


def _read(path):
    try:
        with open(path, 'rb') as file:
            content = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    if len(content) > LARGEST_TEXT:
        raise DataError(f'{path}: too large, it is another file')
    return content


# ---- what is in a folder of downloads

@dataclass
class Downloads:
    """What a folder holds of ImageNet.

    Attributes:
        archives: {name: paths of its pieces} of the archives with images.
        folders: {'train' or 'val': folder}.
        devkit, solution, words: paths of the devkit, LOC_val_solution.csv, LOC_synset_mapping.txt;
            None where they are missing.
        val_lists: paths of lists of the validation images.
    """

    archives: dict = field(default_factory=dict)
    folders: dict = field(default_factory=dict)
    devkit: str = None
    solution: str = None
    words: str = None
    val_lists: list = field(default_factory=list)


def find_downloads(folder):
    """Find archives, class folders and the devkit in a folder; returns Downloads.

    The published archives come first: what else has the same images is left out.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f'{folder}: cannot be read ({error.strerror}); --archives names the folder '
                        'of the downloaded files') from error
    found = Downloads()
    for name in names:
        path = os.path.join(folder, name)
        # Pieces of one file: set.tar.aa, set.tar.001, set.tar.part1
        piece = re.fullmatch(r'(.+\.tar)\.(?:part)?(?:[a-z]{2}|\d+)', name)
        if name == DEVKIT or re.fullmatch(r'ILSVRC2012_devkit_t12', name):
            found.devkit = found.devkit or path
        elif NOT_NEEDED.match(name) or not os.path.isfile(path):
            continue
        elif name.endswith('.tar') and not name.endswith('devkit_t12.tar'):
            found.archives[name] = [path]
        elif piece and piece[1] not in names:
            found.archives.setdefault(piece[1], []).append(path)
    for pieces in found.archives.values():
        pieces.sort(key=lambda path: (len(path), path))    # .part10 after .part9
    for root in (folder, *(os.path.join(folder, *parts) for parts in (
            ('CLS-LOC',), ('Data', 'CLS-LOC'), ('ILSVRC', 'Data', 'CLS-LOC'), ('ILSVRC2012',),
            ('imagenet',)))):
        for split in IMAGES:
            if os.path.isdir(os.path.join(root, split)):
                found.folders.setdefault(split, os.path.join(root, split))
        for name in ('val.txt', 'val_list.txt'):
            if os.path.isfile(os.path.join(root, name)):
                found.val_lists.append(os.path.join(root, name))
    # What was also unpacked is not read twice.
    for split, name in (('train', TRAIN), ('val', VAL)):
        if name in found.archives:
            found.folders.pop(split, None)
    if {TRAIN, VAL} <= set(found.archives):
        found.archives = {name: found.archives[name] for name in (TRAIN, VAL)}
    for key, name in (('solution', 'LOC_val_solution.csv'), ('words', 'LOC_synset_mapping.txt')):
        if os.path.isfile(os.path.join(folder, name)):
            setattr(found, key, os.path.join(folder, name))
    return found


# ---- labels

def read_labels(list_file):
    """[(path, label), ...] of an image list."""
    folder = os.path.dirname(os.path.abspath(list_file))
    samples = ImageList().samples(Request(folder, str(list_file))).samples
    return [(path[len(folder) + 1:], label) for path, label in samples]


def label_order(labels, devkit):
    """Which class order the labels of an image list follow.

    Lists of the validation images circulate with labels in the order of the devkit's numbers, or
    counted from 1. A network that was trained with the sorted order has 0.1 % on them.

    Args:
        labels: (path, label) pairs; a path's file name is that of the published image.
        devkit: Devkit. Where its truth lacks an image, the class in the image's path counts.

    Returns:
        '' if the labels are the sorted order's, or no image is known; else what they are.
    """
    given = collections.defaultdict(collections.Counter)
    for path, label in labels:
        place = place_of(path)
        if place:
            name = devkit.class_of(place)
            if name:
                given[name][label] += 1
    ids = devkit.class_ids
    wrong = sum(sum(counts.values()) - counts[ids.get(name)] for name, counts in given.items())
    if not wrong:
        return ''
    total = sum(sum(counts.values()) for counts in given.values())
    by_class = {name: next(iter(counts)) for name, counts in given.items() if len(counts) == 1}
    if len(by_class) == len(given):
        for order, right in (
                ("the devkit's numbers (ILSVRC2012_ID), from 1", devkit.numbers),
                ("the devkit's numbers (ILSVRC2012_ID) less 1, from 0",
                 {name: number - 1 for name, number in devkit.numbers.items()}),
                ('sorted WordNet ids, but counted from 1',
                 {name: number + 1 for name, number in ids.items()})):
            if all(right.get(name) == label for name, label in by_class.items()):
                return f'the labels follow {order}, not the sorted WordNet ids from 0'
        if len(set(by_class.values())) == len(by_class):
            return ('the labels follow another class order than the sorted WordNet ids: '
                    + ', '.join(f'{name} has {label} instead of {ids.get(name)}' for name, label
                                in sorted(by_class.items()) if label != ids.get(name))[:120])
    return (f'{wrong} of {total} labels differ from the truth'
            + (' (the list may have lost the order of its images)' if wrong > total // 2 else ''))
