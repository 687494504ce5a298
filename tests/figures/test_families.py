"""Catches networks of the zoo that can be drawn neither as attention nor as feature maps."""

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from support import svg

import visualize
import zoo
from data.decode import decode_image
from data.transforms import EvalTransform
from figures import channels, rollout, style

# One small network of each class.
SMALL = {network: name for name, (network, _) in reversed(zoo.MODELS.items()) if '_mini' in name}
SMALL[zoo.T2T_ViT_Dense] = 't2t_vit_dense'
POOLING = {zoo.PiT}    # no rollout: their tokens are pooled on the way
EXAMPLE = ROOT / 'lit_data/val/n07579787/lit_val_00000097.JPEG'


def test_every_class_of_networks_has_a_small_one():
    assert set(SMALL) == {network for network, _ in zoo.MODELS.values()}


@pytest.mark.parametrize('name', [*SMALL.values(), 't2t_vit_t_mini', 't2t_vit_c_mini'])
def test_attention_and_tokens_of_every_family(name):
    network = zoo.create_model(name, num_classes=3, img_size=64)
    network.eval()
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype='float32')
    grids = channels.grids(network, images)
    assert len(grids) > 2
    for grid in grids.values():
        assert channels.mosaic(grid[0], channels.judge(grid)).width > 0
    maps = rollout.class_attention(network, images)
    for grid in maps:    # (1, heads, side, side); the rest to 1 is that of the prefix tokens
        sums = grid.sum(axis=(2, 3))
        assert grid.shape[2] == grid.shape[3] and (sums > 0).all() and (sums < 1).all()
    if type(network) in POOLING:
        with pytest.raises(ValueError, match='pools'):
            rollout.forward_with_attention(network, images)
        return
    assert len(maps) == sum(hasattr(block, 'attn') for block in network.blocks)
    _, shares, _ = rollout.forward_with_attention(network, images)
    assert shares.shape == (1, *maps[0].shape[2:])


@pytest.fixture(scope='module')
def pit(tmp_path_factory):
    """Options for weights of a small PiT."""
    path = tmp_path_factory.mktemp('weights') / 'pit.pdparams'
    paddle.seed(0)
    paddle.save(zoo.create_model('pit_mini').state_dict(), str(path))
    return ['-c', str(ROOT / 'config/tiny_imagenet_mini.yaml'), '-o', 'MODEL.NAME=pit_mini',
            '--weights', str(path)]


def test_blocks_and_heads_that_were_chosen_are_drawn(pit, tmp_path):
    visualize.main(['attention', str(EXAMPLE), *pit, '--blocks', '0', '6', '--heads', '1', '0',
                    '--out', str(tmp_path)])
    picture = Image.open(tmp_path / f'{EXAMPLE.stem}.blocks.png')
    assert picture.width == 1350 and np.asarray(picture).std() > 10


@pytest.mark.parametrize('options, said', [
    ([], 'pit_mini: attention rollout needs the same tokens'),
    (['--blocks', '7'], 'pit_mini: has no block 7: blocks are 0 to 6'),
    (['--blocks', '0', '--heads', '2'], 'block 0 has no head 2: heads are 0 to 1')])
def test_what_cannot_be_drawn_is_said_in_one_line(pit, tmp_path, options, said):
    with pytest.raises(Exception, match=said) as caught:
        visualize.main(['attention', str(EXAMPLE), *pit, *options, '--out', str(tmp_path)])
    assert caught.value.exit_code == 2 and '\n' not in str(caught.value)


def test_the_cells_of_a_sheet_are_the_heads_of_the_blocks(tmp_path):
    network, transform = zoo.create_model('vit_mini', num_classes=3), EvalTransform(64)
    network.eval()
    image = decode_image(EXAMPLE)
    style.save(visualize.block_sheet(network, transform, image, [0, 6], [1, 3]),
               str(tmp_path / 'a.svg'))
    root = svg.read(tmp_path / 'a.svg')
    assert svg.texts(root) == ['block 0', 'head 1', 'head 3', 'block 6', 'head 1', 'head 3']
    with paddle.no_grad(), network.recording() as record:
        network(paddle.to_tensor(transform(image)[None]))
    box, cells = rollout.seen_box(transform, image.size), svg.images(root)
    for cell, (block, head) in zip(cells, [(0, 1), (0, 3), (6, 1), (6, 3)]):
        row = record.attention[f'blocks.{block}.attn'][0, head, 0, 1:].numpy()
        assert np.array_equal(cell, rollout.overlay(image, row.reshape(8, 8), box))
