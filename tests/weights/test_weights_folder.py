"""Catches weights folders that other programs, or this one, would read wrongly.

timm reads a folder where it can be imported by the Python that T2T_TORCH_PYTHON names.
"""

import hashlib
import json
import os
import subprocess

import numpy as np
import paddle
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file

import build
import convert
import zoo
from deploy.engines import is_export
from system.command import UsageError
from weights.files import WeightsError, read_weights, write_weights

CONFIG = '''
BASE: {root}/config/lit_data.yaml
MODEL: {{NAME: vit_tiny_patch16_224, NUM_CLASSES: 3, IMAGE_SIZE: 32}}
DATA: {{EVAL_TRANSFORM: center_crop, EVAL_CROP_RATIO: 0.8, MEAN: [0.5, 0.4, 0.3],
       CLASS_NAMES: {folder}/names.txt}}
'''
TIMM = '''
import sys, timm, torch, numpy, json
network = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()
images = torch.from_numpy(numpy.random.default_rng(0).random((2, 3, 32, 32), dtype='float32'))
config = timm.data.resolve_model_data_config(network)
print(json.dumps([network(images).tolist(), list(config['input_size']), list(config['mean']),
                  config['crop_pct'], config['interpolation'],
                  network.pretrained_cfg['label_names']]))
'''


@pytest.fixture(scope='module')
def published_folder(tmp_path_factory):
    """A folder written by the command, its configuration and the network it is from."""
    folder = tmp_path_factory.mktemp('folder')
    (folder / 'names.txt').write_text('plate\nSchüssel\nTasse\n', encoding='utf-8')
    (folder / 'a.yaml').write_text(CONFIG.format(root=ROOT, folder=folder))
    config = build.load_config(folder / 'a.yaml')
    paddle.seed(1)
    network = build.network(config)
    network.eval()
    write_weights(folder / 'a.pdparams', network.state_dict(), {})
    convert.main([str(folder / 'a.pdparams'), f'{folder}/new/out/', '-c', str(folder / 'a.yaml')])
    return folder / 'new' / 'out', config, network


def test_the_folder_holds_what_others_expect(published_folder):
    folder, _, network = published_folder
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'model.safetensors']
    content = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    assert content['architecture'] == 'vit_tiny_patch16_224'
    assert (content['num_classes'], content['num_features']) == (3, 192)
    assert content['label_names'] == ['plate', 'Schüssel', 'Tasse']
    data = content['pretrained_cfg']
    assert data['input_size'] == [3, 32, 32] and data['mean'] == [0.5, 0.4, 0.3]
    crop = [data[f'crop_{key}'] for key in ('pct', 'mode')]
    assert crop == [0.8, 'center'] and data['interpolation'] == 'bicubic'
    arrays = load_file(folder / 'model.safetensors')    # by the safetensors library
    np.testing.assert_array_equal(arrays['blocks.0.mlp.fc1.weight'].T,
                                  network.blocks[0].mlp.fc1.weight.numpy())
    card = (folder / 'README.md').read_text(encoding='utf-8')
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    assert digest in card and '32 pixels, center_crop 0.8, bicubic' in card
    count = sum(array.size for array in arrays.values())
    assert f'{count:,} parameters' in card


def test_the_folder_is_read_wherever_weights_are(published_folder):
    folder, config, network = published_folder
    assert not is_export(folder)
    images = paddle.to_tensor(np.random.default_rng(0).random((2, 3, 32, 32), dtype='float32'))
    read, transform, names, _ = build.open_model(config, build.weights_path(config, str(folder)))
    read.eval()
    assert names == ['plate', 'Schüssel', 'Tasse'] and transform.image_size == 32
    np.testing.assert_array_equal(read(images).numpy(), network(images).numpy())
    for key in ('MODEL_PATH', 'MODEL.PRETRAINED'):
        again = build.load_config(folder.parent.parent / 'a.yaml', [f'{key}={folder}'])
        if key == 'MODEL_PATH':
            assert build.weights_path(again) == str(folder)
        else:
            assert len(build.load_start(again, build.network(again)).fresh) == 0


@pytest.mark.skipif('T2T_TORCH_PYTHON' not in os.environ, reason='no Python with timm is named')
def test_timm_reads_the_folder(published_folder):
    folder, _, network = published_folder
    done = subprocess.run([os.environ['T2T_TORCH_PYTHON'], '-c', TIMM, str(folder)],
                          capture_output=True, text=True, timeout=120)
    if 'No module named' in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    logits, size, mean, crop, filter, names = json.loads(done.stdout)
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype='float32')
    with paddle.no_grad():
        np.testing.assert_allclose(logits, network(paddle.to_tensor(images)).numpy(), atol=1e-5)
    assert (size, mean, crop, filter) == ([3, 32, 32], [0.5, 0.4, 0.3], 0.8, 'bicubic')
    assert names == ['plate', 'Schüssel', 'Tasse']


def test_folders_of_other_programs_are_read(tmp_path):
    network = zoo.create_model('vit_tiny_patch16_224', img_size=32, num_classes=2)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    turned = {name: np.ascontiguousarray(array.T) if array.ndim == 2 else array
              for name, array in state.items()}
    save_file(turned, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    (tmp_path / 'config.json').write_text(json.dumps(dict(
        architecture='vit_tiny_patch16_224.augreg_in21k', label_names={'0': 'n1', '1': 'n2'},
        label_descriptions={'n1': 'plate'}, pretrained_cfg=dict(input_size=[3, 32, 32]))))
    read, metadata = read_weights(tmp_path)
    assert metadata == dict(arch='vit_tiny_patch16_224.augreg_in21k', image_size=32,
                            class_names=['plate', 'n2'], layout='pytorch')
    model = zoo.names.pretrained_model('vit_tiny_patch16_224', tmp_path)
    assert (model.img_size, model.num_classes) == (32, 2)
    np.testing.assert_array_equal(model.head.weight.numpy(), state['head.weight'])
    (tmp_path / 'config.json').unlink()
    assert set(read_weights(tmp_path)[0]) == set(read)


@pytest.mark.parametrize('text, message', [
    ('{', 'config.json: cannot be read: Expecting'), ('[]', 'holds no keys'),
    ('[' * 100000, 'nested too deeply'), (' ' * 4_000_001, 'larger than'), (b'\xff', 'utf-8')])
def test_a_damaged_config_is_refused(tmp_path, text, message):
    save_file({'a': np.zeros(1, 'float32')}, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize('content', [
    dict(architecture=3, num_classes='x', pretrained_cfg=[], label_names=7),
    dict(pretrained_cfg=dict(input_size=['a'])), dict(label_names={'1': 'a', '7': 'b'}),
    dict(label_names=[1, 2], label_descriptions='x'), {}])
def test_values_of_other_types_are_ignored(tmp_path, content):
    save_file({'a': np.zeros(1, 'float32')}, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(content))
    assert read_weights(tmp_path)[1] == {}


def test_refused_requests(published_folder, tmp_path):
    folder, _, _ = published_folder
    weights = str(folder.parent.parent / 'a.pdparams')
    with pytest.raises(UsageError, match='name the configuration with -c'):
        convert.main([weights, f'{tmp_path}/out/'])
    with pytest.raises(UsageError, match='is a folder that is not empty; .* --force'):
        convert.main([weights, f'{folder}/', '-c', str(folder.parent.parent / 'a.yaml')])
    with pytest.raises(UsageError, match='the layout of pytorch'):
        convert.main([weights, f'{tmp_path}/out/', '--layout', 'paddle', '-c',
                      str(folder.parent.parent / 'a.yaml')])
    assert os.listdir(tmp_path) == []
