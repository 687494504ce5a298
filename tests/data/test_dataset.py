"""Image lists, decoding, transforms, samplers and worker processes, on real files."""

import faulthandler
import gc
import io
import math
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle.vision import transforms as vision
from PIL import Image
from support.figures import largest_gap

from data import DataError, loader
from data.decode import ImageError, decode_image
from data.loader import Loader
from data.sources import find_images, read_image_list, scan_class_folders
from data.transforms import EvalTransform, TrainTransform, normalise
from dataset import EpochBatchSampler, ImageDataset

GOLDEN = ROOT / 'tests' / 'golden'
PHOTOGRAPHS = ROOT.parent / 'shared' / 'data' / 'imagenet_lit'
DECODERS = ['pillow', 'opencv']


def picture(height, width, seed=0):
    """A smooth uint8 [height, width, 3] image with every channel different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_jpegs(folder, count):
    """Write images 0.jpg, 1.jpg, ... and return samples whose label is that number."""
    samples = []
    for number in range(count):
        path = folder / f'{number}.jpg'
        Image.fromarray(picture(40, 48, seed=number)).save(path)
        samples.append((str(path), number))
    return samples


class TestImageList:
    def read(self, tmp_path, content, **options):
        (tmp_path / 'list.txt').write_bytes(content)
        return read_image_list(tmp_path / 'list.txt', str(tmp_path), **options)

    def test_paths_and_labels(self, tmp_path):
        content = ('\ufeffa/b.jpg 3\r\n\r\nwith space/my cat 2.jpg\t0\n   \n  Ünï.png  12  \n'
                   'x..y/c.jpg 999').encode()
        assert self.read(tmp_path, content) == [
            (f'{tmp_path}/a/b.jpg', 3), (f'{tmp_path}/with space/my cat 2.jpg', 0),
            (f'{tmp_path}/Ünï.png', 12), (f'{tmp_path}/x..y/c.jpg', 999)]

    @pytest.mark.parametrize('line, reason', [
        (b'a.jpg', "expected 'path label'"),
        (b'7', "expected 'path label'"),
        (b'a.jpg cat', "expected 'path label'"),
        (b'a.jpg -1', "expected 'path label'"),
        (b'a.jpg 1.5', "expected 'path label'"),
        ('a.jpg ²'.encode(), "expected 'path label'"),
        (b'a.jpg 99999999999999999999', "expected 'path label'"),
        (b'a\0.jpg 1', "expected 'path label'"),
        (b'\xff.jpg 1', 'not UTF-8'),
        (b'a.jpg 10', 'class id 10, but the network has 10 classes'),
    ])
    def test_broken_line(self, tmp_path, line, reason):
        with pytest.raises(DataError) as caught:
            self.read(tmp_path, b'good.jpg 9\n\n' + line + b'\nlast.jpg 0\n', num_classes=10)
        message = str(caught.value)
        assert message.startswith(f'{tmp_path}/list.txt:3: ')
        assert reason in message and '\n' not in message

    @pytest.mark.parametrize('path', ['/etc/passwd', '../a.jpg', 'a/../../b.jpg', 'a\\..\\..\\b'])
    def test_a_path_that_leads_out_of_root_is_an_image_that_cannot_be_read(self, tmp_path, path):
        (path, label), = self.read(tmp_path, f'{path} 1'.encode())
        with pytest.raises(ImageError, match='leads out of'):
            decode_image(path, root=str(tmp_path))

    def test_root_itself_may_be_written_in_any_way(self, tmp_path, monkeypatch):
        (tmp_path / 'data').mkdir()
        (tmp_path / 'elsewhere').mkdir()
        write_jpegs(tmp_path / 'elsewhere', 1)
        (tmp_path / 'data' / 'link').symlink_to(tmp_path / 'elsewhere')
        monkeypatch.chdir(tmp_path / 'data')
        (tmp_path / 'list.txt').write_text('link/0.jpg 1\n')
        for root in ['.', '../data', '../data/', str(tmp_path / 'data')]:
            (path, _), = read_image_list(tmp_path / 'list.txt', root)
            assert decode_image(path, root=root).size == (48, 40)

    def test_empty_list(self, tmp_path):
        with pytest.raises(DataError, match='list.txt: the image list is empty'):
            self.read(tmp_path, b'\n \r\n')

    def test_missing_list_and_root(self, tmp_path):
        with pytest.raises(DataError, match=r'no\.txt: cannot read the image list \(No such file'):
            read_image_list(tmp_path / 'no.txt', tmp_path)
        (tmp_path / 'list.txt').write_text('a.jpg 1\n')
        with pytest.raises(DataError, match='nowhere: no such folder'):
            read_image_list(tmp_path / 'list.txt', tmp_path / 'nowhere')


class TestClassFolders:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ['n02/b.JPEG', 'n02/a.png', 'n02/deep/er/c.WebP', 'n01/z.jpg', 'n02/notes.txt',
                     'n02/._a.png', '.hidden/a.jpg', 'loose.jpg', 'n10/a.bmp']:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    def test_sorted_names_give_labels(self, root):
        samples, class_folders = scan_class_folders(root)
        assert list(class_folders.items()) == [('n01', 0), ('n02', 1), ('n10', 2)]
        assert samples == [
            (f'{root}/n01/z.jpg', 0), (f'{root}/n02/a.png', 1), (f'{root}/n02/b.JPEG', 1),
            (f'{root}/n02/deep/er/c.WebP', 1), (f'{root}/n10/a.bmp', 2)]

    def test_known_folders_get_their_true_ids(self, root):
        class_ids = {'n00': 0, 'n01': 7, 'n02': 400, 'n10': 999}
        samples, class_folders = scan_class_folders(root, class_ids)
        assert class_folders == {'n01': 7, 'n02': 400, 'n10': 999}
        assert [label for _, label in samples] == [7, 400, 400, 400, 999]

    def test_one_unknown_folder_turns_to_sorted_order(self, root):
        assert scan_class_folders(root, {'n01': 7, 'n02': 400})[1] == {'n01': 0, 'n02': 1, 'n10': 2}

    def test_an_empty_class_keeps_its_label(self, root):
        os.mkdir(f'{root}/n05')
        assert scan_class_folders(root)[1]['n10'] == 3

    def test_too_many_classes(self, root):
        with pytest.raises(DataError, match='n10: class id 2, but the network has 2 classes'):
            scan_class_folders(root, num_classes=2)
        assert len(scan_class_folders(root, num_classes=3)[0]) == 5

    def test_no_images(self, tmp_path):
        (tmp_path / 'n01').mkdir()
        with pytest.raises(DataError, match='no images found'):
            scan_class_folders(tmp_path)
        with pytest.raises(DataError, match='nowhere: no such folder'):
            scan_class_folders(tmp_path / 'nowhere')

    def test_find_images_takes_the_list_if_there_is_one(self, root):
        with open(f'{root}/list.txt', 'w') as file:
            file.write('n01/z.jpg 5\n')
        assert find_images(root, f'{root}/list.txt').samples == [(f'{root}/n01/z.jpg', 5)]
        assert find_images(root, '').samples == scan_class_folders(root)[0]
        assert find_images(root, class_ids={'n01': 1, 'n02': 2, 'n10': 3}).samples[0][1] == 1
        for list_file in [None, f'{root}/list.txt']:
            with pytest.raises(DataError, match='the network has 1 classes'):
                find_images(root, list_file, num_classes=1)


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
    """EXIF data that says `rotated` and holds a whole JPEG, as cameras write it."""
    thumbnail = jpeg_bytes(quality=20)
    orientation = struct.pack('<HHIHH', 0x0112, 3, 1, 6, 0)
    offset = 8 + 2 + 12 + 4 + 2 + 24 + 4
    location = struct.pack('<HHIIHHII', 0x0201, 4, 1, offset, 0x0202, 4, 1, len(thumbnail))
    return (b'Exif\0\0II*\0' + struct.pack('<I', 8)
            + struct.pack('<H', 1) + orientation + struct.pack('<I', 26)
            + struct.pack('<H', 2) + location + struct.pack('<I', 0) + thumbnail)


@pytest.fixture(params=DECODERS)
def decoder(request):
    if request.param == 'opencv':
        pytest.importorskip('cv2')
    return request.param


@pytest.mark.filterwarnings('error')
class TestDecodeImage:
    @pytest.mark.parametrize('name, write, expected', [
        pytest.param(*case, id=case[0]) for case in lossless_images()])
    def test_lossless(self, tmp_path, decoder, name, write, expected):
        write(tmp_path / name)
        image = decode_image(tmp_path / name, decoder)
        assert image.mode == 'RGB'
        np.testing.assert_array_equal(np.asarray(image), expected)

    @pytest.mark.parametrize('mode, options', [
        ('RGB', {}), ('RGB', {'progressive': True}), ('RGB', {'subsampling': 2}),
        ('RGB', {'exif': exif_with_thumbnail()}), ('L', {}), ('CMYK', {})])
    def test_jpeg(self, tmp_path, decoder, mode, options):
        source = Image.fromarray(picture(90, 120)).convert(mode)
        source.save(tmp_path / 'a.jpg', quality=95, **options)
        image = decode_image(tmp_path / 'a.jpg', decoder)
        assert (image.mode, image.size) == ('RGB', (120, 90))    # not rotated
        difference = np.asarray(image, float) - np.asarray(source.convert('RGB'), float)
        assert abs(difference).mean() < 2
        np.testing.assert_array_equal(image, decode_image(tmp_path / 'a.jpg', 'pillow'))

    def test_opencv_does_read_jpegs(self, tmp_path, monkeypatch):
        cv2 = pytest.importorskip('cv2')
        (tmp_path / 'a.jpg').write_bytes(jpeg_bytes())
        monkeypatch.setattr(cv2, 'imdecode', lambda *_: np.full((2, 3, 3), [1, 2, 3], np.uint8))
        image = decode_image(tmp_path / 'a.jpg', 'opencv')
        assert (image.size, image.getpixel((0, 0))) == ((3, 2), (3, 2, 1))
        assert decode_image(tmp_path / 'a.jpg', 'pillow').size == (120, 90)

    @pytest.mark.parametrize('options', [{}, {'exif': exif_with_thumbnail()}])
    def test_opencv_is_not_asked_about_half_a_jpeg(self, tmp_path, monkeypatch, options):
        cv2 = pytest.importorskip('cv2')
        monkeypatch.setattr(cv2, 'imdecode', lambda *_: np.zeros((90, 120, 3), np.uint8))
        (tmp_path / 'a.jpg').write_bytes(jpeg_bytes(**options)[:-300])    # OpenCV 4.5 accepts it
        with pytest.raises(ImageError, match='truncated'):
            decode_image(tmp_path / 'a.jpg', 'opencv')

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
        (sixteen_bit_png(np.broadcast_to(np.uint16(0), (14000, 14000, 1))), 'decompression bomb'),
    ], ids=['empty', 'text', 'postscript', 'half', 'no end', 'thumbnail', 'progressive', 'header',
            'png', 'bomb'])
    def test_faulty_file(self, tmp_path, decoder, content, reason):
        path = tmp_path / 'faulty.jpg'
        path.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            decode_image(path, decoder)
        message = str(caught.value)
        assert message.startswith(f'{path}: ') and reason in message and '\n' not in message

    def test_missing_file(self, tmp_path, decoder):
        with pytest.raises(ImageError, match=r'none\.jpg: cannot be read \(No such file'):
            decode_image(tmp_path / 'none.jpg', decoder)
        with pytest.raises(ImageError, match='cannot be read'):
            decode_image(tmp_path, decoder)

    def test_bytes_after_the_end_do_no_harm(self, tmp_path, decoder):
        (tmp_path / 'a.jpg').write_bytes(jpeg_bytes() + b'\0' * 50)
        assert decode_image(tmp_path / 'a.jpg', decoder).size == (120, 90)

    def test_unknown_or_missing_decoder(self, monkeypatch):
        with pytest.raises(DataError, match="'pillow' or 'opencv', not 'turbo'"):
            ImageDataset([], EvalTransform(), decoder='turbo')
        monkeypatch.setitem(sys.modules, 'cv2', None)    # as if it were not installed
        with pytest.raises(DataError, match='install opencv-python-headless'):
            ImageDataset([], EvalTransform(), decoder='opencv')


class TestEvalTransform:
    SIZES = [(500, 375), (500, 374), (375, 500), (331, 331), (333, 1000), (60, 47),
             (225, 224), (3, 40)]

    @pytest.mark.parametrize('width, height', SIZES)
    @pytest.mark.parametrize('image_size, crop_ratio, shorter', [
        (224, 0.9, 248), (224, 0.875, 256), (96, 1.0, 96), (225, 0.9, 250)])
    def test_center_crop(self, width, height, image_size, crop_ratio, shorter):
        image = Image.fromarray(picture(height, width))
        expected = vision.CenterCrop(image_size)(vision.Resize(shorter, 'bicubic')(image))
        found = EvalTransform(image_size, 'center_crop', crop_ratio).pixels(image)
        assert found.shape == (image_size, image_size, 3)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize('width, height', SIZES)
    @pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
    def test_squash(self, width, height, interpolation):
        image = Image.fromarray(picture(height, width))
        expected = np.asarray(vision.Resize((64, 64), interpolation)(image))
        found = EvalTransform(64, 'squash', interpolation=interpolation).pixels(image)
        np.testing.assert_array_equal(found, expected)
        if interpolation == 'bilinear':
            np.testing.assert_array_equal(EvalTransform(64, 'squash').pixels(image), expected)

    def test_a_thin_strip_takes_little_memory(self):
        pixels = EvalTransform().pixels(Image.new('RGB', (65000, 1), (10, 20, 30)))
        assert pixels.shape == (224, 224, 3) and (pixels == [10, 20, 30]).all()

    def test_values(self):
        pixels = picture(64, 64)
        expected = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
        expected = expected.transpose(2, 0, 1)    # [3, H, W]
        found = EvalTransform(64, 'squash')(Image.fromarray(pixels))
        assert found.dtype == np.float32 and found.flags['C_CONTIGUOUS']
        np.testing.assert_allclose(found, expected, atol=2e-6)
        np.testing.assert_allclose(
            normalise(pixels, (0.5, 0, 1), (1, 0.5, 2))[:, 0, 0],
            [pixels[0, 0, 0] / 255 - 0.5, pixels[0, 0, 1] / 127.5,
             (pixels[0, 0, 2] / 255 - 1) / 2], atol=1e-6)

    @pytest.mark.parametrize('options', [{'mode': 'crop'}, {'crop_ratio': 0}, {'crop_ratio': 1.1}])
    def test_wrong_arguments(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            EvalTransform(**options)

    @pytest.mark.parametrize('key', np.load(GOLDEN / 'eval_preprocess.npz').files)
    def test_golden_photographs(self, key, decoder):
        stem, transform = key.split('__')
        found = list(PHOTOGRAPHS.glob(f'*/*/{stem}.JPEG'))
        if not found:
            pytest.skip('the photographs are not part of this project')
        transform = EvalTransform(224, 'squash' if 'squash' in transform else 'center_crop')
        difference = (transform.pixels(decode_image(found[0], decoder)).astype(int)
                      - np.load(GOLDEN / 'eval_preprocess.npz')[key])
        assert abs(difference).max() <= 1


def boxes(transform, width, height, count=4000):
    rng = np.random.default_rng(5)
    found = np.array([transform.crop_box(width, height, rng) for _ in range(count)])
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= [width, height]).all()
    return found.T    # left, top, right, bottom


class TestTrainTransform:
    CRITICAL_GAP = 1.95 / math.sqrt(4000)    # exceeded by chance once in a thousand seeds

    def test_a_padded_crop_is_a_window_of_the_padded_image(self):
        """As in the official transfer: resized, an eighth of black around it, a random window."""
        image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (16, 16, 3), np.uint8))
        transform = TrainTransform(32, crop='padded')
        resized = np.asarray(image.resize((32, 32), Image.BILINEAR))
        padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)))
        windows = {padded[top:top + 32, left:left + 32].tobytes(): (top, left)
                   for top in range(9) for left in range(9)}
        found = Counter(windows[transform.pixels(image, np.random.default_rng(seed)).tobytes()]
                        for seed in range(2000))
        assert set(found) == set(windows.values()), 'every window, and no other'
        expected = 2000 / 81
        assert max(abs(count - expected) for count in found.values()) < 5 * expected ** 0.5

    def test_a_padded_crop_keeps_the_shape_of_what_it_shows(self):
        image = Image.new('RGB', (80, 40), 'white')
        shown = TrainTransform(32, crop='padded').pixels(image, np.random.default_rng(0))
        assert shown.shape == (32, 32, 3) and (shown == 255).any(axis=2).mean() > 0.8

    def test_distributions_where_every_crop_fits(self):
        left, top, right, bottom = boxes(TrainTransform(scale=(0.1, 0.5)), 4000, 4000)
        width, height = right - left, bottom - top
        area = width * height / 4000 ** 2
        ratio = np.log(width / height) / np.log(4 / 3)
        assert largest_gap(area, lambda a: np.clip((a - 0.1) / 0.4, 0, 1)) < self.CRITICAL_GAP
        assert largest_gap(ratio, lambda r: np.clip((r + 1) / 2, 0, 1)) < self.CRITICAL_GAP
        for free in (left / (4000 - width), top / (4000 - height)):
            assert largest_gap(free, lambda position: position) < self.CRITICAL_GAP
        assert abs(np.corrcoef([area, ratio, left / (4000 - width)]) - np.eye(3)).max() < 0.06

    @pytest.mark.parametrize('size', [(800, 200), (200, 700), (500, 375)])
    def test_distributions_where_some_crops_do_not_fit(self, size):
        """Against a second computation: all candidates at once, the first that fits is taken."""
        rng = np.random.default_rng(6)
        share = rng.uniform(0.05, 1, (4000, 10))
        shape = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (4000, 10)))
        widths = np.sqrt(share * shape * size[0] * size[1])
        heights = np.sqrt(share / shape * size[0] * size[1])
        fits = (widths <= size[0]) & (heights <= size[1])
        first, rows = fits.argmax(axis=1), np.arange(4000)
        any_fits = fits.any(axis=1)
        fallback = (min(size[0], size[1] * 4 / 3), min(size[1], size[0] * 4 / 3))
        expected = (np.where(any_fits, widths[rows, first], fallback[0]),
                    np.where(any_fits, heights[rows, first], fallback[1]))

        left, top, right, bottom = boxes(TrainTransform(), *size)
        for found, simulated in zip((right - left, bottom - top), expected):
            grid = np.arange(0, max(size) + 1) + 0.5    # between pixels, free of rounding
            gap = abs(np.searchsorted(np.sort(found), grid)
                      - np.searchsorted(np.sort(simulated), grid)).max() / 4000
            assert gap < 1.95 * math.sqrt(2 / 4000)

    @pytest.mark.parametrize('size, box', [
        ((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1)),
        ((100, 90), (0, 0, 100, 90))])
    def test_centre_where_nothing_fits(self, size, box):
        transform = TrainTransform(scale=(1.3, 1.5) if size == (100, 90) else (1, 1))
        assert transform.crop_box(*size, np.random.default_rng(0)) == box

    @pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
    def test_crop_then_resize(self, interpolation):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
        transform = TrainTransform(40, interpolation=interpolation)
        left, top, right, bottom = transform.crop_box(120, 90, np.random.default_rng(8))
        assert (left, top, right, bottom) != (0, 0, 120, 90)
        crop = Image.fromarray(np.asarray(image)[top:bottom, left:right])
        expected = np.asarray(vision.Resize((40, 40), interpolation)(crop))
        found = transform.pixels(image, np.random.default_rng(8))
        np.testing.assert_array_equal(found, expected)
        handed_over = transform(image, np.random.default_rng(8))
        assert handed_over.dtype == np.uint8 and handed_over.flags['C_CONTIGUOUS']
        np.testing.assert_array_equal(handed_over, expected.transpose(2, 0, 1))    # [3, H, W]

    def test_flip(self):
        image = Image.fromarray(picture(50, 50))
        for flip, fewest, most in [(0, 0, 0), (1, 200, 200), (0.25, 30, 70)]:
            transform = TrainTransform(50, scale=(1, 1), ratio=(1, 1), flip=flip)
            rng = np.random.default_rng(1)
            found = [transform.pixels(image, rng) for _ in range(200)]
            straight = sum(np.array_equal(pixels, image) for pixels in found)
            flipped = sum(np.array_equal(pixels, np.asarray(image)[:, ::-1]) for pixels in found)
            assert straight + flipped == 200 and fewest <= flipped <= most

    def test_random_interpolation_takes_both(self):
        image = Image.fromarray(picture(50, 50))
        expected = {name: EvalTransform(20, 'squash', interpolation=name).pixels(image).tobytes()
                    for name in ['bilinear', 'bicubic']}
        transform = TrainTransform(20, scale=(1, 1), ratio=(1, 1), interpolation='random')
        rng = np.random.default_rng(0)
        assert {transform.pixels(image, rng).tobytes() for _ in range(20)} \
            == set(expected.values())


class TestImageDataset:
    @pytest.fixture
    def images(self, tmp_path):
        samples = write_jpegs(tmp_path, 3)
        return lambda **options: ImageDataset(samples, TrainTransform(16), **options)

    def test_sample(self, images):
        image, label = images()[2]
        assert image.shape == (3, 16, 16) and image.dtype == np.uint8
        assert label == 2 and label.dtype == np.int64
        assert len(images()) == 3

    def test_the_key_and_the_seed_decide(self, images):
        first = images(seed=1)
        again = images(seed=1)
        order = [(0, 2), (1, 1), (0, 1), (1, 2)]
        expected = {key: first[key][0].tobytes() for key in order}
        for key in reversed(order):
            assert again[key][0].tobytes() == expected[key]
        assert len(set(expected.values())) == 4
        assert first[2][0].tobytes() == expected[0, 2]
        assert images(seed=2)[0, 2][0].tobytes() != expected[0, 2]

    def test_repetitions_differ_and_the_first_is_as_without(self, images):
        keys = [(1, 2), (1, 2, 0), (1, 2, 1), (1, 2, 2), (2, 2, 1), (1, 1, 1)]
        found = [images(seed=1)[key][0].tobytes() for key in keys]
        assert found[0] == found[1] and len(set(found[1:])) == 5
        assert images(seed=1)[1, 2, 2][0].tobytes() == found[3]
        # The seed of repetition 0 is that of runs before there were repetitions.
        dataset_ = images(seed=1)
        image = decode_image(dataset_.samples[2][0])
        for key, seed in (((1, 2, 0), (1, 1, 2)), ((1, 2, 2), (1, 1, 2, 2))):
            expected = dataset_.transform(image, np.random.default_rng(seed))
            np.testing.assert_array_equal(dataset_[key][0], expected)

    def test_the_global_random_state_is_left_alone(self, images):
        np.random.seed(3)
        expected = np.random.random()
        np.random.seed(3)
        assert images()[0] is not None and np.random.random() == expected


class TestEpochBatchSampler:
    @pytest.mark.parametrize('count, world, drop_last', [
        (1, 1, False), (1, 3, False), (5, 2, False), (8, 2, False), (13, 3, False), (25, 3, False),
        (4, 1, True), (13, 1, True), (15, 2, True), (16, 2, True), (25, 3, True)])
    def test_ranks_share_the_epoch(self, count, world, drop_last):
        samplers = [EpochBatchSampler(range(count), 4, world, rank, drop_last=drop_last)
                    for rank in range(world)]
        steps = list(zip(*samplers))
        assert {len(sampler) for sampler in samplers} == {len(steps)}
        assert all(len(list(sampler)) == len(steps) for sampler in samplers)
        for number, parts in enumerate(steps):
            sizes = {len(part) for part in parts}
            assert sizes == {samplers[0].batch_length(number)}
            assert sizes == {4} or len(sizes) == 1 and number == len(steps) - 1 and not drop_last
        joined = [key for parts in steps for part in parts for key in part]
        per_rank = math.ceil(count / world)
        seen = world * (per_rank // 4 * 4 if drop_last else per_rank)
        assert joined == [(0, index % count) for index in range(seen)]

    def test_two_ranks_see_what_one_sees(self):
        for epoch in (0, 3):
            keys = []
            for world in (1, 2):
                samplers = [EpochBatchSampler(range(24), 12 // world, world, rank, shuffle=True,
                                              seed=4) for rank in range(world)]
                for sampler in samplers:
                    sampler.set_epoch(epoch)
                keys.append([sorted(sum(parts, [])) for parts in zip(*samplers)])
            assert keys[0] == keys[1]

    def order(self, seed, epoch):
        sampler = EpochBatchSampler(range(50), 50, 1, 0, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        (batch,), (again,) = list(sampler), list(sampler)
        assert batch == again and {key[0] for key in batch} == {epoch}
        return [index for _, index in batch]

    def test_shuffle(self):
        assert self.order(0, 0) == self.order(0, 0)
        assert sorted(self.order(0, 0)) == list(range(50))
        orders = {tuple(self.order(seed, epoch)) for seed in range(3) for epoch in range(3)}
        assert len(orders) == 9 and tuple(range(50)) not in orders

    def test_start_batch(self):
        sampler = EpochBatchSampler(range(11), 2, 1, 0, shuffle=True, seed=1)
        sampler.set_epoch(2)
        whole = list(sampler)
        sampler.set_epoch(2, start_batch=4)
        assert list(sampler) == whole[4:] and len(whole[4:]) == 2 and len(sampler) == 6
        sampler.set_epoch(3)
        assert len(list(sampler)) == 6

    @pytest.mark.parametrize('count, world, repeats, drop_last', [
        (300, 1, 3, False), (700, 2, 3, False), (800, 3, 3, True), (1000, 4, 2, False),
        (520, 8, 5, True)])
    def test_repeats_are_those_of_deit(self, count, world, repeats, drop_last):
        """Against DeiT's definition, on lists: repeat, deal out to the ranks, cut."""
        samplers = [EpochBatchSampler(range(count), 16, world, rank, shuffle=True, seed=9,
                                      drop_last=drop_last, repeats=repeats)
                    for rank in range(world)]
        plain = EpochBatchSampler(range(count), count, 1, 0, shuffle=True, seed=9)
        for sampler in [plain, *samplers]:
            sampler.set_epoch(2)
        ((*order,),) = plain
        repeated = [(*key, copy) for key in order for copy in range(repeats)]
        for rank, sampler in enumerate(samplers):
            expected = repeated[rank::world][:math.floor(count // 256 * 256 / world)]
            if drop_last:
                expected = expected[:len(expected) // 16 * 16]
            batches = list(sampler)
            assert [key for batch in batches for key in batch] == expected
            assert len(sampler) == len(batches) and {len(b) for b in batches[:-1]} <= {16}
            sampler.set_epoch(2, start_batch=3)
            assert list(sampler) == batches[3:] and len(sampler) == len(batches)

    def test_repeats_of_a_small_data_set(self):
        for world in (1, 2, 3):
            samplers = [EpochBatchSampler(range(20), 4, world, rank, repeats=3)
                        for rank in range(world)]
            keys = [key for sampler in samplers for batch in sampler for key in batch]
            assert len(keys) == len(set(keys)) == 20 // world * world
            assert {index for _, index, _ in keys} == set(range(math.ceil(len(keys) / 3)))
        with pytest.raises(DataError, match='2 image.s. for 3'):
            EpochBatchSampler(range(2), 4, 3, 0, repeats=3)

    def test_nothing_to_do(self):
        with pytest.raises(DataError, match='7 image.s. for 2 process.es. do not fill a batch of'):
            EpochBatchSampler(range(7), 8, 2, 0, drop_last=True)
        with pytest.raises(DataError):
            EpochBatchSampler([], 8, 1, 0)


@pytest.fixture
def no_hang():
    """End the test run with a traceback where a loader hangs: Python's alarms do not reach it."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def loader_of(samples, num_workers, rank=0, world=1, **options):
    images = ImageDataset(samples, TrainTransform(24), seed=7)
    sampler = EpochBatchSampler(images, 4, world, rank, shuffle=True, seed=7, **options)
    return Loader(images, sampler, num_workers)


def epoch_of(loader, epoch, start_batch=0):
    loader.batch_sampler.set_epoch(epoch, start_batch)
    return [(images.numpy(), labels.numpy()) for images, labels in loader]


@pytest.mark.usefixtures('no_hang')
class TestLoader:
    @pytest.fixture
    def samples(self, tmp_path):
        return write_jpegs(tmp_path, 18)

    def test_batches(self, samples):
        for num_workers in (0, 2):
            loader = loader_of(samples, num_workers)
            assert len(loader) == 5
            loader.batch_sampler.set_epoch(0)
            for number, (images, labels) in enumerate(loader):
                size = 4 if number < 4 else 2
                assert isinstance(images, paddle.Tensor) and isinstance(labels, paddle.Tensor)
                assert tuple(images.shape) == (size, 3, 24, 24) and images.dtype == paddle.uint8
                assert tuple(labels.shape) == (size,) and labels.dtype == paddle.int64

    @pytest.mark.parametrize('transform, pixel_bytes', [(TrainTransform(24), 1),
                                                        (EvalTransform(24), 4)])
    def test_little_shared_memory_is_noticed(self, samples, monkeypatch, caplog, transform,
                                             pixel_bytes):
        images = ImageDataset(samples, transform)
        sampler = EpochBatchSampler(images, 4, 2, 0)
        # Two batches of four images for each of three workers of two ranks.
        needed = 2 * 4 * 3 * 2 * 24 * 24 * 3 * pixel_bytes
        for free, warnings in ((needed, 0), (needed - 1, 1)):
            monkeypatch.setattr(loader, '_free_shared_memory', lambda free=free: free)
            caplog.clear()
            Loader(images, sampler, num_workers=3)
            assert len([r for r in caplog.records if '/dev/shm' in r.message]) == warnings

    def test_workers_do_not_change_anything(self, samples):
        for epoch in (0, 1):
            expected = epoch_of(loader_of(samples, 0), epoch)
            for num_workers in (1, 2, 7):
                found = epoch_of(loader_of(samples, num_workers), epoch)
                for one, other in zip(expected, found):
                    np.testing.assert_array_equal(one[0], other[0])
                    np.testing.assert_array_equal(one[1], other[1])
                assert len(found) == len(expected)

    def test_ranks_do_not_change_anything(self, samples):
        def images_by_label(loaders):
            batches = [batch for loader in loaders for batch in epoch_of(loader, 3)]
            return {int(label): image.tobytes()
                    for images, labels in batches for image, label in zip(images, labels)}

        one = images_by_label([loader_of(samples, 0)])
        two = images_by_label([loader_of(samples, 2, rank, world=2) for rank in range(2)])
        assert one == two and len(one) == 18

    def test_every_epoch_draws_anew_and_the_same_again(self, samples):
        loader = loader_of(samples, 2)
        first, second, again = (
            {int(label): image.tobytes() for images, labels in epoch_of(loader, epoch)
             for image, label in zip(images, labels)} for epoch in (0, 1, 0))
        assert first == again
        assert all(first[label] != second[label] for label in range(18))

    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_resume_in_the_middle(self, samples, num_workers):
        loader = loader_of(samples, num_workers)
        whole = epoch_of(loader, 1)
        rest = epoch_of(loader, 1, start_batch=3)
        assert [labels.tolist() for _, labels in rest] == [b[1].tolist() for b in whole[3:]]
        np.testing.assert_array_equal(rest[0][0], whole[3][0])
        assert epoch_of(loader, 1, start_batch=5) == []

    @pytest.mark.parametrize('num_workers', [0, 2])
    def test_a_faulty_image_is_named(self, samples, tmp_path, num_workers):
        path = tmp_path / 'kätzchen\udcff.jpg'    # no valid UTF-8, as old archives hold
        path.write_bytes(b'no image')
        samples[5] = (str(path), 5)
        loader = loader_of(samples, num_workers)
        for _ in range(2):
            with pytest.raises(ImageError) as caught:
                epoch_of(loader, 0)
            assert str(caught.value).startswith(f'{path}: not an image of a known format')
            assert multiprocessing.active_children() == []

    def test_leaving_early_ends_the_workers(self, samples):
        for _ in loader_of(samples, 2):
            assert len(multiprocessing.active_children()) == 2
            break
        assert multiprocessing.active_children() == []
        assert len(epoch_of(loader_of(samples, 2), 0)) == 5
        assert multiprocessing.active_children() == []

    def test_workers_leave_inherited_garbage_alone(self, samples, tmp_path):
        parent = os.getpid()

        class Garbage:
            def __init__(self):
                self.itself = self

            def __del__(self):
                if os.getpid() != parent:
                    (tmp_path / 'collected in a worker').touch()

        class CollectingTransform(TrainTransform):
            def __call__(self, image, rng):
                gc.collect()
                return super().__call__(image, rng)

        loader = loader_of(samples, 2)
        loader.dataset.transform = CollectingTransform(24)
        gc.disable()
        Garbage()
        batches = epoch_of(loader, 0)
        gc.enable()
        assert len(batches) == 5 and gc.get_freeze_count() == 0
        assert not (tmp_path / 'collected in a worker').exists()

    def test_interrupt_is_left_to_the_parent(self, samples):
        loader = loader_of(samples * 10, 2)
        seen = 0
        for number, (images, _) in enumerate(loader):
            seen += len(images)
            if number == 1:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, signal.SIGINT)
        assert seen == 180

    @pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells of a parent that died')
    def test_killed_parent_takes_its_workers_along(self, samples):
        parent = subprocess.Popen(
            [sys.executable, '-c', KILLED_PARENT, str(Path(samples[0][0]).parent)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT / 'tools')
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(is_running, workers))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 10
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(is_running, workers))


KILLED_PARENT = """
import multiprocessing, sys, time
from data.loader import Loader
from data.transforms import TrainTransform
from dataset import EpochBatchSampler, ImageDataset
images = ImageDataset([(f'{sys.argv[1]}/{n % 18}.jpg', n) for n in range(4000)], TrainTransform(24))
for batch in Loader(images, EpochBatchSampler(images, 4, 1, 0), 2):
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def is_running(pid):
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:
        return False
    return state != 'Z'
