"""Arrays and a JSON text in one file with a checksum, written atomically.

The file is a NumPy .npz archive (arrays only, no code) followed by its SHA-256.
"""

import hashlib
import json
import math
import zipfile
from pathlib import Path

import numpy as np

from weights.unpickle import shown
from weights.writer import replacing

FOOTER = b'T2TCKPT1'    # followed by the 32 bytes of the SHA-256
STATE = 'state.json'


class CheckpointError(ValueError):
    """A checkpoint that can't be used: one line naming the file and what to do."""

    exit_code = 2


def write_checkpoint(path, arrays, state):
    """Write {name: array} and a dict that JSON can represent, atomically and durably.

    Raises:
        OSError: see weights.writer.
    """
    text = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    with replacing(path) as temporary, open(temporary, 'w+b') as file:
        np.savez(file, **{STATE: text}, **arrays)
        file.seek(0)
        file.write(FOOTER + _digest(file))


def read_checkpoint(path):
    """Read a file of write_checkpoint; returns ({name: array}, state).

    Raises:
        CheckpointError: for a file that is missing, incomplete, changed, or of another kind.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, 'rb') as file:
            length = size - len(FOOTER) - 32
            if length < 0:
                raise CheckpointError(f'{path}: is cut off ({size} bytes)')
            digest = _digest(file, length)
            footer = file.read()
            if footer[:len(FOOTER)] != FOOTER:
                raise CheckpointError(f'{path}: is cut off or no checkpoint of this project')
            if footer[len(FOOTER):] != digest:
                raise CheckpointError(f'{path}: is damaged, its checksum does not match')
            file.seek(0)
            return _unpack(file, size, path)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from error


def _unpack(file, size, path):
    # The checksum detects damage, not manipulation: anyone can compute a valid one.
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(_claimed_bytes(archive, member) for member in archive.infolist())
        if claimed > size:
            raise ValueError(f'it claims {claimed} bytes and has {size}')
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        state = json.loads(arrays.pop(STATE).tobytes())
        if not isinstance(state, dict):
            raise ValueError('its state is no dict')
    except Exception as error:    # a malicious archive can raise nearly anything
        raise CheckpointError(f'{path}: is no checkpoint of this project '
                              f'({shown(str(error))})') from error
    return arrays, state


def _claimed_bytes(archive, member):
    """Bytes that reading a member takes: its size, or that of the array in its header if larger."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)


def _digest(file, length=None):
    """SHA-256 of the next `length` bytes of a file, or of the rest of it."""
    sha256, left = hashlib.sha256(), length
    while left is None or left > 0:
        part = file.read(1 << 20 if left is None else min(1 << 20, left))
        if not part:
            break
        sha256.update(part)
        left = None if left is None else left - len(part)
    return sha256.digest()
