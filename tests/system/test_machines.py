"""Would catch machines without a shared disk that do not find their way back to one run.

Two launchers stand for two machines: each has a folder of its own.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT
from support.runs import assert_gone, assert_same_run, below, run

from system.command import UsageError
from system.job import Verdict
from system.meeting import free_ports, meet


class Machine:
    """A launcher with a folder of its own, started as on one of two machines."""

    def __init__(self, folder, port, recipe, *options, override='TRAIN.SEED=1'):
        folder.mkdir(exist_ok=True)
        self.output = folder / f'said.{len(list(folder.glob("said.*")))}'
        self.run = folder / 'run'
        self.process = subprocess.Popen(
            ['bash', 'scripts/train.sh', str(recipe), '--nnodes', '2', '--master',
             f'127.0.0.1:{port}', '--nproc', '1', '--logs', f'{folder}/logs', *options,
             '-o', f'TRAIN.OUTPUT_DIR={self.run}', 'TRAIN.TRAIN_BATCH_SIZE=4', override],
            cwd=ROOT, stdout=self.output.open('w'), stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHON': sys.executable}, start_new_session=True)

    def said(self):
        return self.output.read_text()

    def wait_for(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.01)


@pytest.fixture
def machines(recipe, tmp_path):
    """Starts machines, and ends what is left of them."""
    (port,), started = free_ports(1), []

    def start(name, *options, **others):
        started.append(Machine(tmp_path / name, port, recipe, *options, **others))
        if len(started) == 1:    # the first one at the address that --master names is the first
            started[0].wait_for(lambda: 'Waiting for 2 machines' in started[0].said())
        return started[-1]

    yield start
    family = [pid for machine in started
              for pid in [machine.process.pid, *below(machine.process.pid)]]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for machine in started:
        machine.process.wait()


def test_machines_that_share_no_disk_come_back_from_any_loss(machines, recipe, tmp_path):
    """A process of the second one is killed, then the second one as a whole."""
    first, second = machines('first', '--restarts', '2'), machines('second', '--restarts', '2')
    first.wait_for(lambda: list((first.run / 'checkpoints').glob('*.ckpt')))
    victim = below(second.process.pid)[0]    # the launcher's only child
    os.kill(victim, signal.SIGKILL)
    first.wait_for(lambda: 'going on from' in first.said())
    second.process.kill()
    family = below(second.process.pid)
    second.process.wait()
    assert_gone(family)
    again = machines('second', '--restarts', '2')
    assert (first.process.wait(timeout=200), again.process.wait(timeout=60)) == (0, 0), first.said()
    for attempt, why in ((1, f'rank 1 (pid {victim}) was killed by SIGKILL'),
                         (2, 'the machine at 127.0.0.1 is gone')):
        assert re.search(re.escape(f'failed: {why}') + '.*\n.*'
                         f'starting again from the last checkpoint, {attempt} of 2', first.said())
    assert '1 of 2' in second.said() and first.said().count('going on from') == 2
    assert not second.run.exists(), 'the main process alone writes'
    run(recipe, tmp_path / 'one', 'TRAIN.SEED=1', processes=2)
    assert_same_run(tmp_path / 'one', first.run)


def test_a_signal_to_one_machine_stops_all_of_them(machines):
    first, second = machines('first', '--restarts', '2'), machines('second', '--restarts', '2')
    first.wait_for(lambda: list((first.run / 'checkpoints').glob('*.ckpt')))
    second.process.send_signal(signal.SIGTERM)
    assert [machine.process.wait(timeout=60) for machine in (first, second)] == [75, 75]
    assert 'starting again' not in first.said() + second.said()


def test_machines_with_different_configurations_say_so(machines):
    first, second = machines('first'), machines('second', override='TRAIN.SEED=2')
    assert [machine.process.wait(timeout=60) for machine in (first, second)] == [1, 1]
    for machine in (first, second):
        assert 'disagree: rank 0: TRAIN.SEED 1; rank 1: TRAIN.SEED 2\n' in machine.said()


def test_a_signal_ends_waiting_for_the_other_machine(machines):
    first = machines('first')
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(timeout=30) == 75
    assert first.said().splitlines()[-1] == 'stopped: SIGTERM'


# ---- what launchers say to each other

def meeting_of(names, **others):
    """Meetings of several machines at one address, the first of which leads."""
    (port,) = free_ports(1)
    return [meet(f'127.0.0.1:{port}', others.get(f'{name}_machines', len(names)), name,
                 others.get(f'{name}_restarts', 3), []) for name in names]


def together(meetings, method, *arguments):
    """Call a method of all at once; returns what each of them returns."""
    with ThreadPoolExecutor(len(meetings)) as pool:
        calls = [pool.submit(getattr(meeting, method), *given)
                 for meeting, *given in zip(meetings, *arguments)]
        return [call.result(timeout=30) for call in calls]


def test_all_learn_the_same_places_whatever_the_order_they_come_in():
    meetings = meeting_of(['lead', 'z', 'b'], z_restarts=1)
    meetings[2].attempt = 1    # it has been started again, and the others have not
    places = together(meetings, 'join', [[1, 2], [3, 4, 5], [6, 7, 8, 9]])
    assert [place.first for place in places] == [0, 4, 1], 'by name, behind the one that leads'
    for place in places:
        assert place[1:] == (['127.0.0.1:2', '127.0.0.1:7', '127.0.0.1:8', '127.0.0.1:9',
                              '127.0.0.1:4', '127.0.0.1:5'], '127.0.0.1:1', 1, 1)


def test_the_cause_is_told_and_not_what_followed_from_it():
    meetings = meeting_of(['lead', 'a', 'b'])
    together(meetings, 'join', [[1, 2]] * 3)
    assert not any(together(meetings, 'has_failed', [False] * 3))
    assert meetings[2].has_failed(here=True)
    while not all(together(meetings[:2], 'has_failed', [False] * 2)):
        time.sleep(0.01)
    verdicts = [Verdict(1, follows=True, said='lost b'), Verdict(), Verdict(7, said='cause')]
    found = together(meetings, 'settle', verdicts)
    assert found == [(Verdict(7, said='cause'), True)] * 3
    assert [meeting.attempt for meeting in meetings] == [1] * 3
    # And again, over the same connections, with one who has been asked to stop.
    together(meetings, 'join', [[1, 2]] * 3)
    found = together(meetings, 'settle', [Verdict(), Verdict(9, asked=True), Verdict()])
    assert found == [(Verdict(9, asked=True), False)] * 3


def test_a_stranger_at_the_port_changes_nothing():
    lead, other = meeting_of(['lead', 'other'])
    for text in (b'GET / HTTP/1.1\r\n\r\n', b'[1, 2]\n', b'{"join": 3}\n', b'{"done": 1}\n',
                 b'{"join": {}}\n', b'{"join": [1, 2, "a", [], 3]}\n', b'x' * (2 << 20), b''):
        with contextlib.suppress(OSError), socket.create_connection(lead.address) as stranger:
            stranger.setblocking(False)
            stranger.sendall(text)
            lead.look()
    together([lead, other], 'join', [[1, 2]] * 2)


def test_another_number_of_machines_is_refused():
    lead, other = meeting_of(['lead', 'other'], other_machines=3)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(other.join, [1, 2])
        while not call.done():
            lead.look()
        with pytest.raises(UsageError, match='--nnodes is 2 at --master and 3 here'):
            call.result()


@pytest.mark.parametrize('master', ['127.0.0.1:99999', 'no host:1', '127.0.0.1:x'])
def test_an_address_that_cannot_be(master):
    with pytest.raises(UsageError, match=f'--master {master}: '):
        meet(master, 2, 'name', 0, [])
