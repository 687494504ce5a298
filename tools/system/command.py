"""What every command shares: errors for people and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped and saved (the same command goes on), 130
interrupted. An exception class may name its own by an attribute `exit_code`, and the word that
its line begins with by `kind`.
"""

import argparse
import os
import re
import signal
import sys
import traceback

# How the line begins on which a command ends early.
LAST_WORDS = re.compile(r'(error|failed|stopped|interrupted)\b')
SECONDS_TO_LEAVE = 10    # for a process of several; Paddle may wait for one that is gone


class UsageError(ValueError):
    """A command line that makes no sense."""

    exit_code = 2


def parser(doc):
    """An argparse parser described by a command's docstring, with --debug."""
    result = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return result


def run(main, arguments=None):
    """Run `main(arguments)` and leave the process with its exit code.

    An exception becomes one line on stderr; its traceback is shown only with --debug.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = main(arguments) or 0
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        code = 130
    except BrokenPipeError:    # the reader of our output, `head` for one, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if '--debug' in arguments:
            traceback.print_exc()
        code = getattr(error, 'exit_code', 1)
        said = ' '.join(str(error).split()) or 'no message'
        kind = 'error' if code == 2 else getattr(error, 'kind', f'failed: {type(error).__name__}')
        print(f'{kind}: {said}', file=sys.stderr)
    if code and 'PADDLE_TRAINER_ID' in os.environ:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)    # which kills
        signal.alarm(SECONDS_TO_LEAVE)
    sys.exit(code)
