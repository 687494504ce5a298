"""Catches a sheet that shows other images than training gets, or captions that are not true."""

import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support import svg

import build
import visualize
from data.decode import decode_image
from recipe.augment import OPERATIONS, AutoAugment, ColorJitter, apply_operation

IMAGES = [str(path) for path in sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[::50]]
SIZE, SEED, DRAWS = 32, 5, 7
OFFICIAL = ['-c', 'config/t2t_vit_7_official.yaml', '-o', f'MODEL.IMAGE_SIZE={SIZE}',
            f'TRAIN.SEED={SEED}', 'DATA.ERASE_PROBABILITY=0.9']


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The sheet of three images and the official recipe: (images, texts)."""
    out = tmp_path_factory.mktemp('sheet') / 'a.svg'
    visualize.main(['augment', *IMAGES, *OFFICIAL, '--draws', str(DRAWS), '--out', str(out)])
    root = svg.read(out)
    return svg.images(root), svg.texts(root)


@pytest.fixture(scope='module')
def config():
    return build.load_config(OFFICIAL[1], OFFICIAL[3:])


def augmented(config, index, *key):
    """A training image by the transform alone; the key is (epoch, index, repetition)."""
    rng = np.random.default_rng((SEED, *key))
    return build.train_transform(config).pixels(decode_image(IMAGES[index]), rng)


def test_draws_are_the_training_images_of_the_first_epochs(drawn, config):
    images, _ = drawn
    assert np.array_equal(images[0], decode_image(IMAGES[0]))
    for epoch in range(DRAWS):
        assert np.array_equal(images[1 + epoch], augmented(config, 0, epoch, 0)), epoch


def test_batches_are_mixed_and_erased_as_in_training(drawn, config):
    images, texts = drawn
    batches = np.array(images[1 + DRAWS:]).reshape(3, 6, SIZE, SIZE, 3).astype(int)
    erasing, noisy = build.random_erasing(config), 0
    for step, batch in enumerate(batches):
        # Mixed a second time, in NumPy.
        rng = np.random.default_rng((SEED, 0, step, 0, 1))
        share, box = build.mixup(config).draw((SIZE, SIZE), rng)
        pixels = np.array([augmented(config, i % 3, 0, i % 3, *filter(None, [step * 6 + i]))
                           for i in range(6)]).astype(float)
        mixed = np.rint(pixels * float(share) + pixels[::-1] * float(1 - share))
        if box is not None:
            top, bottom, left, right = box
            mixed = pixels.copy()
            mixed[:, top:bottom, left:right] = pixels[::-1, top:bottom, left:right]
        boxes = [erasing.box(SIZE, SIZE, rng) for _ in range(6)]
        for image, wanted, erased in zip(batch, mixed, boxes):
            outside = np.ones((SIZE, SIZE), bool)
            if erased:
                top, left, height, width = erased
                outside[top:top + height, left:left + width] = False
                # The noise has many values, also the clipped ones.
                noisy += len(np.unique(image[~outside])) > 20
                area = 100 * height * width / SIZE ** 2
                assert f'erased {area:.0f} %' in texts
            assert abs(image - wanted)[outside].max() <= 1    # float32 rounds a half elsewhere
        kept = round(100 * float(share))
        assert f'{"CutMix" if box else "mixup"} {kept} + {100 - kept} %' in texts
    assert noisy > 9


def ramps(width, height):
    """An image whose red grows to the right and green downwards, from 0 to 255."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).round().astype('uint8'))


def test_captions_name_the_crop_and_the_flip_that_the_image_shows(tmp_path):
    ramps(512, 400).save(tmp_path / 'ramps.png')
    visualize.main(['augment', str(tmp_path / 'ramps.png'), '-c', 'config/t2t_vit_7.yaml', '-o',
                    'MODEL.IMAGE_SIZE=64', 'DATA.FLIP=0.5', '--draws', '11',
                    '--out', str(tmp_path / 'a.svg')])
    root, flips = svg.read(tmp_path / 'a.svg'), 0
    images = svg.images(root)
    captions = re.findall(r'crop (\d+) %(, flip)?', '\n'.join(svg.texts(root)))
    assert len(images) == 12 and len(captions) == 11    # this recipe mixes and erases nothing
    for image, (share, flip) in zip(images[1:], captions):
        # From pixel centre to pixel centre.
        across, down = ((int(last) - int(first)) / 255 * 64 / 63 for first, last in
                        ((image[32, 0, 0], image[32, -1, 0]), (image[0, 32, 1], image[-1, 32, 1])))
        assert (across < 0) == bool(flip)
        assert abs(across * down) * 100 == pytest.approx(int(share), abs=2.5)
        flips += bool(flip)
    assert 0 < flips < 11


@pytest.mark.parametrize('name', OPERATIONS)
def test_a_caption_has_a_sign_where_the_sign_changes_the_image(name):
    image = decode_image(IMAGES[0])
    there, back = (np.asarray(apply_operation(image, name, 6, sign)) for sign in (1, -1))
    said = [AutoAugment.describe([(name, 6, sign, None)])[0] for sign in (1, -1)]
    assert (said[0] != said[1]) == bool((there != back).any())
    weak = np.asarray(apply_operation(image, name, 2, 1))
    assert ('6.0' in said[0]) == bool((there != weak).any())


def test_a_jitter_does_what_its_plan_says():
    image, jitter = decode_image(IMAGES[0]), ColorJitter(0.4)
    plan = jitter.plan(np.random.default_rng(3))
    assert sorted(name for name, _ in plan) == ['Brightness', 'Color', 'Contrast']
    brightness = dict(plan)['Brightness']
    assert f'Brightness x {brightness:.2f}' in jitter.describe(plan)
    jitter.plan = lambda rng: [('Brightness', brightness)]
    wanted = np.asarray(image) * brightness
    assert abs(np.asarray(jitter(image, None)) - wanted.clip(0, 255)).max() <= 1
