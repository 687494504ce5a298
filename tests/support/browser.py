"""Chromium for tests of the page; BROWSER is its path, or None if it is not installed."""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome-headless-shell'))), None)
SECONDS_TO_ANSWER = 40


class Browser:
    """Headless Chromium, controlled by the DevTools protocol through two pipes.

    Raises:
        TimeoutError: by every method, if the browser does not answer.
    """

    def __init__(self, folder):
        to_browser, self._out = _pipe()
        self._in, from_browser = _pipe()
        # The protocol uses descriptors 3 and 4.
        self.process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{to_browser} 4>&{from_browser}', 'bash', BROWSER,
             '--headless', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu',
             '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
             f'--user-data-dir={folder}'],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(to_browser)
        os.close(from_browser)
        self._received = b''
        self.count, self.session, self.events = 0, None, []
        try:
            target = self.call('Target.createTarget', url='about:blank')['targetId']
        except BaseException:
            self.close()
            raise
        self.session = self.call('Target.attachToTarget', targetId=target,
                                 flatten=True)['sessionId']

    def call(self, method, **parameters):
        """Call a method of the protocol; events that arrive meanwhile are kept in `events`."""
        self.count += 1
        message = dict(id=self.count, method=method, params=parameters)
        if self.session:
            message['sessionId'] = self.session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        end = time.monotonic() + SECONDS_TO_ANSWER
        while True:
            answer = self._receive(end)
            if answer.get('id') == self.count:
                assert 'error' not in answer, answer
                return answer['result']
            self.events.append(answer)

    def _receive(self, end):
        while b'\0' not in self._received:
            if not select.select([self._in], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError('the browser does not answer')
            part = os.read(self._in, 1 << 16)
            assert part, 'the browser has died'
            self._received += part
        message, _, self._received = self._received.partition(b'\0')
        return json.loads(message)

    def value(self, expression):
        """The value of a JavaScript expression in the page."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def wait_for(self, expression):
        """Wait up to 30 s until a JavaScript expression is true."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self.value(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f'{expression} stayed false: ' + self.value(
            'document.body ? document.body.innerText : "no page"'))

    def choose(self, path):
        """Choose a file in the page's file input."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        field = self.call('DOM.querySelector', nodeId=root, selector='#file')['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=field, files=[str(path)])

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)    # with the browser's own processes
        self.process.wait()
        os.close(self._in)
        os.close(self._out)


def _pipe():
    """A pipe whose descriptors are neither 3 nor 4."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high
