"""Catches transforms whose pixels or distributions differ from torchvision's."""

import math
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from paddle.vision import transforms as vision
from PIL import Image
from support.figures import largest_gap
from support.photographs import photograph
from support.pictures import picture

from data.decode import decode_image
from data.transforms import EvalTransform, TrainTransform, normalise

GOLDEN = ROOT / 'tests' / 'golden'


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
    def test_golden_photographs(self, key):
        stem, transform = key.split('__')
        path = photograph(stem)
        if path is None:
            pytest.skip('needs photographs that are not part of the project')
        transform = EvalTransform(224, 'squash' if 'squash' in transform else 'center_crop')
        difference = (transform.pixels(decode_image(path)).astype(int)
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
        """As in the official transfer: resized, padded with an eighth of black, a random window."""
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

    def test_a_padded_crop_keeps_the_aspect_ratio(self):
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
        """Against a vectorised reference: ten candidates for each crop, of which the first fits."""
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
    def test_the_central_crop_if_no_draw_fits(self, size, box):
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
        found_chw = transform(image, np.random.default_rng(8))
        assert found_chw.dtype == np.uint8
        np.testing.assert_array_equal(found_chw, expected.transpose(2, 0, 1))    # [3, H, W]

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
