"""The files of a run: lock, checkpoints, weights and log.

    output/NAME/
        config.yaml                  the resolved configuration
        train.log  log.jsonl  visualdl/
        last.pdparams  best.pdparams, and with EMA last_ema.pdparams  best_ema.pdparams
        checkpoints/step-000001234.ckpt
    output/.NAME.lock                held while a process trains there

When a run resumes from an earlier checkpoint, later ones are renamed to
abandoned-step-000001234.ckpt, and damaged ones to damaged-step-000001234.ckpt.
"""

import contextlib
import errno
import fcntl
import re
import time
from pathlib import Path

import numpy as np

from system import distributed
from training.checkpoint import IncompatibleRun
from training.log import RunLog
from weights.container import CheckpointError, read_checkpoint, write_checkpoint
from weights.files import write_weights

NAME = re.compile(r'step-(\d+)\.ckpt')
# Files of a run. If its folder is a link, the target may contain other files, which stay.
OWN = ('config.yaml', 'train.log', 'log.jsonl', 'visualdl', 'checkpoints', '*.pdparams')


class RunFolder:
    """The folder of one run, locked until this process ends.

    All processes of a job call the same methods; only rank 0 reads and writes. If the disk is full
    or read-only, a warning is printed and training continues. A folder that is removed during the
    run is created again.

    Args:
        path: folder, created by `open`; links are resolved before locking.
        keep_checkpoints: number of newest checkpoints to keep.

    Raises:
        CheckpointError: if another process trains in the folder.
    """

    def __init__(self, path, keep_checkpoints=2):
        self.is_link, self.path = Path(path).is_symlink(), Path(path).resolve()
        self.weights_files = set()    # names of the weights files written
        self.unsaved = {}             # {name: (state, metadata)} of weights to write later
        self.has_config = self.warned = False
        self.damaged = []             # checkpoints that could not be used
        self.checkpoints = Checkpoints(self.path / 'checkpoints', keep_checkpoints)
        self.lock = lock_folder(self.path) if distributed.is_main() else None
        distributed.wait_for_all()    # until the previous job has ended

    # ---- before training

    def resume(self, wanted, accept):
        """Resume from a checkpoint. Only rank 0 needs access to the file.

        Args:
            wanted: 'auto', the newest usable checkpoint of this run; the path of a checkpoint; or
                'false'.
            accept: called with (path, arrays, state); returns notes for the log, or raises
                CheckpointError for content that cannot be used. With 'auto' the previous
                checkpoint is tried next, unless the error is IncompatibleRun.

        Returns:
            (path or None, notes for the log).

        Raises:
            CheckpointError: if there are checkpoints but none can be used.
        """
        if wanted == 'false':
            return None, []
        if wanted != 'auto':
            return wanted, accept(wanted, *distributed.from_main(read_checkpoint, wanted))
        problems = []
        for path in distributed.from_main(self.checkpoints.paths):
            try:
                notes = accept(path, *distributed.from_main(read_checkpoint, path))
                return path, [f'skipped checkpoint {line}' for line in problems] + notes
            except IncompatibleRun:
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

    def rewind(self, checkpoint, step):
        """Make a checkpoint the newest one, with the number `step`; return notes for the log."""
        if not (distributed.is_main() and self.contains(checkpoint)):
            return []
        try:
            return self.checkpoints.rewind(Path(checkpoint).name, step, self.damaged)
        except OSError as error:
            return [f'{self.checkpoints.folder}: later checkpoints cannot be renamed: {error}']

    def contains(self, checkpoint):
        """Return whether a path is that of a checkpoint of this run."""
        return Path(checkpoint).parent.resolve() == self.checkpoints.folder.resolve()

    def open(self, write_config, visualdl=True, position=None):
        """Create the folder and open the log.

        Args:
            write_config: called with the path of config.yaml; writes that file.
            visualdl: whether to write for VisualDL.
            position: position of the log, from the checkpoint that a run resumes from; None: a
                new run; an earlier one is moved aside.
        """
        # All processes must have looked for a checkpoint before rank 0 moves the folder.
        distributed.wait_for_all()
        if distributed.is_main():
            if position is None:
                move_aside(self.path, self.is_link)
            self.path.mkdir(parents=True, exist_ok=True)
            remove_temporary(self.path)
            self.weights_files = {path.name for path in self.path.glob('*.pdparams')}
        self.log = RunLog(self.path, visualdl, position)
        self.write_config = write_config
        if distributed.is_main():
            self._write_config()

    # ---- while training

    def say(self, line):
        """Print a line and write it to train.log."""
        self.log.say(line)

    def warn(self, line):
        """Print a line, but do not write it to train.log: it concerns this process, not the run."""
        self.log.warn(line)

    def record(self, event, step, **values):
        """Add a line to log.jsonl; see RunLog.record."""
        self.ensure_exists()
        self.log.record(event, step, **values)

    def save(self, step, arrays, state):
        """Write a checkpoint; return why it could not be written, or ''.

        Args:
            step: the number of batches of the whole run so far.
        """
        self.ensure_exists()
        self.write_unsaved()
        try:
            self.checkpoints.save(step, arrays, dict(state, log=self.log.position()))
        except OSError as error:
            self.warn(f'no checkpoint was saved: {error}; training continues, and the previous '
                      'checkpoint is intact')
            return str(error)
        return ''

    def save_seconds(self):
        """Return how long the last checkpoint took to write, in seconds."""
        return self.checkpoints.save_seconds

    def newest_checkpoint(self):
        """Return the path of the newest checkpoint, or None."""
        return next(iter(self.checkpoints.paths()), None)

    def write_weights(self, name, state, metadata):
        """Write NAME.pdparams; return its path.

        Weights that cannot be written are kept in memory and written with a later checkpoint.
        """
        path = self.path / f'{name}.pdparams'
        if distributed.is_main():
            self.ensure_exists()
            self.weights_files.add(path.name)
            self.unsaved.pop(name, None)
            try:
                write_weights(path, state, metadata)
            except OSError as error:
                state = {key: np.array(value) for key, value in state.items()}
                self.unsaved[name] = state, metadata
                self.warn(f'{name}.pdparams was not saved: {error}; training continues, and tries '
                          'again with every checkpoint')
        return path

    def write_unsaved(self):
        """Try again to write the weights that could not be written.

        Returns:
            {file name: why not} of those that still cannot.
        """
        failed = {}
        for name, (state, metadata) in list(self.unsaved.items()):
            path = self.path / f'{name}.pdparams'
            try:
                write_weights(path, state, metadata)
                del self.unsaved[name]
            except OSError as error:
                failed[path.name] = str(error)
        return failed

    def ensure_exists(self):
        """Create the folder again if it was removed, and print which files are missing."""
        if not distributed.is_main() or (self.path / 'config.yaml').exists():
            return
        had_config = self.has_config
        if self._write_config() and had_config:
            missing = ['checkpoints', *sorted(name for name in self.weights_files
                                              if not (self.path / name).exists())]
            self.warn(f'{self.path} was removed or moved: its configuration and log are written '
                      f'again; missing until they are next saved: {", ".join(missing)}')

    def _write_config(self):
        """Write config.yaml; return whether that succeeded."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_config(self.path / 'config.yaml')
        except OSError as error:
            if not self.warned:
                self.warn(f'config.yaml was not saved: {error}; training continues')
            self.warned = True
            return False
        self.has_config = True
        return True

    def close(self):
        """Close the log."""
        self.log.close()


class Checkpoints:
    """The checkpoints of one run: `folder/step-000001234.ckpt`, the newest `keep` of them.

    Args:
        folder: created with the first checkpoint.
        keep: how many to keep; older ones are removed after a new one is written.
    """

    def __init__(self, folder, keep=2):
        self.folder = Path(folder)
        self.keep = keep
        self.save_seconds = 0.0

    def save(self, step, arrays, state):
        """Write the checkpoint of a step; return its path.

        Raises:
            OSError: for a full disk or a read-only folder; earlier checkpoints stay intact.
        """
        started = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f'step-{step:09d}.ckpt'
        write_checkpoint(path, arrays, state)
        others = [other for other in self.paths() if other != path]
        for older in others[self.keep - 1:]:
            older.unlink(missing_ok=True)
        remove_temporary(self.folder)
        self.save_seconds = time.perf_counter() - started
        return path

    def paths(self):
        """Return the paths of the checkpoints, newest first."""
        found = [path for path in self.folder.glob('step-*.ckpt') if NAME.fullmatch(path.name)]
        return sorted(found, key=_number, reverse=True)

    def rewind(self, name, step, damaged=()):
        """Rename later checkpoints, so that the given one is the newest.

        The checkpoint itself is renamed if its step number has changed, because an epoch has
        fewer steps than before.

        Args:
            name: file name of the checkpoint in this folder.
            step: its step number from now on.
            damaged: paths of checkpoints that cannot be used.

        Returns:
            Notes for the log.
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


def remove_temporary(folder):
    """Remove the files of processes that were killed, or lost the right to write, while saving."""
    with contextlib.suppress(OSError):
        for path in folder.glob('.*.[0-9]*.tmp'):
            path.unlink(missing_ok=True)


def lock_folder(folder, timeout=30.0):
    """Lock the folder of a run until this process ends.

    Two jobs in one folder would overwrite each other's checkpoints and logs. This can happen when
    a job is restarted while the processes of the previous one are still ending.

    Args:
        folder: folder of the run; links are resolved. The lock is the file `.NAME.lock` next to
            it, or inside it if its parent is not writable.
        timeout: seconds to wait for another process to end.

    Returns:
        The open lock file; keep a reference. The system releases the lock when the process ends,
        also after SIGKILL.

    Raises:
        CheckpointError: if another process still has the lock after that time, or if the path
            cannot be that of a folder.
        OSError: if the disk is full, or fails.
    """
    folder = Path(folder).resolve()
    try:
        lock = _open_lock(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise CheckpointError(f'TRAIN.OUTPUT_DIR {folder}: cannot be made ({error.strerror}); '
                              'choose another one') from error
    deadline = time.monotonic() + timeout
    while True:
        try:
            # lockf locks for this process: loader workers do not inherit it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return lock    # the file system has no locks
        if time.monotonic() > deadline:
            raise CheckpointError(f'{folder}: another process trains in this folder: wait until '
                                  'it ends, or choose another TRAIN.OUTPUT_DIR')
        time.sleep(0.2)


def _open_lock(folder):
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, 'it is a file', str(folder))
        return open(folder.parent / f'.{folder.name}.lock', 'a+b')
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return open(folder / f'.{folder.name}.lock', 'a+b')    # a folder in a read-only one


def move_aside(folder, is_link=False):
    """Rename the folder of an earlier run, so that it is not overwritten.

    Args:
        is_link: the folder is the target of a link, for example a disk, and keeps its name: the
            files of the earlier run are moved into a folder inside it.
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
