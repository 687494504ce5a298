"""The service as a process, and helpers that send requests."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection

from conftest import ROOT


class Service:
    """A process of tools/serve.py on a free port."""

    def __init__(self, *arguments):
        self.output = tempfile.TemporaryFile('w+')
        self.process = subprocess.Popen(
            [sys.executable, 'tools/serve.py', '--port', '0', '-c', 'config/lit_data.yaml',
             *map(str, arguments)],
            stdout=self.output, stderr=subprocess.STDOUT, cwd=ROOT)

    def log(self):
        # A new descriptor: seeking in self.output would move the position of the process, too.
        with open(f'/proc/self/fd/{self.output.fileno()}') as file:
            return file.read()

    @property
    def port(self):
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            match = re.search(r'http://127\.0\.0\.1:(\d+)\n', self.log())
            if match:
                return int(match[1])
            time.sleep(0.05)
        raise AssertionError(self.log())

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert code == 0, self.log()
        assert self.log().splitlines()[1:] == [f'stopped: {signal.Signals(number).name}']

    def ask(self, method, path, body=None, **headers):
        """Send a request; return (status, headers, JSON object or bytes)."""
        connection = HTTPConnection('127.0.0.1', self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {
                name.replace('_', '-'): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers['Content-Type'] == 'application/json':
                content = json.loads(content)
            return answer.status, answer.headers, content

    def predict(self, data, path='/predict'):
        return self.ask('POST', path, data, Content_Type='image/jpeg')

    def batch(self, files, path='/predict/batch'):
        kind, body = form(files)
        return self.ask('POST', path, body, Content_Type=kind)

    def send(self, *parts, pause=0.0):
        """Send raw bytes; return the status of the answer, None if there is none."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=30) as connection:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            return status_of(connection)


def status_of(connection):
    """The HTTP status of an error answer, None if the connection is closed without one."""
    answer = b''
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            answer += data
    if not answer:
        return None
    head, _, body = answer.partition(b'\r\n\r\n')
    assert isinstance(json.loads(body)['error'], str)
    return int(head.split()[1])


def form(files, boundary='a-boundary'):
    """(Content-Type, body) of a multipart form of (name, bytes) files."""
    body = b''.join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        'Content-Type: application/octet-stream\r\n\r\n'.encode() + data + b'\r\n'
        for name, data in files)
    return f'multipart/form-data; boundary={boundary}', body + f'--{boundary}--\r\n'.encode()
