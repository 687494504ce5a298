"""Catches a page that hides its answer, repeats it, or does not say what the weights know.

The page runs in headless Chromium, which is asked over its debugging pipe.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest
from support.service import Service

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='Chromium is not installed')
pytest.importorskip('waitress', reason='requirements-deploy.txt is not installed')
pytest.importorskip('multipart', reason='requirements-deploy.txt is not installed')
PHONE = dict(width=390, height=844)    # CSS pixels


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, folder, address):
        reads, self.write = os.pipe()
        self.read, writes = os.pipe()
        command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-sync',
                   '--disable-background-networking', '--disable-component-update',
                   '--disable-dev-shm-usage', '--remote-debugging-pipe',
                   f'--user-data-dir={folder}', 'about:blank']
        # It reads from descriptor 3 and writes to 4.
        self.process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{reads} 4>&{writes}', 'bash', *command],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        self.number, self.rest, self.session = 0, b'', {}
        target, = (each for each in self.ask('Target.getTargets')['targetInfos']
                   if each['type'] == 'page')
        self.session = dict(sessionId=self.ask(
            'Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId'])
        self.ask('Emulation.setDeviceMetricsOverride', deviceScaleFactor=1, mobile=True, **PHONE)
        self.ask('Page.navigate', url=address)

    def ask(self, method, **options):
        self.number += 1
        os.write(self.write, json.dumps(dict(
            id=self.number, method=method, params=options, **self.session)).encode() + b'\0')
        while True:
            while b'\0' not in self.rest:
                data = os.read(self.read, 1 << 16)
                assert data, 'Chromium has ended'
                self.rest += data
            text, _, self.rest = self.rest.partition(b'\0')
            answer = json.loads(text)
            if answer.get('id') == self.number:
                assert 'error' not in answer, answer
                return answer['result']

    def value(self, script):
        """What a JavaScript expression gives, once it gives something."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            value = self.ask('Runtime.evaluate', expression=script, returnByValue=True
                             )['result'].get('value')
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f'{script} stayed empty')

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            os.write(self.write, b'{"id": 0, "method": "Browser.close"}\0')
        self.process.wait(30)
        os.close(self.write)
        os.close(self.read)


def test_the_page_shows_its_answer_once_and_without_scrolling_on_a_phone(tmp_path):
    service = Service()
    with contextlib.closing(Browser(tmp_path, f'http://127.0.0.1:{service.port}/')) as browser:
        knows = browser.value('document.querySelector("#knows").textContent')
        assert knows == 'Trained on lit_data/train, 16 classes.'
        assert '1000 classes' in browser.value('document.querySelector("#about").textContent')
        browser.value('document.querySelector("#example").click() || true')
        names = browser.value(
            'document.querySelector("#result").hidden ? null : '
            'Array.from(document.querySelectorAll("#classes .name")).map(e => e.textContent)')
        assert len(names) == 5 and names[0] == 'plate923'
        shown = browser.value('document.body.innerText')
        assert shown.count('plate') == 1
        assert browser.value('/Answered in [0-9]+ ms/.exec(document.body.innerText)')
        box = browser.value('(({top, bottom, left, right}) => ({top, bottom, left, right}))'
                            '(document.querySelector("#classes").getBoundingClientRect())')
        assert 0 <= box['top'] < box['bottom'] <= PHONE['height'], box
        assert 0 <= box['left'] < box['right'] <= PHONE['width'], box
        assert browser.value('document.documentElement.scrollWidth') <= PHONE['width']
        if 'PAGE_PICTURE' in os.environ:    # to look at it
            import base64
            with open(os.environ['PAGE_PICTURE'], 'wb') as file:
                file.write(base64.b64decode(browser.ask('Page.captureScreenshot')['data']))
    service.end()
