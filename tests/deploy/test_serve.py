"""Catches wrong or lost answers of the service, and requests that stop or exploit it."""

import base64
import contextlib
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from support.processes import wait_until
from support.service import Service

from deploy.batcher import Batcher, Full

pytest.importorskip('waitress', reason='requirements-deploy.txt is not installed')

WEIGHTS = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
IMAGES = sorted((ROOT / 'lit_data' / 'val').rglob('*.JPEG'))[::8]
JPEG = IMAGES[0].read_bytes()
LIT_CLASSES = sorted({int(line.split()[1]) for line in (
    ROOT / 'lit_data' / 'train.txt').read_text().splitlines()})
READ_TIMEOUT = 2.0
SMALL = ('--max-bytes', 100_000, '--max-pixels', 250_000, '--max-images', 3, '--read-timeout',
         READ_TIMEOUT, '--allow-host', 'demo.test')


@pytest.fixture(scope='module')
def services():
    """Two services: one with the defaults, one with small limits."""
    started = [Service(), Service(*SMALL)]
    yield started
    for service in started:
        service.end(signal.SIGINT)


@pytest.fixture
def service(services):
    return services[0]


@pytest.fixture
def strict(services):
    return services[1]


@pytest.fixture(scope='module')
def predicted(tmp_path_factory):
    """[(path, answer of tools/predict.py)] of photographs, and of files that decoders differ on."""
    folder = tmp_path_factory.mktemp('images')
    photo = Image.open(IMAGES[3])
    deep = Image.fromarray(np.asarray(photo.convert('L')).astype('uint16') * 256)
    for name, image, options in (
            ('turned.jpg', photo, dict(exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0'
                                            b'\0\0\x06\0\0\0\0\0\0\0')),
            ('cmyk.jpg', photo.convert('CMYK'), {}),
            ('palette.png', photo.convert('P'), {}),
            ('alpha.png', photo.convert('LA'), {}),
            ('deep.png', deep, {}),
            ('moving.gif', photo, dict(save_all=True, append_images=[Image.open(IMAGES[5])])),
            ('photo.webp', photo, {})):
        image.save(folder / name, **options)
    paths = [*IMAGES, *sorted(folder.iterdir())]
    done = subprocess.run(
        [sys.executable, 'tools/predict.py', '-c', 'config/lit_data.yaml', '--json',
         *map(str, paths)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(Path(line.pop('image')), line) for line in lines]


def agree(answer, expected):
    assert answer['class_id'] == expected['class_id']
    assert [place['name'] for place in answer['top'][:1]] == [expected['top'][0]['name']]
    shares = [[place['probability'] for place in result['top']] for result in (answer, expected)]
    np.testing.assert_allclose(*shares, atol=2e-6)    # rounding depends on the batch size


# ---- answers

def test_answers_equal_those_of_predict(service, predicted):
    for path, expected in predicted:
        status, _, answer = service.predict(path.read_bytes())
        assert status == 200 and set(answer) == {'class_id', 'top', 'note'}, path
        agree(answer, expected)
    assert len({expected['class_id'] for _, expected in predicted}) > 10


def test_answers_of_a_form_are_in_order_and_name_bad_files(service, predicted):
    names = [path.name for path, _ in predicted]
    files = [(path.name, path.read_bytes()) for path, _ in predicted]
    files[4:4] = [('../../etc/<b>"\\.jpg'.replace('"', '%22'), b'no image'), ('emp\tty.png', b'')]
    status, _, answer = service.batch(files)
    assert status == 200
    results = answer['results']
    bad = results[4:6]
    assert [result['image'] for result in results[:4] + results[6:]] == names
    for result, (_, expected) in zip(results[:4] + results[6:], predicted):
        agree(result, expected)
    assert 'not an image of a known format' in bad[0]['error']
    assert bad[0]['image'].startswith('../../etc/<b>')
    assert 'the file is empty' in bad[1]['error'] and bad[1]['image'] == 'emp\\tty.png'


def test_200_concurrent_requests_are_all_answered(service, predicted):
    gate = threading.Barrier(200)

    def ask(index):
        path, expected = predicted[index % len(predicted)]
        data = path.read_bytes()
        gate.wait(60)
        return service.predict(data), expected

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert [answer[0] for answer, _ in answers] == [200] * 200
    for (_, _, content), expected in answers:
        agree(content, expected)


def test_attention_is_returned_as_numbers_and_as_a_heat_map(service):
    status, _, answer = service.predict(IMAGES[2].read_bytes(), '/predict?attention=1')
    seen = answer['attention']
    rollout = np.array(seen['rollout'])
    assert status == 200 and seen['available'] is True
    assert rollout.shape == (3, 3) and (rollout > 0).all() and rollout.sum() < 1
    kind, _, data = seen['overlay'].partition(',')
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == 'data:image/png;base64' and picture.size == Image.open(IMAGES[2]).size
    # The reference: the rollout of the same image without the service.
    import build
    from config import load_config
    from data.decode import decode_image
    from figures.rollout import forward_with_attention
    config = load_config('config/lit_data.yaml')
    network, _ = build.trained_network(config, WEIGHTS)
    network.eval()
    image = build.eval_transform(config)(decode_image(IMAGES[2]))
    np.testing.assert_allclose(rollout, forward_with_attention(network, image[None])[1][0],
                               atol=2e-6)
    # Only requests with attention=1 get attention.
    _, _, batch = service.batch([('a', JPEG)], '/predict/batch?attention=1')
    assert batch['results'][0]['attention']['available']
    assert 'attention' not in service.predict(JPEG)[2]


def test_health(service):
    status, headers, answer = service.ask('GET', '/health')
    assert status == 200 and headers['Cache-Control'] == 'no-store'
    assert answer == dict(
        status='ok', model='t2t_vit_7', image_size=48, num_classes=1000,
        trained_on='lit_data/train, 16 classes', known_classes=LIT_CLASSES, engine='paddle',
        attention=dict(available=True, reason=''), waiting=0, capacity=256,
        limits=dict(bytes=16 << 20, pixels=40_000_000, images=32))


def test_the_page_loads_nothing_from_other_sites(service):
    status, headers, page = service.ask('GET', '/')
    assert status == 200 and page == (ROOT / 'tools' / 'deploy' / 'page.html').read_bytes()
    policy = dict(part.split(' ', 1) for part in headers['Content-Security-Policy'].split('; '))
    assert policy['default-src'] == policy['base-uri'] == policy['frame-ancestors'] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy['script-src'])
    assert 'unsafe' not in headers['Content-Security-Policy']
    assert b'http://' not in page and b'https://' not in page and b'innerHTML' not in page
    assert not re.search(rb'\bon\w+=|\bstyle=', page), 'the policy would block it'
    for header in ('Access-Control-Allow-Origin', 'Server'):
        assert header not in headers


# ---- invalid requests

def png(width, height, data=b''):
    def chunk(kind, content):
        return (struct.pack('>I', len(content)) + kind + content
                + struct.pack('>I', zlib.crc32(kind + content)))
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b''))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def many_scans(count):
    """A valid progressive JPEG, slow to decode: its last scan is repeated `count` times."""
    data = saved(Image.open(IMAGES[0]), 'JPEG', progressive=True)
    return data[:-2] + data[data.rfind(b'\xff\xda'):-2] * count + data[-2:]


UPLOADS = {
    'empty': (b'', 400),
    'text': (b'a text, and no image', 422),
    'svg with a script': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>x()</script></svg>',
                          422),
    'html': (b'<!DOCTYPE html><script>alert(1)</script>', 422),
    'zeros': (bytes(5000), 422),
    'cut off jpeg': (JPEG[:len(JPEG) // 2], 422),
    'jpeg header only': (JPEG[:20], 422),
    'jpeg of endless scans': (many_scans(200), 422),
    'format not served': (saved(Image.new('RGB', (30, 30)), 'TIFF'), 422),
    'postscript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 422),
    'bomb': (png(60000, 60000, bytes(1000)), 422),
    'bomb that pillow only warns about': (png(12000, 10000, bytes(1000)), 422),
    'bomb below pillow\'s limits': (png(9000, 9000, bytes(1000)), 422),
    'true image of too many pixels': (saved(Image.new('L', (600, 500)), 'PNG'), 422),
    'png with a wrong size': (png(400, 400, bytes(1000)), 422),
    'zero pixels': (png(0, 0), 422),
    'broken gif': (b'GIF89a\xff\xff\xff\xff\xf7\0\0,', 422),
    'broken webp': (b'RIFF\xff\xff\xff\x7fWEBPVP8L\x05\0\0\0/\xff\xff\xff\xff', 422),
    'broken bmp': (b'BM' + b'\xff' * 60, 422),
    'too many bytes': (bytes(100_001), 413),
    'far too many bytes': (bytes(3_000_000), 413),
}


@pytest.mark.parametrize('name', UPLOADS)
def test_an_invalid_upload_is_refused(strict, name):
    data, expected = UPLOADS[name]
    status, headers, answer = strict.ask('POST', '/predict', data, Content_Type='image/png')
    assert status == expected and set(answer) == {'error'}
    assert headers['Content-Type'] == 'application/json' and len(answer['error']) < 300
    assert '\n' not in answer['error'] and '/tools/' not in answer['error']
    assert strict.predict(JPEG)[0] == 200


def request(*lines, path='/predict', method='POST', host='127.0.0.1'):
    start = (f'{method} {path} HTTP/1.1', *((f'Host: {host}',) if host else ()))
    return '\r\n'.join((*start, *lines)).encode('latin-1') + b'\r\n\r\n'


def form_request(body, boundary='b', path='/predict/batch'):
    return request(f'Content-Type: multipart/form-data; boundary={boundary}',
                   f'Content-Length: {len(body)}', path=path) + body


def part(disposition='form-data; name=x; filename=y', data=b'z', boundary=b'b'):
    return (b'--' + boundary + b'\r\nContent-Disposition: ' + disposition.encode() + b'\r\n\r\n'
            + data + b'\r\n')


KIND = 'Content-Type: image/jpeg'
REQUESTS = {
    'a length that is never sent': (request(KIND, 'Content-Length: 99999999999'), 413),
    'a length of thirty digits': (request(KIND, 'Content-Length: ' + '9' * 30), 413),
    'a negative length': (request(KIND, 'Content-Length: -5'), 400),
    'a length that is a word': (request(KIND, 'Content-Length: many'), 400),
    'two lengths': (request(KIND, 'Content-Length: 5', 'Content-Length: 6') + b'12345', 400),
    'no body': (request(KIND), 400),
    'chunks beyond the limit': (
        request(KIND, 'Transfer-Encoding: chunked') + b'8000\r\n' + bytes(0x8000) + b'\r\n'
        + (b'8000\r\n' + bytes(0x8000) + b'\r\n') * 4, 413),
    'chunks that are none': (request(KIND, 'Transfer-Encoding: chunked') + b'zz\r\nxx\r\n', 400),
    'no content type': (request('Content-Length: 5') + b'12345', 415),
    'a content type of a form': (
        request('Content-Type: application/x-www-form-urlencoded', 'Content-Length: 5') + b'12345',
        415),
    'a form for one image': (form_request(part() + b'--b--', path='/predict'), 415),
    'an image for a form': (
        request(KIND, 'Content-Length: 5', path='/predict/batch') + b'12345', 415),
    'a form without boundary': (
        request('Content-Type: multipart/form-data', 'Content-Length: 5', path='/predict/batch')
        + b'12345', 400),
    'a form with an endless boundary': (form_request(b'12345', 'b' * 5000), 400),
    'a form whose boundary is malformed': (
        form_request(b'12345', 'b; boundary*0=a; boundary*=c'), 400),
    'a form whose file name is malformed': (
        form_request(part('form-data; filename*0=a; filename*=b') + b'--b--'), 400),
    'a form that does not end': (form_request(part()), 400),
    'a form of nothing': (form_request(b'--b--'), 400),
    'a form of a field': (form_request(part('form-data; name=x') + b'--b--'), 400),
    'a form of a part without headers': (form_request(b'--b\r\n\r\nz\r\n--b--'), 400),
    'a form with endless headers': (
        form_request(part('form-data; filename=' + 'y' * 9000) + b'--b--'), 400),
    'a form of too many images': (form_request(part() * 4 + b'--b--'), 413),
    'a form of a thousand parts': (form_request(part() * 1000 + b'--b--'), 413),
    'a form of ten thousand empty parts': (form_request(b'--b\r\n' * 10_000 + b'--b--'), 400),
    'a form of bad images': (form_request(part() * 3 + b'--b--'), 422),
    'another host': (request(host='evil.test', method='GET', path='/health'), 403),
    'a host that only begins well': (
        request(host='127.0.0.1.evil.test', method='GET', path='/health'), 403),
    'a host with a user': (request(host='localhost@evil.test', method='GET', path='/health'), 403),
    'no host': (request(host='', method='GET', path='/health'), 403),
    'a page of another site': (request('Origin: http://evil.test', KIND), 403),
    'a page without a site': (request('Origin: null', KIND), 403),
    'an origin that is no address': (request('Origin: http://[', KIND), 403),
    'a path that leads out': (request(method='GET', path='/../../../etc/passwd'), 404),
    'an encoded path that leads out': (request(method='GET', path='/%2e%2e/%2e%2e/x%00'), 404),
    'a file of the project': (request(method='GET', path='/serve.py'), 404),
    'a wrong method': (request(method='GET'), 405),
    'deleting': (request(method='DELETE', path='/'), 405),
    'an unknown parameter': (request(KIND, path='/predict?top=5'), 400),
    'a parameter out of range': (request(KIND, path='/predict?attention=2'), 400),
    'endless headers': (request('X: ' + 'x' * 20_000), 431),
    'no http at all': (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', 400),
    'a bare line feed in a header': (request('X: a\nY: b'), 400),
}


@pytest.mark.parametrize('name', REQUESTS)
def test_an_invalid_request_is_refused(strict, name):
    sent, expected = REQUESTS[name]
    assert strict.send(sent) == expected
    assert strict.predict(JPEG)[0] == 200


def test_an_ordinary_progressive_jpeg_is_served(strict):
    data = many_scans(5)
    assert data.count(b'\xff\xda') == 15 and strict.predict(data)[0] == 200


def test_slow_clients_time_out_and_do_not_block_others(strict):
    """Slow headers, a slow body, a missing body, and no request, all at once."""
    headers = [b'POST /predict HTTP/1.1\r\n'] + [b'X: y\r\n'] * 30
    body = [request(KIND, 'Content-Length: 50000')] + [b'x'] * 30
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(strict.send, *parts, pause=0.1)
                for parts in (headers, body, body[:1], [b''])]
        time.sleep(0.5)
        assert strict.predict(JPEG)[0] == 200
        assert [future.result() for future in slow] == [408, 408, 408, None]
    assert time.monotonic() - start >= READ_TIMEOUT
    # A client that disconnects before it has sent the whole body.
    with socket.create_connection(('127.0.0.1', strict.port)) as connection:
        connection.sendall(request(KIND, 'Content-Length: 5000') + b'x')
    assert strict.ask('GET', '/health')[2]['waiting'] == 0


@pytest.mark.parametrize('sent', [b'', b'POST /predict HT', request(KIND, 'Content-Length: 900')
                                  + b'x'], ids=['idle', 'half a header', 'half a body'])
def test_unfinished_connections_do_not_block_others(service, sent):
    """More connections than the service has threads, which stay open while a client waits."""
    address = ('127.0.0.1', service.port)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(sent)
        with socket.create_connection(address, timeout=10) as connection:    # < --read-timeout
            connection.sendall(request(KIND, f'Content-Length: {len(JPEG)}') + JPEG)
            assert connection.recv(1 << 16).startswith(b'HTTP/1.1 200 OK')


def test_make_room_closes_an_unfinished_connection_of_the_address_with_most_of_them():
    from deploy.web import make_room
    closed = []

    def channel(address, deadline, unfinished=True):
        name = (address, deadline)
        return SimpleNamespace(addr=(address, 1), deadline=deadline, unfinished=unfinished,
                               handle_close=lambda: closed.append(name))

    channels = [channel('a', 1), channel('b', 5), channel('b', 3), channel('b', 4),
                channel('c', 0, False), channel('c', 2, False)]
    make_room(channels)
    assert closed == [('b', 3)]
    make_room(channels[4:])    # none is unfinished
    assert closed == [('b', 3)]


def test_allowed_hosts_and_chunked_bodies_are_served(strict):
    assert strict.ask('GET', '/health', Host='demo.test')[0] == 200
    assert strict.ask('GET', '/health', Host='[::1]:80')[0] == 200
    connection = HTTPConnection('127.0.0.1', strict.port, timeout=60)
    with contextlib.closing(connection):
        connection.request('POST', '/predict', iter([JPEG[:700], JPEG[700:]]),
                           {'Content-Type': 'image/jpeg'}, encode_chunked=True)
        assert json.loads(connection.getresponse().read())['class_id'] == int(
            strict.predict(JPEG)[2]['class_id'])


# ---- start and shutdown

def test_accepted_requests_are_answered_after_sigterm():
    service = Service('--batch-size', 2, '--read-timeout', 3000)
    address = ('127.0.0.1', service.port)
    whole = request(KIND, f'Content-Length: {len(JPEG)}') + JPEG
    with contextlib.ExitStack() as stack:
        def connect():
            return stack.enter_context(socket.create_connection(address, timeout=60))

        connect()    # a spare connection of a browser does not delay the shutdown
        half = connect()
        half.sendall(whole[:-500])
        time.sleep(0.3)
        others = [connect() for _ in range(40)]
        for connection in others:
            connection.sendall(whole)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        half.sendall(whole[-500:])
        for connection in [half, *others]:
            answer = b''.join(iter(lambda connection=connection: connection.recv(1 << 16), b''))
            assert answer.startswith(b'HTTP/1.1 200 OK') and b'"class_id"' in answer
        service.end()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def failed_start(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                          timeout=60, cwd=ROOT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_failed_start_is_one_line(service):
    said = failed_start('tools/serve.py', '--port', service.port)
    assert f'--port {service.port}' in said and 'in use' in said
    without = ('import sys; sys.path.insert(0, "tools"); sys.modules["waitress"] = None; '
               'import serve; from system import command; command.run(serve.main, [])')
    assert 'pip install -r requirements-deploy.txt' in failed_start('-c', without)


# ---- the queue, time limits, errors

def test_queued_items_share_batches_in_order():
    started, go, batches = threading.Event(), threading.Event(), []

    def run(items):
        started.set()
        assert go.wait(30)
        batches.append(len(items))
        return [item * 2 for item in items]

    batcher = Batcher(run, batch_size=4, capacity=100)
    futures = [batcher.submit(0)]
    assert started.wait(30)
    futures += [batcher.submit(item) for item in range(1, 11)]
    futures[3].cancel()
    go.set()
    batcher.close()
    assert batches == [1, 3, 4, 2]    # one of the first four was cancelled
    assert [future.result() for future in futures if not future.cancelled()] == [
        0, 2, 4, 8, 10, 12, 14, 16, 18, 20]


def test_errors_of_a_batch_and_of_prepare_are_raised_and_places_are_limited():
    def run(items):
        if 0 in items:
            raise ZeroDivisionError('nothing')
        return items

    batcher = Batcher(run, batch_size=1, capacity=2)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(0).result(30)
    assert batcher.submit(1).result(30) == 1 and batcher.is_alive()
    with batcher.places(2), pytest.raises(Full), batcher.places(1):
        pass
    assert batcher.taken == 0
    batcher.close()
    assert not batcher.is_alive()
    with pytest.raises(KeyError):
        Batcher(run, 1, 1, prepare=lambda: {}['model'])


class ExportLike:
    """A stub of an engine, which has no attention; it waits for an event."""

    def __init__(self, wait=None):
        self.wait = wait

    def eval(self):
        return self

    def __call__(self, images):
        import paddle
        assert self.wait is None or self.wait.wait(30)
        return paddle.to_tensor(np.eye(3, dtype='float32')[[1] * images.shape[0]] * 9)


def application(engine, queue, answer_timeout):
    import serve
    from data.transforms import EvalTransform
    classifier = serve.Classifier(engine, EvalTransform(32), ['a', 'b', 'c'], 2)
    limits = SimpleNamespace(allow_host=[], max_bytes=10 ** 6, max_pixels=10 ** 6, max_images=2,
                             answer_timeout=answer_timeout)
    batcher = Batcher(classifier.run, 4, queue)
    return serve.Application(classifier, batcher, {}, limits), classifier


def call(app, body=JPEG, query=''):
    """(status, headers, JSON) of a WSGI call of /predict."""
    said = []
    content = app({'PATH_INFO': '/predict', 'REQUEST_METHOD': 'POST', 'HTTP_HOST': 'localhost',
                   'CONTENT_TYPE': 'image/jpeg', 'CONTENT_LENGTH': str(len(body)),
                   'QUERY_STRING': query, 'wsgi.input': io.BytesIO(body)},
                  lambda status, headers: said.append((int(status[:3]), dict(headers))))
    return (*said[0], json.loads(b''.join(content)))


def test_a_full_queue_and_a_late_answer_are_503_with_retry_after():
    go = threading.Event()
    app, _ = application(ExportLike(go), queue=1, answer_timeout=0.5)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(call, app)
        assert wait_until(lambda: app.batcher.taken)
        status, headers, answer = call(app)
        assert (status, headers['Retry-After']) == (503, '1') and 'full' in answer['error']
        status, headers, answer = late.result(30)
        assert (status, headers['Retry-After']) == (503, '10') and '0.5 s' in answer['error']
    go.set()
    assert app.batcher.submit((np.zeros((3, 32, 32), 'float32'), False)).result(30)
    assert call(app)[0] == 200 and app.batcher.taken == 0
    # The time limit includes the wait for a decoder.
    free = []
    while app.decoders.acquire(blocking=False):
        free.append(None)
    assert call(app)[0] == 503 and app.batcher.taken == 0
    app.decoders.release(len(free))
    assert call(app)[0] == 200


def test_the_answer_gives_the_reason_if_there_is_no_attention():
    app, classifier = application(ExportLike(), queue=4, answer_timeout=30)
    classifier.warm_up()
    status, _, answer = call(app, query='attention=1')
    assert status == 200 and [place['name'] for place in answer['top']] == ['b', 'a']
    assert answer['attention'] == dict(available=False, reason=classifier.no_attention)
    assert 'exported' in classifier.no_attention
    assert app.health({})[0] == '200 OK'
    app.batcher.close()
    assert app.health({})[0].startswith('503')


def test_an_internal_error_is_500_and_only_logged(capsys):
    app, _ = application(lambda images: 1 / 0, queue=4, answer_timeout=30)
    status, _, answer = call(app)
    assert status == 500 and 'division' not in json.dumps(answer)
    assert 'ZeroDivisionError' in capsys.readouterr().err
    assert call(app, body=b'x')[0] == 422
