"""Runs that are stopped and killed end as if nothing had happened: real processes and signals."""

import json
import os
import re
import resource
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
    assert_same_run,
    command,
    kill_often,
    newest,
    run,
    wait_for,
    without_roots_rights,
)

from training.checkpoint import capture, restore
from training.folder import Checkpoints
from weights.container import CheckpointError, read_checkpoint, write_checkpoint
from weights.files import read_weights


@pytest.fixture(scope='module')
def unhurt(recipe, tmp_path_factory):
    """The run that never stopped."""
    folder = tmp_path_factory.mktemp('unhurt') / 'run'
    run(recipe, folder)
    return folder


@pytest.mark.slow
def test_twenty_kills_change_nothing(recipe, unhurt, tmp_path):
    folder = tmp_path / 'run'
    kill_often(command(recipe, folder), kills=20, seed=1, signal_all=False)
    assert_same_run(unhurt, folder)


@pytest.mark.slow
def test_kills_of_two_processes_change_nothing(recipe, tmp_path):
    run(recipe, tmp_path / 'unhurt', processes=2)
    kill_often(command(recipe, tmp_path / 'run', processes=2), kills=6, seed=2, signal_all=True)
    assert_same_run(tmp_path / 'unhurt', tmp_path / 'run')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_leaves_with_75(recipe, unhurt, tmp_path, number):
    folder = tmp_path / 'run'
    process = subprocess.Popen(command(recipe, folder, 'TRAIN.SAVE_STEPS=0'), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(process, r'Epoch \[0/2\], Step \[6/')
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    assert error.startswith(f'stopped: {signal.Signals(number).name}: saved in epoch 0, step ')
    assert 'Traceback' not in error
    done = run(recipe, folder, 'TRAIN.SAVE_STEPS=0')
    assert 'going on from' in done.stdout
    assert_same_run(unhurt, folder)


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


def test_the_time_limit_saves_and_leaves_in_time(recipe, unhurt, tmp_path):
    folder = tmp_path / 'run'
    seconds, starts = 3.0, 0    # each start gets through one step at the least
    while True:
        starts += 1
        began = time.monotonic()
        done = subprocess.run(
            command(recipe, folder, f'TRAIN.TIME_LIMIT_HOURS={seconds / 3600}'), cwd=ROOT,
            capture_output=True, text=True, timeout=120)
        if done.returncode != 75:
            break
        assert 'TIME_LIMIT_HOURS' in done.stderr
        assert time.monotonic() - began < seconds + 20    # Python's own start comes on top
        assert starts < 30
    assert done.returncode == 0 and starts > 1, done.stderr
    assert_same_run(unhurt, folder)


def test_both_kinds_of_weights_are_scored_and_kept(recipe, unhurt):
    """Log, checkpoint and files tell the same of them, and so does a validation by itself."""
    log = (unhurt / 'train.log').read_text()
    records = [json.loads(line) for line in (unhurt / 'log.jsonl').read_text().splitlines()]
    arrays, state = read_checkpoint(newest(unhurt))
    assert arrays['ema/updates'] == 2 * 7, '13 batches are 7 optimizer steps'
    for part, line, event, suffix in (('network', 'ImageNet', 'validation', ''),
                                      ('ema', 'EMA', 'validation_ema', '_ema')):
        scores = [record['top1'] for record in records if record['event'] == event]
        assert re.findall(rf'^{line} val acc is:(\S+)', log, re.M) == [f'{s:.4f}' for s in scores]
        assert len(scores) == 2 and state['position'][f'best{suffix}'] == max(scores)
        assert read_weights(unhurt / f'best{suffix}.pdparams')[1]['top1'] == max(scores)
        weights, _ = read_weights(unhurt / f'last{suffix}.pdparams')
        for name, array in weights.items():
            np.testing.assert_array_equal(arrays[f'{part}/{name}'], array, err_msg=name)
        done = subprocess.run(
            [sys.executable, 'tools/val.py', '-c', str(recipe), '--weights',
             str(unhurt / f'last{suffix}.pdparams')], cwd=ROOT, capture_output=True, text=True)
        assert f'top-1: {scores[-1]:.4f}' in done.stdout, done.stderr
    assert (arrays['ema/head.weight'] != arrays['network/head.weight']).any()


def test_a_finished_run_says_so_again_and_trains_no_step(recipe, unhurt, tmp_path):
    shutil.copytree(unhurt, tmp_path / 'run')
    done = run(recipe, tmp_path / 'run')
    assert 'Step [' not in done.stdout
    assert done.stdout.splitlines()[-1] == (unhurt / 'train.log').read_text().splitlines()[-1]


# ---- checkpoints that cannot be used

@pytest.mark.parametrize('damage', ['cut off', 'bit flipped', 'emptied', 'other file'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(recipe, unhurt, tmp_path, damage):
    folder = tmp_path / 'run'
    shutil.copytree(unhurt, folder)
    path = newest(folder)
    content = bytearray(path.read_bytes())
    if damage == 'bit flipped':
        content[len(content) // 2] ^= 4
    path.write_bytes({'cut off': content[:-1000], 'emptied': b'', 'other file': b'x' * 1000,
                      'bit flipped': content}[damage])
    done = run(recipe, folder)
    assert f'passed over a checkpoint: {path}' in done.stdout
    assert_same_run(unhurt, folder)


def test_a_disk_that_is_full_costs_warnings_not_the_run(recipe, unhurt, tmp_path):
    """Weights (17 MB) can be written here, checkpoints (68 MB) can't."""
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30 << 20, 30 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    folder = tmp_path / 'run'
    done = subprocess.run(command(recipe, folder), cwd=ROOT, capture_output=True, text=True,
                          timeout=300, preexec_fn=small_disk)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stdout.splitlines() if 'no checkpoint was saved' in line]
    assert len(warnings) == 2 * (6 + 2), 'every second step of 13, and twice at the end of an epoch'
    assert os.listdir(folder / 'checkpoints') == []
    assert (folder / 'last.pdparams').read_bytes() == (unhurt / 'last.pdparams').read_bytes()


def test_a_folder_that_becomes_read_only_costs_warnings_not_the_run(recipe, tmp_path):
    folder = tmp_path / 'run'
    process = subprocess.Popen(command(recipe, folder), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=without_roots_rights)
    wait_for(process, r'Epoch \[0/2\], Step \[6/')
    (folder / 'checkpoints').chmod(0o500)
    folder.chmod(0o500)
    time.sleep(0.5)    # a checkpoint that was being written then may still arrive
    before = {path: path.read_bytes() for path in Checkpoints(folder / 'checkpoints').paths()}
    try:
        output, error = process.communicate(timeout=120)
    finally:
        folder.chmod(0o700)
        (folder / 'checkpoints').chmod(0o700)
    assert process.returncode == 0, error
    assert output.count('no checkpoint was saved') >= 6
    assert 'best.pdparams was not saved' in output and 'last.pdparams was not saved' in output
    assert before and {path: path.read_bytes()
                       for path in Checkpoints(folder / 'checkpoints').paths()} == before
    for path in before:
        read_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {'a': np.arange(1000)}, dict(x=1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError):
        checkpoints.save(2, {'a': np.arange(1000)}, dict(x=2))
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_a_checkpoint_before_the_first_step_after_resuming_is_complete(recipe, unhurt, tmp_path):
    """Paddle's optimizers show no state between being restored and their first step."""
    folder = tmp_path / 'run'
    shutil.copytree(unhurt, folder)
    path = newest(folder)
    arrays, state = read_checkpoint(path)
    state['position'].update(epoch=1, step=13)    # all steps are done, the validation is not
    write_checkpoint(path, arrays, state)
    run(recipe, folder)
    after, _ = read_checkpoint(newest(folder))
    assert set(after) == set(arrays) and any(name.startswith('optimizer/') for name in after)
    for name in arrays:
        np.testing.assert_array_equal(after[name], arrays[name], err_msg=name)


def test_another_configuration_is_refused_and_forced(recipe, unhurt, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(unhurt, folder)
    done = run(recipe, folder, 'TRAIN.TRAIN_BATCH_SIZE=10', 'SCHEDULER.BASE_LR=2e-4', code=2)
    for part in ('TRAIN.TRAIN_BATCH_SIZE was 8 and is 10', 'SCHEDULER.BASE_LR', '--force'):
        assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = run(recipe, folder, 'SCHEDULER.NUM_EPOCHS=3', force=True)
    assert 'the result is no longer that of one run' in done.stdout
    assert 'Epoch [2/3], avg_Loss' in done.stdout and 'Epoch [1/3]' not in done.stdout


def test_another_list_of_images_is_refused(recipe, unhurt, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(unhurt, folder)
    lines = (recipe.parent / 'train.txt').read_text().splitlines()
    (tmp_path / 'train.txt').write_text('\n'.join(lines[1:] + lines[:1]))
    done = run(recipe, folder, f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={tmp_path}/train.txt', code=2)
    assert 'training_images was 100 images' in done.stderr


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 10, 9, 11):
        checkpoints.save(step, {'a': np.zeros(2)}, {})
    assert [path.name for path in checkpoints.paths()] == [
        'step-000000011.ckpt', 'step-000000010.ckpt', 'step-000000009.ckpt']


def test_a_checkpoint_never_runs_code(tmp_path):
    class Gadget:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/executed',)

    # A file with a right checksum, as a stranger would make it.
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


def test_optimizer_state_fits_a_process_that_built_something_else_first(tmp_path):
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
    step(third, third_optimizer)    # its optimizer has state of its own by now
    restore(third, third_optimizer, arrays, 'a.ckpt')
    step(third, third_optimizer)
    np.testing.assert_array_equal(layer.weight.numpy(), third.weight.numpy())
    with pytest.raises(CheckpointError, match='another network'):
        restore(paddle.nn.Linear(3, 4), optimizer, arrays, 'a.ckpt')
