"""Catches runs that hang, ignore signals or lose steps when a loader worker is stuck."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT
from support.processes import children_of, gone, wait_until
from support.runs import assert_same_run, command, newest, ranks_of, run

from weights.container import read_checkpoint

pytestmark = pytest.mark.usefixtures('slow_steps')


def start_and_stop_a_worker(recipe, folder, *overrides, processes=1, rank=0):
    """Train, and send SIGSTOP to a worker after step 4; return (process, ranks, workers)."""
    process = subprocess.Popen(
        command(recipe, folder, 'TRAIN.SAVE_STEPS=0', *overrides, processes=processes), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / 'train.log'
    assert wait_until(lambda: log.exists() and 'Step [4/' in log.read_text(), 60), process.poll()
    ranks = sorted(ranks_of(process)) if processes > 1 else [process.pid]
    workers = [children_of(pid) for pid in ranks]
    os.kill(workers[rank][0], signal.SIGSTOP)
    return process, ranks, workers


def saved_position(folder):
    position = read_checkpoint(newest(folder))[1]['position']
    return position['epoch'], position['step']


def test_a_timeout_saves_and_names_worker_and_image(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    process, _, workers = start_and_stop_a_worker(recipe, folder, 'TRAIN.LOADER_TIMEOUT=1')
    said = process.communicate(timeout=60)[1].strip()
    assert process.returncode == 1
    assert re.fullmatch(rf'failed: LoaderError: loader worker pid {workers[0][0]} has not read '
                        r'\S+/lit_data/train/\S+\.JPEG within 1 s .*: the process is stopped',
                        said), said
    assert gone([process.pid, *workers[0]])
    epoch, step = saved_position(folder)
    assert epoch == 0 and 4 <= step < 12 and step % 2 == 0    # a multiple of ACCUMULATE
    run(recipe, folder)
    assert_same_run(uninterrupted, folder)


def test_a_signal_is_handled_while_waiting_for_a_batch(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'
    process, _, workers = start_and_stop_a_worker(recipe, folder, 'TRAIN.LOADER_TIMEOUT=0')
    time.sleep(2)    # until it waits
    process.terminate()
    said = process.communicate(timeout=30)[1].strip()
    assert process.returncode == 75, said
    epoch, step = saved_position(folder)
    assert said.startswith(f'stopped: SIGTERM: saved in epoch {epoch}, step {step} of ')
    assert gone([process.pid, *workers[0]])
    run(recipe, folder)
    assert_same_run(uninterrupted, folder)


@pytest.mark.parametrize('rank, signalled', [(0, False), (1, False), (1, True)])
def test_a_stuck_worker_of_one_of_two_processes(recipe, tmp_path, rank, signalled):
    folder = tmp_path / 'run'
    process, ranks, workers = start_and_stop_a_worker(
        recipe, folder, f'TRAIN.LOADER_TIMEOUT={0 if signalled else 2}', processes=2, rank=rank)
    if signalled:
        time.sleep(3)
        process.terminate()
    said = ''.join(process.communicate(timeout=90))
    assert process.returncode == (75 if signalled else 1), said
    pid = workers[rank][0]
    who = 'rank 1 .*' if rank else '.*loader worker '
    assert signalled or re.search(rf'failed: {who}pid {pid} has not read', said), said
    assert gone([process.pid, *ranks, *sum(workers, [])])
    epoch, step = saved_position(folder)    # the only checkpoint
    assert epoch == 0 and step >= 4 and step % 2 == 0
