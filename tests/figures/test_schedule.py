"""Catches drawn learning rates that differ from the official recipe's, and printed ones misread."""

import json

import numpy as np
import pytest
from conftest import ROOT
from support import svg
from support.official import GOLDEN

import visualize
from figures.curves import LogError, read_rates


def scale_of(heights, rates):
    """Slope and offset from rates to heights in pixels, with which all of them agree."""
    slope, offset = np.polyfit(rates, heights, 1)
    np.testing.assert_allclose(heights, np.multiply(rates, slope) + offset, atol=0.1)
    return slope, offset


def heights_in(points, epochs):
    """The heights of a stepped curve in the middle of each of its epochs."""
    x, y = np.transpose(points)
    middles = x[0] + (np.arange(epochs) + 0.5) * (x[-1] - x[0]) / epochs
    return np.interp(middles, x, y)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A text with every rate of the first published log, as it prints them."""
    path = tmp_path_factory.mktemp('logs') / 'published.log'
    path.write_text(''.join(
        f'Epoch [{epoch}/200], Step [{100 * step + 100}/1252], Loss: 1.0,acc: 0.5, lr: {text}\n'
        for epoch, text, lines in json.loads((GOLDEN / 'published_rates.json').read_text())[
            't2t_paddle_1'] for step in range(lines)))
    return path


def test_the_curve_is_the_official_recipe_and_circles_are_the_printed_rates(
        published, tmp_path, capsys):
    out = tmp_path / 'a.svg'
    visualize.main(['schedule', 'config/t2t_vit_7_official.yaml', 'config/t2t_vit_7_log.yaml',
                    'config/t2t_vit_7.yaml', '--log', str(published), '--out', str(out),
                    '-o', 'TRAIN.TRAIN_BATCH_SIZE=512'])
    root, rates = svg.read(out), np.load(GOLDEN / 'lr_official.npz')['lr']
    slope, offset = scale_of(heights_in(svg.points_of(root, 't2t_vit_7_official'), 310), rates)
    assert slope < -1e5    # upwards, more than 100 pixels for 1e-3
    circles = svg.markers_of(root, 'published')
    printed = [(epoch, float(text)) for epoch, text, _ in
               json.loads((GOLDEN / 'published_rates.json').read_text())['t2t_paddle_1']]
    places = sorted((x, (y - offset) / slope) for x, y in circles)
    np.testing.assert_allclose([rate for _, rate in places], [rate for _, rate in printed],
                               atol=1e-7)
    scale_of([x for x, _ in places], [epoch for epoch, _ in printed])
    said = capsys.readouterr().out.splitlines()
    assert 't2t_vit_7_log: 1,212 of 1,212 rates of published' in said
    # Counted in tests/test_scheduler.py, too: 492 differ.
    assert 't2t_vit_7: 720 of 1,212 rates of published' in said


def test_rates_of_a_real_run_that_changed_in_every_step(tmp_path, capsys):
    out = tmp_path / 'a.svg'
    visualize.main(['schedule', str(ROOT / 'config/lit_data.yaml'), '--log',
                    str(ROOT / 'log/lit_data.log'), '--out', str(out)])
    said = capsys.readouterr().out
    assert 'lit_data: 56 of 56 rates of lit_data\n' in said
    assert {'lit_data', 'lit_data: 56 rates'} <= set(svg.texts(svg.read(out)))


def test_the_batches_of_an_epoch_are_given_where_data_are_missing(tmp_path, capsys):
    command = ['schedule', str(ROOT / 'config/lit_data.yaml'), '--out', str(tmp_path / 'a.png'),
               '-o', 'DATA_PATH.TRAIN_DATASET_PATH=/missing']
    visualize.main(command)
    assert 'drawn with 100 steps an epoch, or name them with --steps' in capsys.readouterr().err
    visualize.main([*command, '--steps', '43'])
    assert capsys.readouterr().err == ''


def test_restarted_runs_and_those_of_pit_are_read(tmp_path):
    (tmp_path / 'a.log').write_text(
        'Epoch [0/9], Step [5/10], Loss: 1.2,acc: 0.5, read_time: 0.1, lr: 0.0003\n'
        'Epoch [1/9], Step [10/10], Loss: 1.2, lr: 0.000025\n'
        'Epoch [1/9], Step [1/0], Loss: 1.2, lr: 0.1\n'
        'Epoch [0/9], Step [10/10], Loss: 1.2, lr: 0.0000015\n'
        '2021-12-28 01:16:41,491 Now training epoch 4. LR=0.000050\n')
    assert read_rates(tmp_path / 'a.log') == [
        (0, 4, 10, '0.0003'), (1, 9, 10, '0.000025'), (2, 9, 10, '0.0000015'),
        (5, 0, 1, '0.000050')]


@pytest.mark.parametrize('content, said', [('no rates', 'has no learning rates'),
                                           (None, 'cannot be read')])
def test_a_log_without_rates_is_wrong_input(tmp_path, content, said):
    if content:
        (tmp_path / 'a.log').write_text(content)
    with pytest.raises(LogError, match=said):
        read_rates(tmp_path / 'a.log')
