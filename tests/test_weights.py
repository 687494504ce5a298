"""Weight files: what is written reads back, and what strangers send does no harm."""

import os
import pickle
import pickletools

import numpy as np
import paddle
import pytest

from runtime.weights import WeightsError, read_weights, write_weights


def test_a_file_reads_back_with_its_metadata(tmp_path):
    path = tmp_path / 'a.pdparams'
    state = {'cls_token': np.arange(6, dtype='float32').reshape(1, 2, 3),
             'head.bias': paddle.to_tensor([1.0, 2.0])}
    write_weights(path, state, dict(class_names=['plate', 'Schüssel']))
    found, metadata = read_weights(path)
    assert metadata == dict(class_names=['plate', 'Schüssel'])
    np.testing.assert_array_equal(found['cls_token'], state['cls_token'])
    np.testing.assert_array_equal(found['head.bias'], [1.0, 2.0])
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


class Gadget:
    """Runs a function when it is unpickled by a trusting reader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    command = f'touch {marker}'
    array = np.zeros(2)
    yield 'os.system', Gadget(os.system, command)
    yield 'nested', {'a': {'b': [Gadget(os.system, command)]}}
    yield 'eval', {'a': Gadget(eval, f'open({str(marker)!r}, "w")')}
    yield 'exec', {'a': Gadget(exec, f'open({str(marker)!r}, "w")')}
    yield 'open', {'a': Gadget(open, str(marker), 'w')}
    yield 'getattr', {'a': Gadget(getattr, array, 'tofile')}
    yield 'numpy.load', {'a': Gadget(np.load, str(marker))}
    yield 'key', {Gadget(os.system, command): array}
    yield 'import', {'a': Gadget(__import__, 'antigravity')}


def test_hostile_files_run_nothing(tmp_path):
    marker = tmp_path / 'executed'
    for name, content in hostile(marker):
        path = tmp_path / f'{name}.pdparams'
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and 'refused' in str(caught.value), name
        assert not marker.exists(), name
        # The file is armed: the same gadget does its work for a trusting reader.
        if name in ('os.system', 'open'):
            pickle.loads(path.read_bytes())
            assert marker.exists()
            marker.unlink()


def test_huge_claims_are_refused_without_the_memory(tmp_path):
    # numpy's own _reconstruct would be asked for 8 TB of zeros here.
    genuine = pickle.dumps({'a': np.zeros(1)}, protocol=2)
    assert b'K\x00\x85' in genuine    # the shape (0,)
    path = tmp_path / 'huge.pdparams'
    path.write_bytes(genuine.replace(b'K\x00\x85', b'\x8a\x06\x00\x00\x00\x00\x00\x01\x85', 1))
    pickletools.dis(path.read_bytes(), out=open(os.devnull, 'w'))
    state, _ = read_weights(path)
    assert state['a'].shape == (1,)


@pytest.mark.parametrize('content, said', [
    (b'', 'damaged'), (b'not a pickle', 'damaged'), (pickle.dumps([1, 2]), 'list'),
    (pickle.dumps({}), 'no weights'), (pickle.dumps({'a': 'text'}), 'a is a str'),
    (pickle.dumps({1: np.zeros(2)}), 'no name'),
    (pickle.dumps({'a': np.array(['x'])}), 'refused'),
    (pickle.dumps({'a': np.zeros(1000)})[:-100], 'damaged'),
    (pickle.dumps({'a': np.zeros(2), 'metadata@@': '{'}), 'metadata')])
def test_damaged_and_foreign_files_are_named(tmp_path, content, said):
    path = tmp_path / 'a.pdparams'
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match='no such weights file'):
        read_weights(tmp_path / 'a.pdparams')
