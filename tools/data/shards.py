"""The data format of tar shards in WebDataset's layout, and their writer.

A shard is a tar archive that holds KEY.jpg (or another image format) and KEY.cls, the label as
text, of each sample side by side; KEY.json with a number 'label' or 'cls' does as well. Shards are
never unpacked: an index holds the offset and size of every image. write_shards() leaves one beside
the shards. Without it the shards are scanned once, and the index is cached (data.index).

Layout: https://github.com/webdataset/webdataset
"""

import glob
import io
import json
import os
import re
import tarfile
import time
from array import array
from collections import OrderedDict
from itertools import groupby

import numpy as np

from data import DataError
from data.archives import members, read_member
from data.decode import IMAGE_EXTENSIONS, LARGEST_FILE, ImageError, printable
from data.folders import class_folders
from data.images import Images, require_class
from data.index import cached, load, settled, states, store
from data.samples import Samples
from weights.writer import replacing

BESIDE = 'shards.index'     # the index that write_shards() leaves
SHARD_BYTES = 256 << 20     # few enough shards, small enough to be read ahead as a whole
OPEN_SHARDS = 64            # in each process
HEADER = 512                # bytes of a tar header, just before the content
IGNORED = re.compile(r'__[^/]*__(?:$|/)')    # WebDataset's own notes
PLACE = {'shard': np.int32, 'start': np.int64, 'size': np.int64}
TYPES = {'text': np.uint8, 'starts': np.int64, 'labels': np.int32, 'digest': np.uint8,
         'names': np.uint8, 'sizes': np.int64, **PLACE}


class Shards:
    """A folder of .tar files, or a pattern of paths such as data/train-*.tar; in order of names."""

    def matches(self, request):
        return not request.list_file and bool(shard_files(request.root))

    def samples(self, request):
        """Find the images.

        Raises:
            DataError: for a shard that is cut off, damaged or not in WebDataset's layout, and for
                a label out of range.
        """
        paths = shard_files(request.root)
        root, names = os.path.dirname(paths[0]), [os.path.basename(path) for path in paths]

        def make():
            begun = time.time_ns()
            now = states(root, names)
            arrays = _written_index(root, names, now) or scan(root, names)
            return {**arrays, 'states': now, 'begun': np.array(begun)}

        def is_current(arrays):
            return (arrays['names'].tobytes() == _as_bytes(names).tobytes()
                    and settled(arrays['states'], arrays['begun'])
                    and np.array_equal(arrays['states'], states(root, names)))

        arrays = cached('shards', [os.path.abspath(request.root)], make, is_current)
        samples = Samples.of_arrays(root, arrays)
        for index in np.flatnonzero(samples.labels >= (request.num_classes or np.inf))[:1]:
            require_class(int(samples.labels[index]), request.num_classes,
                          printable(samples[index][0]))
        opener = ShardReader(samples, paths, arrays, request.read_ahead)
        return Images(samples, opener=opener, shard=arrays['shard'])

    def classes(self, request):
        return {}    # shards hold labels, no class names


def shard_files(root):
    """The paths of the shards at a root, sorted; empty if it is something else."""
    if os.path.isdir(root):
        if class_folders(root):    # archives beside the folders that they were unpacked to
            return []
        root = os.path.join(glob.escape(root), '*.tar')
    if '*' not in root or not root.endswith('.tar'):
        return []
    return sorted(path for path in glob.glob(root) if os.path.isfile(path))


class ShardReader:
    """The opener of images in shards (see images.Images): one read for each image.

    The tar header before an image is read with it and checked, so that an index of other shards,
    or a shard that changed during the run, raises an ImageError.

    Args:
        samples: Samples.
        paths: of the shards.
        arrays: 'shard', 'start' and 'size' of every image.
        read_ahead: let the system read every shard as a whole when its first image is read.
    """

    def __init__(self, samples, paths, arrays, read_ahead=False):
        self.samples, self.paths, self.read_ahead = samples, paths, read_ahead
        self.shard, self.start, self.size = (arrays[name] for name in PLACE)
        self._open = OrderedDict()    # {shard: file}, the last used at the end

    def __call__(self, index):
        """The bytes of an image file; ImageError if the shard no longer holds it there."""
        start, size = int(self.start[index]), int(self.size[index])
        name = self.samples[index][0]
        if not 0 <= size <= LARGEST_FILE:
            raise ImageError(f'{name}: too large an image file ({size} bytes)')
        path = self.paths[self.shard[index]]
        try:
            content = os.pread(self._file(path).fileno(), HEADER + size, start - HEADER)
        except OSError as error:
            raise ImageError(f'{name}: cannot be read ({error.strerror})') from error
        if len(content) < HEADER + size:
            raise ImageError(f'{name}: the shard is cut off; copy it again')
        try:
            header = tarfile.TarInfo.frombuf(content[:HEADER], 'utf-8', 'surrogateescape')
        except tarfile.TarError:
            header = None
        member = name[len(path) + 1:]
        comparable = member.isascii() and len(member) <= 100    # else the header abbreviates it
        if header is None or header.size != size or comparable and header.name != member:
            raise ImageError(f'{name}: is not where the index of the shard says; the shard was '
                             'changed: start again to read it anew')
        return content[HEADER:]

    def _file(self, path):
        file = self._open.pop(path, None)
        if file is None:
            file = open(path, 'rb', buffering=0)
            if self.read_ahead and hasattr(os, 'posix_fadvise'):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open[path] = file
        return file


# ---- the index

def scan(root, names):
    """Read the headers of all shards; return the arrays of their index.

    Raises:
        DataError: see Shards.samples.
    """
    found = {name: array('q') for name in PLACE}

    def pairs():
        for number, name in enumerate(names):
            for member, label in _shard_samples(os.path.join(root, name)):
                for key, value in zip(PLACE, (number, member.start, member.size)):
                    found[key].append(value)
                yield f'{name}/{member.name}', label

    return _index(Samples(root, pairs()), names, found)


def _index(samples, names, found):
    return {**samples.arrays(), 'names': _as_bytes(names),
            **{key: np.array(found[key], dtype) for key, dtype in PLACE.items()}}


def _as_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _written_index(root, names, now):
    """The arrays that write_shards() left beside the shards, if they fit these files, or None."""
    arrays = load(os.path.join(root, BESIDE), only_own=False)
    if arrays is None:
        return None
    try:
        sizes, labels, starts = arrays['sizes'], arrays['labels'], arrays['starts']
        fits = (all(arrays[name].dtype == dtype and arrays[name].ndim == 1
                    for name, dtype in TYPES.items())
                and arrays['names'].tobytes() == _as_bytes(names).tobytes()
                and np.array_equal(sizes, now[:, 0])
                and {len(arrays[name]) for name in PLACE} == {len(labels)} == {len(starts) - 1}
                and labels.min() >= 0 and starts[0] == 0 and starts[-1] == len(arrays['text'])
                and (np.diff(starts) > 0).all() and arrays['start'].min() >= HEADER
                and arrays['shard'].min() >= 0 and arrays['shard'].max() < len(names))
    except (KeyError, ValueError):    # an array is missing or empty
        return None
    return arrays if fits else None


def _shard_samples(path):
    """Yield (Member of the image, label) of the samples of a shard."""
    try:
        with open(path, 'rb', buffering=4096) as file:    # a header and a label
            found = (member for member in members(file, path) if not IGNORED.match(member.name))
            for key, parts in groupby(found, lambda member: _key_and_extension(member.name)[0]):
                yield _sample(file, path, key, list(parts))
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error


def _key_and_extension(name):
    """WebDataset's: the key ends at the first dot of the file name."""
    folder, slash, file = name.rpartition('/')
    key, _, extension = file.partition('.')
    return folder + slash + key, extension.lower()


def _sample(file, path, key, parts):
    where = f'{path}: {printable(key)}'
    for member in parts:
        if member.refused:
            raise DataError(f'{where}: refused, {printable(member.name)} is {member.refused}')
    count = len(parts)
    parts = {_key_and_extension(member.name)[1]: member for member in parts}
    if len(parts) < count:
        raise DataError(f'{where}: two files of the sample have one name')
    images = [member for extension, member in parts.items() if f'.{extension}' in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise DataError(f'{where}: has {len(images)} images instead of one; expected KEY.jpg and '
                        'KEY.cls side by side, as WebDataset has them')
    label = None
    if 'cls' in parts and parts['cls'].size <= 32:
        label = read_member(file, parts['cls'], path).strip()
        label = int(label) if re.fullmatch(rb'[0-9]{1,9}', label) else None
    elif 'json' in parts and parts['json'].size <= 1 << 20:
        try:
            value = json.loads(read_member(file, parts['json'], path))
            label = value.get('label', value.get('cls'))
        except (ValueError, AttributeError, RecursionError):
            pass
    if type(label) is not int or not 0 <= label < 10 ** 9:
        raise DataError(f'{where}: has no label; expected a class id such as 7 in KEY.cls, or as '
                        "'label' in KEY.json")
    return images[0], label


# ---- the writer

def write_shards(samples, folder, prefix='shard', most_bytes=SHARD_BYTES):
    """Write images into shards PREFIX-000000.tar, ... and their index.

    The same samples give the same bytes. The folder gets its name when all is written; until then
    it is FOLDER.partial, where the same call goes on after an interruption: the shards that are in
    it are whole, and their images are not read again.

    Args:
        samples: an iterable of (name, label, read): a relative path, a class id, and a function
            that returns the bytes of the image file.
        folder: to be made; must be missing or empty.
        most_bytes: a shard is closed before it becomes larger, unless by a single image.

    Returns:
        (number of images, [paths of the shards]).

    Raises:
        DataError: if the folder is not empty, two images have one name, there is none, or
            FOLDER.partial has shards of other images.
        OSError: for a full disk, or a folder that can't be written to.
    """
    folder = os.path.abspath(folder)
    partial = f'{folder}.partial'
    if os.path.isdir(folder) and os.listdir(folder):
        raise DataError(f'{folder}: is not empty; remove it or name another folder')
    os.makedirs(partial, exist_ok=True)
    for unfinished in glob.glob(f'{glob.escape(partial)}/.*.tmp'):    # see replacing()
        os.remove(unfinished)
    names, sizes, found = [], [], {name: array('q') for name in PLACE}
    waiting = _Waiting(samples)

    def pairs():
        while waiting.ahead:
            names.append(f'{prefix}-{len(names):06}.tar')
            path = os.path.join(partial, names[-1])
            for member, label, start, size in (
                    _written(path, waiting) if os.path.exists(path) else
                    _write(path, waiting, most_bytes)):
                for kind, value in zip(PLACE, (len(names) - 1, start, size)):
                    found[kind].append(value)
                yield f'{names[-1]}/{member}', label
            sizes.append(os.path.getsize(path))

    made = Samples(partial, pairs())
    if not len(made):
        raise DataError(f'{folder}: there are no images to write')
    store(os.path.join(partial, BESIDE), {**_index(made, names, found), 'sizes': np.array(sizes)})
    os.rename(partial, folder)
    return len(made), [os.path.join(folder, name) for name in names]


class _Waiting:
    """Samples that are not in a shard yet.

    Attributes:
        ahead: (key, extension, label, read) of the next one, None at the end.
    """

    def __init__(self, samples):
        self.samples, self.keys, self.ahead = iter(samples), set(), None
        self.advance()

    def advance(self):
        self.ahead = None
        for name, label, read in self.samples:
            self.ahead = (*_member_names(name, self.keys), label, read)
            break


def _write(path, waiting, most_bytes):
    """Write a shard; yield (name of the image's member, label, offset, size) for each sample."""
    with replacing(path) as temporary, \
            tarfile.open(temporary, 'w', format=tarfile.PAX_FORMAT) as archive:
        while waiting.ahead:
            key, extension, label, read = waiting.ahead
            content = read()
            if archive.offset and archive.offset + len(content) + 5 * HEADER > most_bytes:
                break    # it is read again for the next shard
            _add(archive, f'{key}.cls', str(label).encode())
            _add(archive, f'{key}{extension}', content)
            start = archive.offset - -(-len(content) // 512) * 512
            yield f'{key}{extension}', label, start, len(content)
            waiting.advance()


def _written(path, waiting):
    """Yield what _write() has yielded when it wrote this shard."""
    try:
        with tarfile.open(path, 'r:') as archive:
            members = iter(archive)
            for member in members:
                key, extension, label, _ = waiting.ahead or ('', '', None, None)
                image = next(members, member)
                if (member.name, image.name) != (f'{key}.cls', f'{key}{extension}') or (
                        archive.extractfile(member).read() != str(label).encode()):
                    raise DataError(f'{path}: was begun with other images; remove '
                                    f'{os.path.dirname(path)}')
                yield image.name, label, image.offset_data, image.size
                waiting.advance()
    except tarfile.TarError as error:
        raise DataError(f'{path}: is no whole shard ({error}); remove it') from error


def _member_names(name, keys):
    """(key, extension) in a shard: the key has no dot in its last part."""
    stem, extension = os.path.splitext(name)
    folder, slash, file = stem.rpartition('/')
    key = f'{folder}{slash}{file.replace(".", "_")}'
    if key in keys:
        raise DataError(f'{printable(name)}: another image has the key {printable(key)}; rename '
                        'one')
    keys.add(key)
    return key, '.jpg' if extension.lower() == '.jpeg' else extension.lower()


def _add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
