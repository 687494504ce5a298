"""What every test needs: `tools/` on the path, and a process prepared as that of a command."""

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tests')]

from system import start

start.prepare()
signal.signal(signal.SIGINT, signal.default_int_handler)    # pytest ends in its own way


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    """The path of a small training recipe, with all that makes resuming hard."""
    from support.runs import write_recipe
    return write_recipe(tmp_path_factory.mktemp('recipe'))


@pytest.fixture(params=['pillow', 'opencv'])
def decoder(request):
    """Each decoder in turn; OpenCV's only where it is installed."""
    if request.param == 'opencv':
        pytest.importorskip('cv2')
    return request.param
