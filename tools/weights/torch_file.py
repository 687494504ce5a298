"""Read and write PyTorch's weight files without PyTorch and without running their code.

PyTorch itself is not used: it would be a dependency of 200 MB or more for this alone, and its
`weights_only` reader refuses published files that also hold e.g. training arguments.

Since PyTorch 1.6 a file is a zip archive of one pickle, data.pkl, and a record of bytes for each
storage. Records are stored uncompressed, so they are used in place: nothing is unpacked, and a
zip bomb has no effect. Before 1.6 a file was a sequence: magic number, version, machine, pickle,
names of the storages, storages.

Sources: torch/serialization.py, torch/_utils.py and PKWARE's APPNOTE.TXT (4.3, 4.5.3).
"""

import math
import pickle
import struct
import zipfile
import zlib

import numpy as np

from weights.unpickle import (
    MOST_NUMBERS,
    Call,
    Damaged,
    Ignored,
    Refused,
    checked_shape,
    shown,
    unpickle,
)

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
MOST_RECORDS = 50_000

# bfloat16 is represented as uint16.
STORAGE_TYPES = {'FloatStorage': 'f4', 'HalfStorage': 'f2', 'BFloat16Storage': 'u2',
                 'DoubleStorage': 'f8', 'LongStorage': 'i8', 'IntStorage': 'i4',
                 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1',
                 'BoolStorage': 'b1'}


def read_zip(content):
    """Read a zip archive of torch.save (a memoryview); tensors are returned as `Tensor`.

    Raises:
        Refused, Damaged: see weights.unpickle.
    """
    records = _zip_records(content)
    pickles = [name for name in records if name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise Refused('it is a zip archive without the one data.pkl of torch.save')
    prefix = pickles[0][:-len('data.pkl')]
    order = '>' if bytes(records.get(prefix + 'byteorder', [b''])[0][:3]) == b'big' else '<'
    storages = {}

    def find_storage(identifier):
        storage = _described(storages, identifier, order)
        if storage.data is None:
            name = f'{prefix}data/{storage.key}'
            if name not in records:
                raise Damaged(f'its record {shown(name)} is missing')
            storage.fill(*records[name])
        return storage

    return unpickle(records[pickles[0]][0], 0, ADMITTED, find_storage)[0]


def read_legacy(content, position):
    """Read a file of torch.save before 1.6; `position` is that after the magic number.

    Raises:
        Refused, Damaged: see weights.unpickle.
    """
    _, position = unpickle(content, position)    # the protocol's version, always 1001
    machine, position = unpickle(content, position)
    order = '<' if not isinstance(machine, dict) or machine.get('little_endian', True) else '>'
    storages = {}
    value, position = unpickle(content, position, ADMITTED, lambda identifier: _described(
        storages, identifier, order))
    keys, position = unpickle(content, position)
    if not isinstance(keys, list) or len(keys) > len(storages):
        raise Damaged('its list of storages does not fit its tensors')
    for key in keys:
        if type(key) is not str or key not in storages:
            raise Damaged('its list of storages names one that no tensor has')
        storage, start = storages[key], position + 8
        count = struct.unpack('<Q', content[position:start].tobytes().ljust(8, b'\xff'))[0]
        position = start + count * storage.dtype.itemsize
        if count != storage.count or position > len(content):
            raise Damaged(f'its storage {shown(key)} claims {count} numbers; {storage.count} were '
                          f'announced, and {max(0, len(content) - start)} bytes are left')
        storage.fill(content[start:position])
    return value


def write_zip(file, state):
    """Write {name: ndarray} in the format of torch.save; uint16 holds the bits of bfloat16."""
    with zipfile.ZipFile(file, 'w') as archive:
        def add(name, data):
            entry = zipfile.ZipInfo(f'archive/{name}')
            # torch can memory-map a file whose records start at multiples of 64.
            here = file.tell() + 30 + len(entry.filename)    # end of the record's header
            entry.extra = struct.pack('<2sH', b'FB', (-here - 4) % 64) + bytes((-here - 4) % 64)
            archive.writestr(entry, data)

        add('data.pkl', _pickled(state))
        add('byteorder', b'little')
        for key, array in enumerate(state.values()):
            add(f'data/{key}', array.astype(array.dtype.newbyteorder('<')).tobytes())
        add('version', b'3\n')


def _pickled(state):
    """The pickle of a state dict, which torch also loads with weights_only=True.

    Each tensor has its own storage, whose key is its number; the bytes are a separate record.
    """
    kinds = {np.dtype(code): kind for kind, code in STORAGE_TYPES.items()}

    def text(value):
        value = value.encode('utf-8', 'surrogatepass')
        return pickle.BINUNICODE + struct.pack('<I', len(value)) + value

    def number(value):
        if value < 2 ** 31:
            return pickle.BININT + struct.pack('<i', value)
        return pickle.LONG1 + b'\x08' + struct.pack('<q', value)

    def numbers(values):
        return pickle.MARK + b''.join(map(number, values)) + pickle.TUPLE

    def named(module, name):
        return pickle.GLOBAL + f'{module}\n{name}\n'.encode()

    ordered_dict = named('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO, b'\x02', ordered_dict, pickle.MARK]
    for key, (name, array) in enumerate(state.items()):
        kind = kinds[array.dtype.newbyteorder('=')]
        steps = [int(np.prod(array.shape[axis + 1:])) for axis in range(array.ndim)]
        parts += [text(name), named('torch._utils', '_rebuild_tensor_v2'), pickle.MARK,
                  pickle.MARK, text('storage'), named('torch', kind), text(str(key)), text('cpu'),
                  number(array.size), pickle.TUPLE, pickle.BINPERSID,
                  number(0), numbers(array.shape), numbers(steps), pickle.NEWFALSE, ordered_dict,
                  pickle.TUPLE, pickle.REDUCE]
    return b''.join(parts + [pickle.SETITEMS, pickle.STOP])


class Storage:
    """A contiguous block of numbers in the file, which tensors may share."""

    def __init__(self, key, dtype, count):
        self.key, self.dtype, self.count = key, dtype, count
        self.data, self.checksum = None, 0

    def fill(self, data, checksum=0):
        """Set the bytes; raises Damaged if they are fewer than the storage needs."""
        if len(data) < self.count * self.dtype.itemsize:
            raise Damaged(f'its storage {shown(self.key)} claims {self.count} numbers '
                          f'and has {len(data)} bytes')
        self.data, self.checksum = data, checksum

    def checked(self):
        """The bytes, after comparing their checksum; it is 0 if torch.save did not compute it."""
        if self.data is None:
            raise Damaged(f'its storage {shown(self.key)} is missing')
        if self.checksum and zlib.crc32(self.data) != self.checksum:
            raise Damaged(f'its storage {shown(self.key)} does not have its checksum')
        self.checksum = 0
        return self.data


class Tensor:
    """A view on a storage; offset, size and stride count numbers, not bytes."""

    def __init__(self, storage, offset, size, stride, *_):
        if type(storage) is not Storage or type(offset) is not int or offset < 0:
            raise Damaged('it holds a tensor without storage or offset')
        size, stride = checked_shape(size), checked_shape(stride)
        if len(size) != len(stride):
            raise Damaged('it holds a tensor whose size and stride differ in length')
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if 0 not in size and last >= storage.count:
            raise Damaged(f'it holds a tensor that reaches to number {last} of a storage '
                          f'of {storage.count}')
        self.storage, self.offset, self.shape, self.stride = storage, offset, size, stride

    @property
    def nbytes(self):
        return self.size * self.storage.dtype.itemsize

    @property
    def size(self):
        return math.prod(self.shape)

    def read(self):
        """The values as a contiguous ndarray in native byte order."""
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.empty(self.shape, dtype.newbyteorder('='))
        # The stride of an axis of length 1 is not used and may have any value.
        steps = [step * dtype.itemsize if length > 1 else 0
                 for length, step in zip(self.shape, self.stride)]
        view = np.ndarray(self.shape, dtype, self.storage.checked(),
                          self.offset * dtype.itemsize, steps)
        return view.astype(dtype.newbyteorder('='), order='C')


class StorageType:
    """Represents torch.FloatStorage and similar classes."""

    def __init__(self, code):
        self.code = code


ADMITTED = {
    ('torch._utils', '_rebuild_tensor'): Call(Tensor),
    ('torch._utils', '_rebuild_tensor_v2'): Call(Tensor),
    ('torch._utils', '_rebuild_parameter'): Call(lambda tensor, *_: tensor),
    ('torch', 'Size'): Call(checked_shape),
    ('torch', 'device'): Call(Ignored),
    **{('torch', name): Ignored()
       for name in ('float32', 'float16', 'bfloat16', 'float64', 'int64', 'int32', 'uint8', 'bool',
                    'strided', 'contiguous_format', 'channels_last', 'preserve_format')},
    **{('torch', name): StorageType(code) for name, code in STORAGE_TYPES.items()},
}


def _described(storages, identifier, order):
    """The storage of a persistent id ('storage', type, key, device, count); one for each key."""
    if not (type(identifier) is tuple and len(identifier) in (5, 6)
            and type(identifier[1]) is StorageType and type(identifier[2]) is str
            and len(identifier[2]) < 100 and identifier[5:] in ((), (None,))):
        raise Refused('it refers to something other than a storage of numbers')
    _, kind, key, _, count = identifier[:5]
    checked_shape((count,))
    if count > MOST_NUMBERS:
        raise Refused(f'its storage {shown(key)} claims {count} numbers, more than any network has')
    dtype = np.dtype(order + kind.code)
    storage = storages.setdefault(key, Storage(key, dtype, count))
    if (storage.dtype, storage.count) != (dtype, count):
        raise Damaged(f'its storage {shown(key)} is announced in two ways')
    return storage


def _zip_records(content):
    """{name: (bytes, checksum)} of an archive with uncompressed records."""
    count, position = _zip_directory(content)
    if count > MOST_RECORDS:
        raise Refused(f'it is a zip archive of {count} records')
    records, total = {}, 0
    for _ in range(count):
        (signature, flags, method, checksum, packed, size, name_length, extra_length,
         comment_length, start) = struct.unpack('<4s4xHH4xIIIHHH8xI',
                                                _slice(content, position, 46))
        if signature != b'PK\1\2':
            raise Damaged('the directory of its zip archive is invalid')
        name = bytes(_slice(content, position + 46, name_length)).decode('utf-8', 'replace')
        if 0xffffffff in (packed, size, start):
            extra = bytes(_slice(content, position + 46 + name_length, extra_length))
            size, packed, start = _zip64_sizes(extra, size, packed, start)
        if method != 0 or flags & 1 or packed != size:
            raise Refused(f'its record {shown(name)} is compressed or encrypted, '
                          'which torch.save never does')
        total += size
        if name in records or total > len(content):
            raise Refused('the records of its zip archive overlap')
        name_here, extra_here = struct.unpack('<HH', _slice(content, start + 26, 4))
        records[name] = _slice(content, start + 30 + name_here + extra_here, size), checksum
        position += 46 + name_length + extra_length + comment_length
    return records


def _zip_directory(content):
    """(number of records, position of the first entry), from the end of the archive."""
    tail = max(0, len(content) - 65557)    # the end record and the longest comment
    end = bytes(content[tail:]).rfind(b'PK\5\6')
    if end < 0:
        raise Damaged('the end of its zip archive is missing')
    end += tail
    count, position = struct.unpack('<H4xI', _slice(content, end + 10, 10))
    if count == 0xffff or position == 0xffffffff:
        locator = bytes(_slice(content, max(0, end - 20), 20))
        if locator[:4] != b'PK\6\7':
            raise Damaged('the end record of its zip archive is invalid')
        record = struct.unpack('<Q', locator[8:16])[0]
        count, position = struct.unpack('<Q8xQ', _slice(content, record + 32, 24))
    return count, position


def _zip64_sizes(extra, *sizes):
    """Replace each size that exceeds 32 bits by the next one of the zip64 field."""
    while len(extra) >= 4:
        kind, length = struct.unpack('<HH', extra[:4])
        if kind == 1:
            longer = iter(struct.unpack(f'<{length // 8}Q', extra[4:4 + length // 8 * 8]))
            return [next(longer, 0) if size == 0xffffffff else size for size in sizes]
        extra = extra[4 + length:]
    return sizes


def _slice(content, start, count):
    if start + count > len(content):
        raise Damaged(f'its zip archive claims {count} bytes at {start}, '
                      f'and the file has {len(content)}')
    return content[start:start + count]
