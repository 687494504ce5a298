"""The one writer of files that are whole or absent, whenever the process or the machine stops."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Write or replace a file in a single step.

        with replacing(path) as temporary:
            temporary.write_bytes(content)

    Yields the path of a temporary file beside it. At the end of the block it is on the disk and
    gets its name; after an exception nothing is left of it, and an older file is untouched.

    Raises:
        OSError: for a full disk, a missing or a read-only folder.
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
    """Make a rename in a folder survive a power cut; some network file systems can't."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
