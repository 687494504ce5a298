"""An HTTP server that classifies images: a web page and a JSON API.

    python tools/serve.py --port 8000
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict
    curl -F image=@a.jpg -F image=@b.png http://127.0.0.1:8000/predict/batch

GET  /               the web page
GET  /example        an example image
GET  /health         the model, the length of the queue, and the limits
POST /predict        one image as the body
POST /predict/batch  several images as a multipart form

`?attention=1` adds the attention rollout and its heat map, if the engine supports it. All answers
but the page and the example are JSON. An invalid request is answered with {"error": "..."} and a
status of 400 to 499, a request to a full queue with 503 and Retry-After.
"""

import base64
import contextlib
import hashlib
import io
import ipaddress
import json
import os
import re
import threading
import time
import traceback
import warnings
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F
from PIL import Image

import build
import config as configuration
from data.decode import ImageError, decode_bytes, printable
from deploy import engines
from deploy.batcher import Batcher, Full
from figures import rollout
from system import command, paddle_private
from training.signals import StopRequest

PAGE = Path(__file__).parent / 'deploy' / 'page.html'
EXAMPLE = configuration.ROOT / 'lit_data/val/n07579787/lit_val_00000097.JPEG'
LARGEST_PART_HEADER = 4096    # bytes
SECURITY_HEADERS = [
    ('X-Content-Type-Options', 'nosniff'), ('Referrer-Policy', 'no-referrer'),
    ('Cross-Origin-Resource-Policy', 'same-origin'), ('Cache-Control', 'no-store')]


class Refusal(Exception):
    """A request that is refused, with an HTTP status, a message, and headers of the answer."""

    def __init__(self, status, text, **headers):
        super().__init__(text)
        self.status = status
        self.headers = [(name.replace('_', '-'), value) for name, value in headers.items()]


class Classifier:
    """The model with its transform and class names. `run` must be called in one thread only.

    Args:
        network: a network of the zoo, or an engines.Engine.
        transform: its data.transforms.EvalTransform.
        names: class names, or an empty list.
        top_k: number of classes in an answer.
        known: class ids that the model was trained on, or an empty list for all.

    Attributes:
        no_attention: the reason if attention is not available, else empty; set by warm_up().
    """

    def __init__(self, network, transform, names, top_k, known=()):
        self.network = network
        self.transform = transform
        self.names = names
        self.top_k = top_k
        self.known = known
        self.no_attention = ''

    def warm_up(self):
        """Run the model once, so that the first request is not slow, and set `no_attention`."""
        # Paddle's number of threads is set for each thread, and this is a new one.
        paddle_private.set_num_threads(start.threads())
        self.network.eval()
        size = self.transform.image_size
        blank = np.zeros((1, 3, size, size), dtype='float32')
        if not hasattr(self.network, 'recording'):
            self.no_attention = ('an exported graph gives logits only: for attention maps, serve '
                                 'the weights it was exported from (--engine paddle)')
        else:
            try:
                rollout.forward_with_attention(self.network, blank)
            except ValueError as error:
                self.no_attention = str(error)
        self.run([(blank[0], False)])

    def run(self, items):
        """Classify a batch of (image `[3, S, S]`, whether attention is wanted).

        Returns:
            A list of (probabilities `[num_classes]`, rollout `[side, side]` or None).
        """
        images = np.stack([image for image, _ in items])
        rollouts = [None] * len(items)
        if any(wanted for _, wanted in items):
            logits, rollouts, _ = rollout.forward_with_attention(self.network, images)
        else:
            with paddle.no_grad():
                logits = self.network(paddle.to_tensor(images))     # (B, num_classes)
        return list(zip(F.softmax(logits, axis=1).numpy(), rollouts))

    def answer(self, photo, probabilities, attention, wanted):
        """The answer for one image, a dict for JSON; only attention needs `photo`."""
        best = engines.top_k(probabilities, self.names, self.top_k)
        result = dict(class_id=best[0]['class_id'], top=best,
                      note=engines.doubt(best[0]['probability'], self.known))
        if wanted and attention is None:
            result['attention'] = dict(available=False, reason=self.no_attention)
        elif wanted:
            box = rollout.seen_box(self.transform, photo.size)
            png = io.BytesIO()
            rollout.overlay(photo, attention, box).save(png, 'PNG')
            result['attention'] = dict(
                available=True, rollout=[[round(float(share), 6) for share in row]
                                         for row in attention],
                overlay='data:image/png;base64,' + base64.b64encode(png.getvalue()).decode())
        return result


class Application:
    """The service as a WSGI application.

    Args:
        classifier: a Classifier after warm_up().
        batcher: a deploy.batcher.Batcher of its `run`.
        about: dict with the model's fields in /health.
        limits: the namespace of the command's options.
    """

    def __init__(self, classifier, batcher, about, limits):
        self.classifier = classifier
        self.batcher = batcher
        self.about = about
        self.limits = limits
        # More decoders than cores only need memory: an image of 40 million pixels takes 120 MB.
        self.decoders = threading.BoundedSemaphore(start.available_cores())
        self.page = PAGE.read_bytes()
        self.page_headers = [('Content-Type', 'text/html; charset=utf-8'),
                             ('Content-Security-Policy', content_security_policy(self.page))]
        self.routes = {'/': ('GET', self.show_page), '/health': ('GET', self.health),
                       '/example': ('GET', self.show_example),
                       '/predict': ('POST', self.predict_one),
                       '/predict/batch': ('POST', self.predict_batch)}

    def __call__(self, environ, start_response):
        try:
            status, headers, body = self.route(environ)
        except Refusal as refusal:
            status = refusal.status
            headers, body = as_json(dict(error=str(refusal)))
            headers += refusal.headers
        except Exception:    # reported in the log, not to the client
            traceback.print_exc()
            status = '500 Internal Server Error'
            headers, body = as_json(dict(error='internal error; see the log of the service'))
        start_response(status, [*headers, *SECURITY_HEADERS, ('Content-Length', str(len(body)))])
        return [body]

    def route(self, environ):
        self.check_origin(environ)
        path = environ['PATH_INFO']
        if path not in self.routes:
            raise Refusal('404 Not Found', f'no such address: there are {", ".join(self.routes)}')
        method, answer = self.routes[path]
        if environ['REQUEST_METHOD'] != method:
            raise Refusal('405 Method Not Allowed', f'{path} takes {method}', Allow=method)
        return answer(environ)

    def check_origin(self, environ):
        """Refuse requests that a web page of another site causes in a browser.

        Such a page may resolve its own name to this machine (DNS rebinding), or post a form to it.
        It cannot forge the headers Host and Origin, and a numeric address cannot be rebound.
        """
        host = environ.get('HTTP_HOST', '')
        name = host_name(host)
        if not (name in ('localhost', *self.limits.allow_host) or is_address(name)):
            raise Refusal('403 Forbidden', 'the Host header names no address of this service; '
                          '--allow-host NAME allows a name')
        origin = environ.get('HTTP_ORIGIN')
        if origin is not None and origin_host(origin) != host:
            raise Refusal('403 Forbidden', 'a page of another site may not use this service')

    def show_page(self, environ):
        return '200 OK', list(self.page_headers), self.page

    def show_example(self, environ):
        """The example image; 404 if the data set is not installed."""
        try:
            return '200 OK', [('Content-Type', 'image/jpeg')], EXAMPLE.read_bytes()
        except OSError:
            raise Refusal('404 Not Found', 'this service has no example image') from None

    def health(self, environ):
        working = self.batcher.is_alive()
        return ('200 OK' if working else '503 Service Unavailable', *as_json(dict(
            status='ok' if working else 'the model has stopped', **self.about,
            attention=dict(available=not self.classifier.no_attention,
                           reason=self.classifier.no_attention),
            waiting=self.batcher.taken, capacity=self.batcher.capacity,
            limits=dict(bytes=self.limits.max_bytes, pixels=self.limits.max_pixels,
                        images=self.limits.max_images))))

    def predict_one(self, environ):
        wanted = wants_attention(environ)
        kind = media_type(environ)
        if not (kind.startswith('image/') or kind == 'application/octet-stream'):
            hint = ('; a form goes to /predict/batch' if kind == 'multipart/form-data' else '')
            raise Refusal('415 Unsupported Media Type', 'send the image itself as the body, with '
                          f'a Content-Type such as image/jpeg{hint}', Accept='image/*')
        result, = self.classify([('the image', read_body(environ))], wanted)
        if 'error' in result:
            raise Refusal('422 Unprocessable Entity', result['error'])
        return '200 OK', *as_json(result)

    def predict_batch(self, environ):
        wanted = wants_attention(environ)
        if media_type(environ) != 'multipart/form-data':
            raise Refusal('415 Unsupported Media Type', 'send a form of files (Content-Type: '
                          'multipart/form-data), as curl -F image=@FILE does',
                          Accept='multipart/form-data')
        files = form_files(read_body(environ), environ['CONTENT_TYPE'], self.limits.max_images)
        results = [dict(image=name, **result) for (name, _), result in
                   zip(files, self.classify(files, wanted))]
        failed = all('error' in result for result in results)
        status = '422 Unprocessable Entity' if failed else '200 OK'
        error = dict(error='none of the images can be read') if failed else {}
        return status, *as_json(dict(error, results=results))

    def classify(self, files, wanted):
        """Decode and classify (name, bytes) files; an unreadable one has an error as its answer."""
        futures, deadline = [], time.monotonic() + self.limits.answer_timeout
        with self.overload_as_503(), self.batcher.places(len(files)):
            try:
                entries = [self.decode(name, data, wanted, deadline) for name, data in files]
                for _, pixels, error in entries:
                    futures.append(None if error else self.batcher.submit(
                        (pixels, wanted and not self.classifier.no_attention)))
                results = [future and future.result(seconds_until(deadline)) for future in futures]
            finally:
                for future in filter(None, futures):
                    future.cancel()    # no effect on one that is done
        return [dict(error=error) if error else self.classifier.answer(photo, *result, wanted)
                for (photo, _, error), result in zip(entries, results)]

    def decode(self, name, data, wanted, deadline):
        """(photo if wanted, float32 `[3, S, S]`, None), or (None, None, error message)."""
        if not self.decoders.acquire(timeout=seconds_until(deadline)):
            raise FutureTimeout
        try:
            photo = decode_bytes(data, name, self.limits.max_pixels)
            pixels = self.classifier.transform(photo)
            photo.thumbnail((1024, 1024))    # enough for an overlay
            return photo if wanted else None, pixels, None
        except ImageError as error:
            return None, None, printable(str(error))
        finally:
            self.decoders.release()

    @contextlib.contextmanager
    def overload_as_503(self):
        """Answer 503 if the queue is full or the time limit exceeded."""
        try:
            yield
        except Full as error:
            raise Refusal('503 Service Unavailable', f'the service is full ({error}); try again '
                          'later', Retry_After='1') from error
        except FutureTimeout as error:
            raise Refusal('503 Service Unavailable', 'no answer within '
                          f'{self.limits.answer_timeout:g} seconds; try again later',
                          Retry_After='10') from error


def seconds_until(deadline):
    return max(0, deadline - time.monotonic())


def as_json(content):
    """Headers and body of a JSON answer."""
    return [('Content-Type', 'application/json')], json.dumps(content).encode()


def content_security_policy(page):
    """A Content-Security-Policy that allows only the inline script and style of the page."""
    def digests(tag):
        return ' '.join(
            "'sha256-" + base64.b64encode(hashlib.sha256(text).digest()).decode() + "'"
            for text in re.findall(f'<{tag}>(.*?)</{tag}>'.encode(), page, re.DOTALL))

    return (f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
            "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'")


def host_name(host):
    """The host of `localhost:8000`, `[::1]:8000` and the like; empty if it is not valid."""
    match = re.fullmatch(r'(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9.-]+))(?::[0-9]{1,5})?', host)
    return (match[1] or match[2]).lower() if match else ''


def is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def origin_host(origin):
    try:
        return urlsplit(origin).netloc
    except ValueError:    # such as http://[
        return ''


def media_type(environ):
    return environ.get('CONTENT_TYPE', '').partition(';')[0].strip().lower()


def wants_attention(environ):
    query = dict(parse_qsl(environ.get('QUERY_STRING', ''), keep_blank_values=True))
    wanted = query.pop('attention', '0')
    if query or wanted not in ('0', '1'):
        raise Refusal('400 Bad Request', 'the only parameter is attention, 0 or 1')
    return wanted == '1'


def read_body(environ):
    """The body, which the server has received completely and within its limit."""
    body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
    if not body:
        raise Refusal('400 Bad Request', 'the body is empty: send an image')
    return body


def form_files(body, content_type, most):
    """The files of a multipart/form-data body (RFC 7578) as (name, bytes), in their order.

    Names are used only in the answer, never to open a file.

    Raises:
        Refusal: if the form is invalid, or holds other parts than files, or more than `most`.
    """
    import multipart  # main has checked that it is installed

    try:
        boundary = multipart.parse_options_header(content_type)[1].get('boundary', '')
        if not 1 <= len(boundary) <= 70:
            raise multipart.ParserError('its Content-Type names no boundary of 1 to 70 characters')
        files = []
        # No part is spooled to disk: the whole body is in memory already.
        for part in multipart.MultipartParser(
                io.BytesIO(body), boundary, len(body), strict=True, part_limit=most + 1,
                headersize_limit=LARGEST_PART_HEADER, spool_limit=len(body),
                memory_limit=len(body)):
            if part.filename is None:
                raise multipart.ParserError('a part is no file')
            if len(files) == most:
                raise Refusal('413 Content Too Large', f'at most {most} images at once')
            files.append((printable(part.filename)[:200], part.raw))
        if not files:
            raise multipart.ParserError('it holds no files')
        return files
    except (multipart.MultipartError, ValueError) as error:
        raise Refusal('400 Bad Request', f'the form cannot be read: {printable(str(error))}'
                      ) from error


def parse_options(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser, configuration.PHOTOGRAPHS)
    engines.add_arguments(parser)

    def number(name, default, help, kind=int, low=1, high=None):
        def read(text):
            value = kind(text)
            if not low <= value <= (high or value):
                raise ValueError
            return value

        read.__name__ = f'number from {low}' + (f' to {high}' if high else '')
        parser.add_argument(name, type=read, default=default, metavar='N',
                            help=f'{help} (default: {default})')

    parser.add_argument('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0: all '
                        'addresses of this machine (default: 127.0.0.1, local only)')
    number('--port', 8000, 'port to listen on; 0: any free one', low=0, high=65535)
    parser.add_argument('--allow-host', action='append', default=[], metavar='NAME', type=str.lower,
                        help='a host name of the service, besides localhost and numeric addresses')
    number('--top-k', 5, 'number of classes in an answer')
    number('--batch-size', 16, 'largest batch of the model')
    number('--queue', 256, 'most images in the queue; further requests are refused with 503')
    number('--max-images', 32, 'most images in a request')
    number('--max-bytes', 16 << 20, 'largest request in bytes')
    number('--max-pixels', 40_000_000, 'largest image in pixels',
           high=2 * Image.MAX_IMAGE_PIXELS)    # Pillow's own limit
    number('--read-timeout', 20, 'seconds to receive a request, and to send its answer',
           kind=float, low=0.1, high=3600)
    number('--answer-timeout', 60, 'seconds for the model to answer', kind=float, low=0.1,
           high=3600)
    options = parser.parse_args(arguments)
    if options.max_images > options.queue:
        raise command.UsageError(f'--max-images {options.max_images}: more than --queue '
                                 f'{options.queue}')
    return options


def main(arguments):
    options = parse_options(arguments)
    try:
        from multipart import MultipartPart  # noqa: F401  # form_files uses that package

        from deploy import web
    except ImportError as error:
        raise command.UsageError(f'tools/serve.py needs the package {error.name}: '
                                 'pip install -r requirements-deploy.txt') from error
    config = build.load_config(options.config, options.override)
    # --max-pixels refuses large images; Pillow's warnings would let clients fill the log.
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
    with StopRequest() as stop:
        try:
            listener = web.listen(options.host, options.port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise command.UsageError(f'cannot listen on --host {options.host} --port '
                                     f'{options.port}: {reason}') from error
        weights = build.weights_path(config, options.weights)
        network, transform, names, metadata = build.open_model(config, weights, options.engine)
        about = dict(model=config.MODEL.NAME, image_size=config.MODEL.IMAGE_SIZE,
                     num_classes=config.MODEL.NUM_CLASSES,
                     **build.trained_on(config, weights, metadata),
                     engine=engine_name(weights, options))
        classifier = Classifier(network, transform, names, options.top_k, about['known_classes'])
        batcher = Batcher(classifier.run, options.batch_size, options.queue, classifier.warm_up)
        host, port = listener.getsockname()[:2]
        print(f'{about["model"]} at {about["image_size"]} pixels, engine {about["engine"]}: '
              f'http://{f"[{host}]" if ":" in host else host}:{port}', flush=True)
        # A thread for every place in the queue, and some for answers of 503 and the page.
        web.serve(Application(classifier, batcher, about, options), listener,
                  options.queue + 16, options.max_bytes, options.read_timeout, stop.reason)
        batcher.close()
        print(f'stopped: {stop.reason()}', flush=True)


def engine_name(weights, options):
    if not engines.is_export(weights):
        return 'paddle'
    return options.engine or ('inference' if os.path.isdir(weights) else 'onnxruntime')


if __name__ == '__main__':
    command.run(main)
