"""Processes that wait for ever, or go on alone, when another one fails, ends or is a stranger."""

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from system.lockstep import Lockstep, PeerError


class Store:
    """What Lockstep needs of Paddle's store."""

    def __init__(self):
        self.value, self.there = None, threading.Event()

    def set(self, name, value):
        self.value = value
        self.there.set()

    def get(self, name):
        self.there.wait(10)
        return self.value


@pytest.fixture
def ranks(monkeypatch):
    """Three of them, in threads; before they connect a stranger does."""
    monkeypatch.setenv('PADDLE_TRAINER_ENDPOINTS', '127.0.0.1:1,127.0.0.1:2,127.0.0.1:3')
    store = Store()
    with ThreadPoolExecutor(3) as pool:
        main = pool.submit(Lockstep, 0, 3, store)
        host, port, _ = json.loads(store.get('lockstep'))
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
            others = [pool.submit(Lockstep, rank, 3, store) for rank in (1, 2)]
            found = [future.result(20) for future in (main, *others)]
    yield found
    for rank in found:
        close(rank)


def close(rank):
    for peer in rank.peers:
        with contextlib.suppress(OSError):    # ends a recv of another thread too
            peer.shutdown(socket.SHUT_RDWR)
        peer.close()


def meet(ranks, *broken):
    with ThreadPoolExecutor(len(broken)) as pool:
        return [future.result(20) for future in
                [pool.submit(rank.meet, it) for rank, it in zip(ranks, broken)]]


def test_all_learn_whether_one_is_broken(ranks):
    for broken in [(False, False, False), (True, False, False), (False, False, True),
                   (False, True, False), (True, True, True), (False, False, False)]:
        assert meet(ranks, *broken) == [any(broken)] * 3


def test_one_that_ended_is_noticed_by_all(ranks):
    """By the first process, and by the others when that one leaves."""
    def leaves(rank):
        with pytest.raises(PeerError, match='another process has ended'):
            rank.meet(False)
        close(rank)
        return True

    close(ranks[2])
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(leaves, ranks[:2], timeout=20))
