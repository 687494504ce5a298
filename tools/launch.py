"""Start one process a card with paddle.distributed.launch, and say which of them failed, and how.

    python tools/launch.py --nproc_per_node 2 --log_dir log/launch/today tools/train.py -c FILE

Options are those of paddle.distributed.launch. Its own watch blames whichever process it sees
first, gives a signalled job no time to save, and waits for ever on a process that is stopped.
Here a signal goes on to every process, which then saves and leaves; the job's exit code is that
of the process that failed first (1 if a signal killed it); and the last line names it.
"""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
from paddle.distributed.launch import controllers
from paddle.distributed.launch.context import Context

from system.command import LAST_WORDS
from system.start import LAUNCHER

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECONDS_FOR_LAST_WORDS = 3     # of the others, when one has failed
SECONDS_STOPPED = 10           # SIGSTOP: after these a process counts as hung
# How a process speaks that only noticed another's end.
CONSEQUENCE = re.compile(r'gloo|TIMEOUT self_rank|Connection (reset|closed)')


class Process:
    """One process of the job, as Paddle's launcher holds it."""

    def __init__(self, container):
        self.container = container
        self.rank = int(container.env['PADDLE_TRAINER_ID'])    # over all machines
        self.pid = container._proc._proc.pid
        self.code = None             # exit code once it has ended; negative: a signal's number
        self.stopped_since = None
        self.hung = False

    def look(self):
        """Notice an end; end it if it has been stopped for long."""
        self.code = self.container.exit_code
        if self.code is not None:
            return
        if not self.is_stopped():
            self.stopped_since = None
        elif self.stopped_since is None:
            self.stopped_since = time.monotonic()
        elif time.monotonic() - self.stopped_since > SECONDS_STOPPED:
            self.hung = True
            self.send(signal.SIGKILL)

    def is_stopped(self):
        try:
            text = Path(f'/proc/{self.pid}/stat').read_text()
        except OSError:    # no Linux, or it has just ended
            return False
        return text.rpartition(')')[2].split()[0] in 'Tt'

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def last_words(self):
        """The line on which it ended, or an empty text."""
        try:
            lines = Path(self.container.outfile).read_text(errors='replace').splitlines()
        except OSError:
            return ''
        return next((line for line in reversed(lines) if LAST_WORDS.match(line)), '')

    def story(self):
        """How it ended, for people."""
        if self.hung:
            how = f'hung: it was stopped (SIGSTOP) for {SECONDS_STOPPED} seconds'
        elif self.code < 0:
            how = f'was killed by {signal.Signals(-self.code).name}'
        else:
            how = f'ended with exit code {self.code}'
        said = self.last_words()
        return f'rank {self.rank} (pid {self.pid}) {how}{": " if said else ""}{said}'


class Job:
    """The processes of this machine."""

    def __init__(self, pod):
        self.pod = pod
        self.processes = [Process(container) for container in pod.containers]
        self.failed = []             # in the order in which they ended

    def watch(self):
        """Follow the processes to their end; returns the job's exit code."""
        deadline = None
        while any(process.code is None for process in self.processes):
            time.sleep(0.05)
            self.pod.logs()
            for process in self.processes:
                if process.code is None:
                    process.look()
                    if process.code:
                        self.failed.append(process)
            if deadline is None and self.failed:
                deadline = time.monotonic() + SECONDS_FOR_LAST_WORDS
            if deadline and time.monotonic() > deadline:
                self.pod.stop(timeout=5)
        while self.pod.logs():
            pass
        return self.verdict()

    def verdict(self):
        """Say what went wrong; returns the exit code."""
        if not self.failed:
            return 0
        # Whoever only lost its peer, or was stopped by this launcher, is not to blame.
        blamed = next((process for process in self.failed if not self.follows(process)),
                      self.failed[0])
        code = blamed.code if blamed.code > 0 else 1
        first = self.processes[0]
        told = (first.rank == 0 and first.code == blamed.code and first.last_words()
                and not self.follows(first))
        if not told:    # in the first one's output, which has been copied to ours
            print(f'failed: {blamed.story()} (its output: {blamed.container.outfile})',
                  file=sys.stderr)
        return code

    @staticmethod
    def follows(process):
        said = process.last_words()
        return not process.hung and (process.code in (-signal.SIGABRT, -signal.SIGTERM)
                                     or bool(CONSEQUENCE.search(said)))


def main():
    os.environ[LAUNCHER] = str(os.getpid())    # so that its processes notice if it is gone
    context = Context()
    controller = controllers.init(context)
    controller.build_job()
    controller.build_pod()
    asked = []
    for number in FORWARDED:    # instead of the controller's own handlers
        signal.signal(number, lambda number, frame: asked.append(number))
    controller.deploy_pod()
    job = Job(controller.pod)
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: [
            process.send(number) for process in job.processes if process.code is None])
    for number in asked:
        signal.raise_signal(number)
    code = job.watch()
    controller.master.stop()
    sys.exit(code)


if __name__ == '__main__':
    main()
