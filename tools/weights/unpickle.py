"""A pickle reader that builds arrays and plain data and can't do anything else.

No library does this: pickle.Unpickler with a restricted `find_class` still sets attributes and
calls the admitted names; picklescan and fickling analyse a file but leave loading to pickle;
torch.load(weights_only=True) needs PyTorch and does not read Paddle's files.

A pickle is a program for a stack machine; Python's machine imports and calls any name in it. The
machine here supports only the instructions that weight files use and a short table of names, each
of which maps to a function of this project. It imports nothing, sets no attributes, and calls no
methods of objects that the file chooses.

Time and memory are bounded: lengths are checked against the file before use, bytes and long texts
stay in the file until an array is read, and the number of instructions and the bytes of texts are
limited. The cost of an instruction is at most proportional to its input from file and stack.
"""

import math
import pickle
import pickletools
import struct

import numpy as np

MOST_STEPS = 500_000    # a checkpoint of T2T-ViT-24 with its optimizer needs about 50,000
MOST_DIMENSIONS = 16
LONGEST_KEY = 1000      # characters; comparing equal keys takes time proportional to their length
SHORT_TEXT = 255        # bytes, the maximum of the instruction SHORT_BINSTRING
LONG_TEXT = 2 ** 16     # bytes; longer texts stay in the file: they are arrays encoded as text
MOST_TEXT = 2 ** 26     # bytes of all texts that are decoded
MOST_ARGUMENTS = 256    # of a call; a pathlib.Path has one for each folder

# The largest network of the zoo, vit_large_patch16_384, has 305 million weights; with the head of
# ImageNet-21k and positions for 2048 pixels it has 342 million. The largest array is that head:
# 89 MB, or about 134 MB as latin1 text in UTF-8, where half of the bytes take two.
MOST_NUMBERS = 400_000_000
LONGEST_TEXT = 2 ** 28    # bytes
NUMBER_CODES = {kind + size for kind in 'fiu' for size in '1248'} - {'f1'} | {'b1'}


class Refused(Exception):
    """The file contains something other than arrays and plain data."""


class Damaged(Exception):
    """The file is inconsistent or incomplete."""


def unpickle(content, position=0, admitted=None, persistent=None, python_2=False):
    """Read one pickle of protocol 2 to 4.

    Args:
        content: memoryview of the file.
        position: start of the pickle in the content.
        admitted: {(module, name): value}, further names that the pickle may use; a value that it
            may call is a `Call`.
        persistent: function from a persistent id to its value, if the format has these.
        python_2: also read strings of Python 2, which are bytes: up to 255 bytes as str (latin1),
            longer ones as a view. Dictionary keys that are bytes also become str.

    Returns:
        (value, position after the pickle). Bytes are views on the content, an ndarray is a
        `StoredArray`, an OrderedDict a dict.

    Raises:
        Refused, Damaged: with a message that can follow the file's name.
    """
    machine = _Machine(content, position, {**ADMITTED, **(admitted or {})}, persistent,
                       python_2)
    return machine.run(), machine.position


def shown(text, most=60):
    """Untrusted text, shortened and escaped for a one-line message."""
    text = text if isinstance(text, str) else type(text).__name__
    text = text if len(text) <= most else text[:most] + '...'
    return text if text.isprintable() else ascii(text)


def checked_shape(shape):
    """Return the shape if it is a tuple of at most MOST_DIMENSIONS sizes, else raise Damaged."""
    if (type(shape) is not tuple or len(shape) > MOST_DIMENSIONS
            or not all(type(size) is int and 0 <= size < 2 ** 48 for size in shape)):
        raise Damaged('it holds an array of an impossible shape')
    return shape


class Call:
    """A name that a pickle may call, with the function that is called in its place."""

    def __init__(self, function):
        self.function = function


class NumberType:
    """Represents a numpy.dtype of numbers."""

    def __init__(self, code, *_):
        if type(code) is not str or code not in NUMBER_CODES:
            raise Refused(f'it holds values of type {shown(code)}')
        self.code, self.order = code, '='

    def build(self, state):
        """BUILD: state is (version, byte order, sub-array, names, fields, ...)."""
        if not (type(state) is tuple and len(state) >= 5 and state[1] in ('<', '>', '=', '|')
                and state[2:5] == (None, None, None)):
            raise Refused('it holds values of a structured type')
        self.order = state[1]

    @property
    def dtype(self):
        return np.dtype(self.order + self.code)


class StoredArray:
    """Represents a numpy.ndarray whose bytes are still in the file."""

    def __init__(self, *_):    # the (type, shape, code) of numpy's _reconstruct are placeholders
        self.shape, self.type, self.order, self.data = (0,), NumberType('f4'), 'C', b''

    def build(self, state):
        """BUILD: state is (version, shape, type, whether in Fortran order, data)."""
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not NumberType:
            raise Damaged('it holds an array without shape or type')
        _, shape, self.type, fortran, data = state
        self.shape, self.order = checked_shape(shape), 'F' if fortran is True else 'C'
        if type(data) is str and len(data) <= SHORT_TEXT:    # a small array of Python 2
            data = data.encode('latin1')
        if not isinstance(data, (bytes, memoryview, Latin1)):
            raise Refused('it holds an array of objects')
        self.data = data
        if self.nbytes != len(data) and type(data) is not Latin1:
            raise Damaged(f'it holds an array that claims {self.nbytes} bytes and has {len(data)}')

    @property
    def nbytes(self):
        return self.size * int(self.type.code[1:])

    @property
    def size(self):
        return math.prod(self.shape)

    def read(self):
        """The values as a contiguous ndarray in native byte order."""
        data = self.data.encoded(self.nbytes) if type(self.data) is Latin1 else self.data
        array = np.ndarray(self.shape, self.type.dtype, data, order=self.order)
        return array.astype(array.dtype.newbyteorder('='), order='C')


class LongText:
    """A text in the file that is decoded on demand."""

    def __init__(self, data):
        if len(data) > LONGEST_TEXT:
            raise Refused(f'it holds a text of {len(data)} bytes')
        self.data = data

    def __str__(self):
        # A single character beyond latin1 makes every character of a str take two or four bytes.
        if np.frombuffer(self.data, np.uint8).max() > 0xc3:
            raise Refused('it holds a long text')
        return str(self.data, 'utf-8', 'surrogatepass')


class Latin1:
    """Represents the result of _codecs.encode, with which protocol 2 stores bytes as text."""

    def __init__(self, text, encoding='latin1'):
        if type(text) not in (str, LongText) or encoding not in ('latin1', 'latin-1'):
            raise Refused('it asks for another encoding than latin1')
        self.text = text

    def __len__(self):
        return len(self.text.data if type(self.text) is LongText else self.text)

    def encoded(self, size):
        """The bytes; raises Damaged if there are not exactly `size`."""
        if not size <= len(self) <= 2 * size:    # a byte takes one or two in UTF-8
            raise Damaged(f'it holds an array that claims {size} bytes and has other {len(self)}')
        data = str(self.text).encode('latin1')
        if len(data) != size:
            raise Damaged(f'it holds an array that claims {size} bytes and has {len(data)}')
        return data


class Ignored:
    """Represents objects other than arrays, whose content is not needed: argparse.Namespace etc."""

    def __init__(self, *_):
        pass

    def build(self, state):
        pass


def _scalar(number_type, data):
    if type(number_type) is not NumberType:
        raise Damaged('it holds a number of no type')
    if type(data) is Latin1:
        data = data.encoded(number_type.dtype.itemsize)
    if not isinstance(data, (bytes, memoryview)):
        raise Damaged('it holds a number of no bytes')
    if len(data) != number_type.dtype.itemsize:
        raise Damaged('it holds a number of another size than its type')
    return np.ndarray((), number_type.dtype, data)[()]


def _tuple(items=()):
    if type(items) is not tuple:
        raise Refused('it makes a tuple of something else')
    return items


def _dictionary(*_):
    return {}


IGNORED = {    # settings of a training run in a checkpoint
    'argparse': ('Namespace',), 'types': ('SimpleNamespace',),
    **dict.fromkeys(('builtins', '__builtin__'), ('set', 'frozenset', 'slice', 'range', 'xrange',
                                                  'complex')),
    **dict.fromkeys(('pathlib', 'pathlib._local'),    # before and from Python 3.13 on
                    ('Path', 'PosixPath', 'WindowsPath', 'PurePath', 'PurePosixPath',
                     'PureWindowsPath')),
}
DICTIONARIES = {
    'collections': ('OrderedDict', 'defaultdict', 'Counter'),
    **dict.fromkeys(('pytorch_lightning.utilities.parsing', 'lightning.fabric.utilities.data',
                     'lightning_fabric.utilities.data',
                     'lightning.pytorch.utilities.parsing'), ('AttributeDict',)),
}
FACTORIES = ('list', 'dict', 'int', 'float', 'str', 'bool')    # arguments of a defaultdict

ADMITTED = {
    **{(module, name): Call(Ignored) for module, names in IGNORED.items() for name in names},
    **{(module, name): Call(_dictionary)
       for module, names in DICTIONARIES.items() for name in names},
    **{(module, name): Ignored()
       for module in ('builtins', '__builtin__') for name in FACTORIES},
    ('numpy', 'ndarray'): None,    # argument of _reconstruct
    ('numpy', 'dtype'): Call(NumberType),
    ('_codecs', 'encode'): Call(Latin1),
    **{(module, name): Call(function)
       for module in ('builtins', '__builtin__')    # in Python 3, and in protocol 2
       for name, function in (('tuple', _tuple), ('bytes', lambda: b''))},
    **{(f'numpy.{core}.multiarray', name): Call(function)
       for core in ('core', '_core')    # before and from numpy 2 on
       for name, function in (('_reconstruct', StoredArray), ('scalar', _scalar))},
}


class _Machine:
    """The stack machine: `run` executes one pickle and returns its value."""

    def __init__(self, content, position, admitted, persistent, python_2):
        self.content, self.position, self.python_2 = content, position, python_2
        self.admitted, self.persistent = admitted, persistent
        self.stack, self.below, self.memo = [], [], {}
        self.text_left = MOST_TEXT

    def run(self):
        steps = self.instructions()
        for _ in range(MOST_STEPS):
            start = self.position
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                known = pickletools.code2op.get(chr(code))
                if known is None:
                    raise Damaged(f'byte {start} is no pickle instruction')
                raise Refused(f'it uses the pickle instruction {known.name}')
            try:
                step()
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
                    struct.error) as error:
                raise Damaged(f'the pickle instruction at byte {start} is invalid '
                              f'({type(error).__name__})') from error
        raise Refused(f'it has more than {MOST_STEPS} pickle instructions')

    def take(self, count):
        start, self.position = self.position, self.position + count
        if self.position > len(self.content):
            raise Damaged(f'at byte {start} it claims {count} more bytes, '
                          f'and {len(self.content) - start} are left')
        return self.content[start:self.position]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        text, end, _ = bytes(self.content[self.position:self.position + 256]).partition(b'\n')
        if not end:
            raise Damaged(f'at byte {self.position} a name has no end')
        self.position += len(text) + 1
        return text.decode()

    def push(self, value):
        self.stack.append(value)

    def pop_to_mark(self):
        items, self.stack = self.stack, self.below.pop()
        return items

    def instructions(self):
        """{opcode: function}. Others are refused: INST, OBJ, EXT1, DUP, ..."""
        push, pop, number, take = self.push, lambda: self.stack.pop(), self.number, self.take

        def text(form):
            return lambda: push(self.text(take(number(form))))

        def raw(form):
            return lambda: push(take(number(form)))

        def last(count):
            def step():
                items = tuple(self.stack[-count:])
                if len(items) < count:
                    raise IndexError
                self.stack[-count:] = [items]
            return step

        def remember(form):
            return lambda: self.memo.__setitem__(number(form), self.stack[-1])

        def recall(form):
            return lambda: push(self.memo[number(form)])

        python_2 = {
            pickle.SHORT_BINSTRING: lambda: push(str(take(number('<B')), 'latin1')),
            pickle.BINSTRING: raw('<I'),
        } if self.python_2 else {}
        return {code[0]: step for code, step in {
            **python_2,
            pickle.PROTO: lambda: take(1),
            pickle.FRAME: lambda: self.check_frame(number('<Q')),
            pickle.MARK: self.mark,
            pickle.NONE: lambda: push(None),
            pickle.NEWTRUE: lambda: push(True),
            pickle.NEWFALSE: lambda: push(False),
            pickle.BININT: lambda: push(number('<i')),
            pickle.BININT1: lambda: push(number('<B')),
            pickle.BININT2: lambda: push(number('<H')),
            pickle.LONG1: lambda: push(self.long(number('<B'))),
            pickle.BINFLOAT: lambda: push(number('>d')),
            pickle.SHORT_BINUNICODE: text('<B'),
            pickle.BINUNICODE: text('<I'),
            pickle.BINUNICODE8: text('<Q'),
            pickle.SHORT_BINBYTES: raw('<B'),
            pickle.BINBYTES: raw('<I'),
            pickle.BINBYTES8: raw('<Q'),
            pickle.EMPTY_TUPLE: lambda: push(()),
            pickle.TUPLE1: last(1),
            pickle.TUPLE2: last(2),
            pickle.TUPLE3: last(3),
            pickle.TUPLE: lambda: push(tuple(self.pop_to_mark())),
            pickle.EMPTY_LIST: lambda: push([]),
            pickle.APPEND: lambda: self.append([pop()]),
            pickle.APPENDS: lambda: self.append(self.pop_to_mark()),
            pickle.EMPTY_SET: lambda: push(Ignored()),
            pickle.FROZENSET: lambda: push(Ignored(self.pop_to_mark())),
            pickle.ADDITEMS: lambda: self.add_items(self.pop_to_mark()),
            pickle.EMPTY_DICT: lambda: push({}),
            pickle.SETITEM: lambda: self.set_items([pop(), pop()][::-1]),
            pickle.SETITEMS: lambda: self.set_items(self.pop_to_mark()),
            pickle.BINPUT: remember('<B'),
            pickle.LONG_BINPUT: remember('<I'),
            pickle.MEMOIZE: lambda: self.memo.__setitem__(len(self.memo), self.stack[-1]),
            pickle.BINGET: recall('<B'),
            pickle.LONG_BINGET: recall('<I'),
            pickle.GLOBAL: lambda: push(self.find(self.line(), self.line())),
            pickle.STACK_GLOBAL: lambda: push(self.find(*[pop(), pop()][::-1])),
            pickle.REDUCE: self.call,
            pickle.NEWOBJ: self.call,
            pickle.BUILD: self.build,
            pickle.BINPERSID: lambda: push(self.load_persistent(pop())),
        }.items()}

    def text(self, data):
        if len(data) > LONG_TEXT:
            return LongText(data)
        self.text_left -= len(data)
        if self.text_left < 0:
            raise Refused(f'its texts have more than {MOST_TEXT} bytes')
        return str(data, 'utf-8', 'surrogatepass')

    def mark(self):
        self.below.append(self.stack)
        self.stack = []

    def check_frame(self, size):
        left = len(self.content) - self.position
        if size > left:
            raise Damaged(f'at byte {self.position} it claims a frame of {size} bytes, '
                          f'and {left} are left')

    def long(self, size):
        if size > 16:
            raise Refused(f'it holds a whole number of {size} bytes')
        return int.from_bytes(self.take(size), 'little', signed=True)

    def append(self, items):
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def add_items(self, items):
        if type(self.stack[-1]) is not Ignored:
            raise TypeError

    def set_items(self, items):
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError
        if self.python_2:
            items[::2] = [str(key, 'latin1') if isinstance(key, (bytes, memoryview))
                          and len(key) <= LONGEST_KEY else key for key in items[::2]]
        for key in items[::2]:
            # Hashing nested tuples or colliding numbers can take practically unlimited time.
            if not (type(key) is str and len(key) <= LONGEST_KEY
                    or type(key) is int and abs(key) < 2 ** 63):
                raise Refused('it holds a dictionary key that is '
                              + ('too long' if type(key) in (str, int) else
                                 f'neither text nor number ({type(key).__name__})'))
        target.update(zip(items[::2], items[1::2]))

    def find(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise TypeError
        try:
            return self.admitted[module, name]
        except KeyError:
            raise Refused(f'it asks for {shown(f"{module}.{name}")}') from None

    def call(self):
        """REDUCE and NEWOBJ: functions and classes are both `Call` objects."""
        arguments, callee = self.stack.pop(), self.stack.pop()
        if type(callee) is not Call:
            raise Refused(f'it calls a {type(callee).__name__}')
        if type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
            raise TypeError
        value = callee.function(*arguments)
        if self.python_2 and type(value) is Latin1 and type(value.text) is str:
            value = value.text.encode('latin1')    # bytes that Python 3 wrote, e.g. a key
        self.push(value)

    def build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if hasattr(type(target), 'build'):
            target.build(state)
        elif type(target) is not dict:    # attributes of a dict, which torch adds, are dropped
            raise Refused(f'it sets attributes of a {type(target).__name__}')

    def load_persistent(self, identifier):
        if self.persistent is None:
            raise Refused('it refers to data outside of the file')
        return self.persistent(identifier)
