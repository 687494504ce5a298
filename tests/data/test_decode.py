"""Catches wrong pixels, and damaged files that are decoded or raise anything but ImageError."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pictures import picture

from data.decode import ImageError, decode_image


def lossless_images():
    """Yield (file name, function that writes it, expected RGB array) for lossless formats."""
    rgb = picture(30, 44)
    grey, alpha = rgb[:, :, 0], rgb[:, :, 1]
    rgba = np.dstack([rgb, alpha])
    palette = Image.fromarray(rgb).quantize(16, method=Image.Quantize.MEDIANCUT)
    indices = np.asarray(palette)
    colours = np.array(palette.getpalette()[:48]).reshape(16, 3)[indices].astype(np.uint8)
    grey_rgb = np.dstack([grey] * 3)
    bilevel = np.where(grey > 128, 255, 0).astype(np.uint8)
    deep = rgb.astype(np.uint16) * 256 + 200    # clipped to 255, this would be white

    def save(array, mode=None, **options):
        image = array if isinstance(array, Image.Image) else Image.fromarray(array)
        return lambda path: (image.convert(mode) if mode else image).save(path, **options)

    def png16(array):
        return lambda path: Path(path).write_bytes(sixteen_bit_png(array))

    yield 'rgb.png', save(rgb), rgb
    yield 'rgb.bmp', save(rgb), rgb
    yield 'rgb.webp', save(rgb, lossless=True), rgb
    yield 'rgb_transparent_colour.png', save(rgb, transparency=(1, 2, 3)), rgb
    yield 'rgba.png', save(rgba), rgb
    yield 'grey.png', save(grey), grey_rgb
    yield 'grey_alpha.png', save(Image.merge('LA', [Image.fromarray(a) for a in (grey, alpha)])), \
        grey_rgb
    yield 'palette.png', save(palette), colours
    yield 'palette.gif', save(palette), colours
    yield 'palette.bmp', save(palette), colours
    yield 'palette_one_transparent.png', save(palette, transparency=3), colours
    yield 'palette_alpha.png', save(palette, transparency=bytes(range(0, 160, 10))), colours
    yield 'bilevel.png', save(Image.fromarray(bilevel).convert('1')), np.dstack([bilevel] * 3)
    yield 'grey16.png', png16(deep[:, :, :1]), grey_rgb
    yield 'rgb16.png', png16(deep), rgb
    yield 'png_inside.JPEG', save(rgb, format='PNG'), rgb


def png_chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))


def sixteen_bit_png(array):
    """Encode uint16 [H, W, 1 or 3]; Pillow cannot write 16-bit colour."""
    height, width, channels = array.shape
    rows = array.astype('>u2').reshape(height, -1).view(np.uint8)    # [H, 2 * W * channels]
    no_filter = np.zeros((height, 1), dtype=np.uint8)
    return (b'\x89PNG\r\n\x1a\n'
            + png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16,
                                             2 if channels == 3 else 0, 0, 0, 0))
            + png_chunk(b'IDAT', zlib.compress(np.hstack([no_filter, rows]).tobytes()))
            + png_chunk(b'IEND', b''))


def jpeg_bytes(**options):
    buffer = io.BytesIO()
    Image.fromarray(picture(90, 120)).save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def exif_with_thumbnail():
    """EXIF data with a rotation and an embedded JPEG, as cameras write it."""
    thumbnail = jpeg_bytes(quality=20)
    orientation = struct.pack('<HHIHH', 0x0112, 3, 1, 6, 0)
    offset = 8 + 2 + 12 + 4 + 2 + 24 + 4
    location = struct.pack('<HHIIHHII', 0x0201, 4, 1, offset, 0x0202, 4, 1, len(thumbnail))
    return (b'Exif\0\0II*\0' + struct.pack('<I', 8)
            + struct.pack('<H', 1) + orientation + struct.pack('<I', 26)
            + struct.pack('<H', 2) + location + struct.pack('<I', 0) + thumbnail)


@pytest.mark.filterwarnings('error')
class TestDecodeImage:
    @pytest.mark.parametrize('name, write, expected', [
        pytest.param(*case, id=case[0]) for case in lossless_images()])
    def test_lossless(self, tmp_path, name, write, expected):
        write(tmp_path / name)
        image = decode_image(tmp_path / name)
        assert image.mode == 'RGB'
        np.testing.assert_array_equal(np.asarray(image), expected)

    @pytest.mark.parametrize('mode, options', [
        ('RGB', {}), ('RGB', {'progressive': True}), ('RGB', {'subsampling': 2}),
        ('RGB', {'exif': exif_with_thumbnail()}), ('L', {}), ('CMYK', {})])
    def test_jpeg(self, tmp_path, mode, options):
        source = Image.fromarray(picture(90, 120)).convert(mode)
        source.save(tmp_path / 'a.jpg', quality=95, **options)
        image = decode_image(tmp_path / 'a.jpg')
        assert (image.mode, image.size) == ('RGB', (120, 90))    # not rotated
        difference = np.asarray(image, float) - np.asarray(source.convert('RGB'), float)
        assert abs(difference).mean() < 2

    @pytest.mark.parametrize('content, reason', [
        (b'', 'the file is empty'),
        (b'a text file, 20 words long', 'not an image of a known format'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image of a known format'),
        (jpeg_bytes()[:1000], 'truncated'),
        (jpeg_bytes()[:-2], 'truncated'),
        (jpeg_bytes(exif=exif_with_thumbnail())[:-300], 'truncated'),
        (jpeg_bytes(progressive=True)[:-300], 'truncated'),
        (jpeg_bytes()[:30], 'image'),
        (sixteen_bit_png(np.ones((50, 50, 3)))[:60], 'damaged'),
    ], ids=['empty', 'text', 'postscript', 'half', 'no end', 'thumbnail', 'progressive', 'header',
            'png'])
    def test_faulty_file(self, tmp_path, content, reason):
        path = tmp_path / 'faulty.jpg'
        path.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            decode_image(path)
        message = str(caught.value)
        assert message.startswith(f'{path}: ') and reason in message and '\n' not in message

    def test_a_decompression_bomb(self, tmp_path):
        # The size is refused before the pixels, which are missing, would be read.
        header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 14000, 14000, 16, 0, 0, 0, 0))
        content = b'\x89PNG\r\n\x1a\n' + header + png_chunk(b'IDAT', b'')
        self.test_faulty_file(tmp_path, content, 'decompression bomb')

    def test_missing_file(self, tmp_path):
        with pytest.raises(ImageError, match=r'none\.jpg: cannot be read \(No such file'):
            decode_image(tmp_path / 'none.jpg')
        with pytest.raises(ImageError, match='cannot be read'):
            decode_image(tmp_path)

    def test_bytes_after_the_end_are_ignored(self, tmp_path):
        (tmp_path / 'a.jpg').write_bytes(jpeg_bytes() + b'\0' * 50)
        assert decode_image(tmp_path / 'a.jpg').size == (120, 90)
