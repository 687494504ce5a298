"""Hurts real training runs at random moments in random ways and checks what they promise.

    python tests/chaos.py --minutes 60 --seed 1 --log chaos.jsonl    # or --cases 20
    python tests/chaos.py --seed 1 --case 17                         # one case again
    python tests/chaos.py --table chaos.jsonl other.jsonl            # what was tried, as a table

Case N of seed S is drawn from numpy's generator of (S, N) alone: a small run (one or two processes,
with and without loader workers, averaged weights, mixing, accumulation, VisualDL), a fault, and a
moment: while it starts, after a step, while it saves or validates. Whatever the fault:

- the run ends within SECONDS_TO_END, or goes on to its end;
- its exit code and last line are those that README promises, without a traceback;
- no process, no file in /dev/shm and, once it has been started again, no temporary file is left;
- every checkpoint that was not damaged can be read, and what was written last has gone furthest;
- the same command, again and again until it ends with 0, arrives at the same weights, optimizer
  and log as a run that was left alone, bit for bit. Where the fault changes the data, or keeps the
  log from being written, that has been said.

Disks that are full, fail or are slow, and clocks that jump, are made by functions of C that stand
before those of the system (support/faults.c, built where there is a compiler; else left out).
"""

import argparse
import collections
import contextlib
import errno
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import conftest
import numpy as np
from support.runs import figures, without_roots_rights

import config as configuration
from training.folder import Checkpoints
from weights.container import CheckpointError, read_checkpoint
from weights.files import read_weights

ROOT = conftest.ROOT
SECONDS_TO_END = 240
SECONDS_TO_LEAVE = 45    # for processes that have to notice that another one is gone
MOST_STARTS = 12

RECIPE = '''
BASE: {root}/config/lit_data.yaml
DATA_PATH:
    TRAIN_DATASET_PATH: "{folder}/images"
    TRAIN_DATASET_LABEL_PATH: "{folder}/train.txt"
    VAL_DATASET_PATH: "{folder}/images"
    VAL_DATASET_LABEL_PATH: "{folder}/val.txt"
MODEL: {{IMAGE_SIZE: 32, DROP_RATE: 0.1, DROP_PATH_RATE: 0.1}}
TRAIN: {{TRAIN_BATCH_SIZE: 8, VAL_BATCH_SIZE: 8, TRAIN_NUM_WORKS: 0, VAL_NUM_WORKS: 0, LOG_EVERY: 2,
        VISUALDL: false, SAVE_STEPS: 2, VAL_EVERY: 1, MAX_BAD_IMAGES: 0.2}}
SCHEDULER: {{NUM_EPOCHS: 2, WARMUP_EPOCHS: 1}}
'''
# Runs, by what they have; each is compared with one of its kind that was left alone.
RUNS = {
    'plain': (1, []),
    'a worker, EMA, mixing, groups of two': (1, [
        'TRAIN.TRAIN_NUM_WORKS=1', 'EMA.DECAY=0.99', 'MIXUP.MIXUP_ALPHA=0.8',
        'MIXUP.CUTMIX_ALPHA=1.0', 'TRAIN.ACCUMULATE=2', 'TRAIN.LABEL_SMOOTHING=0.1']),
    'two workers in both loaders, VisualDL, erasing': (1, [
        'TRAIN.TRAIN_NUM_WORKS=2', 'TRAIN.VAL_NUM_WORKS=1', 'TRAIN.VISUALDL=true',
        'DATA.ERASE_PROBABILITY=0.5', 'DATA.AUTO_AUGMENT=rand-m9-mstd0.5-inc1',
        'SCHEDULER.UPDATE=step', 'TRAIN.KEEP_CHECKPOINTS=3']),
    'two processes': (2, ['TRAIN.TRAIN_BATCH_SIZE=4', 'MIXUP.MIXUP_ALPHA=0.8']),
    'two processes of a worker, EMA, groups of two': (2, [
        'TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.TRAIN_NUM_WORKS=1', 'TRAIN.VAL_NUM_WORKS=1',
        'EMA.DECAY=0.99', 'TRAIN.ACCUMULATE=2']),
}
LASTING = {'TRAIN.LOADER_TIMEOUT': 8}    # seconds; keys that shorten what is waited for, if known
LAST_LINES = {0: r'ImageNet final val acc is:', 1: r'failed: ', 2: r'error: ', 75: r'stopped: ',
              130: r'interrupted'}
WARNED = re.compile('not (been )?(saved|written)|no checkpoint was saved|cannot be written|'
                    'missing|gone|moved', re.I)


class Broken(AssertionError):
    """A promise that was not kept."""


def require(fine, said):
    if not fine:
        raise Broken(said)


# ---- a run and its processes

def write_data(folder, images=48):
    """Images of lit_data by hard link or copy, their lists, and the recipe; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (('train', images), ('val', 8)):
        lines = (ROOT / 'lit_data' / f'{part}.txt').read_text().splitlines()
        lines = lines[::len(lines) // count][:count]
        for name in (line.rpartition(' ')[0] for line in lines):
            (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / 'lit_data' / part / name, folder / 'images' / name)
        (folder / f'{part}.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'recipe.yaml').write_text(RECIPE.format(root=ROOT, folder=folder))
    return folder / 'recipe.yaml'


class Control:
    """The page of faults.c: what fails in the processes that have it."""

    FIELDS = ('what', 'error', 'left', 'delay', 'seconds', 'hits')
    WRITES, READS, CLOCK = 1, 2, 4

    def __init__(self, path):
        Path(path).write_bytes(bytes(mmap.PAGESIZE))
        self.file = open(path, 'r+b')
        self.page = mmap.mmap(self.file.fileno(), mmap.PAGESIZE)

    def set(self, prefix='', **fields):
        """Begin a fault; without arguments, end all."""
        what = fields.pop('what', 0)
        self.page[:8] = bytes(8)
        prefix = str(prefix).encode()
        self.page[48:48 + len(prefix) + 1] = prefix + b'\0'
        for name in self.FIELDS[1:5]:
            self._put(name, fields.get(name, 0))
        self._put('what', what)

    def _put(self, name, value):
        place = 8 * self.FIELDS.index(name)
        self.page[place:place + 8] = int(value).to_bytes(8, 'little', signed=True)

    @property
    def hits(self):
        return int.from_bytes(self.page[40:48], 'little')


def build_faults(folder):
    """faults.c as a library, or None where there is no compiler."""
    compiler = next(filter(None, map(shutil.which, ('cc', 'gcc', 'clang'))), None)
    library = Path(folder) / 'faults.so'
    if compiler and not subprocess.run(
            [compiler, '-O1', '-shared', '-fPIC', '-o', library,
             ROOT / 'tests/support/faults.c', '-ldl'], capture_output=True).returncode:
        return library
    return None


class Started:
    """A command that was started, all its processes, and what it said."""

    def __init__(self, folder, tag, command, env=None, **options):
        self.tag = f'{tag}-{time.monotonic_ns()}'
        self.paths = [Path(folder) / f'{self.tag}.{name}' for name in ('out', 'err')]
        streams = {'stdout': open(self.paths[0], 'wb'), 'stderr': open(self.paths[1], 'wb')}
        self.process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, env={
                **os.environ, 'OMP_NUM_THREADS': '1', **(env or {}), 'CHAOS_TAG': self.tag},
            **{**streams, **options})
        self.began = time.monotonic()
        self.seen = set()    # all processes that there ever were, as far as was looked

    def family(self):
        """{pid: parent} of all living processes of this command."""
        found, tag = {}, f'CHAOS_TAG={self.tag}\0'.encode()
        for path in Path('/proc').iterdir():
            if not path.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if tag in (path / 'environ').read_bytes():
                    stat = (path / 'stat').read_text().rpartition(')')[2].split()
                    if stat[0] != 'Z':
                        found[int(path.name)] = int(stat[1])
        self.seen |= set(found)
        return found

    def targets(self):
        """{'launcher': [pid], 'rank': [...], 'worker': [...]}: who is there now."""
        family, top = self.family(), self.process.pid
        arguments = {}
        for pid in family:
            with contextlib.suppress(OSError):
                arguments[pid] = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
        roles = collections.defaultdict(list)
        launched = b'tools/launch.py' in arguments.get(top, [])
        for pid, line in sorted(arguments.items()):
            if pid == top:
                roles['launcher' if launched else 'rank'].append(pid)
            elif launched and family[pid] == top and b'tools/launch.py' not in line:
                roles['rank'].append(pid)
            elif family[pid] in arguments and b'tools/train.py' in line and not (
                    launched and family[pid] == top):
                roles['worker'].append(pid)
        return roles

    def said(self, which=None):
        paths = self.paths if which is None else [self.paths[which]]
        return ''.join(path.read_text(errors='replace') for path in paths)

    def wait(self, seconds=SECONDS_TO_END):
        """The exit code, or Broken."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > end:
                states = {pid: self.state_of(pid) for pid in self.family()}
                raise Broken(f'has not ended after {seconds} s; {states}')
            time.sleep(0.05)
            if int(time.monotonic() * 20) % 10 == 0:
                self.family()
        return self.process.returncode

    @staticmethod
    def state_of(pid):
        try:
            return (Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0],
                    Path(f'/proc/{pid}/wchan').read_text())
        except OSError:
            return 'gone'

    def must_leave_nothing(self):
        end = time.monotonic() + SECONDS_TO_LEAVE
        while left := self.family():
            require(time.monotonic() < end, f'processes left behind: {self.describe(left)}')
            time.sleep(0.2)
        shared = [path.name for path in Path('/dev/shm').glob('*')
                  if self.seen & set(map(int, re.findall(r'\d+', path.name)))]
        require(not shared, f'files left in /dev/shm: {shared[:5]}')

    def describe(self, pids):
        return {pid: (self.state_of(pid), [role for role, those in self.targets().items()
                                           if pid in those]) for pid in pids}

    def end(self):
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


# ---- what must be equal

def differences(first, second, logs=True, metadata=True):
    """What differs between the folders of two finished runs, as texts.

    Args:
        logs: compare them, too.
        metadata: compare what stands beside the weights, such as the folder of the images.
    """
    found = []
    for path in sorted(first.glob('*.pdparams')):
        other = second / path.name
        if not other.exists():
            found.append(f'{path.name} is missing')
        elif metadata and other.read_bytes() != path.read_bytes():
            found.append(f'{path.name} differs')
        else:
            one, two = read_weights(path)[0], read_weights(other)[0]
            found += [f'{name} of {path.name} differs' for name in one
                      if one[name].tobytes() != two[name].tobytes()]
    newest = [Checkpoints(folder / 'checkpoints').paths()[:1] for folder in (first, second)]
    if not all(newest):
        return [*found, 'a checkpoint is missing']
    (one, one_state), (two, two_state) = (read_checkpoint(path) for path, in newest)
    if set(one) != set(two) or not two:
        found.append('the newest checkpoints hold other arrays')
    else:
        if one_state['position'] != two_state['position']:
            found.append('the newest checkpoints have other positions')
        found += [f'{name} differs' for name in one if one[name].tobytes() != two[name].tobytes()]
    if logs:
        for name, one, two in zip(('train.log', 'log.jsonl'), *map(figures, (first, second))):
            if one != two:
                found.append(f'{name} differs')
    return found[:6]


def check_checkpoints(folder):
    """All of a run's checkpoints are whole, and what was written last has gone furthest."""
    found = []
    for path in Checkpoints(folder / 'checkpoints').paths():
        try:
            position = read_checkpoint(path)[1]['position']
        except CheckpointError as error:
            raise Broken(f'a checkpoint is not whole: {error}') from error
        found.append((path.stat().st_mtime_ns, (position['epoch'], position['step']), path.name))
    places = [place for _, place, _ in sorted(found)]
    require(places == sorted(places), f'the newest checkpoint is not the newest: {sorted(found)}')


# ---- cases

class Case:
    """One run, one fault."""

    def __init__(self, world, seed, number, fault=None, kind=None):
        self.world, self.number = world, number
        self.rng = np.random.default_rng((seed, number))
        self.fault = str(self.rng.choice(sorted(world.faults)))
        self.fault = fault or self.fault
        self.kind = str(self.rng.choice(sorted(RUNS)))
        self.kind = kind or self.kind
        self.moment = str(self.rng.choice(['start', 'step', 'step', 'save', 'validation']))
        self.folder = world.folder / f'case {number}'
        self.what = self.fault
        self.begin()

    def begin(self):
        self.run = self.folder / 'run'
        self.codes = []
        self.started = []
        self.logs = True          # they can be compared
        self.data_changed = False

    def draw(self, *values):
        return values[int(self.rng.integers(len(values)))]

    def some(self, low, high):
        return float(self.rng.uniform(low, high))

    def describe(self):
        return f'{self.kind} | {self.what}'

    # -- starting and waiting

    def command(self, overrides=()):
        processes, own = RUNS[self.kind]
        start = [sys.executable, 'tools/train.py']
        if processes > 1:
            start[1:] = ['tools/launch.py', 'tools/train.py', '--nproc', str(processes),
                         '--logs', str(self.folder / 'launch')]
        fast = [f'{key}={value}' for key, value in LASTING.items() if key in configuration.KEYS]
        return [*start, '-c', str(self.recipe), '-o',
                f'TRAIN.OUTPUT_DIR={self.run}', 'TRAIN.RESUME=auto', *own, *fast, *overrides]

    @property
    def recipe(self):
        return (self.folder if self.data_changed else self.world.folder / 'data') / 'recipe.yaml'

    @property
    def processes(self):
        return RUNS[self.kind][0]

    def start(self, overrides=(), command=None, **options):
        self.current = Started(self.folder, f'run{len(self.started)}',
                               command or self.command(overrides), **options)
        self.started.append(self.current)
        return self.current

    def with_faults(self):
        self.control = Control(self.folder / 'control')
        return dict(LD_PRELOAD=str(self.world.library), CHAOS_CONTROL=str(self.folder / 'control'))

    def reach_moment(self, last_step=6):
        """Wait for the moment that was drawn; a run that is over has missed it."""
        run, end = self.current, time.monotonic() + SECONDS_TO_END
        if self.moment == 'start':
            delay = self.some(0, 4)
            self.what += f' {delay:.2f} s after its start'
            self.sleep(delay)
            return
        step, epoch, delay = self.draw(*range(2, last_step + 1, 2)), self.draw(0, 1), 0
        if self.moment == 'step':
            delay = self.some(0, 0.4)
            wanted = rf'Epoch \[{epoch}/2\], Step \[{step}/'
            self.what += f' {delay:.2f} s after step {step} of epoch {epoch}'
        elif self.moment == 'validation':
            delay = self.some(0, 0.5)
            wanted = rf'Epoch \[{epoch}/2\], avg_Loss'
            self.what += f' {delay:.2f} s after the steps of epoch {epoch}'
        else:
            wanted = rf'Epoch \[{epoch}/2\], Step \[{step}/'
            self.what += f' in a save after step {step} of epoch {epoch}'
        while run.process.poll() is None and not re.search(wanted, run.said(0)):
            require(time.monotonic() < end, 'never got to the moment')
            time.sleep(0.01)
        if self.moment == 'save':
            while run.process.poll() is None and time.monotonic() < end and not list(
                    self.run.glob('checkpoints/.*tmp')):
                time.sleep(0.002)
        self.sleep(delay)

    def sleep(self, seconds):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.current.process.wait(seconds)

    def finish(self, codes, said=None, last_line=True):
        """Wait for the end; check exit code, last line and what is left."""
        run = self.current
        code = run.wait()
        self.codes.append(code)
        output, error = run.said(0), run.said(1)
        told = f'exit code {code}, stderr ends {error[-600:]!r}, stdout {output[-300:]!r}'
        require(code in codes, told)
        require('Traceback' not in output + error, f'a traceback: {error[-1500:]!r}')
        if last_line and code in LAST_LINES:
            # A launcher's first process tells its end through stdout, like all that it tells.
            ends = [text.strip().splitlines()[-1] for text in (output, error) if text.strip()]
            require(any(re.match(LAST_LINES[code], end) for end in ends), f'its last line: {told}')
        if said:
            require(re.search(said, output + error), f'it did not say {said!r}: {told}')
        run.must_leave_nothing()
        return code

    def go_on(self, overrides=(), codes=(0, 75), said=None):
        """The same command again until it ends with 0."""
        for _ in range(MOST_STARTS):
            self.start(overrides)
            if self.finish(codes, said) == 0:
                return
        raise Broken(f'does not end: {self.codes}')

    def check(self):
        """The case: the fault, then what must hold afterwards."""
        self.folder.mkdir()
        self.world.undisturbed(self.kind)
        getattr(self, f'fault_{self.fault}')()
        if self.codes[-1] != 0:
            check_checkpoints(self.run)
            self.go_on()
        check_checkpoints(self.run)
        left = [path.name for path in self.run.rglob('.*.tmp')]
        require(not left, f'temporary files left: {left}')
        found = differences(self.world.undisturbed(self.kind), self.run, self.logs,
                            metadata=not self.data_changed)
        said = ''.join(run.said() for run in self.started)
        if self.data_changed and 'skipped image' in said:
            found = []
        found = [line for line in found    # of weights that nothing makes due again
                 if not re.search(rf'missing until .*{line.partition(" is missing")[0]}', said)]
        require(not found, f'not the same as a run that was left alone: {found}')

    # -- signals

    def fault_signal(self):
        name = self.draw('TERM', 'INT', 'USR1', 'HUP', 'KILL')
        self.hit(name, self.draw(*['launcher'] * (self.processes > 1), 'rank', 'rank', 'worker',
                                 'all'))

    def fault_stop(self):
        """Stopped for good: a loader worker, or one process of several."""
        self.hit('STOP', 'rank' if self.processes > 1 and self.draw(0, 1) else 'worker')

    def have(self, role):
        """Take a kind of run that has such processes."""
        if role == 'worker' and 'worker' not in self.kind:
            self.kind = self.draw(*[kind for kind, (processes, _) in RUNS.items()
                                    if 'worker' in kind and processes == self.processes])

    def hit(self, name, role):
        number = getattr(signal, f'SIG{name}')
        self.what = f'SIG{name} to {role}'
        self.have(role)
        run = self.start()
        self.reach_moment()
        roles = run.targets()
        pids = sum(roles.values(), []) if role == 'all' else roles[role]
        if not pids:
            self.what += ' (none there)'
        elif role != 'all':
            pids = [self.draw(*pids)]
        early = time.monotonic() - run.began < 0.5    # Python itself is still starting
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        request = name in ('TERM', 'INT', 'USR1', 'HUP')
        if not pids:
            codes = {0}
        elif role == 'worker':    # it ignores requests, and a dead one is named
            codes = {0} if request else {0, 1}
        elif request:
            codes = {0, 75, 130}
        else:
            codes = {'KILL': {0, 1, -number}, 'STOP': {0, 1}}[name]
        if early:
            codes = codes | {-number, 1}
        if early and name == 'INT':
            self.codes.append(run.wait())    # Python's own words for it
            run.must_leave_nothing()
            return
        code = self.finish(codes, last_line=not early)
        if code == 1 and role == 'worker':
            require(re.search(r'pid \d+', run.said()) and '.JPEG' in run.said(),
                    f'neither worker nor images are named: {run.said()[-500:]}')
        if code == 1 and role == 'rank' and name in ('KILL', 'STOP') and self.processes > 1:
            require(f'pid {pids[0]}' in run.said(1).splitlines()[-1],
                    f'another rank is blamed: {run.said(1)[-500:]}')

    def fault_pause(self):
        """Stopped for a while: no fault, only slow."""
        role = self.draw(*['launcher'] * (self.processes > 1), 'rank', 'worker')
        seconds = self.some(0.1, 5)
        self.what = f'SIGSTOP to {role} for {seconds:.1f} s'
        self.have(role)
        run = self.start()
        self.reach_moment()
        pids = run.targets()[role]
        pid = self.draw(*pids) if pids else None
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pid, signal.SIGCONT)
        self.finish({0})

    def fault_two_signals(self):
        names = [self.draw('TERM', 'INT', 'USR1'), self.draw('TERM', 'INT', 'KILL')]
        between = self.some(0, 0.5)
        self.what = f'SIG{names[0]} and {between:.2f} s later SIG{names[1]}'
        run = self.start()
        self.reach_moment()
        early = time.monotonic() - run.began < 0.7
        for name in names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.process.pid, getattr(signal, f'SIG{name}'))
            time.sleep(between)
        if early:
            self.codes.append(run.wait())
            run.must_leave_nothing()
        else:
            killed = {-signal.SIGKILL, 1} if 'KILL' in names else set()
            self.finish({75, 130, 0} | killed)

    def fault_kills(self):
        count = int(self.rng.integers(2, 6))
        self.what = f'SIGKILL to all at {count} random moments'
        for _ in range(count):
            run = self.start()
            self.sleep(self.some(1, 7))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
            code = run.wait()
            run.must_leave_nothing()
            if code == 0:
                break
        self.codes.append(-9)

    def fault_restarts(self):
        """A process of several that is killed, under a script that starts the job again."""
        if self.processes == 1:
            self.kind = self.draw(*[kind for kind, (processes, _) in RUNS.items() if processes > 1])
        self.moment = 'step'
        self.what = 'SIGKILL to a rank under train.sh --restarts 2'
        command = self.command()
        run = self.start(command=[
            'bash', 'scripts/train.sh', *command[command.index('-c'):], '-o',
            'TRAIN.SPLIT_BATCH=false', '--nproc', str(self.processes), '--restarts', '2'],
            env={'PYTHON': sys.executable})
        self.reach_moment()
        ranks = [pid for pid, parent in run.family().items()
                 if any(parent == launcher for launcher in self.launchers(run))]
        if ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.draw(*sorted(ranks)), signal.SIGKILL)
        self.finish({0})

    @staticmethod
    def launchers(run):
        found = []
        for pid in run.family():
            with contextlib.suppress(OSError):
                arguments = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
                found += [pid] * (b'tools/launch.py' in arguments)
        return found

    def fault_time_limit(self):
        seconds = self.some(2, 9)
        self.what = f'TRAIN.TIME_LIMIT_HOURS of {seconds:.1f} s'
        for _ in range(60):    # each start gets through a step at the least
            self.start([f'TRAIN.TIME_LIMIT_HOURS={seconds / 3600}'])
            if self.finish({0, 75}) == 0:
                return
        raise Broken('does not end')

    # -- disks and clocks

    def fault_full_disk(self):
        self.bad_writes(errno.ENOSPC)

    def fault_failing_writes(self):
        self.bad_writes(errno.EIO)

    def bad_writes(self, error):
        left = int(2 ** self.some(0, 26))
        lasting = self.draw(0.5, 2.0, None)
        self.what = (f'{errno.errorcode[error]} after {left} more bytes, '
                     f'{"to the end" if lasting is None else f"for {lasting} s"}')
        run = self.start(env=self.with_faults())
        self.reach_moment()
        begun = (self.run / 'train.log').exists()    # without a folder there is no run
        self.control.set(self.run, what=Control.WRITES, error=error, left=left)
        if lasting:
            self.sleep(lasting)
            self.control.set()
        code = self.finish_without_room(begun)
        hits = self.control.hits
        self.what += f' ({hits} calls)'
        self.logs = not hits
        require(not hits or code or WARNED.search(run.said()), f'not said: {run.said()[-800:]}')
        self.control.set()
        self.go_on()

    def fault_failing_reads(self):
        left, lasting = int(2 ** self.some(0, 22)), self.draw(0.3, 1.0, None)
        self.what = (f'EIO from images after {left} bytes, '
                     f'{"to the end" if lasting is None else f"for {lasting} s"}')
        self.own_data()
        run = self.start(env=self.with_faults())
        self.reach_moment()
        self.control.set(self.folder / 'images', what=Control.READS, error=errno.EIO, left=left)
        if lasting:
            self.sleep(lasting)
            self.control.set()
        code = self.finish({0, 2})
        self.what += f' ({self.control.hits} calls)'
        if code == 2:
            require('.JPEG' in run.said(), f'no image is named: {run.said()[-500:]}')
        self.control.set()
        self.logs = False

    def fault_failing_resume(self):
        """Checkpoints that can't be read for a while cost no step once they can."""
        if self.stop_first() == 0:
            return
        left = int(2 ** self.some(0, 26))
        self.what = f'EIO from checkpoints after {left} bytes, on going on'
        env = self.with_faults()
        self.control.set(self.run, what=Control.READS, error=errno.EIO, left=left)
        run = self.start(env=env)
        while run.process.poll() is None and '.ckpt' not in run.said():
            time.sleep(0.05)
        self.control.set()
        code = self.finish({0, 2})
        self.what += f' ({self.control.hits} calls)'
        require('.ckpt' in run.said(), f'no checkpoint is named: {run.said()[-500:]}')
        if code == 0:    # it went on from one before, or from the same
            require('going on from' in run.said(0), 'it started afresh')

    def fault_slow_disk(self):
        which, delay = self.draw('READS', 'WRITES'), int(2 ** self.some(10, 17))
        self.what = f'{which.lower()} that take {delay / 1e6:.3f} s each, for 3 s'
        self.start(env=self.with_faults())
        self.reach_moment()
        self.control.set(self.world.folder if which == 'READS' else self.run,
                         what=getattr(Control, which), delay=delay)
        self.sleep(3)
        self.control.set()
        self.finish({0})

    def fault_clock(self):
        seconds = self.draw(1, -1) * self.draw(1, 3600, 86400, 315_360_000)
        self.what = f'the clock jumps by {seconds} s'
        self.start(env=self.with_faults())
        self.reach_moment()
        self.control.set('', what=Control.CLOCK, seconds=seconds)
        if self.draw(0, 1):
            self.sleep(self.some(0, 2))
            self.control.set()
            self.what += ' and back'
        self.finish({0})
        elapsed = [json.loads(line)['elapsed'] for line in (self.run / 'log.jsonl').open()]
        require(elapsed == sorted(elapsed) and 0 <= elapsed[-1] < SECONDS_TO_END,
                f'times of the log: {elapsed}')

    # -- files and folders

    def own_data(self):
        write_data(self.folder)
        self.data_changed = True

    def stop_first(self):
        """A run that was stopped in the middle, with a checkpoint at the least."""
        self.start()
        self.moment = 'step'
        self.reach_moment(last_step=4)
        self.current.process.terminate()
        return self.finish({75, 0})

    def damage(self, path, how=None):
        how = how or self.draw('cut off', 'one bit', 'emptied', 'zeros', 'gone', 'a folder')
        data = path.read_bytes()
        place = int(self.rng.integers(len(data))) if data else 0
        path.unlink()
        if how == 'cut off':
            path.write_bytes(data[:place])
        elif how == 'one bit':
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1:])
        elif how == 'zeros':
            path.write_bytes(data[:place] + bytes(len(data) - place))
        elif how == 'a folder':
            path.mkdir()
        elif how == 'emptied':
            path.touch()
        return how

    def fault_newest_checkpoint(self):
        if self.stop_first() == 0:
            return
        paths = Checkpoints(self.run / 'checkpoints').paths()
        how = self.damage(paths[0])
        self.what = f'newest of {len(paths)} checkpoints {how}'
        if len(paths) < 2 and how != 'gone':    # nothing to go on from
            self.start()
            self.finish({2}, said=re.escape(paths[0].name))
            remove(paths[0])
        self.go_on(said=None if how == 'gone' or len(paths) < 2 else re.escape(paths[0].name))

    def fault_all_checkpoints(self):
        if self.stop_first() == 0:
            return
        paths = Checkpoints(self.run / 'checkpoints').paths()
        how = self.draw('cut off', 'one bit', 'emptied', 'zeros')
        self.what = f'all {len(paths)} checkpoints {how}'
        for path in paths:
            self.damage(path, how)
        self.start()
        self.finish({2}, said=re.escape(paths[0].name))
        remove(self.run / 'checkpoints')

    def fault_images(self):
        self.own_data()
        images = sorted((self.folder / 'images').rglob('*.JPEG'))
        count = int(self.rng.integers(1, 6))
        self.start()
        self.reach_moment()
        how = [self.damage(self.draw(*images), self.draw('cut off', 'emptied', 'zeros', 'gone'))
               for _ in range(1)]
        for _ in range(count - 1):
            path = self.draw(*images)
            if path.exists():
                how.append(self.damage(path, self.draw('cut off', 'emptied', 'gone')))
        self.what = f'{len(how)} of {len(images)} images damaged ({", ".join(sorted(set(how)))})'
        if self.finish({0, 2}) == 2:
            require('.JPEG' in self.current.said(), 'no image is named')
            shutil.rmtree(self.folder / 'images')
            write_data(self.folder)    # repaired
        self.logs = False

    def fault_images_moved(self):
        self.own_data()
        seconds = self.some(0.2, 3)
        self.what = f'all images elsewhere for {seconds:.1f} s'
        self.start()
        self.reach_moment()
        images, elsewhere = self.folder / 'images', self.folder / 'elsewhere'
        images.rename(elsewhere)
        self.sleep(seconds)
        elsewhere.rename(images)
        if self.finish({0, 2}) == 2:
            require(str(images) in self.current.said(), 'no image is named')
        self.logs = False

    def fault_list(self):
        self.own_data()
        path = self.folder / f'{self.draw("train", "val")}.txt'
        if self.stop_first() == 0:
            return
        content = path.read_bytes()
        how = self.damage(path, self.draw('cut off', 'emptied', 'gone'))
        self.what = f'{path.name} {how} before going on'
        self.start()
        if path.exists() and path.read_bytes().split() == content.split():    # but for its end
            return self.finish({0})
        self.finish({2}, said=r'training_images|validation_images|train\.txt|val\.txt')
        path.write_bytes(content)

    def fault_weights(self):
        weights = self.folder / 'start.pdparams'
        shutil.copy(self.world.undisturbed('plain') / 'last.pdparams', weights)
        how = self.damage(weights, self.draw('cut off', 'emptied', 'gone', 'zeros'))
        self.what = f'MODEL.PRETRAINED {how}'
        self.start([f'MODEL.PRETRAINED={weights}'])
        code = self.finish({0, 2} if how in ('zeros', 'cut off') else {2}, said=r'start\.pdparams')
        if code == 0:    # zeros in the middle of an array are numbers, too
            remove(self.run)
            self.codes.append(1)

    def fault_folder_moved(self):
        self.lose_folder(lambda: self.run.rename(self.folder / 'elsewhere'), 'moved')

    def fault_folder_removed(self):
        self.lose_folder(lambda: remove(self.run), 'removed')

    def fault_checkpoints_removed(self):
        self.lose_folder(lambda: remove(self.run / 'checkpoints'), '/checkpoints removed')

    def lose_folder(self, lose, how):
        self.what = f'output folder {how}'
        run = self.start()
        self.moment = 'step' if self.moment == 'start' else self.moment
        self.reach_moment()
        for _ in range(50):
            with contextlib.suppress(OSError):
                lose()
                break
            time.sleep(0.01)
        else:
            self.what += ' (was not there)'
        code = self.finish({0, 1})
        self.logs = False
        here = [path.name for path in self.run.glob('*')] if self.run.is_dir() else []
        moved = self.folder / 'elsewhere' / 'train.log'
        require(WARNED.search(run.said()) or {'last.pdparams', 'train.log'} <= set(here)
                or code == 0 and how == '/checkpoints removed'
                or moved.exists() and re.search(LAST_LINES[0], moved.read_text()),    # at its end
                f'there is {here}, and nothing was said: {run.said()[-800:]}')
        if code == 0:
            self.go_on()

    def fault_read_only(self):
        self.what = 'output folder read-only'
        run = self.start(preexec_fn=without_roots_rights)
        self.reach_moment()
        paths = [path for path in (self.run / 'checkpoints', self.run) if path.is_dir()]
        for path in paths:
            path.chmod(0o500)
        try:
            code = self.finish_without_room(begun=bool(paths))
        finally:
            for path in reversed(paths):
                path.chmod(0o700)
        require(not paths or code or WARNED.search(run.said()) or self.finished_before(run),
                'nothing was said')
        self.go_on()

    def finish_without_room(self, begun):
        """Wait for the end of a run that may not write; a begun one fails only at its end."""
        code = self.finish({0, 1} if begun else {0, 1, 2})
        require(code or self.has_weights(), 'it ended with 0 without weights')
        require(not (begun and code) or 'trained to the end, but' in self.current.said(),
                f'it failed before its end: {self.current.said()[-800:]}')
        return code

    def has_weights(self):
        """Whether the run's folder has the weights of the whole run."""
        whole = self.world.undisturbed(self.kind)
        return all((self.run / path.name).exists()
                   and (self.run / path.name).read_bytes() == path.read_bytes()
                   for path in whole.glob('*.pdparams'))

    def finished_before(self, run):
        return (self.run / 'last.pdparams').exists()

    def fault_second_start(self):
        self.what = 'a second start in the same folder'
        first = self.start()
        self.reach_moment()
        link = self.folder / 'link'
        if self.draw(0, 1):
            self.what += ', by a symbolic link'
            link.symlink_to(self.run)
        second = Started(self.folder, 'second', [
            part.replace(f'OUTPUT_DIR={self.run}', f'OUTPUT_DIR={link}') if link.is_symlink()
            else part for part in self.command()])
        self.started.append(second)
        self.finish({0})
        self.current = second
        code = self.finish({0, 2})
        require(code == 0 or 'another process trains in this folder' in second.said(1),
                f'second: {second.said(1)[-500:]}')
        if code:
            self.codes.append(0)
        require(not list(self.folder.glob('run.*')) and not list(self.folder.glob('link.*')),
                'the folder was moved aside')
        self.current = first

    def fault_closed_output(self):
        self.what = 'stdout is closed by its reader'
        run = self.start(stdout=subprocess.PIPE)
        # Its lines are read here up to the moment, as `head` would.
        pattern = rf'Step \[{2 * int(self.rng.integers(1, 4))}/'.encode()
        for line in run.process.stdout:
            if self.moment == 'start' or re.search(pattern, line):
                break
        run.process.stdout.close()
        self.finish({0}, last_line=False)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


FAULTS = [name[len('fault_'):] for name in vars(Case) if name.startswith('fault_')]
NEED_LIBRARY = {'full_disk', 'failing_writes', 'failing_reads', 'failing_resume',
                'slow_disk', 'clock'}


class World:
    """What all cases share: data, the library, and runs that were left alone."""

    def __init__(self, folder):
        self.folder = Path(folder)
        write_data(self.folder / 'data')
        self.library = build_faults(folder)
        self.faults = [name for name in FAULTS if self.library or name not in NEED_LIBRARY]
        self.alone = {}

    def undisturbed(self, kind):
        """The folder of a run of this kind that nothing happened to."""
        if kind not in self.alone:
            case = Case.__new__(Case)
            case.world, case.kind, case.folder = self, kind, self.folder / f'alone {kind}'
            case.begin()
            case.folder.mkdir()
            case.start()
            case.finish({0})
            self.alone[kind] = case.run
        return self.alone[kind]


def one_case(world, seed, number, keep=None, fault=None, kind=None):
    """Run a case; returns what the log keeps of it."""
    case, began, problem = Case(world, seed, number, fault, kind), time.monotonic(), None
    try:
        case.check()
    except Broken as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    finally:
        for started in case.started:
            started.end()
    result = dict(seed=seed, case=number, fault=case.fault, run=case.kind, what=case.what,
                  codes=case.codes, seconds=round(time.monotonic() - began, 1), problem=problem)
    print(f'{number}: {case.describe()} | exit {", ".join(map(str, case.codes))} | '
          f'{"ok" if not problem else "FINDING"} ({result["seconds"]} s)', flush=True)
    if problem:
        print(f'    {problem}\n    python tests/chaos.py --seed {seed} --case {number}'
              + (f' --fault {fault}' if fault else '') + (f' --run {kind!r}' if kind else ''),
              flush=True)
    if problem and keep:
        shutil.copytree(case.folder, Path(keep) / f'seed {seed} case {number}', dirs_exist_ok=True,
                        symlinks=True)
    shutil.rmtree(case.folder, ignore_errors=True)
    return result


def table(results):
    """Markdown: what was tried, a row a fault."""
    rows = collections.defaultdict(list)
    for result in results:
        rows[result['fault']].append(result)
    lines = ['| fault | injected | into several processes | first exit codes (how often) | '
             'every promise kept | findings |', '| --- | --- | --- | --- | --- | --- |']
    total = [0, 0, 0, 0]
    for name in sorted(rows):
        those = rows[name]
        codes = collections.Counter(result['codes'][0] for result in those if result['codes'])
        found = sum(bool(result['problem']) for result in those)
        several = sum(RUNS[result['run']][0] > 1 for result in those)
        row = [len(those), several, len(those) - found, found]
        total = [a + b for a, b in zip(total, row)]
        shown = ', '.join(f'{code} ({count})' for code, count in sorted(codes.items()))
        lines.append(f'| {name.replace("_", " ")} | {row[0]} | {row[1]} | {shown} | {row[2]} | '
                     f'{row[3]} |')
    lines.append(f'| all | {total[0]} | {total[1]} | | {total[2]} | {total[3]} |')
    seeds = sorted({result['seed'] for result in results})
    minutes = sum(result['seconds'] for result in results) / 60
    return [f'Seeds {", ".join(map(str, seeds))}; {minutes:.0f} minutes.', '', *lines]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=1e9)
    parser.add_argument('--cases', type=int, default=10 ** 9)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--case', type=int, help='run this case alone')
    parser.add_argument('--fault', choices=FAULTS, help='this fault in every case')
    parser.add_argument('--run', choices=list(RUNS), help='this kind of run in every case')
    parser.add_argument('--log', help='file to which each case adds a line of JSON')
    parser.add_argument('--keep', help='folder to which findings are copied')
    parser.add_argument('--table', nargs='+', metavar='LOG', help='print the table of these logs')
    options = parser.parse_args(arguments)
    if options.table:
        results = [json.loads(line) for path in options.table for line in open(path)]
        print('\n'.join(table(results)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))    # with all that was started
    end, results = time.monotonic() + 60 * options.minutes, []
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        if not world.library:
            print('no C compiler: left out are', ', '.join(sorted(NEED_LIBRARY)))
        numbers = [options.case] if options.case is not None else range(
            options.first, options.first + options.cases)
        for number in numbers:
            if time.monotonic() > end:
                break
            results.append(one_case(world, options.seed, number, options.keep, options.fault,
                                    options.run))
            if options.log:
                with open(options.log, 'a') as file:
                    file.write(json.dumps(results[-1]) + '\n')
    print('\n' + '\n'.join(table(results)))
    return any(result['problem'] for result in results)


if __name__ == '__main__':
    sys.exit(main())
