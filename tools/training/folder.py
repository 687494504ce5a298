"""Where a run lives on disk: its lock, checkpoints, weights files and log.

    output/NAME/
        config.yaml                  the resolved configuration
        train.log  log.jsonl  visualdl/
        last.pdparams  best.pdparams, and with EMA last_ema.pdparams  best_ema.pdparams
        checkpoints/step-000001234.ckpt
    output/.NAME.lock                held while a process trains there
"""

import errno
import fcntl
import re
import time
from pathlib import Path

from system import distributed
from training.checkpoint import OtherRun
from training.log import RunLog
from weights.container import CheckpointError, read_checkpoint, write_checkpoint
from weights.files import write_weights

NAME = re.compile(r'step-(\d+)\.ckpt')


class RunFolder:
    """The folder of one run, kept for this process as long as it lives.

    All processes of a job call the same methods; only the main one writes. A disk that is full or
    read-only costs a warning, not the run.

    Args:
        path: made by `open`.
        keep_checkpoints: how many of the newest stay.

    Raises:
        CheckpointError: if another process trains there.
    """

    def __init__(self, path, keep_checkpoints=2):
        self.path = Path(path)
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
        """
        notes = []
        if wanted not in ('auto', 'false'):
            return wanted, accept(wanted, *distributed.from_main(read_checkpoint, wanted))
        paths = self.checkpoints.paths() if wanted == 'auto' else ()
        for path in distributed.share(paths):
            try:
                return path, notes + accept(path, *distributed.from_main(read_checkpoint, path))
            except OtherRun:
                raise
            except CheckpointError as error:
                notes.append(f'passed over a checkpoint: {error}')
        return None, notes

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
                make_room(self.path)
            write_config(self.path / 'config.yaml')
        self.log = RunLog(self.path, visualdl, position)

    # ---- while training

    def say(self, line):
        """Print a line and keep it in train.log."""
        self.log.say(line)

    def warn(self, line):
        """Print a line that is about this process and not about the run: not in train.log."""
        self.log.warn(line)

    def record(self, event, step, **values):
        """Add a line to log.jsonl; see RunLog.record."""
        self.log.record(event, step, **values)

    def save(self, step, arrays, state):
        """Write the checkpoint of a step, counted over the whole run, and where the log stands."""
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
        """Write NAME.pdparams; returns its path."""
        path = self.path / f'{name}.pdparams'
        if distributed.is_main():
            try:
                write_weights(path, state, metadata)
            except OSError as error:
                self.warn(f'{name}.pdparams was not saved: {error}; training goes on')
        return path

    def close(self):
        self.log.close()


class Checkpoints:
    """The checkpoints of one run: `folder/step-000001234.ckpt`, the newest `keep` of them.

    Args:
        folder: made when the first one is saved.
        keep: how many of the newest stay; older ones are removed after a new one is safe.
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
        for older in self.paths()[self.keep:]:
            older.unlink(missing_ok=True)
        for left in self.folder.glob('.*.tmp'):    # of a process that was killed while saving
            left.unlink(missing_ok=True)
        self.save_seconds = time.perf_counter() - started
        return path

    def paths(self):
        """The checkpoints that are there, newest first."""
        found = [path for path in self.folder.glob('step-*.ckpt') if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)


def claim(folder, patience=30.0):
    """Keep other processes from training in a run's folder for as long as this one lives.

    Two jobs in one folder would take each other's checkpoints and mix their logs; it happens when
    a job is started again while the processes of the one before still die.

    Args:
        folder: the run's; the lock is the file `.NAME.lock` beside it.
        patience: seconds to wait for another process to end.

    Returns:
        The open lock file, to be held on to; the system unlocks it when the process ends, even
        by SIGKILL.

    Raises:
        CheckpointError: if the other process is still there after that.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = open(folder.parent / f'.{folder.name}.lock', 'a+b')
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


def make_room(folder):
    """Make a run's folder; an earlier run in it is moved aside, never written over."""
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f'{folder.name}.{number}')).exists():
            number += 1
        folder.rename(aside)
        print(f'{folder} held an earlier run, which is now {aside}')
    folder.mkdir(parents=True, exist_ok=True)
