"""Catches malicious weight files that run code, take much time or memory, or get a bad message.

Each generator below yields (name, content, part of the message). A child process with limited
memory reads all files, so that a crash or executed code does not affect the test process.
"""

import copyreg
import hashlib
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from weights.container import write_checkpoint
from weights.files import read_weights

MOST_SECONDS, MOST_BYTES = 5, 2 ** 30
EXTENSION = 240    # a code of copyreg's registry, for the instructions EXT1 to EXT4

CHILD = '''
import copyreg, json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from weights.files import WeightsError, read_weights

copyreg.add_extension('os', 'system', int(sys.argv[2]))
HARM = ('os.system', 'subprocess.', 'os.exec', 'os.posix_spawn', 'os.remove', 'os.mkdir',
        'shutil.', 'socket.', 'pickle.find_class', 'exec', 'ctypes.')
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(HARM) else None)

def memory(line):
    with open('/proc/self/status') as file:
        return next(int(row.split()[1]) * 1024 for row in file if row.startswith(line))

def forget_peak():
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')

paths = sys.stdin.read().splitlines()
for path in paths[:2]:
    read_weights(path)    # valid files: imports happen here and are not measured
for path in paths[2:]:
    if path.endswith('.safetensors'):
        import safetensors
resource.setrlimit(resource.RLIMIT_DATA, (memory('VmData:') + 3 * 2 ** 30,) * 2)
for path in paths[2:]:
    del seen[:]
    print(json.dumps({'path': path}), flush=True)
    forget_peak()
    before, start, message = memory('VmRSS:'), time.process_time(), None
    try:
        read_weights(path)
    except WeightsError as error:
        message = str(error)
    print(json.dumps({'seconds': time.process_time() - start, 'message': message, 'seen': seen,
                      'bytes': memory('VmHWM:') - before}), flush=True)
'''


class Gadget:
    """Calls a function when pickle.load reads it."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.call


def text(value):
    value = value.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(value)) + value


def named(module, name):
    return b'c' + f'{module}\n{name}\n'.encode()


def program(*parts, protocol=2):
    return b'\x80' + bytes([protocol]) + b''.join(parts) + b'.'


def armed(marker):
    """Each of them creates the marker with pickle.load, as a test below checks."""
    command = f'touch {marker}'
    system, array = Gadget(os.system, command), np.zeros(2)
    call = named('os', 'system') + text(command) + b'\x85R'
    for protocol in (2, 3, 4, 5):
        yield f'reduce, protocol {protocol}', pickle.dumps(system, protocol), 'posix.system'
    yield 'nested', pickle.dumps({'a': {'b': [(system,)]}}), 'posix.system'
    yield 'as a key', pickle.dumps({system: array}), 'posix.system'
    yield 'behind good arrays', pickle.dumps({'a': array, 'b': system}), 'posix.system'
    yield 'in a shape', program(named('numpy.core.multiarray', '_reconstruct'),
                                named('numpy', 'ndarray'), call, b'\x85', text('b'), b'\x87R'
                                ), 'os.system'
    yield 'in objects', pickle.dumps({'a': np.array([system], dtype=object)}), 'type O8'
    yield 'in a state', pickle.dumps({'a': Gadget(Gadget, len, state={'y': system})}), 'Gadget'
    yield 'eval', pickle.dumps(Gadget(eval, f'open({str(marker)!r}, "w")')), 'builtins.eval'
    yield 'exec', pickle.dumps(Gadget(exec, f'open({str(marker)!r}, "w")')), 'builtins.exec'
    yield 'open', pickle.dumps({'a': Gadget(open, str(marker), 'w')}), 'io.open'
    yield 'Popen', pickle.dumps(Gadget(subprocess.call, ['touch', str(marker)])), 'subprocess'
    yield 'array to file', pickle.dumps(Gadget(np.ndarray.tofile, array, str(marker))), 'getattr'
    yield 'pickle in pickle', pickle.dumps(Gadget(pickle.loads, pickle.dumps(system))), 'loads'
    yield 'import', program(named('importlib', 'import_module'), text('os'), b'\x85R0', call
                            ), 'importlib.import_module'
    yield 'STACK_GLOBAL', program(text('os'), text('system'), b'\x93', text(command), b'\x85R',
                                  protocol=4), 'os.system'
    yield 'dotted name', program(text('shutil'), text('os.system'), b'\x93', text(command),
                                 b'\x85R', protocol=4), 'shutil.os.system'
    yield 'module of ours', program(text('weights.files'), text('os.system'), b'\x93',
                                    text(command), b'\x85R', protocol=4), 'weights.files.os.system'
    yield 'INST', program(b'(', text(command), b'ios\nsystem\n'), 'INST'
    yield 'OBJ', program(b'(', named('os', 'system'), text(command), b'o'), 'os.system'
    yield 'EXT1', program(b'\x82', bytes([EXTENSION]), text(command), b'\x85R'), 'EXT1'
    yield 'EXT2', program(b'\x83', struct.pack('<H', EXTENSION), text(command), b'\x85R'), 'EXT2'
    yield 'EXT4', program(b'\x84', struct.pack('<i', EXTENSION), text(command), b'\x85R'), 'EXT4'
    yield 'memo', program(named('os', 'system'), b'q\x050', text(command), b'q\x060',
                          b'h\x05h\x06\x85R'), 'os.system'
    yield 'protocol 0', f'cos\nsystem\n(V{command}\ntR.'.encode(), 'no format'
    yield 'first of two', pickle.dumps(system) + pickle.dumps({'a': array}), 'posix.system'


def other_instructions():
    """Instructions that must be refused, though pickle.load would not create the marker."""
    ndarray, rebuild = named('numpy', 'ndarray'), named('numpy.core.multiarray', '_reconstruct')
    ordered = named('collections', 'OrderedDict')
    yield 'NEWOBJ', program(named('io', 'FileIO'), text('x'), b'\x85\x81'), 'io.FileIO'
    yield 'NEWOBJ_EX', program(ordered, b')}\x92', protocol=4), 'NEWOBJ_EX'
    yield 'BUILD on a function', program(named('_codecs', 'encode'), b'N}', text('__defaults__'),
                                         b')s\x86b'), 'attributes of a Call'
    yield 'BUILD on a list', program(b']}', text('append'), b'Nsb'), 'attributes of a list'
    yield 'call of text', program(text('a'), b')R'), 'calls a str'
    yield 'call of ndarray', program(ndarray, b'J', struct.pack('<i', 2 ** 30), b'\x85\x85R'
                                     ), 'calls a'
    yield 'dotted ndarray', program(text('numpy'), text('ndarray.tofile'), b'\x93', protocol=4
                                    ), 'numpy.ndarray.tofile'
    yield 'globals of ours', program(text('collections'), text('OrderedDict.get.__globals__'),
                                     b'\x93', protocol=4), 'asks for collections.OrderedDict.get'
    yield 'name with an escape', program(text('\x1b[2J\n'), text('x'), b'\x93', protocol=4
                                         ), r'\x1b[2J\n'
    yield 'long name', program(text('x' * 10 ** 4), text('y'), b'\x93', protocol=4), 'xxx...'
    yield 'PERSID', program(b'Pstorage\n'), 'PERSID'
    yield 'BINPERSID', program(b'NQ'), 'outside of the file'
    yield 'NEXT_BUFFER', program(b'\x97', protocol=5), 'NEXT_BUFFER'
    yield 'POP_MARK', program(b'(NN1'), 'POP_MARK'
    yield 'structured type', program(
        named('numpy', 'dtype'), text('f4'), b'\x89\x88\x87R(K\x03', text('<'), b'N', text('a'),
        b'\x85}K\x08K\x01K\x00tb'), 'structured'
    yield 'type as a deep tuple', program(
        named('numpy', 'dtype'), b')', b'q\x00h\x00\x86' * 100, b'\x85R'), 'type tuple'
    yield 'array of pointers', program(
        b'}', text('a'), rebuild, ndarray, b'K\x00\x85', text('b'), b'\x87R(K\x01K\x01\x85',
        named('numpy', 'dtype'), text('O8'), b'\x89\x88\x87R\x89]tbs'), 'type O8'
    yield 'encoding', program(named('_codecs', 'encode'), text('a'), text('rot13'), b'\x86R'
                              ), 'encoding'


def claims():
    """Sizes larger than the file."""
    for name, code, form in [
            ('BINBYTES8', pickle.BINBYTES8, '<Q'), ('BINUNICODE8', pickle.BINUNICODE8, '<Q'),
            ('BINBYTES', pickle.BINBYTES, '<I'), ('FRAME', pickle.FRAME, '<Q')]:
        most = 2 ** (8 * struct.calcsize(form)) - 1
        yield name, program(code, struct.pack(form, most), protocol=4), f'{most}'
    yield 'BYTEARRAY8', program(b'\x96', struct.pack('<Q', 2 ** 62), protocol=5), 'BYTEARRAY8'
    yield 'LONG4', program(b'\x8b', struct.pack('<i', 2 ** 31 - 1)), 'LONG4'
    yield 'LONG1', program(b'\x8a\xff', b'\xff' * 255), 'whole number'
    yield 'number in digits', program(b'L', b'9' * 10 ** 6, b'L\n'), 'LONG'
    genuine = pickle.dumps({'a': np.zeros(3)}, protocol=2)
    assert genuine.count(b'K\x03\x85') == 1
    for name, shape in [('huge', struct.pack('<q', 2 ** 45)), ('overflow', b'\xff' * 8),
                        ('beyond 64 bits', b'\xff' * 15)]:
        yield f'{name} shape', genuine.replace(
            b'K\x03\x85', b'\x8a' + bytes([len(shape)]) + shape + b'\x85'), 'array'
    yield 'many axes', genuine.replace(b'K\x03\x85', b'(' + b'K\x01' * 1000 + b't'), 'shape'


def protocol_2_array(instructions, size):
    """{'a': an array of `size` bytes, stored as text}."""
    return program(
        b'}', text('a'), named('numpy.core.multiarray', '_reconstruct'), named('numpy', 'ndarray'),
        b'K\x00\x85', text('b'), b'\x87R(K\x01J', struct.pack('<i', size), b'\x85',
        named('numpy', 'dtype'), text('u1'), b'\x89\x88\x87R\x89', named('_codecs', 'encode'),
        instructions, text('latin1'), b'\x86Rtbs')


def structures():
    """Small files whose values are large to traverse, hash, compare or print."""
    double = b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(100))
    array = pickle.dumps(np.zeros(10 ** 6))[2 + 9:-1]
    yield 'exponential tuples', program(b'}', text('a'), b')', double, b's'), 'not an array'
    yield 'exponential tuples as a key', program(b'})', double, b'Ns'), 'key'
    yield 'exponential lists', program(b'}', text('a'), b'(]', b''.join(
        b'q' + bytes([i]) + b']h' + bytes([i]) + b'ah' + bytes([i]) + b'a' for i in range(100)),
        b'ts'), 'tuple, not an array'
    yield 'list in itself', program(b'}', text('a'), b']q\x00h\x00as'), 'list, not an array'
    yield 'dict in itself', program(b'}q\x00', text('state_dict'), b'h\x00s'), 'dict'
    yield 'deep tuples', program(b'}', text('a'), b')', b'\x85' * 400_000, b's'), 'not an array'
    yield 'deep lists', program(b']' * 200_000, b'a' * 199_999), 'holds a list'
    yield 'deep tuples as a key', program(b'})', b'\x85' * 400_000, b'Ns'), 'key'
    yield 'many marks', program(b'(' * 30_000_000), 'instructions'
    yield 'many lists', program(b']' * 30_000_000), 'instructions'
    wide = 'x' * 3 * 10 ** 7 + '\U0001f600'    # makes every character take four bytes
    yield 'wide text', protocol_2_array(text(wide), len(wide)), 'long text'
    yield 'text of other bytes', protocol_2_array(text('x' * 10 ** 5), 10 ** 6), 'has other 100000'
    yield 'text of fewer bytes', protocol_2_array(text('\xe9' * 10 ** 5), 10 ** 5 + 4
                                                  ), 'has 100000'
    yield 'many texts', program(b'](', text('x' * 2 ** 16) * 2000, b'e'), 'texts'
    yield 'colliding numbers', program(b'}(', b''.join(
        b'\x8a\x0f' + (i * (2 ** 61 - 1) << 30).to_bytes(15, 'little') + b'N'
        for i in range(1, 50_000)), b'u'), 'key'
    yield 'long equal keys', program(b'}', text('x' * 10 ** 7) + b'q\x00Ns', b'h\x00Ns' * 9), 'key'
    for size in (2 ** 16, 10 ** 7):
        yield f'one text of {size} bytes encoded often', program(
            named('_codecs', 'encode'), b'q\x00', text('x' * size), b'\x85q\x01',
            b'h\x00h\x01R' * 10_000), 'instead of named weights'
    yield 'one array named often', program(b'}', text('a'), array, b'q\xffs', b''.join(
        text(f'n{i}') + b'h\xffs' for i in range(20_000)), protocol=4), 'larger than the file'
    split = pickle.dumps({'a@@.0': np.zeros(10), 'UnpackBigParamInfor@@': {
        'a': {'OriginShape': (100,), 'slices': ['a@@.0'] * 10}}})
    yield 'one slice used often', split, 'split weights'
    yield 'split into nothing', pickle.dumps({
        'a': np.zeros(1), 'UnpackBigParamInfor@@': {'b': {'slices': 3}}}), 'split weights'
    yield 'deep metadata', pickle.dumps({'a': np.zeros(1), 'metadata@@': '[' * 10 ** 6}
                                        ), 'metadata'
    yield 'long metadata', pickle.dumps({'a': np.zeros(1), 'metadata@@': '[' + '[],' * 10 ** 7}
                                        ), 'metadata'
    yield 'stack is empty', program(b'R'), 'IndexError'
    yield 'memo is empty', program(b'h\x07'), 'KeyError'
    yield 'odd items', program(b'}(NNNu'), 'TypeError'


def tensor_call(count=4, offset=0, size=(4,), stride=(1,), kind='FloatStorage', key='0'):
    """Instructions for {'a': a tensor}."""
    def number(value):
        return b'\x8a\x0a' + value.to_bytes(10, 'little', signed=True)

    def numbers(values):
        return b'(' + b''.join(map(number, values)) + b't'

    return (b'}' + text('a') + named('torch._utils', '_rebuild_tensor_v2') + b'((' +
            text('storage') + named('torch', kind) + text(key) + text('cpu') + number(count) +
            b'tQ' + number(offset) + numbers(size) + numbers(stride) + b'\x89}tRs')


def archive(content, records=(('data/0', bytes(16)),), method=zipfile.ZIP_STORED, prefix='a/'):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as writer:
        writer.writestr(prefix + 'data.pkl', content)
        for name, data in records:
            writer.writestr(prefix + name, data)
    return file.getvalue()


def torch_files(marker):
    system = pickle.dumps(Gadget(os.system, f'touch {marker}'), 2)
    good = program(tensor_call())
    yield 'torch: gadget', archive(system), 'posix.system'
    yield 'torch: gadget in a checkpoint', archive(pickle.dumps(
        {'state_dict': {}, 'args': Gadget(eval, f'open({str(marker)!r}, "w")')}, 2)), 'eval'
    yield 'torch: load from bytes', archive(program(
        named('torch.storage', '_load_from_bytes'), text('x'), b'\x85R')), '_load_from_bytes'
    yield 'torch: untyped storage', archive(program(
        named('torch.storage', 'UntypedStorage'))), 'UntypedStorage'
    yield 'torch: hub', archive(program(named('torch.hub', 'load'), text('x'), b'\x85R')), 'hub'
    yield 'torch: script', archive(program(named('__torch__', 'Net'), b')\x81}b')), '__torch__'
    for name, options, said in [
            ('huge stride', dict(stride=(2 ** 62,)), 'shape'),
            ('stride beyond', dict(size=(2, 2), stride=(3, 1)), 'reaches to number 4'),
            ('negative stride', dict(stride=(-1,)), 'shape'),
            ('offset beyond', dict(offset=1), 'reaches to number 4'),
            ('huge offset', dict(offset=2 ** 70), 'reaches'),
            ('negative offset', dict(offset=-4), 'offset'),
            ('negative size', dict(size=(-4,)), 'shape'),
            ('expanded to terabytes', dict(size=(2 ** 40,), stride=(0,)), 'larger than the file'),
            ('expanded in all axes', dict(size=(2 ** 30,) * 16, stride=(0,) * 16), 'larger'),
            ('more sizes than strides', dict(size=(2, 2)), 'differ in length'),
            ('huge storage', dict(count=2 ** 45), 'more than any network has'),
            ('larger storage', dict(count=2 ** 20), 'has 16 bytes'),
            ('wider storage', dict(kind='DoubleStorage'), 'has 16 bytes'),
            ('missing storage', dict(key='1'), 'missing'),
            ('storage outside', dict(key='../../../../etc/passwd'), 'missing')]:
        yield f'torch: {name}', archive(program(tensor_call(**options))), said
    yield 'torch: other persistent id', archive(program(text('module'), b'Q')), 'refers to'
    yield 'torch: storage in two ways', archive(program(
        tensor_call(), tensor_call(count=2, size=(2,)))), 'two ways'
    yield 'zip: no pickle', archive(good, prefix='x'), 'data.pkl'
    yield 'zip: two pickles', archive(good, [('b/data.pkl', good)]), 'data.pkl'
    yield 'zip: bomb', archive(good, [('data/0', bytes(10 ** 8))], zipfile.ZIP_DEFLATED
                               ), 'compressed'
    yield 'zip: bomb in the pickle', archive(
        program(b']' * 10 ** 8), (), zipfile.ZIP_DEFLATED), 'compressed'
    yield 'zip: deep', archive(program(b']' * 200_000, b'a' * 199_999)), 'list'
    whole = archive(good)
    entry, end = whole.index(b'PK\1\2'), whole.index(b'PK\5\6')

    def patched(position, form, value):
        packed = struct.pack(form, value)
        return whole[:position] + packed + whole[position + len(packed):]

    yield 'zip: huge record', patched(entry + 20, '<I', 2 ** 31), 'compressed'
    yield 'zip: huge records', patched(entry + 20, '<Q', 2 ** 31 << 32 | 2 ** 31), 'overlap'
    yield 'zip: far record', patched(entry + 42, '<I', 2 ** 31), 'claims'
    yield 'zip: many records', patched(end + 10, '<H', 65534), 'records'
    yield 'zip: far directory', patched(end + 16, '<I', 2 ** 31), 'claims'
    yield 'zip: zip64 without its end', patched(end + 10, '<H', 65535), 'end record'
    locator = b'PK\6\6' + bytes(28) + struct.pack('<QQQ', 2 ** 60, 0, 2 ** 60)
    yield 'zip: 2^60 records', (whole[:end] + locator + b'PK\6\7' + struct.pack('<IQI', 0, end, 1)
                                + patched(end + 10, '<H', 65535)[end:]), 'records'
    large = archive(good, [('data/0', bytes(10 ** 5))])
    first, second = large.index(b'PK\1\2'), large.rindex(b'PK\1\2')
    yield 'zip: one record, many names', large[:first] + b''.join(
        large[second:second + 46] + b'a/%06d' % i for i in range(9000)) + struct.pack(
        '<4sHHHHIIH', b'PK\5\6', 0, 0, 9000, 9000, 0, first, 0), 'overlap'
    yield 'zip: cut short', whole[:-30], 'end of its zip archive'

    header = (pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2)
              + pickle.dumps({'little_endian': True}, 2))
    keys = pickle.dumps(['0'], 2)
    yield 'legacy: gadget', header + system, 'posix.system'
    yield 'legacy: gadget in the version', header[:15] + system, 'posix.system'
    yield 'legacy: gadget in the keys', header + good + system, 'posix.system'
    yield 'legacy: huge storage', header + program(
        tensor_call(count=2 ** 45)) + keys + struct.pack('<Q', 2 ** 45) + bytes(99), 'claims'
    yield 'legacy: other storage', header + good + pickle.dumps(['7'], 2), 'list of storages'
    yield 'legacy: no storages', header + good + pickle.dumps([], 2), 'is missing'
    yield 'legacy: cut short', header + good + keys + struct.pack('<Q', 4) + bytes(15), 'claims'
    yield 'legacy: cut shorter', header + good + keys + b'\4', 'claims'


def damaged():
    whole = pickle.dumps({'a': np.zeros(1000), 'b': np.ones(10)})
    for cut in (1, 2, 5, 12, 60, 200, 4000, len(whole) - 1):
        yield f'cut at {cut}', whole[:cut], 'damaged'
    yield 'empty', b'', 'empty'
    yield 'zeros', bytes(1000), 'no format'
    yield 'a tar', b'a.txt' + bytes(95) + b'0000644\0' * 3 + bytes(380), 'no format'
    yield 'a gzip', b'\x1f\x8b\x08' + bytes(100), 'no format'
    yield 'foreign instruction', program(b'\xff'), 'no pickle instruction'


def safetensors_files():
    def file(header, data=b'', length=None):
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack('<Q', len(header) if length is None else length) + header + data

    def tensor(start=0, end=16, shape=(4,), dtype='F32'):
        return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}

    yield 'header of 2^60 bytes', file(b'{}', length=2 ** 60), 'header'
    yield 'header beyond the file', file(b'{}', length=2 ** 20), 'header'
    yield 'long header', file({f'{i}': tensor(0, 0, (0,)) for i in range(80_000)}), 'header'
    yield 'deep header', file(b'{"a":' * 100_000), 'damaged'
    yield 'data beyond the file', file({'a': tensor(0, 2 ** 50, (2 ** 48,))}), 'damaged'
    yield 'shape beyond the data', file({'a': tensor(shape=(2 ** 40,))}, bytes(16)), 'damaged'
    yield 'shape that overflows', file({'a': tensor(shape=(2 ** 62, 4))}, bytes(16)), 'damaged'
    yield 'shared data', file({'a': tensor(), 'b': tensor()}, bytes(16)), 'damaged'
    yield 'cut short', file({'a': tensor()}, bytes(15)), 'damaged'
    yield 'unknown type', file({'a': tensor(dtype='F8_E4M3')}, bytes(16)), 'damaged'
    yield 'type of no weights', file({'a': tensor(0, 8, (4,), 'U16')}, bytes(8)), 'type U16'
    yield 'no tensors', file({}), 'no weights'


def checkpoints(marker):
    """Files with the checksum and footer of this project's own checkpoints."""
    def file(arrays=(), state=b'{}', method=zipfile.ZIP_STORED, more=()):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, 'w', method) as archive:
            for name, array in [('state.json', np.frombuffer(state, 'uint8')), *arrays]:
                with archive.open(f'{name}.npy', 'w') as member:
                    np.lib.format.write_array(member, array, allow_pickle=True)
            for name, content in more:
                archive.writestr(name, content)
        return signed(stream.getvalue())

    def signed(content):
        return content + b'T2TCKPT1' + hashlib.sha256(content).digest()

    gadget = np.array([Gadget(os.system, f'touch {marker}')], dtype=object)
    two = [('network/a', np.zeros(2))]
    yield 'gadget', file([('network/a', gadget)]), 'no checkpoint'
    yield 'gadget as a pickle', signed(pickle.dumps(gadget[0])), 'no checkpoint'
    yield 'bomb', file([('network/a', np.zeros(10 ** 8, 'uint8'))], method=zipfile.ZIP_DEFLATED
                       ), 'claims'
    header = np.lib.format.magic(1, 0) + b'\x76\0' + (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 2 ** 40).ljust(0x75) + b'\n'
    yield 'huge array', file(more=[('network/a.npy', header)]), 'claims'
    yield 'deep state', file(two, b'[' * 10 ** 6), 'no checkpoint'
    yield 'identity of another kind', file(two, b'{"identity": {"config": 3}}'), 'damaged'
    yield 'no state', signed(b'PK\5\6' + bytes(18)), 'no checkpoint'
    yield 'texts', file([('network/a', np.array([b'']))]), 'type |S1'
    yield 'no network', file([('optimizer/a', np.zeros(2))]), 'no weights'
    yield 'other checksum', file(two)[:-1] + b'?', 'damaged'
    yield 'footer alone', signed(b''), 'no checkpoint'


def sparse(folder):
    """Sparse files of several gigabytes; yields (path, part of the message)."""
    def header(number, count):
        entries = {str(i): {'dtype': 'F32', 'shape': [count],
                            'data_offsets': [i * 4 * count, (i + 1) * 4 * count]}
                   for i in range(number)}
        content = json.dumps(entries).encode()
        return struct.pack('<Q', len(content)) + content

    long_text = b'\x80\x04}' + text('a') + pickle.BINUNICODE8
    array = pickle.dumps({'a': np.zeros(1, 'uint8')}, 4)
    for name, start, size, said in [
            ('zip', b'PK\3\4', 2 ** 31, 'end of its zip'), ('zeros', b'', 2 ** 31, 'no format'),
            ('pickle', b'\x80\x04', 2 ** 31, 'instruction'),
            ('safetensors', b'\0\0\0\x60\0\0\0\0{', 2 ** 31, 'header'),
            ('20 GB', header(1, 5 * 10 ** 9), 2 * 10 ** 10, '400,000,000 numbers'),
            ('20 GB in parts', header(50, 10 ** 8), 2 * 10 ** 10, '400,000,000 numbers'),
            ('text of 8 GB', long_text + struct.pack('<Q', 2 ** 33), 2 ** 33 + 99,
             'a text of 8589934592 bytes'),
            ('texts of 8 GB', b'\x80\x04](' + (pickle.BINUNICODE8 + struct.pack('<Q', 2 ** 27)),
             2 ** 33, 'instruction')]:
        path = folder / f'sparse {name}'
        with open(path, 'wb') as file:
            file.write(start)
            file.truncate(size + (len(start) if name.startswith('20 GB') else 0))
        yield path, said
    # An array of 5 GB, then a checkpoint whose checksum would take long.
    path = folder / 'sparse array'
    at, shape = array.rindex(b'C\x01'), b'K\x01\x85'
    assert array.count(shape) == 1
    with open(path, 'wb') as file:
        file.write(array[2 + 9:at].join([b'\x80\x04', b'']).replace(
            shape, b'\x8a\x06' + (5 * 10 ** 9).to_bytes(6, 'little') + b'\x85'))
        file.write(b'\x8e' + struct.pack('<Q', 5 * 10 ** 9))
        file.seek(5 * 10 ** 9, os.SEEK_CUR)
        file.write(array[at + 3:])
    yield path, '400,000,000 numbers'
    path = folder / 'sparse checkpoint'
    with open(path, 'wb') as file:
        file.seek(2 * 10 ** 10)
        file.write(b'T2TCKPT1' + bytes(32))
    yield path, 'a checkpoint of 20000000040 bytes'


@pytest.fixture(scope='module')
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp('hostile') / 'executed'


def test_the_malicious_files_run_code_with_pickle(marker):
    copyreg.add_extension('os', 'system', EXTENSION)
    try:
        for name, content, _ in armed(marker):
            pickle.loads(content)
            assert marker.exists(), name
            marker.unlink()
    finally:
        copyreg.remove_extension('os', 'system', EXTENSION)
        copyreg.clear_extension_cache()


def test_no_malicious_file_runs_code_or_takes_much_time_or_memory(marker):
    folder = marker.parent
    files = {}    # path: part of the message
    cases = [*armed(marker), *other_instructions(), *claims(), *structures(),
             *torch_files(marker), *damaged(), *checkpoints(marker)]
    if importlib.util.find_spec('safetensors'):
        cases += [(f'{name}.safetensors', *rest) for name, *rest in safetensors_files()]
    for number, (name, content, said) in enumerate(cases):
        path = folder / f'{number} {name.replace(":", "")}'
        path.write_bytes(content)
        files[str(path)] = said
    files.update((str(path), said) for path, said in sparse(folder))
    assert len(files) >= 30
    good = [folder / 'good', folder / 'good checkpoint']
    good[0].write_bytes(archive(program(tensor_call())))
    write_checkpoint(good[1], {'network/a': np.zeros(2)}, {})

    done = subprocess.run([sys.executable, '-c', CHILD, str(ROOT / 'tools'), str(EXTENSION)],
                          input='\n'.join([*map(str, good), *files]), capture_output=True,
                          text=True, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f'{lines[-1] if lines else ""}: {done.stderr[-2000:]}'
    results = {line['path']: result for line, result in zip(lines[::2], lines[1::2])}
    assert list(results) == list(files)
    assert not marker.exists()
    wrong = {}
    for path, result in results.items():
        message = result['message']
        if not (message and message.startswith(path) and files[path] in message
                and '\n' not in message and len(message) < len(path) + 300 and not result['seen']
                and result['seconds'] < MOST_SECONDS and result['bytes'] < MOST_BYTES):
            wrong[os.path.basename(path)] = result, files[path]
    assert max(result['bytes'] for result in results.values()) > 2 ** 20, 'nothing was measured'
    assert not wrong, '\n'.join(f'{name}: {result}' for name, result in wrong.items())
    slowest = max(results.values(), key=lambda result: result['seconds'])
    print(f'{len(files)} files, the slowest {slowest["seconds"]:.2f} s, memory at most '
          f'{max(result["bytes"] for result in results.values()) / 2 ** 20:.0f} MiB')


def test_objects_other_than_tensors_are_ignored(tmp_path):
    """The attributes of an argparse.Namespace, e.g. __class__, have no effect."""
    content = program(
        b'}', text('args'), named('argparse', 'Namespace'), b')\x81}(', text('__class__'),
        named('torch', 'device'), text('__reduce__'), text('os.system'), b'ubs',
        text('model'), tensor_call(), b's')
    path = tmp_path / 'a.pth'
    path.write_bytes(archive(content))
    state, metadata = read_weights(path)
    assert state['a'].tolist() == [0] * 4
    assert metadata == {'layout': 'pytorch', 'part': 'model'}
