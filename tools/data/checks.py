"""What is unusual about an image file, and whether it can be read at all."""

import io
import os
import warnings

from PIL import Image

from data.decode import IMAGE_FORMATS, ImageError, decode_bytes, printable, read_image_file

FORMAT_OF = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.bmp': 'BMP', '.gif': 'GIF',
             '.webp': 'WEBP'}


def check_image(content, name):
    """Decode the bytes of an image file as training does.

    Returns:
        (PIL image of mode RGB, [what is unusual]). Known in ImageNet are a PNG named JPEG, 22 JPEGs
        in CMYK, and broken EXIF data; all of them can be read.

    Raises:
        ImageError: if it cannot be decoded; the message begins with the name.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')    # Pillow warns of broken EXIF data
        image = decode_bytes(content, name)
        header = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        try:
            header.getexif()
            broken = any('exif' in str(entry.message).lower() or 'TiffImagePlugin' in entry.filename
                         for entry in caught)
        except Exception:    # damaged EXIF data makes Pillow raise any of several kinds
            broken = True
    unusual = []
    if FORMAT_OF.get(os.path.splitext(name)[1].lower(), header.format) != header.format:
        unusual.append(f'a {header.format} by its content')
    if header.mode == 'CMYK':
        unusual.append('CMYK')
    if broken:
        unusual.append('broken EXIF data')
    return image, unusual


def check_files(root, names):
    """check_image() for files below a folder.

    Returns:
        (number of names, lines about unusual ones, lines about those that cannot be read)
    """
    unusual, broken = [], []
    for name in names:
        path = os.path.join(root, name)
        try:
            _, notes = check_image(read_image_file(path, root), path)
            unusual += [f'{name}: {note}' for note in notes]
        except ImageError as error:
            broken.append(printable(str(error)))
    return len(names), unusual, broken
