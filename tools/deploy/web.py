"""Waitress for a small service: one deadline a request, room for all, errors as JSON, a clean end.

Waitress parses and buffers requests in one thread, so that slow clients cost a socket and no
thread, and calls the WSGI application in others. What is added here: its own time limit starts
again with every byte, and one byte a minute would hold a connection for ever; connections that send
nothing fill its limit, and nobody else is let in; its errors are plain text; it closes a connection
while the client is still sending, who then never sees why; and it drops what was accepted when it
ends.
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

BACKLOG = 1024              # connections that the system holds until they are accepted
LARGEST_HEADER = 16 << 10   # bytes of a request's first line and headers
OTHER_SOCKETS = 2           # that waitress counts as connections: the listener and its own waker
LINGER_SECONDS = 2          # for a client to read an answer to what it has not sent in full


class RequestTimeout(Error):
    code, reason = 408, 'Request Timeout'


class Answer(WSGITask):
    """An answer of the application. One connection carries one request: none is held idle."""

    def start(self):
        super().start()
        self.set_close_on_finish()


class ErrorAnswer(ErrorTask):
    """What waitress itself refuses, in the form of the application's refusals."""

    def execute(self):
        error = self.request.error
        body = json.dumps(dict(error=f'{error.reason}: {error.body}')).encode()
        self.status = f'{error.code} {error.reason}'
        self.response_headers.append(('Content-Type', 'application/json'))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection whose request has so many seconds to arrive, and its answer to be taken."""

    task_class = Answer
    error_task_class = ErrorAnswer
    answered = lingering = False

    def __init__(self, server, *args, **kwargs):
        super().__init__(server, *args, **kwargs)
        self.deadline = time.monotonic() + server.seconds

    def service(self):
        # Before and not after: once the answer is written, the other thread may close at any time.
        self.answered = True
        self.deadline = math.inf    # in the hands of the application, which has its own limit
        super().service()

    @property
    def unfinished(self):
        """Whether the request has not arrived in full."""
        return not self.requests and not self.answered

    def check_time(self, now):
        """Called by the thread that reads and writes; ends what takes too long."""
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
        """Close; behind an answer only after the client has, whose unread data would reset it."""
        if self.answered and not self.lingering and self.connected:
            self.lingering = True
            self.deadline = time.monotonic() + LINGER_SECONDS
            try:
                self.socket.shutdown(socket.SHUT_WR)
                return
            except OSError:    # the client has left already
                pass
        super().handle_close()

    def readable(self):
        return self.lingering or super().readable()

    def writable(self):
        return not self.lingering and super().writable()


def make_room(channels):
    """Close one connection whose request is unfinished: the oldest of the address with most such.

    So connections that stay idle or send half of a request take only each other's places.
    """
    unfinished = [channel for channel in channels if channel.unfinished]
    if unfinished:
        count = Counter(channel.addr[0] for channel in unfinished)
        max(unfinished, key=lambda channel: (count[channel.addr[0]], -channel.deadline)
            ).handle_close()


def listen(host, port):
    """A listening TCP socket.

    Raises:
        OSError: where the host is unknown, or the port taken or not for us.
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
    """Serve a WSGI application until `stopped()`; then finish all that was accepted.

    Args:
        application: the WSGI application; called in `threads` threads at once.
        listener: a socket of listen().
        most_bytes: largest body; a larger one is refused with 413 before it is read.
        seconds: for a request to arrive, and again for its answer to be taken.
        stopped: asked twice a second.
    """
    logging.getLogger('waitress').setLevel(logging.ERROR)    # the application tells of its load
    sockets = {}
    server = create_server(
        application, map=sockets, sockets=[listener], threads=threads, backlog=BACKLOG,
        # make_room keeps to `threads`; where all of them work, the others wait in the backlog.
        connection_limit=threads + OTHER_SOCKETS, max_request_body_size=most_bytes + 1,
        max_request_header_size=LARGEST_HEADER, ident='', log_socket_errors=False,
        # Its own clean-up stays out of the way, and no slow reader of an answer blocks a thread.
        channel_timeout=10 ** 9, outbuf_high_watermark=1 << 30)
    server.channel_class, server.seconds = Channel, seconds

    def turn():
        wasyncore.loop(timeout=0.5, use_poll=True, map=sockets, count=1)
        for channel in list(server.active_channels.values()):
            channel.check_time(time.monotonic())
        if len(server.active_channels) >= threads:
            make_room(list(server.active_channels.values()))

    while not stopped():
        turn()
    for _ in range(BACKLOG):    # what the system has accepted for us
        if not select.select([server.socket], [], [], 0)[0]:
            break
        server.handle_accept()
    wasyncore.dispatcher.close(server)    # the listener only
    for channel in list(server.active_channels.values()):
        if channel.request is None and channel.unfinished:
            # Browsers keep spare connections; one that speaks now still has time to.
            channel.deadline = time.monotonic() + 1
    while server.active_channels:
        turn()
    server.task_dispatcher.shutdown()
