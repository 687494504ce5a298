"""Draws loss and top-1 of runs over their epochs, from their logs.

    figure = draw({'plain': read_log('log/tiny_imagenet_20_plain.jsonl')})
    style.save(figure, 'curves.svg')

A log is a log.jsonl, or text in the format of the Paddle repositories of T2T-ViT (also that of
train.log) or PiT.
"""

import json
import re
from pathlib import Path

from figures import style

# kind of curve: (panel, suffix of the label, line style)
KINDS = {
    'loss': (0, None, dict()),
    'train': (1, 'training', dict(linewidth=1, linestyle=':')),
    'validation': (1, '', dict()),
    'validation_ema': (1, 'EMA', dict(linestyle='--')),
}
# (pattern, kinds of its values). The first group is the epoch, or empty; PiT counts from 1.
LINES = (
    (re.compile(r'Epoch \[(\d+)/\d+\], avg_Loss: ([\d.]+)(?:, avg_acc: ([\d.]+))?'),
     ('loss', 'train')),
    (re.compile(r'\bEpoch\[(\d+)/\d+\], Train Loss: ([\d.]+), Train Acc: ([\d.]+)'),
     ('loss', 'train')),
    (re.compile(r'^()ImageNet val acc is:([\d.]+)'), ('validation',)),
    (re.compile(r'^()EMA val acc is:([\d.]+)'), ('validation_ema',)),
    (re.compile(r'\bEpoch\[(\d+)/\d+\], Validation Loss: [\d.]+, Validation Acc@1: ([\d.]+)'),
     ('validation',)),
)
# (epoch, step, steps, rate) and PiT's (epoch, rate)
STEP = re.compile(r'Epoch \[(\d+)/\d+\], Step \[(\d+)/([1-9]\d*)\], .*\blr: (\d+\.\d+)')
PIT_RATE = re.compile(r'\btraining epoch (\d+)\. LR=(\d+\.\d+)')


class LogError(ValueError):
    """A file that is not the log of a run."""

    exit_code = 2


def read_log(path):
    """Read the curves of a run.

    If the epochs of a text start again at the first one (a run restarted by hand), counting
    continues. Epochs that a resumed run repeats replace the earlier ones.

    Returns:
        {kind: [(epochs trained, value)]} for the kinds 'loss', 'train', 'validation' and
        'validation_ema'; top-1 is between 0 and 1.

    Raises:
        LogError: for a file that is not a log, or has no complete epoch.
    """
    lines = _lines(path)
    is_json = bool(lines) and lines[0].startswith('{')
    try:
        found = _read_json(lines) if is_json else _read_text(lines)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LogError(f'{path}: is no log.jsonl of a run ({error})') from error
    if not any(found.values()):
        raise LogError(f'{path}: has no complete epoch of a run: name a log.jsonl, or a text with '
                       'lines like `Epoch [0/300], avg_Loss: ...`')
    return found


class Epochs:
    """Counts the epochs of a text whose numbers may start again.

    Attributes:
        trained: epochs so far.
    """

    def __init__(self):
        self.trained = self.offset = 0    # epochs before the last restart
        self.first = None                 # first number in the text

    def count(self, number):
        """Count an epoch by its number in the text, from 1."""
        self.first = self.first or number
        if number <= self.first and self.offset + number < self.trained:
            self.offset = self.trained + 1 - self.first
        self.trained = self.offset + number


def read_rates(path):
    """Read the learning rates that a text log prints.

    Epochs count on where a run was restarted by hand, as in read_log.

    Returns:
        list of (epoch, batch of the epoch, batches in an epoch, rate as printed), from 0.

    Raises:
        LogError: for a file that is not a log, or has no rates.
    """
    found, epochs = [], Epochs()
    for line in _lines(path):
        if match := STEP.search(line):
            epoch, step, steps, rate = match.groups()
            epochs.count(int(epoch) + 1)
            found.append((epochs.trained - 1, int(step) - 1, int(steps), rate))
        elif match := PIT_RATE.search(line):
            epochs.count(int(match[1]))
            found.append((epochs.trained - 1, 0, 1, match[2]))
    if not found:
        raise LogError(f'{path}: has no learning rates: name a text with lines like '
                       '`Epoch [0/300], Step [100/1252], ... lr: 0.0002`')
    return found


def _lines(path):
    try:
        return Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f'{path}: cannot be read: {error}') from error


def _read_json(lines):
    found = {kind: [] for kind in KINDS}
    for line in lines:
        record = json.loads(line)
        if record['event'] == 'epoch':
            values = dict(loss=record['loss'], train=record['acc'])
        elif record['event'] in found:
            values = {record['event']: record['top1']}
        else:
            continue
        for kind, value in values.items():
            found[kind].append((int(record['epoch']) + 1, float(value)))
    return found


def _read_text(lines):
    found = {kind: [] for kind in KINDS}
    epochs = Epochs()
    for line in lines:
        for pattern, kinds in LINES:
            match = pattern.search(line)
            if match is None:
                continue
            epoch, *values = match.groups()
            if epoch:
                epochs.count(int(epoch) + (0 if 'Epoch[' in line else 1))
            for kind, value in zip(kinds, values):
                if value is not None:
                    found[kind] = [point for point in found[kind] if point[0] < epochs.trained]
                    found[kind].append((epochs.trained, float(value)))
    return found


def draw(logs, kinds=tuple(KINDS)):
    """Return a Figure of {name: result of read_log}, at most style.MAX_LINES; see KINDS."""
    with style.applied():
        figure = style.figure(4.4)
        panels = figure.subplots(1, 2)
        handles = {}
        for (name, log), colour in zip(logs.items(), style.COLOURS):
            for kind, (panel, suffix, look) in KINDS.items():
                if kind not in kinds or not log[kind]:
                    continue
                (line,) = panels[panel].plot(
                    *zip(*((epoch, value * (100 if panel else 1)) for epoch, value in log[kind])),
                    color=colour, gid=f'{name}:{kind}', **look)
                if len(log[kind]) == 1:
                    line.set_marker('o')
                if suffix is not None:
                    label = f'{name}, {suffix}' if suffix else name
                    handles[style.literal(f'{label}: {100 * log[kind][-1][1]:.1f} %')] = line
        for panel, title in zip(panels, ('training loss', 'top-1 in %')):
            panel.set(title=title, xlabel='epochs', xlim=(0, None))
            panel.xaxis.get_major_locator().set_params(integer=True)
        panels[1].set_ylim(0, None)
        if handles:
            figure.legend(handles.values(), handles, loc='outside lower center',
                          ncols=2 if len(handles) > 1 else 1, frameon=False)
        return figure

