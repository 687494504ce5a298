"""Runs that hang with a stuck loader worker, are deaf to signals then, or lose a step."""

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


@pytest.fixture(scope='module')
def unhurt(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp('unhurt') / 'run'
    run(recipe, folder)
    return folder


def start_and_stop_a_worker(recipe, folder, *overrides, processes=1, rank=0):
    """Stop a worker for good once training has begun; returns (process, ranks, workers)."""
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


def test_the_run_saves_ends_and_names_worker_and_image(recipe, unhurt, tmp_path):
    folder = tmp_path / 'run'
    process, _, workers = start_and_stop_a_worker(recipe, folder, 'TRAIN.LOADER_TIMEOUT=1')
    said = process.communicate(timeout=60)[1].strip()
    assert process.returncode == 1
    assert re.fullmatch(rf'failed: LoaderError: loader worker pid {workers[0][0]} has not read '
                        r'\S+/lit_data/train/\S+\.JPEG within 1 s .*: the process is stopped',
                        said), said
    assert gone([process.pid, *workers[0]])
    epoch, step = saved_position(folder)
    assert epoch == 0 and 4 <= step < 12 and step % 2 == 0    # groups of two are saved whole
    run(recipe, folder)
    assert_same_run(unhurt, folder)


def test_a_signal_is_heard_while_a_batch_is_waited_for(recipe, unhurt, tmp_path):
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
    assert_same_run(unhurt, folder)


@pytest.mark.parametrize('rank, asked', [(0, False), (1, False), (1, True)])
def test_one_of_two_processes_is_named_and_no_step_is_lost(recipe, tmp_path, rank, asked):
    folder = tmp_path / 'run'
    process, ranks, workers = start_and_stop_a_worker(
        recipe, folder, f'TRAIN.LOADER_TIMEOUT={0 if asked else 2}', processes=2, rank=rank)
    if asked:
        time.sleep(3)
        process.terminate()
    said = ''.join(process.communicate(timeout=90))
    assert process.returncode == (75 if asked else 1), said
    pid = workers[rank][0]
    assert asked or re.search(rf'failed: .*loader worker pid {pid} has not read', said), said
    assert asked or rank == 0 or re.search(rf'failed: rank 1 .*pid {pid} has not read', said), said
    assert gone([process.pid, *ranks, *sum(workers, [])])
    epoch, step = saved_position(folder)    # the only checkpoint
    assert epoch == 0 and step >= 4 and step % 2 == 0
