"""Catches progress bars that hide or change the lines, say something else, or reach a file."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from support import plain
from support.runs import figures
from support.terminal import bars, run_in_terminal, screen

from training.fast import speed_up
from zoo.macs import count_macs, total_macs

SLOW = {'SECONDS_A_STEP': '0.12'}    # longer than tqdm waits between two drawings


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    return plain.write_recipe(tmp_path_factory.mktemp('terminal'))


def command(recipe, name, *launcher):
    program = ['tools/launch.py', plain.__file__, *launcher] if launcher else [plain.__file__]
    return [sys.executable, *program, '-c', str(recipe), '-o',
            f'TRAIN.OUTPUT_DIR={recipe.parent / name}']


@pytest.fixture(scope='module')
def piped(recipe):
    done = subprocess.run(command(recipe, 'piped'), cwd=ROOT, capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr
    return done


def log(recipe, name):
    return (recipe.parent / name / 'train.log').read_text()


def test_a_pipe_gets_the_lines_of_the_log_and_nothing_else(piped, recipe):
    assert piped.stdout == log(recipe, 'piped') and piped.stderr == ''
    assert not re.search('[\r\x1b]', piped.stdout)


def test_the_summary_says_what_is_trained_and_what_came_of_it(piped, recipe):
    lines = piped.stdout.splitlines()
    # Linear layers have one product for each weight.
    assert lines[0] == (f'model: plain at 16 pixels, 15,152 parameters (15,152 trainable), '
                        f'{(3 * 16 ** 2 * 8 + 8 * 1000) / 1e9:.3g} G MACs an image')
    assert lines[1] == ('data: 24 training images of lit_data/train, 24 validation images of '
                        'lit_data/train')
    assert re.fullmatch(r'device: cpu, 1 process\(es\) of 4 images a step, \d+ thread\(s\) each',
                        lines[2])
    assert lines[3].startswith('schedule: 2 epochs of 6 steps, adamw, 1-epoch warm-up, ')
    records = [json.loads(line) for line in
               (recipe.parent / 'piped' / 'log.jsonl').read_text().splitlines()]
    scores = [record['top1'] for record in records if record['event'] == 'validation']
    weights = recipe.parent / 'piped' / 'best.pdparams'
    assert lines[-3] == (f'best val acc: {max(scores):.4f} after {scores.index(max(scores)) + 1} '
                         f'of 2 epochs, weights in {weights}')
    assert re.fullmatch(r'trained in \d+ s; next: python tools/predict.py -c (\S+)/config.yaml '
                        r'--weights \1/best.pdparams lit_data/train/\S+', lines[-2])


def test_a_terminal_shows_a_bar_and_keeps_the_lines(piped, recipe):
    code, written = run_in_terminal(command(recipe, 'shown'), **SLOW)
    assert code == 0
    assert screen(written) == [*log(recipe, 'shown').splitlines(), '']
    assert figures(recipe.parent / 'shown') == figures(recipe.parent / 'piped')
    for epoch in range(2):
        drawn = bars(written, rf'Epoch \[{epoch}/2\]')
        assert len(drawn) >= 6
        assert re.fullmatch(r'\d+ s left, run \d+ s, loss \d\.\d{3}, top-1 [01]\.\d{3}, '
                            r'\d+\.\d images/s, lr \S+', drawn[-1][1])
        assert all(len(bar + text) <= 120 for bar, text in drawn)
    # The bar below a line of the log has the same means.
    below = re.findall(r'Loss: (\S+),acc: (\S+),[^|]*\|[^|]*\|[^|]* loss (\S+), top-1 ([\d.]+)',
                       written)
    assert len(below) == 12
    for loss, accuracy, shown_loss, shown_accuracy in below:
        assert abs(float(loss) - float(shown_loss)) < 6e-4
        assert abs(float(accuracy) - float(shown_accuracy)) < 6e-4
    assert '\rvalidation:' in written


def test_the_first_of_two_processes_draws_on_the_terminal_of_the_launcher(recipe):
    logs = recipe.parent / 'logs'
    code, written = run_in_terminal(
        command(recipe, 'two', '--nproc', '2', '--logs', str(logs)), columns=60, **SLOW)
    assert code == 0
    note, *lines = screen(written)
    assert note == f"Each process writes to {logs}/workerlog.N; this is the first one's output."
    assert lines == [*log(recipe, 'two').splitlines(), '']
    assert (logs / 'workerlog.0').read_text() == log(recipe, 'two')
    assert (logs / 'workerlog.1').read_text() == ''
    drawn = bars(written)
    assert any(re.fullmatch(r'\d+ s left, run \d+ s, loss \S+', text) for _, text in drawn)
    assert all(len(bar + text) <= 60 for bar, text in drawn), 'wider than the terminal'


def test_macs_are_those_of_the_network_as_written():
    network, options = plain.NETWORKS['small']
    as_written, faster = (network(num_classes=10, img_size=32, **options) for _ in range(2))
    counted = count_macs(speed_up(faster), 32)
    assert counted == count_macs(as_written, 32) and total_macs(counted)['attention'] > 0
