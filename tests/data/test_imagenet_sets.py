"""Catches published test sets that are read or scored in another way than their authors do."""

import json
import os

import numpy as np
import paddle
import pytest
from PIL import Image

import build
import val
from config import load_config
from data import DataError
from data.imagenet_sets import open_set
from deploy.predictions import Predictions

IDS = sorted(build.imagenet_ids())     # in the order of class ids


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'picture.jpg'
    Image.fromarray(np.full((8, 8, 3), 100, 'uint8')).save(path)
    return path


def fill(folder, names, picture):
    for name in names:
        os.makedirs(folder / os.path.dirname(name), exist_ok=True)
        os.link(picture, folder / name)
    return folder


@pytest.fixture(scope='module')
def adversarial(tmp_path_factory, picture):
    """ImageNet-A: every fifth class, with one to three images."""
    return fill(tmp_path_factory.mktemp('sets') / 'imagenet-a',
                [f'{IDS[label]}/{image}_x_0.9.jpg' for label in range(3, 1000, 5)
                 for image in range(1 + label % 3)] + ['README.txt'], picture)


class Table:
    """A network whose logits for the i-th image are row i of a random table."""

    training = False

    def __init__(self, rows):
        self.rows = np.random.RandomState(0).standard_normal((rows, 1000)).astype('float32')
        self.done = 0

    def eval(self):
        return self

    def __call__(self, images):
        self.done += len(images)
        return paddle.to_tensor(self.rows[self.done - len(images):self.done])


def scores_of(network, found, folder, **options):
    config = load_config('config/lit_data.yaml', [
        f'DATA_PATH.VAL_DATASET_PATH={folder}', 'TRAIN.VAL_NUM_WORKS=0'])
    loader = build.eval_loader(config, images=found.images)
    return val.evaluate(network, loader, classes=found.classes, answers=found.answers, **options)


def open_(name, folder):
    return open_set(name, folder, build.imagenet_ids())


@pytest.mark.parametrize('outer', ['', 'imagenetv2-matched-frequency-format-val/'])
def test_folders_of_v2_are_class_ids(tmp_path, picture, outer):
    fill(tmp_path, [f'{outer}{label}/{label:04x}.jpeg' for label in range(1000)], picture)
    found = open_('imagenet-v2', tmp_path)
    assert {name.split('/')[-2]: label for name, label in found.images.samples} == {
        str(label): label for label in range(1000)}
    assert found.classes is None and found.answers is None and found.published == 10000


def test_folders_of_sketch_are_wordnet_ids(tmp_path, picture):
    fill(tmp_path, [f'sketch/{name}/sketch_0.JPEG' for name in IDS], picture)
    found = open_('sketch', tmp_path)
    assert [(name.split('/')[-2], label) for name, label in found.images.samples] == [
        (name, label) for label, name in enumerate(IDS)]
    assert found.classes is None


def test_imagenet_r_has_the_form_of_a(adversarial):
    one, other = open_('a', adversarial), open_('r', adversarial)
    assert (one.classes, list(one.images.samples)) == (other.classes, list(other.images.samples))
    assert (one.published, other.published) == (7500, 30000)


def test_only_the_200_classes_of_a_compete(adversarial):
    found = open_('a', adversarial)
    labels = np.array([label for _, label in found.images.samples])
    network, predictions = Table(len(labels)), Predictions()
    # Half of the images have the right class as the best of the 200, as do few in a random table.
    network.rows[np.arange(0, len(labels), 2), labels[::2]] = 3.4
    scores = scores_of(network, found, adversarial, predictions=predictions)
    # As the authors' code does: cut the logits to the 200 classes, compare positions in them.
    classes = list(range(3, 1000, 5))
    best = network.rows[:, classes].argmax(axis=1)
    places = np.array([classes.index(label) for label in labels])
    assert scores['top1'] == (best == places).mean()
    assert scores['top1'] > (network.rows.argmax(axis=1) == labels).mean() + 0.1
    cut = np.exp(network.rows[:, classes])
    np.testing.assert_allclose(scores['loss'], -np.log(
        cut[np.arange(len(labels)), places] / cut.sum(axis=1)).mean(), rtol=1e-5)


def test_any_label_of_real_is_right_and_images_without_one_are_left_out(tmp_path, picture):
    real = [[5], [], [7, 900, 3], [3, 4], [], [999]]
    images = fill(tmp_path / 'val', [f'{IDS[n]}/ILSVRC2012_val_{n:08d}.JPEG' for n in range(1, 7)],
                  picture)
    (tmp_path / 'real.json').write_text(json.dumps(real))
    found = open_('real', images)
    assert [name[-13:-5] for name, _ in found.images.samples] == [
        '00000001', '00000003', '00000004', '00000006']
    network = Table(4)
    for row, best in enumerate([6, 900, 4, 999]):
        network.rows[row, best] = 10
    network.rows[0, 5] = 9
    scores = scores_of(network, found, images)
    assert scores['images'] == 4
    assert scores['top1'] == 3 / 4 and scores['top5'] == 1
    # Several right labels among the best five count once.
    network = Table(4)
    network.rows[1, [7, 900, 3]] = 10
    assert scores_of(network, found, images)['top5'] <= 1


def test_the_wrong_folder_is_named(tmp_path, adversarial, picture):
    with pytest.raises(DataError, match='ImageNet-Sketch has 1000 class folders.* 200 folders'):
        open_('sketch', adversarial)
    with pytest.raises(DataError, match=r"0 to 999; here are 200 folders, 'n\d+' is none of them"):
        open_('imagenet-v2', adversarial)
    with pytest.raises(DataError, match='nowhere: no such folder'):
        open_('r', tmp_path / 'nowhere')
    with pytest.raises(DataError, match='real.json, the labels of ReaL: copy it there'):
        open_('real', adversarial)
    fill(tmp_path, ['ILSVRC2012_val_00000001.JPEG'], picture)
    for text, problem in [('[[1], [], [2]]', '1 of the 2 images .* ILSVRC2012_val_00000003.JPEG'),
                          ('[[1000]]', 'class ids'), ('{}', 'class ids'), ('[[1', 'cannot be read'),
                          ('[[]]', 'class ids'), ('[' * 100000, 'cannot be read')]:
        (tmp_path / 'real.json').write_text(text)
        with pytest.raises(DataError, match=problem):
            open_('real', tmp_path)


def test_the_command_scores_a_set_and_says_that_it_is_not_whole(adversarial, tmp_path, capsys):
    val.main(['--set', 'a', '--predictions', str(tmp_path / 'a.jsonl'), '-o',
              f'DATA_PATH.VAL_DATASET_PATH={adversarial}', 'TRAIN.VAL_NUM_WORKS=0'])
    said = capsys.readouterr().out
    assert 'warning: ImageNet-A has 7500 images: the scores of 400 ' in said
    lines = [json.loads(line) for line in open(tmp_path / 'a.jsonl')]
    assert [line['path'].split('/')[0] for line in lines] == [IDS[n['label']] for n in lines]
    assert all(label % 5 == 3 for line in lines for label in line['top'])
    right = sum(line['label'] == line['top'][0] for line in lines) / len(lines)
    assert said.splitlines()[-1] == f'ImageNet final val acc is:{right:.4f}'
