"""CIFAR in the bytes that Python 2 and its NumPy wrote."""

import io
import struct
import tarfile

import numpy as np


def python_2_pickle(value):
    """Protocol 2 of a value as cPickle wrote it: its texts are SHORT_BINSTRING and BINSTRING."""
    memo = iter(range(1, 10 ** 6))

    def put():
        number = next(memo)
        return b'q' + bytes([number]) if number < 256 else b'r' + struct.pack('<I', number)

    def one(value):
        if isinstance(value, np.ndarray):
            kind = value.dtype.str[1:].encode()
            return b''.join([
                b'cnumpy.core.multiarray\n_reconstruct\n', put(), b'cnumpy\nndarray\n', put(),
                b'K\0\x85', put(), one(b'b'), b'\x87', put(), b'R', put(), b'(K\x01',
                one(value.shape), b'cnumpy\ndtype\n', put(), one(kind), b'K\0K\x01\x87', put(),
                b'R', put(), b'(K\x03', one(b'|'), b'NNN', b'J\xff\xff\xff\xff' * 2, b'K\0tb\x89',
                one(value.tobytes()), b'tb'])
        if isinstance(value, bytes):
            head = (b'U' + bytes([len(value)]) if len(value) < 256
                    else b'T' + struct.pack('<i', len(value)))
            return head + value + put()
        if isinstance(value, tuple):
            return b'(' + b''.join(map(one, value)) + b't' + put()
        if isinstance(value, list):
            return b']' + put() + b'(' + b''.join(map(one, value)) + b'e'
        if isinstance(value, dict):
            return b'}' + put() + b'(' + b''.join(
                one(part) for item in value.items() for part in item) + b'u'
        return b'K' + bytes([value]) if 0 <= value < 256 else b'J' + struct.pack('<i', value)

    return b'\x80\x02' + one(value) + b'.'


def write_cifar_10(path, images=2):
    """Write a small cifar-10-python.tar.gz; returns {batch file: pixels, uint8 [images, 3072]}."""
    generator = np.random.default_rng(0)
    names = [*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch']
    pixels = {name: generator.integers(0, 256, (images, 3072), dtype=np.uint8) for name in names}
    files = {name: {b'labels': [3, 7] * (images // 2), b'data': pixels[name]} for name in names}
    files['batches.meta'] = {b'label_names': [b'class %d' % number for number in range(10)]}
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in files.items():
            content = python_2_pickle(content)
            entry = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return pixels
