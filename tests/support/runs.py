"""Real training runs for tests: small ones, started, hurt and compared."""

import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import ROOT

from training.folder import Checkpoints
from weights.container import read_checkpoint

# Dropout (the Performers' own), drop path and random crops are on, in a worker process; so are
# mixed images, smoothed labels, averaged weights and optimizer steps of two batches.
RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH:
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{IMAGE_SIZE: 32, DROP_RATE: 0.1, DROP_PATH_RATE: 0.1}}
TRAIN: {{TRAIN_BATCH_SIZE: 8, VAL_BATCH_SIZE: 8, LOG_EVERY: 3, VISUALDL: false, SAVE_STEPS: 2,
        VAL_EVERY: 1, LABEL_SMOOTHING: 0.1, ACCUMULATE: 2}}
MIXUP: {{MIXUP_ALPHA: 0.8, CUTMIX_ALPHA: 1.0}}
EMA: {{DECAY: 0.99}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1}}
'''


def write_recipe(folder):
    """A recipe on every n-th image of lit_data; returns its path."""
    for part, count in (('train', 100), ('val', 20)):
        lines = (ROOT / 'lit_data' / f'{part}.txt').read_text().splitlines()
        (folder / f'{part}.txt').write_text('\n'.join(lines[::len(lines) // count][:count]) + '\n')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=folder))
    return folder / 'recipe.yaml'


def command(recipe, folder, *overrides, processes=1, force=False):
    start = [sys.executable, 'tools/train.py']
    if processes > 1:
        start[1:] = ['tools/launch.py', 'tools/train.py', '--nproc', str(processes),
                     '--logs', f'{folder}.launch']
        overrides = ('TRAIN.TRAIN_BATCH_SIZE=4', *overrides)
    return [*start, '-c', str(recipe), *(['--force'] if force else []), '-o',
            f'TRAIN.OUTPUT_DIR={folder}', 'TRAIN.RESUME=auto', *overrides]


def run(recipe, folder, *overrides, code=0, processes=1, force=False):
    done = subprocess.run(command(recipe, folder, *overrides, processes=processes, force=force),
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def figures(folder):
    """All that a log says except times and names of folders."""
    timed = ('elapsed', 'seconds', 'images_per_second', 'read_time', 'train_time', 'config')
    records = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    lines = re.sub(r'(read|train)_time: \S+|weights in .*', '', (folder / 'train.log').read_text())
    return lines, [{k: v for k, v in record.items() if k not in timed} for record in records]


def assert_same_run(first, second):
    for name in ('last.pdparams', 'best.pdparams', 'last_ema.pdparams', 'best_ema.pdparams'):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert figures(first) == figures(second)
    (one, one_state), (two, two_state) = (
        read_checkpoint(newest(folder)) for folder in (first, second))
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


def wait_for(process, pattern):
    """Read a process's output until a line matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f'{pattern} never came')


def newest(folder):
    return Checkpoints(folder / 'checkpoints').paths()[0]


def learn(training, images, labels):
    """One batch of the loop of train.Training.train_epoch."""
    at = training.at
    training.meter.add(training.step(*training.prepare(images, labels, at.epoch, at.step)))
    at.step += 1


def without_roots_rights():
    """Even root may not write into a read-only folder, in the process about to start."""
    drop_from_bounding_set, may_override_permissions = 24, 1    # linux/prctl.h, capability.h
    ctypes.CDLL(None).prctl(drop_from_bounding_set, may_override_permissions, 0, 0, 0)


def launch(count, folder, *arguments):
    done = subprocess.run(
        [sys.executable, '-m', 'paddle.distributed.launch', '--nproc_per_node', str(count),
         '--log_level', 'ERROR', '--log_dir', str(folder / f'launch{count}'), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(recipe, folder, *overrides):  # noqa: F811
    """Two processes that train for long, once they have begun."""
    process = subprocess.Popen(
        command(recipe, folder, 'SCHEDULER.NUM_EPOCHS=1000', *overrides, processes=2), cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=open(f'{folder}.stderr', 'w'), start_new_session=True)
    log, deadline = folder / 'train.log', time.monotonic() + 60
    while not log.exists() or 'Step [4/' not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    return process


def below(pid):
    """All processes that descend from one."""
    children = [int(child) for path in Path(f'/proc/{pid}/task').glob('*/children')
                for child in path.read_text().split()]
    return children + [other for child in children for other in below(child)]


def ranks_of(process):
    return [pid for pid in below(process.pid)
            if b'tools/train.py' in Path(f'/proc/{pid}/cmdline').read_bytes()
            and b'tools/launch.py' not in Path(f'/proc/{pid}/cmdline').read_bytes()]


def assert_gone(pids, seconds=40):
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f'/proc/{pid}').exists()]:
        assert time.monotonic() < deadline, f'left behind: {left}'
        time.sleep(0.1)
