"""Reading and writing weight files, which come from strangers.

Read are .pdparams and .pdopt (pickles of paddle.save), .pth and .pth.tar (PyTorch's zip archives
and their predecessor) and .safetensors, told apart by their content. paddle.load, torch.load and
pickle.load would run whatever code such a file asks for; runtime/unpickle.py can't.

Written is .pdparams. Next to the weights the files of this project hold a JSON text with class
names and the network's name, under a key that Paddle's own loader skips over.
"""

import json
import mmap
import os
import pickle
from pathlib import Path

import numpy as np

from runtime.torch_file import LEGACY_MAGIC, Tensor, read_legacy, read_zip
from runtime.unpickle import Damaged, Refused, StoredArray, shown, unpickle

METADATA_KEY = 'metadata@@'
NAME_TABLE_KEY = 'StructuredToParameterName@@'
SPLIT_KEY = 'UnpackBigParamInfor@@'
LONGEST_METADATA = 4_000_000     # characters
LONGEST_HEADER = 4_000_000       # bytes of a .safetensors file that describe its tensors
NUMBER_KINDS = 'fiub'    # float, int, unsigned, bool
# bfloat16 travels as its 16 bits, in Paddle's files and here; no weights are unsigned numbers.
SAFETENSORS_TYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I64': '<i8',
                     'I32': '<i4', 'I16': '<i2', 'I8': 'i1', 'U8': 'u1', 'BOOL': '?'}


class WeightsError(ValueError):
    """A weights file that can't be used: one line naming the file and what to do."""

    exit_code = 2


def read_weights(path):
    """Read a weights file or a training checkpoint without running any code of it.

    Returns:
        (state, metadata). State is {parameter name: ndarray}, names and shapes as found, except
        that a `module.` before every name is dropped and that bfloat16 comes as float32. Of a
        training checkpoint it is the part `state_dict_ema`, `state_dict` or `model`, the first
        that is there. Metadata is what `write_weights` was given; besides, `layout` is 'pytorch'
        for files of PyTorch (a Linear's weight is `[out, in]` there, not `[in, out]`), `part`
        names the part of a checkpoint, and `LR_Scheduler` is that of a .pdopt file.

    Raises:
        WeightsError: for a missing, damaged, foreign or hostile file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path}: no such weights file')
    try:
        content = _look_at(path)
        if content[8:9] == b'{' and (content[:1] != b'\x80' or content[2:8] == bytes(6)):
            entries, metadata = _read_safetensors(path, content)
        elif content[:4] in (b'PK\3\4', b'PK\5\6'):
            entries, metadata = _entries_of(read_zip(content), {'layout': 'pytorch'})
        elif content[:1] == b'\x80':
            value, position = unpickle(content)
            if value == LEGACY_MAGIC:
                entries, metadata = _entries_of(read_legacy(content, position),
                                                {'layout': 'pytorch'})
            else:
                entries, metadata = _entries_of(value, {})
        else:
            raise Damaged('it begins like no format of weights')
        return _state_of(entries, 4 * len(content) + 2 ** 26), metadata
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    except Refused as error:
        raise WeightsError(f'{path}: refused, {error}; a weights file holds arrays only') from error
    except MemoryError as error:
        raise WeightsError(f'{path}: needs more memory than there is') from error
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    except Damaged as error:
        raise WeightsError(f'{path}: is damaged or no weights file ({error})') from error
    except Exception as error:    # nobody foresees all that a damaged file can hold
        raise WeightsError(f'{path}: is damaged or no weights file '
                           f'({type(error).__name__}: {shown(str(error))})') from error


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
    folder = os.open(path.parent, os.O_RDONLY)    # the new name, too, outlives a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _look_at(path):
    """The file's content, of which only what is used comes into memory."""
    with open(path, 'rb') as file:
        if not os.fstat(file.fileno()).st_size:
            raise Damaged('it is empty')
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read_safetensors(path, content):
    try:
        import safetensors
    except ImportError as error:
        raise WeightsError('is a .safetensors file; pip install safetensors') from error
    length = int.from_bytes(content[:8], 'little')
    if length > min(LONGEST_HEADER, len(content) - 8):
        raise Damaged(f'its header claims {length} bytes of a file of {len(content)}')
    try:
        with safetensors.safe_open(path, 'np') as file:
            metadata = file.metadata() or {}
        tensors = safetensors.deserialize(bytes(content))
    except safetensors.SafetensorError as error:
        raise Damaged(shown(str(error), 200)) from error
    state = {}
    for name, tensor in tensors:
        if tensor['dtype'] not in SAFETENSORS_TYPES:
            raise Refused(f'{shown(name)} holds values of type {tensor["dtype"]}')
        state[name] = np.ndarray(tensor['shape'], SAFETENSORS_TYPES[tensor['dtype']],
                                 tensor['data'])
    layout = {'layout': 'pytorch'} if metadata.get('format') == 'pt' else {}
    return _without_prefix(state), {**_parsed(metadata.get(METADATA_KEY, '{}')), **layout}


def _entries_of(content, metadata):
    """(named entries, metadata) of what a pickle held."""
    if not isinstance(content, dict):
        raise WeightsError(f'holds a {type(content).__name__} instead of named weights')
    metadata = {**_parsed(content.get(METADATA_KEY, '{}')), **metadata}
    for part in ('state_dict_ema', 'state_dict', 'model'):
        if content.get(part) and isinstance(content[part], dict):
            content, metadata = content[part], {**metadata, 'part': part}
            break
    # What Paddle's optimizers keep beside their arrays: numbers, and a dict of more arrays.
    content = dict(content)
    if isinstance(content.get('LR_Scheduler'), dict):
        metadata['LR_Scheduler'] = {name: value
                                    for name, value in content.pop('LR_Scheduler').items()
                                    if type(value) in (int, float, bool)}
    if isinstance(content.get('master_weights'), dict):
        content.update((f'master_weights.{name}', value)
                       for name, value in content.pop('master_weights').items())
    return _without_prefix(content), metadata


def _without_prefix(entries, prefix='module.'):
    """Names as before torch's DataParallel put its prefix before each of them."""
    if not all(isinstance(name, str) and name.startswith(prefix) for name in entries):
        return entries
    return {name[len(prefix):]: value for name, value in entries.items()}


def _state_of(entries, most_bytes):
    """{name: ndarray}; `most_bytes` ends what repeats one stored array under many names."""
    state = {}
    for name, value in entries.items():
        if not isinstance(name, str):
            raise WeightsError(f'holds a key that is no name: {shown(str(name))}')
        if name.endswith('@@'):
            continue
        if isinstance(value, tuple) and len(value) == 2:    # (automatic name, array)
            value = value[1]
        if not isinstance(value, (StoredArray, Tensor, np.ndarray, np.generic)):
            raise WeightsError(f'{shown(name)} is a {type(value).__name__}, not an array')
        most_bytes -= value.nbytes
        if most_bytes < 0:
            raise Refused('its arrays are much larger than the file')
        array = value.read() if isinstance(value, (StoredArray, Tensor)) else np.asarray(value)
        state[name] = _widened(array) if array.dtype == np.uint16 else array
    _join_split(state, entries.get(SPLIT_KEY))
    if not state:
        raise WeightsError('holds no weights')
    return state


def _widened(bits):
    """bfloat16, given as its 16 bits, to float32, whose upper half it is."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _join_split(state, table):
    """Put together what paddle.save split, in protocols 2 and 3, for being over 1 GiB."""
    if table is None:
        return
    try:
        for name, entry in table.items():
            # A part that is taken is gone, so that no table can multiply it.
            parts = [state.pop(part) for part in entry['slices']]
            state[name] = np.concatenate(parts).reshape(entry['OriginShape'])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(f'its table of split weights makes no sense ({type(error).__name__})'
                      ) from error


def _parsed(text):
    """Metadata from its JSON text."""
    if type(text) is not str or len(text) > LONGEST_METADATA:
        raise WeightsError('its metadata is damaged (no text, or a very long one)')
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'its metadata is damaged ({shown(str(error))})') from error
    return metadata if isinstance(metadata, dict) else {}
