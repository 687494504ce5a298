"""Does this machine compute right? Compare it with figures of the official implementations.

    python tools/check.py

Prints one line for each check (ok, failed, not available here) with the throughput measured, then
versions and devices, and writes all of it to a file to attach to a report. The exit code is 1 if a
check failed. On a CPU it takes less than a minute.

The parts for GPUs (mixed precision, several cards, their tolerances) have not been run yet.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle
from paddle.nn import functional as F

import build
from config import ROOT
from data import DataError
from deploy import engines, exports
from recipe.optimizer import build_optimizer, clip_gradients
from recipe.precision import Precision
from system import command
from weights.container import read_checkpoint, write_checkpoint
from zoo import golden

SHIPPED = ROOT / 'output' / 't2t_vit_7_lit_data.yaml'    # configuration of the shipped weights
# Of these weights, the best of log/lit_data.jsonl, on lit_data/val.
SHIPPED_TOP1, SHIPPED_LOSS, SHIPPED_IMAGES = 1.0, 0.0232, 128
SECONDS = 1.0            # that each throughput is measured for
SECONDS_OF_A_COMMAND = 120
# Largest difference of logits, and relative difference of gradients; GPUs add in other orders.
FLOAT32 = dict(cpu=(1e-5, 1e-4), gpu=(1e-4, 1e-3))
# Largest difference of logits relative to their standard deviation: ten times what rounding the
# operands of all matrix products gives (tests/test_check.py).
HALF = dict(float16=0.02, bfloat16=0.2)


class Failed(Exception):
    """A check whose result is wrong."""


class NotHere(Exception):
    """A check that needs what this machine does not have."""


def on_gpu():
    return paddle.device.get_device() != 'cpu'


def require(difference, limit, what):
    """Return a text about a difference; raise Failed if it exceeds the limit or is not finite."""
    text = f'{what} differ by {difference:.1e} (at most {limit:.0e})'
    if not difference <= limit:
        raise Failed(text)
    return text


def throughput(function, images):
    """Return the images a second of a function that computes `images`, as text."""
    function()    # the first call may compile or allocate
    calls, begin = 0, time.perf_counter()
    while not calls or time.perf_counter() - begin < SECONDS:
        function()
        calls += 1
    return f'{calls * images / (time.perf_counter() - begin):.1f} images/s'


def forward(network, images):
    with paddle.no_grad():
        return network(images).numpy()    # .numpy() waits for the device


def check_logits(variant, _folder):
    """Logits in float32 against those of the official network."""
    network, size = golden.golden_network(variant)
    network.eval()
    images = golden.image_batch(size)
    difference = np.abs(forward(network, images) - golden.figures(f'forward_{variant}')['logits'])
    limit, _ = FLOAT32['gpu' if on_gpu() else 'cpu']
    text = require(difference.max(), limit, 'logits')
    return f'{text}, {throughput(lambda: forward(network, images), len(images))}'


def check_gradients(_folder):
    """Norms of all gradients, and three steps of AdamW, against the official network."""
    limit, relative = FLOAT32['gpu' if on_gpu() else 'cpu']
    network, _ = golden.golden_network('t2t_vit_7', frozen=True)
    network.eval()
    images, labels = golden.image_batch(), paddle.to_tensor(np.array(golden.LABELS))
    optimizer = build_optimizer(network, learning_rate=1e-4, weight_decay=0.03, decay_all=False)
    wanted, losses, differences = golden.figures('grad_t2t_vit_7'), [], []
    for step in range(3):
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        if step == 0:
            differences = [abs(np.linalg.norm(p.grad.numpy().astype('float64')) / wanted[name] - 1)
                           for name, p in network.named_parameters() if not p.stop_gradient]
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    text = require(max(differences), relative, 'norms of gradients')
    after = np.abs(np.array(losses) - golden.figures('adamw_official_t2t_vit_7')['losses'][:3])
    return f'{text}, {require(after.max(), 10 * limit, "losses of three steps")}'


def check_precision(level, dtype, _folder):
    """Logits and gradients in mixed precision against float32."""
    if not on_gpu():
        raise NotHere('Paddle computes in half precision on GPUs only')
    if not (paddle.amp.is_float16_supported() if dtype == 'float16'
            else paddle.amp.is_bfloat16_supported()):
        raise NotHere(f'this GPU does not compute in {dtype}')
    network, size = golden.golden_network('t2t_vit_7', frozen=True)
    network.eval()
    optimizer = build_optimizer(network, learning_rate=1e-4, weight_decay=0.03, decay_all=False)
    precision = Precision(network, optimizer, level, dtype)
    wrapped, images = precision.wrap(network), golden.image_batch(size)
    wanted = golden.figures('forward_t2t_vit_7')['logits']
    difference = np.abs(forward(wrapped, images) - wanted).max() / wanted.std()
    text = require(difference, HALF[dtype], 'logits')
    labels = paddle.to_tensor(np.array(golden.LABELS))
    precision.scaled(F.cross_entropy(wrapped(images), labels)).backward()
    norm = clip_gradients([p for p in network.parameters() if not p.stop_gradient],
                          loss_scale=precision.loss_scale.value)
    if not np.isfinite(norm):
        raise Failed(f'{text}; the gradients are not finite')
    return f'{text}, {throughput(lambda: forward(wrapped, images), len(images))}'


def check_training(folder):
    """Two steps of training, the second one also from a checkpoint of the first."""
    config = build.load_config(SHIPPED, ['TRAIN.TRAIN_NUM_WORKS=0', 'TRAIN.TRAIN_BATCH_SIZE=8'])
    loader = build.train_loader(config)
    groups, prepare = build.groups(config, loader), build.batch_transform(config)
    loader.batch_sampler.set_epoch(0, 0)
    with contextlib.closing(iter(loader)) as batches:
        batches = [prepare(*next(batches), 0, step) for step in range(2)]

    def stepper():
        return build.stepper(config, groups)[0]

    def step(stepper, number):
        stepper.begin_epoch(0, number)
        return stepper.step(*batches[number], 0, number)[0].loss.item()

    straight = stepper()
    losses = [step(straight, number) for number in range(2)]
    if not np.isfinite(losses).all():
        raise Failed(f'losses are {losses}')
    before = stepper()
    step(before, 0)
    arrays, state = before.capture()
    write_checkpoint(folder / 'step.ckpt', arrays, state)
    arrays, state = read_checkpoint(folder / 'step.ckpt')
    resumed = stepper()
    resumed.restore(arrays, state['skipped_steps'], state['loss_scale'], folder / 'step.ckpt')
    step(resumed, 1)
    difference = max(np.abs(one.numpy() - other.numpy()).max() for one, other in zip(
        straight.network.state_dict().values(), resumed.network.state_dict().values()))
    # Some kernels of GPUs add in any order.
    text = require(difference, 1e-5 if on_gpu() else 0, 'weights after a resume')
    return f'{text}, {throughput(lambda: step(straight, 1), len(batches[1][0]))}'


def check_loader(_folder):
    """The pixels of two loader processes against those read in this process."""
    texts = []
    for decoder in ('exact', 'fast'):
        configs = [build.load_config(SHIPPED, [
            'DATA_PATH.TRAIN_DATASET_PATH=lit_data/val',
            'DATA_PATH.TRAIN_DATASET_LABEL_PATH=lit_data/val.txt', 'TRAIN.TRAIN_BATCH_SIZE=16',
            f'TRAIN.TRAIN_NUM_WORKS={workers}', f'DATA.DECODER={decoder}']) for workers in (0, 2)]
        try:
            one, two = [[images.numpy() for images, _ in build.train_loader(config)]
                        for config in configs]
        except DataError as error:    # simplejpeg is not installed
            texts.append(str(error))
            continue
        if not all(np.array_equal(a, b) for a, b in zip(one, two)):
            raise Failed(f'{decoder}: two processes read other pixels than one')
        again = build.train_loader(configs[1])
        texts.append(f'{decoder} {throughput(functools.partial(list, again), sum(map(len, two)))}')
    return ', '.join(texts)


def check_evaluation(folder):
    """Scores of the shipped weights, with one process and with one on every card (CPU: two)."""
    cards = paddle.device.cuda.device_count() if on_gpu() else 0
    if cards == 1:
        jobs = [('one card', [])]
    elif cards:
        jobs = [('one card', ['--gpus', '0']),
                (f'{cards} cards', ['--gpus', ','.join(map(str, range(cards)))])]
    else:
        jobs = [('one process', []), ('two', ['--nproc', '2'])]
    texts = []
    for name, where in jobs:
        launcher = ['tools/launch.py', 'tools/val.py', *where, '--logs', str(folder / 'launch')]
        done = subprocess.run(
            [sys.executable, *(launcher if where else ['tools/val.py']), '-c', str(SHIPPED), '-o',
             'TRAIN.VAL_NUM_WORKS=0'],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_OF_A_COMMAND)
        found = re.search(r'top-1: (\S+), .*loss: (\S+), (\d+) images, (\S+) images/s', done.stdout)
        if done.returncode or not found:
            raise Failed(f'{name}: exit code {done.returncode}: '
                         f'{(done.stderr or done.stdout).strip().splitlines()[-1:]}')
        top1, loss, images, speed = map(float, found.groups())
        if (round(top1 - SHIPPED_TOP1, 4) or abs(loss - SHIPPED_LOSS) > 1e-3
                or images != SHIPPED_IMAGES):
            raise Failed(
                f'{name}: top-1 {top1:.4f} and loss {loss:.4f} on {images:.0f} images, must be '
                f'{SHIPPED_TOP1:.4f} and {SHIPPED_LOSS:.4f} on {SHIPPED_IMAGES}')
        texts.append(f'{name} {speed:.1f} images/s')
    return f'top-1 {SHIPPED_TOP1:.4f}, loss {SHIPPED_LOSS:.4f}: {", ".join(texts)}'


def check_export(folder):
    """The exported shipped network against the network, with Paddle Inference."""
    config = build.load_config(SHIPPED)
    network, metadata = build.trained_network(config, build.weights_path(config))
    difference, _, note = exports.export(network, build.description(config, metadata),
                                         folder / 'export')
    engine = engines.load_engine(folder / 'export')
    images = paddle.randn([16, 3, config.MODEL.IMAGE_SIZE, config.MODEL.IMAGE_SIZE])
    return (f'{require(difference, 1e-3, "logits")}, '
            f'{throughput(lambda: engine(images), len(images))}{f"; {note}" if note else ""}')


# name: (function of a temporary folder, likely cause of a failure on a CPU, and on a GPU)
ARITHMETIC = ('the mode of MKL or a faulty build of Paddle: try MKL_DEBUG_CPU_TYPE=0, then '
              'FLAGS_use_stride_kernel=1',
              'TF32 (set NVIDIA_TF32_OVERRIDE=0 and run again), else a driver or a cuDNN that '
              'does not belong to this Paddle')
PRECISION = ('', 'a cuDNN or cuBLAS that does not belong to this Paddle; train with TRAIN.AMP=none')
PROCESSES = 'processes cannot reach each other on this machine (a firewall, a proxy for localhost)'
CHECKS = {
    **{f'logits {variant}': (functools.partial(check_logits, variant), *ARITHMETIC)
       for variant in ('t2t_vit_7', 't2t_vit_t_14', 'pit_ti', 'vit_tiny_patch16_224')},
    'gradients': (check_gradients, *ARITHMETIC),
    **{f'AMP {level} {dtype}': (functools.partial(check_precision, level, dtype), *PRECISION)
       for level in ('O1', 'O2') for dtype in HALF},
    'training': (check_training, *ARITHMETIC),
    'loader': (check_loader, *['the decoders (reinstall pillow, simplejpeg and '
                                'opencv-python-headless)'] * 2),
    'evaluation': (check_evaluation, PROCESSES, f'NCCL, or {PROCESSES}'),
    'export': (check_export, *['Paddle Inference, or OpenVINO or oneDNN in it'] * 2),
}


def run_check(name, folder):
    """Run one check; return (outcome, text, traceback or '')."""
    check, *causes = CHECKS[name]
    try:
        return 'ok', check(folder), ''
    except NotHere as error:
        return 'not available here', str(error), ''
    except Exception as error:    # of any library
        text = str(error) if isinstance(error, Failed) else f'{type(error).__name__}: {error}'
        cause = causes[on_gpu()]
        return ('failed', f'{" ".join(text.split())}{f"; likely cause: {cause}" if cause else ""}',
                traceback.format_exc())


def machine():
    """Return rows of (name, value): versions and devices."""
    rows = [('Paddle', paddle.__version__),
            ('Python', f'{platform.python_version()} on {platform.platform()}'),
            ('processor', f'{processor()}, {start.available_cores()} cores, '
                          f'{start.threads()} threads')]
    if on_gpu():
        rows += [('CUDA, cuDNN', f'{paddle.version.cuda()}, {paddle.version.cudnn()}')]
        rows += [(f'GPU {index}', '{}, capability {}.{}'.format(
            paddle.device.cuda.get_device_name(index),
            *paddle.device.cuda.get_device_capability(index)))
            for index in range(paddle.device.cuda.device_count())]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            rows.append(('driver', subprocess.run(
                ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
                capture_output=True, text=True, timeout=20).stdout.strip().replace('\n', ', ')))
    for package in ('numpy', 'pillow', 'simplejpeg', 'opencv-python-headless', 'safetensors',
                    'onnxruntime', 'openvino'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            rows.append((package, importlib.metadata.version(package)))
    return rows + [(name, os.environ[name]) for name in (
        'OMP_NUM_THREADS', 'MKL_DEBUG_CPU_TYPE', 'FLAGS_use_stride_kernel', 'NVIDIA_TF32_OVERRIDE',
        'CUDA_VISIBLE_DEVICES') if name in os.environ]


def processor():
    try:
        names = re.findall(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments):
    parser = command.parser(__doc__)
    parser.add_argument('--only', nargs='+', metavar='NAME', default=list(CHECKS),
                        help='checks whose names begin so: ' + ', '.join(CHECKS))
    parser.add_argument('--report', default='output/check.txt', metavar='FILE',
                        help='file to write (default: output/check.txt)')
    options = parser.parse_args(arguments)
    names = [name for name in CHECKS if name.startswith(tuple(options.only))]
    if not names:
        raise command.UsageError(f'--only {" ".join(options.only)}: known are {", ".join(CHECKS)}')
    if not golden.GOLDEN.is_dir():
        raise command.UsageError(f'{golden.GOLDEN}: is missing; a clone of the repository has it')
    lines, details, failed = [], [], 0

    def say(line):
        print(line, flush=True)
        lines.append(line)

    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            outcome, text, trace = run_check(name, Path(folder))
            say(f'{outcome:<19}{name:<30}{text}')
            failed += outcome == 'failed'
            details += [f'\n{name}:\n{trace}'] * bool(trace)
    say('')
    for name, value in machine():
        say(f'{name:<24}{value}')
    report = Path(options.report)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text('\n'.join([*lines, *details]) + '\n', encoding='utf-8')
    print(f'{failed} of {len(names)} checks failed; {report} holds these lines'
          f'{" and the tracebacks" if details else ""}')
    return 1 if failed else 0


if __name__ == '__main__':
    command.run(main)
