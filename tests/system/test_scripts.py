"""Catches scripts that choose a wrong Python, install wrongly, or lose arguments and exit codes.

They run as real processes with stub interpreters. Empty files next to a stub (`has_paddle`,
`has_pytest`) are its modules; it writes its command lines to a journal. `-m venv` creates another
stub, `-m pip install` adds modules. A real Python runs tools/launch.py, with the stub's name.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import below

ROOT = Path(__file__).resolve().parents[2]

STUB = r'''#!/usr/bin/env bash
here=$(dirname "$0")
case $1 in
    -u) shift ;;
esac
case $1 in
    -W) shift 2 ;;
    tools/launch.py) PYTHONHOME=$REAL_HOME exec -a "$0" "$REAL" "$@" ;;
esac
if [[ $1 == -c ]]; then
    case $2 in
        *'<= sys.version_info'*) [[ ! -e $here/too_old ]]; exit ;;
        *'version_info >= (3, 13)'*) [[ ! -e $here/is_313 ]]; exit ;;
        *samefile*) [[ $here -ef .venv/bin ]]; exit ;;
        *find_spec*) sleep "${STUB_LOOK:-0}"; [[ -e $here/has_$3 ]]; exit ;;
        *device_count*) [[ -e $here/has_gpu ]] && echo 4 || echo 0; exit ;;
        *ensurepip*) [[ ! -e $here/no_ensurepip ]]; exit ;;
        *) exit 0 ;;
    esac
fi
[[ $1 == --version || $* == '-m pip --version' ]] && { echo 'Python 3.11.0'; exit; }
printf '%s%s\n' "$0" "$(printf ' <%s>' "$@")" >>"$JOURNAL"    # one write: processes run together
case "$1 $2" in
    '-m venv') rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    '-m pip')
        sleep "${STUB_SLEEP:-0}"
        if [[ -n ${STUB_PIP_FAILS:-} ]]; then
            [[ -n ${STUB_HALF:-} ]] && touch "$here/has_paddle"
            exit 1
        fi
        [[ $* == *requirements.txt* || $* == *requirements-gpu.txt* ]] && touch "$here/has_paddle"
        [[ $* == *requirements-dev.txt* ]] && touch "$here/has_pytest" "$here/has_ruff"
        exit 0
        ;;
    '-m ruff') exit "${STUB_RUFF:-0}" ;;
    '-m pytest' | *tools/*)
        echo "devices=${CUDA_VISIBLE_DEVICES:-} rank=${PADDLE_TRAINER_ID:-} of" \
            "${PADDLE_TRAINERS_NUM:-} gpu=${FLAGS_selected_gpus:-} ${PADDLE_DISTRI_BACKEND:-}"
        [[ -n ${STUB_WAIT:-} ]] && exec sleep 30
        exit "${STUB_EXIT:-0}"
        ;;
esac
'''

RESUME = '<-o> <TRAIN.RESUME=auto>'    # added by train.sh before other overrides
BROKEN = '#!/usr/bin/env bash\necho "shim: no version is set" >&2\nexit 127\n'


class Machine:
    """A copy of the scripts in a path with spaces, and a PATH whose Pythons are stubs."""

    def __init__(self, root):
        self.repo = root / 'a checkout'
        self.repo.mkdir()
        shutil.copytree(ROOT / 'scripts', self.repo / 'scripts')
        shutil.copytree(ROOT / 'tools' / 'system', self.repo / 'tools' / 'system')
        shutil.copy(ROOT / 'tools' / 'launch.py', self.repo / 'tools')
        self.path = root / 'a path'
        self.path.mkdir()
        for tool in 'bash env dirname sed date mkdir cp touch rm sleep cat flock'.split():
            found = shutil.which(tool)
            if found:
                (self.path / tool).symlink_to(found)
        self.journal = root / 'journal'
        self.venv = self.repo / '.venv' / 'bin'
        self.env = {'PATH': str(self.path), 'JOURNAL': str(self.journal), 'HOME': str(root),
                    'REAL': os.path.realpath(sys.executable), 'REAL_HOME': sys.base_prefix}

    def add(self, name, *marks, text=STUB, folder=None):
        folder = folder or self.path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        for mark in marks:
            (folder / mark).touch()
        return str(folder / name)

    def start(self, script, *arguments, cwd='/', **env):
        return subprocess.Popen(
            ['bash', str(self.repo / 'scripts' / script), *arguments],
            cwd=cwd, env={**self.env, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script, *arguments, **env):
        process = self.start(script, *arguments, **env)
        process.out, process.err = process.communicate(timeout=60)
        return process

    def lines(self):
        """Return the journal without this test's folder and RESUME."""
        if not self.journal.exists():
            return []
        text = self.journal.read_text()
        for left_out in (f' {RESUME}', f'{self.repo}/', f'{self.path}/'):
            text = text.replace(left_out, '')
        return text.splitlines()

    def installs(self):
        return [line for line in self.lines() if '<pip>' in line or '<venv>' in line]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def installed(files, python='.venv/bin/python'):
    listed = ' '.join(f'<-r> <{name}>' for name in files)
    return f'{python} <-m> <pip> <install> <--quiet> <--disable-pip-version-check> {listed}'


HAS_DRIVER = Path('/proc/driver/nvidia/version').exists()
no_driver = pytest.mark.skipif(HAS_DRIVER, reason='this machine has an NVIDIA driver')

DEFAULT = '<-c> <config/lit_data.yaml>'


def test_nothing_is_installed_if_there_is_paddle(machine):
    machine.add('python3', 'has_paddle')
    assert machine.run('train.sh').returncode == 0
    assert machine.lines() == [f'python3 <tools/train.py> {DEFAULT}']
    assert not machine.venv.exists()


def test_the_first_working_interpreter_is_used(machine):
    machine.add('python3', text=BROKEN)
    machine.add('python3.13', text=BROKEN)
    machine.add('python3.11', 'has_paddle')
    machine.add('python3.10')
    assert machine.run('train.sh').returncode == 0
    assert machine.lines() == [f'python3.11 <tools/train.py> {DEFAULT}']


def test_python_variable_wins_and_may_be_relative(machine, tmp_path):
    machine.add('python3', 'has_paddle')
    other = machine.add('python', 'has_paddle', folder=tmp_path / 'other')
    result = machine.run('train.sh', cwd=tmp_path, PYTHON='other/python')
    assert result.returncode == 0, result.err
    assert machine.lines() == [f'{other} <tools/train.py> {DEFAULT}']


def test_activated_environment_comes_first(machine, tmp_path):
    machine.add('python3', 'has_paddle')
    other = machine.add('python', 'has_paddle', folder=tmp_path / 'an env' / 'bin')
    machine.run('train.sh', VIRTUAL_ENV=str(tmp_path / 'an env'))
    assert machine.lines() == [f'{other} <tools/train.py> {DEFAULT}']


@pytest.mark.parametrize('env', [{}, {'PYTHON': 'python3'}])
def test_no_interpreter_is_one_line(machine, env):
    machine.add('python3', 'too_old')
    result = machine.run('train.sh', **env)
    assert result.returncode == 2
    assert result.err.count('\n') == 1 and 'Python 3.9 to 3.13' in result.err
    assert machine.lines() == []


@no_driver
def test_the_venv_is_created_once(machine):
    machine.add('python3')
    assert machine.run('train.sh').returncode == 0
    assert machine.lines() == [
        'python3 <-m> <venv> <--clear> <.venv>',
        installed(['requirements.txt']),
        f'.venv/bin/python <tools/train.py> {DEFAULT}',
    ]
    assert not (machine.repo / '.venv' / 'unfinished').exists()
    machine.journal.unlink()
    assert machine.run('val.sh').returncode == 0
    assert machine.lines() == [f'.venv/bin/python <tools/val.py> {DEFAULT}']


@no_driver
def test_tests_install_both_files(machine):
    machine.add('python3')
    assert machine.run('test.sh', '-k', 'a b').returncode == 0
    assert machine.lines()[1:] == [
        installed(['requirements.txt', 'requirements-dev.txt']),
        '.venv/bin/python <-m> <ruff> <check> <--quiet> <.>',
        '.venv/bin/python <-m> <pytest> <-q> <-k> <a b>',
    ]


@no_driver
def test_test_sh_after_train_sh_installs_only_pytest(machine):
    machine.add('python3')
    machine.run('train.sh')
    machine.journal.unlink()
    own = machine.repo / '.venv'
    # Also with our environment activated: only that one may be modified.
    assert machine.run('test.sh', VIRTUAL_ENV=str(own)).returncode == 0
    assert machine.installs() == [installed(['requirements-dev.txt'])]


def test_pytest_is_not_installed_into_a_foreign_python(machine):
    machine.add('python3', 'has_paddle')
    result = machine.run('test.sh')
    assert result.returncode == 2
    assert result.err.count('\n') == 1 and 'requirements-dev.txt' in result.err
    assert machine.lines() == []


def test_gpu_build_with_a_driver(machine):
    machine.add('python3')
    machine.add('nvidia-smi', text='#!/usr/bin/env bash\necho "GPU 0: a card"\n')
    assert machine.run('train.sh').returncode == 0
    assert installed(['requirements-gpu.txt']) in machine.lines()


@no_driver
@pytest.mark.parametrize('text', ['exit 9', 'exit 0'])
def test_cpu_build_where_nvidia_smi_finds_nothing(machine, text):
    machine.add('python3')
    machine.add('nvidia-smi', text=f'#!/usr/bin/env bash\n{text}\n')
    assert machine.run('train.sh').returncode == 0
    assert installed(['requirements.txt']) in machine.lines()


def test_gpu_build_has_no_python_313(machine):
    machine.add('python3', 'is_313')
    machine.add('nvidia-smi', text='#!/usr/bin/env bash\necho "GPU 0: a card"\n')
    result = machine.run('train.sh')
    assert result.returncode == 2 and '3.9 to 3.12' in result.err
    assert machine.lines() == []


def test_no_ensurepip_is_one_line(machine):
    machine.add('python3', 'no_ensurepip')
    result = machine.run('train.sh')
    assert result.returncode == 2
    assert result.err.count('\n') == 1 and 'python3-venv' in result.err
    assert not machine.venv.exists()


@no_driver
def test_interrupted_installation_is_completed(machine):
    machine.add('python3')
    first = machine.run('train.sh', STUB_PIP_FAILS='1', STUB_HALF='1')
    assert first.returncode == 1
    assert (machine.venv / 'has_paddle').exists()
    assert not any('tools/train.py' in line for line in machine.lines())
    machine.journal.unlink()
    assert machine.run('train.sh').returncode == 0
    assert machine.lines() == [
        installed(['requirements.txt']),
        f'.venv/bin/python <tools/train.py> {DEFAULT}',
    ]


@no_driver
def test_venv_without_a_working_python_is_remade(machine):
    machine.add('python3')
    machine.venv.mkdir(parents=True)
    (machine.venv / 'python').symlink_to('gone')
    assert machine.run('train.sh').returncode == 0
    assert len(machine.installs()) == 2


@no_driver
@pytest.mark.skipif(not shutil.which('flock'), reason='needs flock')
def test_concurrent_scripts_install_once(machine):
    machine.add('python3')
    both = [machine.start('train.sh', STUB_SLEEP='1') for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(machine.installs()) == 2  # one venv, one pip
    assert sum('tools/train.py' in line for line in machine.lines()) == 2


@pytest.mark.parametrize('given, passed', [
    (['config/a b.yaml'], '<-c> <config/a b.yaml>'),
    (['-c', 'x.yaml', '--debug'], '<-c> <x.yaml> <--debug>'),
    (['--config=x.yaml'], '<-c> <x.yaml>'),
    (['x.yaml', '-o', 'A.B=c d', 'E.F='], '<-c> <x.yaml> <-o> <A.B=c d> <E.F=>'),
    (['-o', 'A.B=*', '-c', 'x.yaml'], '<-c> <x.yaml> <-o> <A.B=*>'),
    (['-o', 'A.B=$HOME', 'x.yaml'], f'{DEFAULT} <-o> <A.B=$HOME> <x.yaml>'),
    (['--nproc', '1', 'x.yaml'], '<-c> <x.yaml>'),
    (['--weights', 'w.pdparams'], f'{DEFAULT} <--weights> <w.pdparams>'),
])
@pytest.mark.parametrize('name', ['train', 'val'])
def test_arguments(machine, name, given, passed):
    machine.add('python3', 'has_paddle')
    result = machine.run(f'{name}.sh', *given)
    assert result.returncode == 0, result.err
    assert machine.lines() == [f'python3 <tools/{name}.py> {passed}']


@pytest.mark.parametrize('given', [
    ['--gpus'], ['--gpus='], ['--gpus', '0,x'], ['--nproc', 'two'], ['--nproc', '0'], ['-c'],
    ['--gpus', '0', '--nproc', '2'], ['a.yaml', '-c', 'b.yaml'],
])
def test_wrong_arguments_are_one_line(machine, given):
    machine.add('python3')
    result = machine.run('train.sh', *given)
    assert result.returncode == 2 and result.err.count('\n') == 1
    assert machine.lines() == []


@pytest.mark.parametrize('name', ['train', 'val'])
def test_help_needs_no_python(machine, name):
    result = machine.run(f'{name}.sh', '--help')
    assert result.returncode == 0
    assert f'bash scripts/{name}.sh [CONFIG]' in result.out and '--nproc' in result.out
    assert 'set -euo' not in result.out


@pytest.mark.parametrize('given, device', [
    (['--nproc', '3'], ' gloo'), (['--nproc=3'], ' gloo'),
    (['--gpus', '0,2,3'], '{} '), (['--gpus=0,2,3'], '{} ')])
def test_several_processes(machine, given, device):
    machine.add('python3', 'has_paddle', 'has_gpu')
    result = machine.run('train.sh', *given, 'x.yaml', '--debug')
    assert result.returncode == 0, result.err
    assert machine.lines() == ['python3 <tools/train.py> <-c> <x.yaml> <--debug>'] * 3
    (logs,) = machine.repo.glob('log/launch/*')
    said = [(logs / f'workerlog.{number}').read_text() for number in range(3)]
    assert said == [f'devices= rank={rank} of 3 gpu={device.format(gpu)}\n'
                    for rank, gpu in enumerate([0, 2, 3])]
    assert result.out == said[0]
    assert result.err.startswith(f'Each process writes to {logs.relative_to(machine.repo)}/')


CONFIGURATION = '''
from types import SimpleNamespace

def add_arguments(parser):
    for name in ('config', 'override'):
        parser.add_argument(f'-{name[0]}', dest=name, action='append')

def load_config(path, overrides):
    assert 'TRAIN.SPLIT_BATCH=true' in overrides
    return SimpleNamespace(TRAIN=SimpleNamespace(SPLIT_BATCH=True))
'''


@no_driver
def test_processes_on_a_cpu_share_the_batch(machine):
    machine.add('python3', 'has_paddle')
    (machine.repo / 'tools' / 'config.py').write_text(CONFIGURATION)
    for script in ('train', 'val'):
        machine.journal.unlink(missing_ok=True)
        assert machine.run(f'{script}.sh', '--nproc', '2', 'x.yaml').returncode == 0
        assert machine.lines() == [
            f'python3 <tools/{script}.py> <-o> <TRAIN.SPLIT_BATCH=true> <-c> <x.yaml>'] * 2


def test_one_gpu_needs_no_launcher(machine):
    machine.add('python3', 'has_paddle', 'has_gpu')
    result = machine.run('train.sh', '--gpus', '3')
    assert machine.lines() == [f'python3 <tools/train.py> {DEFAULT}']
    assert result.out.startswith('devices=3 rank= of  gpu= ')


@pytest.mark.parametrize('given', ['0', '0,1'])
def test_gpus_without_a_gpu_is_one_line(machine, given):
    machine.add('python3', 'has_paddle')
    result = machine.run('train.sh', '--gpus', given)
    assert result.returncode == 2
    assert result.err.count('\n') == 1 and '--nproc' in result.err
    assert machine.lines() == []


def test_the_job_fails_with_any_process(machine):
    program = machine.repo / 'tools' / 'train.py'
    program.write_text(
        'import os, sys\n'
        'rank = os.environ["PADDLE_TRAINER_ID"]\n'
        'print("I am", rank, "of", os.environ["PADDLE_TRAINERS_NUM"])\n'
        'sys.exit(3 if rank == "1" else 0)\n')
    result = subprocess.run([sys.executable, 'tools/launch.py', 'tools/train.py', '--nproc', '2'],
                            cwd=machine.repo, capture_output=True, text=True, timeout=60)
    assert result.stdout == 'I am 0 of 2\n' and result.returncode == 3
    assert re.match(r'failed: rank 1 \(pid \d+\) ended with exit code 3 ',
                    result.stderr.splitlines()[-1])
    (log,) = machine.repo.glob('log/launch/*/workerlog.1')
    assert log.read_text() == 'I am 1 of 2\n'


@pytest.mark.parametrize('script', ['train.sh', 'val.sh', 'test.sh'])
@pytest.mark.parametrize('code', [0, 1, 2])
def test_exit_code_passes_through(machine, script, code):
    machine.add('python3', 'has_paddle', 'has_pytest')
    assert machine.run(script, STUB_EXIT=str(code)).returncode == code


def test_a_style_error_fails_after_the_tests_have_run(machine):
    machine.add('python3', 'has_paddle', 'has_pytest', 'has_ruff')
    assert machine.run('test.sh', STUB_RUFF='1').returncode == 1
    assert machine.lines()[-1] == 'python3 <-m> <pytest> <-q>'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_program(machine, number):
    machine.add('python3', 'has_paddle')
    process = machine.start('train.sh', STUB_WAIT='1')
    process.stdout.readline()  # "devices=": the program runs
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == -number


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize('slow', ['STUB_LOOK', 'STUB_SLEEP'], ids=['looking', 'installing'])
def test_a_signal_ends_the_set_up(machine, slow, number, code):
    machine.add('python3')
    process = machine.start('train.sh', **{slow: '30'})
    deadline = time.monotonic() + 30
    asleep = []
    while not asleep:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):    # the process has just ended
            asleep = [pid for pid in below(process.pid)
                      if Path(f'/proc/{pid}/cmdline').read_bytes().endswith(b'sleep\x0030\0')]
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    os.kill(asleep[0], signal.SIGKILL)    # started by the stub
    process.communicate()
    assert not any('tools/' in line for line in machine.lines())


def test_training_resumes_by_default(machine):
    machine.add('python3', 'has_paddle')
    machine.run('train.sh', 'x.yaml', '-o', 'TRAIN.RESUME=false')
    assert machine.journal.read_text().strip().endswith(f'{RESUME} <-o> <TRAIN.RESUME=false>')
    machine.run('val.sh', 'x.yaml')
    assert machine.journal.read_text().count(RESUME) == 1


@pytest.mark.parametrize('code, runs', [(1, 3), (241, 3), (0, 1), (2, 1), (75, 1)])
def test_only_failures_cause_restarts(machine, code, runs):
    machine.add('python3', 'has_paddle')
    result = machine.run('train.sh', '--restarts', '2', STUB_EXIT=str(code))
    assert result.returncode == code
    assert len(machine.lines()) == runs
    assert result.err.count('starting again') == runs - 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_causes_no_restart(machine, number):
    machine.add('python3', 'has_paddle')
    process = machine.start('train.sh', '--restarts', '2', STUB_WAIT='1')
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert 'starting again' not in said
    assert len(machine.lines()) == 1


def test_several_machines_need_an_address(machine):
    machine.add('python3', 'has_paddle')
    result = machine.run('train.sh', '--nnodes', '2')
    assert result.returncode == 2 and '--master HOST:PORT' in result.err


def requirements(name):
    """Return {package: version bounds} of a requirements file."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith('#'):
            end = next((i for i, c in enumerate(line) if c in '<>='), len(line))
            found[line[:end]] = line[end:]
    return found


def test_gpu_requirements_differ_only_in_paddle_numpy_and_opencv():
    cpu, gpu = requirements('requirements.txt'), requirements('requirements-gpu.txt')
    assert cpu.pop('paddlepaddle') and gpu.pop('paddlepaddle-gpu')
    assert list(cpu) == list(gpu)
    differ = {name for name in cpu if cpu[name] != gpu[name]}
    assert differ == {'numpy', 'opencv-python-headless'}
