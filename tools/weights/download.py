"""Download a file over HTTPS, once: resumed after an interruption, complete or absent.

The standard library's urllib is enough: it verifies certificates (SSL_CERT_FILE names others) and
uses the proxies of the environment (https_proxy, no_proxy); a library would be one more dependency.
Beside each file lies NAME.json with its address, size and SHA-256. The file must match it whenever
it is used, and if it is downloaded again.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from weights.files import WeightsError, shown
from weights.writer import replacing

LARGEST = 2 << 30          # bytes of a file
PIECE = 1 << 18            # bytes of one read
SECONDS_BETWEEN_LINES = 10    # of progress, if stderr is no terminal


class DownloadError(WeightsError):
    """A file that can't be downloaded: one line with the address and the reason."""

    exit_code = 1
    kind = 'failed'


def fetch(address, path, check, report, timeout=30, tries=6, pause=1.0, largest=LARGEST):
    """Make sure that `path` holds the file that is offered at `address`.

    Only one process downloads; others wait for it. A file that was put there by hand is accepted.

    Args:
        address: https://...; redirects to other protocols are refused.
        path: pathlib.Path; its folder is created.
        check: called with the path of a new file; raises WeightsError if it is not the right one.
        report: called with each line for people.
        timeout: seconds without a byte before a connection counts as interrupted.
        tries: connections before giving up. What was received is kept for the next call.
        pause: seconds before the second connection; doubled for each one after it.
        largest: size limit in bytes.

    Raises:
        DownloadError: if it cannot be downloaded.
        WeightsError: if the file fails `check`, or differs from what NAME.json remembers.
    """
    record = path.with_name(f'{path.name}.json')
    if path.exists() and 'sha256' in _read_record(record):
        _require_same(path, record, path)
        return
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with open(part, 'ab') as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not path.exists():    # another process may have downloaded it meanwhile
                    _Download(address, path, record, file, report, timeout, largest).run(
                        tries, pause)
                    _accept(part, record, check, address, report)
                    with replacing(path) as temporary:
                        os.replace(part, temporary)
                    return
        _accept(path, record, check, address, report)
    except OSError as error:
        raise DownloadError(f'{path}: cannot be written: {error.strerror}') from error


class _Download:
    """Receives a file in as many connections as needed, behind what is already there."""

    def __init__(self, address, path, record, file, report, timeout, largest):
        self.address, self.path, self.record, self.file = address, path, record, file
        self.report, self.timeout, self.largest = report, timeout, largest
        self.opener = _opener()
        remembered = _read_record(record)
        # Bytes of another file, or of one whose version is unknown, are of no use.
        self.validator = remembered.get('validator')
        self.size = remembered.get('size')
        if remembered.get('address') != address or not self.validator:
            file.truncate(0)

    def run(self, tries, pause):
        for attempt in range(tries):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                if self._received() == self.size or self._connect():
                    return
                reason = f'the connection ended after {self._received()} of {self.size} bytes'
            except urllib.error.HTTPError as error:
                reason = f'the server answers {error.code} {error.reason}'
                if error.code == 416:    # nothing behind the bytes that are here
                    self.file.truncate(0)
                elif error.code < 500 and error.code not in (408, 429):
                    break
            except urllib.error.URLError as error:
                reason = getattr(error.reason, 'strerror', None) or str(error.reason)
                if isinstance(error.reason, ssl.SSLCertVerificationError):
                    reason = f'its certificate is not trusted ({error.reason.verify_message})'
                    break
            except TimeoutError:
                reason = f'no byte for {self.timeout:g} seconds'
            except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
                reason = str(error) or type(error).__name__
        kept = self._received()
        again = f' ({kept} bytes are kept: the same command goes on from there)' if kept else ''
        raise DownloadError(f'{self.address}: cannot be downloaded: {shown(reason, 200)}{again}; '
                            f'or get it elsewhere and put it at {self.path}')

    def _connect(self):
        """Receive bytes to the end or an interruption; return whether the file is complete."""
        have = self._received()
        headers = {'User-Agent': 't2t-vit', 'Accept-Encoding': 'identity'}
        if have:
            headers.update({'Range': f'bytes={have}-', 'If-Range': self.validator})
        request = urllib.request.Request(self.address, headers=headers)
        with self.opener.open(request, timeout=self.timeout) as answer:
            have = self._begin(answer, have)
            with _progress(self.path.name, self.size, have) as advance:
                while piece := answer.read(PIECE):
                    have += len(piece)
                    if have > self.largest:
                        self._refuse(f'it is larger than {self.largest} bytes')
                    self.file.write(piece)
                    self.file.flush()
                    advance(len(piece))
        if self.size is None:    # not announced: the end of the connection is the end of the file
            self.size = have
        return have == self.size

    def _begin(self, answer, have):
        """Check the head of an answer; return the number of bytes that it continues from."""
        if answer.headers.get_content_type() == 'text/html':
            self._refuse('the server sends a web page in place of the file (a login or a notice?)')
        if answer.status == 206:
            span = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', answer.headers.get('Content-Range', ''))
            if not span or int(span[1]) != have:
                self._refuse('the server sends another part than was asked for')
            self.size = int(span[2])
        else:
            have, length = 0, answer.headers.get('Content-Length', '')
            self.size = int(length) if length.isdecimal() else None
            self.file.truncate(0)
        if (self.size or 0) > self.largest:
            self._refuse(f'it has {self.size} bytes, more than {self.largest}')
        tag = answer.headers.get('ETag', 'W/')
        self.validator = answer.headers.get('Last-Modified') if tag.startswith('W/') else tag
        _update_record(self.record, address=self.address, size=self.size, validator=self.validator)
        self.report(f'downloading {self.address} to {self.path}: '
                    + (f'{self.size} bytes' if self.size else 'of unknown size')
                    + (f', from byte {have} on' if have else ''))
        return have

    def _received(self):
        return os.fstat(self.file.fileno()).st_size

    def _refuse(self, reason):
        self.file.truncate(0)
        raise DownloadError(f'{self.address}: refused: {reason}')


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, address):
        if not address.lower().startswith('https://'):
            raise DownloadError(f'{request.full_url}: refused: it redirects to {shown(address)}, '
                                'and only https:// is followed')
        return super().redirect_request(request, file, code, message, headers, address)


def _opener():
    """An opener for https:// and nothing else."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), _HttpsOnly(),
                    urllib.request.HTTPSHandler(context=ssl.create_default_context()),
                    urllib.request.UnknownHandler(), urllib.request.HTTPDefaultErrorHandler(),
                    urllib.request.HTTPErrorProcessor()):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _progress(name, size, have):
    """Yield a function to call with each number of bytes: a bar on a terminal, else lines."""
    bar = tqdm(desc=name, total=size, initial=have, unit='B', unit_scale=True, leave=False,
               disable=not sys.stderr.isatty(), dynamic_ncols=True)
    last = time.monotonic()

    def advance(count):
        nonlocal have, last
        have += count
        bar.update(count)
        if bar.disable and time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f'{name}: {have} of {size or "?"} bytes', file=sys.stderr, flush=True)
    with bar:
        yield advance


def _accept(path, record, check, address, report):
    """Check a new file and remember its SHA-256."""
    try:
        check(path)
    except WeightsError as error:
        if path.name.endswith('.part'):
            os.truncate(path, 0)
        raise WeightsError(f'{address}: is not the file that was expected: {error}') from error
    if 'sha256' in _read_record(record):
        _require_same(path, record, address)
        return
    digest, size = _sha256(path), path.stat().st_size
    with contextlib.suppress(PermissionError):    # a cache that others fill
        _update_record(record, address=address, size=size, sha256=digest)
    report(f'{address}: {size} bytes, SHA-256 {digest}, remembered in {record}')


def _require_same(path, record, what):
    wanted, found = _read_record(record)['sha256'], _sha256(path)
    if found != wanted:
        raise WeightsError(f'{what}: has changed: its SHA-256 is {found}, and {record} remembers '
                           f'{wanted}; remove {record} to accept the change')


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_record(record):
    try:
        content = json.loads(record.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _update_record(record, **values):
    with replacing(record) as temporary:
        Path(temporary).write_text(json.dumps({**_read_record(record), **values}, indent=1) + '\n',
                                   encoding='utf-8')
