"""Train networks with one recipe, one after another, and compare them.

    python tools/compare.py t2t_vit_mini vit_mini t2t_vit_mini:1 vit_mini:1 \\
        -c config/tiny_imagenet_mini.yaml --out output/experiment

A run is NETWORK, NETWORK:SEED or NETWORK:SEED:EPOCHS; its folder in --out is that of train.py. The
same command goes on after an interruption, and does not repeat runs that have ended. After each run
--out has comparison.json (every figure), comparison.md (tables) and curves.svg (the first seeds).

With --measure nothing is trained: the networks take turns in making training steps, and the tables
get their speeds. TRAIN.TIME_LIMIT_HOURS is that of the whole command.
"""

import json
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from system import start

start.prepare()    # before Paddle, which reads what it sets

# isort: split
import numpy as np
import paddle

import build
import config as configuration
import zoo
from figures import curves, style
from system import command
from training.stepper import Groups
from weights.writer import replacing
from zoo.macs import count_macs, total_macs

STARTED = time.monotonic()
TOOLS = Path(__file__).parent
ROUNDS = 6    # of --measure: a training step of every network in each; the first is not counted
SCORES = {'top1': 'top-1', 'top5': 'top-5', 'ema_top1': 'EMA top-1', 'ema_top5': 'EMA top-5'}
PROCESSOR_TIME = 'processor_time'    # file in a run's folder: seconds, a line for each process
SPEEDS = 'speeds.json'               # file of --measure


class TrainingEnded(RuntimeError):
    """A run that did not reach its end; `exit_code` is that of train.py."""

    def __init__(self, run, code):
        super().__init__(f'{run.folder}; the same command goes on')
        self.exit_code = code if code > 0 else 1
        self.kind = {2: 'error', 75: 'stopped', 130: 'interrupted'}.get(code, 'failed')


class Run(NamedTuple):
    """One training run of the comparison."""

    network: str
    seed: int
    epochs: int

    @property
    def folder(self):
        return f'{self.network}_seed{self.seed}_epochs{self.epochs}'


def parse_run(text, epochs):
    """Return the Run that `NETWORK[:SEED[:EPOCHS]]` names."""
    match = re.fullmatch(r'([^:]+)(?::(\d{1,9}))?(?::(\d{1,9}))?', text)
    if not match:
        raise command.UsageError(f'{text}: write NETWORK, NETWORK:SEED or NETWORK:SEED:EPOCHS')
    try:
        zoo.entry(match[1])
    except ValueError as error:
        raise command.UsageError(str(error)) from error
    run = Run(match[1], int(match[2] or 0), int(match[3] or epochs))
    if not run.epochs:
        raise command.UsageError(f'{text}: a run has at least 1 epoch')
    return run


def overrides_of(run, out):
    """Return the overrides with which train.py makes a run."""
    return [f'MODEL.NAME={run.network}', f'TRAIN.SEED={run.seed}',
            f'SCHEDULER.NUM_EPOCHS={run.epochs}', f'TRAIN.OUTPUT_DIR={out / run.folder}',
            'TRAIN.RESUME=auto']


def records_of(folder):
    """Return the entries of a run's log.jsonl, [] if there is none; an incomplete line is left out.
    """
    try:
        lines = (folder / 'log.jsonl').read_text(encoding='utf-8').splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith('\n')]
    except FileNotFoundError:
        return []


def has_ended(records):
    """Whether a run has been trained and validated to its end."""
    return bool(records) and records[-1]['event'] == 'end'


def train(run, options, out, limit_hours):
    """Train a run to its end, from its newest checkpoint if it has one.

    Raises:
        TrainingEnded: if train.py fails or is stopped.
    """
    overrides = options.override + overrides_of(run, out)
    if limit_hours:
        left = limit_hours - (time.monotonic() - STARTED) / 3600
        overrides.append(f'TRAIN.TIME_LIMIT_HOURS={max(left, 0.001)}')
    before = processor_seconds()
    nproc = ['--nproc', str(options.nproc)] if options.nproc else []
    process = subprocess.Popen([
        sys.executable, str(TOOLS / 'launch.py'), str(TOOLS / 'train.py'), '--split-batch', *nproc,
        '--logs', str(out / 'launch' / run.folder), '-c', options.config, '-o', *overrides])
    try:
        code = process.wait()
    except KeyboardInterrupt:    # a signal to stop: train.py saves
        process.terminate()
        process.wait()
        raise
    finally:
        (out / run.folder).mkdir(parents=True, exist_ok=True)
        with open(out / run.folder / PROCESSOR_TIME, 'a', encoding='utf-8') as file:
            file.write(f'{processor_seconds() - before:.1f}\n')
    if code:
        raise TrainingEnded(run, code)


def processor_seconds():
    """Return the processor time of all processes that this one has waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def config_of(network, options):
    """Return the configuration of a network in this comparison."""
    return build.load_config(options.config, [*options.override, f'MODEL.NAME={network}'])


def measure(networks, options):
    """Time training steps of networks, in turns; return {network: images per second}."""
    parts, seconds = {}, {name: [] for name in networks}
    generator = np.random.default_rng(0)
    for name in networks:
        config = config_of(name, options)
        batch, side = config.TRAIN.TRAIN_BATCH_SIZE, config.MODEL.IMAGE_SIZE
        images = paddle.to_tensor(generator.integers(256, size=(batch, 3, side, side)), 'uint8')
        labels = paddle.to_tensor(generator.integers(config.MODEL.NUM_CLASSES, size=batch))
        groups = Groups([batch] * ROUNDS, config.TRAIN.ACCUMULATE)
        stepper, *_ = build.stepper(config, groups, fresh=False)
        stepper.begin_epoch(0)
        parts[name] = stepper, build.batch_transform(config), images, labels
    for step in range(ROUNDS):
        for name, (stepper, prepare, images, labels) in parts.items():
            started = time.perf_counter()
            stepper.step(*prepare(images, labels, 0, step), 0, step)
            seconds[name].append(time.perf_counter() - started)
    return {name: batch / statistics.median(times[1:]) for name, times in seconds.items()}


def result_of(run, out):
    """Return the figures of a run that has ended: those of its last epoch, in %, and its cost."""
    folder = out / run.folder
    records = records_of(folder)
    last = {record['event']: record for record in records}
    scores = {key: round(100 * last['validation_ema' if 'ema' in key else 'validation']
                         [key.replace('ema_', '')], 2)
              for key in SCORES if 'ema' not in key or 'validation_ema' in last}
    try:
        processor = sum(map(float, (folder / PROCESSOR_TIME).read_text().split()))
    except FileNotFoundError:
        processor = None
    return dict(run._asdict(), **scores, validation_images=last['validation']['images'],
                steps=last['end']['step'], processor_hours=processor and round(processor / 3600, 3),
                top1_by_epoch=[round(100 * record['top1'], 2) for record in records
                               if record['event'] == 'validation'])


def report(runs, options, out):
    """Write comparison.json, comparison.md and curves.svg of the runs that have ended."""
    ended = [run for run in runs if has_ended(records_of(out / run.folder))]
    results = [result_of(run, out) for run in ended]
    try:
        speeds = json.loads((out / SPEEDS).read_text())
    except FileNotFoundError:
        speeds = {}
    networks = []
    for name in dict.fromkeys(run.network for run in ended):
        config = config_of(name, options)
        built = build.network(config)
        networks.append(dict(
            network=name, parameters=sum(math.prod(p.shape) for p in built.parameters()),
            macs=total_macs(count_macs(built, config.MODEL.IMAGE_SIZE))['total'],
            images_per_second=speeds.get(name)))
    content = dict(networks=networks, runs=results)
    write(out / 'comparison.json', json.dumps(content, indent=1) + '\n')
    write(out / 'comparison.md', as_markdown(content))
    # One run of each network, as many as the figure has colours.
    first = {run.network: run for run in reversed(ended)}
    shown = [run for run in ended if run == first[run.network]][:style.MAX_LINES]
    if shown:
        figure = curves.draw({run.network: curves.read_log(out / run.folder / 'log.jsonl')
                              for run in shown}, kinds=('loss', 'validation'))
        style.save(figure, str(out / 'curves.svg'))


def write(path, text):
    """Replace a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def as_markdown(content):
    """Return two tables: networks, with means over the seeds, and single runs."""
    keys = [key for key in SCORES if all(key in run for run in content['runs'])]
    rows = []
    for network in content['networks']:
        of_network = [run for run in content['runs'] if run['network'] == network['network']]
        for epochs in sorted({run['epochs'] for run in of_network}):
            same = [run for run in of_network if run['epochs'] == epochs]
            speed = network['images_per_second']
            rows.append([
                network['network'], f'{network["parameters"] / 1e6:.2f} M',
                f'{network["macs"] / 1e6:.0f} M', f'{speed:.0f}' if speed else '-',
                str(epochs), str(len(same)),
                *(spread([run[key] for run in same]) for key in keys)])
    tables = [table(['network', 'parameters', 'MACs', 'images/s', 'epochs', 'seeds',
                     *(SCORES[key] for key in keys)], rows)]
    tables.append(table(
        ['run', 'seed', 'epochs', 'steps', *(SCORES[key] for key in keys), 'processor hours'],
        [[run['network'], str(run['seed']), str(run['epochs']), f'{run["steps"]:,}',
          *(f'{run[key]:.2f}' for key in keys),
          '-' if run['processor_hours'] is None else f'{run["processor_hours"]:.2f}']
         for run in content['runs']]))
    error = max((standard_error(run) for run in content['runs']), default=0)
    tables.append('Means over seeds are given with half of their range. A single top-1 has a '
                  f'standard error of up to {error:.2f} points, as its images are a sample.\n')
    return '\n'.join(tables)


def standard_error(run):
    """Return the standard error of a run's top-1, a binomial proportion, in points."""
    share = run['top1'] / 100
    return 100 * math.sqrt(share * (1 - share) / run['validation_images'])


def spread(values):
    """Return the mean of values and, for several, half of their range: `31.20 ± 0.40`."""
    mean = f'{statistics.mean(values):.2f}'
    return f'{mean} ± {(max(values) - min(values)) / 2:.2f}' if len(values) > 1 else mean


def table(head, rows):
    """Return a table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def main(arguments):
    parser = command.parser(__doc__)
    configuration.add_arguments(parser)
    parser.add_argument('runs', nargs='+', metavar='RUN',
                        help='NETWORK, NETWORK:SEED or NETWORK:SEED:EPOCHS')
    parser.add_argument('--out', default='output/comparison', metavar='FOLDER',
                        help='folder of the comparison (default: output/comparison)')
    parser.add_argument('--nproc', type=int, metavar='N',
                        help='processes of a run, which share the batch (default: as many as '
                             'scripts/train.sh starts)')
    parser.add_argument('--measure', action='store_true',
                        help='time training steps instead of training')
    options = parser.parse_args(arguments)
    config = build.load_config(options.config, options.override)
    runs = list(dict.fromkeys(parse_run(text, config.SCHEDULER.NUM_EPOCHS)
                              for text in options.runs))
    out = Path(options.out).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise command.UsageError(f'--out {out}: cannot be made ({error.strerror})') from error
    if options.measure:
        speeds = measure(list(dict.fromkeys(run.network for run in runs)), options)
        write(out / SPEEDS, json.dumps(speeds) + '\n')
        for name, speed in speeds.items():
            print(f'{name}: {speed:.1f} images/s in training')
    else:
        for number, run in enumerate(runs, 1):
            if not has_ended(records_of(out / run.folder)):
                print(f'run {number} of {len(runs)}: {run.folder}', flush=True)
                train(run, options, out, config.TRAIN.TIME_LIMIT_HOURS)
                report(runs, options, out)
    if not any(has_ended(records_of(out / run.folder)) for run in runs):
        return
    report(runs, options, out)
    print((out / 'comparison.md').read_text(encoding='utf-8'), end='')


if __name__ == '__main__':
    command.run(main)
