"""Atomic writes: a file is complete or absent, even if the process or the machine stops."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Write or replace a file in a single step.

        with replacing(path) as temporary:
            temporary.write_bytes(content)

    Yields the path of a temporary file in the same folder. At the end of the block it is synced to
    disk and renamed; after an exception it is removed, and an existing file is unchanged.

    Raises:
        OSError: for a full disk, or for a missing or read-only folder.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Make a rename durable; network file systems that don't support this are ignored."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
