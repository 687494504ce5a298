"""Catches mixup, CutMix and batch preparation that differ from an implementation in NumPy."""

import math
import re

import numpy as np
import paddle
import pytest
from support.figures import largest_gap

import build
from config import ConfigError, load_config
from data.transforms import normalise
from recipe.batch import BatchTransform
from recipe.mixup import Mixup

ON = ('MIXUP.MIXUP_ALPHA=0.8', 'MIXUP.CUTMIX_ALPHA=1.0')


def batch(size, side=12, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (size, 3, side, side + 4), np.uint8),
            rng.integers(0, classes, size))


def mixed(mixup, images, labels, seed=0):
    actual, targets = mixup(paddle.to_tensor(images), paddle.to_tensor(labels),
                           np.random.default_rng(seed))
    assert actual.dtype == targets.dtype == paddle.float32
    return actual.numpy(), targets.numpy()


def one_by_one(images, labels, share, box, classes, smoothing):
    """The same mixing in NumPy, image by image."""
    results, targets = [], []
    for index, image in enumerate(images):
        partner = len(images) - 1 - index
        if box:
            top, bottom, left, right = box
            result = image.copy()
            result[:, top:bottom, left:right] = images[partner][:, top:bottom, left:right]
        else:
            result = np.rint(image * share + images[partner].astype('float32')
                             * (np.float32(1) - share))
        target = np.full(classes, smoothing / classes)
        target[labels[index]] += (1 - smoothing) * share
        target[labels[partner]] += (1 - smoothing) * (1 - share)
        results.append(result)
        targets.append(target)
    return np.stack(results), np.stack(targets)


@pytest.mark.parametrize('size', [1, 7, 8])
def test_a_mixed_batch_equals_a_computation_image_by_image(size):
    kinds = set()
    for seed in range(24):
        mixup = Mixup(probability=0.8, smoothing=0.1, num_classes=10)
        images, labels = batch(size, seed=seed)
        share, box = mixup.draw(images.shape[2:], np.random.default_rng(seed))
        actual, targets = mixed(mixup, images, labels, seed)
        expected, expected_targets = one_by_one(images, labels, share, box, 10, 0.1)
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_allclose(targets, expected_targets, atol=2e-7)
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        kinds.add('cutmix' if box else 'none' if share == 1 else 'mixup')
    assert kinds == {'cutmix', 'none', 'mixup'}


def test_the_share_of_a_label_is_that_of_its_images_pixels():
    """Every image has one colour, so its pixels can be counted."""
    images = np.broadcast_to(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), (6, 3, 20, 30))
    partly = 0
    for seed in range(40):
        mixup = Mixup(0, 1.0, smoothing=0, num_classes=6)
        actual, targets = mixed(mixup, np.ascontiguousarray(images), np.arange(6), seed)
        own = (actual == images).mean(axis=(1, 2, 3))
        theirs = (actual == images[::-1]).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(own + theirs, 1, atol=1e-12)
        np.testing.assert_allclose(targets[range(6), range(6)], own, atol=1e-6)
        partly += ((own > 0) & (own < 1)).sum()
    assert partly > 120


def test_halves_are_rounded_to_the_even_neighbour(monkeypatch):
    mixup = Mixup(num_classes=2)
    monkeypatch.setattr(Mixup, 'draw', lambda *_: (np.float32(0.5), None))
    first = np.arange(0, 255, dtype=np.uint8)
    images = np.zeros((2, 3, 1, 255), np.uint8)
    images[0], images[1] = first, first + 1
    actual, _ = mixed(mixup, images, np.array([0, 1]))
    assert actual[0, 0, 0].tolist() == [round(value + 0.5) for value in first.tolist()]


def draws_of(count=4000, side=1000, **options):
    """Lambdas `[count]`, whether each is CutMix `[count]`, and the boxes of CutMix `[n, 4]`."""
    mixup, rng = Mixup(num_classes=2, **options), np.random.default_rng(3)
    draws = [mixup.draw((side, side), rng) for _ in range(count)]
    shares, boxes = zip(*draws)
    return (np.array(shares), np.array([box is not None for box in boxes]),
            np.array([box for box in boxes if box]))


CRITICAL_GAP = 1.95 / math.sqrt(4000)    # Kolmogorov-Smirnov, exceeded by 1 of 1000 seeds


def test_lambda_follows_its_beta_distribution():
    shares, is_cutmix, _ = draws_of(mixup_alpha=0.5, cutmix_alpha=0)
    assert not is_cutmix.any()
    assert largest_gap(shares, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))) < CRITICAL_GAP
    shares, is_cutmix, _ = draws_of(mixup_alpha=0.5, cutmix_alpha=1.0)
    assert largest_gap(shares[~is_cutmix],
                       lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))) < 1.95 / math.sqrt(1800)


@pytest.mark.parametrize('probability', [1.0, 0.7])
def test_the_frequency_of_mixup_and_cutmix(probability):
    shares, is_cutmix, _ = draws_of(probability=probability)
    is_mixup = ~is_cutmix & (shares < 1)
    for actual in is_cutmix.mean(), is_mixup.mean():
        expected = probability / 2
        assert abs(actual - expected) < 3.3 * math.sqrt(expected * (1 - expected) / 4000)


def test_boxes_are_uniform_and_have_the_area_of_lambda():
    shares, is_cutmix, boxes = draws_of(mixup_alpha=0, cutmix_alpha=1)
    assert is_cutmix.all() and (boxes >= 0).all() and (boxes <= 1000).all()
    top, bottom, left, right = boxes.T
    np.testing.assert_allclose(shares, 1 - (bottom - top) * (right - left) / 1e6, atol=1e-7)
    axes = (top, bottom), (left, right)
    for (low, high), (other_low, other_high) in (axes, axes[::-1]):
        # If the other axis is not clipped, it gives the box's size, from which the centre follows.
        whole = (other_low > 0) & (other_high < 1000)
        half = ((other_high - other_low) // 2)[whole]
        centre = np.where(low[whole] == 0, high[whole] - half, low[whole] + half) / 1000
        assert largest_gap(centre, lambda x: x) < 1.95 / math.sqrt(whole.sum())
        assert whole.sum() > 1000 and (low[whole] == 0).any() and (high[whole] == 1000).any()


def test_two_alphas_of_zero_are_refused():
    with pytest.raises(ValueError, match='both 0'):
        Mixup(0, 0)


# ---- batch preparation

def test_pixels_are_normalised_as_by_the_transforms():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    config = load_config('config/t2t_vit_7.yaml')
    images, labels = build.batch_transform(config)(
        paddle.to_tensor(pixels.transpose(2, 0, 1)[None]), paddle.to_tensor([7]), 0, 0)
    np.testing.assert_array_equal(images.numpy()[0],
                                  normalise(pixels, config.DATA.MEAN, config.DATA.STD))
    assert labels.tolist() == [7]


def prepared(epoch=0, step=0, **options):
    images, labels = batch(8)
    transform = BatchTransform((0.5,) * 3, (0.2,) * 3, **{
        'seed': 1, 'mixup': Mixup(num_classes=10), **options})
    images, targets = transform(paddle.to_tensor(images), paddle.to_tensor(labels), epoch, step)
    return images.numpy(), targets.numpy()


def test_mixing_depends_on_epoch_step_rank_and_seed():
    again, first = prepared(2, 3), prepared(2, 3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    others = [prepared(2, 3), prepared(3, 2), prepared(2, 4), prepared(2, 3, rank=1),
              prepared(2, 3, seed=2)]
    assert len({images.tobytes() for images, _ in others}) == 5


def test_images_are_mixed_then_normalised_then_erased():
    def erase(images, rng):
        seen.append(images.numpy())
        return images * rng.random()

    seen = []
    images, targets = prepared(erase=erase)
    expected, expected_targets = prepared()
    np.testing.assert_array_equal(seen[0], expected)
    factor = images / np.where(expected == 0, 1, expected)
    assert 0 < factor.mean() < 1 and factor.std() < 1e-6    # the result of erase is returned
    np.testing.assert_array_equal(images, prepared(erase=erase)[0])
    np.testing.assert_array_equal(targets, expected_targets)
    pixels = (expected * 0.2 + 0.5) * 255
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)    # whole before normalising


# ---- configuration

@pytest.mark.parametrize('overrides, said', [
    (('MIXUP.PROBABILITY=1.5',), 'MIXUP.PROBABILITY must be at most 1'),
    (('MIXUP.MIXUP_ALPHA=-1',), 'MIXUP.MIXUP_ALPHA must be at least 0'),
    (('MIXUP.MODE=pair',), 'MIXUP.MODE was removed'),
    ((*ON, 'TRAIN.TRAIN_BATCH_SIZE=15'), 'TRAIN.TRAIN_BATCH_SIZE is 15, an odd number'),
    (('TRAIN.ACCUMULATE=0',), 'TRAIN.ACCUMULATE must be at least 1'),
])
def test_the_error_for_an_invalid_value_is_one_line(overrides, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config('config/lit_data.yaml', overrides)
    assert '\n' not in str(caught.value) and caught.value.exit_code == 2


def test_mixup_from_a_configuration():
    assert build.mixup(load_config('config/lit_data.yaml')) is None
    assert load_config('config/lit_data.yaml', ['TRAIN.TRAIN_BATCH_SIZE=15'])
    mixup = build.mixup(load_config('config/lit_data.yaml', [
        *ON, 'MIXUP.PROBABILITY=0.6', 'TRAIN.LABEL_SMOOTHING=0.1', 'MIXUP.MODE=batch']))
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.cutmix_share) == (0.8, 1.0, 0.5)
    assert (mixup.probability, mixup.smoothing, mixup.num_classes) == (0.6, 0.1, 1000)
