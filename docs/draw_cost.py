"""Draw docs/cost.svg: how speed changes with batch, image size and network, beside PyTorch.

    python docs/draw_cost.py --pytorch PYTHON    # measure what is not in docs/cost.json yet
    python docs/draw_cost.py                     # only draw, and print the table

PYTHON is an interpreter that has torch. Each point is a run of tools/benchmark.py, in which this
project and PyTorch take turns. An interrupted measurement goes on with the next point. All points
take half an hour, in which nothing else should compute.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT / 'tools'))

from figures import style  # noqa: E402

RESULTS = FOLDER / 'cost.json'
NETWORKS = ('t2t_vit_7', 't2t_vit_10', 't2t_vit_12', 't2t_vit_14', 't2t_vit_19', 't2t_vit_24',
            't2t_vit_t_14')
# Title of a panel: its points, each (label, network, image size, batch).
PANELS = {
    'images a batch (t2t_vit_7, 224 pixels)':
        [(str(batch), 't2t_vit_7', 224, batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
    'side of the images (t2t_vit_7, 8 a batch)':
        [(str(size), 't2t_vit_7', size, 8) for size in (112, 160, 224, 288, 336, 448)],
    'network (224 pixels, 4 a batch)':
        [(name.replace('t2t_vit_', ''), name, 224, 4) for name in NETWORKS],
}
KINDS = {'inference': style.COLOURS[0], 'training': style.COLOURS[1]}


def key(point):
    """The name of a point in the results."""
    _, network, size, batch = point
    return f'{network}, {size} pixels, {batch} a batch'


def measure(point, pytorch):
    """Run the benchmark for a point; see speeds."""
    _, network, size, batch = point
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'speed.json'
        subprocess.run(
            [sys.executable, 'tools/benchmark.py', '-c', 'config/t2t_vit_7.yaml', '-o',
             f'MODEL.NAME={network}', f'MODEL.IMAGE_SIZE={size}', '--batch-size', str(batch),
             '--parts', 'throughput,training', '--engines', 'pytorch,inference', '--rounds', '2',
             '--repeats', '2', '--pytorch', pytorch, '--json', str(path)],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return speeds(json.loads(path.read_text(encoding='utf-8')))


def speeds(report):
    """Images/s in a report of tools/benchmark.py, in float32.

    Returns:
        {'macs': of one image, 'inference' and 'training': {'ours', 'pytorch', 'limit': images/s}},
        None where nothing was measured. Ours is the faster one of several exports. The limit is
        what the MACs take at the speed of the machine's fastest matrix products.
    """
    rows = {
        'inference': [(row['name'], row['throughput']['images_per_second'])
                      for row in report['engines']
                      if row['precision'] == 'float32' and 'throughput' in row],
        'training': [(row['name'], row['images_per_second']) for row in report['training']]}
    limits = {'inference': 'images_per_second', 'training': 'training_images_per_second'}

    def best(found):
        return max((rate['median'] for rate in found if rate), default=None)

    return dict({
        kind: {'ours': best(rate for name, rate in found if not name.startswith('pytorch')),
               'pytorch': best(rate for name, rate in found if name.startswith('pytorch')),
               'limit': best(row[limits[kind]] for row in report['limits']
                             if row['precision'] == 'float32')}
        for kind, found in rows.items()}, macs=report['model']['macs']['total'])


def table(results):
    """The rows of docs/performance.md, in Markdown: images/s, and ratios to PyTorch."""
    lines = ['| network, side, batch | MACs | inference | to PyTorch | training | to PyTorch |',
             '| --- | --- | --- | --- | --- | --- |']
    for name, found in results.items():
        cells = [name, f'{found["macs"] / 1e9:.2f} G']
        for kind in KINDS:
            ours, pytorch = found[kind]['ours'], found[kind]['pytorch']
            cells += [f'{ours:.1f}', f'x{ours / pytorch:.2f}']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def draw(results):
    """Return a Figure with a panel for batch, image size and network."""
    with style.applied():
        figure = style.figure(height=3.8)
        all_axes = figure.subplots(1, len(PANELS))
        for axes, (title, points) in zip(all_axes, PANELS.items()):
            found = [results[key(point)] for point in points]
            for kind, colour in KINDS.items():
                for which, line, label in (('ours', 'o-', kind), ('pytorch', 's--', 'PyTorch'),
                                           ('limit', ':', 'limit by MACs')):
                    axes.plot([one[kind][which] for one in found], line, color=colour, label=label,
                              markersize=4)
            axes.set_yscale('log')
            axes.set_title(title, fontsize=style.SMALL)
            axes.set_xticks(range(len(points)), [label for label, *_ in points])
            axes.tick_params('x', rotation=45 if axes is all_axes[-1] else 0)
        all_axes[0].set_ylabel('images/s')
        lines, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc='outside upper left', ncols=6, frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pytorch', metavar='PYTHON', help='measure what is missing')
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding='utf-8')) if RESULTS.exists() else {}
    for point in (point for points in PANELS.values() for point in points):
        if options.pytorch and key(point) not in results:
            results[key(point)] = measure(point, options.pytorch)
            RESULTS.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
            print(key(point), flush=True)
    print(table(results), end='')
    style.save(draw(results), str(FOLDER / 'cost.svg'))


if __name__ == '__main__':
    main()
