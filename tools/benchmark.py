"""Measure a network: parameters, MACs, and speed in every engine.

    python tools/benchmark.py -c config/t2t_vit_7.yaml --json speed.json

Each engine has a process of its own, and the processes take turns in rounds, so that changes in the
speed of the machine affect all of them: compare ratios, not absolute speeds. Large matrix products
are measured with them, as the limit of the machine. A failure of an engine does not affect others.
With --pytorch PYTHON, an interpreter that has torch, the others are compared with PyTorch.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle

import build
import config as configuration
from deploy import engines
from system import command
from zoo.macs import count_macs, total_macs

SCHEMA = 4
# What the loaders are compared with PyTorch's at: one process that reads up to MOST_FILES images.
MOST_FILES = 1000
CROP = ['DATA.TRAIN_CROP=resized', 'DATA.TRAIN_SCALE=[0.08, 1]', 'DATA.TRAIN_RATIO=[0.75, 1.3333]',
        'DATA.FLIP=0.5', 'DATA.COLOR_JITTER=0']
RECIPES = {'plain': [*CROP, 'DATA.TRAIN_INTERPOLATION=bilinear', 'DATA.AUTO_AUGMENT='],
           'official': [*CROP, 'DATA.TRAIN_INTERPOLATION=random',
                        'DATA.AUTO_AUGMENT=rand-m9-mstd0.5-inc1']}
PARTS = ('model', 'latency', 'throughput', 'training', 'loader')
HERE = Path(__file__).resolve().parent
PAUSE = 0.3    # seconds between calls: idle threads of some engines spin for 0.2 s
ONNX_ENGINES = ('onnxruntime', 'openvino')
# For each product of the forward pass, the backward pass has one for inputs, one for weights.
MACS_OF_TRAINING = 3
VERSIONS = ('numpy', 'paddlepaddle', 'paddlepaddle-gpu', 'paddle2onnx', 'onnxruntime', 'openvino')


class BenchmarkError(RuntimeError):
    """No measurement succeeded."""


class WorkerError(RuntimeError):
    """A worker failed, died or timed out. The message is one line with the reason."""


class Worker:
    """A process of benchmark_worker.py. It starts to load at once; answer() waits for the end.

    Args:
        request: what to load, a dict; see benchmark_worker.RUNNERS.
        threads: number of threads of the process.
        timeout: seconds to wait for an answer.
        program: the command of the process; None: benchmark_worker.py, or benchmark_pytorch.py
            where PyTorch is the engine.
    """

    def __init__(self, request, threads, timeout, program=None):
        if program is None and request['engine'] == 'pytorch':
            program = (request['python'], str(HERE / 'benchmark_pytorch.py'))
        program = program or (sys.executable, str(HERE / 'benchmark_worker.py'))
        # Without the variables of a launcher that started this command.
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith('PADDLE_')}
        environment['OMP_NUM_THREADS'] = str(threads)
        self.timeout = timeout
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr,
            env=environment, encoding='utf-8')
        self.lines = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.send(request)

    def _listen(self):
        with contextlib.suppress(ValueError):    # closed, or not UTF-8
            for line in self.process.stdout:
                self.lines.put(line)
        self.lines.put(None)

    def send(self, request):
        """Send a request, a dict; errors are raised by the next answer()."""
        with contextlib.suppress(OSError):    # the process has died
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def answer(self):
        """Wait for the next answer, a dict.

        Raises:
            WorkerError: if the worker failed, died or timed out.
        """
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            raise WorkerError(f'no answer within {self.timeout:g} s') from None
        try:
            answer = json.loads(line or '')
        except ValueError:
            raise WorkerError(self._exit_reason()) from None
        if 'error' in answer:
            raise WorkerError(answer['error'])
        return answer

    def _exit_reason(self):
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return 'gave an answer that cannot be read'
        try:
            end = f'was killed by {signal.Signals(-code).name}'
        except ValueError:
            end = f'left with exit code {code}'
        self.stderr.seek(max(0, self.stderr.seek(0, os.SEEK_END) - 4096))
        lines = self.stderr.read().decode('utf-8', 'replace').split('\n')
        last = next((line.strip() for line in reversed(lines) if line.strip()), '')
        return f'its process {end}' + (f': {last[:200]}' if last else '')

    def close(self, wait=10):
        """End the process; kill it after `wait` seconds."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.stderr.close()


@dataclass
class Row:
    """A measurement: the request to its process, and the results."""

    name: str
    request: dict
    calls: tuple                                    # names of the calls to time in every round
    error: str = None
    about: dict = field(default_factory=dict)       # the answer to the request
    peak_memory: float = None                       # MiB
    rounds: dict = field(default_factory=dict)      # {call: a list of seconds for each round}

    def medians(self, call):
        """The medians of a call, seconds `[rounds]`; None if it was not measured."""
        rounds = None if self.error else self.rounds.get(call)
        return np.array([np.median(seconds) for seconds in rounds]) if rounds else None


def measure(rows, options, make_worker=Worker):
    """Measure all rows, in place: start their processes, then time their calls in turns.

    Args:
        rows: a list of Row. A failure sets the `error` of its row.
        options: namespace with threads, timeout, rounds and repeats.
        make_worker: returns a Worker for (request, threads, timeout).
    """
    workers = {}

    def fail(row, error):
        row.error = str(error)
        print(f'{row.name}: {error}', file=sys.stderr)
        workers.pop(row.name).close(wait=0)

    try:
        print(f'loading {len(rows)} processes', file=sys.stderr)
        for row in rows:
            if not row.error:
                workers[row.name] = make_worker(row.request, options.threads, options.timeout)
        for row in rows:
            if not row.error:
                try:
                    row.about = workers[row.name].answer()
                except WorkerError as error:
                    fail(row, error)
        for index in range(options.rounds):
            print(f'round {index + 1} of {options.rounds}', file=sys.stderr)
            for row in rows:
                for call in row.calls:
                    if row.error:
                        break
                    time.sleep(PAUSE)
                    try:
                        workers[row.name].send(dict(call=call, repeats=options.repeats))
                        answer = workers[row.name].answer()
                    except WorkerError as error:
                        fail(row, error)
                        break
                    row.rounds.setdefault(call, []).append(answer['seconds'])
                    row.peak_memory = answer['peak_memory']
    finally:
        for worker in workers.values():
            worker.close()


def make_exports(rows, options, make_worker=Worker):
    """Write the exports that rows need, each in a process; a failure sets the `error` of rows.

    For PyTorch these are the weights as arrays.
    """
    failed = {}
    for row in rows:
        path = row.request.get('export')
        if not path:
            continue
        if path not in failed:
            print(f'{row.name}: exporting', file=sys.stderr)
            request = dict(row.request, run='export', out=path, engine='paddle')
            worker, failed[path] = make_worker(request, options.threads, options.timeout), None
            try:
                worker.answer()
            except WorkerError as error:
                failed[path] = f'export: {error}'
                print(f'{row.name}: {failed[path]}', file=sys.stderr)
            finally:
                worker.close(wait=0)
        row.error = failed[path]


def plan(options, folder):
    """The rows of a benchmark: dict of lists for limits, engines, training and loader."""
    shared = dict(config=options.config, override=options.override, weights=options.weights,
                  threads=options.threads, batch_size=options.batch_size, python=options.pytorch)
    rows = dict(limits=[], engines=[], training=[], loader=[])
    calls = tuple(part for part in ('latency', 'throughput') if part in options.parts)
    both = ('float32', 'bfloat16') if has_bfloat16() else ('float32',)

    def add(group, name, calls, **request):
        rows[group].append(Row(name, {**shared, **request}, calls))

    if calls or 'training' in options.parts:
        for engine, precision in [('paddle', 'float32')] + [('inference', one) for one in both]:
            add('limits', f'matrix products, {engine}, {precision}', ('limit',), run='limit',
                engine=engine, precision=precision, out=f'{folder}/products_{precision}')
    for engine in options.engines if calls else ():
        kinds = [('plain', 'float32')]
        if engine == 'pytorch':
            kinds = [('plain', one) for one in both]
        elif engine != 'paddle':
            kinds += [('fast', one) for one in (both if engine == 'inference' else ('float32',))]
        for network, precision in kinds:
            path = ''
            if engine != 'paddle':
                suffix = '.onnx' if engine in ONNX_ENGINES else ''
                path = f'{folder}/{network}_{precision}{suffix}'
            if engine == 'pytorch':
                path = f'{folder}/pytorch.npz'
            add('engines', f'{engine}, {network}, {precision}', calls, run='engine', engine=engine,
                network=network, precision=precision, export=path)
    if 'training' in options.parts:
        if 'pytorch' in options.engines:
            add('training', 'pytorch', ('training',), run='training', engine='pytorch',
                network='plain', precision='float32', export=f'{folder}/pytorch.npz')
        add('training', 'paddle', ('training',), run='training', engine='paddle',
            precision='float32')
    if 'loader' in options.parts:
        for workers in range(options.workers + 1):
            add('loader', f'{workers} processes', ('loader',), run='loader', engine='paddle',
                split='train', workers=workers)
        add('loader', '0 processes, validation', ('loader',), run='loader', engine='paddle',
            split='val', workers=0)
    if 'loader' in options.parts and 'pytorch' in options.engines:
        config = build.load_config(options.config, options.override)
        samples = build.train_loader(config).dataset.samples
        files = [samples[index][0] for index in range(min(len(samples), MOST_FILES))]
        for recipe, keys in RECIPES.items():
            add('loader', f'{recipe} recipe, pytorch', ('loader',), run='loader', engine='pytorch',
                recipe=recipe, image_size=config.MODEL.IMAGE_SIZE, files=files)
            for decoder in ('exact', 'fast'):
                add('loader', f'{recipe} recipe, {decoder}', ('loader',), run='loader',
                    engine='paddle', recipe=recipe, split='train', workers=0,
                    override=[*options.override, *keys, f'DATA.DECODER={decoder}'])
    return rows


def has_gpu():
    return paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def describe_model(config, weights):
    """Parameters and MACs of the network and of each layer; dict for the report."""
    network = (build.trained_network(config, weights)[0] if weights else build.network(config))
    sizes = [(math.prod(p.shape), p.stop_gradient) for p in network.parameters()]
    layers = count_macs(network, config.MODEL.IMAGE_SIZE)
    return dict(
        parameters=sum(size for size, _ in sizes),
        trainable_parameters=sum(size for size, frozen in sizes if not frozen),
        macs=total_macs(layers),
        layers=[dict(name=layer.name, kind=layer.kind, macs=layer.macs) for layer in layers])


def machine(threads):
    """Hardware and versions that the results depend on; dict for the report."""
    versions = {'python': platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return dict(cpu=_cpu_info('model name') or platform.processor() or platform.machine(),
                cores=start.available_cores(), threads=threads, bfloat16=has_bfloat16(),
                gpu=paddle.device.cuda.get_device_name() if has_gpu() else None,
                system=f'{platform.system()} {platform.release()}', versions=versions)


def has_bfloat16():
    """Whether the processor has bfloat16 instructions; without them bfloat16 is not faster."""
    flags = _cpu_info('flags').split()
    return 'avx512_bf16' in flags or 'amx_bf16' in flags


def _cpu_info(key):
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            name, _, value = line.partition(':')
            if name.strip() == key:
                return value.strip()
    except OSError:    # macOS, Windows
        pass
    return ''


# ---- the report

def spread(values):
    """Median, quartiles, range and count of values; dict, or None if there are no values."""
    if values is None or len(values) == 0:
        return None
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return dict(median=median, quartiles=[low, high], range=[min(values), max(values)],
                count=len(values))


def all_seconds(row, call):
    """The seconds of a call in all rounds; empty if the row failed."""
    return [] if row.error else [s for seconds in row.rounds.get(call, []) for s in seconds]


def limit_of(limits, row):
    """FLOP/s `[rounds]` of the fastest products with a row's device and precision, or None."""
    found = [2 * limit.about['macs'] / limit.medians('limit') for limit in limits
             if limit.medians('limit') is not None
             and limit.request['precision'] == row.request['precision']
             and limit.about['device'] == row.about['device']]
    return np.max(found, axis=0) if found else None


def share(limits, row, call, macs, images):
    """FLOP/s of a row relative to the limit of the same round; the median over rounds, or None."""
    seconds = row.medians(call)
    limit = None if seconds is None else limit_of(limits, row)
    return None if limit is None else float(np.median(2 * macs * images / seconds / limit))


def report(rows, about, model, options):
    """All results as a dict, the content of the JSON file.

    Times and rates are dicts of median, quartiles, range and count over the timed calls.
    `speed_ratio`, the speed relative to `compared_with` (in training, to the first row there; of
    loaders, to the first row of the same recipe), and
    `share_of_limit`, the FLOP/s (two per MAC) relative to the fastest matrix products, compare
    within a round; they are medians over the rounds. `difference` is the largest difference of a
    logit from `compared_with`, relative to the
    largest logit. `backend` is the library that computes inside an engine. Values that were not
    measured are None. SCHEMA changes when the meaning or the name of a key changes.
    """
    limits, macs, batch = rows['limits'], model['macs']['total'], options.batch_size
    working = [row for row in rows['engines'] if not row.error]
    first = working[0] if working else None

    def common(row):
        return dict(name=row.name, error=row.error, device=row.about.get('device'),
                    backend=row.about.get('backend'), precision=row.request.get('precision'),
                    peak_memory_mib=row.peak_memory)

    def engine(row):
        result = dict(common(row), engine=row.request['engine'], network=row.request['network'])
        result['difference'] = None
        if not row.error:
            logits, wanted = np.array(row.about['logits']), np.array(first.about['logits'])
            result['difference'] = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
        for call, images in (('latency', 1), ('throughput', batch)):
            if call not in row.calls:
                continue
            seconds = all_seconds(row, call)
            ratio = None
            if seconds:
                ratio = float(np.median(first.medians(call) / row.medians(call)))
            result[call] = dict(
                seconds=spread(seconds), images_per_second=spread([images / s for s in seconds]),
                speed_ratio=ratio, share_of_limit=share(limits, row, call, macs, images))
        return result

    def limit(row):
        rates = [2 * row.about['macs'] / s for s in all_seconds(row, 'limit')]
        return dict(common(row), gflops=spread([rate / 1e9 for rate in rates]),
                    images_per_second=spread([rate / (2 * macs) for rate in rates]),
                    training_images_per_second=spread(
                        [rate / (2 * MACS_OF_TRAINING * macs) for rate in rates]))

    def training(row):
        seconds, images = all_seconds(row, 'training'), row.about.get('images_a_step', batch)
        trained = next((other for other in rows['training'] if not other.error), None)
        ratio = None
        if seconds:
            ratio = float(np.median(trained.medians('training') / row.medians('training')))
        return dict(common(row), seconds=spread(seconds), images_a_step=images,
                    speed_ratio=ratio,
                    images_per_second=spread([images / s for s in seconds]),
                    share_of_limit=share(limits, row, 'training', MACS_OF_TRAINING * macs, images))

    def loader(row):
        seconds, recipe = all_seconds(row, 'loader'), row.request.get('recipe')
        peer = next((other for other in rows['loader']
                     if recipe and other.request.get('recipe') == recipe and not other.error), None)
        ratio = None
        if seconds and peer:
            ratio = float(np.median(peer.medians('loader') / row.medians('loader')))
        return dict(name=row.name, error=row.error, workers=row.request.get('workers'),
                    recipe=recipe, speed_ratio=ratio, difference=row.about.get('difference'),
                    images_per_second=spread([batch / s for s in seconds]))

    return dict(
        schema=SCHEMA, machine=about, model=model,
        settings=dict(config=str(options.config), override=options.override,
                      weights=options.weights or 'random', batch_size=batch,
                      rounds=options.rounds, repeats=options.repeats, parts=list(options.parts)),
        compared_with=first.name if first else None,
        limits=[limit(row) for row in limits], engines=[engine(row) for row in rows['engines']],
        training=[training(row) for row in rows['training']],
        loader=[loader(row) for row in rows['loader']])


# ---- the report as text

def as_text(content, name, size, per_layer=False):
    """The report as tables.

    Args:
        content: the dict of report().
        name, size: the model and its image size, pixels.
        per_layer: list the MACs of each layer.
    """
    about, model, settings = content['machine'], content['model'], content['settings']
    versions = ', '.join(f'{key} {value}' for key, value in about['versions'].items())
    weights = ('random weights, on which speed does not depend' if settings['weights'] == 'random'
               else settings['weights'])
    macs = model['macs']
    lines = [
        f'{name} at {size} pixels, {weights}',
        f'{model["parameters"]:,} parameters, {model["trainable_parameters"]:,} of them trainable',
        f'{macs["total"] / 1e9:.3f} G MACs an image: {macs["linear"] / 1e9:.3f} G in linear layers '
        f'and convolutions, {macs["attention"] / 1e9:.3f} G in attention',
        f'{about["gpu"] or about["cpu"]}, {about["cores"]} cores, {about["threads"]} threads; '
        f'{versions}',
        f'medians and quartiles of {settings["rounds"]} round(s) of {settings["repeats"]} call(s)']
    if per_layer:
        lines += ['', *table([['layer', 'kind', 'MACs']] + [
            [layer['name'], layer['kind'], f'{layer["macs"]:,}'] for layer in model['layers']])]
    if content['limits']:
        header = ['limit of the machine', 'GFLOP/s', '', 'images/s', 'in training']
        lines += ['', *table([header] + [
            [title(row), *spread_cells(row['gflops']), spread_cells(row['images_per_second'])[0],
             spread_cells(row['training_images_per_second'])[0], *failure(row)]
            for row in content['limits']])]
    if content['engines']:
        lines += ['', *engine_table(content)]
    if content['training']:
        images = max(row['images_a_step'] for row in content['training'])
        lines += ['', *table([[f'training, {images} images a step', 'images/s', '', 'speed',
                               'of the limit', 'MiB']] + [
            [row['name'], *spread_cells(row['images_per_second']), times(row['speed_ratio']),
             percent(row['share_of_limit']), number(row['peak_memory_mib']), *failure(row)]
            for row in content['training']])]
    if content['loader']:
        lines += ['', *table([['loader', 'images/s', '', 'speed', 'differs, of 255']] + [
            [row['name'], *spread_cells(row['images_per_second']), times(row['speed_ratio']),
             '' if row['difference'] is None else f'{row["difference"]:.2f}', *failure(row)]
            for row in content['loader']])]
    return '\n'.join(lines)


def engine_table(content):
    """The table of the engines: time or rate, quartiles and ratio for each kind of call."""
    titles = dict(latency=('1 image, ms', 'seconds', 1e3),
                  throughput=(f'{content["settings"]["batch_size"]} images, images/s',
                              'images_per_second', 1))
    calls = [call for call in titles if call in content['engines'][0]]
    last = calls[-1]
    header = ['engine, network, precision']
    for call in calls:
        header += [titles[call][0], '', 'speed']
    lines = [header + ['of the limit', 'MiB', 'differs']]
    for row in content['engines']:
        cells = [title(row)]
        for call in calls:
            _, figure, factor = titles[call]
            ratio = row[call]['speed_ratio']
            cells += [*spread_cells(row[call][figure], factor), times(ratio)]
        differs = '' if row['difference'] is None else f'{row["difference"]:.0e}'
        lines.append(cells + [percent(row[last]['share_of_limit']),
                              number(row['peak_memory_mib']), differs, *failure(row)])
    return table(lines)


def title(row):
    """The name of a row, with its backend if that is not the engine itself."""
    backend = row['backend']
    return row['name'] + (f' ({backend})' if backend and backend not in row['name'] else '')


def spread_cells(figures, factor=1):
    """The two cells of a spread: median, and quartiles."""
    if figures is None:
        return ['', '']
    low, high = figures['quartiles']
    return [number(figures['median'] * factor), f'{number(low * factor)}..{number(high * factor)}']


def number(value):
    """A value with three significant digits, and all before its decimal point."""
    if value is None:
        return ''
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f'{value:.{min(max(digits, 0), 6)}f}'


def times(ratio):
    return f'x{ratio:.2f}' if ratio else ''


def percent(value):
    return '' if value is None else f'{value:.0%}'


def failure(row):
    """The last cell of a row that failed."""
    return [f'FAILED: {row["error"]}'] if row['error'] else []


def table(rows):
    """Align cells to lines: the first column left, others right; a cell too many is a failure."""
    columns = len(rows[0])
    widths = [max(len(row[index]) for row in rows) for index in range(columns)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:columns], widths[1:])]
        if len(row) > columns:    # its figures are empty
            cells = cells[:1] + row[columns:]
        lines.append('  '.join(cells).rstrip())
    return lines


# ---- the command

def some_of(choices):
    """An argparse type: comma-separated names out of `choices`, as a tuple without duplicates."""
    def parse(text):
        names = tuple(name.strip() for name in text.split(',') if name.strip())
        unknown = [name for name in names if name not in choices]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f'{", ".join(unknown) or "nothing"} is none of {", ".join(choices)}')
        return tuple(dict.fromkeys(names))
    return parse


def at_least(least):
    """An argparse type: a whole number of at least `least`."""
    def parse(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is no whole number from {least} on')
        return int(text)
    return parse


def installed_engines():
    """The engines whose packages are installed."""
    return tuple(name for name in engines.ENGINES
                 if name not in ONNX_ENGINES or importlib.util.find_spec(name))


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('--weights', metavar='FILE', help='weights; default: random ones')
    parser.add_argument('--batch-size', type=at_least(1), default=16, metavar='N',
                        help='images of a batch in throughput, training and loader (default: 16)')
    choices = ('pytorch', *engines.ENGINES)
    parser.add_argument('--engines', type=some_of(choices), metavar='NAME,...',
                        help=f'some of {", ".join(choices)}; the first is what the others are '
                        'compared with (default: those installed; pytorch with --pytorch)')
    parser.add_argument('--pytorch', metavar='PYTHON',
                        help='a Python interpreter with torch, to measure PyTorch, too')
    parser.add_argument('--parts', type=some_of(PARTS), default=PARTS, metavar='NAME,...',
                        help=f'some of {", ".join(PARTS)} (default: all; model, which is '
                        'parameters and MACs, always comes)')
    parser.add_argument('--per-layer', action='store_true', help='show the MACs of every layer')
    parser.add_argument('--rounds', type=at_least(1), default=5, metavar='N',
                        help='rounds, in each of which every engine has a turn (default: 5)')
    parser.add_argument('--repeats', type=at_least(1), default=10, metavar='N',
                        help='timed calls in a turn, after a warm-up call (default: 10)')
    parser.add_argument('--threads', type=at_least(1), default=start.threads(), metavar='N',
                        help='threads of each engine (default: all cores)')
    parser.add_argument('--workers', type=at_least(0), default=start.available_cores(), metavar='N',
                        help='most loader processes; 0 to N are measured (default: all cores)')
    parser.add_argument('--timeout', type=at_least(1), default=600, metavar='SECONDS',
                        help='longest time for one turn of an engine (default: 600)')
    parser.add_argument('--json', metavar='FILE', help='write all results to a file')
    options = parser.parse_args(arguments)
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise command.UsageError(f'--json {options.json}: its folder does not exist')
    if not options.engines:
        options.engines = ('pytorch',) * bool(options.pytorch) + installed_engines()
    if 'pytorch' in options.engines and not (options.pytorch and shutil.which(options.pytorch)):
        raise command.UsageError('--pytorch PYTHON: name the interpreter that has torch')
    config = build.load_config(options.config, options.override)
    model = describe_model(config, options.weights)
    with tempfile.TemporaryDirectory() as folder:
        rows = plan(options, folder)
        make_exports(rows['engines'] + rows['training'], options)
        measure([row for group in rows.values() for row in group], options)
    content = report(rows, machine(options.threads), model, options)
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    print(as_text(content, config.MODEL.NAME, config.MODEL.IMAGE_SIZE, options.per_layer))
    wanted = rows['engines'] + rows['training'] + rows['loader']
    if wanted and all(row.error for row in wanted):
        raise BenchmarkError(f'nothing could be measured; {wanted[0].name}: {wanted[0].error}')


if __name__ == '__main__':
    command.run(main)
