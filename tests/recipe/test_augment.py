"""Catches augmentation that differs from timm's: operations, policies, jitter, random erasing."""

import collections
import importlib.util
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle.vision.transforms import functional_pil
from PIL import Image, ImageEnhance

import build
from config import ConfigError, load_config
from recipe import augment
from recipe.augment import (
    MOVES,
    OPERATIONS,
    AutoAugment,
    Canvas,
    ColorJitter,
    RandomErasing,
    apply_operation,
    auto_augment,
)

GOLDEN = np.load(ROOT / 'tests' / 'golden' / 'randaugment.npz')
OFFICIAL = 'rand-m9-mstd0.5-inc1'
DRAWS = 4000
CRITICAL_GAP = 1.95 / math.sqrt(DRAWS)    # Kolmogorov-Smirnov, exceeded by 1 of 1000 seeds


def photograph(height=96, width=128):
    return Image.fromarray(GOLDEN['input'][:height, :width])


def near_share(actual, share, draws):
    """Whether a count is within four standard deviations of its binomial distribution."""
    return abs(actual - share * draws) <= 4 * math.sqrt(draws * share * (1 - share))


def largest_gap(values, distribution):
    """Kolmogorov-Smirnov: the largest gap between empirical and given distribution function."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = distribution(values)
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max())


def uniform(low, high):
    return lambda values: np.clip((values - low) / (high - low), 0, 1)


class TestOperations:
    @pytest.mark.parametrize('key', [key for key in GOLDEN.files if key != 'input'])
    def test_golden(self, key):
        name, magnitude, *other_sign = key.split('_')
        actual = apply_operation(photograph(), name, int(magnitude), 1 if other_sign else -1)
        gap = abs(np.asarray(actual).astype(int) - GOLDEN[key])
        # Pillow's own filters may differ between versions in the last bit of a few pixels.
        assert gap.max() <= 1 and (gap > 0).mean() <= 0.001

    @pytest.mark.parametrize('magnitude', [0, 1, 2.5, 4.99, 7, 9.6, 10])
    def test_tones_and_brightness_in_numpy(self, magnitude):
        pixels = GOLDEN['input'].astype(int)

        def check(name, expected, sign=1):
            actual = np.asarray(apply_operation(photograph(), name, magnitude, sign))
            np.testing.assert_array_equal(actual, expected)

        bits = math.floor(magnitude / 10 * 4)
        for name, kept in (('Posterize', bits), ('PosterizeIncreasing', 4 - bits),
                           ('PosterizeOriginal', 4 + bits)):
            check(name, pixels // 2 ** (8 - kept) * 2 ** (8 - kept))
        threshold = math.floor(magnitude / 10 * 256)
        check('Solarize', np.where(pixels < threshold, pixels, 255 - pixels))
        check('SolarizeIncreasing', np.where(pixels < 256 - threshold, pixels, 255 - pixels))
        added = np.minimum(pixels + math.floor(magnitude / 10 * 110), 255)
        check('SolarizeAdd', np.where(pixels < 128, added, pixels))
        check('Invert', 255 - pixels)
        for name, sign, factor in (('Brightness', 1, 0.1 + 0.18 * magnitude),
                                   ('BrightnessIncreasing', 1, 1 + 0.09 * magnitude),
                                   ('BrightnessIncreasing', -1, max(0.1, 1 - 0.09 * magnitude))):
            actual = np.asarray(apply_operation(photograph(), name, magnitude, sign)).astype(int)
            assert abs(actual - np.clip(pixels * factor, 0, 255)).max() <= 1

    @pytest.mark.parametrize('name, axis, magnitude, pixels', [
        ('TranslateXRel', 1, 10, 36), ('TranslateYRel', 0, 5, 18)])
    def test_translations_fill_with_the_mean_colour(self, name, axis, magnitude, pixels):
        canvas = Canvas(fill=(1, 2, 3))
        actual = np.asarray(apply_operation(photograph(80, 80), name, magnitude, 1, canvas))
        expected = np.roll(GOLDEN['input'][:80, :80], -pixels, axis)
        np.moveaxis(expected, axis, 0)[-pixels:] = (1, 2, 3)
        np.testing.assert_array_equal(actual, expected)
        back = np.asarray(apply_operation(photograph(80, 80), name, magnitude, -1, canvas))
        np.testing.assert_array_equal(np.moveaxis(back, axis, 0)[pixels:],
                                      np.moveaxis(GOLDEN['input'][:80, :80], axis, 0)[:-pixels])

    @pytest.mark.parametrize('name', ['Rotate', *MOVES])
    def test_fast_moves_differ_by_less_than_two_of_255_in_the_mean(self, name):
        for (width, height), magnitude, sign in itertools.product(
                ((120, 80), (90, 90)), (0, 2.5, 6, 10), (1, -1)):
            image = photograph(height, width)
            for resampling in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                exact, fast = (np.asarray(apply_operation(
                    image, name, magnitude, sign, Canvas((1, 200, 3), resampling, is_fast))
                ).astype(int) for is_fast in (False, True))
                assert exact.shape == fast.shape == (height, width, 3)
                assert abs(exact - fast).mean() < 2
                if magnitude:    # the other direction is further away
                    other = apply_operation(image, name, magnitude, -sign)
                    assert abs(exact - np.asarray(other)).mean() > 5

    def test_every_magnitude_works(self):
        for name, magnitude, sign in itertools.product(OPERATIONS, (0, 3.7, 10), (1, -1)):
            actual = apply_operation(photograph(20, 30), name, magnitude, sign)
            assert actual.size == (30, 20) and actual.mode == 'RGB'

    def test_the_error_for_an_unknown_operation_names_it(self):
        with pytest.raises(ValueError, match='Rotated is an unknown .*did you mean Rotate?'):
            apply_operation(photograph(), 'Rotated', 3)


@pytest.fixture(scope='module')
def timm():
    """timm's module of operations, loaded without the rest of timm, which needs PyTorch."""
    actual = importlib.util.find_spec('timm')
    if actual is None:
        pytest.skip('timm is not installed')
    path = Path(actual.submodule_search_locations[0]) / 'data' / 'auto_augment.py'
    spec = importlib.util.spec_from_file_location('timm_auto_augment', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTimm:
    """Compare with timm's code, if it is installed."""

    @pytest.mark.parametrize('name', OPERATIONS)
    def test_operations(self, timm, monkeypatch, name):
        image = photograph(60, 90)
        for sign, magnitude in itertools.product((1, -1), (0, 1, 2.2, 3, 5, 6.7, 8, 9.9)):
            monkeypatch.setattr(timm, '_randomly_negate', lambda value, sign=sign: sign * value)
            for resampling in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                options = dict(img_mean=(1, 2, 3), interpolation=resampling)
                try:
                    expected = timm.AugmentOp(name, 1.0, magnitude, options)(image)
                except ValueError as error:    # Pillow 13 keeps at least one bit
                    assert name.startswith('Posterize') and 'bits must be' in str(error)
                    continue
                actual = apply_operation(image, name, magnitude, sign,
                                        Canvas((1, 2, 3), resampling))
                np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))

    def test_the_policy(self, timm):
        expected = timm.auto_augment_policy('original')
        assert [list(pair) for pair in auto_augment('original').choices] == [
            [(step.name, step.prob, step.magnitude) for step in pair] for pair in expected]

    @pytest.mark.parametrize('text', [
        'rand', OFFICIAL, 'rand-m7-n3-mstd2', 'rand-n1-inc0'])
    def test_texts(self, timm, text):
        expected, actual = timm.rand_augment_transform(text, {}), auto_augment(text)
        steps = {(step.name, step.prob, step.magnitude) for step in expected.ops}
        assert {step for (step,) in actual.choices} == steps and len(actual.choices) == len(steps)
        assert actual.count == expected.num_layers
        assert actual.noise == expected.ops[0].magnitude_std
        assert expected.ops[0].magnitude_max in (None, 10) and expected.choice_weights is None


def plans(text, draws=DRAWS, **options):
    policy, rng = auto_augment(text, **options), np.random.default_rng(3)
    return [policy.plan(rng) for _ in range(draws)]


class TestDraws:
    def test_two_operations_with_probability_one_half(self):
        lengths = collections.Counter(len(plan) for plan in plans(OFFICIAL))
        for length, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
            assert near_share(lengths[length], share, DRAWS)

    def test_all_operations_equally_and_with_replacement(self):
        actual = plans('rand-m9-inc1')
        counts = collections.Counter(name for plan in actual for name, *_ in plan)
        assert len(counts) == 15 and 'PosterizeIncreasing' in counts and 'Posterize' not in counts
        assert all(near_share(count, 0.5 / 15, 2 * DRAWS) for count in counts.values())
        twice = sum(len(plan) == 2 and plan[0][0] == plan[1][0] for plan in actual)
        assert near_share(twice, 0.25 / 15, DRAWS)
        plain = {name for plan in plans('rand', 300) for name, *_ in plan}
        assert plain == {name.replace('Increasing', '') for name in counts}

    def test_magnitudes(self):
        def magnitudes(text):
            return np.array([step[1] for plan in plans(f'{text}-n2') for step in plan])

        assert set(magnitudes('rand-m7')) == {7} and set(magnitudes('rand')) == {10}
        normal = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)
        values = magnitudes('rand-m9-mstd0.5')
        at_ten = values == 10    # clipped two standard deviations above 9
        assert values.max() == 10 and near_share(at_ten.sum(), 1 - normal(2), len(values))
        below = values[~at_ten]
        assert largest_gap(below, lambda m: normal((m - 9) / 0.5) / normal(2)
                           ) < 1.95 / math.sqrt(len(below))
        assert magnitudes('rand-m0-mstd100').min() == 0

    def test_signs_and_filters(self):
        steps = [step for plan in plans('rand') for step in plan]
        assert near_share(sum(sign == 1 for _, _, sign, _ in steps), 0.5, len(steps))
        assert {sign for _, _, sign, _ in steps} == {1, -1}
        bicubic = sum(canvas.resampling == Image.Resampling.BICUBIC for *_, canvas in steps)
        bilinear = sum(canvas.resampling == Image.Resampling.BILINEAR for *_, canvas in steps)
        assert bicubic + bilinear == len(steps) and near_share(bicubic, 0.5, len(steps))
        for name, filter_ in (('bilinear', Image.Resampling.BILINEAR),
                              ('bicubic', Image.Resampling.BICUBIC)):
            assert {canvas for plan in plans('rand', 20, interpolation=name)
                    for *_, canvas in plan} == {Canvas((124, 116, 104), filter_)}

    def test_auto_augment_draws_one_pair(self):
        actual = plans('original')
        # Pairs that are unique in the policy, with their probabilities.
        for first, second, share in (('Color', 'Solarize', 0.8 * 0.8),
                                     ('Sharpness', 'Invert', 0.4 * 0.6),
                                     ('ShearX', 'Equalize', 0.6 * 1.0)):
            count = sum([step[0] for step in plan] == [first, second] for plan in actual)
            assert near_share(count, share / 25, DRAWS)
        assert {step[1] for plan in actual for step in plan} <= set(range(11))
        noisy = [step[1] for plan in plans('original-mstd0.5', 200) for step in plan]
        assert len(set(noisy)) > 100 and max(noisy) <= 10

    def test_results_depend_only_on_the_generator(self):
        policy = auto_augment('rand-m9-mstd0.5-inc1-n4')
        np.random.seed(1)
        first = policy(photograph(), np.random.default_rng(5)).tobytes()
        np.random.seed(2)
        assert policy(photograph(), np.random.default_rng(5)).tobytes() == first
        others = {policy(photograph(), np.random.default_rng(seed)).tobytes()
                  for seed in range(20)}
        assert len(others) > 15

    def test_operations_are_applied_in_order(self):
        steps = (('Invert', 1.0, 0), ('SolarizeAdd', 1.0, 10), ('Rotate', 0.0, 9))
        actual = AutoAugment([steps])(photograph(), np.random.default_rng(0))
        inverted = 255 - GOLDEN['input'].astype(int)
        np.testing.assert_array_equal(
            np.asarray(actual), np.where(inverted < 128, inverted + 110, inverted))


WRONG_TEXTS = [
    ('randd-m9', "'randd' is unknown, did you mean rand?"), ('originals', 'original'),
    ('-m9', "'' is unknown"), ('rand-m9-', "'' is an unknown part"),
    ('rand-q9', "'q9' is an unknown part"), ('rand-m9-mstd', "'mstd' must be mstd and a number"),
    ('rand-m', "'m' must be m and a whole number"), ('rand-m9.5', "'m9.5' must be"),
    ('rand-m11', "'m11' must be m and a whole number of at least 0 and at most 10"),
    ('rand-m-1', "'m' must be"),
    ('rand-m9999999999', 'unknown part'), ('rand-n0', "'n0' must be"),
    ('rand-p0.5', "'p0.5' is an unknown part"), ('rand-w0', "'w0' is an unknown part"),
    ('rand-mstd1.2.3', "'mstd1.2.3' must be"), ('rand-inc2', "'inc2' must be"),
    ('rand-minf', 'unknown part'), ('rand-m9-m8', "'m8' sets m a second time"),
    ('original-m9', "'m9' is an unknown part"), ('v0', "'v0' is unknown"),
    ('RAND-m9', "'RAND' is unknown"), ('rand m9', 'is unknown')]


class TestTexts:
    @pytest.mark.parametrize('text, said', WRONG_TEXTS)
    def test_the_error_for_an_invalid_text_names_the_part(self, text, said):
        with pytest.raises(ValueError) as caught:
            auto_augment(text)
        message = str(caught.value)
        assert message.startswith(repr(text)) and said in message and '\n' not in message

    def test_a_wrong_text_in_a_configuration(self, tmp_path):
        path = tmp_path / 'recipe.yaml'
        path.write_text('DATA:\n    FLIP: 0.5\n    AUTO_AUGMENT: rand-m9-x1\n')
        with pytest.raises(ConfigError) as caught:
            build.load_config(path)
        assert str(caught.value).startswith(f'{path}:3: DATA.AUTO_AUGMENT ')
        assert "'x1' is an unknown part" in str(caught.value) and caught.value.exit_code == 2

    @pytest.mark.parametrize('override, said', [
        ('DATA.AUTO_AUGMENT=rnd', 'did you mean rand?'), ('DATA.ERASE_PROBABILITY=1.1', 'at most'),
        ('DATA.ERASE_MODE=rand', 'was removed'), ('DATA.AUTO_AUGMENT=v0', 'rand or original'),
        ('DATA.COLOR_JITTER=-0.1', 'at least 0'), ('TRAIN.REPEATED_AUGMENT=0', 'at least 1'),
        ('TRAIN.DROP_LAST=1', 'true or false')])
    def test_wrong_values(self, override, said):
        with pytest.raises(ConfigError) as caught:
            build.load_config('config/lit_data.yaml', [override])
        assert override in str(caught.value) and said in str(caught.value)

    def test_the_fill_is_the_mean_colour(self):
        assert auto_augment('rand').canvas.fill == (124, 116, 104)
        assert auto_augment('rand', mean=(0, 0.5, 1)).canvas.fill == (0, 128, 255)


class TestColorJitter:
    def test_factors_and_order(self, monkeypatch):
        """Against Paddle's own functions, in the order and with the factors that were drawn."""
        drawn = []

        def recorder(name):
            def enhancer(image):
                def enhance(factor):
                    drawn.append((name, factor))
                    return getattr(ImageEnhance, name)(image).enhance(factor)
                return SimpleNamespace(enhance=enhance)
            return enhancer

        names = ('Brightness', 'Contrast', 'Color')
        monkeypatch.setattr(augment, 'ImageEnhance',
                            SimpleNamespace(**{name: recorder(name) for name in names}))
        functions = dict(zip(names, (functional_pil.adjust_brightness,
                                     functional_pil.adjust_contrast,
                                     functional_pil.adjust_saturation)))
        jitter, rng, image = ColorJitter(0.4), np.random.default_rng(0), photograph(8, 8)
        orders = collections.Counter()
        for _ in range(DRAWS):
            actual, expected = jitter(image, rng), image
            for name, factor in drawn[-3:]:
                expected = functions[name](expected, factor)
            assert actual.tobytes() == expected.tobytes()
            orders[tuple(name for name, _ in drawn[-3:])] += 1
        assert set(orders) == set(itertools.permutations(names))
        assert all(near_share(count, 1 / 6, DRAWS) for count in orders.values())
        for name in names:
            factors = np.array([factor for other, factor in drawn if other == name])
            assert largest_gap(factors, uniform(0.6, 1.4)) < CRITICAL_GAP

    def test_a_large_factor_stops_at_black(self):
        values = [ColorJitter(3)(Image.new('RGB', (1, 1), (20, 20, 20)),
                                 np.random.default_rng(seed)).getpixel((0, 0))[0]
                  for seed in range(200)]
        assert max(values) <= 80 and min(values) <= 2


def simulated_boxes(height, width, draws, rng):
    """timm's rule, vectorised: draw ten candidates for each box and take the first that fits."""
    area = rng.uniform(0.02, 1 / 3, (draws, 10)) * height * width
    aspect = np.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3), (draws, 10)))
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first, rows = fits.argmax(axis=1), np.arange(draws)
    kept = fits.any(axis=1)
    return heights[rows, first][kept], widths[rows, first][kept]


def two_sample_gap(one, other):
    grid = np.union1d(one, other) + 0.5
    return abs(np.searchsorted(np.sort(one), grid) / len(one)
               - np.searchsorted(np.sort(other), grid) / len(other)).max()


class TestRandomErasing:
    @pytest.mark.parametrize('height, width', [(224, 224), (40, 200)])
    def test_boxes(self, height, width):
        rng = np.random.default_rng(0)
        erasing = RandomErasing(1.0)
        boxes = [box for _ in range(DRAWS) if (box := erasing.box(height, width, rng))]
        top, left, box_height, box_width = np.array(boxes).T
        heights, widths = simulated_boxes(height, width, DRAWS, np.random.default_rng(1))
        limit = 1.95 * math.sqrt(1 / len(boxes) + 1 / len(heights))
        assert abs(len(boxes) - len(heights)) <= 0.01 * DRAWS
        assert two_sample_gap(box_height, heights) < limit
        assert two_sample_gap(box_width, widths) < limit
        assert two_sample_gap(box_height * box_width, heights * widths) < limit
        assert top.min() == left.min() == 0
        assert (top + box_height).max() == height and (left + box_width).max() == width
        # Positions are uniform whole numbers; adding uniform noise makes them continuous on [0, 1].
        for start, size, side in ((top, box_height, height), (left, box_width, width)):
            shifted = (start + rng.random(len(start))) / (side - size + 1)
            assert largest_gap(shifted, uniform(0, 1)) < CRITICAL_GAP

    def test_probability(self):
        rng = np.random.default_rng(2)
        count = sum(RandomErasing(0.25).box(99, 99, rng) is not None for _ in range(DRAWS))
        assert near_share(count, 0.25, DRAWS)

    def erase(self, erasing, images, seed=7):
        actual = erasing(paddle.to_tensor(images), np.random.default_rng(seed)).numpy()
        rng = np.random.default_rng(seed)
        mask = np.zeros(images.shape, dtype=bool)
        for row in range(len(images)):
            if box := erasing.box(*images.shape[2:], rng):
                top, left, height, width = box
                mask[row, :, top:top + height, left:left + width] = True
        assert mask.any() and not mask.all()
        np.testing.assert_array_equal(actual[~mask], images[~mask])
        return actual, mask

    @pytest.fixture
    def images(self):
        return np.random.default_rng(4).uniform(5, 6, (64, 3, 48, 48)).astype('float32')

    def test_every_pixel_and_channel_has_its_own_noise(self, images):
        actual, mask = self.erase(RandomErasing(0.5), images)
        noise = actual[mask]
        normal = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)
        assert largest_gap(noise, normal) < 1.95 / math.sqrt(noise.size)
        assert len(np.unique(noise)) > 0.99 * noise.size

    def test_results_depend_only_on_the_generator_and_the_input_is_unchanged(self, images):
        given, erasing = paddle.to_tensor(images), RandomErasing(0.5)
        paddle.seed(1)
        first = erasing(given, np.random.default_rng(1)).numpy()
        paddle.seed(2)
        np.testing.assert_array_equal(erasing(given, np.random.default_rng(1)).numpy(), first)
        np.testing.assert_array_equal(given.numpy(), images)
        assert not np.array_equal(erasing(given, np.random.default_rng(2)).numpy(), first)
        untouched = RandomErasing(0.0)(given, np.random.default_rng(1))
        np.testing.assert_array_equal(untouched.numpy(), images)

    def test_other_types_and_sizes(self):
        images = paddle.ones([2, 3, 32, 64], dtype='float64')
        actual = RandomErasing(1.0)(images, np.random.default_rng(0))
        assert actual.dtype == paddle.float64 and actual.shape == [2, 3, 32, 64]
        assert (actual.numpy() != 1).any(axis=(1, 2, 3)).all()


class TestConfiguration:
    def config(self, *overrides):
        return load_config('config/lit_data.yaml', overrides)

    def test_the_training_transform_augments(self):
        plain = build.train_transform(self.config())
        official = build.train_transform(self.config(f'DATA.AUTO_AUGMENT={OFFICIAL}',
                                                     'DATA.TRAIN_INTERPOLATION=random'))
        interpolated = build.train_transform(self.config('DATA.TRAIN_INTERPOLATION=random'))
        (policy,) = official.operations
        assert (policy.count, policy.noise, len(policy.resamplings)) == (2, 0.5, 2)
        for seed in range(8):
            rng = np.random.default_rng(seed)
            before = Image.fromarray(interpolated.pixels(photograph(), rng))
            actual = official.pixels(photograph(), np.random.default_rng(seed))
            np.testing.assert_array_equal(actual, np.asarray(policy(before, rng)))
        assert plain.operations == []

    @pytest.mark.parametrize('decoder', ['exact', 'fast'])
    def test_the_decoder_decides_how_pixels_move(self, decoder):
        config = build.load_config('config/t2t_vit_7_official.yaml', [f'DATA.DECODER={decoder}'])
        policy, = build.train_transform(config).operations
        assert policy.canvas.fast == (decoder == 'fast')
        plan = policy.plan(np.random.default_rng(1))
        assert {canvas.fast for *_, canvas in plan} == {decoder == 'fast'}

    def test_colour_jitter_is_inactive_beside_auto_augment(self):
        (jitter,) = build.train_transform(self.config('DATA.COLOR_JITTER=0.3')).operations
        assert isinstance(jitter, ColorJitter) and jitter.factor == 0.3
        (policy,) = build.train_transform(
            self.config('DATA.COLOR_JITTER=0.3', 'DATA.AUTO_AUGMENT=original')).operations
        assert isinstance(policy, AutoAugment)

    def test_random_erasing(self):
        assert build.random_erasing(self.config()) is None
        assert build.random_erasing(
            self.config('DATA.ERASE_PROBABILITY=0.25')).probability == 0.25

    def test_the_loaders(self):
        overrides = ('TRAIN.DROP_LAST=true', 'TRAIN.REPEATED_AUGMENT=3',
                     'TRAIN.TRAIN_BATCH_SIZE=100')
        sampler = build.train_loader(self.config(*overrides)).batch_sampler
        count = len(sampler.dataset)
        assert len(sampler) == count // 256 * 256 // 100
        first = next(iter(sampler))
        assert len(first) == 100 and len({index for _, index, _ in first}) == 34
        validation = build.eval_loader(self.config(*overrides)).batch_sampler
        keys = [key for batch in validation for key in batch]
        assert keys == [(0, index) for index in range(len(validation.dataset))]
