"""Catches downloads that are not whole, not the same, not over HTTPS, or begin again needlessly.

No published address was asked for these tests: tests/support/offers.py serves over TLS, with a
certificate of its own, on this machine.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from support.offers import CERTIFICATE, Offers, proxy
from support.processes import wait_until

from weights import download
from weights.download import DownloadError, fetch
from weights.files import WeightsError

CONTENT = bytes(range(256)) * 4096
OTHER = CONTENT[::-1]
A = '/a.bin'


@pytest.fixture
def offers(monkeypatch):
    monkeypatch.setenv('SSL_CERT_FILE', str(CERTIFICATE))
    for name in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    with Offers({A: CONTENT}) as running:
        yield running


@pytest.fixture
def get(offers, tmp_path):
    """Download A to a file and return the file's path; `said` has the lines for people."""
    def call(address=None, **options):
        path = tmp_path / 'cache' / 'a.bin'
        fetch(address or offers.address(A), path, options.pop('check', check), call.said.append,
              **dict(dict(timeout=0.5, tries=3, pause=0.001), **options))
        return path
    call.said = []
    return call


def check(path):
    """Stands for weights.files.read_weights."""
    if path.read_bytes()[:1] == b'<':
        raise WeightsError('begins like no format of weights')


def absent(tmp_path):
    """Whether the file is not there, under its name."""
    return not (tmp_path / 'cache' / 'a.bin').exists()


def test_a_file_is_downloaded_once_and_remembered(offers, get):
    path = get()
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert path.read_bytes() == CONTENT
    assert sorted(os.listdir(path.parent)) == ['a.bin', 'a.bin.json']
    record = json.loads((path.parent / 'a.bin.json').read_text())
    assert (record['address'], record['size'], record['sha256']) == (
        offers.address(A), len(CONTENT), digest)
    said = ' '.join(get.said)
    assert offers.address(A) in said and str(len(CONTENT)) in said and digest in said
    get()
    assert offers.seen == [(A, None)]


@pytest.mark.parametrize('fault', ['cut', 'stall'])
def test_an_interrupted_download_goes_on_where_it_stopped(offers, get, fault):
    offers.faults, half = [fault] * 2, len(CONTENT) // 2
    assert get().read_bytes() == CONTENT
    assert [asked for _, asked in offers.seen] == [
        None, f'bytes={half}-', f'bytes={half + half // 2}-']


def test_a_killed_download_leaves_no_file_and_goes_on(offers, get, tmp_path):
    offers.faults = ['stall']
    code = ('import pathlib, sys; sys.path.insert(0, "tools"); from weights.download import fetch; '
            'fetch(sys.argv[1], pathlib.Path(sys.argv[2]), print, print)')
    process = subprocess.Popen([sys.executable, '-c', code, offers.address(A),
                                tmp_path / 'cache' / 'a.bin'], cwd=ROOT)
    assert offers.stalled.wait(60)
    part = tmp_path / 'cache' / 'a.bin.part'
    assert wait_until(lambda: part.exists() and part.stat().st_size)
    process.kill()
    process.wait()
    assert absent(tmp_path)
    kept = part.stat().st_size
    assert 0 < kept <= len(CONTENT) // 2
    assert get().read_bytes() == CONTENT
    assert offers.seen[1:] == [(A, f'bytes={kept}-')]


def test_what_was_received_of_an_earlier_version_is_not_used(offers, get):
    offers.faults = ['cut']
    with pytest.raises(DownloadError, match='the same command goes on from there'):
        get(tries=1)
    offers.files[A] = OTHER
    assert get().read_bytes() == OTHER


def test_a_server_without_ranges_or_lengths(offers, get):
    offers.faults = ['cut', 'whole']
    path = get()
    assert path.read_bytes() == CONTENT
    for file in path.parent.iterdir():
        file.unlink()
    offers.faults = ['endless']
    assert get().read_bytes() == CONTENT


@pytest.mark.parametrize('faults, message, requests', [
    (['longer'] * 3, f'ended after {len(CONTENT)} of {len(CONTENT) + 1} bytes', 3),
    (['404'], 'the server answers 404 Not Found', 1),
    (['503'] * 3, 'the server answers 503', 3),
    (['page'], 'sends a web page in place of the file', 1),
    (['nameless page'], 'is not the file that was expected: begins like no format', 1),
    (['cut', 'shifted'], 'sends another part than was asked for', 2),
    (['to http://localhost/a.bin'], 'redirects to http://localhost/a.bin, and only https://', 1),
    (['to file:///etc/passwd'], "url 'file:///etc/passwd' is not allowed", 1),
])
def test_what_is_not_the_file_is_refused(offers, get, tmp_path, faults, message, requests):
    offers.faults = list(faults)
    with pytest.raises(WeightsError, match=message) as caught:
        get()
    assert offers.address(A) in str(caught.value) and '\n' not in str(caught.value)
    assert absent(tmp_path)
    assert 1 <= len(offers.seen) <= requests
    assert get().read_bytes() == CONTENT    # what was left behind does no harm


def test_a_file_that_is_too_large_is_refused(offers, get, tmp_path):
    for faults in ([], ['endless']):
        offers.faults = faults
        with pytest.raises(DownloadError, match='refused: it (has|is larger than) .* bytes'):
            get(largest=len(CONTENT) - 1)
        assert absent(tmp_path)
        assert (tmp_path / 'cache' / 'a.bin.part').stat().st_size == 0


def test_errors_of_the_server_that_pass_are_tried_again(offers, get):
    offers.faults = ['503', f'to {offers.address(A)}']
    assert get().read_bytes() == CONTENT
    assert len(offers.seen) == 3


def test_a_file_that_changes_later_is_refused(offers, get, tmp_path):
    path = get()
    path.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=f'{path}: has changed: its SHA-256 is .* remembers'):
        get()
    path.unlink()
    offers.files[A] = OTHER
    with pytest.raises(WeightsError, match=f'{offers.address(A)}: has changed'):
        get()
    assert absent(tmp_path)
    (path.parent / 'a.bin.json').unlink()
    assert get().read_bytes() == OTHER


def test_a_file_that_was_put_there_by_hand_is_accepted(offers, get, tmp_path):
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'a.bin').write_bytes(CONTENT)
    get()
    assert not offers.seen
    (tmp_path / 'cache' / 'a.bin').write_bytes(OTHER)
    with pytest.raises(WeightsError, match='has changed'):
        get()


def test_only_https_with_a_trusted_certificate(offers, get, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match='unknown url type: http'):
        get(offers.address(A, 'http'))
    monkeypatch.delenv('SSL_CERT_FILE')
    with pytest.raises(DownloadError, match='its certificate is not trusted'):
        get()
    assert not offers.seen and absent(tmp_path)


def test_offline_one_line_says_where_to_put_the_file(get, tmp_path):
    with pytest.raises(DownloadError, match='cannot be downloaded: Connection refused; or get it '
                       f'elsewhere and put it at {tmp_path}/cache/a.bin') as caught:
        get('https://localhost:9/a.bin')
    assert caught.value.exit_code == 1


def test_through_a_proxy(offers, get, monkeypatch):
    with proxy() as (address, asked):
        monkeypatch.setenv('https_proxy', address)
        monkeypatch.setenv('no_proxy', '')
        assert get().read_bytes() == CONTENT
    assert asked == [f'localhost:{offers.server.server_port}']


def test_two_at_once_download_once(offers, get, monkeypatch):
    monkeypatch.setattr(download, 'PIECE', 1 << 12)
    threads = [threading.Thread(target=get) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get().read_bytes() == CONTENT
    assert offers.seen == [(A, None)]


def test_a_cache_that_cannot_be_written(offers, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DownloadError, match='cannot be written: '):
        fetch(offers.address(A), tmp_path / 'file' / 'a.bin', check, print)
