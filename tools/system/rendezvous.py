"""Rendezvous of the launchers of several machines: ranks, failures, restarts.

The launcher on the machine that --master names listens there and coordinates; the others connect
to it. For each attempt every launcher calls `join()`, runs its processes while polling
`has_failed()`, and then calls `finish()`. All of them get the same ranks, attempt and exit code.
Messages are lines of JSON. A broken connection counts as a failure of its machine.

There is no authentication: anyone who can reach the port can stop the job. Use a private network.
"""

import contextlib
import errno
import json
import socket
import sys
import time
from typing import NamedTuple

from system.command import UsageError
from system.job import Outcome

NO_RESTART_CODES = (0, 2, 75)    # success, wrong input, stopped on request
MAX_MESSAGE_BYTES = 1 << 20
POLL_SECONDS = 0.05
# Seconds of silence before the first probe and between probes, and unanswered probes until the
# connection counts as broken.
KEEPALIVE = dict(TCP_KEEPIDLE=10, TCP_KEEPINTVL=5, TCP_KEEPCNT=4)


class Interrupted(Exception):
    """A signal arrived while waiting for other machines."""


class JoinRequest(NamedTuple):
    """What a launcher sends to join an attempt."""

    name: str
    machines: int
    attempt: int
    restarts: int
    ports: list      # free ports: one for the store, then one for each process


class Assignment(NamedTuple):
    """The ranks of this machine's processes in one attempt."""

    first: int          # rank of the first process on this machine
    endpoints: list     # HOST:PORT of every rank
    store: str          # HOST:PORT of the store through which the ranks connect
    attempt: int        # 0 for the first
    restarts: int       # the smallest --restarts of all machines


@contextlib.contextmanager
def free_ports(count):
    """Yield `count` different ports that nothing listens on.

    A process of the job listens on the first one only after it has imported Paddle. Until the end
    of this context the system gives it to no other program that asks for any port. That process can
    listen nevertheless, as Linux lets sockets with SO_REUSEADDR share a port on which none listens
    yet; other systems do not, so there it is not held.
    """
    with contextlib.ExitStack() as probes, socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sockets = [first, *(probes.enter_context(socket.socket()) for _ in range(count - 1))]
        for probe in sockets:
            probe.bind(('', 0))
        ports = [probe.getsockname()[1] for probe in sockets]
        probes.close()
        if sys.platform != 'linux':
            first.close()
        yield ports


class Connection:
    """A non-blocking connection that carries messages (dicts); `closed` once it is broken."""

    def __init__(self, connection):
        self.socket = connection
        self.host = connection.getpeername()[0]
        self.buffer = b''
        self.closed = False
        self.request = None    # the peer's JoinRequest for the next attempt
        self.outcome = None    # the peer's Outcome of this attempt
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):    # Linux
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message):
        try:
            self.socket.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            self.closed = True

    def receive(self):
        """Return the messages that have arrived since the last call."""
        try:
            while len(self.buffer) < MAX_MESSAGE_BYTES:
                part = self.socket.recv(1 << 16)
                self.closed |= not part
                if not part:
                    break
                self.buffer += part
            else:
                self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self.buffer = self.buffer.split(b'\n')
        messages = []
        for line in lines:
            try:
                messages.append(dict(json.loads(line)))
            except (ValueError, TypeError):    # not from a launcher
                self.closed = True
        return messages


def create_rendezvous(master, machines, name, restarts, signals):
    """Return the Coordinator of a job on the machine of `master`, else a Member.

    Args:
        master: HOST:PORT, the same on every machine; None for a job of one machine.
        machines: their number.
        name: name of this machine in the job; ranks are assigned in the order of names.
        restarts: how often the job may be restarted.
        signals: list of the signals that this process has received; any of them ends waiting.

    Raises:
        UsageError: for an address that is not valid.
    """
    if machines == 1:
        return Coordinator(None, ('127.0.0.1', 0), machines, name, restarts, signals)
    host, _, port = master.rpartition(':')
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        address = socket.gethostbyname(host), int(port)
        listener.bind(address)
        listener.listen()
        listener.setblocking(False)
        return Coordinator(listener, address, machines, name, restarts, signals)
    except (OSError, ValueError, OverflowError) as error:
        listener.close()
        # The address of another machine, or another launcher on this machine has bound it.
        if getattr(error, 'errno', None) in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return Member(address, machines, name, restarts, signals)
        raise UsageError(f'--master {master}: {error}') from None


class Rendezvous:
    """Base class of Coordinator and Member."""

    def __init__(self, address, machines, name, restarts, signals):
        self.address, self.machines, self.name = address, machines, name
        self.restarts, self.signals = restarts, signals
        self.attempt = 0
        self.failure_sent = False

    def wait(self, poll):
        """Call `poll` until it returns something other than None; return that.

        Raises:
            Interrupted: when a signal arrives.
        """
        printed = False
        while (result := poll()) is None:
            if self.signals:
                raise Interrupted
            if not printed:
                printed = True
                print('Waiting for {} machines at {}:{}.'.format(self.machines, *self.address),
                      file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS)
        return result

    def restart(self, outcome):
        """Return whether another attempt follows this outcome, and count it."""
        restarts = (outcome.code not in NO_RESTART_CODES and not outcome.stop_requested
                    and self.attempt < self.restarts)
        self.attempt += restarts
        return restarts


class Coordinator(Rendezvous):
    """The launcher that the others connect to. Its machine has rank 0 and writes checkpoints."""

    def __init__(self, listener, *rest):
        super().__init__(*rest)
        self.listener = listener
        self.connections = []
        self.members = []      # connections of this attempt, in the order of ranks
        self.failures = []     # members, or None for this machine, in the order of failure

    def join(self, ports):
        """Wait for the other machines; return the Assignment of this one.

        Args:
            ports: free ports: one for the store, then one for each process here.

        Raises:
            Interrupted: when a signal arrives.
        """
        self.members, self.failures, self.failure_sent = [], [], False
        members = sorted(self.wait(self.poll_members), key=lambda member: member.request.name)
        self.attempt = max([self.attempt, *(member.request.attempt for member in members)])
        self.restarts = min([self.restarts, *(member.request.restarts for member in members)])
        host = self.address[0]
        endpoints = [f'{host}:{port}' for port in ports[1:]]
        firsts = []
        for member in members:
            firsts.append(len(endpoints))
            endpoints += [f'{member.host}:{port}' for port in member.request.ports[1:]]
        assignment = Assignment(0, endpoints, f'{host}:{ports[0]}', self.attempt, self.restarts)
        for member, first in zip(members, firsts):
            member.request = member.outcome = None
            member.send(start=assignment._replace(first=first))
        self.members = members
        return assignment

    def poll_members(self):
        """Return the connections of all other machines once they have sent requests, else None."""
        self.poll()
        ready = [connection for connection in self.connections if connection.request]
        return ready[:self.machines - 1] if len(ready) >= self.machines - 1 else None

    def poll(self):
        """Accept new connections and handle the messages that have arrived."""
        with contextlib.suppress(OSError):    # no connection is pending
            while self.listener:
                self.connections.append(Connection(self.listener.accept()[0]))
        for connection in self.connections:
            for message in connection.receive():
                try:
                    self.handle(connection, message)
                except (TypeError, ValueError):    # not from a launcher
                    connection.closed = True
            if connection in self.members and connection.closed and connection.outcome is None:
                connection.outcome = Outcome(
                    1, message=f'failed: lost the connection to the machine at {connection.host}')
                self.failures.append(connection)
        for connection in [other for other in self.connections if other.closed]:
            connection.socket.close()
            self.connections.remove(connection)

    def handle(self, connection, message):
        if 'join' in message:
            name, machines, attempt, restarts, ports = message['join']
            if machines == self.machines:
                connection.request = JoinRequest(str(name), int(machines), int(attempt),
                                                 int(restarts), [int(port) for port in ports])
            else:
                connection.send(
                    refused=f'--nnodes is {self.machines} at --master and {machines} here')
        if 'done' in message:
            connection.outcome = Outcome(*message['done'])
        if connection in self.members and connection not in self.failures and (
                'failed' in message or connection.outcome and connection.outcome.code):
            self.failures.append(connection)

    def has_failed(self, here):
        """Return whether a process of the job has failed, and tell the other machines.

        Args:
            here: whether a process on this machine has failed.
        """
        self.poll()
        if here and None not in self.failures:
            self.failures.append(None)
        if self.failures and not self.failure_sent:
            self.failure_sent = True
            for member in self.members:
                member.send(failed=True)
        return bool(self.failures)

    def finish(self, local):
        """Wait until all machines have finished; return (Outcome of the job, whether to restart).

        Args:
            local: the Outcome of this machine.
        """
        self.has_failed(here=bool(local.code))
        while any(member.outcome is None for member in self.members):
            time.sleep(POLL_SECONDS)
            self.has_failed(here=bool(local.code))
        failed = [local if member is None else member.outcome for member in self.failures]
        outcome = next((outcome for outcome in failed if not outcome.is_consequence),
                       failed[0] if failed else local)
        outcome = outcome._replace(stop_requested=local.stop_requested or any(
            member.outcome.stop_requested for member in self.members))
        restart = self.restart(outcome)
        for member in self.members:
            member.send(outcome=[outcome, restart])
        return outcome, restart


class Member(Rendezvous):
    """A launcher that connects to the Coordinator."""

    connection = None

    def join(self, ports):
        """See Coordinator.

        Raises:
            UsageError: if the coordinator expects another number of machines.
        """
        self.failed = self.failure_sent = False
        if self.connection and not self.connection.closed:
            self.send_request(ports)
        assignment = self.wait(lambda: self.poll_start(ports))
        self.attempt, self.restarts = assignment.attempt, assignment.restarts
        return assignment

    def send_request(self, ports):
        self.connection.send(
            join=JoinRequest(self.name, self.machines, self.attempt, self.restarts, ports))

    def poll_start(self, ports):
        """Return the Assignment once it has arrived, else None; connect where needed."""
        if self.connection is None or self.connection.closed:
            try:
                self.connection = Connection(socket.create_connection(self.address, timeout=1))
            except OSError:    # the coordinator has not started yet
                return None
            self.send_request(ports)
        for message in self.connection.receive():
            if 'refused' in message:
                raise UsageError(message['refused'])
            if 'start' in message:
                return Assignment(*message['start'])
        return None

    def has_failed(self, here):
        """See Coordinator."""
        if here and not self.failure_sent:
            self.failure_sent = True
            self.connection.send(failed=True)
        self.failed |= any('failed' in message for message in self.connection.receive())
        return here or self.failed or self.connection.closed

    def finish(self, local):
        """See Coordinator. Without a connection to it each machine decides for itself."""
        self.connection.send(done=local)
        while not self.connection.closed:
            for message in self.connection.receive():
                if 'outcome' in message:
                    outcome, restart = message['outcome']
                    self.attempt += restart
                    return Outcome(*outcome), restart
            time.sleep(POLL_SECONDS)
        if local.code and local.is_consequence:
            local = Outcome(1, local.stop_requested, message='failed: lost the connection to the '
                            'machine at {}:{}'.format(*self.address))
        return local, self.restart(local)
