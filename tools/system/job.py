"""The processes of one machine: started with what Paddle reads, watched to their end, judged.

Paddle's own launcher blames whichever process it sees first, gives a signalled job no time to
save, and waits for ever on a process that is stopped. Here a signal goes on to every process,
which then saves and leaves; the exit code is that of the process that failed first, and the last
line names it.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from system.command import LAST_LINE
from system.start import LAUNCHER, exit_code

SECONDS_TO_REPORT = 3      # for the others, when one has failed, before they are stopped
SECONDS_TO_END = 5         # between SIGTERM and SIGKILL
SECONDS_STOPPED = 10       # SIGSTOP: after these a process counts as hung
# What a process says that only noticed another's end.
CONSEQUENCE = re.compile(r'PeerError|gloo|TIMEOUT self_rank|Connection (reset|closed)')


def variables(place, number, count, gpus):
    """What Paddle reads in a process of several.

    Args:
        place: where this machine stands in the job, a system.meeting.Place.
        number: of the process on this machine, from 0.
        count: how many there are on this machine.
        gpus: a GPU for each of them, as Paddle counts; empty on a CPU.

    Returns:
        dict of environment variables; None for one that must not be set.
    """
    rank, world_size = place.first + number, len(place.endpoints)
    device = {'FLAGS_selected_gpus': gpus[number]} if gpus else {'PADDLE_DISTRI_BACKEND': 'gloo'}
    return {
        'PADDLE_TRAINER_ID': str(rank),
        'PADDLE_TRAINERS_NUM': str(world_size),
        'PADDLE_TRAINER_ENDPOINTS': ','.join(place.endpoints),
        'PADDLE_CURRENT_ENDPOINT': place.endpoints[rank],
        'PADDLE_MASTER': place.store,
        'PADDLE_RANK_IN_NODE': str(number),
        'PADDLE_LOCAL_RANK': str(number),
        'PADDLE_LOCAL_SIZE': str(count),
        'PADDLE_GLOBAL_RANK': str(rank),
        'PADDLE_GLOBAL_SIZE': str(world_size),
        # Paddle would prefer these, which a cluster may have set for other frameworks.
        'MASTER_ADDR': None, 'MASTER_PORT': None,
        **device}


class Verdict(NamedTuple):
    """How the processes of a machine ended, or those of all machines."""

    code: int = 0             # exit code
    asked: bool = False       # a signal to a launcher asked for it
    follows: bool = False     # a consequence of what happened elsewhere
    said: str = ''            # one line for people
    shown: bool = False       # the copied output says so already


class Process:
    """One process of a job.

    Args:
        rank: its number over all machines.
        command: program and arguments.
        environment: variables besides those of this process; None removes one.
        output: file for all that it prints; None: it prints where this process does.
    """

    def __init__(self, rank, command, environment, output=None):
        self.rank = rank
        self.output = output
        self.code = None             # exit code once it has ended; negative: a signal's number
        self.ended_by_us = False
        self.stopped_since = None
        self.hung = False
        variables = {**os.environ, **environment, LAUNCHER: str(os.getpid())}
        variables = {name: value for name, value in variables.items() if value is not None}
        with contextlib.ExitStack() as files:
            file = files.enter_context(open(output, 'ab')) if output else None
            self.begin = file.tell() if output else 0    # what is there is not its own
            self.popen = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file and subprocess.STDOUT,
                start_new_session=True)    # a terminal's Ctrl+C comes once, from the launcher
        self.pid = self.popen.pid

    def look(self):
        """Notice its end; end it if it has been stopped for long."""
        self.code = self.popen.poll()
        if self.code is not None:
            return
        if not self.is_stopped():
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = time.monotonic()
        elif time.monotonic() - self.stopped_since > SECONDS_STOPPED:
            self.hung = True
            self.popen.kill()

    def is_stopped(self):
        try:
            text = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:    # no Linux, or it has just ended
            return False
        return text.rpartition(')')[2].split()[0] in 'Tt'

    def last_line(self):
        """The line on which it ended early, or an empty text."""
        if not self.output:
            return ''
        try:
            lines = Path(self.output).read_bytes()[self.begin:].decode(errors='replace')
        except OSError:
            return ''
        return next((line for line in reversed(lines.splitlines()) if LAST_LINE.match(line)), '')

    def describe(self):
        """How it ended, for people."""
        if self.hung:
            how = f'hung: it was stopped (SIGSTOP) for {SECONDS_STOPPED} seconds'
        elif self.code < 0:
            how = f'was killed by {signal.Signals(-self.code).name}'
        else:
            how = f'ended with exit code {self.code}'
        said = self.last_line()
        where = f' (its output: {self.output})' if self.output else ''
        return f'rank {self.rank} (pid {self.pid}) {how}{": " if said else ""}{said}{where}'

    def follows(self):
        """Whether it only lost its peer, or was stopped by this launcher."""
        return not self.hung and (self.code in (-signal.SIGABRT, -signal.SIGTERM)
                                  or self.ended_by_us or bool(CONSEQUENCE.search(self.last_line())))


class Job:
    """The processes of this machine.

    Args:
        processes: those of this machine, by rank. Where the first has an output file, what it
            writes is copied to stdout.
        asked: list of the signals that this process has got; more may come.
    """

    def __init__(self, processes, asked):
        self.processes = processes
        self.asked = asked
        self.forwarded = 0
        self.failed = []             # in the order in which they ended
        self.copy = None
        if processes[0].output:
            self.copy = open(processes[0].output, 'rb')
            self.copy.seek(processes[0].begin)

    def watch(self, meeting):
        """Follow the processes to their end; returns a Verdict.

        Args:
            meeting: the other machines (see system.meeting): told of a failure here, asked for
                one there.
        """
        number, stop_at = signal.SIGTERM, math.inf
        while self.alive():
            time.sleep(0.05)
            self.copy_output()
            for process in self.alive():
                process.look()
                if process.code:
                    self.failed.append(process)
            self.forward()
            now = time.monotonic()
            if meeting.has_failed(here=bool(self.failed)) and stop_at == math.inf:
                stop_at = now + SECONDS_TO_REPORT
            if now > stop_at:
                for process in self.alive():
                    process.ended_by_us = True
                    process.popen.send_signal(number)
                number, stop_at = signal.SIGKILL, now + SECONDS_TO_END
        self.copy_output()
        return self.verdict()

    def alive(self):
        return [process for process in self.processes if process.code is None]

    def forward(self):
        """Give the signals that have come to every process."""
        for number in self.asked[self.forwarded:]:
            self.forwarded += 1
            for process in self.alive():
                process.popen.send_signal(number)

    def copy_output(self):
        while self.copy and (text := self.copy.read(1 << 16)):
            try:
                while text:
                    text = text[os.write(1, text):]
            except OSError:    # nobody reads it any more: the processes go on
                self.copy = None

    def verdict(self):
        if not self.failed:
            return Verdict(asked=bool(self.asked))
        blamed = next((process for process in self.failed if not process.follows()),
                      self.failed[0])
        first = self.processes[0]
        shown = not first.output or bool(
            first.code == blamed.code and first.last_line() and not first.follows())
        code = blamed.code
        if code < 0:
            code = 1
            if self.asked and not blamed.hung:    # it had no time yet to listen to signals
                code = exit_code(self.asked[0])
        return Verdict(code, bool(self.asked), blamed.follows(), f'failed: {blamed.describe()}',
                       shown)
