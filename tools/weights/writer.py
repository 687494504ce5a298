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
        with naming(path, temporary):
            yield temporary
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def naming(path, temporary):
    """Let an OSError name `path` where it names `temporary`, or no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        unnamed = type(error) is OSError and error.errno and error.filename is None
        if unnamed or str(error.filename).startswith(str(temporary)):
            error.filename = str(path)
        raise


def _sync_folder(folder):
    """Make a rename durable; network file systems that don't support this are ignored."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
