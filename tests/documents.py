"""Runs every command of README.md and docs/ and prints a line each: command, seconds, ok or failed.

    python tests/documents.py                              # all pages, more than half an hour
    python tests/documents.py docs/deploy.md --only export

They run in temporary copies of the project, one a page, adapted to a laptop by
tests/support/documents.py, and need requirements.txt, -deploy.txt and -dev.txt. The exit code is 1
if one failed.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from support import documents


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))    # leaving nothing behind
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='*', metavar='PAGE', default=documents.PAGES,
                        help='pages; default: all')
    parser.add_argument('--only', default='', metavar='TEXT', help='commands that contain a text')
    parser.add_argument('--keep', metavar='FOLDER', help='a new folder for the copies, which stay')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders, failed = {}, 0    # each page has a folder of its own
        commands = documents.commands(options.pages)
        questions = [command for command in commands if command.text.startswith('curl ')]
        for command in commands:
            if options.only not in command.text or command in questions:
                continue    # curl's are sent to every service
            if command.not_run:
                print(f'  not run  {command.page}:{command.line}: {command.name}: '
                      f'{command.not_run}', flush=True)
                continue
            if command.page not in folders:
                folders[command.page] = documents.workspace(
                    Path(options.keep or temporary).resolve() / Path(command.page).stem)
            begin, verdict = time.monotonic(), 'ok'
            try:
                documents.run(command, folders[command.page], questions)
            except documents.Failure as error:
                failed, verdict = failed + 1, f'failed: {error}'
            print(f'{time.monotonic() - begin:7.1f} s  {command.page}:{command.line}: '
                  f'{command.name}: {verdict}', flush=True)
    print(f'{failed} failed')
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
