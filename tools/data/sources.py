"""Which images there are, and what they are: where training and validation get their samples.

Four kinds of data are told apart by what lies there: a list of files; a folder of class folders;
a folder of files that carry their class in the name (cat_123.png); CIFAR-10 and CIFAR-100 in the
form of their authors, as a folder or as the .tar.gz itself.
"""

import gzip
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import numpy as np

from data import DataError
from data.decode import IMAGE_EXTENSIONS
from weights.unpickle import Damaged, Refused, StoredArray, shown, unpickle


@dataclass
class Images:
    """The images of one part of a data set.

    Attributes:
        samples: a list of (name, label). The name is the file's path, or stands for a row of
            `pixels`.
        classes: {class name: label}, empty where a list gives labels without names.
        pixels: images that lie in memory, uint8 [N, H, W, 3] in the order of samples; None where
            samples are files.
    """

    samples: list
    classes: dict = field(default_factory=dict)
    pixels: Optional[np.ndarray] = None


def find_images(root, list_file=None, class_ids=None, num_classes=None, split='train',
                classes=None):
    """Find the images of a data set, in whichever form it has.

    Args:
        root: a folder, or the archive of CIFAR.
        list_file: the list of images, where there is one.
        class_ids: a mapping of class name to class id, such as ImageNet's WordNet ids. If it
            knows every class, its ids are the labels, so that a part of ImageNet's classes
            keeps the true ones. Otherwise classes are numbered in the order of their names.
        num_classes: if given, labels must be below it; CIFAR must have as many.
        split: 'train' or 'val', which of CIFAR's two parts; its test images are for validation.
        classes: {class name: label} of the training data, for validation data to agree with.

    Returns:
        Images.

    Raises:
        DataError: naming the file or folder, for data that is not what it should be.
    """
    kind = _cifar_kind(root)
    if kind and list_file:
        raise DataError(f'{root}: CIFAR carries its own labels; set no list of images '
                        f'({list_file}) for it')
    if kind:
        return _read_cifar(root, kind, split, num_classes)
    if list_file:
        return Images(read_image_list(list_file, root, num_classes))
    scan = scan_class_folders if _class_folders(root) else scan_named_files
    return Images(*scan(root, class_ids, num_classes, classes))


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


def find_classes(root):
    """{class name: label} of a data set without a list, in the order of labels.

    Empty where there is no such data, or a file carries no class. Only names are read, no image.

    Raises:
        DataError: for a damaged archive.
    """
    kind = _cifar_kind(root)
    if kind:
        content = _cifar_files(root, kind, [kind.meta])[kind.meta]
        names = _cifar_classes(content, kind, os.path.join(root, kind.meta))
        return {name: label for label, name in enumerate(names)}
    if not os.path.isdir(root):
        return {}
    try:
        names = _class_folders(root) or {_class_of(path) for path in _image_files(root)}
    except DataError:
        return {}
    return _numbered(names)


# ---- lists and folders

def read_image_list(list_file, root, num_classes=None):
    """Read lines of `path label`, as in ImageNet's train.txt and val.txt.

    The label is the last word, so a path may hold spaces. Blank lines, CRLF line ends and a
    byte order mark are accepted. Whether an image exists shows only when it is read, because
    asking for a million files takes minutes. A path that leads out of root is an image that
    cannot be read, like any other.

    Args:
        list_file: the list, in UTF-8.
        root: the folder that the paths are relative to.
        num_classes: if given, labels must be below it.

    Returns:
        A list of (path including root, label).

    Raises:
        DataError: with file and line, for a line that is no `path label`; for a missing or empty
            list; for a missing root.
    """
    _require_folder(root)
    try:
        with open(list_file, 'rb') as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise DataError(f'{list_file}: cannot read the image list ({error.strerror})') from error

    samples = []
    for number, line in enumerate(lines, start=1):
        where = f'{list_file}:{number}'
        try:
            text = line.decode('utf-8-sig' if number == 1 else 'utf-8').strip()
        except UnicodeDecodeError as error:
            raise DataError(f'{where}: not UTF-8; save the list as UTF-8') from error
        if not text:
            continue
        match = re.fullmatch(r'([^\0]*\S)\s+([0-9]{1,9})', text)
        if not match:
            raise DataError(f"{where}: expected 'path label', where the label is a class id such "
                            f'as 7, got {text[:80]!r}')
        path, label = match[1], int(match[2])
        _require_class(label, num_classes, where)
        samples.append((os.path.join(root, path), label))
    if not samples:
        raise DataError(f"{list_file}: the image list is empty; write one 'path label' a line")
    return samples


def scan_class_folders(root, class_ids=None, num_classes=None, classes=None):
    """Find the images below root, where every folder in root is a class.

    Images may lie at any depth inside a class folder. Names that begin with a dot are skipped:
    they are what editors and file managers leave behind. Arguments are those of find_images.

    Returns:
        A list of (path, label), ordered by class folder and path, and a dict of class folder
        name to label.

    Raises:
        DataError: for a missing root, one without images, a label out of range, and a class that
            training does not have.
    """
    names = _class_folders(root)
    numbers = classes or _numbered(names, class_ids)
    samples = []
    for name in names:
        folder = os.path.join(root, name)
        label = _label_of(name, numbers, num_classes, folder)
        paths = [os.path.join(below, file)
                 for below, _, files in os.walk(folder) for file in files if _is_image(file)]
        samples.extend((path, label) for path in sorted(paths))
    return _some(samples, root), numbers


def scan_named_files(root, class_ids=None, num_classes=None, classes=None):
    """Find the images in root, where a file's class is what precedes the last _ of its name.

    So cat_123.png is a cat, and guinea_pig_7.png a guinea_pig. Arguments, result and errors are
    those of scan_class_folders; besides, an image without a class in its name is an error.
    """
    paths = _image_files(root)
    names = [_class_of(path) for path in paths]
    numbers = classes or _numbered(set(names), class_ids)
    samples = [(path, _label_of(name, numbers, num_classes, path))
               for path, name in zip(paths, names)]
    return _some(samples, root), numbers


def _some(samples, root):
    if not samples:
        raise DataError(f'{root}: no images found; expected CLASS/IMAGE in it, or files with names '
                        'such as CLASS_7.png, with one of the extensions '
                        f'{" ".join(IMAGE_EXTENSIONS)}')
    return samples


def _class_folders(root):
    """The names of the folders in root, sorted."""
    _require_folder(root)
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries
                      if entry.is_dir() and not entry.name.startswith('.'))


def _image_files(root):
    """The paths of the images that lie in root itself, sorted."""
    return sorted(os.path.join(root, name) for name in os.listdir(root) if _is_image(name))


def _is_image(name):
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith('.')


def _class_of(path):
    name, separator, _ = os.path.splitext(os.path.basename(path))[0].rpartition('_')
    if not (name and separator):
        raise DataError(f'{path}: carries no class in its name, as CLASS_7.png does; rename it, or '
                        'put each class into a folder of its own')
    return name


def _numbered(names, class_ids=None):
    """{class name: label}: the known ids if all classes are known, else the order of names."""
    if class_ids and all(name in class_ids for name in names):
        return {name: class_ids[name] for name in sorted(names)}
    return {name: number for number, name in enumerate(sorted(names))}


def _label_of(name, numbers, num_classes, where):
    if name not in numbers:
        known = ', '.join(list(numbers)[:5]) + (', ...' if len(numbers) > 5 else '')
        raise DataError(f'{where}: the class {name!r} is none of the training data\'s '
                        f'{len(numbers)} ({known}); rename it, or add it there')
    _require_class(numbers[name], num_classes, where)
    return numbers[name]


def _require_folder(root):
    if os.path.isfile(root):
        raise DataError(f'{root}: is a file; data is a folder, or an archive of CIFAR-10 or '
                        f'CIFAR-100 ({" or ".join(ARCHIVES)})')
    if not os.path.isdir(root):
        raise DataError(f'{root}: no such folder; set the data root to where the images are')


def _require_class(label, num_classes, where):
    if num_classes is not None and label >= num_classes:
        raise DataError(f'{where}: class id {label}, but the network has {num_classes} classes '
                        f'(0 to {num_classes - 1}); set the number of classes to fit the data')


# ---- CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html, "python version"

ARCHIVES = ('.tar.gz', '.tgz', '.tar')
# The largest of the published files has 155 MB, and the larger archive 187 MB once unpacked.
LARGEST_BATCH = 1 << 28
LARGEST_ARCHIVE = 1 << 29
SIDE = 32    # of an image, in pixels


class Cifar(NamedTuple):
    """How one of the two data sets is laid out."""

    folder: str
    meta: str           # the file with the class names, and its entry of them
    names_entry: str
    labels_entry: str
    batches: dict       # the files of each part


CIFARS = (
    Cifar('cifar-10-batches-py', 'batches.meta', 'label_names', 'labels',
          {'train': [f'data_batch_{number}' for number in range(1, 6)], 'val': ['test_batch']}),
    Cifar('cifar-100-python', 'meta', 'fine_label_names', 'fine_labels',
          {'train': ['train'], 'val': ['test']}),
)


def _cifar_kind(root):
    """Which of CIFARS lies at root, or None."""
    if os.path.isfile(root) and str(root).lower().endswith(ARCHIVES):
        for name, _ in _archive_files(root):
            for kind in CIFARS:
                if name.startswith(f'{kind.folder}/'):
                    return kind
        raise DataError(f'{root}: holds neither CIFAR-10 nor CIFAR-100 in their python version '
                        f'({" or ".join(kind.folder for kind in CIFARS)}); unpack other data')

    def has(name):
        return os.path.isfile(os.path.join(root, name))

    for kind in CIFARS:
        if has(kind.meta) and any(has(name) for part in kind.batches.values() for name in part):
            return kind
    return None


def _read_cifar(root, kind, split, num_classes):
    files = _cifar_files(root, kind, [kind.meta, *kind.batches[split]])
    names = _cifar_classes(files.pop(kind.meta), kind, os.path.join(root, kind.meta))
    if num_classes is not None and num_classes != len(names):
        raise DataError(f'{root}: has {len(names)} classes, but the network has {num_classes}; set '
                        f'MODEL.NUM_CLASSES={len(names)}')
    samples, parts = [], []
    for file in kind.batches[split]:
        where = os.path.join(root, file)
        pixels, labels = _batch(_unpickled(files.pop(file), where), kind, len(names), where)
        samples.extend((f'{where}[{row}]', label) for row, label in enumerate(labels))
        parts.append(pixels)
    pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Images(_some(samples, root), {name: label for label, name in enumerate(names)}, pixels)


def _cifar_classes(content, kind, where):
    """The names of the classes, in class order."""
    names = _unpickled(content, where).get(kind.names_entry)
    if type(names) is not list or not names:
        raise DataError(f'{where}: is damaged, it holds no list {kind.names_entry}')
    names = [str(name, 'latin1') if isinstance(name, (bytes, memoryview)) else name
             for name in names]
    if (not all(type(name) is str and name.isprintable() for name in names)
            or len(set(names)) != len(names)):
        raise DataError(f'{where}: is damaged, {kind.names_entry} are no distinct names')
    return names


def _batch(content, kind, num_classes, where):
    """Pixels, uint8 [N, 32, 32, 3], and labels of one file."""
    data, labels = content.get('data'), content.get(kind.labels_entry)
    if type(data) is not StoredArray or type(labels) is not list:
        raise DataError(f'{where}: is damaged, it lacks data or {kind.labels_entry}')
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
    """The dict in a file that Python 2 pickled, read without running any code of it."""
    try:
        value, _ = unpickle(memoryview(content), python_2=True)
    except Refused as error:
        raise DataError(f'{where}: refused, {error}; CIFAR holds arrays and texts only') from error
    except Exception as error:    # nobody foresees all that a damaged file can hold
        said = str(error) if isinstance(error, Damaged) else type(error).__name__
        raise DataError(f'{where}: is damaged or no file of CIFAR ({said})') from error
    if type(value) is not dict:
        raise DataError(f'{where}: is no file of CIFAR (it holds a {type(value).__name__})')
    return value


def _cifar_files(root, kind, wanted):
    """{name: content} of the wanted files, all of them."""
    if os.path.isdir(root):
        return {name: _read_file(os.path.join(root, name)) for name in wanted}
    found, paths = {}, {f'{kind.folder}/{name}': name for name in wanted}
    for path, content in _archive_files(root, paths):
        if path in paths:
            found[paths[path]] = content
            if len(found) == len(paths):
                return found
    missing = next(name for name in wanted if name not in found)
    raise DataError(f'{root}: lacks {kind.folder}/{missing}; download it again')


def _read_file(path):
    if os.path.exists(path) and not os.path.isfile(path):    # a named pipe would be waited for
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
    """Yield (name, content) of the regular files in a tar archive; nothing is written to disk.

    The content of a file that is not wanted is None.
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
    except Exception as error:    # nobody foresees all that a damaged file can hold
        raise DataError(f'{path}: is damaged, cut off, or no archive ({error})') from error


class _Bounded:
    """A file of which only so much can be read: a few bytes of gzip can become any number."""

    def __init__(self, file):
        self.file, self.left = file, LARGEST_ARCHIVE

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise DataError(f'refused, it unpacks to more than {LARGEST_ARCHIVE} bytes, and CIFAR '
                            'does not')
        return self.file.read(size)
