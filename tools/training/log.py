"""Log of a run: lines for people, JSON lines for programs, scalars for VisualDL.

Only rank 0 prints. A terminal shows the lines above a progress bar; pipes and files get plain
lines.
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
    """Print one line on rank 0, above the progress bar if there is one."""
    if distributed.is_main():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def progress(iterable, description, total=None, done=0):
    """Wrap an iterable in a progress bar, if stderr is a terminal.

    Args:
        total: length of the whole, for iterables without a length.
        done: number of items done before.
    """
    silent = not (sys.stderr.isatty() and distributed.is_main())
    return tqdm(iterable, desc=description, total=total, initial=done, disable=silent,
                leave=False, dynamic_ncols=True)


class RunLog:
    """The log files of a training run: train.log, log.jsonl, visualdl/.

    Errors of the disk or of stdout do not end the run; see `RobustFile`.

    Args:
        folder: folder of the run; must exist.
        visualdl: whether to write scalars for VisualDL.
        position: result of `position()` from which a resumed run continues; later content is
            removed, because it will be written again.
    """

    def __init__(self, folder, visualdl=True, position=None):
        position = position or dict(text=0, records=0, elapsed=0.0)
        self.started = time.monotonic() - position['elapsed']
        self.text = self.records = self.scalars = None
        if not distributed.is_main():
            return
        folder = Path(folder)
        self.text = RobustFile(folder / 'train.log', position['text'], self.warn)
        self.records = RobustFile(folder / 'log.jsonl', position['records'], self.warn)
        if visualdl:
            name = f'vdlrecords.{time.time():010.0f}.log'    # VisualDL reads no other names
            self.scalars = RobustFile(folder / 'visualdl' / name, 0, self.warn)

    def say(self, line):
        """Print a line and write it to train.log."""
        self.warn(line)
        if self.text:
            self.text.write(f'{line}\n'.encode())

    def warn(self, line):
        """Print a line, but do not write it to train.log: it concerns this process, not the run."""
        try:
            say(line)
        except BrokenPipeError:    # stdout has no reader; train.log continues
            command.discard_stdout()
        except OSError:            # the disk is full; train.log has the line
            pass

    def record(self, event, step, **values):
        """Add one line to log.jsonl, and the numbers among `values` to VisualDL.

        Args:
            event: 'start', 'step', 'epoch', 'validation', 'validation_ema' or 'end'.
            step: batches of the whole run so far.
            **values: JSON values.
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
        """Return the seconds of the run so far, including those before it was resumed."""
        return time.monotonic() - self.started

    def position(self):
        """Return file sizes and elapsed time, for a checkpoint; None except on rank 0."""
        if not self.text:
            return None
        return dict(text=self.text.size, records=self.records.size, elapsed=self.elapsed())

    def close(self):
        """Close the files."""
        for file in (self.text, self.records, self.scalars):
            if file:
                file.close()


class RobustFile:
    """A file to append to, whose errors do not end the run.

    Data that cannot be written is kept in memory and written later. If the file or its folder is
    removed or moved, it is created again with its earlier content.

    Args:
        path: path of the file; a missing folder is created.
        size: bytes to keep; the file is truncated to this size.
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
        """Append bytes."""
        self.pending += data
        self.size += len(data)
        try:
            if self._is_gone():
                self._recreate()
            while self.pending:    # write may accept only a part
                self.pending = self.pending[os.write(self.descriptor, self.pending):]
        except OSError as error:
            if not self.warned:
                self.warn(f'{self.path}: cannot be written: {error.strerror}; training '
                          'continues, and the missing lines are written later')
            self.warned = True

    def close(self):
        """Close the file."""
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

    def _recreate(self):
        """Create the file again. A removed file can still be read through its open descriptor."""
        before, content = self.descriptor, b''
        if before is not None:
            content = os.pread(before, os.fstat(before).st_size, 0)
        self._open()
        if before is not None:
            os.ftruncate(self.descriptor, 0)
            os.close(before)
        self.pending = content + self.pending


def _scalar(tag, value, step):
    """Return a record of VisualDL: its length in eight bytes, then a protocol buffer.

    VisualDL's own writer uses a thread, which ends when the disk is full; later writes would then
    wait forever.
    """
    from visualdl.proto.record_pb2 import Record  # slow to import

    record = Record(values=[Record.Value(
        id=step, tag=tag, timestamp=round(time.time() * 1000), value=float(value))])
    data = record.SerializeToString()
    return struct.pack('<Q', len(data)) + data
