"""Draw the validation accuracy of runs over their epochs, as an SVG picture.

    python tools/plot.py log/tiny_imagenet_plain.jsonl log/tiny_imagenet_official.jsonl --out a.svg

A run with averaged weights (EMA) has a dashed line for them. Lines are named after their files.
"""

import json
from pathlib import Path
from xml.sax.saxutils import escape

from system import command

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 60, 20, 20, 50    # pixels
COLOURS = ('#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#17becf')
KINDS = {'validation': ('', ''), 'validation_ema': (', EMA', ' stroke-dasharray="6 4"')}


def read_accuracies(path):
    """The validations of a log.jsonl: {'validation': [(epoch, top-1)], 'validation_ema': [...]}.

    Raises:
        UsageError: for a file that is no such log, or that holds no validation.
    """
    found = {kind: [] for kind in KINDS}
    try:
        for line in Path(path).read_text(encoding='utf-8').splitlines():
            record = json.loads(line)
            if record['event'] in found:
                found[record['event']].append((int(record['epoch']) + 1, float(record['top1'])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise command.UsageError(f'{path}: is no log.jsonl of a run ({error})') from error
    if not found['validation']:
        raise command.UsageError(f'{path}: holds no validation yet')
    return found


def draw(logs):
    """An SVG text of {name: accuracies}, as read_accuracies gives them."""
    points = [point for log in logs.values() for line in log.values() for point in line]
    epochs = max(epoch for epoch, _ in points)
    highest = min(1.0, 0.1 * (1 + int(10 * max(top1 for _, top1 in points))))

    def x(epoch):
        return LEFT + (WIDTH - LEFT - RIGHT) * epoch / epochs

    def y(top1):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * top1 / highest

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for step in range(round(10 * highest) + 1):
        top1 = step / 10
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(top1):.1f}" '
                     f'y2="{y(top1):.1f}" stroke="#ddd"/>'
                     f'<text x="{LEFT - 8}" y="{y(top1) + 4:.1f}" text-anchor="end">'
                     f'{100 * top1:.0f} %</text>')
    for epoch in range(0, epochs + 1, max(1, epochs // 6)):
        parts.append(f'<text x="{x(epoch):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
                     f'{epoch}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
                 'epochs (top-1 of the validation images)</text>')
    legend = TOP + 14
    for (name, log), colour in zip(logs.items(), COLOURS):
        for kind, (suffix, dashes) in KINDS.items():
            if not log[kind]:
                continue
            line = ' '.join(f'{x(epoch):.1f},{y(top1):.1f}' for epoch, top1 in log[kind])
            style = f'fill="none" stroke="{colour}" stroke-width="2"{dashes}'
            parts += [f'<polyline points="{line}" {style}/>',
                      f'<polyline points="{LEFT + 15},{legend - 4} {LEFT + 45},{legend - 4}" '
                      f'{style}/><text x="{LEFT + 52}" y="{legend}">{escape(name)}{suffix}: '
                      f'{100 * log[kind][-1][1]:.1f} %</text>']
            legend += 18
    return '\n'.join(parts) + '\n</svg>\n'


def main(arguments):
    parser = command.parser(__doc__)
    parser.add_argument('logs', nargs='+', metavar='LOG', help='log.jsonl of a run')
    parser.add_argument('--out', required=True, metavar='FILE', help='the picture, .svg')
    options = parser.parse_args(arguments)
    if len(options.logs) > len(COLOURS):
        raise command.UsageError(f'{len(options.logs)} logs: draw {len(COLOURS)} at most')
    names = [Path(path).stem if Path(path).stem != 'log' else Path(path).parent.name
             for path in options.logs]
    picture = draw({name: read_accuracies(path) for name, path in zip(names, options.logs)})
    Path(options.out).write_text(picture, encoding='utf-8')
    print(f'{options.out}: {len(names)} run(s)')


if __name__ == '__main__':
    command.run(main)
