"""Random mutations for fuzzing: bytes, trees, pickles, zip archives, images, lines.

Each function takes a NumPy generator and valid content, and returns changed content. Changes keep
the structure of the format (instructions of a pickle, records of an archive, checksums of a PNG),
so that they reach the code after the first checks.
"""

import copy
import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
import zlib

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 1000, 2 ** 15, 2 ** 16 - 1, 2 ** 16,
           2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53, 2 ** 62, 2 ** 63 - 1, 2 ** 63,
           2 ** 64 - 1, -2 ** 31, -2 ** 63, 10 ** 30]
TEXTS = ['', ' ', '\0', '\n', 'a', 'A' * 300, 'b' * 70_000, 'ä€𝄞', '\udc80', '\x1b[2J', '..', '/',
         '../../../etc/passwd', '/dev/zero', 'nan', 'inf', '-inf', '1e999', '-0', 'true', 'null',
         '~', '{}', '[]', 'None', '__class__', '__reduce__', 'os', 'system', 'model', 'state_dict',
         'ema', 'args', 'module.', 'head.weight', 'head.bias', 'pos_embed', 'metadata@@', 'c1_0',
         'StructuredToParameterName@@', 'UnpackBigParamInfor@@', 'LR_Scheduler', 'master_weights',
         'pytorch', 'image_size', 'class_names', 'f4', 'O8', '<f4', '|u1', 'bfloat16', 'F32', 'I64']
OTHERS = [None, True, False, 0.5, -1.5, 1e308, float('inf'), float('nan'), [], {}, [[]], [0, 1, 2],
          {'': None}, [None], ['a', 1], {'a': {'b': {'c': []}}}]


def pick(rng, items):
    """A random item."""
    return items[int(rng.integers(len(items)))]


def number(rng):
    """A whole number: a boundary value, one near it, or any."""
    kind = rng.integers(3)
    if kind < 2:
        return pick(rng, NUMBERS) + int(rng.integers(-2, 3)) * int(kind)
    return int(rng.integers(2 ** 63)) >> int(rng.integers(63))


def scalar(rng):
    """A random number, text or other value."""
    return pick(rng, [number(rng), pick(rng, TEXTS), copy.deepcopy(pick(rng, OTHERS))])


def times(rng):
    """The number of changes: mostly one, rarely many."""
    return min(int(rng.geometric(0.65)), 12)


# ---- bytes

def change_bytes(rng, data, start=0, end=None):
    """Change bytes at a few places between start and end."""
    data = bytearray(data)
    for _ in range(times(rng)):
        low, high = min(start, len(data)), len(data) if end is None else min(end, len(data))
        a, b = sorted(rng.integers(low, max(low, high) + 1, 2).tolist())
        kind = rng.integers(9)
        if kind == 0 and a < len(data):
            data[a] ^= 1 << int(rng.integers(8))
        elif kind == 1 and a < len(data):
            data[a] = int(rng.integers(256))
        elif kind == 2:
            width, order = pick(rng, [1, 2, 4, 8]), pick(rng, ['little', 'big'])
            data[a:a + width] = (number(rng) % 256 ** width).to_bytes(width, order)
        elif kind == 3:
            del data[a:]
        elif kind == 4:
            del data[a:min(b, a + 64)]
        elif kind == 5:
            data[a:a] = data[a:min(b, a + 4096)]
        elif kind == 6:
            data[a:a] = rng.bytes(int(rng.integers(1, 40)))
        elif kind == 7:
            data[a:b] = bytes(b - a)
        else:
            data[a:a] = pick(rng, TEXTS).encode('utf-8', 'surrogatepass')
    return bytes(data)


# ---- trees (JSON, YAML)

def change_tree(rng, tree):
    """Change a nested structure of dicts, lists and scalars at a few places."""
    holder = [copy.deepcopy(tree)]
    for _ in range(times(rng)):
        places = [(holder, 0)]
        for container, key in places:    # grows during iteration
            value = container[key]
            if isinstance(value, dict):
                places += [(value, name) for name in value]
            elif isinstance(value, list):
                places += [(value, index) for index in range(len(value))]
        container, key = pick(rng, places)
        value, kind = container[key], rng.integers(8)
        if kind == 0 and container is not holder:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[pick(rng, TEXTS)] = container.pop(key)
        elif kind == 2:
            container[key] = pick(rng, [[value], {'a': value}, [value] * 3, str(value)])
        elif kind == 3 and isinstance(value, (int, float)):
            container[key] = pick(rng, [-value, value + 1, value * 2, float(value), str(value)])
        elif kind == 4 and isinstance(value, list) and value:
            value.insert(int(rng.integers(len(value) + 1)), copy.deepcopy(pick(rng, value)))
        elif kind == 5 and isinstance(value, dict) and value:
            value[pick(rng, TEXTS)] = copy.deepcopy(pick(rng, list(value.values())))
        else:
            container[key] = scalar(rng)
    return holder[0]


def change_json(rng, data):
    """Change a JSON text: mostly its tree, else its bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    tree = change_tree(rng, json.loads(data))
    try:
        return json.dumps(tree).encode('utf-8', 'surrogatepass')
    except ValueError:
        return change_bytes(rng, data)


# ---- pickles

def text_part(value):
    value = value.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + struct.pack('<I', len(value)) + value


def number_part(value):
    if -2 ** 31 <= value < 2 ** 31:
        return pickle.BININT + struct.pack('<i', value)
    return pickle.LONG1 + bytes([16]) + value.to_bytes(16, 'little', signed=True)


GLOBALS = ['os system', 'builtins eval', 'builtins bytearray', 'numpy ndarray', 'numpy dtype',
           'collections OrderedDict', 'collections defaultdict', 'builtins set', 'builtins list',
           'numpy.core.multiarray _reconstruct', 'numpy._core.multiarray scalar', '_codecs encode',
           'torch._utils _rebuild_tensor_v2', 'torch FloatStorage', 'torch BFloat16Storage',
           'torch._utils _rebuild_parameter', 'argparse Namespace', 'pathlib PosixPath',
           'torch Size', 'torch device']
POOL = [bytes([code.code.encode('latin1')[0]]) for code in pickletools.opcodes]
POOL += [b'c' + name.replace(' ', '\n').encode() + b'\n' for name in GLOBALS]
POOL += [b'h\0', b'q\0', b'j\0\0\0\0', b'K\0', b'K\1', b'\x8a\x01\xff', b'G' + bytes(8), b']', b'}']


def parts_of(data):
    """(instructions of the pickle at the start of data, rest of data)."""
    starts, end = [], 0
    for code, _, position in pickletools.genops(data):
        starts.append(position)
        end = position + 1 if code.name == 'STOP' else end
    return [data[a:b] for a, b in zip(starts, starts[1:] + [end])], data[end:]


def change_pickle(rng, data, most_part=4096):
    """Change a few instructions of a pickle; data after the pickle is kept."""
    try:
        parts, rest = parts_of(data)
    except Exception:    # not a valid pickle
        return change_bytes(rng, data)
    for _ in range(times(rng)):
        a, b = (int(rng.integers(len(parts))) for _ in range(2)) if parts else (0, 0)
        kind = rng.integers(8)
        new = pick(rng, [pick(rng, POOL), text_part(pick(rng, TEXTS)), number_part(number(rng)),
                         pick(rng, parts or POOL)])
        if kind == 0:
            parts[a:a + 1] = []
        elif kind == 1:
            parts[a:a] = parts[b:b + int(rng.integers(1, 20))]
        elif kind == 2 and parts:
            parts[a], parts[b] = parts[b], parts[a]
        elif kind == 3:
            parts[a:a] = [new]
        elif kind == 4 and parts and len(parts[a]) < most_part:
            parts[a] = change_bytes(rng, parts[a])
        elif kind == 5:
            parts[a:a] = [new] * min(pick(rng, [2, 10, 1000, 20_000]), 10 ** 6 // len(new) + 1)
        else:    # replace an instruction by one of the same kind
            alike = [i for i, part in enumerate(parts) if part[:1] in b'XKJM\x8a\x8cc']
            where = pick(rng, alike) if alike else a
            if parts and parts[where][:1] in b'KJM\x8a':
                parts[where] = number_part(number(rng))
            elif parts and parts[where][:1] == b'c':
                parts[where] = pick(rng, [p for p in POOL if p[:1] == b'c' and len(p) > 1])
            elif parts:
                parts[where] = text_part(pick(rng, TEXTS))
    return b''.join(parts) + rest


# ---- archives

def records_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(records, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', method) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content, method)    # without the time
    return stream.getvalue()


def change_zip(rng, data, change):
    """Change records of an archive by `change(rng, name, content)`, or its directory."""
    records = records_of(data)
    for _ in range(times(rng)):
        if not records:
            break
        a, kind = int(rng.integers(len(records))), rng.integers(10)
        name, content = records[a]
        if kind == 0:
            del records[a]
        elif kind == 1:
            records.insert(a, pick(rng, records))
        elif kind == 2:
            records[a] = pick(rng, [name + 'x', '../' + name, name.rpartition('/')[2], 'data.pkl',
                                    name.replace('0', '1'), 'x' * 1000]), content
        elif kind == 3:
            records[a] = name, pick(rng, records)[1]
        else:
            records[a] = name, change(rng, name, content)
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    data = zipped(records, method)
    if rng.random() < 0.3:
        data = change_bytes(rng, data, start=max(0, data.find(b'PK\1\2')))
    return data


def change_npy(rng, data):
    """Change the header or the bytes of an .npy file."""
    size = int.from_bytes(data[8:10], 'little')
    if rng.random() < 0.3 or data[:6] != b'\x93NUMPY':
        return change_bytes(rng, data)
    header, rest = data[10:10 + size].decode('latin1'), data[10 + size:]
    old, new = pick(rng, [
        (r"'descr': [^,]*", f"'descr': {scalar(rng)!r}"),
        (r"'shape': \([^)]*\)", f"'shape': {pick(rng, [(number(rng),), scalar(rng), (2, 3)])!r}"),
        (r"'fortran_order': \w+", f"'fortran_order': {scalar(rng)!r}"), (r'}', ''),
        (r'{', '{' * pick(rng, [2, 100, 5000])), (r"'descr'", repr(pick(rng, TEXTS)))])
    header = re.sub(old, lambda _: new, header, count=1).encode('utf-8', 'surrogatepass')[:65535]
    return data[:8] + len(header).to_bytes(2, 'little') + header + rest


# ---- images

def change_png(rng, data):
    """Change chunks of a PNG; the checksums are valid."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        length, = struct.unpack('>I', data[position:position + 4])
        chunks.append((data[position + 4:position + 8], data[position + 8:position + 8 + length]))
        position += 12 + length
    for _ in range(times(rng)):
        a, kind = int(rng.integers(len(chunks))), rng.integers(6)
        name, content = chunks[a]
        if kind == 0 and len(chunks) > 1:
            del chunks[a]
        elif kind == 1:
            chunks.insert(int(rng.integers(len(chunks))), (name, content))
        elif kind == 2:
            chunks.insert(a, (pick(rng, [b'iCCP', b'zTXt', b'iTXt', b'tRNS', b'PLTE', b'acTL',
                                         b'fcTL', b'eXIf', b'gAMA', b'IDAT', b'IEND']),
                              pick(rng, [content, rng.bytes(20), b'a\0\0' + zlib.compress(
                                  bytes(pick(rng, [10, 10 ** 6, 3 * 10 ** 7])))])))
        elif kind == 3 and name == b'IDAT':
            chunks[a] = name, zlib.compress(bytes(pick(rng, [0, 1, 10 ** 5, 10 ** 7])))
        else:
            chunks[a] = name, change_bytes(rng, content)
    return data[:8] + b''.join(
        struct.pack('>I', len(content)) + name + content
        + struct.pack('>I', zlib.crc32(name + content)) for name, content in chunks)


def change_jpeg(rng, data):
    """Change segments of a JPEG: sizes, tables, scans."""
    segments, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xff and data[position + 1] != 0xda:
        length = int.from_bytes(data[position + 2:position + 4], 'big')
        segments.append(data[position:position + 2 + length])
        position += 2 + length
    scan = data[position:]
    for _ in range(times(rng)):
        a, kind = int(rng.integers(len(segments))), rng.integers(6)
        if kind == 0:
            segments.insert(a, pick(rng, segments))
        elif kind == 1 and len(segments) > 1:
            del segments[a]
        elif kind == 2:
            frames = [i for i, s in enumerate(segments) if s[1] in (0xc0, 0xc1, 0xc2)]
            if frames:
                frame = bytearray(segments[pick(rng, frames)])
                frame[5:9] = rng.bytes(4)    # height, width
                segments[frames[0]] = bytes(frame)
        elif kind == 3:
            segments[a] = change_bytes(rng, segments[a], start=4)
        elif kind == 4:
            scan = change_bytes(rng, scan)
        else:
            body = rng.bytes(int(rng.integers(60)))
            segments.insert(a, b'\xff' + bytes([int(rng.integers(0xc0, 0xff))])
                            + struct.pack('>H', len(body) + 2) + body)
    return data[:2] + b''.join(segments) + scan


def change_image(rng, data):
    """Change an image file of any format."""
    if rng.random() < 0.6:
        if data[:8] == b'\x89PNG\r\n\x1a\n':
            return change_png(rng, data)
        if data[:2] == b'\xff\xd8':
            return change_jpeg(rng, data)
        return change_bytes(rng, data, end=200)    # headers
    return change_bytes(rng, data)


# ---- lines of text

def change_lines(rng, text, values):
    """Change lines of a text, or replace the part after a colon or a space by one of `values`."""
    lines = text.split('\n')
    for _ in range(times(rng)):
        a, kind = int(rng.integers(len(lines))), rng.integers(8)
        line = lines[a]
        if kind == 0 and len(lines) > 1:
            del lines[a]
        elif kind == 1:
            lines.insert(int(rng.integers(len(lines))), line)
        elif kind == 2:
            lines[a] = pick(rng, ['    ', '  ', '\t', '- ', '? ', '# ', '']) + line.strip()
        elif kind == 3:
            lines.insert(a, pick(rng, values))
        elif kind == 4:
            lines[a] = change_bytes(rng, line.encode('utf-8', 'surrogatepass')).decode(
                'utf-8', 'surrogateescape')
        else:
            head, mark, _ = line.partition(pick(rng, [':', ' ']))
            lines[a] = head + mark + ' ' + pick(rng, values)
    return '\n'.join(lines)
