"""What a run tells: lines for people, JSON lines for programs, scalars for VisualDL.

Only the main process speaks. On a terminal the lines stand above a progress bar; in a pipe or
a file they are plain lines.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from system import distributed


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

    Args:
        folder: the run's folder, which exists.
        visualdl: whether to write scalars for VisualDL.
        position: where a resumed run goes on, as `position()` gave it; what was written after
            that is cut off, because it will be written again.
    """

    def __init__(self, folder, visualdl=True, position=None):
        position = position or dict(text=0, records=0, elapsed=0.0)
        self.started = time.time() - position['elapsed']
        self.scalars = None
        self.text = self.records = contextlib.nullcontext()
        if not distributed.is_main():
            return
        self.text = _open_at(Path(folder) / 'train.log', position['text'])
        self.records = _open_at(Path(folder) / 'log.jsonl', position['records'])
        if visualdl:
            from visualdl import LogWriter  # slow to import, and not every run wants it

            self.scalars = LogWriter(str(Path(folder) / 'visualdl'))

    def say(self, line):
        """Print a line and keep it in train.log."""
        say(line)
        if distributed.is_main():
            print(line, file=self.text, flush=True)

    def warn(self, line):
        """Print a line that is about this process and not about the run: not in train.log."""
        say(line)

    def record(self, event, step, **values):
        """Add one line to log.jsonl, and the numbers among `values` to VisualDL.

        Args:
            event: what happened: 'start', 'step', 'epoch', 'validation', 'end'.
            step: number of optimizer steps so far.
            **values: numbers or texts.
        """
        if not distributed.is_main():
            return
        entry = dict(event=event, step=step, elapsed=round(time.time() - self.started, 3),
                     **values)
        print(json.dumps(entry), file=self.records, flush=True)
        if self.scalars:
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.scalars.add_scalar(f'{event}/{name}', value, step)

    def position(self):
        """Where the log stands: what a checkpoint must hold to go on in it."""
        if not distributed.is_main():
            return None
        return dict(text=self.text.tell(), records=self.records.tell(),
                    elapsed=time.time() - self.started)

    def close(self):
        for stream in (self.text, self.records, self.scalars):
            if hasattr(stream, 'close'):
                stream.close()


def _open_at(path, position):
    """Open a log for writing at a byte position, which a new or shortened file may not reach."""
    file = open(path, 'a', encoding='utf-8')
    file.truncate(min(position, path.stat().st_size))
    file.seek(0, 2)
    return file
