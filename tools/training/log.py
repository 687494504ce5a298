"""Log of a run: lines for people, JSON lines for programs, curves and pictures for VisualDL.

Only rank 0 prints. A terminal shows the lines above a progress bar; pipes and files get plain
lines.
"""

import contextlib
import json
import os
import re
import struct
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from system import command, distributed, terminal

SHORTEST_BAR = 4    # columns of a progress bar with a note
BINS = 40           # of a histogram
GROUP = re.compile(r'^(\w+(\.\d+)?)\.')    # in the name of a weight: blocks.0, head
# The values of each event that VisualDL shows as curves.
VALIDATION = ('top1', 'top5', 'loss', 'images_per_second')
CURVES = dict(step=('loss', 'acc', 'lr', 'images_per_second', 'read_time', 'train_time'),
              epoch=('loss', 'acc', 'skipped_steps', 'bad_images'),
              validation=VALIDATION, validation_ema=VALIDATION)


def say(line):
    """Print one line on rank 0, above the progress bar if there is one."""
    if distributed.is_main():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class Bar(tqdm):
    """A progress bar on the terminal of rank 0, if there is one (see system.terminal).

    Args:
        note: called when the bar is drawn, with the rate in items per second, None at first;
            returns a list of texts to show behind the bar, the last of which are left out where
            the terminal is too narrow.
        **options: of tqdm.
    """

    monitor_interval = 0    # no thread, which would draw while the network computes

    def __init__(self, iterable=None, note=None, **options):
        self.note = note
        if note:
            options['bar_format'] = '{desc} |{bar}| {note}'
        stream = terminal.drawing() if distributed.is_main() else None
        super().__init__(iterable, file=stream, disable=stream is None, leave=False,
                         dynamic_ncols=True, **options)

    @property
    def format_dict(self):
        """The values for bar_format, as tqdm documents it."""
        values = super().format_dict
        if self.note:
            texts = self.note(values['rate'])
            room = (values['ncols'] or 80) - len(f'{self.desc} || ') - SHORTEST_BAR
            while len(', '.join(texts)) > room and texts:
                texts = texts[:-1]
            values['note'] = ', '.join(texts)
        return values


class RunLog:
    """The log files of a training run: train.log, log.jsonl, visualdl/.

    Errors of the disk or of stdout do not end the run; see `RobustFile`.

    Args:
        folder: folder of the run; must exist.
        visualdl: whether to write for VisualDL.
        position: result of `position()` from which a resumed run continues; later content is
            removed, because it will be written again.
    """

    def __init__(self, folder, visualdl=True, position=None):
        position = position or dict(text=0, records=0, visualdl=0, elapsed=0.0)
        self.started = time.monotonic() - position['elapsed']
        self.text = self.records = self.visualdl = None
        if not distributed.is_main():
            return
        folder = Path(folder)
        self.text = RobustFile(folder / 'train.log', position['text'], self.warn)
        self.records = RobustFile(folder / 'log.jsonl', position['records'], self.warn)
        if visualdl:
            self.visualdl = RobustFile(*visualdl_file(folder / 'visualdl', position['visualdl']),
                                       self.warn)
            if self.visualdl.size == 0:    # the name of the run, instead of its full path
                self.show(0, {'name': dict(meta_data=dict(
                    display_name='/'.join(folder.absolute().parts[-2:])))})

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
        """Add one line to log.jsonl, and the curves of the event to VisualDL.

        Args:
            event: 'start', 'step', 'epoch', 'validation', 'validation_ema' or 'end'.
            step: batches of the whole run so far.
            **values: JSON values.
        """
        if not self.records:
            return
        entry = dict(event=event, step=step, elapsed=round(self.elapsed(), 3), **values)
        self.records.write(f'{json.dumps(entry)}\n'.encode())
        if event in CURVES:
            self.show(step, {f'{event}/{name}': dict(value=float(values[name]))
                             for name in CURVES[event]})

    def picture(self, tag, step, encoded):
        """Show an image in VisualDL; `encoded` is the content of its file, or None."""
        if encoded:
            self.show(step, {tag: dict(image=dict(encoded_image_string=encoded))})

    def histograms(self, step, state):
        """Show histograms of the finite values of a state dict in VisualDL, grouped by layer."""
        found = {}
        for name, values in state.items():
            values = np.asarray(values)
            heights, edges = np.histogram(values[np.isfinite(values)], BINS)
            found[GROUP.sub(r'\1/', name)] = dict(
                histogram=dict(hist=heights.tolist(), bin_edges=edges.tolist()))
        self.show(step, found)

    def show(self, step, values):
        """Add {tag: fields of VisualDL's Record.Value} to VisualDL.

        VisualDL's own writer uses a thread, which ends when the disk is full; later writes would
        then wait forever.
        """
        if not self.visualdl:
            return
        from visualdl.proto.record_pb2 import Record  # slow to import

        for tag, fields in values.items():
            data = Record(values=[dict(id=step, tag=tag, timestamp=round(time.time() * 1000),
                                       **fields)]).SerializeToString()
            self.visualdl.write(struct.pack('<Q', len(data)) + data)    # its length first

    def elapsed(self):
        """Return the seconds of the run so far, including those before it was resumed."""
        return time.monotonic() - self.started

    def position(self):
        """Return file sizes and elapsed time, for a checkpoint; None except on rank 0."""
        if not self.text:
            return None
        return dict(text=self.text.size, records=self.records.size, elapsed=self.elapsed(),
                    visualdl=self.visualdl.size if self.visualdl else 0)

    def close(self):
        """Close the files."""
        for file in (self.text, self.records, self.visualdl):
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


def visualdl_file(folder, position):
    """Return path and size of the file to continue: VisualDL reads only the newest of a folder."""
    earlier = sorted(folder.glob('vdlrecords.*.log')) if position else []
    if earlier:
        return earlier[-1], position
    return folder / f'vdlrecords.{time.time():010.0f}.log', 0    # it reads no other names
