"""Catches predictions that are miscounted, misnamed or read from damaged files."""

import re
from collections import Counter

import numpy as np
import paddle
import pytest
from conftest import ROOT
from support import svg
from support.cifar import write_cifar_10

import visualize
from data.decode import decode_image
from deploy.predictions import Prediction, Predictions, PredictionsError, read
from figures import mistakes
from figures.style import FigureError

LINES = [line.split() for line in (ROOT / 'lit_data' / 'val.txt').read_text().splitlines()]


def written(path, labels, logits, answers=None, errors=None):
    """Write the predictions of images 0.png, 1.png, ... as val.py does."""
    predictions = Predictions()
    predictions.errors = errors or {}
    predictions.add(paddle.to_tensor(logits), paddle.to_tensor(labels))
    predictions.write(str(path), [(f'/root/{index}.png', label)
                                  for index, label in enumerate(labels)], '/root', answers)


@pytest.mark.parametrize('name', ['a.csv', 'a.jsonl'])
@pytest.mark.parametrize('classes', [3, 7])
def test_what_was_written_is_read(tmp_path, name, classes):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((9, classes), dtype='float32')
    labels = rng.integers(classes, size=9)
    labels[4] = -1
    answers = np.stack([np.arange(9) % classes, np.full(9, -1)], axis=1)
    answers[2, 1], answers[3] = 0, -1    # two labels, none
    written(tmp_path / name, labels, logits, answers, {'/root/4.png': 'a, "b"'})
    found = read(str(tmp_path / name))
    assert [each.path for each in found] == [f'{index}.png' for index in range(9)]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for index, each in enumerate(found):
        assert each.labels == [label for label in answers[index].tolist() if label >= 0]
        if index == 4:
            assert each[2:] == ([], [], 'a, "b"')
            continue
        best = np.argsort(-shares[index])[:5]
        assert each.top == best.tolist() and each.error == ''
        np.testing.assert_allclose(each.probabilities, shares[index][best], atol=1e-6)
    assert len(mistakes.judged(found)) == 7    # without those of no label or no classes


GOOD = '{"path": "a", "label": 1, "top": [1, 2], "probabilities": [0.9, 0.1]}\n'


@pytest.mark.parametrize('line', [
    '[]', '{', 'text', '{"path": "a"}', GOOD.replace('[1, 2]', '[1]'), GOOD.replace('0.9', '9'),
    GOOD.replace('0.9', '"x"'), GOOD.replace('"a"', '1'), GOOD.replace('1,', '-1,'),
    GOOD.replace('1,', 'true,'), GOOD.replace('1,', '"b",'), GOOD.replace('[1, 2]', '{"1": 2}'),
    '[' * 5000])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / 'a.jsonl').write_text(GOOD + line)
    with pytest.raises(PredictionsError, match=re.escape(f'{tmp_path}/a.jsonl:2: ')) as caught:
        read(str(tmp_path / 'a.jsonl'))
    assert caught.value.exit_code == 2 and '\n' not in str(caught.value)


@pytest.mark.parametrize('name, content, said', [
    ('a.csv', 'other,columns\n1,2\n', r'a\.csv:2: '), ('a.csv', '', 'has no predictions'),
    ('a.jsonl', '', 'has no predictions'), ('a.jsonl', None, 'cannot be read'),
    ('a.txt', '', 'ends in .csv or .jsonl')])
def test_other_files_are_no_predictions(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PredictionsError, match=said):
        read(str(tmp_path / name))


def test_the_matrix_counts_the_images_of_each_pair(tmp_path, capsys):
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(10, size=300), rng.standard_normal((300, 10), dtype='float32')
    logits[np.arange(300), labels] += 1
    written(tmp_path / 'a.csv', labels, logits)
    out = tmp_path / 'a.svg'
    visualize.main(['confusion', str(tmp_path / 'a.csv'), '-o', 'MODEL.NUM_CLASSES=10',
                    '--out', str(out)])
    wanted = np.zeros((10, 10), int)
    np.add.at(wanted, (labels, logits.argmax(axis=1)), 1)
    root = svg.read(out)
    for true, found in np.ndindex(10, 10):
        if wanted[true, found]:
            assert svg.texts(svg.group(root, f'{true}:{found}')) == [str(wanted[true, found])]
    assert len([group for group in root.iter(f'{svg.SVG}g')
                if re.fullmatch(r'\d:\d', group.get('id', ''))]) == (wanted > 0).sum()
    assert f'{np.trace(wanted)} of 300 images are right' in svg.texts(root)
    # The largest confusions are printed, by numbers: these classes have no names.
    off = wanted - np.diag(np.diag(wanted))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 11 and said[-1] == str(out)
    true, found = np.unravel_index(off.argmax(), off.shape)
    assert said[0] == f'{true} as {found}: {off.max()} of {wanted[true].sum()}'


def test_of_many_classes_the_largest_confusions_are_named(tmp_path):
    labels = np.repeat(np.arange(40), 5)
    found = labels.copy()
    found[(labels == 7) & (np.arange(200) % 5 > 0)] = 9
    found[labels == 3][:2] = 4
    found[15:17] = 4
    pairs = Counter(zip(labels.tolist(), found.tolist()))
    names = [f'name {label}, other name' for label in range(40)]
    figure = mistakes.confusion(pairs, names)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        'name 7 as name 9: 4 of 5', 'name 3 as name 4: 2 of 5']
    assert [bar.get_width() for bar in axes.patches] == [4, 2]
    with pytest.raises(FigureError, match='all predictions are right'):
        mistakes.confusion(Counter({(label, label): 1 for label in range(40)}))


def test_any_of_several_labels_is_right():
    found = [Prediction('a', [1, 2], [2, 1], [0.9, 0.1]), Prediction('b', [1, 2], [3], [0.8])]
    assert mistakes.count(found) == {(2, 2): 1, (1, 3): 1}
    assert mistakes.worst(found) == found[1:]


def test_the_worst_mistakes_are_shown_with_image_and_names(tmp_path):
    paths, labels = zip(*LINES[::20])
    rows, confident = ['path,label,class_1,probability_1,error'], [0.3, 0.9, 0.5, 0.99, 0.7, 0.6]
    for index, (path, label, share) in enumerate(zip(paths, labels, confident)):
        rows.append(f'{path},{label},{label if index == 3 else 0},{share},')
    (tmp_path / 'a.csv').write_text('\n'.join(rows))
    visualize.main(['worst', str(tmp_path / 'a.csv'), '-c', str(ROOT / 'config/lit_data.yaml'),
                    '--count', '4', '--out', str(tmp_path / 'a.svg')])
    root = svg.read(tmp_path / 'a.svg')
    images = svg.images(root)
    assert len(images) == 4
    for image, index in zip(images, (1, 4, 5, 2)):
        assert np.array_equal(image, decode_image(ROOT / 'lit_data' / 'val' / paths[index]))
    said = svg.texts(root)
    names = (ROOT / 'config' / 'imagenet_classes.txt').read_text().splitlines()
    assert said[:2] == [names[int(labels[1])].split(' ', 1)[1].partition(',')[0], 'as tench, 90 %']


def test_images_of_an_archive_are_shown(tmp_path):
    archive = tmp_path / 'cifar-10-python.tar.gz'
    write_cifar_10(archive)
    options = ['-c', str(ROOT / 'config/t2t_vit_cifar.yaml'), '-o',
               f'DATA_PATH.TRAIN_DATASET_PATH={archive}', f'DATA_PATH.VAL_DATASET_PATH={archive}']
    import build
    images = build.eval_loader(build.load_config(options[1], options[3:])).dataset
    (name, label), wanted = images.samples[1], images.open(1)
    path = visualize.os.path.relpath(name, archive)
    (tmp_path / 'a.jsonl').write_text(GOOD.replace('"a"', f'"{path}"').replace(
        '[1, 2]', f'[{(label + 1) % 10}, {label}]').replace('1,', f'{label},', 1))
    visualize.main(['worst', str(tmp_path / 'a.jsonl'), *options, '--out',
                    str(tmp_path / 'a.svg')])
    (image,) = svg.images(svg.read(tmp_path / 'a.svg'))
    assert np.array_equal(image, np.asarray(wanted))


@pytest.mark.parametrize('command, line, said', [
    ('confusion', GOOD.replace('[1, 2]', '[1, 1000]'), 'has a class 1000, and MODEL.NUM_CLASSES'),
    ('worst', GOOD, 'all predictions are right'),
    ('worst', GOOD.replace('[1, 2]', '[2, 1]'), 'no such image; name the configuration'),
    ('worst', GOOD.replace('[1, 2]', '[2, 1]').replace('"a"', '"../train.txt"'), 'leads out of'),
    ('confusion', '{"path": "a", "label": 1, "error": "e"}', 'no image has a label and')])
def test_what_is_missing_is_said_in_one_line(tmp_path, command, line, said):
    (tmp_path / 'a.jsonl').write_text(line)
    with pytest.raises(Exception, match=said) as caught:
        visualize.main([command, str(tmp_path / 'a.jsonl'), '-c',
                        str(ROOT / 'config/lit_data.yaml'), '--out', str(tmp_path / 'a.png')])
    assert caught.value.exit_code == 2 and '\n' not in str(caught.value)
