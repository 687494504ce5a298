"""Catches processes that hang, or continue alone, when another process fails or ends."""

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from system.lockstep import Lockstep, PeerError


class Store:
    """The part of Paddle's store that Lockstep uses."""

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
    """Three ranks, in threads; a foreign client connects before them."""
    monkeypatch.setenv('PADDLE_TRAINER_ENDPOINTS', '127.0.0.1:1,127.0.0.1:2,127.0.0.1:3')
    store = Store()
    with ThreadPoolExecutor(3) as pool:
        main = pool.submit(Lockstep, 0, 3, store)
        host, port, _ = json.loads(store.get('lockstep'))
        with socket.create_connection((host, port)) as client:
            client.sendall(b'GET / HTTP/1.1\r\n\r\n')
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


def synchronise(ranks, *failed):
    with ThreadPoolExecutor(len(failed)) as pool:
        return [future.result(20) for future in
                [pool.submit(rank.synchronise, it) for rank, it in zip(ranks, failed)]]


def test_every_rank_gets_the_failure_of_any_rank(ranks):
    for failed in [(False, False, False), (True, False, False), (False, False, True),
                   (False, True, False), (True, True, True), (False, False, False)]:
        assert synchronise(ranks, *failed) == [any(failed)] * 3


def test_an_ended_rank_raises_on_all_others(ranks):
    """First on rank 0, then on the others, when rank 0 closes its connections."""
    def raises_peer_error(rank):
        with pytest.raises(PeerError, match='another process has ended'):
            rank.synchronise(False)
        close(rank)
        return True

    close(ranks[2])
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(raises_peer_error, ranks[:2], timeout=20))


def test_no_rank_ends_before_all_others_do(ranks):
    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(rank.end, True) for rank in ranks[:2]]
        assert not any(wait(ends, 0.3).done)
        ends.append(pool.submit(ranks[2].end, True))
        assert len(wait(ends, 5).done) == 3


@pytest.mark.parametrize('failed', [0, 1, 2])
def test_a_rank_that_ends_early_is_seen_by_those_that_wait_for_a_batch(ranks, failed):
    """At once, in whatever order they have connected to rank 0, and before the third rank waits."""
    with ThreadPoolExecutor(3) as pool:
        try:
            end = pool.submit(ranks[failed].end, False)
            for number in {0, 1, 2} - {failed}:
                with pytest.raises(PeerError):
                    pool.submit(ranks[number].synchronise, False).result(5)
                ranks[number].end(False)
            end.result(5)
        finally:
            for rank in ranks:    # a thread that still waits would keep the pool from ending
                close(rank)
