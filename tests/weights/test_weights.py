"""Catches weight files of any format that are read or written wrongly, or refused unclearly.

Malicious files are in test_hostile.py.
"""

import argparse
import collections
import errno
import json
import math
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT

import build
import zoo
from config import load_config
from weights import unpickle
from weights.container import write_checkpoint
from weights.files import WeightsError, read_weights, write_weights
from zoo import names


def test_a_file_reads_back_with_its_metadata(tmp_path):
    path = tmp_path / 'a.pdparams'
    state = {'cls_token': np.arange(6, dtype='float32').reshape(1, 2, 3),
             'head.bias': paddle.to_tensor([1.0, 2.0])}
    write_weights(path, state, dict(class_names=['plate', 'Schüssel']))
    actual, metadata = read_weights(path)
    assert metadata == dict(class_names=['plate', 'Schüssel'])
    np.testing.assert_array_equal(actual['cls_token'], state['cls_token'])
    np.testing.assert_array_equal(actual['head.bias'], [1.0, 2.0])
    assert os.listdir(tmp_path) == ['a.pdparams']


def test_paddles_own_loader_reads_our_files(tmp_path):
    layer, other = paddle.nn.Linear(3, 4), paddle.nn.Linear(3, 4)
    write_weights(tmp_path / 'a.pdparams', layer.state_dict(), dict(model='linear'))
    other.set_state_dict(paddle.load(str(tmp_path / 'a.pdparams')))
    np.testing.assert_array_equal(layer.weight.numpy(), other.weight.numpy())


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_files_of_paddle_save_are_read(tmp_path, protocol):
    layer = paddle.nn.Linear(3, 4)
    path = tmp_path / 'a.pdparams'
    paddle.save(layer.state_dict(), str(path), protocol=protocol)
    state, metadata = read_weights(path)
    assert set(state) == {'weight', 'bias'} and metadata == {}
    np.testing.assert_array_equal(state['weight'], layer.weight.numpy())


def test_files_pickled_under_the_other_numpy_are_read(tmp_path):
    content = pickle.dumps({'a': np.arange(3.0), 'b': np.float32(2)}, protocol=2)
    ours = b'numpy._core.' if b'numpy._core.' in content else b'numpy.core.'
    other = b'numpy.core.' if ours == b'numpy._core.' else b'numpy._core.'
    assert ours in content
    path = tmp_path / 'a.pdparams'
    path.write_bytes(content.replace(ours, other))
    state, _ = read_weights(path)
    np.testing.assert_array_equal(state['a'], [0, 1, 2])
    assert state['b'] == 2


def test_a_split_weight_of_protocol_2_is_joined(tmp_path):
    """paddle.save splits arrays over 1 GiB; the parts here are smaller."""
    weight = np.arange(24, dtype='float32').reshape(4, 6)
    path = tmp_path / 'a.pdparams'
    path.write_bytes(pickle.dumps({
        'bias': np.ones(2), 'weight@@.0': weight.ravel()[:10], 'weight@@.1': weight.ravel()[10:20],
        'weight@@.2': weight.ravel()[20:],
        'UnpackBigParamInfor@@': {'weight': {'OriginShape': (4, 6), 'slices': [
            'weight@@.0', 'weight@@.1', 'weight@@.2']}}}, protocol=2))
    state, _ = read_weights(path)
    assert set(state) == {'bias', 'weight'}
    np.testing.assert_array_equal(state['weight'], weight)


def test_a_weight_split_by_paddle_is_joined(tmp_path):
    """Uses paddle.save's own code; a huge item size makes it split 24 numbers."""
    from paddle.framework import io_utils

    class Huge(np.ndarray):
        dtype = type('dtype', (), {'itemsize': 2 ** 27})

    weight = np.arange(24, dtype='float32').reshape(4, 6)
    split = io_utils._unpack_saved_dict({'weight': weight.view(Huge)}, 2)
    assert 'weight@@.3' in split
    path = tmp_path / 'a.pdparams'
    path.write_bytes(pickle.dumps({
        name: value if isinstance(value, dict) else np.array(value.tolist(), 'float32')
        for name, value in split.items()}, protocol=2))
    np.testing.assert_array_equal(read_weights(path)[0]['weight'], weight)


def test_paddles_optimizer_file_is_read(tmp_path):
    layer = paddle.nn.Linear(3, 4)
    rate = paddle.optimizer.lr.StepDecay(0.1, step_size=2)
    optimizer = paddle.optimizer.AdamW(rate, parameters=layer.parameters())
    layer(paddle.ones([1, 3])).sum().backward()
    optimizer.step()
    paddle.save(optimizer.state_dict(), str(tmp_path / 'a.pdopt'))
    state, metadata = read_weights(tmp_path / 'a.pdopt')
    wanted = optimizer.state_dict()
    assert set(state) == set(wanted) - {'LR_Scheduler'}
    for name, value in state.items():
        np.testing.assert_array_equal(value, wanted[name].numpy())
    assert metadata['LR_Scheduler'] == dict(last_epoch=0, last_lr=0.1)


def test_arrays_of_every_kind_are_read(tmp_path):
    path = tmp_path / 'a.pdparams'
    content = {'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
               'swapped': np.arange(3, dtype='>f4'), 'bool': np.array([True, False]),
               'empty': np.zeros((0, 4), 'float32'), 'scalar': np.array(3, 'int64'),
               'half': np.ones(2, 'float16'), 'number': np.float64(2.5)}
    for protocol in (2, 3, 4):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        state, _ = read_weights(path)
        for name, value in content.items():
            np.testing.assert_array_equal(state[name], value)
            assert state[name].dtype == value.dtype.newbyteorder('='), name
        assert all(value.flags.writeable for value in state.values())


def test_bfloat16_of_paddle_comes_as_float32(tmp_path):
    paddle.save({'a': paddle.to_tensor([1.0, -2.5], dtype='bfloat16')},
                str(tmp_path / 'a.pdparams'))
    state, _ = read_weights(tmp_path / 'a.pdparams')
    assert state['a'].dtype == np.float32 and state['a'].tolist() == [1, -2.5]


# The files are made by tests/fixtures/make_torch_fixtures.py.
OF_TORCH = {
    'plain': np.arange(6, dtype='float32').reshape(2, 3),
    'transposed': np.arange(6, dtype='float32').reshape(2, 3).T,
    'first_of_shared': np.arange(4, dtype='float32'),
    'second_of_shared': np.arange(4, 20, 2, dtype='float32').reshape(2, 4),
    'expanded': np.array([[1, 2, 3]] * 4, 'float32'),
    'bfloat16': np.array([1, -2.5, 3.140625, 2.0 ** 100, np.inf], 'float32'),
    'float16': np.array([1, -2.5, 65504], 'float16'),
    'float64': np.array([0.1]),
    'int64': np.array(7),
    'uint8': np.array([0, 255], 'uint8'),
    'bool': np.array([True, False]),
    'empty': np.zeros((0, 5), 'float32'),
}


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_files_of_torch_are_read_by_content(tmp_path, name):
    path = tmp_path / 'named.pdparams'    # the name must not matter
    path.write_bytes((ROOT / 'tests' / 'fixtures' / name).read_bytes())
    state, metadata = read_weights(path)
    assert metadata == {'layout': 'pytorch'} and list(state) == list(OF_TORCH)
    for name, value in OF_TORCH.items():
        np.testing.assert_array_equal(state[name], value)
        assert state[name].dtype == value.dtype and state[name].shape == value.shape, name
    state['first_of_shared'][:] = 0    # arrays don't share memory
    np.testing.assert_array_equal(state['second_of_shared'], OF_TORCH['second_of_shared'])


def test_a_checkpoint_of_torch_gives_its_averaged_weights():
    state, metadata = read_weights(ROOT / 'tests' / 'fixtures' / 'checkpoint.pth.tar')
    assert metadata == {'layout': 'pytorch', 'part': 'state_dict_ema', 'arch': 't2t_vit_7'}
    assert list(state) == ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean',
                           '1.running_var', '1.num_batches_tracked']
    assert all((value == 2).all() for value in state.values())
    assert state['0.weight'].shape == (2, 3)


@pytest.mark.parametrize('name, part', [
    ('net.pth', 'net'), ('model_state_dict.pth', 'model_state_dict'),
    ('lightning.ckpt', 'state_dict'), ('compiled.pth', 'model'), ('compiled_ranks.pth', None),
    ('settings.pth', 'model')])
def test_wrappers_and_prefixes_of_trainers_are_removed(name, part):
    """Files written by torch, see make_torch_fixtures.py."""
    state, metadata = read_weights(ROOT / 'tests' / 'fixtures' / name)
    assert {key: value.tolist() for key, value in state.items()} == {
        'weight': [[1, 2]], 'bias': [3]}
    assert metadata.get('part') == part and metadata['layout'] == 'pytorch'


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_settings_in_a_pickle_are_ignored(tmp_path, protocol):
    settings = argparse.Namespace(folder=Path('a', *'bcdefghijklmnopqrstuvw'), skip={'head'},
                                  sizes=frozenset([1]), counts=collections.Counter('aab'))
    path = tmp_path / 'a.pdparams'
    path.write_bytes(pickle.dumps({
        'history': collections.defaultdict(list, a=[1]), 'args': settings,
        'model': {'weight': np.ones(2)}}, protocol))    # as paddle.save writes plain dicts
    assert list(read_weights(path)[0]) == ['weight']


def test_a_dict_that_contains_itself_is_refused(tmp_path):
    content = {'model': {}}
    content['model'] = content
    (tmp_path / 'a.pth').write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match='model is a dict'):
        read_weights(tmp_path / 'a.pth')


def test_the_limits_fit_the_largest_network():
    """With the head of ImageNet-21k and positions for the largest image size."""
    sizes = []
    for name in zoo.MODELS:
        network = names.unfilled(name)
        shapes, width = names.shapes_of(network), network.num_features
        shapes.update({'head.weight': (width, 21_841), 'head.bias': (21_841,),
                       'pos_embed': (1, (names.MOST_PIXELS // 16) ** 2, width)})
        sizes.append((sum(map(math.prod, shapes.values())), max(map(math.prod, shapes.values()))))
    most, largest = map(max, zip(*sizes))
    assert 0.8 * unpickle.MOST_NUMBERS < most <= unpickle.MOST_NUMBERS
    assert 2 * 4 * largest <= unpickle.LONGEST_TEXT    # as text, in the worst case


def test_a_flipped_bit_in_a_file_of_torch_is_detected(tmp_path):
    content = bytearray((ROOT / 'tests' / 'fixtures' / 'zip.pth').read_bytes())
    content[content.index(np.float64(0.1).tobytes())] ^= 1
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match='checksum'):
        read_weights(path)


def test_safetensors_are_read(tmp_path):
    numpy_files = pytest.importorskip('safetensors.numpy')
    path = tmp_path / 'a.pdparams'
    state = {'a': np.arange(6, dtype='float32').reshape(2, 3), 'b': np.array(7),
             'c': np.ones(2, 'float16'), 'd': np.zeros((0, 3), 'float32'),
             'e': np.array([True, False])}
    numpy_files.save_file({f'module.{name}': value for name, value in state.items()}, path,
                          {'format': 'pt', 'metadata@@': '{"class_names": ["plate"]}'})
    actual, metadata = read_weights(path)
    assert metadata == {'class_names': ['plate'], 'layout': 'pytorch'} and set(actual) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(actual[name], value)
        assert actual[name].dtype == value.dtype and actual[name].flags.writeable


def safetensors_bytes(header, data):
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, 'little') + header + data


def test_bfloat16_of_safetensors_comes_as_float32(tmp_path):
    pytest.importorskip('safetensors')
    path = tmp_path / 'a.safetensors'
    path.write_bytes(safetensors_bytes(
        {'a': {'dtype': 'BF16', 'shape': [2, 1], 'data_offsets': [0, 4]}}, b'\x80\x3f\x20\xc0'))
    state, metadata = read_weights(path)
    assert state['a'].dtype == np.float32 and state['a'].tolist() == [[1], [-2.5]]
    assert metadata == {}


def test_without_the_package_safetensors_are_refused_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(safetensors_bytes(
        {'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}, bytes(4)))
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(WeightsError, match='pip install safetensors') as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('folders_can_be_synced', [True, False])
@pytest.mark.parametrize('write', [write_weights, write_checkpoint])
def test_a_write_reaches_the_disk_file_first_then_folder(tmp_path, monkeypatch, write,
                                                         folders_can_be_synced):
    """Some network file systems can't sync a folder; the file is written nevertheless."""
    synced, sync = [], os.fsync

    def fsync(handle):
        synced.append(os.path.isdir(f'/proc/self/fd/{handle}'))
        if synced[-1] and not folders_can_be_synced:
            raise OSError(errno.EINVAL, 'Invalid argument')
        sync(handle)

    monkeypatch.setattr(os, 'fsync', fsync)
    write(tmp_path / 'a', {'a': np.zeros(2)}, {})
    assert synced == [False, True] and os.listdir(tmp_path) == ['a']


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.pdparams'
    write_weights(path, {'a': np.zeros(2)}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_weights(path, {'a': np.ones(2)}, dict(names=object()))
    folder = tmp_path / 'not there'
    with pytest.raises(OSError):
        write_weights(folder / 'a.pdparams', {'a': np.ones(2)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.pdparams']


@pytest.mark.parametrize('content, said', [
    (b'', 'damaged'), (b'not a pickle', 'damaged'), (pickle.dumps([1, 2]), 'list'),
    (pickle.dumps({}), 'no weights'), (pickle.dumps({'a': 'text'}), 'a is a str'),
    (pickle.dumps({1: np.zeros(2)}), 'no name'),
    (pickle.dumps({'a': np.array(['x'])}), 'refused'),
    (pickle.dumps({'a': np.zeros(1000)})[:-100], 'damaged'),
    (pickle.dumps({'a': np.zeros(2), 'metadata@@': '{'}), 'metadata')])
def test_the_error_for_a_damaged_or_unknown_file_names_it(tmp_path, content, said):
    path = tmp_path / 'a.pdparams'
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match='no such weights file'):
        read_weights(tmp_path / 'a.pdparams')


def test_a_pytorch_file_of_official_names_gives_the_golden_logits(tmp_path):
    """Linear weights are transposed there; square ones would load without an error."""
    from safetensors.numpy import save_file
    from support.official import GOLDEN, VARIANTS, image_batch, official_tensor

    from t2t import sinusoid_table

    shapes = VARIANTS['t2t_vit_7_96']['state']
    state = {name: official_tensor(name, shape) for name, shape in shapes.items()}
    state['pos_embed'] = sinusoid_table(*shapes['pos_embed'][1:])
    save_file(state, tmp_path / 'a.safetensors', metadata={'format': 'pt'})
    config = load_config('config/t2t_vit_7.yaml', ['MODEL.IMAGE_SIZE=96'])
    network, _ = build.trained_network(config, tmp_path / 'a.safetensors')
    network.eval()
    golden = np.load(GOLDEN / 'forward_t2t_vit_7_96.npz')['logits']
    np.testing.assert_allclose(network(image_batch(96)).numpy(), golden, rtol=0, atol=1e-5)


def test_a_network_with_weights_of_a_file_draws_no_random_ones(tmp_path):
    """They take seconds in large networks. (A Performer draws its few features in any case.)"""
    config = load_config('config/lit_data.yaml', ['MODEL.NAME=vit_mini'])
    state = build.network(config).state_dict()
    write_weights(tmp_path / 'a.pdparams', state, {})
    paddle.seed(5)
    expected = paddle.rand([4]).numpy()
    paddle.seed(5)
    network, _ = build.trained_network(config, tmp_path / 'a.pdparams')
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name].numpy(), err_msg=name)
