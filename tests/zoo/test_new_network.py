"""Catches code that depends on the networks of the zoo: a new one trains, resumes, converts,
exports and fine-tunes. It has no position table, class token or attention, and few options."""

import json
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image

import build
import zoo
from config import ConfigError, load_config
from recipe.optimizer import decays, rate_scales
from weights.files import read_weights, write_weights
from zoo import names
from zoo.macs import count_macs, total_macs

NETWORK = '''
import paddle
from paddle import nn

from common import ImageClassifier, Mlp, grid_to_tokens, initialise, square_side, tokens_to_grid


class Mixer(ImageClassifier):
    """Average pooling in place of attention (PoolFormer, Yu et al., CVPR 2022)."""

    namings = {'elsewhere': ((r'^stem[.]', 'patch_embed.'), (r'^stages[.]', 'blocks.'))}
    no_weight_decay = ('scale',)

    def __init__(self, img_size=32, num_classes=10, width=16, depth=3, drop_rate=0.0):
        super().__init__()
        self.img_size, self.num_features = square_side(img_size), width
        self.patch_embed = nn.Conv2D(3, width, 8, 8)
        self.scale = self.create_parameter(
            [1, width], default_initializer=nn.initializer.Constant(1.0))
        self.blocks = nn.LayerList([Mlp(width, 2 * width, drop_rate) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.reset_head(num_classes)
        initialise(self)

    def forward_prefix(self, x):
        x = self.patch_embed(x)                                 # (B, C, side, side)
        side = x.shape[-1]
        for block in self.blocks:
            x = x + nn.functional.avg_pool2d(x, 3, 1, 1)
            x = x + tokens_to_grid(block(grid_to_tokens(x) * self.scale), side)
        return self.norm(grid_to_tokens(x).mean(axis=1, keepdim=True))     # (B, 1, C)

    def grid_layers(self):
        return [('patch_embed', self.patch_embed, self.img_size // 8)]
'''
ROW = "zoo.MODELS['mixer_tiny'] = mixer.Mixer, dict(width=16, depth=3)"    # the one row

RUN = f'''
import json, sys
sys.path[:0] = sys.argv[1:3]
from system import start
start.prepare()
import mixer, zoo
{ROW}
import convert, export, train, val
for name, *arguments in json.loads(sys.argv[3]):
    print('>', name, flush=True)
    if name == 'remove':
        import pathlib
        [pathlib.Path(path).unlink() for path in arguments]
    else:
        sys.modules[name].main(arguments)
'''

RECIPE = '''
BASE: {root}/config/lit_data.yaml
MODEL_PATH: "{folder}/run/last.pdparams"
DATA_PATH: {{TRAIN_DATASET_PATH: "{folder}/train", TRAIN_DATASET_LABEL_PATH: "",
            VAL_DATASET_PATH: "{folder}/train", VAL_DATASET_LABEL_PATH: ""}}
MODEL: {{NAME: mixer_tiny, NUM_CLASSES: 2, IMAGE_SIZE: 32}}
TRAIN: {{TRAIN_BATCH_SIZE: 4, TRAIN_NUM_WORKS: 0, VAL_NUM_WORKS: 0, OUTPUT_DIR: "{folder}/run",
        VISUALDL: false, RESUME: auto, DECAY_ALL: false}}
EMA: {{DECAY: 0.9}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 0, LAYER_DECAY: 0.5, BASE_LR: 0.01}}
'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('new')
    (folder / 'mixer.py').write_text(NETWORK)
    random = np.random.default_rng(0)
    for name in ('dark', 'light'):
        (folder / 'train' / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 128, (40, 36, 3), dtype=np.uint8) + 127 * (name == 'light')
            Image.fromarray(pixels.astype('uint8')).save(folder / 'train' / name / f'{number}.png')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=folder))
    return folder


@pytest.fixture
def registered(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    import mixer
    monkeypatch.setitem(zoo.MODELS, 'mixer_tiny', (mixer.Mixer, dict(width=16, depth=3)))
    yield zoo.create_model('mixer_tiny', num_classes=2)
    names.unfilled.cache_clear()


def run(folder, *commands):
    done = subprocess.run(
        [sys.executable, '-c', RUN, str(ROOT / 'tools'), str(folder), json.dumps(commands)],
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_network_trains_resumes_converts_exports_and_fine_tunes(folder):
    recipe, weights = str(folder / 'recipe.yaml'), folder / 'run' / 'last.pdparams'
    run(folder, ('train', '-c', recipe))
    first = weights.read_bytes()
    newest = max((folder / 'run' / 'checkpoints').iterdir())
    out = [str(folder / name) for name in ('a.pth', 'b.safetensors', 'exported')]
    said = run(
        folder, ('remove', str(newest)), ('train', '-c', recipe),    # the second epoch again
        ('convert', str(weights), out[0]), ('convert', out[0], out[1]),
        ('export', '-c', recipe, out[2]), ('val', '-c', recipe, '--weights', out[2]),
        ('train', '-c', recipe, '-o', f'TRAIN.OUTPUT_DIR={folder}/finetuned', 'MODEL.NUM_CLASSES=5',
         'MODEL.IMAGE_SIZE=64', f'MODEL.PRETRAINED={out[1]}', 'MODEL.FREEZE=[backbone]',
         'SCHEDULER.NUM_EPOCHS=1', 'SCHEDULER.WARMUP_EPOCHS=0'))
    assert 'going on from' in said and weights.read_bytes() == first
    assert 'a.pth: mixer_tiny (by its shapes), 32 pixels' in said
    assert said.count('the logits of two images are equal bit by bit') == 2
    resumed, exported, _ = [line for line in said.splitlines()
                            if line.startswith('ImageNet final val acc')]
    assert resumed == exported
    state, finetuned = read_weights(weights)[0], read_weights(folder / 'finetuned/last.pdparams')[0]
    assert 'head.weight, head.bias newly initialised' in said
    assert finetuned['head.bias'].shape == (5,)
    for name in set(state) - {'head.weight', 'head.bias'}:
        np.testing.assert_array_equal(state[name], finetuned[name])


def test_optimizer_weight_files_and_macs_use_the_networks_description(folder, registered, tmp_path):
    assert decays(registered) == {'patch_embed.weight', 'head.weight'} | {
        f'blocks.{index}.fc{number}.weight' for index in range(3) for number in (1, 2)}
    scales = rate_scales(registered, backbone_scale=0.1, layer_decay=0.5)
    assert scales['head.bias'] == 1 and scales['norm.weight'] == 0.1
    assert scales['blocks.2.fc1.bias'] == 0.05
    assert scales['blocks.0.fc2.weight'] == scales['scale'] * 2 == 0.1 / 8

    state = {name: tensor.numpy() for name, tensor in registered.state_dict().items()}
    foreign = {name.replace('patch_embed', 'stem').replace('blocks', 'stages'): array
               for name, array in state.items()}
    write_weights(tmp_path / 'a.pdparams', foreign, {})
    network = names.pretrained_model('mixer_tiny', tmp_path / 'a.pdparams')
    images = paddle.ones([1, 3, 32, 32])
    np.testing.assert_array_equal(network(images).numpy(), registered(images).numpy())
    assert names.recognise(foreign) == ['mixer_tiny']
    # 16 patches: a patch embedding of 192 * 16 weights, 3 blocks of two layers; two classes.
    assert total_macs(count_macs(registered, 32)) == dict(
        linear=16 * (192 * 16 + 3 * 2 * 16 * 32) + 32, attention=0,
        total=16 * (192 * 16 + 3 * 2 * 16 * 32) + 32)

    config = load_config(folder / 'recipe.yaml', ['MODEL.DROP_PATH_RATE=0.1'])
    with pytest.raises(ConfigError, match='MODEL.DROP_PATH_RATE .*MODEL.NAME is mixer_tiny'):
        build.network(config)
