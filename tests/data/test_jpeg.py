"""Catches crops of the fast decoder that are shifted, aliased or of the wrong images."""

import functools
import io
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.photographs import FOLDER
from support.pictures import texture

import build
from data import DataError, jpeg
from data.decode import ImageError, decode_bytes
from data.jpeg import open_jpeg
from data.transforms import INTERPOLATIONS, EvalTransform, TrainTransform
from dataset import ImageDataset

pytestmark = pytest.mark.usefixtures('libraries')
MOST = 2    # of 255: what the mean difference to the exact way has to stay below


@pytest.fixture
def libraries():
    pytest.importorskip('simplejpeg')
    pytest.importorskip('cv2')


@functools.lru_cache(None)
def encoded(width, height, mode='RGB', kind='JPEG', **options):
    stream = io.BytesIO()
    Image.fromarray(texture(height, width)).convert(mode).save(
        stream, kind, **{'quality': 90, **options})
    return stream.getvalue()


def differences(data, size, rng, crops=4):
    """Mean differences between random crops of the fast and the exact way."""
    fast, exact = open_jpeg(data, 'a.jpg'), decode_bytes(data, 'a.jpg')
    assert fast.size == exact.size
    transform = TrainTransform(size, scale=(0.08, 1))
    for resampling in INTERPOLATIONS.values():
        for _ in range(crops):
            box = transform.crop_box(*exact.size, rng)
            expected = np.asarray(exact.crop(box).resize((size, size), resampling))
            found = fast.resized_crop(box, (size, size), resampling)
            assert found.dtype == np.uint8 and found.shape == expected.shape
            yield abs(found.astype(int) - expected).mean()


@pytest.mark.parametrize('width, height, size', [
    (500, 375, 224), (120, 90, 224), (500, 375, 96), (500, 375, 32), (1300, 1000, 224),
    (1000, 400, 48), (64, 64, 64)])
def test_crops_of_generated_images(width, height, size):
    """Enlarged, shrunk a little, and decoded at each of libjpeg's scales."""
    rng = np.random.default_rng(0)
    assert np.mean([
        gap for options in (dict(subsampling=0), dict(subsampling=2), dict(mode='L'),
                            dict(restart_marker_blocks=5))
        for gap in differences(encoded(width, height, **options), size, rng)]) < MOST


def test_crops_of_photographs():
    paths = sorted(FOLDER.glob('*/*/*.JPEG'))
    if not paths:
        pytest.skip('needs photographs that are not part of the project')
    rng = np.random.default_rng(0)
    for size in (224, 64):
        assert np.mean([gap for path in paths
                        for gap in differences(path.read_bytes(), size, rng, crops=1)]) < MOST


@pytest.mark.parametrize('name', INTERPOLATIONS)
def test_resizing_is_antialiased_like_pillows(name):
    """OpenCV alone differs by up to 5 and 7 of 255 here."""
    for side in (100, 224, 260, 300, 340, 380, 420, 448, 480, 520):
        pixels = texture(side, side)
        expected = Image.fromarray(pixels).resize((224, 224), INTERPOLATIONS[name])
        found = jpeg.resize(pixels, (224, 224), INTERPOLATIONS[name])
        assert abs(found.astype(int) - expected).mean() < 1.5, side


def test_only_the_rows_above_the_end_of_the_crop_are_decoded(monkeypatch):
    simplejpeg, _ = jpeg.libraries()
    shapes = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *args, **options: (
        shapes.append((pixels := decode(*args, **options)).shape), pixels)[1])
    image = open_jpeg(encoded(1000, 800), 'a.jpg')
    for box in ((10, 20, 200, 200), (0, 0, 1000, 800), (0, 0, 448, 448), (0, 0, 1000, 447)):
        image.resized_crop(box, (224, 224), Image.Resampling.BILINEAR)
    assert shapes == [(200, 1000, 3), (400, 500, 3), (224, 500, 3), (447, 1000, 3)]


@pytest.mark.parametrize('content', [
    encoded(60, 40, kind='PNG'), encoded(60, 40, mode='CMYK'), encoded(60, 40, progressive=True),
    encoded(60, 40)[:-2], encoded(60, 40)[:500], encoded(60, 40)[:30], b'\xff\xd8', b''],
    ids=['PNG', 'CMYK', 'progressive', 'no end', 'half', 'header', 'two bytes', 'empty'])
def test_other_files_are_left_to_pillow(tmp_path, content):
    assert open_jpeg(content, 'a') is None
    (tmp_path / 'a').write_bytes(content)

    def read(decoder):
        try:
            return ImageDataset([(str(tmp_path / 'a'), 0)], TrainTransform(16), decoder)[0][0]
        except ImageError as error:
            return str(error)

    np.testing.assert_array_equal(read('fast'), read('exact'))


def test_damaged_data_is_decoded_as_far_as_possible():
    """As by Pillow. What is damaged below the crop does not matter at all."""
    data = encoded(120, 90)
    damaged = data[:-400] + bytes(200) + data[-200:]
    box, size = (0, 0, 120, 40), (64, 64)
    whole, part = (open_jpeg(content, 'a').resized_crop(box, size, Image.BILINEAR)
                   for content in (data, damaged))
    np.testing.assert_array_equal(whole, part)
    decode_bytes(damaged, 'a')
    assert open_jpeg(damaged, 'a').resized_crop((0, 0, 120, 90), size, Image.BILINEAR).shape == (
        64, 64, 3)


def test_what_the_decoder_refuses_is_left_to_pillow():
    """Two frames, which are an error in libjpeg; a header with more pixels than Pillow allows."""
    data = encoded(120, 90)
    frame = data.index(b'\xff\xc0')
    twice = data[:frame] + data[frame:frame + 19] + data[frame:]
    with pytest.raises(ImageError, match='a.jpg: damaged'):
        open_jpeg(twice, 'a.jpg').resized_crop((0, 0, 64, 64), (64, 64), Image.BILINEAR)
    assert open_jpeg(data[:frame + 5] + b'\xff' * 4 + data[frame + 9:], 'a.jpg') is None


def test_samples_are_the_crops_of_the_exact_way(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(encoded(500, 375))
    for transform in (TrainTransform(64, flip=0.5), TrainTransform(64, crop='padded')):
        exact, fast = (ImageDataset([(str(tmp_path / 'a.jpg'), 0)], transform, decoder, seed=3)
                       for decoder in ('exact', 'fast'))
        for epoch in range(6):
            gap = exact[epoch, 0][0].astype(int) - fast[epoch, 0][0]
            assert abs(gap).mean() < MOST
            np.testing.assert_array_equal(fast[epoch, 0][0], fast[epoch, 0][0])


def test_evaluation_is_always_exact():
    loaders = [build.eval_loader(build.load_config(ROOT / 'config' / 'lit_data.yaml', [
        f'DATA.DECODER={decoder}'])) for decoder in ('exact', 'fast')]
    for exact, fast in zip(*(loader.dataset for loader in loaders)):
        np.testing.assert_array_equal(exact[0], fast[0])
        break


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'simplejpeg', None)    # as if it were not installed
    with pytest.raises(DataError, match='DATA.DECODER fast cannot be used .*install simplejpeg'):
        ImageDataset([], EvalTransform(), decoder='fast')
