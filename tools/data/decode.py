"""Decode image files to RGB; an unreadable file raises an ImageError with a one-line message."""

import contextlib
import glob
import io
import os
import re
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data import DataError

# Pillow supports dozens of formats, and starts external programs for some. Files are untrusted,
# so only these formats are tried, whatever the file name.
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP')
LARGEST_FILE = 1 << 28    # bytes; ImageNet's largest file has 15 MB
# Decoding a scan of a JPEG visits every pixel, and a scan may have only 60 bytes: a file of a few
# megabytes can take an hour. A progressive photograph has about ten scans.
MOST_SCANS = 100
START_OF_SCAN = re.compile(rb'\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)')


class ImageError(DataError):
    """An image file cannot be read. The message names the file and the reason."""


def printable(text):
    """Escape the unprintable characters of a file name: control characters, broken UTF-8."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def name_bad_images(messages, most=20):
    """Join the messages of ImageErrors into one line; at most `most` of them are listed."""
    more = f'; and {len(messages) - most} more' if len(messages) > most else ''
    return '; '.join(messages[:most]) + more


def decode_image(path, root=None):
    """Read an image file as RGB.

    EXIF rotation is ignored and transparency dropped, as in torchvision's loader, which the
    published weights were trained and measured with.

    Args:
        path: the file. Its format is detected from its content, not from its name.
        root: see read_image_file.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: if the file is missing, empty, truncated, not an image, not a regular file,
            too large, or a decompression bomb by Pillow's limit on pixels.
    """
    return decode_bytes(read_image_file(path, root), path)


def read_image_file(path, root=None):
    """Read the bytes of an image file.

    Args:
        path: the file.
        root: if given, a path outside of this folder, such as one with '..', is refused.
            Symbolic links are followed: they are set by the owner of the folder, not by the author
            of a list, and ImageNet is often a folder of links.

    Raises:
        ImageError: if the file is missing, not a regular file or too large.
    """
    with _open(path, root) as file:
        return file.readall()


def request_image_file(path, root=None):
    """Let the system read an image file in the background, where it can (Linux).

    Args:
        path, root: as for read_image_file, which will raise what is wrong.
    """
    with contextlib.suppress(Exception), _open(path, root) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _open(path, root):
    """Open an image file; raise ImageError as read_image_file does."""
    if root is not None and _leads_out(path, root):
        raise ImageError(f"{path}: leads out of {root}; write it relative to that folder, without "
                         "'..'")
    try:
        # stat before open, which would block on a named pipe or activate a device.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f'{path}: cannot be read (not a regular file)')
        if status.st_size > LARGEST_FILE:
            raise ImageError(f'{path}: too large an image file ({status.st_size} bytes)')
        with open(path, 'rb', buffering=0) as file:
            yield file
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror})') from error


def decode_bytes(data, name, most_pixels=None):
    """Decode the bytes of an image file, for example an upload, as decode_image does.

    Args:
        data: the bytes of the file.
        name: the image's name in messages.
        most_pixels: if given, an image with more pixels in its header is refused.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: as decode_image does.
    """
    if not data:
        raise ImageError(f'{name}: the file is empty')
    # A damaged file makes Pillow raise any of a dozen kinds of exception.
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if most_pixels is not None and image.width * image.height > most_pixels:
            raise ValueError(f'{image.width} x {image.height} pixels, at most {most_pixels} '
                             'altogether')
        if image.format == 'JPEG' and len(START_OF_SCAN.findall(data)) > MOST_SCANS:
            raise ValueError(f'more than {MOST_SCANS} scans')
        return _to_rgb(image)
    except UnidentifiedImageError as error:
        known = ', '.join(IMAGE_FORMATS)
        raise ImageError(f'{name}: not an image of a known format ({known})') from error
    except Exception as error:
        raise ImageError(f'{name}: damaged or too large an image ({error})') from error


def _leads_out(path, root):
    prefix = os.path.join(root, '')
    listed = path[len(prefix):].replace('\\', '/')
    return not path.startswith(prefix) or '..' in listed.split('/')


def _to_rgb(image):
    """Convert a PIL image of any mode to RGB; transparency is dropped."""
    if image.mode.startswith('I'):
        # 16-bit grey: convert would clip at 255. Of 16-bit colour Pillow keeps the high byte.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    image.info.pop('transparency', None)    # convert would warn about it for a palette
    return image if image.mode == 'RGB' else image.convert('RGB')    # convert would copy


def image_files(names):
    """Expand files, folders (recursively) and globs to a list of paths, in the given order."""
    found = []
    for name in names:
        path = Path(name)
        if os.path.isdir(name):
            found += sorted(str(file) for file in path.rglob('*')
                            if file.suffix.lower() in IMAGE_EXTENSIONS and file.is_file())
        elif os.path.exists(name):
            found.append(name)
        else:
            # A name that matches nothing is kept; reading it reports the error.
            found += sorted(glob.glob(name, recursive=True)) or [name]
    return found
