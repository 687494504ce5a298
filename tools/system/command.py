"""What every command shares: errors for people and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped and saved (the same command goes on), 130
interrupted. An exception class may name its own by an attribute `exit_code`, and the word that
its line begins with by `kind`.
"""

import argparse
import contextlib
import os
import re
import select
import signal
import sys
import traceback

from system import start

# How the line begins on which a command ends early.
LAST_LINE = re.compile(r'(error|failed|stopped|interrupted)\b')
SECONDS_TO_LEAVE = 10    # for a process of several; Paddle may wait for one that is gone


class UsageError(ValueError):
    """A command line that makes no sense."""

    exit_code = 2


class AskedToStop(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or SIGINT; its argument is the signal's number."""


def parser(doc):
    """An argparse parser described by a command's docstring, with --debug."""
    result = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return result


def sub_command(commands, name, run, help):
    """A parser for one of a command's sub-commands; its options have `run` as an attribute."""
    result = commands.add_parser(name, help=help, description=run.__doc__, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                        help='show the traceback of an error')
    result.set_defaults(run=run)
    return result


def run(main, arguments=None):
    """Run `main(arguments)` and leave the process with its exit code.

    An exception becomes one line on stderr; its traceback is shown only with --debug. So does a
    signal to stop, unless `main` handles it. Where nobody reads stdout any more, the command ends
    silently with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    line, code = '', 1
    try:
        start.on_stop_signals(_raise)
        code = main(arguments) or 0
        sys.stdout.flush()
    except SystemExit as error:    # of argparse
        code = error.code or 0
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        line, code = start.reason(number), start.exit_code(number)
    except Exception as error:
        if not (isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout)):
            code = getattr(error, 'exit_code', 1)
            kind = 'error' if code == 2 else getattr(error, 'kind',
                                                     f'failed: {type(error).__name__}')
            line = f'{kind}: {" ".join(str(error).split()) or "no message"}'
            if '--debug' in arguments:
                line = traceback.format_exc() + line
    start.on_stop_signals(lambda *_: os._exit(code))    # it leaves already
    if line:
        with contextlib.suppress(OSError, ValueError):    # nobody listens
            print(line, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:    # Python would complain as it ends
        discard_stdout()
    if code and 'PADDLE_TRAINER_ID' in os.environ:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)    # which kills
        signal.alarm(SECONDS_TO_LEAVE)
    sys.exit(code)


def discard_stdout():
    """Print to nobody from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def has_no_reader(stream):
    """Whether a stream is a pipe whose other end is closed."""
    looking = select.poll()
    looking.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in looking.poll(0))


def _raise(number, _frame):
    start.on_stop_signals(signal.SIG_IGN)    # one is enough, until run() has said so
    raise AskedToStop(number)
