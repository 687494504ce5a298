"""Catches stopped or killed runs that do not resume to the result of an uninterrupted run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT
from support.runs import (
    PROGRAM,
    assert_same_run,
    command,
    kill_often,
    newest,
    run,
    wait_for,
    without_roots_rights,
)

import build
from config import load_config
from system import start
from training.checkpoint import capture, restore
from training.folder import Checkpoints
from weights.container import CheckpointError, read_checkpoint, write_checkpoint
from weights.files import read_weights


@pytest.mark.slow
@pytest.mark.usefixtures('slow_steps')
def test_kills_do_not_change_the_result(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    kill_often(command(recipe, folder), kills=8, seed=1, signal_all=False)
    assert_same_run(uninterrupted, folder)


@pytest.mark.slow
@pytest.mark.usefixtures('slow_steps')
def test_kills_of_two_processes_do_not_change_the_result(recipe, tmp_path):
    run(recipe, tmp_path / 'uninterrupted', processes=2)
    kill_often(command(recipe, tmp_path / 'run', processes=2), kills=3, seed=2, signal_all=True)
    assert_same_run(tmp_path / 'uninterrupted', tmp_path / 'run')


@pytest.mark.usefixtures('slow_steps')
def test_signals_finish_the_step_save_and_exit_with_75(recipe, uninterrupted, tmp_path):
    """One run, stopped by each of the signals in turn."""
    folder = tmp_path / 'run'
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process = subprocess.Popen(command(recipe, folder, 'TRAIN.SAVE_STEPS=0'), cwd=ROOT,
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(process, r'Epoch \[\d/2\], Step \[\d+/')
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 75, error
        assert re.match(rf'stopped: {signal.Signals(number).name}: saved in epoch \d, step ', error)
        assert 'Traceback' not in error
    done = run(recipe, folder, 'TRAIN.SAVE_STEPS=0')
    assert 'going on from' in done.stdout
    assert_same_run(uninterrupted, folder)


@pytest.mark.slow
@pytest.mark.usefixtures('slow_steps')
def test_a_signal_does_not_change_the_result_of_two_threads(recipe, tmp_path, monkeypatch):
    """Images of 224 x 224 pixels, four a step, so that each thread computes two of them."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setattr(start, 'threads', lambda: 2)
    images = (recipe.parent / 'train.txt').read_text().splitlines()[:26]
    (tmp_path / 'train.txt').write_text('\n'.join(images))
    options = (f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={tmp_path}/train.txt', 'MODEL.IMAGE_SIZE=224',
               'TRAIN.TRAIN_BATCH_SIZE=4', 'SCHEDULER.NUM_EPOCHS=1', 'SCHEDULER.WARMUP_EPOCHS=0',
               'TRAIN.SAVE_STEPS=0', 'TRAIN.LOG_EVERY=1')
    assert build.threads_of_step(load_config(recipe, options)) == 2
    run(recipe, tmp_path / 'uninterrupted', *options)
    process = subprocess.Popen(command(recipe, tmp_path / 'run', *options), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(process, r'Step \[2/7\]')    # of a group of two
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert 'going on from' in run(recipe, tmp_path / 'run', *options).stdout
    assert_same_run(tmp_path / 'uninterrupted', tmp_path / 'run')


def test_a_second_ctrl_c_ends_at_once(recipe, tmp_path):
    process = subprocess.Popen(
        command(recipe, tmp_path / 'run', 'SCHEDULER.NUM_EPOCHS=50', 'TRAIN.TRAIN_BATCH_SIZE=100'),
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(process, 'parameters')
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, 75, -signal.SIGINT)


def test_the_time_limit_saves_and_exits_in_time(recipe, uninterrupted, tmp_path):
    folder, seconds, position = tmp_path / 'run', 0.5, (-1, 0)
    while True:
        began = time.monotonic()
        done = subprocess.run(
            command(recipe, folder, f'TRAIN.TIME_LIMIT_HOURS={seconds / 3600}'), cwd=ROOT,
            capture_output=True, text=True, timeout=120)
        if done.returncode != 75:
            break
        assert 'TIME_LIMIT_HOURS' in done.stderr
        assert time.monotonic() - began < seconds + 20    # 20 for imports, outside of the limit
        reached = tuple(map(int, re.search(r'epoch (\d+), step (\d+) of', done.stderr).groups()))
        assert reached > position, 'each start must make progress'
        position, seconds = reached, 2 * seconds
    assert done.returncode == 0 and position > (-1, 0), done.stderr
    assert_same_run(uninterrupted, folder)


def test_weights_and_ema_weights_are_validated_and_saved(recipe, uninterrupted):
    """Log, checkpoint, weights files and tools/val.py agree."""
    log = (uninterrupted / 'train.log').read_text()
    records = [json.loads(line) for line in (uninterrupted / 'log.jsonl').read_text().splitlines()]
    arrays, state = read_checkpoint(newest(uninterrupted))
    assert arrays['ema/updates'] == 2 * 7, '13 batches are 7 optimizer steps'
    for part, line, event, suffix in (('network', 'ImageNet', 'validation', ''),
                                      ('ema', 'EMA', 'validation_ema', '_ema')):
        scores = [record['top1'] for record in records if record['event'] == event]
        assert re.findall(rf'^{line} val acc is:(\S+)', log, re.M) == [f'{s:.4f}' for s in scores]
        assert len(scores) == 2 and state['position'][f'best{suffix}'] == max(scores)
        assert read_weights(uninterrupted / f'best{suffix}.pdparams')[1]['top1'] == max(scores)
        weights, _ = read_weights(uninterrupted / f'last{suffix}.pdparams')
        for name, array in weights.items():
            np.testing.assert_array_equal(arrays[f'{part}/{name}'], array, err_msg=name)
        done = subprocess.run(
            [sys.executable, PROGRAM, 'val', '-c', str(recipe), '--weights',
             str(uninterrupted / f'last{suffix}.pdparams')],
            cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert f'top-1: {scores[-1]:.4f}' in done.stdout, done.stderr
    assert (arrays['ema/head.weight'] != arrays['network/head.weight']).any()


def test_a_finished_run_prints_its_last_line_and_trains_no_step(recipe, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / 'run')
    done = run(recipe, tmp_path / 'run')
    assert 'Step [' not in done.stdout
    log = (uninterrupted / 'train.log').read_text()
    assert done.stdout.splitlines()[-1] == log.splitlines()[-1]


# ---- checkpoints that cannot be used

@pytest.mark.usefixtures('slow_steps')
def test_a_folder_that_becomes_read_only_does_not_end_the_run(recipe, uninterrupted, tmp_path):
    """It trains to the end, fails there, as its weights are lost, and can be completed."""
    folder = tmp_path / 'run'
    process = subprocess.Popen(command(recipe, folder), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=without_roots_rights)
    wait_for(process, r'Epoch \[0/2\], Step \[6/')
    (folder / 'checkpoints').chmod(0o500)
    folder.chmod(0o500)
    time.sleep(0.5)    # a checkpoint that is being written may still appear
    before = {path: path.read_bytes() for path in Checkpoints(folder / 'checkpoints').paths()}
    try:
        output, error = process.communicate(timeout=120)
    finally:
        folder.chmod(0o700)
        (folder / 'checkpoints').chmod(0o700)
    assert process.returncode == 1, error
    assert re.match('failed: TrainingError: trained to the end, but .*best.pdparams.* cannot be '
                    rf'written .*Permission denied.* goes on from {max(before)}$', error)
    assert 'weights in' not in output
    assert output.count('no checkpoint was saved') >= 6
    assert 'best.pdparams was not saved' in output and 'last.pdparams was not saved' in output
    assert before and {path: path.read_bytes()
                       for path in Checkpoints(folder / 'checkpoints').paths()} == before
    for path in before:
        read_checkpoint(path)
    (folder / '.best.pdparams.123.tmp').touch()    # as of a process that was killed
    run(recipe, folder)
    assert_same_run(uninterrupted, folder)
    assert not list(folder.rglob('.*'))


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {'a': np.arange(1000)}, dict(x=1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError):
        checkpoints.save(2, {'a': np.arange(1000)}, dict(x=2))
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_a_checkpoint_right_after_resuming_is_complete(recipe, uninterrupted, tmp_path):
    """Paddle's optimizers have no state between being restored and their first step."""
    folder = tmp_path / 'run'
    shutil.copytree(uninterrupted, folder)
    path = newest(folder)
    arrays, state = read_checkpoint(path)
    state['position'].update(epoch=1, step=13)    # all steps are done, but not the validation
    write_checkpoint(path, arrays, state)
    run(recipe, folder)
    after, _ = read_checkpoint(newest(folder))
    assert set(after) == set(arrays) and any(name.startswith('optimizer/') for name in after)
    for name in arrays:
        np.testing.assert_array_equal(after[name], arrays[name], err_msg=name)


def test_another_configuration_needs_force(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(uninterrupted, folder)
    done = run(recipe, folder, 'TRAIN.TRAIN_BATCH_SIZE=10', 'SCHEDULER.BASE_LR=2e-4', code=2)
    for part in ('TRAIN.TRAIN_BATCH_SIZE was 8 and is 10', 'SCHEDULER.BASE_LR', '--force'):
        assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = run(recipe, folder, 'SCHEDULER.NUM_EPOCHS=3', force=True)
    assert 'the result is no longer that of one run' in done.stdout
    assert 'Epoch [2/3], avg_Loss' in done.stdout and 'Epoch [1/3]' not in done.stdout


def test_another_list_of_images_is_refused(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(uninterrupted, folder)
    lines = (recipe.parent / 'train.txt').read_text().splitlines()
    (tmp_path / 'train.txt').write_text('\n'.join(lines[1:] + lines[:1]))
    done = run(recipe, folder, f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={tmp_path}/train.txt', code=2)
    assert 'training_images was 100 images' in done.stderr


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 10, 9, 11):
        checkpoints.save(step, {'a': np.zeros(2)}, {})
    assert [path.name for path in checkpoints.paths()] == [
        'step-000000011.ckpt', 'step-000000010.ckpt', 'step-000000009.ckpt']


def test_a_checkpoint_never_runs_code(tmp_path):
    class Gadget:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/executed',)

    # A malicious file with a valid checksum.
    import hashlib
    import io
    for name in ('state.json', 'network/a'):
        stream = io.BytesIO()
        np.savez(stream, **{'state.json': np.frombuffer(b'{}', 'uint8'),
                            name: np.array([Gadget()], dtype=object)})
        content = stream.getvalue()
        path = tmp_path / 'step-1.ckpt'
        path.write_bytes(content + b'T2TCKPT1' + hashlib.sha256(content).digest())
        with pytest.raises(CheckpointError, match='no checkpoint'):
            read_checkpoint(path)
    assert not (tmp_path / 'executed').exists()


def test_optimizer_state_does_not_depend_on_layers_built_before(tmp_path):
    def build(before):
        for _ in range(before):
            paddle.nn.Linear(7, 7)
        paddle.seed(0)
        layer = paddle.nn.Linear(3, 3)
        return layer, paddle.optimizer.AdamW(1e-2, parameters=layer.parameters())

    def step(layer, optimizer):
        layer(paddle.ones([2, 3])).square().sum().backward()
        optimizer.step()
        optimizer.clear_grad()

    layer, optimizer = build(0)
    step(layer, optimizer)
    write_checkpoint(tmp_path / 'a.ckpt', capture(layer, optimizer), {})
    step(layer, optimizer)
    other, other_optimizer = build(5)
    arrays, _ = read_checkpoint(tmp_path / 'a.ckpt')
    restore(other, other_optimizer, arrays, 'a.ckpt')
    step(other, other_optimizer)
    np.testing.assert_array_equal(layer.weight.numpy(), other.weight.numpy())
    third, third_optimizer = build(1)
    step(third, third_optimizer)    # its optimizer already has state
    restore(third, third_optimizer, arrays, 'a.ckpt')
    step(third, third_optimizer)
    np.testing.assert_array_equal(layer.weight.numpy(), third.weight.numpy())
    with pytest.raises(CheckpointError, match='another network'):
        restore(paddle.nn.Linear(3, 4), optimizer, arrays, 'a.ckpt')
