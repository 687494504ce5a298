"""Setup of all tests: `tools/` on the path, the process prepared as by a command; fixtures."""

import gc
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tests')]

from system import start

start.prepare()
signal.signal(signal.SIGINT, signal.default_int_handler)    # Ctrl+C stops pytest
signal.signal(signal.SIGHUP, signal.SIG_DFL)    # tests send it; nohup would have it ignored


def pytest_configure():
    from support import fork
    fork.install()


def pytest_collection_finish():
    gc.freeze()    # later searches for garbage leave out all tests and modules, and take less time


@pytest.fixture(autouse=True)
def fresh_interpreter(request, monkeypatch):
    """With the marker of this name, programs start in fresh interpreters; see support.fork."""
    if request.node.get_closest_marker('fresh_interpreter'):
        from support import fork
        monkeypatch.setattr(fork, 'enabled', False)


@pytest.fixture(scope='session')
def recipe(tmp_path_factory):
    """The path of a small training recipe with dropout, mixup, EMA and accumulation."""
    from support.runs import write_recipe
    return write_recipe(tmp_path_factory.mktemp('recipe'))


@pytest.fixture(scope='session')
def uninterrupted(recipe, tmp_path_factory):
    """The folder of a run of `recipe` from start to end; copy it before changing it."""
    from support.runs import run
    folder = tmp_path_factory.mktemp('uninterrupted') / 'run'
    run(recipe, folder)
    return folder


@pytest.fixture
def slow_steps(monkeypatch):
    """Runs of `recipe` take a tenth of a second for a step, which leaves time to send signals."""
    monkeypatch.setenv('SECONDS_A_STEP', '0.1')
