"""Chromium for tests of the page; BROWSER is its path, or None if it is not installed."""

import json
import os
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'chrome-headless-shell'))), None)


class Browser:
    """Headless Chromium, controlled by the DevTools protocol through two pipes."""

    def __init__(self, folder):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def connect():    # the protocol uses descriptors 3 and 4
            low, high = os.dup(to_browser), os.dup(from_browser)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self.process = subprocess.Popen(
            [BROWSER, '--headless', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu',
             '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
             f'--user-data-dir={folder}'],
            close_fds=False, preexec_fn=connect, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self._reader = os.fdopen(self._in, 'rb')
        self.count, self.session, self.events = 0, None, []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target,
                                 flatten=True)['sessionId']

    def call(self, method, **parameters):
        """Call a method of the protocol; events that arrive meanwhile are kept in `events`."""
        self.count += 1
        message = dict(id=self.count, method=method, params=parameters)
        if self.session:
            message['sessionId'] = self.session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            data = b''
            while not data.endswith(b'\0'):
                byte = self._reader.read(1)
                assert byte, 'the browser has died'
                data += byte
            answer = json.loads(data[:-1])
            if answer.get('id') == self.count:
                assert 'error' not in answer, answer
                return answer['result']
            self.events.append(answer)

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
        self.process.kill()
        self.process.wait()
        self._reader.close()
        os.close(self._out)
