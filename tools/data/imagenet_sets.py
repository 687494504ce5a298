"""Published test sets for networks trained on ImageNet, in the form that their authors distribute.

    imagenet-v2   Recht et al. (2019): class folders named 0 to 999, the class ids
    real          Beyer et al. (2020), ReaL: several labels for each validation image, in real.json
    sketch        Wang et al. (2019): sketch/ with a folder for each WordNet id
    a, r          Hendrycks et al. (2021): folders of 200 WordNet ids; only these classes compete

A row of SETS knows the folders of a set and its definition of top-1; `open_set` reads it.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Optional

import numpy as np

from data import DataError
from data.folders import ClassFolders, class_folders, is_image
from data.images import Images, Request
from data.samples import Samples

CLASSES = 1000             # of ImageNet
REAL_FILE = 'real.json'
LARGEST_REAL = 16 << 20    # bytes; the published file has 0.4 MB
VAL_IMAGE = re.compile(r'ILSVRC2012_val_([0-9]{8})\.jpeg', re.IGNORECASE)


@dataclass
class TestSet:
    """The images of a test set and its definition of a correct prediction.

    Without arguments it stands for the validation data of a configuration.

    Attributes:
        title: name of the set.
        images: an Images. Where an image has several labels, this holds its first.
        classes: the class ids that compete, ascending; None if all do.
        answers: int64 `[N, L]`, all labels of each image, padded with -1; None if each has one.
        published: number of images that the authors score.
    """

    title: str = ''
    images: Optional[Images] = None
    classes: Optional[list] = None
    answers: Optional[np.ndarray] = None
    published: int = 0


@dataclass(frozen=True)
class FolderSet:
    """A set of class folders.

    Attributes:
        title: name of the set.
        count: number of classes, each with a folder. If not all of ImageNet's, only they compete.
        published: number of images.
        numbered: whether a folder's name is the class id; otherwise it is the WordNet id.
    """

    title: str
    count: int
    published: int
    numbered: bool = False

    def open(self, root, class_ids):
        if self.numbered:
            class_ids = {str(label): label for label in range(CLASSES)}
        names = _folders(root)
        if len(names) == 1 and names[0] not in class_ids:    # the folder in the archive
            root = os.path.join(root, names[0])
            names = _folders(root)
        unknown = [name for name in names if name not in class_ids]
        if unknown or len(names) != self.count:
            kind = f'0 to {CLASSES - 1}' if self.numbered else 'WordNet ids of ImageNet'
            problem = f', {unknown[0]!r} is none of them' if unknown else ''
            raise DataError(f'{root}: {self.title} has {self.count} class folders, named by '
                            f'{kind}; here are {len(names)} folders{problem}: name the folder '
                            'that its archive was extracted to (DATA_PATH.VAL_DATASET_PATH)')
        classes = {name: class_ids[name] for name in names}
        found = ClassFolders().samples(Request(root, classes=classes))
        some = None if self.count == CLASSES else sorted(classes.values())
        return TestSet(self.title, found, some, published=self.published)


@dataclass(frozen=True)
class RealSet:
    """ImageNet's validation images with ReaL's labels; images without a label are left out.

    The n-th entry of real.json holds the labels of ILSVRC2012_val_0000000n.JPEG. The file lies in
    the folder of the images or beside it; the images in that folder, at any depth.
    """

    title: str = 'ReaL'
    published: int = 46837

    def open(self, root, class_ids):
        paths = {}
        for folder, _, files in os.walk(root):
            for name in filter(is_image, files):
                match = VAL_IMAGE.fullmatch(name)
                if match:
                    paths[int(match[1])] = os.path.join(folder, name)
        file = next((path for path in (os.path.join(root, REAL_FILE),
                                       os.path.join(root, os.pardir, REAL_FILE))
                     if os.path.isfile(path)), None)
        if file is None:
            raise DataError(f'{root}: neither in this folder nor beside it is {REAL_FILE}, the '
                            'labels of ReaL: copy it there')
        labels = _read_real(file)
        scored = [number for number, each in enumerate(labels, start=1) if each]
        missing = [number for number in scored if number not in paths]
        if missing:
            raise DataError(f'{root}: {len(missing)} of the {len(scored)} images with labels in '
                            f'{file} are missing, first ILSVRC2012_val_{missing[0]:08d}.JPEG; name '
                            "the folder of ImageNet's validation images "
                            '(DATA_PATH.VAL_DATASET_PATH)')
        answers = np.full((len(scored), max(len(labels[number - 1]) for number in scored)), -1)
        for row, number in enumerate(scored):
            answers[row, :len(labels[number - 1])] = labels[number - 1]
        samples = Samples(root, ((paths[number], labels[number - 1][0]) for number in scored))
        return TestSet(self.title, Images(samples), None, answers, self.published)


SETS = {
    'imagenet-v2': FolderSet('ImageNet-V2', CLASSES, 10000, numbered=True),
    'real': RealSet(),
    'sketch': FolderSet('ImageNet-Sketch', CLASSES, 50889),
    'a': FolderSet('ImageNet-A', 200, 7500),
    'r': FolderSet('ImageNet-R', 200, 30000),
}


def open_set(name, root, class_ids):
    """Find the images of a test set; returns a TestSet.

    Args:
        name: a key of SETS.
        root: the folder that the set's archive was extracted to, or the one in it; for 'real' the
            folder of ImageNet's validation images.
        class_ids: {WordNet id: class id} of ImageNet.

    Raises:
        DataError: if the folders or labels are not those of the set.
    """
    return SETS[name].open(str(root), class_ids)


def _folders(root):
    if not os.path.isdir(root):
        raise DataError(f'{root}: no such folder; set DATA_PATH.VAL_DATASET_PATH')
    return class_folders(root)


def _read_real(path):
    """The labels of each image in real.json: a list of lists of class ids."""
    try:
        if os.path.getsize(path) > LARGEST_REAL:
            raise ValueError(f'larger than {LARGEST_REAL} bytes')
        with open(path, encoding='utf-8') as file:
            labels = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'{path}: cannot be read ({error}); download it again') from error
    if not (isinstance(labels, list) and any(labels) and all(
            isinstance(each, list) and all(type(label) is int and 0 <= label < CLASSES
                                           for label in each) for each in labels)):
        raise DataError(f'{path}: must be a list with a list of class ids (0 to {CLASSES - 1}) for '
                        'each validation image; download it again')
    return labels
