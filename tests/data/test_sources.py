"""Catches misread lists and folders, and error messages without file or line."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.pictures import write_jpegs

import build
from config import load_config
from data import DataError, sources
from data.decode import ImageError, decode_image
from data.images import Images
from data.samples import Samples
from data.sources import find_classes, find_images, label_warnings


class TestImageList:
    def read(self, tmp_path, content, **options):
        (tmp_path / 'list.txt').write_bytes(content)
        return find_images(tmp_path, tmp_path / 'list.txt', **options).samples

    def test_paths_and_labels(self, tmp_path):
        content = ('\ufeffa/b.jpg 3\r\n\r\nwith space/my cat 2.jpg\t0\n   \n  Ünï.png  12  \n'
                   'x..y/c.jpg 999').encode()
        assert self.read(tmp_path, content) == [
            (f'{tmp_path}/a/b.jpg', 3), (f'{tmp_path}/with space/my cat 2.jpg', 0),
            (f'{tmp_path}/Ünï.png', 12), (f'{tmp_path}/x..y/c.jpg', 999)]

    @pytest.mark.parametrize('line, reason', [
        (b'a.jpg', "expected 'path label'"),
        (b'7', "expected 'path label'"),
        (b'a.jpg cat', "expected 'path label'"),
        (b'a.jpg -1', "expected 'path label'"),
        (b'a.jpg 1.5', "expected 'path label'"),
        ('a.jpg ²'.encode(), "expected 'path label'"),
        (b'a.jpg 99999999999999999999', "expected 'path label'"),
        (b'a\0.jpg 1', "expected 'path label'"),
        (b'\xff.jpg 1', 'not UTF-8'),
        (b'a.jpg 10', 'class id 10, but the network has 10 classes'),
    ])
    def test_broken_line(self, tmp_path, line, reason):
        with pytest.raises(DataError) as caught:
            self.read(tmp_path, b'good.jpg 9\n\n' + line + b'\nlast.jpg 0\n', num_classes=10)
        message = str(caught.value)
        assert message.startswith(f'{tmp_path}/list.txt:3: ')
        assert reason in message and '\n' not in message

    @pytest.mark.parametrize('path', ['/etc/passwd', '../a.jpg', 'a/../../b.jpg', 'a\\..\\..\\b'])
    def test_a_path_that_leads_out_of_root_is_an_image_that_cannot_be_read(self, tmp_path, path):
        (path, label), = self.read(tmp_path, f'{path} 1'.encode())
        with pytest.raises(ImageError, match='leads out of'):
            decode_image(path, root=str(tmp_path))

    def test_root_may_be_relative_and_hold_links(self, tmp_path, monkeypatch):
        (tmp_path / 'data').mkdir()
        (tmp_path / 'elsewhere').mkdir()
        write_jpegs(tmp_path / 'elsewhere', 1)
        (tmp_path / 'data' / 'link').symlink_to(tmp_path / 'elsewhere')
        monkeypatch.chdir(tmp_path / 'data')
        (tmp_path / 'list.txt').write_text('link/0.jpg 1\n')
        for root in ['.', '../data', '../data/', str(tmp_path / 'data')]:
            (path, _), = find_images(root, tmp_path / 'list.txt').samples
            assert decode_image(path, root=root).size == (48, 40)

    def test_empty_list(self, tmp_path):
        with pytest.raises(DataError, match='list.txt: the image list is empty'):
            self.read(tmp_path, b'\n \r\n')

    def test_missing_list_and_root(self, tmp_path):
        with pytest.raises(DataError, match=r'no\.txt: cannot read the image list \(No such file'):
            find_images(tmp_path, tmp_path / 'no.txt')
        (tmp_path / 'list.txt').write_text('a.jpg 1\n')
        with pytest.raises(DataError, match='nowhere: no such folder'):
            find_images(tmp_path / 'nowhere', tmp_path / 'list.txt')


class TestClassFolders:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ['n02/b.JPEG', 'n02/a.png', 'n02/deep/er/c.WebP', 'n01/z.jpg', 'n02/notes.txt',
                     'n02/._a.png', '.hidden/a.jpg', 'loose.jpg', 'n10/a.bmp']:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    def test_sorted_names_give_labels(self, root):
        found = find_images(root)
        assert list(found.classes.items()) == [('n01', 0), ('n02', 1), ('n10', 2)]
        assert found.samples == [
            (f'{root}/n01/z.jpg', 0), (f'{root}/n02/a.png', 1), (f'{root}/n02/b.JPEG', 1),
            (f'{root}/n02/deep/er/c.WebP', 1), (f'{root}/n10/a.bmp', 2)]

    def test_known_folders_get_their_class_ids(self, root):
        class_ids = {'n00': 0, 'n01': 7, 'n02': 400, 'n10': 999}
        found = find_images(root, class_ids=class_ids)
        assert found.classes == {'n01': 7, 'n02': 400, 'n10': 999}
        assert [label for _, label in found.samples] == [7, 400, 400, 400, 999]

    def test_an_unknown_folder_means_labels_in_sorted_order(self, root):
        assert find_images(root, class_ids={'n01': 7, 'n02': 400}).classes == {
            'n01': 0, 'n02': 1, 'n10': 2}

    def test_an_empty_class_keeps_its_label(self, root):
        os.mkdir(f'{root}/n05')
        assert find_images(root).classes['n10'] == 3

    def test_too_many_classes(self, root):
        with pytest.raises(DataError, match='n10: class id 2, but the network has 2 classes'):
            find_images(root, num_classes=2)
        assert len(find_images(root, num_classes=3).samples) == 5

    def test_no_images(self, tmp_path):
        (tmp_path / 'n01').mkdir()
        with pytest.raises(DataError, match='no images found'):
            find_images(tmp_path)
        with pytest.raises(DataError, match='nowhere: no such folder'):
            find_images(tmp_path / 'nowhere')

    def test_find_images_takes_the_list_if_there_is_one(self, root):
        with open(f'{root}/list.txt', 'w') as file:
            file.write('n01/z.jpg 5\n')
        assert find_images(root, f'{root}/list.txt').samples == [(f'{root}/n01/z.jpg', 5)]
        assert find_images(root, '').samples == find_images(root).samples
        assert find_images(root, class_ids={'n01': 1, 'n02': 2, 'n10': 3}).samples[0][1] == 1
        for list_file in [None, f'{root}/list.txt']:
            with pytest.raises(DataError, match='the network has 1 classes'):
                find_images(root, list_file, num_classes=1)


# ---- the class in the name

@pytest.fixture
def animals(tmp_path):
    """Training data of four classes and validation data of two, as flat folders."""
    for part, names in (('train', ['cat_1.png', 'cat_2.JPG', 'guinea_pig_1.png', 'ant_1.png',
                                   'zebra_x.png', '.cat_3.png', 'notes.txt']),
                        ('val', ['zebra_9.png', 'cat_9.png', 'cat_10.png'])):
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / name).touch()
    return tmp_path


def test_classes_are_read_from_file_names(animals):
    train = find_images(f'{animals}/train', num_classes=4)
    assert train.classes == {'ant': 0, 'cat': 1, 'guinea_pig': 2, 'zebra': 3}
    assert train.samples == [(f'{animals}/train/{name}', label) for name, label in [
        ('ant_1.png', 0), ('cat_1.png', 1), ('cat_2.JPG', 1), ('guinea_pig_1.png', 2),
        ('zebra_x.png', 3)]]
    assert find_classes(f'{animals}/train') == train.classes
    val = find_images(f'{animals}/val', split='val', classes=train.classes)
    assert [label for _, label in val.samples] == [1, 1, 3]
    wordnet = find_images(f'{animals}/val', class_ids={'cat': 281, 'zebra': 340, 'dog': 5})
    assert [label for _, label in wordnet.samples] == [281, 281, 340]


@pytest.mark.parametrize('name', ['portrait.png', '_7.png'])
def test_an_image_without_a_class_is_named(animals, name):
    (animals / 'train' / name).touch()
    with pytest.raises(DataError, match=f'/train/{name}: carries no class in its name'):
        find_images(f'{animals}/train')
    assert find_classes(f'{animals}/train') == {}


@pytest.mark.parametrize('layout', ['files', 'folders'])
def test_validation_has_the_classes_of_training(animals, layout):
    """Labels come from the training data, also if validation lacks some of its classes."""
    if layout == 'folders':
        for part in ('train', 'val'):
            for file in list((animals / part).glob('*_*')):
                folder = animals / part / file.name.rpartition('_')[0].strip('.')
                folder.mkdir(exist_ok=True)
                file.rename(folder / file.name)
    for file in animals.rglob('*_*.*'):
        Image.new('RGB', (20, 20)).save(file, 'PNG')
    config = load_config('config/lit_data.yaml', [
        'MODEL.NUM_CLASSES=4', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
        f'DATA_PATH.TRAIN_DATASET_PATH={animals}/train', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
        f'DATA_PATH.VAL_DATASET_PATH={animals}/val', 'TRAIN.VAL_NUM_WORKS=0'])
    assert [label for _, label in build.eval_loader(config).dataset.samples] == [1, 1, 3]
    assert build.class_names(config) == ['ant', 'cat', 'guinea_pig', 'zebra']
    where = animals / 'val' / ('dog' if layout == 'folders' else '')
    where.mkdir(exist_ok=True)
    (where / 'dog_1.png').touch()
    with pytest.raises(DataError, match="dog.*'dog' is none of the training data's 4"):
        build.eval_loader(config)


def test_imagenet_ids_do_not_depend_on_the_training_data(tmp_path):
    """Validating on all of ImageNet with a configuration whose training data is a part of it."""
    for name in ('train/n01443537', 'val/n01443537', 'val/n07579787'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / '1.png').touch()
    overrides = ['DATA_PATH.TRAIN_DATASET_LABEL_PATH=', 'DATA_PATH.VAL_DATASET_LABEL_PATH=',
                 f'DATA_PATH.TRAIN_DATASET_PATH={tmp_path}/train',
                 f'DATA_PATH.VAL_DATASET_PATH={tmp_path}/val']
    config = load_config('config/lit_data.yaml', overrides)
    assert [label for _, label in build.eval_loader(config).dataset.samples] == [1, 923]
    (tmp_path / 'val' / 'plates').mkdir()
    with pytest.raises(DataError, match="'plates' is none of the training data's 1000"):
        build.eval_loader(config)


def test_too_many_classes_for_the_network(animals):
    with pytest.raises(DataError, match='zebra_x.png: class id 3, but the network has 3 classes'):
        find_images(f'{animals}/train', num_classes=3)


# ---- warnings about labels

def labelled(**counts):
    """{'c0': 3} as the labels 0, 0, 0."""
    return [int(name[1:]) for name, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize('training, validation, said', [
    (labelled(c3=40), labelled(c3=4), ['all 40 training images have the label 3']),
    (labelled(c0=1000, c1=9), [], ['label 0 has 1000 of 1009 images, label 1 has 9']),
    (labelled(c0=1000, c1=10), [], []),
    (labelled(c0=1300, c1=732, c900=1000), labelled(c0=50, c1=50, c900=50), []),
    (labelled(c0=5, c1=5), labelled(c0=1, c1=1, c7=1, c8=1), ['2 of the 4 classes .*labels 7, 8']),
    (labelled(c0=5), labelled(c0=1, c1=1), ['all 5', '1 of the 2 classes']),
    ([], [], [])])
def test_label_warnings(training, validation, said):
    lines = label_warnings(np.array(training), np.array([*validation, -1]))
    assert len(lines) == len(said)
    for line, pattern in zip(lines, said):
        assert re.search(pattern, line) and '\n' not in line


def test_lit_data_has_no_label_warnings():
    parts = [find_images(str(ROOT / 'lit_data' / part), str(ROOT / 'lit_data' / f'{part}.txt'))
             for part in ('train', 'val')]
    assert label_warnings(*(part.samples.labels for part in parts)) == []


# ---- another data format

class OneFile:
    """A data format of this test: JPEGs concatenated in one file, with an index file."""

    def matches(self, request):
        return request.root.endswith('.pack')

    def index(self, request):
        return [line.split() for line in Path(f'{request.root}.index').read_text().splitlines()]

    def samples(self, request):
        entries = self.index(request)
        classes = self.classes(request)

        def opener(place):
            name, start, size = entries[place]
            with open(request.root, 'rb') as file:
                file.seek(int(start))
                return file.read(int(size))

        samples = Samples(request.root, [(name, classes[name.split('/')[0]])
                                         for name, _, _ in entries])
        return Images(samples, classes, opener)

    def classes(self, request):
        return {'one': 0, 'two': 1}


class Listed:
    """A data format of this test: a file that lists the images in its folder."""

    def matches(self, request):
        return request.root.endswith('.listed')

    def samples(self, request):
        lines = Path(request.root).read_text().splitlines()
        samples = Samples(Path(request.root).parent, [(line, 0) for line in lines])
        return Images(samples, {'one': 0})

    def classes(self, request):
        return {'one': 0}


def test_images_that_a_file_lists_lie_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'SOURCES', [Listed(), *sources.SOURCES])
    (tmp_path / 'images').mkdir()
    write_jpegs(tmp_path / 'images', 2)
    (tmp_path / 'images' / 'a.listed').write_text('0.jpg\n../images/1.jpg\n')
    root = tmp_path / 'images' / 'a.listed'
    loader = build.eval_loader(load_config('config/lit_data.yaml', [
        'MODEL.NUM_CLASSES=1', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
        'DATA_PATH.VAL_DATASET_LABEL_PATH=', f'DATA_PATH.TRAIN_DATASET_PATH={root}',
        f'DATA_PATH.VAL_DATASET_PATH={root}', 'TRAIN.VAL_NUM_WORKS=0']))
    assert [labels.numpy().tolist() for _, labels in loader] == [[0, -1]]
    (reason,) = loader.bad_images.values()
    assert 'leads out of' in reason


def test_a_new_data_format_is_one_entry_in_sources(tmp_path, monkeypatch):
    """Its images are read by workers, and its classes and its errors reported."""
    monkeypatch.setattr(sources, 'SOURCES', [OneFile(), *sources.SOURCES])
    samples = write_jpegs(tmp_path, 8)
    contents = [Path(path).read_bytes() for path, _ in samples]
    contents[5] = b'no image'
    root = f'{tmp_path}/images.pack'
    Path(root).write_bytes(b''.join(contents))
    starts = np.cumsum([0, *map(len, contents)])
    Path(f'{root}.index').write_text(''.join(
        f'{"one" if number < 4 else "two"}/{number}.jpg {starts[number]} {len(content)}\n'
        for number, content in enumerate(contents)))
    config = load_config('config/lit_data.yaml', [
        'MODEL.NUM_CLASSES=2', 'MODEL.IMAGE_SIZE=32', 'DATA_PATH.TRAIN_DATASET_LABEL_PATH=',
        'DATA_PATH.VAL_DATASET_LABEL_PATH=', f'DATA_PATH.TRAIN_DATASET_PATH={root}',
        f'DATA_PATH.VAL_DATASET_PATH={root}', 'TRAIN.VAL_BATCH_SIZE=4', 'TRAIN.VAL_NUM_WORKS=2'])
    assert build.class_names(config) == ['one', 'two']
    loader = build.eval_loader(config)
    found = [(images.numpy(), labels.numpy()) for images, labels in loader]
    assert np.concatenate([labels for _, labels in found]).tolist() == [0, 0, 0, 0, 1, -1, 1, 1]
    assert loader.bad_images == {f'{root}/two/5.jpg': f'{root}/two/5.jpg: not an image of a known '
                                 'format (JPEG, PNG, BMP, GIF, WEBP)'}
    for number in (0, 3, 7):
        expected = build.eval_transform(config)(decode_image(samples[number][0]))
        np.testing.assert_array_equal(found[number // 4][0][number % 4], expected)
    assert build.fingerprint(loader) == build.fingerprint(build.eval_loader(config))
