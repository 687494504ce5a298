"""Runs that are stopped and killed end as if nothing had happened: real processes and signals."""

import ctypes
import json
import os
import random
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

from runtime.checkpoint import (
    CheckpointError,
    Checkpoints,
    capture,
    read_checkpoint,
    restore,
    write_checkpoint,
)

# Dropout (the Performers' own), drop path and random crops are on, in a worker process.
RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH:
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{IMAGE_SIZE: 32, DROP_RATE: 0.1, DROP_PATH_RATE: 0.1, ATTN_DROP_RATE: 0.1}}
TRAIN: {{TRAIN_BATCH_SIZE: 8, VAL_BATCH_SIZE: 8, LOG_EVERY: 3, VISUALDL: false, SAVE_STEPS: 2,
        VAL_EVERY: 1}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1}}
'''


def write_recipe(folder):
    """A recipe on every n-th image of lit_data; returns its path."""
    for part, count in (('train', 100), ('val', 20)):
        lines = (ROOT / 'lit_data' / f'{part}.txt').read_text().splitlines()
        (folder / f'{part}.txt').write_text('\n'.join(lines[::len(lines) // count][:count]) + '\n')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=folder))
    return folder / 'recipe.yaml'


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp('resume'))


def command(recipe, folder, *overrides, processes=1, force=False):
    start = [sys.executable]
    if processes > 1:
        start += ['tools/launch.py', '--nproc_per_node', str(processes),
                  '--log_level', 'ERROR', '--log_dir', f'{folder}.launch']
        overrides = ('TRAIN.TRAIN_BATCH_SIZE=4', *overrides)
    return [*start, 'tools/train.py', '-c', str(recipe), *(['--force'] if force else []), '-o',
            f'TRAIN.OUTPUT_DIR={folder}', 'TRAIN.RESUME=auto', *overrides]


def run(recipe, folder, *overrides, code=0, processes=1, force=False):
    done = subprocess.run(command(recipe, folder, *overrides, processes=processes, force=force),
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope='module')
def unhurt(recipe, tmp_path_factory):
    """The run that never stopped."""
    folder = tmp_path_factory.mktemp('unhurt') / 'run'
    run(recipe, folder)
    return folder


def figures(folder):
    """All that a log says except times and names of folders."""
    timed = ('elapsed', 'seconds', 'images_per_second', 'read_time', 'train_time', 'config')
    records = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    lines = re.sub(r'(read|train)_time: \S+|weights in .*', '', (folder / 'train.log').read_text())
    return lines, [{k: v for k, v in record.items() if k not in timed} for record in records]


def assert_same_run(first, second):
    for name in ('last.pdparams', 'best.pdparams'):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert figures(first) == figures(second)
    (_, one, one_state, _), (_, two, two_state, _) = (
        Checkpoints(folder / 'checkpoints').latest() for folder in (first, second))
    assert one_state['position'] == two_state['position'] and set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def kill_often(start, kills, seed, signal_all):
    """Start a command again and again, killing it at random moments; then let it end."""
    draw = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(draw.uniform(1.2, 4.0))
        if signal_all:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


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


def wait_for(process, pattern):
    """Read a process's output until a line matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f'{pattern} never came')


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


def test_a_finished_run_says_so_again_and_trains_no_step(recipe, unhurt, tmp_path):
    shutil.copytree(unhurt, tmp_path / 'run')
    done = run(recipe, tmp_path / 'run')
    assert 'Step [' not in done.stdout
    assert done.stdout.splitlines()[-1] == (unhurt / 'train.log').read_text().splitlines()[-1]


# ---- checkpoints that cannot be used

def newest(folder):
    return Checkpoints(folder / 'checkpoints').paths()[0]


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
    """Weights (17 MB) can be written here, checkpoints (51 MB) can't."""
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


def without_roots_rights():
    """Even root may not write into a read-only folder, in the process about to start."""
    drop_from_bounding_set, may_override_permissions = 24, 1    # linux/prctl.h, capability.h
    ctypes.CDLL(None).prctl(drop_from_bounding_set, may_override_permissions, 0, 0, 0)


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
    path, arrays, state, _ = Checkpoints(folder / 'checkpoints').latest()
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
