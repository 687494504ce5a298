"""What a run tells: lines for people, JSON lines for programs, scalars for VisualDL.

Only the main process speaks. On a terminal the lines stand above a progress bar; in a pipe or
a file they are plain lines.
"""

import contextlib
import json
import os
import struct
import sys
import time
from pathlib import Path

from tqdm import tqdm

from system import command, distributed


def say(line):
    """Print one line from the main process, past a progress bar if there is one."""
    if distributed.is_main():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def progress(iterable, description, total=None, done=0):
    """Wrap an iterable in a progress bar on a terminal; elsewhere it stays silent.

    Args:
        total: length of the whole, where the iterable doesn't know it.
        done: how much of it was done before.
    """
    silent = not (sys.stderr.isatty() and distributed.is_main())
    return tqdm(iterable, desc=description, total=total, initial=done, disable=silent,
                leave=False, dynamic_ncols=True)


class RunLog:
    """The log of a training run, in its folder: train.log, log.jsonl, visualdl/.

    Nothing that happens to a disk or to stdout ends the run: see `Growing`.

    Args:
        folder: the run's folder, which exists.
        visualdl: whether to write scalars for VisualDL.
        position: where a resumed run goes on, as `position()` gave it; what was written after
            that is cut off, because it will be written again.
    """

    def __init__(self, folder, visualdl=True, position=None):
        position = position or dict(text=0, records=0, elapsed=0.0)
        self.started = time.monotonic() - position['elapsed']
        self.text = self.records = self.scalars = None
        if not distributed.is_main():
            return
        folder = Path(folder)
        self.text = Growing(folder / 'train.log', position['text'], self.warn)
        self.records = Growing(folder / 'log.jsonl', position['records'], self.warn)
        if visualdl:
            name = f'vdlrecords.{time.time():010.0f}.log'    # VisualDL reads no other names
            self.scalars = Growing(folder / 'visualdl' / name, 0, self.warn)

    def say(self, line):
        """Print a line and keep it in train.log."""
        self.warn(line)
        if self.text:
            self.text.write(f'{line}\n'.encode())

    def warn(self, line):
        """Print a line that is about this process and not about the run: not in train.log."""
        try:
            say(line)
        except BrokenPipeError:    # whoever read our output has left; train.log goes on
            command.discard_stdout()
        except OSError:            # a full disk: what it lacks stands in train.log
            pass

    def record(self, event, step, **values):
        """Add one line to log.jsonl, and the numbers among `values` to VisualDL.

        Args:
            event: what happened: 'start', 'step', 'epoch', 'validation', 'end'.
            step: number of batches so far.
            **values: numbers or texts.
        """
        if not self.records:
            return
        entry = dict(event=event, step=step, elapsed=round(self.elapsed(), 3), **values)
        self.records.write(f'{json.dumps(entry)}\n'.encode())
        if self.scalars:
            self.scalars.write(b''.join(
                _scalar(f'{event}/{name}', value, step) for name, value in values.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)))

    def elapsed(self):
        """Seconds that the run has taken, all its processes one after another."""
        return time.monotonic() - self.started

    def position(self):
        """Where the log stands: what a checkpoint must hold to go on in it."""
        if not self.text:
            return None
        return dict(text=self.text.size, records=self.records.size, elapsed=self.elapsed())

    def close(self):
        for file in (self.text, self.records, self.scalars):
            if file:
                file.close()


class Growing:
    """A file that grows, and that ends no run.

    What can't be written now is kept in memory and written as soon as it can be. Where the file,
    or its folder, has been removed or moved away, it is made anew with all that it held.

    Args:
        path: its folder is made where it is missing.
        size: what lies behind these bytes is cut off.
        warn: called with one line when writing fails for the first time.
    """

    def __init__(self, path, size, warn):
        self.path, self.warn = path, warn
        self.descriptor = None
        self.pending = b''
        self.warned = False
        with contextlib.suppress(OSError):
            self._open()
            os.truncate(self.path, min(size, self.path.stat().st_size))
        self.size = self.path.stat().st_size if self.path.exists() else 0
        self.write(b'')

    def write(self, data):
        """Add bytes to the end."""
        self.pending += data
        self.size += len(data)
        try:
            if self._is_gone():
                self._make_anew()
            while self.pending:    # a disk may take a part
                self.pending = self.pending[os.write(self.descriptor, self.pending):]
        except OSError as error:
            if not self.warned:
                self.warn(f'{self.path}: cannot be written: {error.strerror}; training goes on, '
                          'and what is missing is added as soon as that works')
            self.warned = True

    def close(self):
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _open(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _is_gone(self):
        if self.descriptor is None:
            return True
        try:
            there, ours = os.stat(self.path), os.fstat(self.descriptor)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _make_anew(self):
        """Open the file again; one that was removed can still be read as long as it is open."""
        before, held = self.descriptor, b''
        if before is not None:
            held = os.pread(before, os.fstat(before).st_size, 0)
        self._open()
        if before is not None:
            os.ftruncate(self.descriptor, 0)
            os.close(before)
        self.pending = held + self.pending


def _scalar(tag, value, step):
    """A record of VisualDL: its length in eight bytes, then a protocol buffer.

    Written here because VisualDL's own writer does so in a thread, which dies of a full disk; the
    next writes would then wait for it, for ever.
    """
    from visualdl.proto.record_pb2 import Record  # slow to import, and not every run wants it

    record = Record(values=[Record.Value(
        id=step, tag=tag, timestamp=round(time.time() * 1000), value=float(value))])
    data = record.SerializeToString()
    return struct.pack('<Q', len(data)) + data
