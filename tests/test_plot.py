"""Curves of runs: the picture's points against the log's figures."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import ROOT

SVG = '{http://www.w3.org/2000/svg}'


def plot(*arguments):
    return subprocess.run([sys.executable, 'tools/plot.py', *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)


def write_log(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def test_points_are_where_the_figures_say(tmp_path):
    top1 = [0.1, 0.3, 0.25, 0.4]
    log = write_log(tmp_path / '<a>.jsonl', [dict(event='start')] + [
        dict(event=event, epoch=epoch, top1=value + extra)
        for epoch, value in enumerate(top1)
        for event, extra in (('validation', 0), ('validation_ema', 0.05))])
    done = plot(log, '--out', tmp_path / 'a.svg')
    assert done.returncode == 0, done.stderr
    root = ElementTree.parse(tmp_path / 'a.svg').getroot()    # well-formed, name escaped
    lines = [line.get('points').split() for line in root.iter(f'{SVG}polyline')]
    raw, averaged = (line for line in lines if len(line) == 4)
    points = [tuple(map(float, point.split(','))) for point in raw]
    # Evenly spaced to the right, and upwards in proportion to the accuracy.
    steps = {round(b[0] - a[0], 1) for a, b in zip(points, points[1:])}
    assert max(steps) - min(steps) <= 0.11
    scale = (points[0][1] - points[1][1]) / 0.2
    assert points[0][1] - points[3][1] == pytest.approx(0.3 * scale, abs=0.2)
    assert float(averaged[0].split(',')[1]) == pytest.approx(points[0][1] - 0.05 * scale, abs=0.2)
    assert '<a>: 40.0 %' in [text.text for text in root.iter(f'{SVG}text')]


@pytest.mark.parametrize('content, said', [
    ('{}', 'is no log.jsonl'), ('no json', 'is no log.jsonl'),
    ('{"event": "start"}', 'holds no validation'), (None, 'is no log.jsonl')])
def test_what_is_no_log_is_one_line(tmp_path, content, said):
    path = tmp_path / 'log.jsonl'
    if content is not None:
        path.write_text(content)
    done = plot(path, '--out', tmp_path / 'a.svg')
    assert done.returncode == 2 and said in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'a.svg').exists()
