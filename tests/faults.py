"""Hurts real training processes in every way it knows and writes down what happened.

    python tests/faults.py > docs/reliability.md

Every row is a run of tools/train.py on a part of lit_data (2 epochs, 26 steps, with dropout, drop
path, random crops and a loader process). "Same as unhurt" means: weights, optimizer state and all
figures of the log equal those of a run that was left alone, byte for byte.
"""

import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conftest
import paddle
from support.runs import (
    assert_same_run,
    below,
    command,
    kill_often,
    ranks_of,
    wait_for,
    without_roots_rights,
    write_recipe,
)

ROOT = conftest.ROOT


def finish(start, **options):
    began = time.monotonic()
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)
    return done, time.monotonic() - began


def last_line(text):
    return text.strip().splitlines()[-1].strip() if text.strip() else ''


def same(one, two):
    try:
        assert_same_run(one, two)
    except AssertionError:
        return 'NOT the same as unhurt'
    return 'same as unhurt'


class Faults:
    """Every method that is a fault returns (what was done, exit code, what happened)."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.recipe = write_recipe(self.folder)
        self.unhurt = {}
        for processes in (1, 2):
            self.unhurt[processes] = self.folder / f'unhurt{processes}'
            done, _ = finish(command(self.recipe, self.unhurt[processes], processes=processes))
            assert done.returncode == 0, done.stderr

    def kills_at_random_moments(self):
        run = self.folder / 'kills'
        kill_often(command(self.recipe, run), kills=8, seed=3, signal_all=False)
        return 'SIGKILL at 8 random moments, saving included', 0, same(self.unhurt[1], run)

    def kills_of_two_processes(self):
        run = self.folder / 'kills2'
        kill_often(command(self.recipe, run, processes=2), kills=4, seed=4, signal_all=True)
        return 'two processes, SIGKILL to all at 4 random moments', 0, same(self.unhurt[2], run)

    def asked_to_stop(self, number):
        run = self.folder / signal.Signals(number).name
        start = command(self.recipe, run)
        process = subprocess.Popen(start, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        for line in process.stdout:
            if 'Step [6/' in line:
                break
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        done, _ = finish(start)
        assert done.returncode == 0, done.stderr
        said = last_line(error).split(';')[0]
        return (f'{signal.Signals(number).name}, then the same command again', process.returncode,
                f'"{said}"; resumed: {same(self.unhurt[1], run)}')

    def sigterm(self):
        return self.asked_to_stop(signal.SIGTERM)

    def sigint(self):
        return self.asked_to_stop(signal.SIGINT)

    def sigusr1(self):
        return self.asked_to_stop(signal.SIGUSR1)

    def time_limit(self):
        run, starts = self.folder / 'limit', 0
        while True:
            done, _ = finish(command(self.recipe, run, f'TRAIN.TIME_LIMIT_HOURS={3 / 3600}'))
            starts += 1
            if done.returncode != 75:
                break
        return (f'TRAIN.TIME_LIMIT_HOURS of 3 seconds, started {starts} times', '75, at last 0',
                same(self.unhurt[1], run))

    def damaged(self, how, change):
        run = self.folder / how.replace(' ', '_')
        subprocess.run(['cp', '-r', self.unhurt[1], run], check=True)
        newest = max((run / 'checkpoints').iterdir())
        newest.write_bytes(change(newest.read_bytes()))
        done, _ = finish(command(self.recipe, run))
        named = any('passed over' in line and newest.name in line
                    for line in done.stdout.splitlines())
        return (f'newest checkpoint {how}', done.returncode,
                f'{"named and passed over" if named else "NOT named"}, the one before was used: '
                f'{same(self.unhurt[1], run)}')

    def cut_off(self):
        return self.damaged('cut off', lambda content: content[:-1000])

    def bit_flipped(self):
        middle = 20_000_000
        return self.damaged('with one bit flipped', lambda content: (
            content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]))

    def disk_full(self):
        run = self.folder / 'full'
        limit = 30 << 20    # weights (17 MB) fit, checkpoints (51 MB) don't

        def small_disk():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        done, _ = finish(command(self.recipe, run), preexec_fn=small_disk)
        warned = sum('no checkpoint was saved' in line for line in done.stdout.splitlines())
        equal = (run / 'last.pdparams').read_bytes() == (
            self.unhurt[1] / 'last.pdparams').read_bytes()
        return ('files over 30 MB cannot be written (RLIMIT_FSIZE)', done.returncode,
                f'{warned} warnings, trained to the end, weights '
                f'{"same as unhurt" if equal else "NOT the same"}')

    def hurt_rank(self, number):
        run = self.folder / f'rank_{signal.Signals(number).name}'
        process = subprocess.Popen(
            command(self.recipe, run, 'SCHEDULER.NUM_EPOCHS=1000', processes=2), cwd=ROOT,
            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        while not (run / 'train.log').exists() or 'Step [4/' not in (run / 'train.log').read_text():
            time.sleep(0.1)
        family = below(process.pid)
        os.kill(family[1], number)    # the launcher's second child
        began = time.monotonic()
        _, error = process.communicate(timeout=120)
        code, seconds = process.returncode, time.monotonic() - began
        time.sleep(5)
        left = [pid for pid in family if Path(f'/proc/{pid}').exists()]
        os.killpg(process.pid, signal.SIGKILL) if left else None
        return (f'{signal.Signals(number).name} to one of two processes', code,
                f'job ended after {seconds:.0f} s, {len(left)} processes left behind, '
                f'"{re.sub("pid [0-9]+", "pid N", last_line(error).split(" (its")[0])}"')

    def killed_rank(self):
        return self.hurt_rank(signal.SIGKILL)

    def hung_rank(self):
        return self.hurt_rank(signal.SIGSTOP)

    def restarts(self):
        run = self.folder / 'restarts'
        log = run / 'train.log'
        process = subprocess.Popen(
            ['bash', 'scripts/train.sh', str(self.recipe), '--nproc', '2', '--restarts', '2', '-o',
             f'TRAIN.OUTPUT_DIR={run}', 'TRAIN.TRAIN_BATCH_SIZE=4'], cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, 'PYTHON': sys.executable})
        while not log.exists() or 'Step [6/' not in log.read_text():
            time.sleep(0.05)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        _, error = process.communicate(timeout=200)
        again = sum('starting again' in line for line in error.splitlines())
        return ('SIGKILL to one of two processes under train.sh --restarts 2', process.returncode,
                f'started again {again} time(s): {same(self.unhurt[2], run)}')

    def loader_worker(self):
        run = self.folder / 'worker'
        process = subprocess.Popen(
            command(self.recipe, run, 'SCHEDULER.NUM_EPOCHS=1000'), cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in process.stdout:
            if 'Step [4/' in line:
                break
        workers = []
        while not workers:
            workers = below(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        began = time.monotonic()
        _, error = process.communicate(timeout=120)
        said = last_line(error)
        named = f'pid {workers[0]}' in said and 'lit_data/train/' in said
        return ('SIGKILL to a loader process', process.returncode,
                f'ended after {time.monotonic() - began:.0f} s with a line that '
                f'{"names it and its images" if named else "DOES NOT NAME it: " + said}')

    def read_only(self):
        run = self.folder / 'read_only'
        process = subprocess.Popen(command(self.recipe, run), cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=without_roots_rights)
        wait_for(process, r'Step \[6/')
        for path in (run / 'checkpoints', run):
            path.chmod(0o500)
        output, _ = process.communicate(timeout=120)
        for path in (run, run / 'checkpoints'):
            path.chmod(0o700)
        warned = output.count('no checkpoint was saved')
        done, _ = finish(command(self.recipe, run))
        assert done.returncode == 0, done.stderr
        return ('the run\'s folder becomes read-only', process.returncode,
                f'{warned} warnings, trained to the end; the checkpoint before was whole: started '
                f'again, {same(self.unhurt[1], run)}')

    def not_finite(self):
        run = self.folder / 'nan'
        done, _ = finish(command(self.recipe, run, 'SCHEDULER.USE_WARMUP=false',
                                 'SCHEDULER.BASE_LR=1e30', 'TRAIN.MAX_BAD_STEPS=3'))
        return ('a rate of 1e30, MAX_BAD_STEPS 3', done.returncode,
                f'"{last_line(done.stderr)[:90]} ..."')


FAULTS = ['kills_at_random_moments', 'kills_of_two_processes', 'sigterm', 'sigint', 'sigusr1',
          'time_limit', 'cut_off', 'bit_flipped', 'disk_full', 'read_only', 'killed_rank',
          'hung_rank', 'restarts', 'loader_worker', 'not_finite']


def main():
    print('# What was done to training runs, and what happened\n')
    print('Written by `python tests/faults.py > docs/reliability.md`, with Paddle '
          f'{paddle.__version__}, Python {platform.python_version()}, on a CPU with gloo.\n')
    print(__doc__.split('\n\n')[2].strip().replace('\n', ' ') + '\n')
    print('| fault | exit code | what happened | seconds |')
    print('| --- | --- | --- | --- |', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(folder)
        for name in FAULTS:
            began = time.monotonic()
            done, code, happened = getattr(faults, name)()
            seconds = time.monotonic() - began
            print(f'| {done} | {code} | {happened.replace(folder, "RUNS")} | {seconds:.0f} |',
                  flush=True)


if __name__ == '__main__':
    main()
