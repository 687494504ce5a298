"""Image files to pixels: an image of any common kind as RGB, or one line on why not."""

import glob
import io
import os
import re
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data import DataError

# Pillow knows dozens of formats, and for some it starts other programs. Files may come from
# strangers, so only these are tried, whatever the name says.
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP')
LARGEST_FILE = 1 << 28    # bytes; ImageNet's largest file has 15 MB
# Each scan of a JPEG passes over all its pixels and may be 60 bytes long, so that a file of a few
# megabytes can take an hour. A progressive photograph has ten.
MOST_SCANS = 100
START_OF_SCAN = re.compile(rb'\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)')


class ImageError(DataError):
    """One image file cannot be read. The message names it and says why."""


def printable(text):
    """Escape what a file's name can do to a terminal or a log: control characters, broken UTF-8."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def name_bad_images(messages, most=20):
    """List the messages of ImageErrors in one line, the first `most` of them."""
    more = f'; and {len(messages) - most} more' if len(messages) > most else ''
    return '; '.join(messages[:most]) + more


def decode_image(path, decoder='pillow', root=None):
    """Read an image file of any common kind as RGB.

    Both decoders give the same pixels: OpenCV reads ordinary JPEGs, Pillow everything else.
    EXIF rotation is ignored and transparency dropped, as by torchvision's loader, with which the
    published weights were trained and measured.

    Args:
        path: the file. Its content decides the format, not its name.
        decoder: 'pillow' or 'opencv'.
        root: if given, a path that is written so that it leads out of this folder is refused.
            Symbolic links are followed: the folder's owner has set them, not the author of a
            list, and ImageNet is often a folder of them.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: if the file is missing, empty, cut off, not an image, no regular file, or
            would be so large once decoded that Pillow takes it for an attack.
        DataError: if there is no such decoder.
    """
    import_opencv(decoder)
    if root is not None and _leads_out(path, root):
        raise ImageError(f"{path}: leads out of {root}; write it relative to that folder, without "
                         "'..'")
    try:
        # Looked at before it is opened: a named pipe would be waited for, a device set to work.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f'{path}: cannot be read (not a regular file)')
        if status.st_size > LARGEST_FILE:
            raise ImageError(f'{path}: too large an image file ({status.st_size} bytes)')
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror})') from error
    return decode_bytes(data, path, decoder)


def decode_bytes(data, name, decoder='pillow', most_pixels=None):
    """Read an image that is in memory already, an upload for one, as decode_image reads a file.

    Args:
        data: the bytes of the file.
        name: what messages call it.
        decoder: 'pillow' or 'opencv'.
        most_pixels: if given, an image whose header claims more than that is not decoded.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError, DataError: as decode_image does.
    """
    opencv = import_opencv(decoder)
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
        if opencv and image.format == 'JPEG' and image.mode in ('L', 'RGB'):
            return _decode_jpeg(data, opencv) or _to_rgb(image)
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
    """Convert a PIL image of any mode to RGB; what was transparent shows its hidden colour."""
    if image.mode.startswith('I'):
        # 16-bit grey: convert would clip at 255. Of 16-bit colour Pillow keeps the high byte.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    image.info.pop('transparency', None)    # of a palette; convert would warn of it
    return image.convert('RGB')


def _decode_jpeg(data, opencv):
    """Decode a grey or RGB JPEG, or return None to leave a doubtful one to Pillow."""
    # Of a file that is cut off, OpenCV 4.5 makes an image with a grey end. Compressed data holds
    # no markers, so in a whole file an end of image (FFD9) follows the last start of scan (FFDA);
    # the end of a thumbnail comes before that.
    if data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        return None
    pixels = opencv.imdecode(np.frombuffer(data, dtype=np.uint8),
                             opencv.IMREAD_COLOR | opencv.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        return None
    height, width, _ = pixels.shape    # the third axis is blue, green, red
    return Image.frombuffer('RGB', (width, height), pixels, 'raw', 'BGR', 0, 1)


def import_opencv(decoder):
    """Return the module cv2 for 'opencv', None for 'pillow'; servers may lack what cv2 needs."""
    if decoder == 'pillow':
        return None
    if decoder != 'opencv':
        raise DataError(f"decoder must be 'pillow' or 'opencv', not {decoder!r}")
    try:
        import cv2
    except ImportError as error:
        raise DataError(f"decoder 'opencv' cannot be used ({error}); install "
                        "opencv-python-headless or choose the decoder 'pillow'") from error
    return cv2


def image_files(names):
    """Expand files, folders (with all below them) and globs, in the order they were given."""
    found = []
    for name in names:
        path = Path(name)
        if os.path.isdir(name):
            found += sorted(str(file) for file in path.rglob('*')
                            if file.suffix.lower() in IMAGE_EXTENSIONS and file.is_file())
        elif os.path.exists(name):
            found.append(name)
        else:
            # A name that matches nothing stays, and is reported as a file that can't be read.
            found += sorted(glob.glob(name, recursive=True)) or [name]
    return found
