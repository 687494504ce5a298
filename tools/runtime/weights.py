"""Reading and writing weight files (.pdparams), which come from strangers.

A .pdparams file is a pickle of {parameter name: array}. paddle.load and pickle.load would run
whatever code such a file asks for; the reader here admits nothing but arrays. Next to the
weights the files of this project hold a JSON text with class names and the network's name,
under a key that Paddle's own loader skips over.
"""

import collections
import json
import os
import pickle
from pathlib import Path

import numpy as np

METADATA_KEY = 'metadata@@'
NAME_TABLE_KEY = 'StructuredToParameterName@@'
NUMBER_KINDS = 'fiub'    # float, int, unsigned, bool


class WeightsError(ValueError):
    """A weights file that can't be used: one line naming the file and what to do."""

    exit_code = 2


def read_weights(path):
    """Read a .pdparams file without running any code of it.

    Returns:
        (state, metadata): {parameter name: ndarray}, and a dict that is empty for files of
        other origin.

    Raises:
        WeightsError: for a missing, damaged, foreign or hostile file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path}: no such weights file')
    try:
        with open(path, 'rb') as file:
            content = _ArrayUnpickler(file).load()
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    except _Refused as error:
        raise WeightsError(f'{path}: refused, {error}; a weights file holds arrays only') from error
    except Exception as error:    # a damaged pickle can raise nearly anything
        raise WeightsError(f'{path}: is damaged or no .pdparams file '
                           f'({type(error).__name__}: {error})') from error
    if not isinstance(content, dict):
        raise WeightsError(f'{path}: holds a {type(content).__name__} instead of named weights')
    return _state_of(content, path), _metadata_of(content, path)


def write_weights(path, state, metadata):
    """Write a .pdparams file that is either complete or not there at all.

    Args:
        path: the file; one that exists is replaced in a single step.
        state: {parameter name: tensor or ndarray}.
        metadata: what else to remember, anything that JSON can hold.
    """
    content = {name: np.asarray(value) for name, value in state.items()}
    content[NAME_TABLE_KEY] = {name: name for name in state}
    content[METADATA_KEY] = json.dumps(metadata)
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            pickle.dump(content, file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _state_of(content, path):
    state = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise WeightsError(f'{path}: holds a key that is no name: {name!r}')
        if name.endswith('@@'):
            continue
        if isinstance(value, tuple) and len(value) == 2:    # (automatic name, array)
            value = value[1]
        if not isinstance(value, (np.ndarray, np.generic)):
            raise WeightsError(f'{path}: {name} is a {type(value).__name__}, not an array')
        if value.dtype.kind not in NUMBER_KINDS:
            raise WeightsError(f'{path}: {name} holds {value.dtype} instead of numbers')
        state[name] = np.asarray(value)
    if not state:
        raise WeightsError(f'{path}: holds no weights')
    return state


def _metadata_of(content, path):
    try:
        metadata = json.loads(content.get(METADATA_KEY, '{}'))
    except (TypeError, ValueError) as error:
        raise WeightsError(f'{path}: its metadata is damaged ({error})') from error
    return metadata if isinstance(metadata, dict) else {}


class _Refused(pickle.UnpicklingError):
    """A pickle that asks for something other than arrays."""


class _ArrayType:
    """Stands where a pickle names numpy.ndarray, so that it can't be called with any shape."""


def _empty_array(kind, shape, code):
    """Stands for numpy's _reconstruct: the real shape arrives with the data."""
    return np.ndarray((0,), 'b')


def _number_type(code, *_):
    if not isinstance(code, str) or code.lstrip('<>|=')[:1] not in NUMBER_KINDS:
        raise _Refused(f'it holds values of type {code!r}')
    return np.dtype(code, False, True)


def _latin1(text, encoding='latin1'):
    """Stands for _codecs.encode, through which old pickles carry bytes."""
    if encoding not in ('latin1', 'latin-1'):
        raise _Refused(f'it asks for the encoding {encoding!r}')
    return text.encode('latin1')


def _scalar(dtype, data):
    if not isinstance(dtype, np.dtype):
        raise _Refused('it holds a number of no type')
    return np.frombuffer(data, dtype, count=1)[0]


class _ArrayUnpickler(pickle.Unpickler):
    admitted = {
        ('builtins', 'tuple'): tuple,
        ('collections', 'OrderedDict'): collections.OrderedDict,
        ('numpy', 'ndarray'): _ArrayType,
        ('numpy', 'dtype'): _number_type,
        ('_codecs', 'encode'): _latin1,
        **{(f'numpy.{core}.multiarray', name): stand_in
           for core in ('core', '_core')
           for name, stand_in in (('_reconstruct', _empty_array), ('scalar', _scalar))},
    }

    def find_class(self, module, name):
        try:
            return self.admitted[module, name]
        except KeyError:
            raise _Refused(f'it asks for {module}.{name}') from None

    def persistent_load(self, identifier):
        raise _Refused('it refers to data outside of itself')
