"""Draw docs/cost.svg: how speed changes with batch, image size and network, beside PyTorch.

    python docs/draw_cost.py --pytorch PYTHON      # measure what is missing in docs/cost.json, draw
    python docs/draw_cost.py                       # draw docs/cost.json

PYTHON is an interpreter that has torch. Each point is a run of tools/benchmark.py, in which this
project and PyTorch take turns; an interrupted measurement goes on with the next point. The dotted
lines are what the number of multiply-accumulates alone would give, from the machine's fastest
matrix products.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RESULTS = FOLDER / 'cost.json'
NETWORKS = ('t2t_vit_7', 't2t_vit_10', 't2t_vit_12', 't2t_vit_14', 't2t_vit_19', 't2t_vit_24',
            't2t_vit_t_14')
# Title of a panel: its points, each (label, network, image size, batch).
PANELS = {
    'images of a batch (t2t_vit_7, 224 pixels)':
        [(str(batch), 't2t_vit_7', 224, batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
    'image size in pixels (t2t_vit_7, batches of 8)':
        [(str(size), 't2t_vit_7', size, 8) for size in (112, 160, 224, 288, 336, 448)],
    'network (224 pixels, batches of 4)':
        [(name.replace('t2t_vit_', ''), name, 224, 4) for name in NETWORKS],
}
# (part of the report, engine, network) of a line: label, colour (Okabe and Ito's), style.
LINES = {
    ('throughput', 'inference', 'fast'): ('inference', '#0072b2', 'o-'),
    ('throughput', 'pytorch', 'plain'): ('inference, PyTorch', '#0072b2', 's--'),
    ('training', 'paddle', ''): ('training', '#d55e00', 'o-'),
    ('training', 'pytorch', ''): ('training, PyTorch', '#d55e00', 's--'),
}


def measure(point, pytorch):
    """Run the benchmark for a point; return {'part engine network': images/s} and the limits."""
    _, network, size, batch = point
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'speed.json'
        subprocess.run(
            [sys.executable, 'tools/benchmark.py', '-c', 'config/t2t_vit_7.yaml', '-o',
             f'MODEL.NAME={network}', f'MODEL.IMAGE_SIZE={size}', '--batch-size', str(batch),
             '--parts', 'throughput,training', '--engines', 'pytorch,inference', '--rounds', '2',
             '--repeats', '2', '--pytorch', pytorch, '--json', str(path)],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        content = json.loads(path.read_text())
    rates = {}
    for row in content['engines']:
        if row['precision'] == 'float32' and row['throughput']['images_per_second']:
            rates[f'throughput {row["engine"]} {row["network"]}'] = (
                row['throughput']['images_per_second']['median'])
    for row in content['training']:
        engine = row['name'].split(',')[0]
        if row['images_per_second']:    # the faster one of the ways to train
            key = f'training {engine} '
            rates[key] = max(rates.get(key, 0), row['images_per_second']['median'])
    limits = [row for row in content['limits'] if row['precision'] == 'float32']
    return dict(machine=content['machine'], macs=content['model']['macs']['total'], rates=rates,
                limit=max(row['images_per_second']['median'] for row in limits),
                training_limit=max(row['training_images_per_second']['median'] for row in limits))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pytorch', metavar='PYTHON', help='measure what is missing')
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for point in (point for points in PANELS.values() for point in points):
        key = ' '.join(map(str, point[1:]))
        if options.pytorch and key not in results:
            results[key] = measure(point, options.pytorch)
            RESULTS.write_text(json.dumps(results, indent=1) + '\n')
            print(key, results[key]['rates'], flush=True)

    matplotlib.style.use(ROOT / 'tools' / 'training' / 'figures.mplstyle')
    pyplot.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 't2t'})
    figure, all_axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.6), layout='constrained')
    for axes, (title, points) in zip(all_axes, PANELS.items()):
        found = [results[' '.join(map(str, point[1:]))] for point in points]
        for (part, engine, network), (label, color, style) in LINES.items():
            axes.plot([one['rates'].get(f'{part} {engine} {network}') for one in found], style,
                      color=color, label=label, markersize=4)
        for limit, color in (('limit', '#0072b2'), ('training_limit', '#d55e00')):
            axes.plot([one[limit] for one in found], ':', color=color, linewidth=1,
                      label='limit by MACs')
        axes.set(yscale='log', title=title, ylabel='images/s')
        axes.set_xticks(range(len(points)), [point[0] for point in points])
    all_axes[0].legend(fontsize=7)
    figure.savefig(FOLDER / 'cost.svg', metadata=dict(Date=None))


if __name__ == '__main__':
    main()
