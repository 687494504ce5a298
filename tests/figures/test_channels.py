"""Catches channels without information that are not counted, or informative ones that are."""

import re

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image

import visualize
import zoo
from figures.channels import FRAMES, GAP, grids, judge, mosaic

IMAGES = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[::40]
TILE = 32 + 2 * GAP


def test_constant_channels_are_dead_and_large_ones_saturated():
    maps = np.random.default_rng(0).normal(size=(3, 8, 5, 5))
    maps[:, 1] = 0                                        # zero
    maps[:, 2] = np.array([1, 2, 3])[:, None, None]       # another constant in each image
    maps[:, 3] = maps[:, 3] * 0.05 + 1                    # nearly constant
    maps[:, 4] *= 30                                      # too large
    maps[:, 5] = maps[:, 5] * 0.5 + 2                     # an offset is no fault
    dead, saturated = judge(maps)
    assert np.flatnonzero(dead).tolist() == [1, 2, 3]
    assert np.flatnonzero(saturated).tolist() == [4]
    assert str(judge(maps)) == '8 channels: 3 dead (37.5 %), 1 saturated (12.5 %)'
    # Only the scale of a network's own channels matters.
    assert np.array_equal(judge(maps * 1e-3).saturated, saturated)


def test_a_mosaic_shows_each_channel_from_black_to_white_in_its_place():
    grids = np.zeros((18, 2, 2))
    grids[17] = [[-3, 1], [1, 5]]
    picture = np.asarray(mosaic(grids, judge(grids[None])))
    assert picture.shape == (2 * TILE, 16 * TILE, 3)
    last = picture[TILE + GAP:, TILE + GAP:][:32, :32, 0]
    assert last[0, 0] == 0 and last[-1, -1] == 255 and last[0, -1] == last[-1, 0] == 128
    assert (picture[:TILE, 5 * TILE] == FRAMES['dead']).all()
    assert (picture[TILE + 1:, 2 * TILE + 1:] == 255).all()    # no channels there


@pytest.fixture
def damaged_vit(tmp_path):
    """Weights of vit_mini with 5 channels of the patch embedding at 0 and 3 far too large."""
    paddle.seed(0)
    network = zoo.create_model('vit_mini')
    weight, bias = network.patch_embed.proj.weight.numpy(), network.patch_embed.proj.bias.numpy()
    weight[10:15], bias[20:23] = 0, 100
    network.patch_embed.proj.weight.set_value(weight)
    network.patch_embed.proj.bias.set_value(bias)
    paddle.save(network.state_dict(), str(tmp_path / 'vit.pdparams'))
    return tmp_path / 'vit.pdparams'


def test_the_command_counts_over_all_images_and_draws_the_first(damaged_vit, tmp_path, capsys):
    visualize.main(['tokens', *map(str, IMAGES), '-c', str(ROOT / 'config/tiny_imagenet_mini.yaml'),
                    '-o', 'MODEL.NAME=vit_mini', '--weights', str(damaged_vit),
                    '--out', str(tmp_path / 'out')])
    target = tmp_path / 'out' / 'patch_embed.proj.png'
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (f'{target}: 128 channels: 5 dead (3.9 %), 3 saturated (2.3 %) over '
                        f'{len(IMAGES)} image(s)')
    # A block adds to its input; the norms of the others hide no channel that is too large.
    assert [re.match(rf'{tmp_path}/out/(\S+)\.png: 128 channels: \d+ dead .* 3 saturated', line)[1]
            for line in lines[1:]] == ['blocks.0', 'blocks.3', 'blocks.6']
    picture = np.asarray(Image.open(target))
    assert picture.shape == (8 * TILE, 16 * TILE, 3)
    frames = picture[::TILE, ::TILE].reshape(-1, 3)
    for name, channels in (('dead', range(10, 15)), ('saturated', range(20, 23))):
        assert np.flatnonzero((frames == FRAMES[name]).all(axis=1)).tolist() == list(channels)


def test_the_command_goes_on_behind_an_unreadable_image(tmp_path, capsys):
    (tmp_path / 'text.png').write_text('no image')
    assert visualize.main(['tokens', str(tmp_path / 'text.png'), str(IMAGES[0]),
                           '--out', str(tmp_path / 'out')]) == 1
    shown, error = capsys.readouterr()
    assert 'text.png: not an image of a known format' in error
    assert re.findall(r'(\S+)\.png: 64 channels:', shown) == [
        str(tmp_path / 'out' / f'tokens_to_token.attention{number}') for number in (1, 2)]
    assert 'over 1 image(s)' in shown


@pytest.mark.parametrize('name', ['pit_ti_distilled', 't2t_vit_dense'])
def test_grids_are_the_tokens_of_the_blocks_without_prefix_tokens(name):
    network = zoo.create_model(name, num_classes=2, img_size=64)
    network.eval()
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype='float32')
    found = grids(network, images)
    for layer, grid in found.items():
        assert grid.shape[0] == 2 and grid.shape[2] == grid.shape[3], layer
    # What the last norm gets: the same tokens, in rows.
    seen = []
    handle = network.norm.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with paddle.no_grad():
        network(paddle.to_tensor(images))
    handle.remove()
    last = list(found.values())[-1]
    if seen[0].shape[1] > network.num_prefix_tokens:    # PiT's norm gets the prefix tokens only
        tokens = seen[0][:, network.num_prefix_tokens:].numpy()
        np.testing.assert_array_equal(last.transpose(0, 2, 3, 1).reshape(tokens.shape), tokens)
    else:
        assert last.shape[1:] == (256, 2, 2)
