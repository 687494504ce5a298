"""Catches figures whose points differ from the logs."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from support import svg
from support.svg import points_of

import visualize
from figures.curves import KINDS, LogError, draw, read_log
from figures.style import save

PUBLISHED = ROOT.parent / 'shared' / 'published'
PADDLE = """
Epoch [0/200], Step [100/1252], Loss: 6.8079,acc: 0.0026, read_time: 0.8813, lr: 0.0002
Epoch [0/200], avg_Loss: 6.0730, avg_acc: 0.0277
Epoch [1/200], avg_Loss: 5.0178, avg_acc: 0.1025
ImageNet val acc is:0.1200
Epoch [2/200], avg_Loss: 4.2603
ImageNet val acc is:0.2100
EMA val acc is:0.0100
"""
PIT = """
2021-12-28 01:44:24,848 ----- Epoch[001/310], Train Loss: 6.8359, Train Acc: 0.0035, time: 1663.35
2021-12-28 02:12:00,000 ----- Epoch[002/310], Train Loss: 6.5, Train Acc: 0.01, time: 1663.35
2021-12-28 02:13:35,838 ----- Epoch[002/310], Validation Loss: 5.9529, Validation Acc@1: 0.0398, \
Validation Acc@5: 0.1208, time: 109.85
"""


def write(path, text):
    path.write_text(text)
    return path


def records(top1):
    yield dict(event='start')
    for epoch, value in enumerate(top1):
        yield dict(event='step', epoch=epoch, loss=9.0)
        yield dict(event='epoch', epoch=epoch, loss=4 - value, acc=value / 2)
        yield dict(event='validation', epoch=epoch, top1=value)
        yield dict(event='validation_ema', epoch=epoch, top1=value + 0.05)


def test_points_are_at_the_values_of_the_log(tmp_path):
    top1 = [0.1, 0.3, 0.25, 0.4]
    log = write(tmp_path / '<a>$.jsonl', ''.join(json.dumps(record) + '\n'
                                                 for record in records(top1)))
    figure = draw({'<a>$': read_log(log)})
    save(figure, str(tmp_path / 'a.svg'))
    root = svg.read(tmp_path / 'a.svg')    # well-formed, the name escaped
    curves = {kind: points_of(root, f'<a>$:{kind}') for kind in KINDS}
    for kind, figures in (('validation', top1), ('validation_ema', [a + 0.05 for a in top1]),
                          ('train', [a / 2 for a in top1]), ('loss', [a - 4 for a in top1])):
        points = curves[kind]
        # Evenly spaced to the right; upwards (downwards for the loss) in proportion.
        steps = [b[0] - a[0] for a, b in zip(points, points[1:])]
        assert max(steps) - min(steps) < 0.01 and min(steps) > 10
        scale = (points[0][1] - points[1][1]) / 0.2 / (0.5 if kind == 'train' else 1)
        for (_, y), value in zip(points, figures):
            assert abs(y - points[0][1]) == pytest.approx(abs((value - figures[0]) * scale),
                                                          abs=0.05)
    height = curves['validation'][0][1] - curves['validation_ema'][0][1]
    assert height == pytest.approx((curves['validation'][0][1] - curves['validation'][3][1]) / 6,
                                   abs=0.05)
    assert {'<a>$: 40.0 %', '<a>$, EMA: 45.0 %', '<a>$, training: 20.0 %'} <= set(svg.texts(root))
    save(figure, str(tmp_path / 'again.svg'))
    assert (tmp_path / 'again.svg').read_bytes() == (tmp_path / 'a.svg').read_bytes()


def test_the_lines_of_the_paddle_repositories_are_read(tmp_path):
    assert read_log(write(tmp_path / 'a.log', PADDLE)) == {
        'loss': [(1, 6.073), (2, 5.0178), (3, 4.2603)], 'train': [(1, 0.0277), (2, 0.1025)],
        'validation': [(2, 0.12), (3, 0.21)], 'validation_ema': [(3, 0.01)]}
    assert read_log(write(tmp_path / 'b.log', PIT)) == {
        'loss': [(1, 6.8359), (2, 6.5)], 'train': [(1, 0.0035), (2, 0.01)],
        'validation': [(2, 0.0398)], 'validation_ema': []}


@pytest.mark.skipif(not PUBLISHED.exists(), reason='the published logs are not here')
def test_the_published_logs_are_read_to_their_ends():
    """Epochs and last accuracies as their repositories state them."""
    ends = {name: {kind: points[-1] for kind, points in
                   read_log(PUBLISHED / f'{name}.log').items() if points}
            for name in ('t2t_paddle_1', 't2t_paddle_2', 't2t_paddle_4', 'paddle_pit')}
    assert ends['t2t_paddle_1'] == {'loss': (101, 1.4543), 'train': (101, 0.6564)}
    assert ends['t2t_paddle_2']['train'] == (20, 0.669)
    assert ends['t2t_paddle_4']['validation'] == (20, 0.7158)
    assert ends['paddle_pit']['train'][0] == ends['paddle_pit']['validation'][0] == 310


def test_epochs_of_restarted_runs(tmp_path):
    def losses(*epochs):
        text = ''.join(f'Epoch [{epoch}/9], avg_Loss: {number}.0\n'
                       for number, epoch in enumerate(epochs))
        return read_log(write(tmp_path / 'a.log', text))['loss']

    assert losses(0, 1, 2, 0, 1, 0) == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5)]
    assert losses(0, 1, 2, 3, 2, 3) == [(1, 0), (2, 1), (3, 4), (4, 5)]
    assert losses(4, 5, 4) == [(5, 0), (6, 1), (7, 2)]
    assert losses(0, 0) == [(1, 1)]    # the first epoch, repeated


@pytest.mark.parametrize('content, said', [
    ('{}', 'is no log.jsonl'), ('{"event": "epoch"}', 'is no log.jsonl'),
    ('{"event": "start"}', 'has no complete epoch'), ('a text', 'has no complete epoch'),
    ('', 'has no complete epoch'), (None, 'cannot be read')])
def test_other_files_are_wrong_input(tmp_path, content, said):
    path = tmp_path / 'log.jsonl'
    if content is not None:
        path.write_text(content)
    with pytest.raises(LogError, match=said) as caught:
        read_log(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_the_command_draws_the_figure_in_the_docs(tmp_path):
    """Other versions of Matplotlib may draw differently, but with the same points and names."""
    out = tmp_path / 'a.svg'
    done = subprocess.run(
        [sys.executable, 'tools/visualize.py', 'curves', 'log/tiny_imagenet_20_plain.jsonl',
         'log/tiny_imagenet_20_official.jsonl', '--out', out],
        cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f'{out}\n'), done.stderr
    mine, docs = map(svg.read, (out, ROOT / 'docs' / 'recipes.svg'))
    for kind in KINDS:
        name = f'tiny_imagenet_20_plain:{kind}'
        assert len(points_of(mine, name)) == len(points_of(docs, name)) == 12
    assert 'tiny_imagenet_20_official, EMA: 22.6 %' in {*svg.texts(mine)} & {*svg.texts(docs)}


@pytest.mark.parametrize('out, said', [('a.jpg', 'end it in .svg or .png'),
                                       ('no/folder/a.png', 'cannot be written')])
def test_a_figure_that_cannot_be_written_is_wrong_input(tmp_path, out, said):
    with pytest.raises(Exception, match=said) as caught:
        visualize.main(['curves', str(ROOT / 'log/lit_data.log'), '--out', str(tmp_path / out)])
    assert caught.value.exit_code == 2 and '\n' not in str(caught.value)
