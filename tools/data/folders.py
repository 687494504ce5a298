"""Data formats of image files: an image list, class folders, or class names in file names.

Large lists and class folders have a cached index (data.index). The index of a list holds the hash
of the list, which is computed at every start: times and sizes are not trusted. Class folders would
have to be walked to be hashed, so their index holds the times of all folders: a file that is added,
removed or renamed changes those of its folder (ctime, which programs can't set), and folders that
changed in the seconds before they were read are read again next time.
"""

import hashlib
import json
import os
import re
import time

import numpy as np

from data import DataError
from data.decode import IMAGE_EXTENSIONS
from data.images import Images, label_of, no_folder, numbered, require_class, require_some
from data.index import cached, settled, states
from data.samples import Samples


class ImageList:
    """Lines of `path label`, as in ImageNet's train.txt and val.txt, with paths relative to root.

    The label is the last word, so a path may hold spaces. Blank lines, CRLF line ends and a byte
    order mark are accepted. Files are not checked here, as that would take minutes for a million
    of them: a missing file or a path outside of root raises an ImageError when it is read.
    """

    def matches(self, request):
        return bool(request.list_file)

    def samples(self, request):
        """Read the list.

        Raises:
            DataError: with file and line if a line is not `path label` or its label is out of
                range; if the list is missing or empty; if root is missing.
        """
        root, list_file = request.root, str(request.list_file)
        if not os.path.isdir(root):
            raise no_folder(root)

        def make():
            content = b''.join(_blocks(list_file))
            samples = Samples(root, _listed(content, list_file, request.num_classes))
            return {**samples.arrays(), 'list': _digest([content])}

        def is_current(arrays):
            return np.array_equal(arrays['list'], _digest(_blocks(list_file)))

        key = [os.path.abspath(root), os.path.abspath(list_file)]
        samples = Samples.of_arrays(root, cached('list', key, make, is_current))
        if not len(samples):
            raise DataError(f"{list_file}: the image list is empty; write one 'path label' a line")
        if request.num_classes is not None and samples.labels.max() >= request.num_classes:
            make()    # the index knows no lines: raise the error that names one
        return Images(samples)

    def classes(self, request):
        return {}    # a list holds labels, no class names


def _blocks(path):
    """Yield the content of an image list in parts."""
    try:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise DataError(f'{path}: cannot read the image list ({error.strerror})') from error


def _digest(blocks):
    digest = hashlib.blake2b(digest_size=32)
    for block in blocks:
        digest.update(block)
    return np.frombuffer(digest.digest(), np.uint8)


def _listed(content, list_file, num_classes):
    """Yield (path, label) of the lines of an image list."""
    for found in re.finditer(rb'[^\r\n]+', content):
        line, first = found[0], not found.start()
        try:
            text = line.decode('utf-8-sig' if first else 'utf-8').strip()
        except UnicodeDecodeError as error:
            raise DataError(f'{_place(list_file, content, found)}: not UTF-8; save the list as '
                            'UTF-8') from error
        if not text:
            continue
        match = re.fullmatch(r'([^\0]*\S)\s+([0-9]{1,9})', text)
        if not match:
            raise DataError(f'{_place(list_file, content, found)}: expected \'path label\', where '
                            f'the label is a class id such as 7, got {text[:80]!r}')
        label = int(match[2])
        if num_classes is not None and label >= num_classes:
            require_class(label, num_classes, _place(list_file, content, found))
        yield match[1], label


def _place(list_file, content, found):
    """FILE:LINE of a match."""
    return f'{list_file}:{len(content[:found.start() + 1].splitlines())}'


class ClassFolders:
    """A folder with one folder for each class, as ImageNet's training data.

    Images may lie at any depth inside a class folder. Names that begin with a dot are skipped:
    they are leftovers of editors and file managers.
    """

    def matches(self, request):
        return os.path.isdir(request.root) and bool(class_folders(request.root))

    def samples(self, request):
        """Find the images, ordered by class and path.

        Raises:
            DataError: if there are no images, a label is out of range, or a class is not in the
                training data.
        """
        root, names = request.root, class_folders(request.root)
        classes = request.classes or numbered(names, request.class_ids)
        labels = {name: label_of(name, classes, request.num_classes, os.path.join(root, name))
                  for name in names}

        def make():
            folders = []
            begun = time.time_ns()
            samples = Samples(root, _walk(root, labels, folders))
            return {**samples.arrays(), 'states': states(root, folders), 'begun': np.array(begun),
                    'folders': _as_bytes(folders), 'labels of folders': _as_bytes(labels)}

        def is_current(arrays):
            folders = json.loads(arrays['folders'].tobytes())
            return (np.array_equal(arrays['labels of folders'], _as_bytes(labels))
                    and settled(arrays['states'], arrays['begun'])
                    and np.array_equal(arrays['states'], states(root, folders)))

        samples = Samples.of_arrays(root, cached('folders', [os.path.abspath(root)], make,
                                                 is_current))
        return Images(require_some(samples, root), classes)

    def classes(self, request):
        return numbered(class_folders(request.root))


def _walk(root, labels, folders):
    """Yield (path, label) of the images in class folders; append all folders to a list."""
    for name, label in labels.items():
        paths = []
        for folder, _, files in os.walk(os.path.join(root, name)):
            below = os.path.relpath(folder, root)
            folders.append(below)
            paths += [f'{below}/{file}' for file in files if is_image(file)]
        for path in sorted(paths):
            yield path, label


def _as_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


class NamedFiles:
    """A folder of images; the class is the part of the file name before the last underscore.

    For example, cat_123.png has the class cat, and guinea_pig_7.png the class guinea_pig.
    """

    def matches(self, request):
        return os.path.isdir(request.root)

    def samples(self, request):
        """Find the images, ordered by name.

        Raises:
            DataError: as ClassFolders.samples; also for an image without a class in its name.
        """
        root, paths = request.root, image_files(request.root)
        names = [class_in_name(path) for path in paths]
        classes = request.classes or numbered(set(names), request.class_ids)
        samples = Samples(root, (
            (os.path.basename(path), label_of(name, classes, request.num_classes, path))
            for path, name in zip(paths, names)))
        return Images(require_some(samples, root), classes)

    def classes(self, request):
        try:
            return numbered({class_in_name(path) for path in image_files(request.root)})
        except DataError:
            return {}


def class_folders(root):
    """The names of the folders in root, sorted."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries
                      if entry.is_dir() and not entry.name.startswith('.'))


def image_files(root):
    """The paths of the images directly in root, sorted."""
    return sorted(os.path.join(root, name) for name in os.listdir(root) if is_image(name))


def is_image(name):
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith('.')


def class_in_name(path):
    """The class in a file name, `CLASS_7.png`; DataError if there is none."""
    name, separator, _ = os.path.splitext(os.path.basename(path))[0].rpartition('_')
    if not (name and separator):
        raise DataError(f'{path}: carries no class in its name, as CLASS_7.png does; rename it, or '
                        'put each class into a folder of its own')
    return name
