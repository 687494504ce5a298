"""Catches several processes that compute other results than one, or outlive a failed job."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from support.runs import (
    assert_gone,
    below,
    launch,
    run,
    started,
    without_roots_rights,
)


def test_two_ranks_with_half_the_batch_equal_one_process(tmp_path):
    subprocess.run([sys.executable, 'tests/support/two_ranks.py', tmp_path / 'one', '16'], cwd=ROOT,
                   check=True, timeout=300)
    launch(2, tmp_path, 'tests/support/two_ranks.py', tmp_path / 'two', '8')
    one, two, other = (np.load(tmp_path / name)
                       for name in ('one.0.npz', 'two.0.npz', 'two.1.npz'))
    gradients = [name for name in one.files if name.startswith('gradient/')]
    weights = [name for name in one.files if name not in gradients and name != 'norms']
    assert len(gradients) == 108 and len(weights) == 111
    for name in weights:
        np.testing.assert_array_equal(two[name], other[name], err_msg=f'ranks differ: {name}')

    def relative_difference(names):
        first, second = (np.concatenate([file[name].astype('float64').ravel() for name in names])
                         for file in (one, two))
        return np.linalg.norm(first - second) / np.linalg.norm(first)

    assert relative_difference(gradients) <= 1e-6
    assert relative_difference(weights) <= 1e-6
    # Also each weight by itself. Biases start at zero, so their difference is relative to that of
    # a normalised gradient.
    for name in weights:
        assert name.endswith('bias') or relative_difference([name]) <= 1e-6, name


def test_scores_are_bit_equal_for_one_to_four_processes(tmp_path):
    """For 1 and for 13 images, which leave some or most processes with padding only."""
    lines = (ROOT / 'lit_data' / 'val.txt').read_text().splitlines()[::9]
    for images in (1, 13):
        (tmp_path / f'{images}.txt').write_text('\n'.join(lines[:images]) + '\n')
    results = set()
    for count in (1, 2, 3, 4):
        text = launch(count, tmp_path, 'tests/support/scores.py', tmp_path / '1.txt',
                      tmp_path / '13.txt')
        text = '\n'.join(filter(None, text.splitlines()))    # libraries print empty lines
        results.add(text)
        scores = [json.loads(line) for line in text.splitlines()]
        assert [each['images'] for each in scores] == [1, 13]
        assert [f'{path} {label}' for path, label, _ in scores[1]['predictions']] == lines[:13]
    assert len(results) == 1


@pytest.mark.parametrize('number, said', [
    (signal.SIGKILL, 'was killed by SIGKILL'), (signal.SIGSTOP, 'hung: it was stopped')],
    ids=['killed', 'hung'])
def test_a_killed_or_hung_rank_ends_the_job(recipe, tmp_path, number, said):
    process = started(recipe, tmp_path / 'run')
    family = below(process.pid)
    victim = family[1]    # the launcher's second child
    os.kill(victim, number)
    try:
        assert process.wait(timeout=60) == 1
        assert_gone(family)
        last = (tmp_path / 'run.stderr').read_text().splitlines()[-1]
        assert last.startswith(f'failed: rank 1 (pid {victim}) {said}'), last
    finally:
        for pid in family:    # left only if the test has failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_stops_all_processes(recipe, tmp_path, number):
    process = started(recipe, tmp_path / 'run')
    family = below(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    assert_gone(family)
    # Processes agree on stopping every tenth step.
    assert list((tmp_path / 'run' / 'checkpoints').glob('step-*0.ckpt'))
    assert 'failed' not in (tmp_path / 'run.stderr').read_text()


def test_wrong_input_is_printed_once(recipe, tmp_path):
    done = run(recipe, tmp_path / 'run', 'MODEL.NAME=t2t_vit_77', processes=2, code=2)
    assert (done.stdout + done.stderr).count('did you mean t2t_vit_7?') == 1


def test_the_log_holds_means_over_all_processes(recipe, tmp_path):
    """Recomputed from the sums of each process."""
    subprocess.run([sys.executable, 'tools/launch.py', 'tests/support/rank_means.py', '--nproc',
                    '2', '--logs', tmp_path / 'launch', '--', recipe, tmp_path], cwd=ROOT,
                   check=True, timeout=200)
    one, two = (np.load(tmp_path / f'{rank}.npy') for rank in (0, 1))    # (steps, 3)
    assert one.shape == two.shape == (13, 3) and not np.array_equal(one, two)
    loss, correct, images = (one + two).cumsum(axis=0).T
    records = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').open()]
    steps = [record for record in records if record['event'] == 'step']
    assert [record['step'] for record in steps] == [4, 6, 10, 12, 13]
    for record in steps:
        last = record['step'] - 1
        assert record['loss'] == pytest.approx(loss[last] / images[last], rel=1e-12)
        assert record['acc'] == pytest.approx(correct[last] / images[last], rel=1e-12)


def test_broadcasts_errors_and_agreement(tmp_path):
    subprocess.run([sys.executable, 'tools/launch.py', 'tests/support/sharing.py', '--nproc', '2',
                    '--logs', tmp_path / 'launch', '--', tmp_path], cwd=ROOT, check=True,
                   timeout=200)
    disagree = 'DisagreementError: the processes disagree: rank 0: step 0; rank 1: step 1'
    for rank in (0, 1):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == {
            'main': ['OSError: rank 0 failed', 'rank 0 succeeded'],
            'everywhere': ['OSError: rank 0 failed', 'OSError: rank 1 failed',
                           f'rank {rank} succeeded'],
            'agree': [None, disagree]}


@pytest.mark.parametrize('in_output', [True, False], ids=['output folder', 'temporary folder'])
def test_several_processes_in_a_read_only_checkout(tmp_path, in_output):
    """Their output goes next to TRAIN.OUTPUT_DIR, else to a temporary folder."""
    checkout, temporary = tmp_path / 'checkout', tmp_path / 'temporary'
    for folder in ('tools', 'config'):
        shutil.copytree(ROOT / folder, checkout / folder,
                        ignore=shutil.ignore_patterns('__pycache__'))
    (checkout / 'program.py').write_text('print("output of a process")\n')
    temporary.mkdir()
    folders = [path for path in [checkout, *checkout.rglob('*')] if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    output = tmp_path / 'run' if in_output else checkout / 'output' / 'run'
    done = subprocess.run(
        [sys.executable, 'tools/launch.py', 'program.py', '--nproc', '2', '-o',
         f'TRAIN.OUTPUT_DIR={output}'], cwd=checkout, capture_output=True, text=True, timeout=60,
        env={**os.environ, 'TMPDIR': str(temporary)}, preexec_fn=without_roots_rights)
    assert (done.returncode, done.stdout) == (0, 'output of a process\n'), done.stderr
    (line,) = done.stderr.splitlines()
    logs = Path(re.match(r'Each process writes to (.*)/workerlog\.N; ', line)[1])
    assert logs.is_relative_to(tmp_path / 'run.launch' if in_output else temporary)
    assert (logs / 'workerlog.1').read_text() == 'output of a process\n'
    for folder in folders:
        folder.chmod(0o755)


def test_two_runs_never_share_a_folder(recipe, tmp_path):
    process = started(recipe, tmp_path / 'run')
    try:
        script = ('import conftest, sys; from training.folder import lock_folder; '
                  'lock_folder(sys.argv[1], timeout=1)')
        second = subprocess.run([sys.executable, '-c', script, tmp_path / 'run'],
                                cwd=ROOT / 'tests', capture_output=True, text=True, timeout=60)
        assert second.returncode == 1 and 'another process trains in this folder' in second.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert_gone(below(process.pid))
    deadline = time.monotonic() + 30
    while subprocess.run([sys.executable, '-c', script, tmp_path / 'run'], cwd=ROOT / 'tests',
                         capture_output=True, timeout=60).returncode:
        assert time.monotonic() < deadline, 'the lock is still held'


def test_processes_end_when_their_launcher_is_killed(recipe, tmp_path):
    process = started(recipe, tmp_path / 'run')
    family = below(process.pid)
    process.kill()
    process.wait()
    assert_gone(family)


def test_a_process_ends_at_once_if_its_launcher_has_already_ended():
    done = subprocess.run(
        [sys.executable, '-c', 'from system import start; start.prepare(); print("continued")'],
        cwd=ROOT / 'tools',
        env={**os.environ, 'PADDLE_TRAINER_ID': '0', 'T2T_LAUNCHER_PID': '1'},
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'continued' not in done.stdout
