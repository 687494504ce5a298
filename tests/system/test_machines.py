"""Catches jobs of several machines without a shared disk that do not restart, stop or agree.

Each machine is a launcher with its own folder.
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
from support.plain import write_recipe
from support.runs import assert_gone, assert_same_run, below

from system.command import UsageError
from system.job import Outcome
from system.rendezvous import create_rendezvous, free_ports

PLAIN = [sys.executable, 'tools/launch.py', 'tests/support/plain.py']
OVERRIDES = ['TRAIN.TRAIN_BATCH_SIZE=2', 'SCHEDULER.NUM_EPOCHS=12', 'TRAIN.VAL_EVERY=4']


class Machine:
    """A launcher with its own folder, as on one of two machines; it trains one process."""

    def __init__(self, folder, port, recipe, *options, override='TRAIN.SEED=1'):
        folder.mkdir(exist_ok=True)
        self.output = folder / f'output.{len(list(folder.glob("output.*")))}'
        self.run = folder / 'run'
        self.process = subprocess.Popen(
            [*PLAIN, str(recipe), '--nnodes', '2', '--master', f'127.0.0.1:{port}', '--nproc', '1',
             '--logs', f'{folder}/logs', *options, '-o', f'TRAIN.OUTPUT_DIR={self.run}',
             *OVERRIDES, override],
            cwd=ROOT, stdout=self.output.open('w'), stderr=subprocess.STDOUT,
            start_new_session=True)

    def text(self):
        return self.output.read_text()

    def wait_for(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.01)


@pytest.fixture
def machines(tmp_path):
    """A function that starts a Machine; those that are left are killed at the end."""
    started, recipe = [], write_recipe(tmp_path)

    def start(name, *options, **others):
        started.append(Machine(tmp_path / name, port, recipe, *options, **others))
        if len(started) == 1:    # the first one to listen coordinates
            started[0].wait_for(lambda: 'Waiting for 2 machines' in started[0].text())
        return started[-1]

    with free_ports(1) as (port,):
        yield start
        family = [pid for machine in started
                  for pid in [machine.process.pid, *below(machine.process.pid)]]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for machine in started:
            machine.process.wait()


def test_a_killed_process_or_machine_restarts_the_job_with_the_same_result(machines, tmp_path):
    """First a process of the second machine is killed, then its launcher."""
    first, second = machines('first', '--restarts', '2'), machines('second', '--restarts', '2')
    first.wait_for(lambda: list((first.run / 'checkpoints').glob('*.ckpt')))
    victim = below(second.process.pid)[0]    # the launcher's only child
    os.kill(victim, signal.SIGKILL)
    first.wait_for(lambda: 'going on from' in first.text())
    second.process.kill()
    family = below(second.process.pid)
    second.process.wait()
    assert_gone(family)
    again = machines('second', '--restarts', '2')
    assert (first.process.wait(timeout=200), again.process.wait(timeout=60)) == (0, 0), first.text()
    for attempt, why in ((1, f'rank 1 (pid {victim}) was killed by SIGKILL'),
                         (2, 'lost the connection to the machine at 127.0.0.1')):
        assert re.search(re.escape(f'failed: {why}') + '.*\n.*'
                         f'starting again from the last checkpoint, {attempt} of 2', first.text())
    assert '1 of 2' in second.text() and first.text().count('going on from') == 2
    assert not second.run.exists(), 'rank 0 alone writes'
    subprocess.run([*PLAIN, tmp_path / 'recipe.yaml', '--nproc', '2', '--logs', tmp_path / 'logs',
                    '-o', f'TRAIN.OUTPUT_DIR={tmp_path}/one', *OVERRIDES, 'TRAIN.SEED=1'],
                   cwd=ROOT, check=True, capture_output=True, timeout=200)
    assert_same_run(tmp_path / 'one', first.run)


def test_a_signal_to_one_machine_stops_all_of_them(machines):
    first, second = machines('first', '--restarts', '2'), machines('second', '--restarts', '2')
    first.wait_for(lambda: list((first.run / 'checkpoints').glob('*.ckpt')))
    second.process.send_signal(signal.SIGTERM)
    codes = [machine.process.wait(timeout=60) for machine in (first, second)]
    assert codes == [75, 75], first.text() + second.text()
    assert 'starting again' not in first.text() + second.text()


def test_machines_with_different_configurations_fail(machines):
    first, second = machines('first'), machines('second', override='TRAIN.SEED=2')
    assert [machine.process.wait(timeout=60) for machine in (first, second)] == [1, 1]
    for machine in (first, second):
        assert 'disagree: rank 0: TRAIN.SEED 1; rank 1: TRAIN.SEED 2\n' in machine.text()


def test_a_signal_ends_waiting_for_the_other_machine(machines):
    first = machines('first')
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(timeout=30) == 75
    assert first.text().splitlines()[-1] == 'stopped: SIGTERM'


# ---- messages between launchers

def rendezvous_of(names, **others):
    """One Rendezvous for each machine at one address; the first one coordinates."""
    with free_ports(1) as (port,):
        return [create_rendezvous(f'127.0.0.1:{port}', others.get(f'{name}_machines', len(names)),
                                  name, others.get(f'{name}_restarts', 3), []) for name in names]


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux shares a port in this way')
def test_the_port_of_the_store_is_kept_for_it():
    """Nobody else gets it between the launcher's choice and the time when Paddle listens."""
    with free_ports(3) as ports:
        assert len(set(ports)) == 3
        with socket.socket() as other, pytest.raises(OSError, match='in use'):
            other.bind(('', ports[0]))
        with socket.create_server(('', ports[0])) as store, \
                socket.create_connection(('127.0.0.1', ports[0])) as client:
            connection, _ = store.accept()
            with connection:
                assert connection.getpeername() == client.getsockname()


def call_all(machines, method, *arguments):
    """Call a method of all machines concurrently; return their results."""
    with ThreadPoolExecutor(len(machines)) as pool:
        calls = [pool.submit(getattr(machine, method), *given)
                 for machine, *given in zip(machines, *arguments)]
        return [call.result(timeout=30) for call in calls]


def test_ranks_follow_the_names_of_machines_not_the_order_of_arrival():
    machines = rendezvous_of(['lead', 'z', 'b'], z_restarts=1)
    machines[2].attempt = 1    # it has restarted, the others have not
    assignments = call_all(machines, 'join', [[1, 2], [3, 4, 5], [6, 7, 8, 9]])
    assert [assignment.first for assignment in assignments] == [0, 4, 1]    # in order of names
    for assignment in assignments:
        assert assignment[1:] == (['127.0.0.1:2', '127.0.0.1:7', '127.0.0.1:8', '127.0.0.1:9',
                                   '127.0.0.1:4', '127.0.0.1:5'], '127.0.0.1:1', 1, 1)


def test_all_machines_get_the_outcome_that_caused_the_others():
    machines = rendezvous_of(['lead', 'a', 'b'])
    call_all(machines, 'join', [[1, 2]] * 3)
    assert not any(call_all(machines, 'has_failed', [False] * 3))
    assert machines[2].has_failed(here=True)
    while not all(call_all(machines[:2], 'has_failed', [False] * 2)):
        time.sleep(0.01)
    outcomes = [Outcome(1, is_consequence=True, message='lost b'), Outcome(),
                Outcome(7, message='cause')]
    found = call_all(machines, 'finish', outcomes)
    assert found == [(Outcome(7, message='cause'), True)] * 3
    assert [machine.attempt for machine in machines] == [1] * 3
    # A second attempt over the same connections, with one machine that received a signal.
    call_all(machines, 'join', [[1, 2]] * 3)
    found = call_all(machines, 'finish',
                     [Outcome(), Outcome(9, stop_requested=True), Outcome()])
    assert found == [(Outcome(9, stop_requested=True), False)] * 3


def test_messages_of_other_programs_are_ignored():
    lead, other = rendezvous_of(['lead', 'other'])
    for text in (b'GET / HTTP/1.1\r\n\r\n', b'[1, 2]\n', b'{"join": 3}\n', b'{"done": 1}\n',
                 b'{"join": {}}\n', b'{"join": [1, 2, "a", [], 3]}\n', b'x' * (2 << 20), b''):
        with contextlib.suppress(OSError), socket.create_connection(lead.address) as client:
            client.setblocking(False)
            client.sendall(text)
            lead.poll()
    call_all([lead, other], 'join', [[1, 2]] * 2)


def test_another_number_of_machines_is_refused():
    lead, other = rendezvous_of(['lead', 'other'], other_machines=3)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(other.join, [1, 2])
        while not call.done():
            lead.poll()
        with pytest.raises(UsageError, match='--nnodes is 2 at --master and 3 here'):
            call.result()


@pytest.mark.parametrize('master', ['127.0.0.1:99999', 'no host:1', '127.0.0.1:x'])
def test_an_invalid_address_is_wrong_input(master):
    with pytest.raises(UsageError, match=f'--master {master}: '):
        create_rendezvous(master, 2, 'name', 0, [])
