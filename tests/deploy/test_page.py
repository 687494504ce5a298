"""Catches a page that hides or repeats results, executes class names, or omits the data set."""

import base64
import json
import os
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from support.browser import BROWSER, Browser
from support.service import Service

from weights.files import read_weights, write_weights

for package in ('waitress', 'multipart'):
    pytest.importorskip(package, reason='requirements-deploy.txt is not installed')

WEIGHTS = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
IMAGES = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[::8]
PHONE = dict(width=390, height=844)    # CSS pixels


@pytest.fixture
def browser(tmp_path):
    if BROWSER is None:
        pytest.skip('no Chromium is installed')
    started = Browser(tmp_path / 'profile')
    yield started
    started.close()


def test_results_are_shown_once_and_fit_the_screen_of_a_phone(browser):
    service = Service()
    browser.call('Emulation.setDeviceMetricsOverride', deviceScaleFactor=1, mobile=True, **PHONE)
    browser.call('Page.navigate', url=f'http://127.0.0.1:{service.port}/')
    browser.wait_for('document.readyState === "complete" && health !== null')
    assert browser.value('byId("trained").textContent') == 'Trained on lit_data/train, 16 classes.'
    assert '1000 classes' in browser.value('byId("about").textContent')
    browser.value('byId("example").click()')
    browser.wait_for('!byId("result").hidden && byId("photo").naturalWidth > 0')
    names = browser.value('[...document.querySelectorAll(".name")].map(e => e.textContent)')
    assert len(names) == 5 and names[0] == 'plate923'
    assert browser.value('document.body.innerText').count('plate') == 1
    assert browser.value('/Answered in [0-9]+ ms/.test(byId("status").innerText)')
    box = browser.value('JSON.parse(JSON.stringify(byId("classes").getBoundingClientRect()))')
    assert 0 <= box['top'] < box['bottom'] <= PHONE['height'], box
    assert 0 <= box['left'] < box['right'] <= PHONE['width'], box
    assert browser.value('document.documentElement.scrollWidth') <= PHONE['width']
    if 'PAGE_PICTURE' in os.environ:    # save a screenshot
        picture = base64.b64decode(browser.call('Page.captureScreenshot')['data'])
        Path(os.environ['PAGE_PICTURE']).write_bytes(picture)
    service.end()


def test_upload_keyboard_errors_and_hostile_names(browser, tmp_path):
    """Class names and file names with HTML are shown as text."""
    state, _ = read_weights(WEIGHTS)
    evil = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
    write_weights(tmp_path / 'weights.pdparams', state,
                  {'class_names': [f'{evil} {index}' for index in range(1000)]})
    service = Service('--weights', tmp_path / 'weights.pdparams')
    photo = tmp_path / '<img src=x onerror=hurt()>.JPEG'
    photo.write_bytes(IMAGES[12].read_bytes())
    _, _, expected = service.predict(photo.read_bytes())

    for domain in ('Page', 'Network', 'Log', 'Runtime'):
        browser.call(f'{domain}.enable')
    address = f'http://127.0.0.1:{service.port}/'
    browser.call('Page.navigate', url=address)
    browser.wait_for('document.readyState === "complete" && health !== null')
    assert browser.value('byId("about").textContent') == (
        't2t_vit_7 at 48 pixels, 1000 classes, engine paddle')
    browser.choose(photo)
    browser.wait_for('!byId("result").hidden && byId("photo").naturalWidth > 0')
    names = browser.value(
        '[...document.querySelectorAll(".name")].map(e => e.firstChild.textContent)')
    assert names == [place['name'] for place in expected['top']] and evil in names[0]
    assert browser.value('document.querySelectorAll(".share")[0].textContent') == (
        f'{100 * expected["top"][0]["probability"]:.1f} %')
    assert browser.value('byId("photo").src.slice(0, 22)') == 'data:image/png;base64,'
    assert browser.value('byId("photo").naturalWidth') == Image.open(IMAGES[12]).width
    assert browser.value('/^Answered in [0-9]+ ms.$/.test(byId("status").textContent)')
    # The order of focus: the file, the example, the attention map.
    stops = []
    for _ in range(3):
        for kind in ('keyDown', 'keyUp'):
            browser.call('Input.dispatchKeyEvent', type=kind, key='Tab', code='Tab',
                         windowsVirtualKeyCode=9)
        stops.append(browser.value('document.activeElement.id'))
    assert stops == ['file', 'example', 'attend']
    for kind in ('keyDown', 'keyUp'):
        browser.call('Input.dispatchKeyEvent', type=kind, key=' ', code='Space', text=' ',
                     windowsVirtualKeyCode=32)
    browser.wait_for('byId("photo").src.startsWith("blob:")')
    bad = tmp_path / 'bad.png'
    bad.write_bytes(b'no image')
    browser.choose(bad)
    browser.wait_for('byId("status").classList.contains("failed")')
    assert 'not an image' in browser.value('byId("status").textContent')
    assert browser.value('byId("result").hidden') and browser.value('window.hurt') is None

    asked = {event['params']['request']['url'] for event in browser.events
             if event['method'] == 'Network.requestWillBeSent'}
    assert {url for url in asked if not url.startswith(('blob:', 'data:'))} == {
        address, address + 'health', address + 'predict?attention=1'}
    complaints = [event['params'] for event in browser.events
                  if event['method'] in ('Log.entryAdded', 'Runtime.exceptionThrown')]
    assert all('422' in json.dumps(entry) for entry in complaints), complaints
    service.end()
