"""The names and labels of a data set's images, in a few arrays."""

import hashlib
import os
import re
from array import array
from collections.abc import Sequence

import numpy as np

# Names that os.path.relpath would change: absolute, or with an empty, '.' or '..' part.
UNUSUAL = re.compile(r'(?:^|/)\.{0,2}(?:/|$)')


class Samples(Sequence):
    """A sequence of (name, label).

    ImageNet's training set takes 56 MB, where a list of tuples takes 340 MB in every process:
    forked processes share the arrays, and those from a cached index (data.index) are shared by all
    processes of the machine.

    Args:
        root: the folder that names are relative to; None keeps the names as they are.
        pairs: an iterable of (name, label); names are relative to root, or absolute.

    Attributes:
        labels: int32 [N].
        fingerprint: the SHA-256 of the lines 'NAME LABEL', with names relative to root; as hex.
    """

    def __init__(self, root, pairs=()):
        text, starts, labels, digest = bytearray(), array('q', [0]), array('i'), hashlib.sha256()
        for name, label in pairs:
            line = f'{name} {label}\n'.encode('utf-8', 'surrogateescape')
            text += line
            starts.append(len(text))
            labels.append(label)
            if root is not None and UNUSUAL.search(name):
                name = os.path.relpath(os.path.join(root, name), root)
                line = f'{name} {label}\n'.encode('utf-8', 'replace')
            elif not line.isascii():
                line = f'{name} {label}\n'.encode('utf-8', 'replace')
            digest.update(line)
        self._set(root, np.frombuffer(text, np.uint8), np.frombuffer(starts, np.int64),
                  np.frombuffer(labels, np.int32), np.frombuffer(digest.digest(), np.uint8))

    def _set(self, root, text, starts, labels, digest):
        self.root, self.labels = root and str(root), labels
        self._text, self._starts, self._digest = text, starts, digest
        self._characters = memoryview(text)

    @classmethod
    def of_arrays(cls, root, arrays):
        """The Samples whose arrays() are given, below another root."""
        made = cls.__new__(cls)
        made._set(root, *(arrays[name] for name in ('text', 'starts', 'labels', 'digest')))
        return made

    def arrays(self):
        """{name: array}, to be stored: the lines 'NAME LABEL' as bytes, where each starts, ..."""
        return {'text': self._text, 'starts': self._starts, 'labels': self.labels,
                'digest': self._digest}

    @property
    def fingerprint(self):
        return self._digest.tobytes().hex()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        label = int(self.labels[index])    # IndexError beyond the end
        index %= len(self)
        line = bytes(self._characters[self._starts[index]:self._starts[index + 1]])
        name = line.rpartition(b' ')[0].decode('utf-8', 'surrogateescape')
        return (name if self.root is None else os.path.join(self.root, name)), label

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None
