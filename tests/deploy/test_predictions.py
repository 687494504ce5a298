"""Catches predictions files that are wrong, out of order or half written; missed label orders."""

import csv
import json

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image

import build
import predict
import val
from config import load_config
from deploy.predictions import Predictions, PredictionsError, check_place

LINES = (ROOT / 'lit_data' / 'val.txt').read_text().splitlines()


def validate(capsys, *options, labels=LINES, folder):
    """Run tools/val.py on lines of lit_data's list; returns its output as lines."""
    (folder / 'list.txt').write_text('\n'.join(labels) + '\n')
    val.main([*map(str, options), '-o', f'DATA_PATH.VAL_DATASET_LABEL_PATH={folder}/list.txt',
              'TRAIN.VAL_NUM_WORKS=0'])
    return capsys.readouterr().out.splitlines()


def test_each_image_has_a_line_with_its_five_best_classes(tmp_path, capsys):
    labels = LINES[::-9]    # another order than that of names
    for name in ('p.csv', 'p.jsonl'):
        validate(capsys, '--predictions', tmp_path / name, labels=labels, folder=tmp_path)
    found = [json.loads(line) for line in open(tmp_path / 'p.jsonl')]
    assert [f'{each["path"]} {each["label"]}' for each in found] == labels

    config = load_config('config/lit_data.yaml')
    network, transform, *_ = build.open_model(config, build.weights_path(config))
    paths = [str(ROOT / 'lit_data' / 'val' / each['path']) for each in found]
    for each, (_, probabilities, _) in zip(found, predict.predict(network, transform, paths)):
        assert each['top'] == np.argsort(-probabilities, kind='stable')[:5].tolist()
        np.testing.assert_allclose(each['probabilities'], probabilities[each['top']], atol=2e-6)

    with open(tmp_path / 'p.csv', newline='') as file:
        rows = list(csv.DictReader(file))
        assert len(rows) == len(found)
        for row, each in zip(rows, found):
            assert (row['path'], int(row['label'])) == (each['path'], each['label'])
            assert [int(row[f'class_{place}']) for place in range(1, 6)] == each['top']
            assert [float(row[f'probability_{place}']) for place in range(1, 6)] == each[
                'probabilities']
            assert row['error'] == ''
    assert sorted(path.name for path in tmp_path.iterdir()) == ['list.txt', 'p.csv', 'p.jsonl']


def test_unreadable_images_are_named_in_their_place(tmp_path, capsys):
    (tmp_path / 'a, b').mkdir()
    for name in ('0.png', '2.png'):
        Image.new('RGB', (50, 50)).save(tmp_path / 'a, b' / name)
    (tmp_path / 'a, b' / '1.png').write_bytes(b'no image')
    labels = [f'a, b/{index}.png {index}' for index in range(3)]
    options = ['--skip-bad', '-o', f'DATA_PATH.VAL_DATASET_PATH={tmp_path}', '--predictions']
    for name in ('p.csv', 'p.jsonl'):
        validate(capsys, *options, tmp_path / name, labels=labels, folder=tmp_path)
    found = [json.loads(line) for line in open(tmp_path / 'p.jsonl')]
    assert [each['path'] for each in found] == [f'a, b/{index}.png' for index in range(3)]
    assert [each['label'] for each in found] == [0, 1, 2]
    assert 'not an image' in found[1]['error'] and 'top' not in found[1]
    with open(tmp_path / 'p.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[1]['error'] == found[1]['error'] and rows[1]['class_1'] == ''
    assert rows[2]['class_1'] == str(found[2]['top'][0])


def test_the_place_is_checked_before_the_images_are_read(tmp_path):
    for path, problem in [(tmp_path / 'p.txt', '.csv or .jsonl'), (tmp_path, '.csv'),
                          (tmp_path / 'no' / 'p.csv', 'folder'),
                          (__file__ + '/p.csv', 'folder')]:
        with pytest.raises(PredictionsError, match=problem):
            check_place(str(path))
    check_place(str(tmp_path / 'p.csv'))


# ---- permuted labels

def test_labels_in_another_order_are_named(tmp_path, capsys):
    classes = sorted({int(line.split()[-1]) for line in LINES})
    following = dict(zip(classes, classes[1:] + classes[:1]))

    def moved(line):
        path, label = line.rsplit(' ', 1)
        return f'{path} {following[int(label)]}'

    said = validate(capsys, labels=[moved(line) for line in LINES], folder=tmp_path)
    line, = (line for line in said if line.startswith('warning: '))
    assert 'list.txt are in another order' in line and 'which 100% of its images' in line
    assert said[-1] == 'ImageNet final val acc is:0.0000'


@pytest.mark.parametrize('predicted, permuted', [
    (lambda labels, random: (labels * 7 + 3) % 1000, True),
    # As of a network with a top-1 of 40 %, which is wrong in random ways.
    (lambda labels, random: np.where(random.rand(len(labels)) < 0.4, (labels + 1) % 1000,
                                     random.randint(0, 1000, len(labels))), True),
    (lambda labels, random: random.randint(0, 1000, len(labels)), False),
    (lambda labels, random: np.full(len(labels), 5), False),
    (lambda labels, random: labels % 10, False),    # as a network that has collapsed to 10 classes
])
@pytest.mark.parametrize('of_each', [5, 50])
def test_only_a_one_to_one_correspondence_is_a_permutation(predicted, permuted, of_each):
    labels = np.repeat(np.arange(1000), of_each)
    best = predicted(labels, np.random.RandomState(0))
    predictions = Predictions()
    for first in range(0, len(labels), 5000):
        logits = np.zeros((len(labels[first:first + 5000]), 1000), 'float32')
        logits[np.arange(len(logits)), best[first:first + 5000]] = 1
        predictions.add(paddle.to_tensor(logits), paddle.to_tensor(labels[first:first + 5000]))
    assert (predictions.permuted_share() > 0) == permuted


def test_single_images_of_a_class_show_no_order():
    predictions = Predictions()
    predictions.add(paddle.eye(10), paddle.to_tensor(np.arange(10)[::-1].copy()))
    assert predictions.permuted_share() == 0
