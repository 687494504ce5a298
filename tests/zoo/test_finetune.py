"""Catches faults in fine-tuning: wrong weights loaded, frozen parts that train, wrong messages."""

import json
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn
from PIL import Image

import build
import zoo
from common import ImageClassifier, resize_pos_embed
from config import ConfigError, load_config
from recipe.freeze import freeze
from weights.files import WeightsError, read_weights, write_weights

SHIPPED = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'    # 1000 classes at 48 pixels
FRUITS = ['apple', 'fig', 'kiwi', 'sour cherry']


def run(*arguments, code=0):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight images of four classes and a recipe: two steps at 64 pixels from shipped weights."""
    folder = tmp_path_factory.mktemp('fruits')
    random = np.random.default_rng(0)
    for part in ('train', 'val'):
        for name in FRUITS:
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                pixels = random.integers(0, 256, (70, 66, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f'{number}.png')
    shutil.copy(SHIPPED, folder / 'start.pdparams')
    (folder / 'fruits.yaml').write_text(f'''
BASE: {ROOT}/config/lit_data.yaml
DATA_PATH: {{TRAIN_DATASET_PATH: "{folder}/train", TRAIN_DATASET_LABEL_PATH: "",
            VAL_DATASET_PATH: "{folder}/val", VAL_DATASET_LABEL_PATH: ""}}
MODEL: {{NUM_CLASSES: 4, IMAGE_SIZE: 64, PRETRAINED: "{folder}/start.pdparams",
        FREEZE: [tokens_to_token, blocks.1, cls_token]}}
TRAIN: {{TRAIN_BATCH_SIZE: 4, TRAIN_NUM_WORKS: 0, VAL_NUM_WORKS: 0, OUTPUT_DIR: "{folder}/run",
        VISUALDL: false}}
SCHEDULER: {{NUM_EPOCHS: 1, WARMUP_EPOCHS: 0}}
''')
    return folder


@pytest.fixture(scope='module')
def finetuned(folder):
    return run('tools/train.py', '-c', folder / 'fruits.yaml')


def test_the_log_lists_loaded_interpolated_new_and_frozen_parameters(folder, finetuned):
    lines = finetuned.stdout.splitlines()
    count = len(read_weights(SHIPPED)[0])
    assert lines[1] == (f'weights of {folder}/start.pdparams: {count - 3} tensors loaded; '
                        'pos_embed interpolated; head.weight, head.bias newly initialised')
    start = json.loads((folder / 'run' / 'log.jsonl').read_text().splitlines()[0])
    assert start['weights']['adapted'] == ['pos_embed']
    assert start['weights']['fresh'] == ['head.weight', 'head.bias']
    names = [name for name in read_weights(SHIPPED)[0]
             if name.startswith(('tokens_to_token.', 'blocks.1.')) or name == 'cls_token']
    assert start['frozen'] == sorted(names)
    assert lines[2] == (f'frozen: tokens_to_token, blocks.1, cls_token ({len(names)} of {count} '
                        'tensors)')


def test_frozen_parts_stay_bit_equal_and_the_others_train(folder, finetuned):
    before, _ = read_weights(SHIPPED)
    after, metadata = read_weights(folder / 'run' / 'last.pdparams')
    frozen = json.loads((folder / 'run' / 'log.jsonl').read_text().splitlines()[0])['frozen']
    for name in before:
        if name in frozen:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        elif name not in ('pos_embed', 'head.weight', 'head.bias'):
            assert not np.array_equal(after[name], before[name]), f'{name} has not trained'
    assert after['head.weight'].shape == (256, 4)
    np.testing.assert_array_equal(after['pos_embed'],
                                  resize_pos_embed(before['pos_embed'], 17).numpy())
    assert metadata['class_names'] == FRUITS and metadata['image_size'] == 64


def test_prediction_uses_the_class_names_of_the_new_weights(folder, finetuned):
    weights = ['--weights', folder / 'run' / 'last.pdparams', folder / 'val' / 'fig' / '0.png']
    done = run('tools/predict.py', '--json', *weights, '-c', folder / 'fruits.yaml', '-o',
               'DATA_PATH.TRAIN_DATASET_PATH=not_there_any_more')
    top = json.loads(done.stdout)['top']
    assert sorted(place['name'] for place in top) == FRUITS
    assert all(place['name'] == FRUITS[place['class_id']] for place in top)
    done = run('tools/predict.py', *weights, code=2)    # the default: lit_data, of 1000 classes
    assert 'MODEL.NUM_CLASSES=4' in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_resumed_run_does_not_read_the_pretrained_weights(folder, finetuned):
    (folder / 'start.pdparams').rename(folder / 'gone')
    try:
        again = run('tools/train.py', '-c', folder / 'fruits.yaml', '-o', 'TRAIN.RESUME=auto')
        assert 'going on from' in again.stdout and 'weights of' not in again.stdout
        config = load_config(folder / 'fruits.yaml')
        with pytest.raises(ConfigError, match='MODEL.PRETRAINED .*start.pdparams: no such'):
            build.load_start(config, build.network(config))
    finally:
        (folder / 'gone').rename(folder / 'start.pdparams')


# ---- weights that don't fit

def test_weights_that_disagree_with_the_configuration_name_the_key(tmp_path):
    path = tmp_path / 'a.pdparams'

    def refusal(metadata, *overrides, start=False):
        write_weights(path, read_weights(SHIPPED)[0], metadata)
        config = load_config('config/lit_data.yaml', overrides)
        with pytest.raises(WeightsError) as caught:
            if start:
                build.load_start(config, build.network(config))
            else:
                build.trained_network(config, path)
        assert str(caught.value).startswith(f'{path}: ')
        return str(caught.value)

    assert 'set MODEL.NUM_CLASSES=1000' in refusal({}, 'MODEL.NUM_CLASSES=10')
    # An untrained head must not be evaluated or used for prediction.
    assert 'set MODEL.NUM_CLASSES=1000' in refusal({}, 'MODEL.NUM_CLASSES=10', 'MODEL.ADAPT=true')
    assert 'set MODEL.IMAGE_SIZE=48' in refusal({'image_size': 48}, 'MODEL.IMAGE_SIZE=64')
    assert 'set MODEL.NAME=t2t_vit_14' in refusal({'model': 't2t_vit_14'})
    assert 'set MODEL.NAME=t2t_vit_14' in refusal(
        {'model': 't2t_vit_14'}, f'MODEL.PRETRAINED={path}', start=True)
    other = refusal({}, f'MODEL.PRETRAINED={path}', 'MODEL.NAME=t2t_vit_10', start=True)
    assert 'looks like the weights of t2t_vit_7' in other, 'all but head and size is strict'


def test_pre_train_requires_fitting_weights_without_adapt(tmp_path):
    overrides = ['TRAIN.PRE_TRAIN=true', f'MODEL_PATH={SHIPPED}', 'MODEL.NUM_CLASSES=4',
                 'MODEL.IMAGE_SIZE=64']
    config = load_config('config/lit_data.yaml', overrides)
    with pytest.raises(WeightsError, match='1000 classes'):
        build.load_start(config, build.network(config))
    config = load_config('config/lit_data.yaml', [*overrides, 'MODEL.ADAPT=true'])
    loaded = build.load_start(config, build.network(config))
    assert (loaded.adapted, loaded.fresh) == (['pos_embed'], ['head.weight', 'head.bias'])
    with pytest.raises(ConfigError, match='MODEL.PRETRAINED and TRAIN.PRE_TRAIN'):
        load_config('config/lit_data.yaml', [*overrides, f'MODEL.PRETRAINED={SHIPPED}'])


class Distilled(ImageClassifier):
    """A minimal network with two prefix tokens and two heads."""

    heads = ('head', 'head_dist')
    position_axes = {'pos_embed': (1,)}

    def __init__(self, num_classes, side):
        super().__init__()
        self.pos_embed = self.create_parameter([1, 2 + side * side, 4])
        self.head = nn.Linear(4, num_classes)
        self.head_dist = nn.Linear(4, num_classes)
        self.header = nn.Linear(4, 4)


def test_both_heads_and_prefix_tokens_of_a_distilled_network_are_handled():
    source, target = Distilled(10, side=4), Distilled(3, side=6)
    state = {name: value.numpy() for name, value in source.state_dict().items()}
    loaded = zoo.load_state(target, state, 'file', adapt=True, new_head=True)
    assert loaded.fresh == ['head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias']
    assert loaded.taken == ['header.weight', 'header.bias']
    np.testing.assert_array_equal(target.pos_embed.numpy()[:, :2], state['pos_embed'][:, :2])
    assert freeze(target, ['backbone']) == ['header.bias', 'header.weight', 'pos_embed']


def test_a_head_of_another_input_width_is_refused():
    source, target = Distilled(10, side=4), Distilled(3, side=4)
    state = {name: value.numpy() for name, value in source.state_dict().items()}
    state['head.weight'] = np.zeros((5, 10), 'float32')
    with pytest.raises(WeightsError, match=r'head.weight \[5, 10\] instead of \[4, 3\]'):
        zoo.load_state(target, state, 'file', adapt=True, new_head=True)


# ---- freezing

@pytest.fixture
def network():
    return zoo.create_model('t2t_vit_12', num_classes=5, img_size=32)    # 12 blocks


def test_a_prefix_ends_at_a_dot(network):
    names = freeze(network, ['blocks.1'])
    assert names and all(name.startswith('blocks.1.') for name in names)
    assert not network.blocks[10].norm1.weight.stop_gradient
    assert freeze(network, []) == []


def test_freezing_the_backbone_leaves_only_the_head_to_the_optimizer(network):
    freeze(network, ['backbone'])
    config = load_config('config/lit_data.yaml')
    held = build.optimizer(config, network, 0.1)._parameter_list
    assert {id(p) for p in held} == {id(network.head.weight), id(network.head.bias)}
    network(paddle.ones([1, 3, 32, 32])).sum().backward()
    assert network.head.weight.grad is not None and network.blocks[11].mlp.fc2.weight.grad is None


@pytest.mark.parametrize('prefixes, said', [
    (['tokens_to_tokens'], 'did you mean tokens_to_token?'),
    (['backbon'], 'did you mean backbone?'),
    (['block.3'], 'did you mean blocks.3?'),
    (['zzz'], 'one of backbone, cls_token'),
    (['backbone', 'head'], 'nothing to train'),
])
def test_invalid_prefixes_are_refused(network, prefixes, said):
    with pytest.raises(ValueError, match=said.replace('?', r'\?')):
        freeze(network, prefixes)
    assert not network.head.weight.stop_gradient


@pytest.mark.parametrize('text, value', [
    ('backbone', ('backbone',)), ('[tokens_to_token, blocks.0]', ('tokens_to_token', 'blocks.0')),
    ('[]', ()), ('', ())])
def test_freeze_is_a_list_of_names(text, value):
    assert load_config('config/lit_data.yaml', [f'MODEL.FREEZE={text}']).MODEL.FREEZE == value


@pytest.mark.parametrize('text', ['[1]', '3', '0', 'true', 'false', '[""]', '{a: 1}'])
def test_freeze_refuses_other_types(text):
    with pytest.raises(ConfigError, match='MODEL.FREEZE must be a list of names'):
        load_config('config/lit_data.yaml', [f'MODEL.FREEZE={text}'])


def test_an_unknown_prefix_in_the_configuration_is_a_config_error(network):
    config = load_config('config/lit_data.yaml', ['MODEL.FREEZE=[block.0]'])
    with pytest.raises(ConfigError, match='MODEL.FREEZE: .*did you mean blocks.0') as caught:
        build.freeze_parts(config, network)
    assert caught.value.exit_code == 2
