"""Stops a run on a signal or a time limit."""

import signal
import time

from system.start import on_stop_signals


class Stopped(RuntimeError):
    """A run that was stopped on request; the same command goes on from its last checkpoint."""

    exit_code = 75    # EX_TEMPFAIL of sysexits.h: try again
    kind = 'stopped'


class StopRequest:
    """Handles the signals to stop (system.start.STOP_SIGNALS) and a time limit.

    A signal is only recorded, so that the current step can finish. A second SIGINT raises
    KeyboardInterrupt.

    Args:
        limit_hours: hours after `started` until the process must have ended; 0: no limit.
        started: time.monotonic() at the start of the job; None: now.
    """

    def __init__(self, limit_hours=0.0, started=None):
        self.limit = limit_hours * 3600
        self.started = time.monotonic() if started is None else started
        self.signal_name = None

    def __enter__(self):
        self.before = on_stop_signals(self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        if number == signal.SIGINT and self.signal_name == 'SIGINT':
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name

    def reason(self, seconds_needed=0.0):
        """Return why to stop now, or None.

        Args:
            seconds_needed: time for saving and exiting, subtracted from the limit; at least one
                hundredth of the limit is.
        """
        if self.signal_name:
            return self.signal_name
        margin = max(seconds_needed, self.limit / 100)
        if self.limit and time.monotonic() - self.started > self.limit - margin:
            return f'TRAIN.TIME_LIMIT_HOURS, {self.limit / 3600:g}'
        return None
