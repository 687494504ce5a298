"""CIFAR-10 and CIFAR-100 in their "python version", as a folder or as the .tar.gz itself.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import gzip
import os
import tarfile
from typing import NamedTuple

import numpy as np

from data import DataError
from data.images import Images, require_some
from data.samples import Samples
from weights.unpickle import Damaged, Refused, StoredArray, shown, unpickle

ARCHIVES = ('.tar.gz', '.tgz', '.tar')
# In bytes. The largest published file has 155 MB, the larger archive 187 MB unpacked.
LARGEST_BATCH = 1 << 28
LARGEST_ARCHIVE = 1 << 29
SIDE = 32    # of an image, pixels


class Layout(NamedTuple):
    """The files of one of the two data sets."""

    folder: str
    meta: str           # file with the class names
    names_entry: str    # key of the class names in it
    labels_entry: str   # key of the labels in a batch file
    batches: dict       # {split: names of its batch files}


LAYOUTS = (
    Layout('cifar-10-batches-py', 'batches.meta', 'label_names', 'labels',
           {'train': [f'data_batch_{number}' for number in range(1, 6)], 'val': ['test_batch']}),
    Layout('cifar-100-python', 'meta', 'fine_label_names', 'fine_labels',
           {'train': ['train'], 'val': ['test']}),
)


class Cifar:
    """The data format of CIFAR. All images, 32 x 32 pixels, are held in memory."""

    def matches(self, request):
        return layout_of(request.root) is not None

    def samples(self, request):
        """Read the images of a split; 'val' is the published test set.

        Raises:
            DataError: if a file is damaged or missing, if there is also an image list, or if the
                network has a different number of classes.
        """
        root, layout = request.root, layout_of(request.root)
        if request.list_file:
            raise DataError(f'{root}: CIFAR carries its own labels; set no list of images '
                            f'({request.list_file}) for it')
        batches = layout.batches[request.split]
        files = _read_files(root, layout, [layout.meta, *batches])
        names = _class_names(files.pop(layout.meta), layout, os.path.join(root, layout.meta))
        if request.num_classes is not None and request.num_classes != len(names):
            raise DataError(f'{root}: has {len(names)} classes, but the network has '
                            f'{request.num_classes}; set MODEL.NUM_CLASSES={len(names)}')
        samples, pixels = [], []
        for file in batches:
            where = os.path.join(root, file)
            content = _unpickled(files.pop(file), where)
            images, labels = _images_and_labels(content, layout, len(names), where)
            samples.extend((f'{file}[{row}]', label) for row, label in enumerate(labels))
            pixels.append(images)
        pixels = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)    # (N, H, W, 3)
        samples = Samples(root, require_some(samples, root))
        return Images(samples, _labels_by_name(names), pixels.__getitem__)

    def classes(self, request):
        layout = layout_of(request.root)
        content = _read_files(request.root, layout, [layout.meta])[layout.meta]
        where = os.path.join(request.root, layout.meta)
        return _labels_by_name(_class_names(content, layout, where))


def _labels_by_name(names):
    return {name: label for label, name in enumerate(names)}


def layout_of(root):
    """The Layout of the data at `root`, or None. DataError for an archive of other data."""
    if os.path.isfile(root) and str(root).lower().endswith(ARCHIVES):
        for name, _ in _archive_files(root):
            for layout in LAYOUTS:
                if name.startswith(f'{layout.folder}/'):
                    return layout
        raise DataError(f'{root}: holds neither CIFAR-10 nor CIFAR-100 in their python version '
                        f'({" or ".join(layout.folder for layout in LAYOUTS)}); unpack other data')

    def has(name):
        return os.path.isfile(os.path.join(root, name))

    for layout in LAYOUTS:
        if has(layout.meta) and any(has(name) for part in layout.batches.values() for name in part):
            return layout
    return None


def _class_names(content, layout, where):
    """The class names in the order of their labels."""
    names = _unpickled(content, where).get(layout.names_entry)
    if type(names) is not list or not names:
        raise DataError(f'{where}: is damaged, it holds no list {layout.names_entry}')
    names = [str(name, 'latin1') if isinstance(name, (bytes, memoryview)) else name
             for name in names]
    if (not all(type(name) is str and name.isprintable() for name in names)
            or len(set(names)) != len(names)):
        raise DataError(f'{where}: is damaged, {layout.names_entry} are no distinct names')
    return names


def _images_and_labels(content, layout, num_classes, where):
    """Check the dict of a batch file; return pixels, uint8 [N, 32, 32, 3], and labels, [N]."""
    data, labels = content.get('data'), content.get(layout.labels_entry)
    if type(data) is not StoredArray or type(labels) is not list:
        raise DataError(f'{where}: is damaged, it lacks data or {layout.labels_entry}')
    shape = (len(labels), 3 * SIDE * SIDE)
    if data.shape != shape or data.type.code != 'u1':
        raise DataError(f'{where}: is damaged, data is {data.type.code} {list(data.shape)} instead '
                        f'of u1 {list(shape)} for its {len(labels)} labels')
    for label in labels:
        if type(label) is not int or not 0 <= label < num_classes:
            found = label if type(label) is int else shown(label)
            raise DataError(f'{where}: is damaged, a label is {found} instead of a class id from 0 '
                            f'to {num_classes - 1}')
    pixels = data.read().reshape(-1, 3, SIDE, SIDE)                 # (N, 3, H, W)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels    # (N, H, W, 3)


def _unpickled(content, where):
    """The dict in a pickle file of Python 2, read by the restricted unpickler."""
    try:
        value, _ = unpickle(memoryview(content), python_2=True)
    except Refused as error:
        raise DataError(f'{where}: refused, {error}; CIFAR holds arrays and texts only') from error
    except Exception as error:    # a damaged file can raise any exception
        reason = str(error) if isinstance(error, Damaged) else type(error).__name__
        raise DataError(f'{where}: is damaged or no file of CIFAR ({reason})') from error
    if type(value) is not dict:
        raise DataError(f'{where}: is no file of CIFAR (it holds a {type(value).__name__})')
    return value


def _read_files(root, layout, wanted):
    """{name: content} of the wanted files; DataError if one is missing."""
    if os.path.isdir(root):
        return {name: _read_file(os.path.join(root, name)) for name in wanted}
    found, paths = {}, {f'{layout.folder}/{name}': name for name in wanted}
    for path, content in _archive_files(root, paths):
        if path in paths:
            found[paths[path]] = content
            if len(found) == len(paths):
                return found
    missing = next(name for name in wanted if name not in found)
    raise DataError(f'{root}: lacks {layout.folder}/{missing}; download it again')


def _read_file(path):
    if os.path.exists(path) and not os.path.isfile(path):    # open() would block on a named pipe
        raise DataError(f'{path}: cannot be read (not a regular file)')
    try:
        with open(path, 'rb') as file:
            content = file.read(LARGEST_BATCH + 1)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); CIFAR is not complete without '
                        'it') from error
    _require_size(len(content), path)
    return content


def _require_size(size, where):
    if size > LARGEST_BATCH:
        raise DataError(f'{where}: refused, a file of CIFAR has less than {LARGEST_BATCH} bytes')


def _archive_files(path, wanted=()):
    """Yield (name, content) of the regular files in a tar archive; nothing is unpacked to disk.

    The content is None unless the name is in `wanted`.
    """
    try:
        with open(path, 'rb') as file:
            packed = file.read(2) == b'\x1f\x8b'
            file.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=file) if packed else file)
            with tarfile.open(fileobj=stream, mode='r|') as archive:
                for member in archive:
                    name = member.name[2:] if member.name.startswith('./') else member.name
                    if not member.isreg() or member.issparse():
                        continue
                    content = None
                    if name in wanted:
                        _require_size(member.size, name)
                        content = archive.extractfile(member).read()
                    yield name, content
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:    # a damaged file can raise any exception
        raise DataError(f'{path}: is damaged, cut off, or no archive ({error})') from error


class _Bounded:
    """A file with a limit on the bytes read from it, against decompression bombs."""

    def __init__(self, file):
        self.file, self.left = file, LARGEST_ARCHIVE

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise DataError(f'refused, it unpacks to more than {LARGEST_ARCHIVE} bytes; CIFAR has '
                            'less')
        return self.file.read(size)
