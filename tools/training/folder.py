"""Where a run lives on disk: its lock, checkpoints, weights files and log.

    output/NAME/
        config.yaml                  the resolved configuration
        train.log  log.jsonl  visualdl/
        last.pdparams  best.pdparams, and with EMA last_ema.pdparams  best_ema.pdparams
        checkpoints/step-000001234.ckpt
    output/.NAME.lock                held while a process trains there

Going back to an earlier checkpoint keeps those after it as abandoned-step-000001234.ckpt; damaged
ones become damaged-step-000001234.ckpt.
"""

import contextlib
import errno
import fcntl
import re
import time
from pathlib import Path

import numpy as np

from system import distributed
from training.checkpoint import OtherRun
from training.log import RunLog
from weights.container import CheckpointError, read_checkpoint, write_checkpoint
from weights.files import write_weights

NAME = re.compile(r'step-(\d+)\.ckpt')
# What a run writes, and moves aside where its folder is a link to a place that may hold more.
OWN = ('config.yaml', 'train.log', 'log.jsonl', 'visualdl', 'checkpoints', '*.pdparams')


class RunFolder:
    """The folder of one run, kept for this process as long as it lives.

    All processes of a job call the same methods; only the main one reads and writes. A disk that
    is full or read-only costs a warning, not the run. A folder that is removed while the run goes
    on is made anew.

    Args:
        path: made by `open`; a link is followed, so that no two runs share what it leads to.
        keep_checkpoints: how many of the newest stay.

    Raises:
        CheckpointError: if another process trains there.
    """

    def __init__(self, path, keep_checkpoints=2):
        self.is_link, self.path = Path(path).is_symlink(), Path(path).resolve()
        self.weights_files = set()    # names of what this folder should hold
        self.unsaved = {}             # name: (state, metadata) of weights that found no room
        self.has_config = self.warned = False
        self.damaged = []             # checkpoints that were passed over
        self.checkpoints = Checkpoints(self.path / 'checkpoints', keep_checkpoints)
        self.lock = claim(self.path) if distributed.is_main() else None
        distributed.wait_for_all()    # a job that was here before may still have saved

    # ---- before training

    def resume(self, wanted, accept):
        """Go on from a checkpoint, which the main process alone needs to see.

        Args:
            wanted: 'auto', the newest one here that can be used; a checkpoint's path; 'false'.
            accept: called with (path, arrays, state) of one that was read; returns lines for
                people, or raises CheckpointError for content that can't be used. With 'auto' the
                one before is tried then, unless the error is OtherRun.

        Returns:
            (path or None, lines for people).

        Raises:
            CheckpointError: where there are checkpoints, but none that can be used.
        """
        if wanted == 'false':
            return None, []
        if wanted != 'auto':
            return wanted, accept(wanted, *distributed.from_main(read_checkpoint, wanted))
        problems = []
        for path in distributed.from_main(self.checkpoints.paths):
            try:
                notes = accept(path, *distributed.from_main(read_checkpoint, path))
                return path, [f'passed over a checkpoint: {line}' for line in problems] + notes
            except OtherRun:
                raise
            except CheckpointError as error:
                problems.append(str(error))
                self.damaged.append(path)
        if problems:
            raise CheckpointError(
                f'{self.checkpoints.folder}: has no checkpoint that can be used: '
                f'{"; ".join(problems)}; put a copy of one there, or start afresh with '
                'TRAIN.RESUME=false, which moves this run aside')
        return None, []

    def go_back_to(self, checkpoint, step):
        """Make a checkpoint, of this step, the newest one; returns lines for people."""
        if not (distributed.is_main() and self.holds(checkpoint)):
            return []
        try:
            return self.checkpoints.go_back_to(Path(checkpoint).name, step, self.damaged)
        except OSError as error:
            return [f'{self.checkpoints.folder}: later checkpoints cannot be set aside: {error}']

    def holds(self, checkpoint):
        """Whether a checkpoint's path is one of this run's."""
        return Path(checkpoint).parent.resolve() == self.checkpoints.folder.resolve()

    def open(self, write_config, visualdl=True, position=None):
        """Begin the log, or go on in it.

        Args:
            write_config: called with the path of config.yaml, which it writes.
            visualdl: whether to write scalars for VisualDL.
            position: of the log in the checkpoint that a run goes on from; None: a new run, for
                which what is there is moved aside.
        """
        # Every process must have looked for a checkpoint before one of them makes the folder.
        distributed.wait_for_all()
        if distributed.is_main():
            if position is None:
                make_room(self.path, self.is_link)
            self.path.mkdir(parents=True, exist_ok=True)
            self.weights_files = {path.name for path in self.path.glob('*.pdparams')}
        self.log = RunLog(self.path, visualdl, position)
        self.write_config = write_config
        if distributed.is_main():
            self._write_config()

    # ---- while training

    def say(self, line):
        """Print a line and keep it in train.log."""
        self.log.say(line)

    def warn(self, line):
        """Print a line that is about this process and not about the run: not in train.log."""
        self.log.warn(line)

    def record(self, event, step, **values):
        """Add a line to log.jsonl; see RunLog.record."""
        self.restore()
        self.log.record(event, step, **values)

    def save(self, step, arrays, state):
        """Write the checkpoint of a step, counted over the whole run, and where the log stands."""
        self.restore()
        self._write_unsaved()
        try:
            self.checkpoints.save(step, arrays, dict(state, log=self.log.position()))
        except OSError as error:
            self.warn(f'no checkpoint was saved: {error}; training goes on, and the checkpoint '
                      'before is whole')

    def save_seconds(self):
        """How long the last checkpoint took to write."""
        return self.checkpoints.save_seconds

    def newest_checkpoint(self):
        """Its path, or None."""
        return next(iter(self.checkpoints.paths()), None)

    def write_weights(self, name, state, metadata):
        """Write NAME.pdparams; returns its path.

        Where there is no room they are kept in memory, and written with the next checkpoint.
        """
        path = self.path / f'{name}.pdparams'
        if distributed.is_main():
            self.restore()
            self.weights_files.add(path.name)
            self.unsaved.pop(name, None)
            try:
                write_weights(path, state, metadata)
            except OSError as error:
                state = {key: np.array(value) for key, value in state.items()}
                self.unsaved[name] = state, metadata
                self.warn(f'{name}.pdparams was not saved: {error}; training goes on, and tries '
                          'again with every checkpoint')
        return path

    def _write_unsaved(self):
        """Write the weights that found no room before, where there is some now."""
        for name, (state, metadata) in list(self.unsaved.items()):
            with contextlib.suppress(OSError):
                write_weights(self.path / f'{name}.pdparams', state, metadata)
                del self.unsaved[name]

    def restore(self):
        """Write config.yaml where it is missing; where all is, say what can't be made anew."""
        if not distributed.is_main() or (self.path / 'config.yaml').exists():
            return
        had_config = self.has_config
        if self._write_config() and had_config:
            missing = ['checkpoints', *sorted(name for name in self.weights_files
                                              if not (self.path / name).exists())]
            self.warn(f'{self.path} was removed or moved away: its configuration and log are '
                      f'written anew; missing until they are due again: {", ".join(missing)}')

    def _write_config(self):
        """Write config.yaml; returns whether that worked."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_config(self.path / 'config.yaml')
        except OSError as error:
            if not self.warned:
                self.warn(f'config.yaml was not saved: {error}; training goes on')
            self.warned = True
            return False
        self.has_config = True
        return True

    def close(self):
        self._write_unsaved()
        self.log.close()


class Checkpoints:
    """The checkpoints of one run: `folder/step-000001234.ckpt`, the newest `keep` of them.

    Args:
        folder: made when the first one is saved.
        keep: how many stay; older ones are removed after a new one is safe.
    """

    def __init__(self, folder, keep=2):
        self.folder = Path(folder)
        self.keep = keep
        self.save_seconds = 0.0

    def save(self, step, arrays, state):
        """Write the checkpoint of a step; returns its path.

        Raises:
            OSError: for a full disk or a read-only folder; earlier checkpoints are untouched.
        """
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f'step-{step:09d}.ckpt'
        write_checkpoint(path, arrays, state)
        others = [other for other in self.paths() if other != path]
        for older in others[self.keep - 1:]:
            older.unlink(missing_ok=True)
        for left in self.folder.glob('.*.tmp'):    # of a process that was killed while saving
            left.unlink(missing_ok=True)
        self.save_seconds = time.perf_counter() - started
        return path

    def paths(self):
        """The checkpoints that are there, newest first."""
        found = [path for path in self.folder.glob('step-*.ckpt') if NAME.fullmatch(path.name)]
        return sorted(found, key=_number, reverse=True)

    def go_back_to(self, name, step, damaged=()):
        """Set aside what was written after a checkpoint, so that it is the newest.

        A larger number is a later one, always: what a run that goes back has abandoned gets
        another name, and where an epoch has fewer steps than before so does the checkpoint.

        Args:
            name: of its file in this folder.
            step: what it counts as from now on.
            damaged: paths of those that can't be used.

        Returns:
            Lines for people.
        """
        path, newest, notes = self.folder / name, self.folder / f'step-{step:09d}.ckpt', []
        last = min(step, _number(path)) if NAME.fullmatch(name) else step
        for other in self.paths():
            if other.name == name or _number(other) < last:
                continue
            kind = 'damaged' if other in damaged else 'abandoned'
            aside, count = other.with_name(f'{kind}-{other.name}'), 1
            while aside.exists():
                count += 1
                aside = other.with_name(f'{kind}-{other.stem}.{count}.ckpt')
            other.rename(aside)
            notes.append(f'{other} is now {aside.name}')
        if path != newest and re.match('(step|abandoned-step)-', name):
            path.rename(newest)
            notes.append(f'{path} is now {newest.name}')
        return notes


def _number(path):
    return int(NAME.fullmatch(path.name)[1])


def claim(folder, patience=30.0):
    """Keep other processes from training in a run's folder for as long as this one lives.

    Two jobs in one folder would take each other's checkpoints and mix their logs; it happens when
    a job is started again while the processes of the one before still die.

    Args:
        folder: the run's, links followed; the lock is the file `.NAME.lock` beside it, or inside
            where nothing may be written beside it.
        patience: seconds to wait for another process to end.

    Returns:
        The open lock file, to be held on to; the system unlocks it when the process ends, even
        by SIGKILL.

    Raises:
        CheckpointError: if the other process is still there after that.
    """
    folder = Path(folder).resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.parent / f'.{folder.name}.lock', 'a+b')
    except OSError:
        lock = open(folder / f'.{folder.name}.lock', 'a+b')
    deadline = time.monotonic() + patience
    while True:
        try:
            # A lock of the process, not of the file: loader processes don't inherit it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return lock    # a file system without locks
        if time.monotonic() > deadline:
            raise CheckpointError(f'{folder}: another process trains in this folder: wait for its '
                                  'end, or choose another TRAIN.OUTPUT_DIR')
        time.sleep(0.2)


def make_room(folder, is_link=False):
    """Move an earlier run in a folder aside; it is never written over.

    Args:
        is_link: the folder is what a link leads to, a disk perhaps, which stays in its place: the
            files of the run go into a folder inside.
    """
    if is_link:
        earlier = [path for pattern in OWN for path in folder.glob(pattern)]
    else:
        earlier = list(folder.iterdir()) if folder.exists() else []
    if not earlier:
        return
    name, number = (folder / 'earlier' if is_link else folder), 1
    while (aside := name.with_name(f'{name.name}.{number}')).exists():
        number += 1
    if is_link:
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)
    else:
        folder.rename(aside)
    print(f'{folder} held an earlier run, which is now {aside}')
