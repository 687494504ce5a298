"""The processes of one machine: starts them for Paddle, watches them, and reports how they ended.

Paddle's own launcher reports the first failed process that it sees, not the first that failed. It
gives processes no time to save after a signal, and waits forever for one that is stopped
(SIGSTOP). Here signals are forwarded to every process, which saves and exits. The exit code is
that of the process that failed first; the last line names it.
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

from system import terminal
from system.command import LAST_LINE
from system.start import LAUNCHER, exit_code

SECONDS_TO_REPORT = 3      # from the first failure to SIGTERM for the other processes
SECONDS_TO_END = 5         # from SIGTERM to SIGKILL
SECONDS_STOPPED = 10       # a process that is stopped (SIGSTOP) for longer counts as hung
# In the last line of a process that failed because another one had.
CONSEQUENCE = re.compile(r'PeerError|gloo|TIMEOUT self_rank|Connection (reset|closed)')
# With which the last line of a job begins, as in system.command; else failed.
FIRST_WORDS = {2: 'error', 75: 'stopped', 130: 'interrupted'}


def variables(assignment, number, count, gpus):
    """Return the environment variables of Paddle for one process of a job.

    Args:
        assignment: the ranks of this machine, a system.rendezvous.Assignment.
        number: index of the process on this machine, from 0.
        count: number of processes on this machine.
        gpus: index of the GPU of each process, in Paddle's numbering; empty on a CPU.

    Returns:
        dict; the value None means that the variable must not be set.
    """
    rank, world_size = assignment.first + number, len(assignment.endpoints)
    device = {'FLAGS_selected_gpus': gpus[number]} if gpus else {'PADDLE_DISTRI_BACKEND': 'gloo'}
    return {
        'PADDLE_TRAINER_ID': str(rank),
        'PADDLE_TRAINERS_NUM': str(world_size),
        'PADDLE_TRAINER_ENDPOINTS': ','.join(assignment.endpoints),
        'PADDLE_CURRENT_ENDPOINT': assignment.endpoints[rank],
        'PADDLE_MASTER': assignment.store,
        'PADDLE_RANK_IN_NODE': str(number),
        'PADDLE_LOCAL_RANK': str(number),
        'PADDLE_LOCAL_SIZE': str(count),
        'PADDLE_GLOBAL_RANK': str(rank),
        'PADDLE_GLOBAL_SIZE': str(world_size),
        # A cluster may have set these for other frameworks; Paddle would prefer them.
        'MASTER_ADDR': None, 'MASTER_PORT': None,
        **device}


class Outcome(NamedTuple):
    """How the processes of one machine, or of all machines, ended."""

    code: int = 0                    # exit code
    stop_requested: bool = False     # a launcher received a signal to stop
    is_consequence: bool = False     # they failed because a process elsewhere had failed
    message: str = ''                # one line
    is_printed: bool = False         # the copied output contains the message


class Process:
    """One process of a job.

    Args:
        rank: its rank in the job.
        command: program and arguments.
        environment: variables to add to those of this process; the value None removes one.
        output: file for stdout and stderr; None: those of this process.
    """

    def __init__(self, rank, command, environment, output=None):
        self.rank = rank
        self.output = output
        self.code = None             # exit code, or minus the number of a signal; None: it runs
        self.ended_by_launcher = False
        self.stopped_since = None
        self.hung = False
        variables = {**os.environ, **environment, LAUNCHER: str(os.getpid())}
        variables = {name: value for name, value in variables.items() if value is not None}
        with contextlib.ExitStack() as files:
            file = files.enter_context(open(output, 'ab')) if output else None
            self.offset = file.tell() if output else 0    # earlier content is not its own
            self.popen = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file and subprocess.STDOUT,
                start_new_session=True)    # Ctrl+C reaches it once, through the launcher
        self.pid = self.popen.pid

    def poll(self):
        """Update `code`; kill the process if it has been stopped for too long."""
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
        """Return whether the process is stopped (SIGSTOP)."""
        try:
            text = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:    # not Linux, or the process has just ended
            return False
        return text.rpartition(')')[2].split()[0] in 'Tt'

    def last_line(self):
        """Return the line with which it ended early, or an empty string."""
        if not self.output:
            return ''
        try:
            lines = Path(self.output).read_bytes()[self.offset:].decode(errors='replace')
        except OSError:
            return ''
        return next((line for line in reversed(lines.splitlines()) if LAST_LINE.match(line)), '')

    def describe(self):
        """Return one line that says how it ended."""
        if self.hung:
            how = f'hung: it was stopped (SIGSTOP) for {SECONDS_STOPPED} seconds'
        elif self.code < 0:
            how = f'was killed by {signal.Signals(-self.code).name}'
        else:
            how = f'ended with exit code {self.code}'
        last = self.last_line()
        where = f' (its output: {self.output})' if self.output else ''
        return f'rank {self.rank} (pid {self.pid}) {how}{": " if last else ""}{last}{where}'

    def is_consequence(self):
        """Return whether it failed only because another process had, or the launcher ended it."""
        return not self.hung and (
            self.code in (-signal.SIGABRT, -signal.SIGTERM) or self.ended_by_launcher
            or bool(CONSEQUENCE.search(self.last_line())))


class Job:
    """The processes of this machine.

    Args:
        processes: Processes in the order of their ranks. If the first has an output file, its
            output is copied to stdout.
        signals: list of the signals that this process has received; handlers append to it.
    """

    def __init__(self, processes, signals):
        self.processes = processes
        self.signals = signals
        self.forwarded = 0           # number of signals that were forwarded
        self.failed = []             # in the order in which they ended
        self.first_output = None     # open file, copied to stdout
        self.begun = b''             # a line of it whose end is not yet written
        # The first process may draw a bar, which lines have to replace.
        self.before_lines = terminal.CLEAR.encode() if terminal.path() else b''
        if processes[0].output:
            self.first_output = open(processes[0].output, 'rb')
            self.first_output.seek(processes[0].offset)

    def watch(self, rendezvous):
        """Wait until all processes have ended; return an Outcome.

        When one fails, on any machine, the others are ended.

        Args:
            rendezvous: a system.rendezvous.Rendezvous, which reports failures to other machines.
        """
        number, stop_at = signal.SIGTERM, math.inf
        while self.running():
            time.sleep(0.05)
            self.copy_output()
            for process in self.running():
                process.poll()
                if process.code:
                    self.failed.append(process)
            self.forward_signals()
            now = time.monotonic()
            if rendezvous.has_failed(here=bool(self.failed)) and stop_at == math.inf:
                stop_at = now + SECONDS_TO_REPORT
            if now > stop_at:
                for process in self.running():
                    process.ended_by_launcher = True
                    process.popen.send_signal(number)
                number, stop_at = signal.SIGKILL, now + SECONDS_TO_END
        self.copy_output()
        self.print(self.begun)
        return self.outcome()

    def running(self):
        """Return the processes that have not ended."""
        return [process for process in self.processes if process.code is None]

    def forward_signals(self):
        """Send every process the signals that have arrived since the last call."""
        for number in self.signals[self.forwarded:]:
            self.forwarded += 1
            for process in self.running():
                process.popen.send_signal(number)

    def copy_output(self):
        """Copy new lines of the first process to stdout."""
        while self.first_output and (text := self.first_output.read(1 << 16)):
            lines, newline, self.begun = (self.begun + text).rpartition(b'\n')
            self.print(lines + newline)

    def print(self, text):
        """Write bytes to stdout, in place of a progress bar."""
        text = text and self.before_lines + text
        try:
            while text:
                text = text[os.write(1, text):]
        except OSError:    # stdout has no reader; the processes continue
            self.first_output = None

    def outcome(self):
        """Return the Outcome of processes that have all ended."""
        if not self.failed:
            return Outcome(stop_requested=bool(self.signals))
        cause = next((process for process in self.failed if not process.is_consequence()),
                     self.failed[0])
        first = self.processes[0]
        is_printed = not first.output or bool(
            first.code == cause.code and first.last_line() and not first.is_consequence())
        code = cause.code
        if code < 0:
            code = 1
            if self.signals and not cause.hung:    # the signal came before it had a handler
                code = exit_code(self.signals[0])
        return Outcome(code, bool(self.signals), cause.is_consequence(),
                       f'{FIRST_WORDS.get(code, "failed")}: {cause.describe()}', is_printed)
