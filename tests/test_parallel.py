"""Several processes compute what one does, in its order, and no failure of one is a hang."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from conftest import ROOT

from runtime import parallel
from runtime.parallel import Parallel, ParallelError

SHAPE = (2, 3)


def load(fault=None):
    """A function of images that tells who computed them; a negative number is a fault."""
    def compute(images):
        if images.min() < 0 and fault == 'die':
            os._exit(7)
        if images.min() < 0:
            raise ValueError('the image\nis negative')
        sums = images.reshape(len(images), -1).sum(axis=1)
        return np.stack([sums, np.full(len(images), os.getpid(), 'float32')], axis=1)
    return compute


def made(load, processes=2):
    return Parallel(load, processes, lambda images: np.full((len(images), 2), -1, 'float32'),
                    SHAPE, 2)


def images(count):
    return np.random.RandomState(count).rand(count, *SHAPE).astype('float32')


@pytest.mark.parametrize('processes', [2, 3])
def test_every_row_is_computed_once_in_its_place(processes, monkeypatch):
    monkeypatch.setattr(parallel, 'SHARED_BYTES', 4 * 4 * 6)    # 4 images a process and turn
    run = made(load, processes)
    for count in (processes, 5, 4 * processes, 4 * processes + 1, 31):
        batch = images(count)
        found = run(batch)
        np.testing.assert_allclose(found[:, 0], batch.sum(axis=(1, 2)), rtol=1e-6)
        assert len(set(found[:, 1])) == processes
        assert found[0, 1] == np.float32(os.getpid())
    assert (run(images(processes - 1)) == -1).all()
    run.close()


def test_a_failure_is_told_and_the_next_call_works():
    run = made(partial(load, 'die'))
    good, bad = images(4), images(4)
    bad[3] = -1
    with pytest.raises(ParallelError, match='ended with exit code 7'):
        run(bad)
    assert run(good)[0, 0] == pytest.approx(good[0].sum())
    helper = run.helpers[0].process
    os.kill(helper.pid, signal.SIGKILL)
    with pytest.raises(ParallelError, match='ended by signal 9'):
        run(good)
    run.close()

    run = made(load)
    with pytest.raises(ParallelError, match='failed: the image is negative'):
        run(bad)
    with pytest.raises(ValueError, match='negative'):    # here; the helper's answer is dropped
        run(bad[::-1])
    other = images(6)
    np.testing.assert_allclose(run(other)[:, 0], other.sum(axis=(1, 2)), rtol=1e-6)
    helper = run.helpers[0].process
    run.close()
    assert helper.exitcode is not None and not run.helpers
    with pytest.raises(ParallelError, match='closed'):
        run(good)


def test_an_unused_engine_ends_its_processes():
    run = made(load)
    helper = run.helpers[0].process
    del run
    assert helper.exitcode is not None


def load_only_here(parent):
    if os.getpid() != parent:
        raise ValueError('no such graph')
    return load()


def test_a_process_that_cannot_load_says_why():
    with pytest.raises(ParallelError, match='no such graph'):
        made(partial(load_only_here, os.getpid()))


SCRIPT = """
import sys
sys.path[:0] = ['tools', 'tests']
import test_parallel
if __name__ == '__main__':
    run = test_parallel.made(test_parallel.load)
    print(run.helpers[0].process.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize('end', ['leaves', 'is killed'])
def test_processes_end_with_the_one_that_started_them(tmp_path, end):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, encoding='utf-8',
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    helper = int(process.stdout.readline())
    assert is_running(helper)
    if end == 'is killed':
        process.kill()
    process.communicate('\n', timeout=20)
    deadline = time.monotonic() + 20
    while is_running(helper):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
            return file.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False
