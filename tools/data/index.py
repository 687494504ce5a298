"""Cached indexes: what was found in a large data set, as arrays that open again at once.

An index is a file in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), as data sets are
often read-only. It is mapped into memory, so that all processes of the machine share it. It is
used only if it is complete (checksum), belongs to the user, and describes the data as it is now;
otherwise it is made again and replaced in a single step. Each machine has its own: a home folder
may be shared, and a file that another machine replaces can't stay mapped on a network disk.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import platform
from pathlib import Path

import numpy as np

from weights.writer import replacing

VERSION = b'T2TINDX1'    # changes with the format
WORTHWHILE = 50_000      # samples; smaller data sets are read anew as fast
START = len(VERSION) + 32
TICK = 2 * 10 ** 9        # ns; the coarsest times that file systems keep


def cached(kind, key, make, is_current):
    """Return arrays from the cache, or make them and keep them if there are many samples.

    Args:
        kind: the first part of the index's file name.
        key: texts that tell the data sets of one kind apart.
        make: returns {name: array}, among them 'labels' [N].
        is_current: called with such arrays; returns whether they certainly describe the data as it
            is now. Arrays that don't, though just made, are not kept.

    Returns:
        {name: array}; read-only if they come from the cache.
    """
    path = index_path(kind, key)
    arrays = load(path)
    if arrays is not None and is_current(arrays):
        return arrays
    arrays = make()
    if len(arrays['labels']) < WORTHWHILE or not is_current(arrays):
        return arrays
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.with_suffix('.lock')):
            shared = load(path)    # another process may have been faster
            if shared is None or not is_current(shared):
                store(path, arrays)
                shared = load(path)
    except OSError as error:
        logging.getLogger(__name__).warning(
            '%s: the index of the data cannot be kept (%s), so that every start reads all of it; '
            'set XDG_CACHE_HOME to a folder that can be written to', path.parent, error.strerror)
        return arrays
    return arrays if shared is None else shared


def index_path(kind, key):
    """The path of an index."""
    folder = os.environ.get('XDG_CACHE_HOME', '')
    folder = Path(folder if os.path.isabs(folder) else os.path.expanduser('~/.cache'))
    name = hashlib.blake2b(json.dumps([platform.node(), *key]).encode(), digest_size=8).hexdigest()
    return folder / 't2t_vit' / f'{kind}-{name}.index'


def store(path, arrays):
    """Write {name: array} to an index, atomically: version, checksum, a line of JSON, arrays."""
    head = json.dumps({name: [array.dtype.str, array.shape] for name, array in arrays.items()})
    head = head.encode() + b'\n'
    parts = [head.rjust(-(-(START + len(head)) // 8) * 8 - START)]
    for array in arrays.values():
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        parts += [content, bytes(-len(content) % 8)]    # arrays start at multiples of 8 bytes
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(part)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(VERSION + digest.digest())
        for part in parts:
            file.write(part)


def load(path, only_own=True):
    """The arrays of an index, read-only; None if it is missing or damaged.

    With only_own also if it is another user's: the checksum protects from damage, not from malice.
    """
    try:
        with open(path, 'rb') as file:
            if only_own and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        digest = hashlib.blake2b(memoryview(content)[START:], digest_size=32).digest()
        if content[:START] != VERSION + digest:
            return None
        place = content.find(b'\n', START) + 1
        arrays = {}
        for name, (dtype, shape) in json.loads(content[START:place]).items():
            array = np.frombuffer(content, dtype, int(np.prod(shape)), place).reshape(shape)
            arrays[name] = array
            place += -(-array.nbytes // 8) * 8
        return arrays
    except (OSError, ValueError):
        return None


def states(root, names):
    """Size, mtime and ctime (ns) of files or folders, int64 [N, 3]; -1 for those that are gone."""
    found = np.full((len(names), 3), -1)
    for row, name in enumerate(names):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(root, name))
            found[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def settled(found, begun):
    """Whether the last changes in states() were long before a time: later ones have other times."""
    return found[:, 1:].max() < begun - TICK


@contextlib.contextmanager
def _locked(path):
    """Wait for other processes of this block; file systems without locks are ignored."""
    with open(path, 'wb') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
