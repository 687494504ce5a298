"""Catches a traceback or a wrong exit code after an early signal or on a closed output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

TRAIN = [sys.executable, 'tools/train.py', '-c', 'config/lit_data.yaml', '-o']


def catches(pid, number):
    """Return whether a process has its own handler for a signal."""
    status = Path(f'/proc/{pid}/status').read_text()
    caught = int(status.partition('SigCgt:')[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def holds_paddle(pid):
    return 'libpaddle' in Path(f'/proc/{pid}/maps').read_text()


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


# prepare_signals() handles SIGUSR1; Python itself handles SIGINT from the start.
@pytest.mark.fresh_interpreter
@pytest.mark.parametrize('moment', ['at once', 'while Paddle is imported', 'before the run'])
@pytest.mark.parametrize('number, code, said', [
    (signal.SIGTERM, 75, 'stopped: SIGTERM'), (signal.SIGUSR1, 75, 'stopped: SIGUSR1'),
    (signal.SIGHUP, 75, 'stopped: SIGHUP'), (signal.SIGINT, 130, 'interrupted')],
    ids=['SIGTERM', 'SIGUSR1', 'SIGHUP', 'SIGINT'])
def test_a_signal_before_the_run_is_one_line(tmp_path, number, code, said, moment):
    process = subprocess.Popen([*TRAIN, f'TRAIN.OUTPUT_DIR={tmp_path}/run'], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: catches(process.pid, signal.SIGUSR1), process)
    if moment != 'at once':
        wait_until(lambda: holds_paddle(process.pid), process)
    if moment == 'before the run':    # a run first locks its folder
        wait_until(lambda: (tmp_path / '.run.lock').exists(), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f'{said}\n'), out + err


def test_sighup_stays_ignored_under_nohup():
    program = ('import signal; from system import start; start.prepare_signals(); '
               'signal.raise_signal(signal.SIGHUP); print("continued")')
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT / 'tools', capture_output=True, text=True,
        timeout=60, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, 'continued\n')


def test_a_signal_to_a_launcher_before_its_processes_handle_signals(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text('import time\nprint("ready", flush=True)\ntime.sleep(60)\n')
    process = subprocess.Popen(
        [sys.executable, 'tools/launch.py', program, '--nproc', '2', '--logs', tmp_path / 'logs',
         '--restarts', '3', '--'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and 'starting again' not in err


@pytest.mark.parametrize('code, word', [(2, 'error'), (3, 'failed'), (75, 'stopped'),
                                        (130, 'interrupted')])
def test_a_job_ends_in_the_words_of_its_exit_code(tmp_path, code, word):
    """For one that was asked to stop by a signal to its second process, for example."""
    program = tmp_path / 'program.py'
    program.write_text('import os, sys\nsys.exit(int(os.environ["PADDLE_TRAINER_ID"]) * '
                       f'{code})\n')
    done = subprocess.run([sys.executable, 'tools/launch.py', program, '--nproc', '2', '--logs',
                           tmp_path / 'logs', '--'], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(f'{word}: rank 1 (pid ')


SAY = '''
from system import start
start.prepare_signals()
import os, sys
from system import command

def main(arguments):
    print('x' * 200_000)
    if arguments:
        raise ValueError('no good')

command.run(main)
'''


@pytest.mark.parametrize('code', [0, 1, 2, 75])
def test_a_command_does_not_wait_for_what_paddle_does_at_its_exit(code):
    program = ('import atexit, time; from system import command, start; start.prepare(); '
               'atexit.register(time.sleep, 600); '
               f'command.run(lambda _: print("x" * 200_000) or {code})')
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT / 'tools', text=True,
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, 'x' * 200_000 + '\n', '')


@pytest.mark.parametrize('redirect, code', [('>&-', 0), ('>&- 2>&- <&-', 0), ('| true', 1),
                                            ('>/dev/full', 1)])
def test_a_closed_or_full_output_prints_no_traceback(redirect, code):
    shell = f'set -o pipefail; "{sys.executable}" -c "$0" {redirect}'
    done = subprocess.run(['bash', '-c', shell, SAY], capture_output=True, text=True, timeout=60,
                          env={**os.environ, 'PYTHONPATH': str(ROOT / 'tools')})
    assert done.returncode == code
    assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
    assert len(done.stderr.splitlines()) == (redirect == '>/dev/full')


def test_processes_continue_when_the_reader_of_the_launcher_ends(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text('import time\nfor i in range(20): print(i, flush=True); time.sleep(0.02)\n')
    shell = (f'set -o pipefail; "{sys.executable}" tools/launch.py "$0" --nproc 2 '
             f'--logs "{tmp_path}/logs" -- | head -n 1')
    done = subprocess.run(['bash', '-c', shell, program], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stdout) == (0, '0\n'), done.stderr
    assert (tmp_path / 'logs' / 'workerlog.0').read_text().splitlines()[-1] == '19'


def test_an_error_is_printed_when_stdout_is_closed():
    done = subprocess.run(['bash', '-c', f'"{sys.executable}" -c "$0" wrong >&-', SAY],
                          capture_output=True, text=True, timeout=60,
                          env={**os.environ, 'PYTHONPATH': str(ROOT / 'tools')})
    assert (done.returncode, done.stderr) == (1, 'failed: ValueError: no good\n')


def test_a_file_does_not_replace_a_closed_stream(tmp_path):
    """A new file gets the lowest free number, which would be that of the closed stream."""
    script = ('from system import start; start.prepare_signals(); import os\n'
              f'file = open({str(tmp_path / "file")!r}, "w"); print("stray")\n'
              'os.write(1, b"stray"); file.write("meant"); file.close()')
    subprocess.run(['bash', '-c', f'"{sys.executable}" -c "$0" >&-', script], check=True,
                   env={**os.environ, 'PYTHONPATH': str(ROOT / 'tools')}, timeout=60)
    assert (tmp_path / 'file').read_text() == 'meant'
