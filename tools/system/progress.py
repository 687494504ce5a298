"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


class Progress:
    """Progress with the remaining time, on stderr.

        with Progress('reading', total, 'B') as progress:
            progress.add(4096)

    Args:
        what: what is done, for people.
        total: of the units.
        unit: 'B' for bytes, or a word in the plural.
        note: function that returns more words for a line, or None.
    """

    def __init__(self, what, total, unit, note=None):
        self.what, self.total, self.unit, self.note = what, total, unit, note
        self.done, self.started, self.said = 0, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=total, desc=what, unit=f' {unit}', unit_scale=True, leave=False,
                        dynamic_ncols=True, disable=not sys.stderr.isatty())

    def add(self, count):
        self.done += count
        if not self.bar.disable:
            self.bar.set_postfix_str(self.note() if self.note else '', refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self):
        """What is done, the rate, and the time that the rest will take."""
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0
        return (f'{self.what}: {100 * self.done / max(self.total, 1):.1f} %'
                + (f', {self.note()}' if self.note else '')
                + f', {amount(rate, self.unit)}/s, {duration(left)} left')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


def amount(number, unit='B'):
    """A number of bytes as MB or GB (powers of 1000), or another number with its unit."""
    if unit != 'B':
        return f'{number:,.0f} {unit}'
    return f'{number / 1e9:.1f} GB' if number >= 1e9 else f'{number / 1e6:.1f} MB'


def duration(seconds):
    """Seconds as 45 s, 12 min or 3 h 05 min."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60:02d} min'
