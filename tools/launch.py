"""Start a program once, or as N processes, on one machine or several, and again after a failure.

    python tools/launch.py tools/train.py config/lit_data.yaml --nproc 2 --restarts 3

Options stand anywhere behind the program. A first argument that is no option is the configuration;
what is not listed below goes to the program, and so does all that follows `--`, which then is
given no configuration. With one process and no restarts the program takes this one's place: its
signals and exit code are its own. Otherwise a signal goes on to every process, the exit code is
that of the process that failed first, on whichever machine (1 if a signal killed it), and the last
line names it. After a failure, but not after wrong input (2) or a stop on request (75), --restarts
starts all processes again, on all machines.
"""

from system import start

start.prepare_signals()    # before what takes time to import

# isort: split
import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from system import command
from system.job import Job, Process, variables
from system.meeting import Interrupted, free_ports, meet

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = 'config/lit_data.yaml'


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message):
        raise command.UsageError(message)


def parse(arguments):
    """Sort a command line; returns (options, arguments of the program).

    Raises:
        UsageError: for a launcher's option that makes no sense.
    """
    parser = Parser(prog='launch.py', usage='launch.py PROGRAM [CONFIG] [options] [-- ...]',
                    description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-c', '--config', metavar='FILE',
                        help=f'configuration (default: {DEFAULT_CONFIG})')
    parser.add_argument('--gpus', metavar='0,1', help='one process on each of these GPUs')
    parser.add_argument('--nproc', metavar='N', help='N processes, on a CPU too')
    parser.add_argument('--restarts', metavar='N', default='0',
                        help='start again from the last checkpoint after a failure, up to N times')
    parser.add_argument('--nnodes', metavar='N', default='1',
                        help='machines, on each of which the same command runs')
    parser.add_argument('--master', metavar='HOST:PORT',
                        help='where they meet: an address of the first one')
    parser.add_argument('--logs', metavar='FOLDER', type=Path,
                        help='for what each process prints (default: a new one in log/launch)')
    parser.add_argument('--default', metavar='SECTION.KEY=VALUE',
                        help='an override that those of the program override')
    parser.add_argument('--check', action='store_true', help='check the options, and end')
    end = arguments.index('--') if '--' in arguments else len(arguments)
    if arguments[:1] and not arguments[0].startswith('-'):
        program, given = arguments[0], arguments[1:end]
    else:
        program, given = None, arguments[:end]
    options, rest = parser.parse_known_args(given)
    if program is None:
        parser.error('name a program first: launch.py tools/train.py ...')
    options.program = program
    check(options)
    if end < len(arguments):
        return options, rest + arguments[end + 1:]
    if rest and not rest[0].startswith('-'):
        config = rest.pop(0)
        if options.config:
            parser.error(f'two configurations given: {options.config} and {config}')
        options.config = config
    default = ['-o', options.default] if options.default else []
    return options, ['-c', options.config or DEFAULT_CONFIG, *default, *rest]


def check(options):
    """Turn options from texts into what they mean."""
    def wrong(message):
        raise command.UsageError(message)

    if options.config == '':
        wrong('-c needs a file')
    if options.gpus is not None and not re.fullmatch(r'\d+(,\d+)*', options.gpus):
        wrong('--gpus takes numbers with commas between them (0,1,2,3), '
              f'not {options.gpus!r}')
    if options.gpus and options.nproc:
        wrong('give --gpus or --nproc, not both')
    for name, what, least in (('nproc', 'processes', 1), ('nnodes', 'machines', 1),
                              ('restarts', 'attempts', 0)):
        text = getattr(options, name)
        if text is not None:
            if not re.fullmatch(r'\d+', text) or int(text) < least:
                wrong(f'--{name} takes a number of {what}, not {text!r}')
            setattr(options, name, int(text))
    if options.nnodes > 1 and not re.fullmatch(r'[^:]+:\d+', options.master or ''):
        wrong(f'--nnodes {options.nnodes} needs --master HOST:PORT, the same on every machine')
    options.gpus = options.gpus.split(',') if options.gpus else []
    options.nproc = options.nproc or len(options.gpus) or 1


def gpus_for(options):
    """The GPU of each process here, as Paddle counts them; empty on a CPU.

    Raises:
        UsageError: where there are fewer than were asked for.
    """
    visible = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    if options.gpus:
        if gpu_count() == 0:
            raise command.UsageError(f'--gpus {",".join(options.gpus)}: Paddle sees no GPU here '
                                     '(no driver, or the CPU build); on a CPU use --nproc N')
        missing = [name for name in options.gpus if visible and name not in visible]
        if missing:
            raise command.UsageError(f'--gpus {",".join(missing)}: not in CUDA_VISIBLE_DEVICES='
                                     f'{",".join(visible)}')
        return [str(visible.index(name)) if visible else name for name in options.gpus]
    # Looking for a driver costs nothing, and asking Paddle seconds.
    if not (Path('/proc/driver/nvidia/version').exists() or shutil.which('nvidia-smi')):
        return []
    count = gpu_count()
    if 0 < count < options.nproc:
        raise command.UsageError(f'--nproc {options.nproc}: there are {count} GPUs here')
    return [str(number) for number in range(options.nproc)] if count else []


def gpu_count():
    """How many GPUs Paddle sees; asked in a process of its own, which takes seconds."""
    done = subprocess.run(
        [sys.executable, '-c', 'import paddle; print(paddle.device.cuda.device_count())'],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int((done.stdout.split() or ['0'])[-1]) if done.returncode == 0 else 0


def log_folder(arguments):
    """Make a folder for what the processes of this job print; returns its path.

    In log/launch/, else beside TRAIN.OUTPUT_DIR, as OUTPUT_DIR.launch/, else a temporary one.
    """
    name = f'{time.strftime("%Y%m%d-%H%M%S")}-{os.getpid()}'
    with contextlib.suppress(OSError):
        folder = ROOT / 'log' / 'launch' / name
        folder.mkdir(parents=True)
        return folder.relative_to(Path.cwd()) if Path.cwd() in folder.parents else folder
    with contextlib.suppress(OSError, ImportError, ValueError, SystemExit):
        import config as configuration  # which needs PyYAML

        parser = Parser(add_help=False)
        configuration.add_arguments(parser)
        given = parser.parse_known_args(arguments)[0]
        config = configuration.load_config(given.config, given.override)
        folder = Path(configuration.project_path(config.TRAIN.OUTPUT_DIR) + '.launch') / name
        folder.mkdir(parents=True)
        return folder
    return Path(tempfile.mkdtemp(prefix='launch-'))


def supervise(options, arguments, asked):
    """Run the processes of this machine, again after failures; returns the exit code.

    Args:
        asked: list to which every signal is added that asks to stop.
    """
    count = options.nproc
    alone = count * options.nnodes == 1
    gpus = gpus_for(options)
    program = [sys.executable, *([] if alone else ['-u']), options.program, *arguments]
    if not alone:
        logs = options.logs or log_folder(arguments)
        logs.mkdir(parents=True, exist_ok=True)
        say(f"Each process writes to {logs}/workerlog.N; this is the first one's output.")
    meeting = meet(options.master, options.nnodes, f'{socket.gethostname()} {os.getcwd()}',
                   options.restarts, asked)
    while True:
        place = meeting.join(free_ports(count + 1))
        processes = []
        for number in range(count):
            rank = place.first + number
            again = f'.{place.attempt}' if place.attempt else ''
            processes.append(
                Process(rank, program, {}) if alone else
                Process(rank, program, variables(place, number, count, gpus),
                        logs / f'workerlog.{number}{again}'))
        mine = Job(processes, asked).watch(meeting)
        verdict, again = meeting.settle(mine)
        if verdict.said and not (mine.shown and verdict.said == mine.said):
            say(verdict.said)
        if not again:
            return verdict.code
        say(f'Ended with exit code {verdict.code}: starting again from the last checkpoint, '
            f'{meeting.attempt} of {place.restarts}.')


def say(line):
    with contextlib.suppress(OSError, ValueError, AttributeError):    # nobody listens
        print(line, file=sys.stderr, flush=True)


def main(arguments):
    options, arguments = parse(arguments)
    if options.check:
        return 0
    if options.nproc * options.nnodes == 1 and options.restarts == 0:
        if options.gpus:
            gpus_for(options)
            os.environ['CUDA_VISIBLE_DEVICES'] = options.gpus[0]
        os.execv(sys.executable, [sys.executable, options.program, *arguments])
    asked = []
    start.on_stop_signals(lambda number, frame: asked.append(number))
    try:
        return supervise(options, arguments, asked)
    except Interrupted:
        say(start.reason(asked[0]))
        return start.exit_code(asked[0])


if __name__ == '__main__':
    command.run(main)
