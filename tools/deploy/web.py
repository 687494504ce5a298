"""The HTTP server: Waitress with a deadline for each request, JSON errors and a graceful shutdown.

Waitress parses and buffers requests in one thread, so that a slow client occupies a socket but no
thread, and calls the WSGI application in a thread pool. This module changes what follows:

- The timeout of Waitress restarts with every byte, so a client that sends one byte a minute keeps
  its connection. Here a request has one deadline.
- Idle connections fill its connection limit and block new clients. Here they are closed first.
- Its errors are plain text. Here they are JSON.
- It closes a connection while the client is still sending, so the client does not get the answer.
- It drops accepted connections at shutdown.
"""

import json
import logging
import math
import select
import socket
import time
from collections import Counter

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

BACKLOG = 1024              # connections that the kernel queues until they are accepted
LARGEST_HEADER = 16 << 10   # bytes of a request's first line and headers
OTHER_SOCKETS = 2           # counted by waitress as connections: the listener and its trigger
LINGER_SECONDS = 2          # for a client to read the answer to an incomplete request


class RequestTimeout(Error):
    code, reason = 408, 'Request Timeout'


class Answer(WSGITask):
    """Runs the application. Each connection has one request: there is no keep-alive."""

    def start(self):
        super().start()
        self.set_close_on_finish()


class ErrorAnswer(ErrorTask):
    """An error of waitress itself, as JSON like the errors of the application."""

    def execute(self):
        error = self.request.error
        body = json.dumps(dict(error=f'{error.reason}: {error.body}')).encode()
        self.status = f'{error.code} {error.reason}'
        self.response_headers.append(('Content-Type', 'application/json'))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection with a deadline to receive the request, and another to send the answer."""

    task_class = Answer
    error_task_class = ErrorAnswer
    answered = lingering = False

    def __init__(self, server, *args, **kwargs):
        super().__init__(server, *args, **kwargs)
        self.deadline = time.monotonic() + server.seconds

    def service(self):
        # Set before: once the answer is written, the other thread may close the connection.
        self.answered = True
        self.deadline = math.inf    # the application has its own time limit
        super().service()

    @property
    def unfinished(self):
        """Whether the request is incomplete."""
        return not self.requests and not self.answered

    def check_time(self, now):
        """Close a connection past its deadline. Called by the thread that reads and writes."""
        if self.requests:
            return
        if self.deadline == math.inf:    # the application has just answered
            self.deadline = now + self.server.seconds
        if now < self.deadline:
            return
        if self.request is None or self.answered:
            self.handle_close()
            return
        late, self.request = self.parser_class(self.adj), None
        late.error = RequestTimeout(f'the request took more than {self.server.seconds:g} seconds')
        with self.requests_lock:
            self.requests.append(late)
        self.server.add_task(self)

    def handle_close(self):
        """Close; after an answer wait for the client to close, as unread data would reset it."""
        if self.answered and not self.lingering and self.connected:
            self.lingering = True
            self.deadline = time.monotonic() + LINGER_SECONDS
            try:
                self.socket.shutdown(socket.SHUT_WR)
                return
            except OSError:    # the client has disconnected
                pass
        super().handle_close()

    def readable(self):
        return self.lingering or super().readable()

    def writable(self):
        return not self.lingering and super().writable()


def make_room(channels):
    """Close an unfinished connection: the oldest one of the address with the most of them.

    So idle connections and incomplete requests cannot block other clients.
    """
    unfinished = [channel for channel in channels if channel.unfinished]
    if unfinished:
        count = Counter(channel.addr[0] for channel in unfinished)
        max(unfinished, key=lambda channel: (count[channel.addr[0]], -channel.deadline)
            ).handle_close()


def listen(host, port):
    """Open a listening TCP socket.

    Raises:
        OSError: if the host is unknown, or the port is in use or not permitted.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def serve(application, listener, threads, most_bytes, seconds, stopped):
    """Serve a WSGI application until `stopped()` is true, then answer all accepted requests.

    Args:
        application: the WSGI application, called in a pool of threads.
        listener: a socket of listen().
        threads: size of the pool.
        most_bytes: largest body; a larger one is refused with 413 before it is read.
        seconds: limit to receive a request, and limit to send its answer.
        stopped: a function, called twice a second.
    """
    logging.getLogger('waitress').setLevel(logging.ERROR)    # it would log the length of its queue
    sockets = {}
    server = create_server(
        application, map=sockets, sockets=[listener], threads=threads, backlog=BACKLOG,
        # make_room keeps to `threads`; while all are busy, connections wait in the backlog.
        connection_limit=threads + OTHER_SOCKETS, max_request_body_size=most_bytes + 1,
        max_request_header_size=LARGEST_HEADER, ident='', log_socket_errors=False,
        # Disables its own timeout, and lets no slow reader of an answer block a thread.
        channel_timeout=10 ** 9, outbuf_high_watermark=1 << 30)
    server.channel_class, server.seconds = Channel, seconds

    def poll():
        wasyncore.loop(timeout=0.5, use_poll=True, map=sockets, count=1)
        for channel in list(server.active_channels.values()):
            channel.check_time(time.monotonic())
        if len(server.active_channels) >= threads:
            make_room(list(server.active_channels.values()))

    while not stopped():
        poll()
    for _ in range(BACKLOG):    # connections in the kernel's queue
        if not select.select([server.socket], [], [], 0)[0]:
            break
        server.handle_accept()
    wasyncore.dispatcher.close(server)    # the listener only
    for channel in list(server.active_channels.values()):
        if channel.request is None and channel.unfinished:
            # A spare connection of a browser may still send a request, for a second.
            channel.deadline = time.monotonic() + 1
    while server.active_channels:
        poll()
    server.task_dispatcher.shutdown()
