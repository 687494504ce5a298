"""Catches shipped weights, configurations, logs and docs that do not agree."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT

import build
from config import FORMER_VALUES, REMOVED, load_config
from data.decode import decode_image
from data.transforms import EvalTransform
from weights.files import read_weights

WEIGHTS = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
PHOTOGRAPHS = ROOT / 'output' / 't2t_vit_7_tiny_imagenet_50'
RESOLVED = ROOT / 'output' / 't2t_vit_7_lit_data.yaml'
FINAL = re.compile(r'ImageNet final val acc is:(\d\.\d{4})')


def test_the_shipped_weights_have_the_accuracy_of_their_log():
    """Computed without the loader and evaluate()."""
    config = load_config(RESOLVED)
    network, metadata = build.trained_network(config, WEIGHTS)
    network.eval()
    transform = EvalTransform(config.MODEL.IMAGE_SIZE, config.DATA.EVAL_TRANSFORM,
                              config.DATA.EVAL_CROP_RATIO)
    lines = (ROOT / 'lit_data' / 'val.txt').read_text().splitlines()
    images = np.stack([transform(decode_image(ROOT / 'lit_data' / 'val' / line.rsplit(' ', 1)[0]))
                       for line in lines])
    labels = np.array([int(line.rsplit(' ', 1)[1]) for line in lines])
    with paddle.no_grad():
        logits = network(paddle.to_tensor(images)).numpy()
    assert logits.shape == (len(lines), 1000)
    accuracy = (logits.argmax(axis=1) == labels).mean()
    assert len(lines) >= 64 and accuracy >= 0.95
    log = (ROOT / 'log' / 'lit_data.log').read_text()
    assert f'{metadata["top1"]:.4f}' == f'{accuracy:.4f}'
    assert f'best val acc: {accuracy:.4f}' in log


def test_the_log_belongs_to_the_shipped_configuration():
    records = [json.loads(line)
               for line in (ROOT / 'log' / 'lit_data.jsonl').read_text().splitlines()]
    logged = records[0]['config']
    for path in (RESOLVED, 'config/lit_data.yaml'):
        now = json.loads(json.dumps(dataclasses.asdict(load_config(path))))
        for section in ('DATA_PATH', 'MODEL', 'TRAIN', 'DATA', 'SCHEDULER'):
            for key, value in logged[section].items():
                if key in ('RESUME', 'SPLIT_BATCH'):    # set by scripts/train.sh
                    continue
                value = FORMER_VALUES.get(f'{section}.{key}', {}).get(str(value), value)
                same = now[section].get(key, REMOVED.get(f'{section}.{key}')) == value
                assert same, f'{path}: {key} has changed since the run'
    assert records[-1]['event'] == 'end' and records[-1]['elapsed'] < 600


@pytest.mark.parametrize('name', ['lit_data', 'tiny_imagenet', 'tiny_imagenet_50_32px'])
def test_the_loss_falls_in_the_shipped_logs(name):
    records = [json.loads(line)
               for line in (ROOT / 'log' / f'{name}.jsonl').read_text().splitlines()]
    losses = [record['loss'] for record in records if record['event'] == 'epoch']
    assert len(losses) == records[0]['config']['SCHEDULER']['NUM_EPOCHS']
    assert losses[-1] < losses[len(losses) // 2] < losses[0]
    assert FINAL.search((ROOT / 'log' / f'{name}.log').read_text())


def test_the_card_of_the_weights_for_photographs_has_the_figures_of_their_log():
    from scipy.stats import binomtest

    records = [json.loads(line) for line in
               (ROOT / 'log' / 'tiny_imagenet_50.jsonl').read_text().splitlines()]
    best = max((record for record in records if record['event'].startswith('validation')),
               key=lambda record: record['top1'])
    state, metadata = read_weights(PHOTOGRAPHS.with_suffix('.safetensors'))
    assert metadata['top1'] == best['top1'] and metadata['epoch'] == best['epoch']
    assert len(metadata['known_classes']) == 50
    assert all(array.dtype == np.float16 for array in state.values())
    card, images = PHOTOGRAPHS.with_suffix('.md').read_text(), best['images']
    low, high = binomtest(round(best['top1'] * images), images).proportion_ci(method='wilson')
    assert (f'**{100 * best["top1"]:.2f} % top-1** (95 % interval {100 * low:.1f} to '
            f'{100 * high:.1f}, Wilson), {100 * best["top5"]:.2f} % top-5') in card


@pytest.mark.fresh_interpreter
def test_predict_and_val_print_the_documented_lines():
    def lines(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True,
                              cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert lines('tools/predict.py')[0] == 'class_id is: 923'
    _, metadata = read_weights(WEIGHTS)
    assert lines('tools/val.py')[-1] == f'ImageNet final val acc is:{metadata["top1"]:.4f}'


def test_the_documentation_shows_real_output():
    readme = (ROOT / 'docs' / 'training.md').read_text()
    log = (ROOT / 'log' / 'lit_data.log').read_text().splitlines()
    shown = [line.strip() for line in readme.splitlines()
             if line.strip().startswith(('Epoch [', 'best val acc'))]
    assert len(shown) > 3 and set(shown) <= set(log)
