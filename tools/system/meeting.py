"""Where the launchers of several machines meet: who is which rank, who failed, who starts again.

The launcher on the machine that --master names listens there, the others connect to it. For each
attempt every launcher calls `join()`, runs its processes while asking `has_failed()`, and then
`settle()`; all of them learn the same ranks, attempt and exit code. Messages are lines of JSON. A
connection that breaks is a machine that failed. Whoever can reach the port can stop the job: it
belongs into a network of one's own.
"""

import contextlib
import errno
import json
import socket
import sys
import time
from typing import NamedTuple

from system.command import UsageError
from system.job import Verdict

NOT_AGAIN = (0, 2, 75)     # exit codes after which nothing is started again
MOST_BYTES = 1 << 20       # of one message
SECONDS_BETWEEN_LOOKS = 0.05
# Seconds without an answer, between questions, and questions, until a machine counts as gone.
KEEPALIVE = dict(TCP_KEEPIDLE=10, TCP_KEEPINTVL=5, TCP_KEEPCNT=4)


class Interrupted(Exception):
    """A signal came while other machines were waited for."""


class Hello(NamedTuple):
    """What a launcher says to join an attempt."""

    name: str
    machines: int
    attempt: int
    restarts: int
    ports: list      # a free one for where the ranks meet, then one for each process


class Place(NamedTuple):
    """Where the processes of this machine stand in the job."""

    first: int          # rank of the first one here
    endpoints: list     # HOST:PORT of every rank
    store: str          # HOST:PORT where the ranks meet
    attempt: int        # 0 for the first
    restarts: int       # how many attempts may follow the first: the least that a launcher allows


def free_ports(count):
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(('', 0))
        return [probe.getsockname()[1] for probe in sockets]


class Line:
    """A connection that carries messages, dicts; `gone` once it is broken."""

    def __init__(self, connection):
        self.socket = connection
        self.host = connection.getpeername()[0]
        self.buffer = b''
        self.gone = False
        self.hello = None      # what it said to join the next attempt
        self.verdict = None    # how its part of this attempt ended
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):    # Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message):
        try:
            self.socket.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            self.gone = True

    def receive(self):
        """The messages that have come since the last time."""
        try:
            while len(self.buffer) < MOST_BYTES:
                part = self.socket.recv(1 << 16)
                self.gone |= not part
                if not part:
                    break
                self.buffer += part
            else:
                self.gone = True
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
        *lines, self.buffer = self.buffer.split(b'\n')
        messages = []
        for line in lines:
            try:
                messages.append(dict(json.loads(line)))
            except (ValueError, TypeError):    # not one of ours
                self.gone = True
        return messages


def meet(master, machines, name, restarts, asked):
    """The meeting of a job's launchers, as the one that leads it or as another.

    Args:
        master: HOST:PORT, the same on every machine; None for a job of one machine.
        machines: how many there are.
        name: of this machine's part of the job; ranks follow its order.
        restarts: how often the job may be started again.
        asked: list of the signals that this process has got; one of them ends all waiting.
    """
    if machines == 1:
        return Leader(None, ('127.0.0.1', 0), machines, name, restarts, asked)
    host, _, port = master.rpartition(':')
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        address = socket.gethostbyname(host), int(port)
        listener.bind(address)
        listener.listen()
        listener.setblocking(False)
        return Leader(listener, address, machines, name, restarts, asked)
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        # Another machine's address, or a launcher on this machine was first.
        if getattr(error, 'errno', None) in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return Member(address, machines, name, restarts, asked)
        raise UsageError(f'--master {master}: {error}') from None


class Meeting:
    """What both kinds of launchers share."""

    def __init__(self, address, machines, name, restarts, asked):
        self.address, self.machines, self.name = address, machines, name
        self.restarts, self.asked = restarts, asked
        self.attempt = 0
        self.told = False      # the others, of a failure

    def wait(self, look):
        """What `look()` returns once that is not None; says once that others are waited for."""
        said = False
        while (found := look()) is None:
            if self.asked:
                raise Interrupted
            if not said:
                said = True
                print('Waiting for {} machines to meet at {}:{}.'.format(
                    self.machines, *self.address), file=sys.stderr, flush=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found

    def start_again(self, verdict):
        """Whether there is another attempt after this verdict; counts it."""
        again = (verdict.code not in NOT_AGAIN and not verdict.asked
                 and self.attempt < self.restarts)
        self.attempt += again
        return again


class Leader(Meeting):
    """The launcher that others connect to; its machine has rank 0, and so the checkpoints."""

    def __init__(self, listener, *rest):
        super().__init__(*rest)
        self.listener = listener
        self.lines = []        # to all who have connected
        self.members = []      # to those who take part in this attempt, in the order of ranks
        self.failures = []     # members, or None for this one, in the order in which they failed

    def join(self, ports):
        """Wait for the other machines; returns this one's Place.

        Args:
            ports: a free one for where the ranks meet, then one for each process here.
        """
        self.members, self.failures, self.told = [], [], False
        members = sorted(self.wait(self.look_for_members), key=lambda line: line.hello.name)
        self.attempt = max([self.attempt, *(line.hello.attempt for line in members)])
        self.restarts = min([self.restarts, *(line.hello.restarts for line in members)])
        host = self.address[0]
        endpoints = [f'{host}:{port}' for port in ports[1:]]
        firsts = []
        for line in members:
            firsts.append(len(endpoints))
            endpoints += [f'{line.host}:{port}' for port in line.hello.ports[1:]]
        place = Place(0, endpoints, f'{host}:{ports[0]}', self.attempt, self.restarts)
        for line, first in zip(members, firsts):
            line.hello = line.verdict = None
            line.send(start=place._replace(first=first))
        self.members = members
        return place

    def look_for_members(self):
        self.look()
        ready = [line for line in self.lines if line.hello]
        return ready[:self.machines - 1] if len(ready) >= self.machines - 1 else None

    def look(self):
        """Take in new connections and messages."""
        with contextlib.suppress(OSError):    # nobody is there
            while self.listener:
                self.lines.append(Line(self.listener.accept()[0]))
        for line in self.lines:
            for message in line.receive():
                try:
                    self.hear(line, message)
                except (TypeError, ValueError):    # not one of ours
                    line.gone = True
            if line in self.members and line.gone and line.verdict is None:
                line.verdict = Verdict(1, said=f'failed: the machine at {line.host} is gone')
                self.failures.append(line)
        for line in [line for line in self.lines if line.gone]:
            line.socket.close()
            self.lines.remove(line)

    def hear(self, line, message):
        if 'join' in message:
            name, machines, attempt, restarts, ports = message['join']
            if machines == self.machines:
                line.hello = Hello(str(name), int(machines), int(attempt), int(restarts),
                                   [int(port) for port in ports])
            else:
                line.send(refused=f'--nnodes is {self.machines} at --master and {machines} here')
        if 'done' in message:
            line.verdict = Verdict(*message['done'])
        if line in self.members and line not in self.failures and (
                'failed' in message or line.verdict and line.verdict.code):
            self.failures.append(line)

    def has_failed(self, here):
        """Whether a process of the job has failed; all machines learn of it.

        Args:
            here: whether one on this machine has.
        """
        self.look()
        if here and None not in self.failures:
            self.failures.append(None)
        if self.failures and not self.told:
            self.told = True
            for line in self.members:
                line.send(failed=True)
        return bool(self.failures)

    def settle(self, mine):
        """Wait for the end of all machines; returns the job's Verdict, and whether to go on.

        Args:
            mine: the Verdict of this machine.
        """
        self.has_failed(here=bool(mine.code))
        while any(line.verdict is None for line in self.members):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self.has_failed(here=bool(mine.code))
        found = [mine if line is None else line.verdict for line in self.failures]
        verdict = next((verdict for verdict in found if not verdict.follows),
                       found[0] if found else mine)
        verdict = verdict._replace(asked=mine.asked or any(line.verdict.asked
                                                           for line in self.members))
        again = self.start_again(verdict)
        for line in self.members:
            line.send(verdict=[verdict, again])
        return verdict, again


class Member(Meeting):
    """The launcher of another machine."""

    line = None

    def join(self, ports):
        """See Leader."""
        self.failed = self.told = False
        if self.line and not self.line.gone:
            self.say_hello(ports)
        place = self.wait(lambda: self.look_for_start(ports))
        self.attempt, self.restarts = place.attempt, place.restarts
        return place

    def say_hello(self, ports):
        self.line.send(join=Hello(self.name, self.machines, self.attempt, self.restarts, ports))

    def look_for_start(self, ports):
        if self.line is None or self.line.gone:
            try:
                self.line = Line(socket.create_connection(self.address, timeout=1))
            except OSError:    # it has not started yet
                return None
            self.say_hello(ports)
        for message in self.line.receive():
            if 'refused' in message:
                raise UsageError(message['refused'])
            if 'start' in message:
                return Place(*message['start'])
        return None

    def has_failed(self, here):
        """See Leader."""
        if here and not self.told:
            self.told = True
            self.line.send(failed=True)
        self.failed |= any('failed' in message for message in self.line.receive())
        return here or self.failed or self.line.gone

    def settle(self, mine):
        """See Leader. Where the leader is gone, every machine decides for itself."""
        self.line.send(done=mine)
        while not self.line.gone:
            for message in self.line.receive():
                if 'verdict' in message:
                    (verdict, again) = message['verdict']
                    self.attempt += again
                    return Verdict(*verdict), again
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if mine.code and mine.follows:
            mine = Verdict(1, mine.asked, said='failed: the machine at {}:{} is gone'.format(
                *self.address))
        return mine, self.start_again(mine)
