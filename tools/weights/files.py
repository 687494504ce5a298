"""Read and write weight files, including untrusted ones.

Reads .pdparams and .pdopt (pickles of paddle.save), .pth and .pth.tar (PyTorch's zip archives and
the format before them), .safetensors and this project's checkpoints; the format is detected by
content. paddle.load, torch.load and pickle.load may run code from such a file; weights/unpickle.py
can't.

Writes .pdparams, .safetensors and .pth. The first two also hold metadata as a JSON text, e.g. class
names and the network's name, under a key that Paddle's loader ignores.
"""

import json
import mmap
import os
import pickle
from pathlib import Path

import numpy as np

from weights import folder
from weights.container import FOOTER, CheckpointError, read_checkpoint
from weights.torch_file import (
    LEGACY_MAGIC,
    STORAGE_TYPES,
    Tensor,
    read_legacy,
    read_zip,
    write_zip,
)
from weights.unpickle import (
    MOST_NUMBERS,
    Damaged,
    LongText,
    Refused,
    StoredArray,
    shown,
    unpickle,
)
from weights.writer import replacing

METADATA_KEY = 'metadata@@'
NAME_TABLE_KEY = 'StructuredToParameterName@@'
SPLIT_KEY = 'UnpackBigParamInfor@@'
LONGEST_METADATA = 4_000_000     # bytes
LONGEST_HEADER = 4_000_000       # bytes of the header of a .safetensors file
LARGEST_CHECKPOINT = 4 * 4 * MOST_NUMBERS    # bytes: float32 weights, EMA and two moments
# bfloat16 is represented as uint16, as in Paddle's files; weights are never unsigned integers.
SAFETENSORS_TYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': '<u2', 'I64': '<i8',
                     'I32': '<i4', 'I16': '<i2', 'I8': 'i1', 'U8': 'u1', 'BOOL': '?'}
# Names of averaged and of raw weights in training checkpoints, in order of preference.
PARTS = {'ema': ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema'),
         'raw': ('state_dict', 'model_state_dict', 'model', 'network', 'net', 'weights')}
OF_CHECKPOINT = {'ema': 'ema', 'raw': 'network'}    # in this project's own checkpoints
MOST_WRAPPINGS = 3    # nested dicts, as in {'model': {'state_dict': ...}}
# Prefixes that wrappers add to every name: DataParallel, torch.compile, Lightning and others.
PREFIXES = ('module.', '_orig_mod.', 'model.', 'net.', 'network.')


class WeightsError(ValueError):
    """A weights file that can't be used: one line naming the file and what to do."""

    exit_code = 2


def read_weights(path, part=None, widen=True):
    """Read a weights file or a training checkpoint without running its code.

    Args:
        path: a file, or a folder with model.safetensors and config.json (weights.folder).
        part: 'ema' or 'raw' weights of a training checkpoint; None: 'ema' if it has them.
        widen: convert bfloat16 to float32; if False, bfloat16 is returned as uint16 bits.

    Returns:
        (state, metadata). State is {parameter name: ndarray}; names and shapes are the file's, but
        without PREFIXES that all names share. Metadata is that given to `write_weights`, and if
        known: `layout`, 'pytorch' for PyTorch's files (a Linear's weight is `[out, in]`, not
        `[in, out]`); `part`, the name of the weights in the checkpoint; `arch`, its name of the
        network; `LR_Scheduler` of a .pdopt file.

    Raises:
        WeightsError: for a missing, damaged, unknown or malicious file, for one without the part,
            or with more than MOST_NUMBERS numbers, which no network of the zoo has.
    """
    path = Path(path)
    if folder.is_weights_folder(path):
        try:
            about = folder.read_config(path)
        except (OSError, ValueError) as error:
            raise WeightsError(f'{path / folder.CONFIG}: cannot be read: {shown(str(error), 200)}'
                               ) from error
        state, metadata = read_weights(folder.weights_in(path), part, widen)
        return state, {**about, **metadata}
    if not os.path.isfile(path):
        raise WeightsError(f'{path}: no such weights file')
    try:
        content = _mapped(path)
        if content[-len(FOOTER) - 32:-32] == FOOTER:
            if len(content) > LARGEST_CHECKPOINT:
                raise Refused(f'it is a checkpoint of {len(content)} bytes, more than any network '
                              'needs')
            entries, metadata = _read_checkpoint(path, part)
        elif content[8:9] == b'{' and (content[:1] != b'\x80' or content[2:8] == bytes(6)):
            entries, metadata = _read_safetensors(path, content)
        elif content[:4] in (b'PK\3\4', b'PK\5\6'):
            entries, metadata = _entries_of(read_zip(content), {'layout': 'pytorch'}, part)
        elif content[:1] == b'\x80':
            value, position = unpickle(content)
            if value == LEGACY_MAGIC:
                entries, metadata = _entries_of(read_legacy(content, position),
                                                {'layout': 'pytorch'}, part)
            else:
                entries, metadata = _entries_of(value, {}, part)
        else:
            raise Damaged('it begins like no format of weights')
        if part == 'ema' and metadata.get('part') not in PARTS['ema']:
            raise WeightsError(f'has no averaged weights ({", ".join(PARTS["ema"])})')
        state = _state_of(entries, 4 * len(content) + 2 ** 26)
        return widened(state) if widen else state, metadata
    except OSError as error:
        raise WeightsError(f'{path}: cannot be read: {error.strerror}') from error
    except Refused as error:
        raise WeightsError(f'{path}: refused, {error}; a weights file holds arrays only') from error
    except MemoryError as error:
        raise WeightsError(f'{path}: needs more memory than there is') from error
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from error
    except Damaged as error:
        raise WeightsError(f'{path}: is damaged or no weights file ({error})') from error
    except Exception as error:    # a damaged file can cause nearly any error
        raise WeightsError(f'{path}: is damaged or no weights file '
                           f'({type(error).__name__}: {shown(str(error))})') from error


def widened(state):
    """Convert bfloat16, given as uint16 bits, to float32: its bits are float32's upper half."""
    return {name: (array.astype(np.uint32) << 16).view(np.float32)
            if array.dtype == np.uint16 else array for name, array in state.items()}


def write_weights(path, state, metadata, ending='.pdparams', check=None):
    """Write a weights file atomically.

    Args:
        path: the file; an existing one is replaced in a single step.
        state: {parameter name: tensor or ndarray}; uint16 arrays hold the bits of bfloat16.
        metadata: a dict that JSON can represent. A .pth file has none: torch takes every entry for
            a parameter.
        ending: the format, one of WRITERS.
        check: called with the path of the complete temporary file; if it raises, nothing is
            written.

    Raises:
        WeightsError: for values of a type that the format doesn't support.
        OSError: see weights.writer.
    """
    write, types = WRITERS[ending]
    state = {name: np.asarray(value) for name, value in state.items()}
    for name, array in state.items():
        if types and array.dtype.newbyteorder('<') not in map(np.dtype, types):
            raise WeightsError(f'{path}: {name} holds values of type {array.dtype}, for which a '
                               f'{ending} file has no place')
    with replacing(path) as temporary:
        with open(temporary, 'wb') as file:
            write(file, state, metadata)
        if check:
            check(temporary)


def _write_pdparams(file, state, metadata):
    pickle.dump({**state, NAME_TABLE_KEY: {name: name for name in state},
                 METADATA_KEY: json.dumps(metadata)}, file, protocol=4)


def _write_safetensors(file, state, metadata):
    """Eight bytes of header length, a JSON header, the arrays' bytes, largest item size first."""
    types = {np.dtype(code): name for name, code in SAFETENSORS_TYPES.items()}
    # The only hint at the layout that other programs know: 'pt' for PyTorch, 'pd' for Paddle.
    framework = 'pt' if metadata.get('layout') == 'pytorch' else 'pd'
    header = {'__metadata__': {'format': framework, METADATA_KEY: json.dumps(metadata)}}
    names, position = sorted(state, key=lambda name: -state[name].itemsize), 0
    for name in names:
        array = state[name]
        header[name] = {'dtype': types[array.dtype.newbyteorder('<')], 'shape': list(array.shape),
                        'data_offsets': [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in names:
        file.write(state[name].astype(state[name].dtype.newbyteorder('<')).tobytes())


# ending: (writer, supported data types; (): all).
WRITERS = {'.pdparams': (_write_pdparams, ()),
           '.safetensors': (_write_safetensors, tuple(SAFETENSORS_TYPES.values())),
           '.pth': (lambda file, state, _: write_zip(file, state), tuple(STORAGE_TYPES.values()))}


def _mapped(path):
    """The file's content as a memory map: only the parts that are used are read."""
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
        with safetensors.safe_open(path, 'np') as file:    # checks the header against the file
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise Damaged(shown(str(error), 200)) from error
    # The library would copy the whole file, and can't convert bfloat16 to NumPy.
    header, data = json.loads(bytes(content[8:8 + length])), content[8 + length:]
    state = {}
    for name, tensor in header.items():
        if name == '__metadata__':
            continue
        if tensor['dtype'] not in SAFETENSORS_TYPES:
            raise Refused(f'{shown(name)} holds values of type {tensor["dtype"]}')
        state[name] = np.ndarray(tensor['shape'], SAFETENSORS_TYPES[tensor['dtype']],
                                 data[slice(*tensor['data_offsets'])])
    layout = {'layout': 'pytorch'} if metadata.get('format') == 'pt' else {}
    return _without_prefixes(state), {**_parsed(metadata.get(METADATA_KEY, '{}')), **layout}


def _read_checkpoint(path, part):
    """(entries, metadata) of a checkpoint of this project, by default its EMA if it has one."""
    arrays, state = read_checkpoint(path)
    identity = state.get('identity')
    model = identity['config']['MODEL'] if isinstance(identity, dict) else {}
    for prefix in [OF_CHECKPOINT[part]] if part else OF_CHECKPOINT.values():
        entries = {name[len(prefix) + 1:]: array for name, array in arrays.items()
                   if name.startswith(f'{prefix}/')}
        if entries:
            return entries, {'part': prefix, 'model': model.get('NAME'),
                             'image_size': model.get('IMAGE_SIZE'),
                             'norm_epsilon': model.get('NORM_EPSILON')}
    return {}, {}


def _entries_of(content, metadata, part):
    """(entries, metadata) of an unpickled file."""
    if not isinstance(content, dict):
        raise WeightsError(f'holds a {type(content).__name__} instead of named weights')
    metadata = {**_parsed(content.get(METADATA_KEY, '{}')), **metadata}
    if type(content.get('arch')) is str:
        metadata['arch'] = content['arch']
    for _ in range(MOST_WRAPPINGS):
        known = PARTS[part] if part and 'part' not in metadata else PARTS['ema'] + PARTS['raw']
        name = next((name for name in known
                     if isinstance(content.get(name), dict) and content[name]), None)
        if name is None:
            break
        metadata.setdefault('part', name)
        content = content[name]
    # Paddle's optimizer files also hold a dict of numbers and a dict of arrays.
    content = dict(content)
    if isinstance(content.get('LR_Scheduler'), dict):
        metadata['LR_Scheduler'] = {name: value
                                    for name, value in content.pop('LR_Scheduler').items()
                                    if type(value) in (int, float, bool)}
    if isinstance(content.get('master_weights'), dict):
        content.update((f'master_weights.{name}', value)
                       for name, value in content.pop('master_weights').items())
    return _without_prefixes(content), metadata


def _without_prefixes(entries):
    """Entries without the PREFIXES that all names share."""
    while entries:
        prefix = next((prefix for prefix in PREFIXES if all(
            isinstance(name, str) and name.startswith(prefix) for name in entries)), None)
        if prefix is None:
            break
        entries = {name[len(prefix):]: value for name, value in entries.items()}
    return entries


def _state_of(entries, most_bytes):
    """{name: ndarray}; `most_bytes` limits files that repeat one stored array under many names."""
    values = {}
    for name, value in entries.items():
        if not isinstance(name, str):
            raise WeightsError(f'holds a key that is no name: {shown(str(name))}')
        if name.endswith('@@'):
            continue
        if isinstance(value, tuple) and len(value) == 2:    # (automatic name, array)
            value = value[1]
        if not isinstance(value, (StoredArray, Tensor, np.ndarray, np.generic)):
            raise WeightsError(f'{shown(name)} is a {type(value).__name__}, not an array')
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in 'fiub':
            raise Refused(f'{shown(name)} holds values of type {value.dtype}')
        values[name] = value
    # All sizes are checked before the first array is read.
    if sum(value.nbytes for value in values.values()) > most_bytes:
        raise Refused('its arrays are much larger than the file')
    if sum(value.size for value in values.values()) > MOST_NUMBERS:
        raise Refused(f'its arrays have more than {MOST_NUMBERS:,} numbers, and no network here '
                      'needs as many')
    state = {name: value.read() if isinstance(value, (StoredArray, Tensor))
             else np.require(value, requirements=['C', 'W']) for name, value in values.items()}
    _join_split(state, entries.get(SPLIT_KEY))
    if not state:
        raise WeightsError('holds no weights')
    return state


def _join_split(state, table):
    """Join arrays over 1 GiB, which paddle.save splits in protocols 2 and 3; changes `state`."""
    if table is None:
        return
    try:
        for name, entry in table.items():
            # Each part is used once: a table must not multiply arrays.
            parts = [state.pop(part) for part in entry['slices']]
            state[name] = np.concatenate(parts).reshape(entry['OriginShape'])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Damaged(f'its table of split weights is invalid ({type(error).__name__})'
                      ) from error


def _parsed(text):
    """Metadata from a JSON text."""
    if isinstance(text, LongText) and len(text.data) <= LONGEST_METADATA:
        text = str(text.data, 'utf-8', 'replace')
    if type(text) is not str or len(text) > LONGEST_METADATA:
        raise WeightsError('its metadata is damaged (no text, or a very long one)')
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'its metadata is damaged ({shown(str(error))})') from error
    return metadata if isinstance(metadata, dict) else {}
