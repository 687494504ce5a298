"""Asked to stop: by a signal or by the clock of a job."""

import signal
import time

from system.start import on_stop_signals


class Stopped(RuntimeError):
    """A run that was asked to stop and has saved itself; the same command goes on."""

    exit_code = 75    # EX_TEMPFAIL of sysexits.h: try again
    kind = 'stopped'


class StopRequest:
    """Listens for the signals to stop (system.start), and watches a time limit.

    The first signal is only noted, so that a step can be finished; a second SIGINT ends the
    process at once.

    Args:
        limit_hours: hours after `started` by which the process must be gone; 0: no limit.
        started: time.monotonic() of the job's start.
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
        """Why to stop now, or None.

        Args:
            seconds_needed: what saving and leaving take; the limit is met that much earlier, and
                at least a hundredth of itself.
        """
        if self.signal_name:
            return self.signal_name
        margin = max(seconds_needed, self.limit / 100)
        if self.limit and time.monotonic() - self.started > self.limit - margin:
            return f'TRAIN.TIME_LIMIT_HOURS, {self.limit / 3600:g}'
        return None
