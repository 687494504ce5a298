"""Catches wrong pixels or labels of CIFAR, code executed from its pickles, decompression bombs."""

import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT
from support.cifar import python_2_pickle

import build
from config import load_config
from data import DataError
from data.loader import Loader
from data.sources import find_classes, find_images
from data.transforms import EvalTransform
from dataset import EpochBatchSampler, ImageDataset
from weights.files import read_weights
from weights.unpickle import Refused, unpickle

NAMES_10 = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship',
            'truck']
NAMES_100 = [f'fine_{number}' for number in range(100)]


def batch(count, seed, num_classes=10, **changes):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, count).tolist()
    entries = {b'batch_label': b'testing batch 1 of 1', b'labels': labels,
               b'data': random.integers(0, 256, (count, 3072), dtype=np.uint8),
               b'filenames': [b'picture_s_%06d.png' % number for number in range(count)]}
    if num_classes == 100:
        entries[b'fine_labels'] = entries.pop(b'labels')
        entries[b'coarse_labels'] = [label // 5 for label in labels]
    return {**entries, **{name.encode(): value for name, value in changes.items()}}


def cifar_10():
    return {**{f'data_batch_{number}': batch(number, seed=number) for number in range(1, 6)},
            'test_batch': batch(4, seed=9),
            'batches.meta': {b'num_cases_per_batch': 10000, b'num_vis': 3072,
                             b'label_names': [name.encode() for name in NAMES_10]}}


def cifar_100():
    return {'train': batch(7, 1, 100), 'test': batch(3, 2, 100),
            'meta': {b'fine_label_names': [name.encode() for name in NAMES_100],
                     b'coarse_label_names': [b'people', b'trees']}}


def write(place, files, folder):
    """Write files (name: content, or bytes as they are) as a folder or a .tar.gz."""
    pickled = {name: content if isinstance(content, bytes) else python_2_pickle(content)
               for name, content in files.items()}
    if not place.name.endswith('.tar.gz'):
        place.mkdir()
        for name, content in pickled.items():
            (place / name).write_bytes(content)
        return str(place)
    with tarfile.open(place, 'w:gz') as archive:
        for name, content in {'readme.html': b'<html>', **pickled}.items():
            member = tarfile.TarInfo(f'{folder}/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(place)


PLACES = ['cifar', 'cifar.tar.gz']


def write_10(place, **changes):
    return write(place, {**cifar_10(), **changes}, 'cifar-10-batches-py')


def test_the_pickles_of_these_tests_are_those_of_python_2():
    """Like the published files they load with keys and names as bytes, and a uint8 array."""
    found = pickle.loads(python_2_pickle(batch(300, 1)), encoding='bytes')
    expected = batch(300, 1)
    assert found.keys() == expected.keys() and found[b'labels'] == expected[b'labels']
    np.testing.assert_array_equal(found[b'data'], expected[b'data'])


@pytest.mark.parametrize('place', PLACES)
def test_cifar_10(tmp_path, place):
    root = write_10(tmp_path / place)
    assert list(find_classes(root)) == NAMES_10
    train, val = find_images(root, num_classes=10), find_images(root, split='val')
    files = [batch(number, seed=number) for number in range(1, 6)]
    data = np.concatenate([file[b'data'] for file in files])
    labels = [label for file in files for label in file[b'labels']]
    assert [label for _, label in train.samples] == labels and len(labels) == 15
    assert train.samples[3][0] == f'{root}/data_batch_3[0]'
    assert list(train.classes) == NAMES_10
    # A row holds the red plane, then the green, then the blue one, each row by row.
    images = ImageDataset(train.samples, EvalTransform(32, 'squash', mean=(0, 0, 0), std=(1, 1, 1)),
                          opener=train.opener)
    for index in (0, 7, 14):
        image, label = images[index]
        np.testing.assert_allclose(image.ravel() * 255, data[index], atol=1e-3)
        assert label == labels[index]
        assert images.open(index).getpixel((5, 2)) == tuple(data[index, [69, 1093, 2117]])
    assert [label for _, label in val.samples] == batch(4, seed=9)[b'labels']
    np.testing.assert_array_equal(val.opener(2)[:, :, 1].ravel(),
                                  batch(4, seed=9)[b'data'][2, 1024:2048])


@pytest.mark.parametrize('place', PLACES)
def test_cifar_100_has_its_fine_labels(tmp_path, place):
    root = write(tmp_path / place, cifar_100(), 'cifar-100-python')
    for split, expected in (('train', batch(7, 1, 100)), ('val', batch(3, 2, 100))):
        found = find_images(root, num_classes=100, split=split)
        assert [label for _, label in found.samples] == expected[b'fine_labels']
        assert list(found.classes) == NAMES_100
        assert found.opener(len(found.samples) - 1).shape == (32, 32, 3)


def test_folder_and_archive_are_the_same_data(tmp_path):
    roots = [write_10(tmp_path / place) for place in PLACES]
    prints = []
    for root in roots:
        config = load_config('config/lit_data.yaml', [
            'MODEL.NUM_CLASSES=10', 'MODEL.IMAGE_SIZE=32', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
            f'DATA_PATH.TRAIN_DATASET_PATH={root}', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
            f'DATA_PATH.VAL_DATASET_PATH={root}', 'TRAIN.TRAIN_BATCH_SIZE=5'])
        prints.append([build.fingerprint(build.train_loader(config)),
                       build.fingerprint(build.eval_loader(config))])
        assert build.class_names(config) == NAMES_10
        images, labels = next(iter(build.train_loader(config)))    # through a worker process
        assert images.shape == [5, 3, 32, 32] and labels.shape == [5]
    assert prints[0] == prints[1] and prints[0][0] != prints[0][1]


def test_files_pickled_by_python_3_are_read(tmp_path):
    files = {name: pickle.dumps(content, protocol=2 + number % 3)
             for number, (name, content) in enumerate(cifar_10().items())}
    again = find_images(write(tmp_path / 'again', files, ''), num_classes=10)
    first = find_images(write_10(tmp_path / 'first'), num_classes=10)
    for index in range(15):
        np.testing.assert_array_equal(again.opener(index), first.opener(index))
    assert again.classes == first.classes


class OwnMemory(EvalTransform):
    """Returns the private memory of the process, in MiB, in place of the image."""

    def __call__(self, image, rng=None):
        with open('/proc/self/smaps_rollup') as file:
            kilobytes = next(int(line.split()[1]) for line in file if 'Private_Dirty' in line)
        return np.full((3, 1, 1), kilobytes / 1024, np.float32)


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs Linux')
def test_workers_share_the_pixels_of_their_parent():
    pixels = np.ones((64, 1024, 1024, 3), np.uint8)    # 192 MiB
    samples = [(str(row), 0) for row in range(len(pixels))]
    images = ImageDataset(samples, OwnMemory(1), opener=pixels.__getitem__)
    loader = Loader(images, EpochBatchSampler(images, 8), num_workers=1)
    batches = [batch[0].numpy() for batch in loader]    # every image was read
    assert len(batches) == 8 and batches[-1].max() < 100


class Harmful:
    def __reduce__(self):
        return os.system, ('touch harm',)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('changes, said', [
    (dict(test_batch=pickle.dumps(Harmful(), protocol=2)), 'refused, it asks for posix.system'),
    (dict(test_batch=python_2_pickle(batch(4, 9))[:9000]), 'bytes, and|more bytes'),
    (dict(test_batch=b''), 'is damaged'),
    (dict(test_batch=b'\x80\x02]q\x01.'), 'it holds a list'),
    (dict(test_batch=batch(4, 9, data=np.zeros((4, 3071), np.uint8))), r'u1 \[4, 3071\] instead'),
    (dict(test_batch=batch(4, 9, data=np.zeros((3, 3072), np.uint8))), r'u1 \[3, 3072\] instead'),
    (dict(test_batch=batch(4, 9, data=np.zeros((4, 3072), np.float32))), 'f4'),
    (dict(test_batch=batch(4, 9, data=b'no array')), 'lacks data'),
    (dict(test_batch=batch(4, 9, labels=[0, 1, 2, 10])), 'a label is 10 instead'),
    (dict(test_batch=batch(4, 9, labels=[0, 1, 2, b'cat'])), 'a label is cat instead'),
    ({'batches.meta': {b'label_names': [b'cat', b'cat']}}, 'no distinct names'),
    ({'batches.meta': {b'num_vis': 3072}}, 'no list label_names'),
])
def test_files_that_are_not_as_published_are_named(tmp_path, monkeypatch, place, changes, said):
    monkeypatch.chdir(tmp_path)
    root = write_10(tmp_path / place, **changes)
    with pytest.raises(DataError, match=said) as caught:
        find_images(root, split='val')
    message = str(caught.value)
    assert message.startswith(f'{root}/{next(iter(changes))}: ') and '\n' not in message
    assert not (tmp_path / 'harm').exists()


def test_pythons_own_unpickler_runs_the_code_of_harmful_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harmful(), protocol=2))
    assert (tmp_path / 'harm').exists()


def test_strings_of_python_2_are_refused_by_default():
    content = memoryview(python_2_pickle({b'a': b'text'}))
    assert unpickle(content, python_2=True)[0] == {'a': 'text'}
    with pytest.raises(Refused, match='SHORT_BINSTRING'):
        unpickle(content)


@pytest.mark.parametrize('damage, said', [
    (lambda content: content[:len(content) // 2], 'damaged, cut off'),
    (lambda content: content[:20000] + b'\0' * 50 + content[20050:], 'damaged|instead|claims'),
    (lambda content: gzip.compress(bytes(1000)), 'holds neither CIFAR-10 nor CIFAR-100'),
    (lambda content: b'no archive', 'no archive'),
    (lambda content: b'', 'no archive'),
])
def test_a_damaged_archive_is_named(tmp_path, damage, said):
    path = tmp_path / 'cifar.tar.gz'
    root = write_10(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        find_images(root)
    assert str(caught.value).startswith(root) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name, size', [('readme.html', 2 ** 30), ('data_batch_1', 2 ** 28 + 1)])
def test_an_archive_that_unpacks_to_absurd_sizes_is_refused(tmp_path, name, size):
    member = tarfile.TarInfo(f'cifar-10-batches-py/{name}')
    member.size = size
    zeros = gzip.compress(bytes(2 ** 22))    # gzip streams may be concatenated
    (tmp_path / 'bomb.tar.gz').write_bytes(gzip.compress(member.tobuf()) + zeros * (
        2 ** 6 if name == 'data_batch_1' else 150))
    with pytest.raises(DataError, match='bomb.tar.gz: .*refused'):
        find_images(tmp_path / 'bomb.tar.gz')


def test_archive_members_outside_of_the_folder_are_not_written(tmp_path):
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as archive:
        for name in ('../escaped', '/tmp/escaped_cifar', 'cifar-10-batches-py/../../escaped'):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b''))
        link = tarfile.TarInfo('cifar-10-batches-py/test_batch')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)
    with pytest.raises(DataError, match='lacks cifar-10-batches-py/batches.meta'):
        find_images(tmp_path / 'a.tar.gz', split='val')
    assert sorted(os.listdir(tmp_path)) == ['a.tar.gz'] and not os.path.exists('/tmp/escaped_cifar')


def test_other_labels_numbers_of_classes_and_missing_files_are_refused(tmp_path):
    root = write_10(tmp_path / 'cifar')
    with pytest.raises(DataError, match='set MODEL.NUM_CLASSES=10'):
        find_images(root, num_classes=1000)
    with pytest.raises(DataError, match='set no list of images'):
        find_images(root, list_file='train.txt')
    os.remove(f'{root}/data_batch_4')
    os.mkfifo(f'{root}/data_batch_4')
    with pytest.raises(DataError, match='data_batch_4: cannot be read .not a regular file'):
        find_images(root)
    os.remove(f'{root}/data_batch_4')
    with pytest.raises(DataError, match='data_batch_4: cannot be read'):
        find_images(root)
    assert len(find_images(root, split='val').samples) == 4
    (tmp_path / 'photographs.zip').touch()
    with pytest.raises(DataError, match='photographs.zip: is a file; data is a folder, a'):
        find_images(tmp_path / 'photographs.zip')


def test_weights_trained_on_an_archive_hold_its_class_names(tmp_path):
    root = write_10(tmp_path / 'cifar.tar.gz')
    done = subprocess.run(
        [sys.executable, 'tools/train.py', '-o', 'MODEL.NUM_CLASSES=10', 'MODEL.IMAGE_SIZE=16',
         f'DATA_PATH.TRAIN_DATASET_PATH={root}', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
         f'DATA_PATH.VAL_DATASET_PATH={root}', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
         'TRAIN.TRAIN_BATCH_SIZE=8', 'SCHEDULER.NUM_EPOCHS=1', 'TRAIN.VISUALDL=false',
         f'TRAIN.OUTPUT_DIR={tmp_path}/run'],
        cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '15 training images' in done.stdout and '4 validation images' in done.stdout
    assert read_weights(tmp_path / 'run' / 'last.pdparams')[1]['class_names'] == NAMES_10
