"""Synchronises processes before every batch, so that all of them continue or all of them stop.

Waiting in a collective is not safe: gloo aborts the process after 30 seconds, or at once when
another process exits, without an exception. Here processes wait in Python without a time limit;
they handle signals and can still write a checkpoint. Rank 0 listens, the others connect to it; one
byte is sent each way.
"""

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import time

FAILED, OK = b'1', b'0'
TOKEN_BYTES = 16
SECONDS_TO_AUTHENTICATE = 10
SECONDS_TO_END = 10           # for other processes; one that has failed waits for one second


class PeerError(RuntimeError):
    """Another process of the job has failed; that process prints the reason."""


class Lockstep:
    """The connections between the processes of a job.

    Args:
        rank, world_size: rank of this process, and number of processes.
        store: key-value store of the job (methods set, get).
    """

    def __init__(self, rank, world_size, store):
        if rank == 0:
            host = os.environ['PADDLE_TRAINER_ENDPOINTS'].split(',')[0].rpartition(':')[0]
            token = secrets.token_hex(TOKEN_BYTES // 2).encode()
            with socket.create_server((host, 0)) as listener:
                store.set('lockstep', json.dumps(
                    [host, listener.getsockname()[1], token.decode()]).encode())
                self.peers = []
                while len(self.peers) < world_size - 1:
                    peer = self._authenticated(listener.accept()[0], token)
                    if peer:
                        self.peers.append(peer)
        else:
            host, port, token = json.loads(store.get('lockstep'))
            self.peers = [socket.create_connection((host, port))]
            self.peers[0].sendall(token.encode())
        self.is_main = rank == 0
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def _authenticated(self, connection, token):
        """Return the connection if it sends the token of this job, else close it."""
        connection.settimeout(SECONDS_TO_AUTHENTICATE)
        try:
            if hmac.compare_digest(connection.recv(TOKEN_BYTES, socket.MSG_WAITALL), token):
                connection.settimeout(None)
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def synchronise(self, failed):
        """Wait for all processes to call this; return whether any of them passed `failed`.

        Raises:
            PeerError: if one has ended.
        """
        mine = FAILED if failed else OK
        try:
            if self.is_main:
                answer = max([mine, *self._read_all()])
                for peer in self.peers:
                    peer.sendall(answer)
            else:
                self.peers[0].sendall(mine)
                answer = self._read(self.peers[0])
        except OSError as error:
            raise PeerError(f'another process has ended ({error.strerror})') from error
        return answer == FAILED

    def end(self, succeeded):
        """Wait until all processes call this, so that none exits in another one's collective.

        Args:
            succeeded: whether this process has done all that the others wait for. If not, they
                learn it at their next batch.
        """
        deadline = time.monotonic() + (SECONDS_TO_END if succeeded else 1)
        if not (self.is_main and succeeded):    # rank 0 ends when all others have
            self._close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.settimeout(max(deadline - time.monotonic(), 0.001))
                while peer.recv(1):
                    pass
        self._close()

    def _close(self):
        for peer in self.peers:
            with contextlib.suppress(OSError):    # the other process has ended
                peer.shutdown(socket.SHUT_WR)

    def _read_all(self):
        """Yield a byte of each peer, as they come: one that has ended is seen at once."""
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    yield self._read(key.fileobj)

    def _read(self, peer):
        answer = peer.recv(1)
        if not answer:
            raise ConnectionResetError(0, 'its connection was closed')
        return answer
