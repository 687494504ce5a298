"""Catches a wrong attention rollout, misplaced heat maps, and a command that writes wrong files."""

import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support import svg

import zoo
from data.decode import decode_image
from data.transforms import EvalTransform
from figures.rollout import attention_rollout, forward_with_attention, heat_map, overlay, seen_box

IMAGES = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))


def attention_maps(count, num_tokens, heads=3, batch=2, seed=0):
    scores = np.random.RandomState(seed).randn(count, batch, heads, num_tokens, num_tokens) * 2
    maps = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return list(maps.astype('float32'))


def reference_rollout(maps, num_prefix):
    """The paper's recursion, on whole matrices, one image and one block at a time, in float64."""
    result = []
    for index in range(maps[0].shape[0]):
        rollout = np.eye(maps[0].shape[-1])
        for attention in maps:
            layer = 0.5 * attention[index].astype('float64').mean(axis=0) + 0.5 * np.eye(
                len(rollout))
            rollout = layer / layer.sum(axis=-1, keepdims=True) @ rollout
        patches = rollout[0, num_prefix:]
        result.append(patches.reshape(2 * [int(len(patches) ** 0.5)]))
    return np.array(result)


@pytest.mark.parametrize('num_prefix', [1, 2])
def test_rollout_is_the_product_of_the_matrices(num_prefix):
    maps = attention_maps(count=7, num_tokens=49 + num_prefix)
    rollout = attention_rollout(maps, num_prefix)
    assert rollout.shape == (2, 7, 7) and rollout.dtype == np.float32
    np.testing.assert_allclose(rollout, reference_rollout(maps, num_prefix), rtol=1e-4, atol=1e-8)
    # The test would notice a wrong order of the blocks.
    assert abs(attention_rollout(maps[::-1], num_prefix) - rollout).max() > 1e-4


def test_rollout_of_identity_and_uniform_maps():
    identity = np.tile(np.eye(5, dtype='float32'), (1, 2, 1, 1))
    assert not attention_rollout([identity] * 3).any()
    uniform = np.full((1, 2, 5, 5), 0.2, dtype='float32')
    np.testing.assert_allclose(attention_rollout([uniform]), np.full((1, 2, 2), 0.1), rtol=1e-6)


def test_maps_without_a_rollout_are_refused():
    with pytest.raises(ValueError, match='no attention maps'):
        attention_rollout([])
    with pytest.raises(ValueError, match='pools'):
        attention_rollout(attention_maps(1, 17) + attention_maps(1, 5))
    with pytest.raises(ValueError, match='no square'):
        attention_rollout(attention_maps(2, 8))


@pytest.mark.parametrize('name', ['t2t_vit_7', 't2t_vit_t_14', 't2t_vit_dense'])
def test_logits_and_rollout_of_a_network(name):
    paddle.seed(1)
    network = zoo.create_model(name, num_classes=5, img_size=48)
    network.eval()
    images = np.random.RandomState(0).randn(2, 3, 48, 48).astype('float32')
    logits, rollout, record = forward_with_attention(network, images)
    with paddle.no_grad():
        plain = network(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(logits.numpy(), plain, atol=1e-6)
    blocks = [attention.numpy() for layer, attention in record.attention.items()
              if layer.startswith('blocks.')]
    np.testing.assert_allclose(rollout, reference_rollout(blocks, 1), rtol=1e-4, atol=1e-8)
    assert rollout.shape == (2, 3, 3) and (rollout.sum(axis=(1, 2)) < 1).all()


@pytest.mark.parametrize('size', [(300, 200), (120, 500), (224, 224)])
@pytest.mark.parametrize('mode, crop_ratio', [('squash', 0.9), ('center_crop', 0.9),
                                              ('center_crop', 1.0), ('center_crop', 0.6)])
def test_seen_box_is_what_the_transform_crops(size, mode, crop_ratio):
    width, height = size
    transform = EvalTransform(96, mode, crop_ratio)
    left, top, right, bottom = seen_box(transform, size)
    # The red channel holds the relative column of a pixel, the green one the row.
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    ramps = np.stack([across, down, 0 * down], axis=-1)
    seen = transform.pixels(Image.fromarray((ramps * 255).round().astype('uint8'))) / 255.0
    for channel, (low, high), length in ((0, (left, right), width), (1, (top, bottom), height)):
        middle = seen[48, :, 0] if channel == 0 else seen[:, 48, 1]
        pixel = (high - low) / 96
        expected = (low + pixel * (np.arange(96) + 0.5)) / length
        inner = slice(4, -4)    # at the image's edge the filters repeat pixels
        assert abs(middle[inner] - expected[inner]).max() < 2 / 255 + pixel / length


def test_overlay_colours_the_values_and_darkens_the_rest():
    photo = Image.new('RGB', (400, 200), (120, 120, 120))
    values = np.zeros((4, 4))
    values[0, 3] = 5
    picture = np.asarray(overlay(photo, values, box=(100, 0, 300, 200))).astype(int)
    assert picture.shape == (200, 400, 3)
    assert (picture[:, :95] == 40).all() and (picture[:, 305:] == 40).all()
    seen = picture[:, 100:300].sum(axis=-1)
    row, column = np.unravel_index(seen.argmax(), seen.shape)
    assert row < 50 and column >= 150
    # Large images are scaled down; narrow images and constant values work.
    assert overlay(Image.new('RGB', (5000, 1000)), values).size == (512, 102)
    assert overlay(Image.new('RGB', (9000, 1)), values, box=(4499.5, 0, 4500.5, 1)).size == (512, 1)
    assert len(heat_map(np.ones((3, 3)), (9, 9)).getcolors()) == 1


def test_heat_colours_have_increasing_lightness():
    ramp = np.asarray(heat_map(np.arange(50)[None], (500, 1)).convert('L')).astype(int)[0]
    assert (np.diff(ramp[::20]) > 0).all() and ramp[-1] - ramp[0] > 180


# ---- tools/visualize.py attention

def visualize(*arguments, code=0):
    done = subprocess.run([sys.executable, 'tools/visualize.py', 'attention', '-c',
                           'config/lit_data.yaml', *map(str, arguments)],
                          capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_svg_files_hold_the_picture_pixel_by_pixel(tmp_path):
    for form in ('png', 'svg'):
        visualize(IMAGES[0], '--out', tmp_path, '--format', form)
    picture = Image.open(tmp_path / f'{IMAGES[0].stem}.attention.png')
    root = svg.read(tmp_path / f'{IMAGES[0].stem}.attention.svg')
    (embedded,) = svg.images(root)
    np.testing.assert_array_equal(embedded, np.asarray(picture))
    assert [float(root.get(side).rstrip('pt')) * 100 / 72 for side in ('width', 'height')] == (
        pytest.approx(picture.size))


def test_the_command_writes_a_picture_for_each_image(tmp_path):
    twin = tmp_path / 'twin' / IMAGES[0].name
    twin.parent.mkdir()
    twin.write_bytes(IMAGES[1].read_bytes())
    (tmp_path / 'text.png').write_text('no image')
    out = tmp_path / 'out'
    done = visualize(IMAGES[0], tmp_path / 'text.png', twin, '--feature-maps', '--out', out, code=1)
    assert 'text.png: not an image of a known format' in done.stderr
    written = sorted(path.name for path in out.iterdir())
    shown = ('attention', 'attention1', 'attention2', 'project')
    assert written == sorted(f'{IMAGES[0].stem}{number}.{kind}.png'
                             for number in ('', '-2') for kind in shown)
    assert done.stdout.splitlines()[0] == str(out / f'{IMAGES[0].stem}.attention.png')
    for number, source in (('', IMAGES[0]), ('-2', IMAGES[1])):
        picture = decode_image(out / f'{IMAGES[0].stem}{number}.attention.png')
        assert picture.size == decode_image(source).size
        assert np.asarray(picture).std() > 5


def test_the_command_refuses_an_export(tmp_path):
    done = visualize('--weights', tmp_path, '--out', tmp_path / 'out', code=2)
    assert 'logits only' in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'out').exists()
