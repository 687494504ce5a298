"""Which images there are: the samples of a list, or of class folders."""

import os
import re

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')


class DataError(ValueError):
    """The data is not what it should be. The one-line message says where, and what to do."""

    exit_code = 2


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


def scan_class_folders(root, class_ids=None, num_classes=None):
    """Find the images below root, where every folder in root is a class.

    Images may lie at any depth inside a class folder. Names that begin with a dot are skipped:
    they are what editors and file managers leave behind.

    Args:
        root: the folder that holds the class folders.
        class_ids: a mapping of folder name to class id, such as ImageNet's WordNet ids. If it
            knows every folder, its ids are the labels, so that a part of ImageNet's classes
            keeps the true ones. Otherwise classes are numbered in the order of their names.
        num_classes: if given, labels must be below it.

    Returns:
        A list of (path, label), ordered by class folder and path, and a dict of class folder
        name to label.

    Raises:
        DataError: for a missing root, one without images, and a label out of range.
    """
    _require_folder(root)
    names = sorted(entry.name for entry in os.scandir(root)
                   if entry.is_dir() and not entry.name.startswith('.'))
    if class_ids and all(name in class_ids for name in names):
        class_folders = {name: class_ids[name] for name in names}
    else:
        class_folders = {name: number for number, name in enumerate(names)}

    samples = []
    for name, label in class_folders.items():
        _require_class(label, num_classes, os.path.join(root, name))
        paths = [os.path.join(folder, file)
                 for folder, _, files in os.walk(os.path.join(root, name)) for file in files
                 if file.lower().endswith(IMAGE_EXTENSIONS) and not file.startswith('.')]
        samples.extend((path, label) for path in sorted(paths))
    if not samples:
        raise DataError(f'{root}: no images found; expected CLASS/IMAGE in it, with one of the '
                        f'extensions {" ".join(IMAGE_EXTENSIONS)}')
    return samples, class_folders


def load_samples(root, list_file=None, class_ids=None, num_classes=None):
    """List the images of a data set: from list_file if one is given, else by class folders.

    Arguments and errors are those of read_image_list and scan_class_folders.

    Returns:
        A list of (path, label).
    """
    if list_file:
        return read_image_list(list_file, root, num_classes)
    return scan_class_folders(root, class_ids, num_classes)[0]


def _require_folder(root):
    if not os.path.isdir(root):
        raise DataError(f'{root}: no such folder; set the data root to where the images are')


def _require_class(label, num_classes, where):
    if num_classes is not None and label >= num_classes:
        raise DataError(f'{where}: class id {label}, but the network has {num_classes} classes '
                        f'(0 to {num_classes - 1}); set the number of classes to fit the data')
