"""Curves of runs: loss and top-1 over the epochs, read from their logs.

    figure = draw({'plain': read_log('log/tiny_imagenet_20_plain.jsonl')})
    save(figure, 'curves.svg')

A log is a run's log.jsonl, or text in the line format of the Paddle repositories of T2T-ViT
(train.log of a run is that as well) and PiT.
"""

import json
import re
from pathlib import Path

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

STYLE = Path(__file__).with_name('figures.mplstyle')
MOST_RUNS = 7    # as many as the style has colours
# kind of a point: panel, how it is named, how it is drawn
KINDS = {
    'loss': (0, None, dict()),
    'train': (1, 'training', dict(linewidth=1, linestyle=':')),
    'validation': (1, '', dict()),
    'validation_ema': (1, 'EMA', dict(linestyle='--')),
}
# What a line of text gives, by the kinds of its figures; the first group is the epoch, where the
# line has one. PiT's counts from 1.
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


class LogError(ValueError):
    """A file that is no log of a run."""

    exit_code = 2


def read_log(path):
    """The figures of a run.

    Where a text's epochs begin again at the first, as in a run that was restarted by hand, they
    are counted on; those that a resumed run repeats replace what was there.

    Returns:
        {kind: [(epochs trained, figure)]} for the kinds 'loss', 'train', 'validation' and
        'validation_ema'; top-1 is a share.

    Raises:
        LogError: for a file that is no log, or has no complete epoch.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(f'{path}: cannot be read: {error}') from error
    is_json = bool(lines) and lines[0].startswith('{')
    try:
        found = _read_json(lines) if is_json else _read_text(lines)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LogError(f'{path}: is no log.jsonl of a run ({error})') from error
    if not any(found.values()):
        raise LogError(f'{path}: has no complete epoch of a run: name a log.jsonl, or a text with '
                       'lines like `Epoch [0/300], avg_Loss: ...`')
    return found


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
    at = offset = 0     # epochs trained; those before the text's own count began
    first = None        # its first number
    for line in lines:
        for pattern, kinds in LINES:
            match = pattern.search(line)
            if match is None:
                continue
            said, *values = match.groups()
            if said:
                number = int(said) + (0 if 'Epoch[' in line else 1)
                first = first or number
                if number <= first and offset + number < at:
                    offset = at + 1 - first
                at = offset + number
            for kind, value in zip(kinds, values):
                if value is not None:
                    found[kind] = [point for point in found[kind] if point[0] < at]
                    found[kind].append((at, float(value)))
    return found


def draw(logs):
    """A figure of {name: what read_log returns}, with at most MOST_RUNS of them."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9, 4.4))
        panels = figure.subplots(1, 2)
        colours = matplotlib.rcParams['axes.prop_cycle'].by_key()['color']
        handles = {}
        for (name, log), colour in zip(logs.items(), colours):
            for kind, (panel, suffix, look) in KINDS.items():
                if not log[kind]:
                    continue
                (line,) = panels[panel].plot(
                    *zip(*((at, value * (100 if panel else 1)) for at, value in log[kind])),
                    color=colour, gid=f'{name}:{kind}', **look)
                if len(log[kind]) == 1:
                    line.set_marker('o')
                if suffix is not None:
                    label = f'{name}, {suffix}' if suffix else name
                    handles[f'{label}: {100 * log[kind][-1][1]:.1f} %'.replace('$', r'\$')] = line
        for panel, title in zip(panels, ('training loss', 'top-1 in %')):
            panel.set(title=title, xlabel='epochs', xlim=(0, None))
            panel.xaxis.get_major_locator().set_params(integer=True)
        panels[1].set_ylim(0, None)
        if handles:
            figure.legend(handles.values(), handles, loc='outside lower center',
                          ncols=2 if len(handles) > 1 else 1, frameon=False)
        return figure


def save(figure, path):
    """Write a figure as .svg or .png, by the path's ending."""
    with matplotlib.style.context(STYLE):
        figure.savefig(path, metadata={'Date': None} if path.endswith('.svg') else None)
