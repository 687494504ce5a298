"""A server on localhost that offers files over HTTPS and can misbehave, and a proxy before it."""

import contextlib
import http.server
import re
import socket
import ssl
import threading

from conftest import ROOT

CERTIFICATE = ROOT / 'tests' / 'fixtures' / 'localhost.pem'


class Offers:
    """A running server: `with Offers({'/a.bin': content}) as offers: offers.address('/a.bin')`.

    Attributes:
        files: {path: bytes}.
        faults: what happens to the next requests, one entry each, '' for none: 'cut' ends the
            connection after half of the body; 'stall' stops there; 'longer' announces a byte too
            many; 'endless' announces no length; 'whole' ignores Range; 'shifted' sends another
            range; 'page' sends HTML; 'nameless page' without saying so; 'to ADDRESS' redirects;
            a number is a status.
        seen: (path, Range header or None) of each request.
    """

    def __init__(self, files):
        self.files, self.faults, self.seen = dict(files), [], []
        self.stalled, self.release = threading.Event(), threading.Event()
        self.server = http.server.ThreadingHTTPServer(('localhost', 0), type(
            'Handler', (_Handler,), dict(offers=self)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def address(self, path, scheme='https'):
        return f'{scheme}://localhost:{self.server.server_port}{path}'


class _Handler(http.server.BaseHTTPRequestHandler):
    offers = None    # set by Offers

    def log_message(self, *_):
        pass

    def do_GET(self):
        offers, asked = self.offers, self.headers.get('Range')
        offers.seen.append((self.path, asked))
        fault = offers.faults.pop(0) if offers.faults else ''
        content = offers.files[self.path]
        tag = f'"{hash(content)}"'
        if fault.isdecimal():
            return self.send_error(int(fault))
        if fault.startswith('to '):
            self.send_response(302)
            self.send_header('Location', fault[3:])
            return self.end_headers()
        if fault.endswith('page'):
            content, asked = b'<html>Please log in</html>', None
        first = int(re.fullmatch(r'bytes=(\d+)-', asked)[1]) if asked else 0
        if fault == 'whole' or self.headers.get('If-Range') not in (tag, None):
            first = 0
        if first and first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        shift = fault == 'shifted'
        if first:
            self.send_header('Content-Range',
                             f'bytes {first + shift}-{len(content) - 1}/{len(content)}')
        if fault != 'endless':
            self.send_header('Content-Length', str(len(content) - first + (fault == 'longer')))
        self.send_header('Content-Type', 'text/html' if fault == 'page' else 'application/x')
        self.send_header('ETag', tag)
        self.end_headers()
        body = content[first:]
        if fault in ('cut', 'stall'):
            self.wfile.write(body[:len(body) // 2])
            if fault == 'stall':
                offers.stalled.set()
                offers.release.wait(60)
            return None
        return self.wfile.write(body)


@contextlib.contextmanager
def proxy():
    """Yield (address of a proxy for HTTPS, list of the hosts that were asked for)."""
    asked, listener = [], socket.create_server(('localhost', 0))

    def serve():
        with contextlib.suppress(OSError):    # closed at the end
            while True:
                client, _ = listener.accept()
                head = b''
                while b'\r\n\r\n' not in head:
                    head += client.recv(4096)
                host, port = head.split()[1].decode().split(':')
                asked.append(f'{host}:{port}')
                server = socket.create_connection((host, int(port)))
                client.sendall(b'HTTP/1.1 200 connected\r\n\r\n')
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f'http://localhost:{listener.getsockname()[1]}', asked
    listener.close()


def _copy(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
