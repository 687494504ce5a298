"""Processes that go on together or leave together, asked before every batch.

A collective is no place to wait in: gloo aborts the process after 30 seconds, or at once when
another process leaves, and no exception comes of it. Here processes wait in Python, for as long as
it takes, where signals are heard and a checkpoint can still be written. The first process
listens, the others connect to it; a byte goes each way.
"""

import hmac
import json
import os
import secrets
import socket

BROKEN, FINE = b'1', b'0'
TOKEN_BYTES = 16
SECONDS_TO_GREET = 10


class PeerError(RuntimeError):
    """Another process of the job failed, and says why itself."""


class Lockstep:
    """The connections between the processes of a job.

    Args:
        rank, world_size: which process this is, of how many.
        store: where the processes have met (set, get).
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
                    peer = self._greeted(listener.accept()[0], token)
                    if peer:
                        self.peers.append(peer)
        else:
            host, port, token = json.loads(store.get('lockstep'))
            self.peers = [socket.create_connection((host, port))]
            self.peers[0].sendall(token.encode())
        self.is_main = rank == 0
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def _greeted(self, connection, token):
        """The connection, if it comes of a process of this job."""
        connection.settimeout(SECONDS_TO_GREET)
        try:
            if hmac.compare_digest(connection.recv(TOKEN_BYTES, socket.MSG_WAITALL), token):
                connection.settimeout(None)
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def meet(self, broken):
        """Wait until every process is here; returns whether one of them is broken.

        Raises:
            PeerError: if one has ended.
        """
        mine = BROKEN if broken else FINE
        try:
            if self.is_main:
                answer = max([mine, *map(self._read, self.peers)])
                for peer in self.peers:
                    peer.sendall(answer)
            else:
                self.peers[0].sendall(mine)
                answer = self._read(self.peers[0])
        except OSError as error:
            raise PeerError(f'another process has ended ({error.strerror})') from error
        return answer == BROKEN

    def _read(self, peer):
        answer = peer.recv(1)
        if not answer:
            raise ConnectionResetError(0, 'its connection was closed')
        return answer
