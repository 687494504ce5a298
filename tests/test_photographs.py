"""Catches shipped weights that do not know photographs, where there are some."""

import json

import pytest
from conftest import ROOT

import build
import predict

PHOTOGRAPHS = ROOT.parent / 'shared' / 'data' / 'imagenet_lit'
PLATE = 'n07579787_1228.JPEG'    # whose published answer is 923


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason='no photographs')
def test_prediction_of_real_photographs(capsys):
    labels = {}
    for part in ('train', 'val'):
        for line in (PHOTOGRAPHS / f'{part}.txt').read_text().splitlines():
            path, label = line.rsplit(' ', 1)
            labels[str(PHOTOGRAPHS / part / path)] = int(label)
    assert len(labels) == 24
    assert predict.main(['--json', *labels]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    config = build.load_config('config/tiny_imagenet_50.yaml')
    weights = build.weights_path(config)
    *_, metadata = build.open_model(config, weights)
    known = build.trained_on(config, weights, metadata)['known_classes']
    assert len(known) == 50
    for answer in answers:
        assert answer['class_id'] in known
        sure = answer['top'][0]['probability'] >= 0.5
        assert bool(answer['note']) == (not sure)
        if answer['image'].endswith(PLATE):
            assert answer['class_id'] == labels[answer['image']] == 923
