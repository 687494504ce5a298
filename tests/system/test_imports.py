"""Catches a library module whose import changes the process."""

import json
import os
import subprocess
import sys

from conftest import ROOT
from test_layering import COMMANDS, MODULES

CHILD = '''
import ctypes, importlib, json, os, signal, sys, threading, warnings
import cv2, numpy, PIL.Image, paddle, paddle.hub, yaml    # changes by dependencies do not count

def state():
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death))    # PR_GET_PDEATHSIG
    # Copies, to compare later.
    return {'environment': dict(os.environ), 'warnings': list(warnings.filters),
            'signals': {number: signal.getsignal(number) for number in signal.valid_signals()},
            'wakeup': signal.set_wakeup_fd(-1), 'blocked': signal.pthread_sigmask(0, ()),
            'threads': sorted(map(repr, threading.enumerate())), 'hook': sys.excepthook,
            'tasks': len(os.listdir('/proc/self/task')), 'death signal': death.value,
            'children': open(f'/proc/self/task/{os.getpid()}/children').read(),
            'folder': os.getcwd(), 'path': list(sys.path), 'arguments': list(sys.argv)}

def changes(name, action):
    before = state()
    action()
    after = state()
    return {f'{name}: {key}' for key in before if before[key] != after[key]}

root, modules = sys.argv[1], json.loads(sys.argv[2])
found = changes('paddle.hub.load', lambda: paddle.hub.load(
    root, 't2t_vit_7', source='local', img_size=32, num_classes=2))
for name in [name for name, module in sys.modules.items()
             if str(getattr(module, '__file__', '')).startswith(root + '/tools')]:
    del sys.modules[name]
sys.path.insert(0, root + '/tools')
def import_one(name):
    try:
        assert importlib.import_module(name).__file__.startswith(root)
    except ModuleNotFoundError as error:    # an optional package
        assert error.name.partition('.')[0] not in [name.partition('.')[0] for name in modules]

for name in modules:
    found |= changes(name, lambda: import_one(name))
print(json.dumps(sorted(found)))
'''


def changes_on_import(modules, root=ROOT):
    # As in a process of a launcher, without variables that start.prepare() sets.
    environment = dict(os.environ, PADDLE_TRAINER_ID='0', T2T_LAUNCHER_PID='1')
    for name in ('OMP_NUM_THREADS', 'GLOG_minloglevel', 'MKL_DEBUG_CPU_TYPE'):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, '-c', CHILD, str(root), json.dumps(modules)],
                          capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_library_has_no_side_effects():
    library = [name for name in MODULES if name.partition('.')[0] not in COMMANDS]
    assert {'zoo', 'zoo.names', 'weights.files', 'system.start', 'build'} <= set(library)
    assert changes_on_import(library) == []


def test_side_effects_are_detected(tmp_path):
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'hubconf.py').write_text(
        'import os\nos.environ["A"] = "1"\ndef t2t_vit_7(**options):\n    pass\n')
    (tmp_path / 'tools' / 'bad.py').write_text(
        'import ctypes, os, signal, threading, time, warnings\n'
        'os.environ["B"] = "1"\n'
        'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
        'warnings.filterwarnings("ignore", message="x")\n'
        'ctypes.CDLL(None).prctl(1, 9)\n'
        'threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n')
    assert changes_on_import(['bad'], tmp_path) == [
        'bad: death signal', 'bad: environment', 'bad: signals', 'bad: tasks', 'bad: threads',
        'bad: warnings', 'paddle.hub.load: environment']
