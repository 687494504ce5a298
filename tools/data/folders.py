"""Data formats of image files: an image list, class folders, or class names in file names."""

import os
import re

from data import DataError
from data.decode import IMAGE_EXTENSIONS
from data.images import Images, label_of, no_folder, numbered, require_class, require_some


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
        list_file = request.list_file
        if not os.path.isdir(request.root):
            raise no_folder(request.root)
        try:
            with open(list_file, 'rb') as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise DataError(f'{list_file}: cannot read the image list ({error.strerror})'
                            ) from error
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
                raise DataError(f"{where}: expected 'path label', where the label is a class id "
                                f'such as 7, got {text[:80]!r}')
            path, label = match[1], int(match[2])
            require_class(label, request.num_classes, where)
            samples.append((os.path.join(request.root, path), label))
        if not samples:
            raise DataError(f"{list_file}: the image list is empty; write one 'path label' a line")
        return Images(samples)

    def classes(self, request):
        return {}    # a list holds labels, no class names


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
        names = class_folders(request.root)
        classes = request.classes or numbered(names, request.class_ids)
        samples = []
        for name in names:
            folder = os.path.join(request.root, name)
            label = label_of(name, classes, request.num_classes, folder)
            paths = [os.path.join(below, file)
                     for below, _, files in os.walk(folder) for file in files if is_image(file)]
            samples.extend((path, label) for path in sorted(paths))
        return Images(require_some(samples, request.root), classes)

    def classes(self, request):
        return numbered(class_folders(request.root))


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
        paths = image_files(request.root)
        names = [class_in_name(path) for path in paths]
        classes = request.classes or numbered(set(names), request.class_ids)
        samples = [(path, label_of(name, classes, request.num_classes, path))
                   for path, name in zip(paths, names)]
        return Images(require_some(samples, request.root), classes)

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
