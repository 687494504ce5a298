"""Images from archives or folders to class folders, by several processes.

    works = works_of(downloads, devkit, splits)      pieces of work, each of some hundred images
    for done in extract(works, target, ...): ...     runs what the journal does not have yet

The journal OUT/prepare.jsonl has a line for each finished piece. Every file is written under a
temporary name and renamed, and a piece without its line is done again, so that a run may be killed
at any moment: the same command goes on and arrives at the same files. Images are read where they
are, from the archives or even from archives in archives; where the source is a folder on the same
file system, the new name is a hard link.
"""

import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Optional

from PIL import Image

from data import DataError, archives
from data.checks import check_image
from data.decode import LARGEST_FILE, ImageError, printable
from data.imagenet import Devkit, place_of
from system import pool

JOURNAL = 'prepare.jsonl'
IMAGES_A_WORK = 500
SECONDS_BETWEEN_SYNCS = 5


class Entry(NamedTuple):
    """A file in an archive or folder.

    Attributes:
        name: its path there.
        size: bytes.
        refused: why it must not be extracted, or an empty string.
        read: function that returns its content.
        path: where it lies as a file of its own, or None.
    """

    name: str
    size: int
    refused: str
    read: callable
    path: Optional[str] = None


@dataclass(frozen=True)
class ArchiveWork:
    """The members of an archive, from a header on.

    Attributes:
        name: in the journal and in messages.
        parts: of the archive, see data.archives.
        size: bytes of its images.
        start, count: see archives.members().
    """

    name: str
    parts: tuple
    size: int
    start: int = 0
    count: Optional[int] = None

    def entries(self):
        folder = os.path.dirname(self.parts[0].path)
        where = os.path.join(folder, self.name.partition('@')[0])
        with archives.open_parts(self.parts) as file:
            for member in archives.members(file, where, self.start, self.count):
                yield Entry(member.name, member.size, member.refused,
                            lambda member=member: archives.read_member(file, member, where))


    def is_linked(self, folder):
        return False


@dataclass(frozen=True)
class FolderWork:
    """Files of a folder."""

    name: str
    folder: str
    files: tuple
    size: int

    def entries(self):
        prefix = os.path.basename(self.folder)
        for name in self.files:
            path = os.path.join(self.folder, name)
            yield Entry(f'{prefix}/{name}', os.path.getsize(path), '',
                        lambda path=path: _read_file(path), path)

    def is_linked(self, folder):
        """Whether its files take no space in another folder, being on the same file system."""
        return os.stat(self.folder).st_dev == os.stat(folder).st_dev


@dataclass
class Target:
    """Where the images go, and what becomes of them.

    Attributes:
        folder: OUT.
        devkit: data.imagenet.Devkit; its classes are the only ones, its truth names the class of
            validation images.
        splits: of 'train' and 'val'.
        light: largest shorter side in pixels; larger images are reduced and encoded again as JPEG.
            None: images keep their bytes.
        quality: of that JPEG, 1 to 95.
    """

    folder: str
    devkit: Devkit
    splits: tuple = ('train', 'val')
    light: Optional[int] = None
    quality: int = 90


@dataclass
class Done:
    """What became of a piece of work.

    Attributes:
        work: its name.
        size: bytes of its images in the source.
        images, written: number of images, and their bytes in the class folders.
        unusual: lines about images that are written and can be read.
        broken: lines about files that cannot be decoded; they are not written.
        refused: lines about members that are not extracted.
        skipped: other files.
    """

    work: str
    size: int = 0
    images: int = 0
    written: int = 0
    unusual: list = field(default_factory=list)
    broken: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    skipped: int = 0


# ---- pieces of work

def works_of(downloads, splits, on_scan=None):
    """Divide the images of Downloads into works.

    An archive in an archive, such as one of the 1,000 in the training archive, and a class folder
    is one. Only headers are read.

    Args:
        on_scan: called now and then with a line about the progress.

    Raises:
        DataError: for a damaged archive.
    """
    works = [work for name, paths in downloads.archives.items()
             for work in _works_of_archive(name, paths, splits, on_scan or (lambda line: None))]
    for split in splits:
        if split in downloads.folders:
            works += _works_of_folder(downloads.folders[split], split)
    return works


def _works_of_archive(name, paths, splits, on_scan):
    parts = tuple(archives.whole(*paths))
    pending, size, seen, reported = [], 0, 0, time.monotonic()
    with archives.open_parts(parts) as file:
        for member in archives.members(file, paths[0]):
            seen += 1
            if time.monotonic() - reported > 2:
                on_scan(f'{name}: {seen} entries found')
                reported = time.monotonic()
            inner = os.path.basename(member.name)
            if inner.endswith('.tar') and not member.refused:
                if 'train' in splits:
                    yield ArchiveWork(f'{name}/{inner}', tuple(archives.part_of(
                        parts, member.start, member.size)), member.size)
                continue
            place = place_of(member.name)
            if pending and len(pending) >= IMAGES_A_WORK:
                yield ArchiveWork(f'{name}@{pending[0]}', parts, size, pending[0], len(pending))
                pending, size = [], 0
            pending.append(member.header)
            size += member.size if place and place.split in splits else 0
    if pending:
        yield ArchiveWork(f'{name}@{pending[0]}', parts, size, pending[0], len(pending))


def _works_of_folder(root, split):
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries
                         if entry.is_dir() and not entry.name.startswith('.'))
    for name in [*folders, '']:
        with os.scandir(os.path.join(root, name)) as entries:
            files = sorted((entry.name, entry.stat().st_size) for entry in entries
                           if entry.is_file() and not entry.name.startswith('.'))
        for first in range(0, len(files), IMAGES_A_WORK):
            some = files[first:first + IMAGES_A_WORK]
            yield FolderWork(f'{split}/{name}@{first}', os.path.join(root, name),
                             tuple(file for file, _ in some), sum(size for _, size in some))


# ---- one piece of work, in a process of its own

def do(work, target):
    """Write the images of a work; returns Done. OSError if the disk is full, for example."""
    done = Done(work.name, work.size)
    for entry in work.entries():
        place = place_of(entry.name)
        where = f'{work.name}: {printable(entry.name)}'
        if entry.refused:
            done.refused.append(f'{where}: refused, it is {entry.refused}')
            continue
        if place is None:
            done.skipped += 1
            continue
        if place.split not in target.splits:
            continue
        name = target.devkit.class_of(place)
        if name not in target.devkit.classes:
            done.refused.append(f'{where}: refused, its class {name or ""} is not known')
            continue
        if entry.size > LARGEST_FILE:
            done.refused.append(f'{where}: refused, it has {entry.size:,} bytes')
            continue
        content = entry.read()
        try:
            image, unusual = check_image(content, place.name)
        except ImageError as error:
            done.broken.append(f'{work.name}: {printable(str(error))}')
            continue
        if place.folder not in (None, name):
            unusual.append(f'lies in the folder {place.folder}, its class is {name}')
        done.unusual += [f'{place.name}: {line}' for line in unusual]
        if target.light and min(image.size) > target.light:
            content, link = reduced(image, target.light, target.quality), None
        else:
            link = entry.path
        _place(os.path.join(target.folder, place.split, name, place.name), content, link)
        done.images += 1
        done.written += len(content)
    return done


def reduced(image, side, quality):
    """The JPEG of an image whose shorter side is `side` pixels; the ratio of the sides stays."""
    scale = side / min(image.size)
    size = tuple(max(side, round(length * scale)) for length in image.size)
    result = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(result, 'JPEG', quality=quality)
    return result.getvalue()


def _place(path, content, link):
    """Write or link a file; it is complete or absent."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f'.{name}.tmp')
    os.makedirs(folder, exist_ok=True)
    if os.path.lexists(temporary):
        os.unlink(temporary)
    try:
        if link:
            os.link(os.path.realpath(link), temporary)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        link = None
    if not link:
        with open(temporary, 'wb') as file:
            file.write(content)
    os.replace(temporary, path)


def _read_file(path):
    with open(path, 'rb') as file:
        return file.read()


# ---- all of them

class Journal:
    """The finished works of a folder, in OUT/prepare.jsonl.

    Only one process has it at a time. The first line holds the options; with others the files
    would be a mixture.

    Raises:
        DataError: if another process has it, if OUT has images but no journal, or if the journal
            was begun with other options.
    """

    def __init__(self, folder, options):
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, JOURNAL)
        foreign = [name for name in ('train', 'val') if os.path.exists(os.path.join(folder, name))]
        if foreign and not os.path.exists(path):
            raise DataError(f'{os.path.join(folder, foreign[0])}: is there already, and not by '
                            'this command; name an empty folder with --out')
        self.file = open(path, 'a+b')
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DataError(f'{folder}: another command is writing there') from error
        self.file.seek(0)
        lines = self.file.read().split(b'\n')
        # A line without its end was being written when the process was killed.
        self.file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        records = []
        for line in lines[:-1]:
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise DataError(f'{path}: is damaged; remove {folder} and start again') from error
        if records and records[0] != options:
            differing = sorted(key for key in {*options, *records[0]}
                               if options.get(key) != records[0].get(key))
            raise DataError(f'{folder}: was begun with another choice of {", ".join(differing)} '
                            f'({", ".join(str(records[0].get(key)) for key in differing)}); '
                            'start the same command again, or name another folder')
        if not records:
            self.write(options)
        self.done = {record['work']: Done(**record) for record in records[1:] if 'work' in record}
        self.md5 = {name: digest for record in records[1:] if 'md5' in record
                    for name, digest in record['md5'].items()}

    def write(self, *records):
        self.file.write(b''.join(json.dumps(record).encode() + b'\n' for record in records))
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self):
        self.file.close()


def extract(works, target, journal, processes, checksums=()):
    """Do all works that the journal does not have; yield the Done of each.

    Args:
        processes: number of processes.
        checksums: paths of files whose MD5 is computed at the same time, for journal.md5.

    Raises:
        DataError, OSError: those of the first work that fails.
    """
    left = [work for work in works if work.name not in journal.done]
    hashing = [path for path in checksums if os.path.basename(path) not in journal.md5]
    tasks = [*((md5_of, path) for path in hashing), *((_do, work) for work in left)]
    unsynced, synced = [], 0.0
    results = pool.run(tasks, processes + bool(hashing), functools.partial(_set_target, target))
    for number, result in enumerate(results, 1):
        if isinstance(result, Done):
            journal.done[result.work] = result
            unsynced.append(asdict(result))
            yield result
        else:
            path, digest = result
            journal.md5[os.path.basename(path)] = digest
            unsynced.append({'md5': {os.path.basename(path): digest}})
        # The journal must not be ahead of the disk when the machine stops.
        if time.monotonic() - synced > SECONDS_BETWEEN_SYNCS or number == len(tasks):
            os.sync()
            synced = time.monotonic()
            journal.write(*unsynced)
            unsynced.clear()


_target = None    # of a process of the pool


def _set_target(target):
    global _target
    _target = target


def _do(work):
    return do(work, _target)


def md5_of(path):
    """(path, MD5 as hexadecimal digits) of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 22), b''):
            digest.update(block)
    return path, digest.hexdigest()
