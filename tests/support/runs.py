"""Small training runs in processes of their own: start, kill and compare them."""

import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from conftest import ROOT

from training.folder import Checkpoints
from weights.container import read_checkpoint

# With everything that draws random numbers or keeps state: dropout, drop path, random crops in
# worker processes, mixup, label smoothing, EMA and gradient accumulation.
RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH:
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{NAME: {network}, IMAGE_SIZE: 32, DROP_RATE: 0.1, DROP_PATH_RATE: 0.1}}
TRAIN: {{TRAIN_BATCH_SIZE: 8, VAL_BATCH_SIZE: 8, LOG_EVERY: 3, VISUALDL: false, SAVE_STEPS: 4,
        VAL_EVERY: 1, LABEL_SMOOTHING: 0.1, ACCUMULATE: 2}}
MIXUP: {{MIXUP_ALPHA: 0.8, CUTMIX_ALPHA: 1.0}}
EMA: {{DECAY: 0.99}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1}}
'''


PROGRAM = 'tests/support/plain.py'    # tools/train.py with the network of this recipe


def write_recipe(folder, network='small'):
    """Write a recipe on 100 and 20 images of lit_data; return its path."""
    for part, count in (('train', 100), ('val', 20)):
        lines = (ROOT / 'lit_data' / f'{part}.txt').read_text().splitlines()
        (folder / f'{part}.txt').write_text('\n'.join(lines[::len(lines) // count][:count]) + '\n')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=folder,
                                                       network=network))
    return folder / 'recipe.yaml'


def command(recipe, folder, *overrides, processes=1, force=False):
    """Return the command line that trains in a folder, and resumes there."""
    start = [sys.executable, PROGRAM]
    if processes > 1:
        start[1:] = ['tools/launch.py', PROGRAM, '--nproc', str(processes),
                     '--logs', f'{folder}.launch']
        overrides = ('TRAIN.TRAIN_BATCH_SIZE=4', *overrides)
    return [*start, '-c', str(recipe), *(['--force'] if force else []), '-o',
            f'TRAIN.OUTPUT_DIR={folder}', 'TRAIN.RESUME=auto', *overrides]


def run(recipe, folder, *overrides, code=0, processes=1, force=False):
    """Train to the end; return the CompletedProcess, whose exit code must be `code`."""
    done = subprocess.run(command(recipe, folder, *overrides, processes=processes, force=force),
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def figures(folder):
    """Return the content of both logs without times and folder names."""
    timed = ('elapsed', 'seconds', 'images_per_second', 'read_time', 'train_time', 'config')
    records = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    lines = re.sub(r'(read|train)_time: \S+|weights in .*|trained in .*| images of [^,\n]*', '',
                   (folder / 'train.log').read_text())
    return lines, [{k: v for k, v in record.items() if k not in timed} for record in records]


def assert_same_run(first, second):
    """Compare weights, logs and the newest checkpoint of two runs, bit for bit."""
    names = sorted(path.name for path in first.glob('*.pdparams'))
    assert {'last.pdparams', 'best.pdparams'} <= set(names)
    assert names == sorted(path.name for path in second.glob('*.pdparams'))
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert figures(first) == figures(second)
    (one, one_state), (two, two_state) = (
        read_checkpoint(newest(folder)) for folder in (first, second))
    assert one_state['position'] == two_state['position'] and set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def kill_often(start, kills, seed, signal_all):
    """Kill a command at a random moment of its training, `kills` times; then let it finish."""
    draw = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(process, r'going on from|schedule: ')
        time.sleep(draw.uniform(0, 1.5))
        if signal_all:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.stdout.close()
        process.wait()
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for(process, pattern, seconds=120):
    """Read the output of a process until a line matches; kill it if that takes too long."""
    end = threading.Timer(seconds, process.kill)    # which closes its output
    end.start()
    try:
        assert any(re.search(pattern, line) for line in process.stdout), f'no line has {pattern}'
    finally:
        end.cancel()


def newest(folder):
    """Return the path of the newest checkpoint of a run."""
    return Checkpoints(folder / 'checkpoints').paths()[0]


def learn(training, images, labels):
    """Train on one batch, as train.Training.train_epoch does."""
    position = training.position
    training.meter.add(training.step(
        *training.prepare(images, labels, position.epoch, position.step)))
    position.step += 1


def without_roots_rights():
    """Take root's right to ignore file permissions from the process about to start (preexec_fn)."""
    drop_from_bounding_set, may_override_permissions = 24, 1    # linux/prctl.h, capability.h
    ctypes.CDLL(None).prctl(drop_from_bounding_set, may_override_permissions, 0, 0, 0)


def launch(count, folder, *arguments):
    """Run a program as `count` processes; return rank 0's stdout."""
    program, *arguments = map(str, arguments)
    done = subprocess.run(
        [sys.executable, 'tools/launch.py', program, '--nproc', str(count), '--logs',
         str(folder / f'launch{count}'), '--', *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(recipe, folder, *overrides):
    """Start a long run of two processes; return the launcher once step 4 is logged."""
    process = subprocess.Popen(
        command(recipe, folder, 'SCHEDULER.NUM_EPOCHS=1000', *overrides, processes=2), cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=open(f'{folder}.stderr', 'w'), start_new_session=True)
    log, deadline = folder / 'train.log', time.monotonic() + 60
    while not log.exists() or 'Step [4/' not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    return process


def below(pid):
    """Return the ids of all descendants of a process."""
    children = [int(child) for path in Path(f'/proc/{pid}/task').glob('*/children')
                for child in path.read_text().split()]
    return children + [other for child in children for other in below(child)]


def ranks_of(process):
    """Return the process ids of the ranks that a launcher has started."""
    return [pid for pid in below(process.pid)
            if PROGRAM.encode() in Path(f'/proc/{pid}/cmdline').read_bytes()
            and b'tools/launch.py' not in Path(f'/proc/{pid}/cmdline').read_bytes()]


def assert_gone(pids, seconds=40):
    """Wait until none of the processes exists."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f'/proc/{pid}').exists()]:
        assert time.monotonic() < deadline, f'still running: {left}'
        time.sleep(0.1)
