"""Start a program once or as N processes, on one or several machines, and restart it on failure.

    python tools/launch.py tools/train.py config/lit_data.yaml --nproc 2 --restarts 3

Options may stand anywhere after the program. The first argument that is not an option is the
configuration. Unknown options go to the program, and so does everything after `--`; with `--` the
program gets no default configuration.

With one process and no restarts the program replaces this process: signals and the exit code are
its own. Otherwise signals are forwarded to every process. The exit code is that of the process
that failed first, on any machine (1 if a signal killed it), and the last line names it. After a
failure, but not after wrong input (2) or a requested stop (75), --restarts starts all processes
again, on all machines.
"""

from system import start

start.prepare_signals()    # before the slow imports

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

from system import command, terminal
from system.job import Job, Process, variables
from system.rendezvous import Interrupted, create_rendezvous, free_ports

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = 'config/lit_data.yaml'

# With less than half an image of 224 x 224 for each, what every process does once in a step takes
# longer than what several processes save.
LEAST_PIXELS = 224 ** 2 // 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError."""

    def error(self, message):
        raise command.UsageError(message)


def parse(arguments):
    """Split a command line into (options of the launcher, arguments of the program).

    Raises:
        UsageError: for a launcher option that is not valid.
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
                        help='where the others connect: an address of the first machine')
    parser.add_argument('--logs', metavar='FOLDER', type=Path,
                        help='for what each process prints (default: a new one in log/launch)')
    parser.add_argument('--default', metavar='SECTION.KEY=VALUE',
                        help='an override that those of the program override')
    parser.add_argument('--split-batch', action='store_true',
                        help='on a CPU, processes share the batch of the configuration')
    parser.add_argument('--per-core', action='store_true',
                        help='with --split-batch and without --nproc, as many processes as cores, '
                             f'each with at least {LEAST_PIXELS:,} pixels in a step (25 images of '
                             '32 x 32)')
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
    """Validate options and convert them from text in place.

    Raises:
        UsageError: for an option that is not valid.
    """
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


def gpus_for(options):
    """Return the GPU index of each process here, in Paddle's numbering; empty on a CPU.

    Raises:
        UsageError: if there are too few GPUs.
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
    if not has_driver():
        return []
    count = gpu_count()
    if 0 < count < options.nproc:
        raise command.UsageError(f'--nproc {options.nproc}: there are {count} GPUs here')
    return [str(number) for number in range(options.nproc)] if count else []


def has_driver():
    """Return whether there is a driver for GPUs; fast, where Paddle takes seconds to count them."""
    return Path('/proc/driver/nvidia/version').exists() or bool(shutil.which('nvidia-smi'))


def gpu_count():
    """Return how many GPUs Paddle sees; takes seconds, as it imports Paddle in a new process."""
    done = subprocess.run(
        [sys.executable, '-c', 'import paddle; print(paddle.device.cuda.device_count())'],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int((done.stdout.split() or ['0'])[-1]) if done.returncode == 0 else 0


def read_config(arguments):
    """Return the configuration that a program reads from its arguments.

    None if there is none, or a wrong one: the program then reports the error.
    """
    with contextlib.suppress(ImportError, OSError, ValueError, SystemExit):
        import config as configuration  # which needs PyYAML

        parser = Parser(add_help=False)
        configuration.add_arguments(parser)
        given = parser.parse_known_args(arguments)[0]
        return configuration.load_config(given.config, given.override)
    return None


def split_batch(count, arguments, per_core=False):
    """Let processes on a CPU share the batch of the configuration.

    Args:
        count: number of processes, or None.
        arguments: those of the program.
        per_core: without a number, as many as cores, where the batch can be shared and each gets
            LEAST_PIXELS of a step; else one.

    Returns:
        (number of processes, arguments of the program).
    """
    if not per_core:
        count = count or 1
    split = ['-o', 'TRAIN.SPLIT_BATCH=true', *arguments]
    config = read_config(split)
    if count == 1 or config is None or not config.TRAIN.SPLIT_BATCH:
        return count or 1, arguments
    if count is None:
        most = start.available_cores() // int(os.environ.get('OMP_NUM_THREADS') or 1)
        pixels = config.MODEL.IMAGE_SIZE ** 2
        count = next((n for n in range(most, 1, -1)
                      if (config.split_batch(n) or 0) * pixels >= LEAST_PIXELS), 1)
    return count, split if count > 1 else arguments


def log_folder(arguments):
    """Create a folder for the output of the processes of this job; return its path.

    In log/launch/; if that is not writable in OUTPUT_DIR.launch/, else a temporary folder.
    """
    name = f'{time.strftime("%Y%m%d-%H%M%S")}-{os.getpid()}'
    with contextlib.suppress(OSError):
        folder = ROOT / 'log' / 'launch' / name
        folder.mkdir(parents=True)
        return folder.relative_to(Path.cwd()) if Path.cwd() in folder.parents else folder
    config = read_config(arguments)
    with contextlib.suppress(OSError):
        if config:
            folder = ROOT / f'{os.path.expanduser(config.TRAIN.OUTPUT_DIR)}.launch' / name
            folder.mkdir(parents=True)
            return folder
    return Path(tempfile.mkdtemp(prefix='launch-'))


def supervise(options, arguments, signals):
    """Run the processes of this machine, with restarts; return the exit code.

    Args:
        signals: list to which the signal handler appends.
    """
    count = options.nproc
    alone = count * options.nnodes == 1
    gpus = gpus_for(options)
    program = [sys.executable, *([] if alone else ['-u']), options.program, *arguments]
    if not alone:
        logs = options.logs or log_folder(arguments)
        logs.mkdir(parents=True, exist_ok=True)
        say(f"Each process writes to {logs}/workerlog.N; this is the first one's output.")
    rendezvous = create_rendezvous(options.master, options.nnodes,
                                   f'{socket.gethostname()} {os.getcwd()}', options.restarts,
                                   signals)
    while True:
        with free_ports(count + 1) as ports:
            assignment = rendezvous.join(ports)
            processes = []
            for number in range(count):
                rank = assignment.first + number
                suffix = f'.{assignment.attempt}' if assignment.attempt else ''
                processes.append(
                    Process(rank, program, {}) if alone else
                    Process(rank, program, {**variables(assignment, number, count, gpus),
                                            terminal.VARIABLE: terminal.path()},
                            logs / f'workerlog.{number}{suffix}'))
            local = Job(processes, signals).watch(rendezvous)
        outcome, restart = rendezvous.finish(local)
        if outcome.message and not (local.is_printed and outcome.message == local.message):
            say(outcome.message)
        if not restart:
            return outcome.code
        say(f'Ended with exit code {outcome.code}: starting again from the last checkpoint, '
            f'{rendezvous.attempt} of {assignment.restarts}.')


def say(line):
    """Print a line to stderr, if that is open."""
    with contextlib.suppress(OSError, ValueError, AttributeError):    # closed
        print(f'{terminal.CLEAR if terminal.path() else ""}{line}', file=sys.stderr, flush=True)


def main(arguments):
    options, arguments = parse(arguments)
    if options.check:
        return 0
    if options.split_batch and options.nnodes == 1 and not options.gpus and not has_driver():
        options.nproc, arguments = split_batch(options.nproc, arguments, options.per_core)
    options.nproc = options.nproc or len(options.gpus) or 1
    if options.nproc * options.nnodes == 1 and options.restarts == 0:
        if options.gpus:
            gpus_for(options)
            os.environ['CUDA_VISIBLE_DEVICES'] = options.gpus[0]
        os.execv(sys.executable, [sys.executable, options.program, *arguments])
    signals = []
    start.on_stop_signals(lambda number, frame: signals.append(number))
    try:
        return supervise(options, arguments, signals)
    except Interrupted:
        say(start.reason(signals[0]))
        return start.exit_code(signals[0])


if __name__ == '__main__':
    command.run(main)
