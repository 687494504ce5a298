"""Error messages and exit codes of all commands.

Exit codes: 0 success, 1 failure, 2 wrong input, 75 stopped and saved (the same command resumes),
130 interrupted. An exception class may set its own with an attribute `exit_code`, and the first
word of its message with `kind`.
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

# The beginning of the last line of a command that ended early.
LAST_LINE = re.compile(r'(error|failed|stopped|interrupted)\b')

_endings = []    # see before_exit()


class UsageError(ValueError):
    """A command line that is not valid."""

    exit_code = 2


class StopSignal(KeyboardInterrupt):
    """A signal to stop (system.start.STOP_SIGNALS); its argument is the signal's number."""


def parser(doc):
    """Return an argparse parser with the option --debug; `doc` is the docstring of a command."""
    result = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return result


def sub_command(commands, name, run, help):
    """Add a sub-command and return its parser; the parsed options have `run` as an attribute."""
    result = commands.add_parser(name, help=help, description=run.__doc__, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                        help='show the traceback of an error')
    result.set_defaults(run=run)
    return result


def run(main, arguments=None):
    """Run `main(arguments)` and exit with its return value as the exit code.

    An exception becomes one line on stderr, with the traceback only if --debug is given. So does
    a signal to stop, unless `main` handles it. A closed pipe on stdout ends the command silently
    with 1.
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
            text, code = str(error), getattr(error, 'exit_code', 1)
            # A package that few commands import; the others are looked for at the start.
            if isinstance(error, ModuleNotFoundError) and error.name:
                text, code = start.missing_package(error.name), 2
            kind = 'error' if code == 2 else getattr(error, 'kind',
                                                     f'failed: {type(error).__name__}')
            line = f'{kind}: {" ".join(text.split()) or "no message"}'
            if '--debug' in arguments:
                line = traceback.format_exc() + line
    start.on_stop_signals(lambda *_: os._exit(code))    # the process is exiting
    if line:
        with contextlib.suppress(OSError, ValueError):    # stderr is closed
            print(line, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:    # else Python prints an error on exit
        discard_stdout()
    for end in _endings:
        end(code in (0, 75))
    leave(code)


def before_exit(end):
    """Let run() call `end(succeeded)` last."""
    _endings.append(end)


def leave(code):
    """End this process, without Paddle's exit if it has imported Paddle.

    That exit may crash, or wait for ever, while a thread of a loader runs, and for another process
    that has ended. Nothing else is left to do at the exit: files are closed where they are written.
    """
    if 'paddle' in sys.modules:
        os._exit(code)
    sys.exit(code)


def discard_stdout():
    """Redirect stdout to os.devnull."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def has_no_reader(stream):
    """Return whether a stream is a pipe whose reading end is closed."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _raise(number, _frame):
    start.on_stop_signals(signal.SIG_IGN)    # further signals, until run() has printed its line
    raise StopSignal(number)
