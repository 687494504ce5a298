"""Tar archives read in place: nothing is unpacked, members are found by their offset.

An archive is one file, several pieces of one file (`set.tar.aa`, `set.tar.ab`), or a member of
another archive. All three are a list of Parts, and `open_parts` reads them as one file.
"""

import contextlib
import io
import os
import tarfile
from typing import NamedTuple

from data import DataError
from data.decode import printable

BUFFER = 1 << 20    # bytes read at once: few long reads, also where several processes share a disk


class Part(NamedTuple):
    """A range of bytes of a file."""

    path: str
    start: int
    size: int


class Member(NamedTuple):
    """An entry of an archive.

    Attributes:
        name: its path in the archive.
        header: offset of its header in the archive.
        start: offset of its content in the archive.
        size: bytes of its content.
        refused: why it must not be extracted, or an empty string.
    """

    name: str
    header: int
    start: int
    size: int
    refused: str


class _Parts(io.RawIOBase):
    """Parts as one seekable file."""

    def __init__(self, parts):
        self._parts, self._files = parts, {}
        self._position, self._size = 0, sum(part.size for part in parts)

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer):
        start = self._position
        for part in self._parts:
            if start < part.size:
                if part.path not in self._files:
                    self._files[part.path] = os.open(part.path, os.O_RDONLY)
                wanted = min(len(buffer), part.size - start)
                try:
                    content = os.pread(self._files[part.path], wanted, part.start + start)
                except OSError as error:    # it has no file name
                    raise OSError(error.errno, error.strerror, part.path) from error
                buffer[:len(content)] = content
                self._position += len(content)
                return len(content)
            start -= part.size
        return 0

    def close(self):
        while self._files:
            os.close(self._files.popitem()[1])
        super().close()


def whole(*paths):
    """The Parts of an archive that is one file, or several pieces in their order.

    Raises:
        DataError: if a file is missing or is no regular file.
    """
    for path in paths:
        if not os.path.isfile(path):    # opening a named pipe would block
            raise DataError(f'{path}: no such file, or no regular one')
    return [Part(str(path), 0, os.path.getsize(path)) for path in paths]


def part_of(parts, start, size):
    """The Parts of `size` bytes of an archive from an offset on, such as those of a member."""
    found = []
    for part in parts:
        if start < part.size and size > 0:
            length = min(size, part.size - start)
            found.append(Part(part.path, part.start + start, length))
            size -= length
        start = max(0, start - part.size)
    return found


def open_parts(parts):
    """Open Parts as one binary file for reading."""
    return io.BufferedReader(_Parts(parts), BUFFER)


def members(file, where, start=0, count=None):
    """Yield the Members of a tar archive that are no folders; the caller may read in between.

    Args:
        file: a binary file that can seek, from open_parts().
        where: the archive's name in messages.
        start: offset of a member's header to begin at.
        count: number of members to yield; None: all. Only then is the archive's end checked.

    Raises:
        DataError: if it is no archive, damaged, or cut off.
    """
    name = 'its beginning'
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode='r:') as archive:
            while count is None or count > 0:
                entry = archive.next()
                if entry is None:
                    break
                archive.members.clear()    # it would keep all of a million
                if entry.isdir():
                    continue
                name = entry.name
                yield Member(name, entry.offset, entry.offset_data, entry.size, _refused(entry))
                if count is not None:
                    count -= 1
            if count is None:
                # tarfile takes a damaged header for the end of the archive.
                file.seek(archive.offset)
                if file.read(512) != bytes(512):
                    raise DataError(f'{where}: is damaged or cut off after {printable(name)}; '
                                    'download it again')
    except (DataError, OSError):
        raise
    except Exception as error:    # tarfile raises any exception for a damaged header
        gzipped = _begins_with(file, start, b'\x1f\x8b')
        fix = 'unpack it with gunzip first' if gzipped else 'download it again'
        raise DataError(f'{where}: is no tar archive, damaged, or cut off after '
                        f'{printable(name)} ({error}); {fix}') from error


def read_member(file, member, where):
    """The content of a Member; DataError if the archive ends within it."""
    file.seek(member.start)
    content = file.read(member.size)
    if len(content) != member.size:
        raise DataError(f'{where}: is cut off within {printable(member.name)}; download it again')
    return content


def _refused(entry):
    """Why a tar entry must not be extracted, or an empty string."""
    if entry.issym() or entry.islnk():
        return f'a link to {printable(entry.linkname)}'
    if not entry.isreg() or entry.issparse():
        return 'a device, named pipe or sparse file'
    if entry.name.startswith('/'):
        return 'an absolute path'
    if '..' in entry.name.replace('\\', '/').split('/'):
        return "a path with '..'"
    return ''


def _begins_with(file, start, magic):
    with contextlib.suppress(OSError, ValueError):
        file.seek(start)
        return file.read(len(magic)) == magic
    return False
