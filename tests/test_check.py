"""Catches tools/check.py calling a machine right that computes wrongly, or wrong one that does not.

Nothing here was run on a GPU.
"""

import json
import re
import subprocess

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle.nn import functional as F

import check
from data import loader
from system.command import UsageError
from zoo import golden


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(check, 'SECONDS', 0)


def run(tmp_path, capsys, *names):
    """({check: (outcome, text)}, exit code, printed lines) of a run with some checks."""
    code = check.main(['--only', *names, '--report', str(tmp_path / 'new' / 'check.txt')])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r'(ok|failed|not available here) +(\S.*?)  +(.*)', line)
            for line in lines[:lines.index('')]]
    return {row[2]: (row[1], row[3]) for row in rows}, code, lines


def test_what_a_cpu_can_compute_is_ok(tmp_path, capsys):
    rows, code, lines = run(tmp_path, capsys, 'logits vit', 'gradients', 'AMP', 'training')
    assert code == 0 and len(rows) == 7
    for name, (outcome, text) in rows.items():
        assert outcome == ('not available here' if name.startswith('AMP') else 'ok'), text
    for name in ('logits vit_tiny_patch16_224', 'training'):
        assert re.search(r'\d+\.\d images/s', rows[name][1])
    assert 'weights after a resume differ by 0.0e+00' in rows['training'][1]
    report = (tmp_path / 'new' / 'check.txt').read_text()
    assert report.splitlines() == lines[:-1]
    assert re.search(rf'^numpy +{np.__version__}$', report, re.MULTILINE)
    assert lines[-1].startswith('0 of 7 checks failed; ')


@pytest.mark.parametrize('one, two, code, wanted', [
    ('1.0 0.0232 128', '1.0 0.0233 128', 0,
     ('ok', 'top-1 1.0000, loss 0.0232: one process 3.5 images/s, two 3.5 images/s')),
    ('1.0 0.0232 128', '1.0 0.0332 128', 0,
     ('failed', 'two: top-1 1.0000 and loss 0.0332 on 128 images, must be 1.0000 and 0.0232 on ')),
    ('1.0 0.0232 128', '1.0 0.0232 129', 0,
     ('failed', 'two: top-1 1.0000 and loss 0.0232 on 129 images, must be 1.0000 and 0.0232 on ')),
    ('0.9922 0.0232 128', '0.9922 0.0232 128', 0,
     ('failed', 'one process: top-1 0.9922 and loss 0.0232 on 128 images, must be 1.0000 and ')),
    ('1.0 0.0232 128', '1.0 0.0232 128', 1, ('failed', "one process: exit code 1: ['no gloo']"))])
def test_evaluation_compares_processes(tmp_path, monkeypatch, one, two, code, wanted):
    """What they print is made up here; tests/documents.py runs the whole command."""
    def answer(arguments, **_):
        top1, loss, images = (two if 'tools/launch.py' in arguments else one).split()
        said = f'top-1: {top1}, top-5: 1.0, loss: {loss}, {images} images, 3.5 images/s\n'
        return subprocess.CompletedProcess(arguments, code, said, 'warning\nno gloo\n')
    monkeypatch.setattr(check.subprocess, 'run', answer)
    outcome, text, _ = check.run_check('evaluation', tmp_path)
    assert outcome == wanted[0] and text.startswith(wanted[1])
    events = map(json.loads, (ROOT / 'log' / 'lit_data.jsonl').read_text().splitlines())
    best = max((event for event in events if event['event'] == 'validation'),
               key=lambda event: event['top1'])
    assert (check.SHIPPED_TOP1, check.SHIPPED_LOSS, check.SHIPPED_IMAGES) == (
        best['top1'], round(best['loss'], 4), best['images'])


def round_operands(monkeypatch, dtype):
    """Let linear layers and attention, but not Performers, round operands to half precision."""
    def rounded(tensor):    # in NumPy: Paddle 2.6 cuts bits off instead
        values = tensor.numpy()
        if dtype == 'float16':
            values = values.astype('float16').astype('float32')
        else:    # bfloat16 is the upper half of float32; halves go to even
            bits = values.view('uint32')
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & np.uint32(0xffff0000)
            values = bits.view('float32')
        return tensor + (paddle.to_tensor(values) - tensor).detach()    # exact, with gradients

    linear, matmul = F.linear, paddle.matmul
    monkeypatch.setattr(F, 'linear', lambda x, weight, bias=None, name=None: linear(
        rounded(x), rounded(weight), bias))
    monkeypatch.setattr(paddle, 'matmul', lambda x, y, **flags: matmul(
        *((rounded(x), rounded(y)) if x.ndim == 4 else (x, y)), **flags))


def test_a_machine_that_rounds_too_much_fails_with_a_likely_cause(tmp_path, capsys, monkeypatch):
    """TF32 rounds operands to 10 bits, as float16 does."""
    round_operands(monkeypatch, 'float16')
    rows, code, lines = run(tmp_path, capsys, 'logits vit', 'gradients')
    assert code == 1
    for outcome, text in rows.values():
        assert outcome == 'failed' and 'differ by' in text and 'MKL' in text
    monkeypatch.setattr(check, 'on_gpu', lambda: True)
    assert 'TF32' in check.run_check('logits vit_tiny_patch16_224', tmp_path)[1]
    report = (tmp_path / 'new' / 'check.txt').read_text()
    assert 'Traceback' in report and 'check.Failed' in report
    assert lines[-1].startswith('2 of 2 checks failed') and 'tracebacks' in lines[-1]


def test_wrong_states_pixels_and_numbers_fail(tmp_path, monkeypatch):
    read = check.read_checkpoint

    def other(path):
        arrays, state = read(path)
        name = 'optimizer/moment1/head.weight'
        return {**arrays, name: 2 * arrays[name]}, state

    monkeypatch.setattr(check, 'read_checkpoint', other)
    assert check.run_check('training', tmp_path)[0] == 'failed'
    with pytest.raises(check.Failed, match='differ by nan'):
        check.require(float('nan'), 1, 'logits')

    def brighter(dataset, keys, images, labels, on_row):
        report = fill_batch(dataset, keys, images, labels, on_row)
        images[0] += 1
        return report

    fill_batch = loader.fill_batch    # in this process only
    monkeypatch.setattr(loader, 'fill_batch', brighter)
    outcome, text, _ = check.run_check('loader', tmp_path)
    assert outcome == 'failed' and 'exact: two processes read other pixels than one' in text


@pytest.mark.parametrize('dtype', sorted(check.HALF))
def test_the_limits_of_mixed_precision(dtype, monkeypatch):
    """Rounding the operands of all products gives about a tenth of the limit."""
    round_operands(monkeypatch, dtype)
    network, size = golden.golden_network('t2t_vit_7')
    network.eval()
    wanted = golden.figures('forward_t2t_vit_7')['logits']
    logits = check.forward(network, golden.image_batch(size))
    difference = np.abs(logits - wanted).max() / wanted.std()
    assert check.HALF[dtype] / 15 < difference < check.HALF[dtype] / 7


def test_unknown_checks_are_refused():
    with pytest.raises(UsageError, match='--only x: known are logits t2t_vit_7, '):
        check.main(['--only', 'x'])
