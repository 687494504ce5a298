"""Catches comparisons whose tables differ from the runs, or that repeat runs after a stop."""

import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import ROOT
from support.runs import write_recipe

import compare
import zoo
from system.command import UsageError
from weights.files import read_weights

RUNS = ('vit_mini:1:1', 't2t_vit_mini')
FOLDERS = ('vit_mini_seed1_epochs1', 't2t_vit_mini_seed0_epochs2')


def command(folder, *more):
    return [sys.executable, 'tools/compare.py', *RUNS, '-c', str(folder / 'recipe.yaml'),
            '--out', str(folder / 'out'), '--nproc', '1', *more]


def compared(folder):
    """Stop a comparison in its second run and repeat it; return its folder, and the first's log."""
    write_recipe(folder, 't2t_vit_mini')
    log = folder / 'out' / FOLDERS[1] / 'log.jsonl'
    stopped = subprocess.Popen(command(folder), cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (log.exists() and '"event": "step"' in log.read_text()):
        assert time.monotonic() < deadline and stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, error
    assert error.splitlines()[-1] == 'stopped: SIGTERM'
    first = (folder / 'out' / FOLDERS[0] / 'log.jsonl').read_bytes()
    done = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'run 2 of 2: {FOLDERS[1]}' in done.stdout and 'run 1 of 2' not in done.stdout
    assert 'going on from' in done.stdout
    assert (folder / 'out' / 'comparison.md').read_text() in done.stdout
    return folder / 'out', first


def test_a_stopped_comparison_goes_on_and_has_the_figures_of_its_runs(tmp_path, capsys):
    out, first = compared(tmp_path)
    nothing_was_repeated(out, first)
    figures_are_those_of_the_runs(out)
    tables_have_the_figures_and_curves_the_networks(out)
    measured_speeds_enter_the_table(out, capsys)


def nothing_was_repeated(out, first):
    assert (out / FOLDERS[0] / 'log.jsonl').read_bytes() == first
    for name in FOLDERS:
        _, metadata = read_weights(out / name / 'last.pdparams')
        assert metadata['model'] == name.partition('_seed')[0]
    # Both parts of the stopped run count.
    assert len((out / FOLDERS[1] / 'processor_time').read_text().split()) == 2


def figures_are_those_of_the_runs(out):
    content = json.loads((out / 'comparison.json').read_text())
    assert [f'{run["network"]}_seed{run["seed"]}_epochs{run["epochs"]}'
            for run in content['runs']] == list(FOLDERS)
    for run, name in zip(content['runs'], FOLDERS):
        text = (out / name / 'train.log').read_text()
        top1 = re.findall(r'^ImageNet val acc is:(\S+)', text, re.MULTILINE)
        assert run['top1_by_epoch'] == [pytest.approx(100 * float(value)) for value in top1]
        assert run['top1'] == run['top1_by_epoch'][-1]
        ema = re.findall(r'^EMA val acc is:(\S+)', text, re.MULTILINE)
        assert run['ema_top1'] == pytest.approx(100 * float(ema[-1]))
        assert run['top1'] <= run['top5'] <= 100 and run['validation_images'] == 20
        assert run['steps'] == 13 * run['epochs'] and 0 < run['processor_hours'] < 0.1
    for network in content['networks']:
        built = zoo.create_model(network['network'], img_size=32)
        assert network['parameters'] == sum(int(np.prod(p.shape)) for p in built.parameters())


def tables_have_the_figures_and_curves_the_networks(out):
    text = (out / 'comparison.md').read_text()
    runs = json.loads((out / 'comparison.json').read_text())['runs']
    for run in runs:
        assert f'| {run["network"]} | {run["seed"]} | {run["epochs"]} | {run["steps"]} |' in text
    names = {element.get('id') for element in ElementTree.parse(out / 'curves.svg').iter()}
    # The one epoch of vit_mini is a point.
    assert {'vit_mini:validation', 't2t_vit_mini:validation', 't2t_vit_mini:loss'} <= names
    assert 't2t_vit_mini:validation_ema' not in names


def measured_speeds_enter_the_table(out, capsys):
    before = (out / 'comparison.json').read_text()
    compare.main(command(out.parent, '--measure')[2:])
    content, before = json.loads((out / 'comparison.json').read_text()), json.loads(before)
    assert content['runs'] == before['runs']
    text = capsys.readouterr().out
    for network in content['networks']:
        assert network['images_per_second'] > 0
        assert f'| {network["images_per_second"]:.0f} |' in text
        assert (f'{network["network"]}: {network["images_per_second"]:.1f} images/s in training'
                in text)


def test_means_are_those_of_runs_with_equal_epochs():
    network = dict(network='a', parameters=2_000_000, macs=3_000_000, images_per_second=None)
    runs = [dict(network='a', seed=seed, epochs=epochs, steps=9, top1=top1, top5=50.0,
                 processor_hours=None, validation_images=2500)
            for seed, epochs, top1 in ((0, 2, 30.0), (1, 2, 31.0), (2, 2, 30.2), (0, 4, 40.0))]
    rows = compare.as_markdown(dict(networks=[network], runs=runs)).splitlines()
    assert rows[2] == '| a | 2.00 M | 3 M | - | 2 | 3 | 30.40 ± 0.50 | 50.00 ± 0.00 |'
    assert rows[3] == '| a | 2.00 M | 3 M | - | 4 | 1 | 40.00 | 50.00 |'
    assert 'standard error of up to 0.98 points' in rows[-1]    # (0.4 * 0.6 / 2500) ** 0.5


def test_the_page_has_the_tables_of_the_shipped_logs(tmp_path, monkeypatch):
    """Made again from the logs by the command of the page, without training."""
    page = (ROOT / 'docs' / 'experiment.md').read_text(encoding='utf-8')
    shipped = ROOT / 'log' / 'tiny_imagenet_mini'
    found = re.search(
        r'    python tools/compare\.py ((?:.+\\\n)*.+--out log/tiny_imagenet_mini)\n', page)
    command = shlex.split(found[1].replace('\\\n', ' '))
    runs = command[:command.index('-c')]
    logs = {path.parent.name for path in shipped.glob('*/log.jsonl')}
    assert {compare.parse_run(text, 5).folder for text in runs} == logs
    for name in logs:
        for file in ('log.jsonl', compare.PROCESSOR_TIME):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(shipped / name / file, tmp_path / name)
    shutil.copy(shipped / compare.SPEEDS, tmp_path)
    monkeypatch.setattr(compare, 'train', None)
    compare.main([*command[:-1], str(tmp_path)])
    for name in ('comparison.json', 'comparison.md'):
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
    assert f'<!-- tables -->\n\n{(shipped / "comparison.md").read_text()}\n<!-- end -->' in page


def test_the_page_says_what_its_logs_say():
    """Every figure of its answer is a mean, or a difference of means after as many epochs."""
    page = (ROOT / 'docs' / 'experiment.md').read_text(encoding='utf-8')
    runs = json.loads((ROOT / 'log/tiny_imagenet_mini/comparison.json').read_text())['runs']
    means = {}
    for run in runs:
        means.setdefault((run['network'], run['epochs']), []).append(run['top1'])
    means = {key: statistics.mean(values) for key, values in means.items()}
    allowed = {f'{mean:.1f}' for mean in means.values()} | {
        f'{abs(one - other):.1f}' for (_, epochs), one in means.items()
        for (_, others), other in means.items() if epochs == others}
    answer = page.partition('**Answer.**')[2].partition('\n## ')[0]
    stated = re.findall(r'(?<![\d.])(\d+\.\d)\s(?:%|points)', answer)
    assert len(stated) == 7 and set(stated) <= allowed


@pytest.mark.parametrize('text, reason', [
    ('vit_minni', 'did you mean vit_mini?'), ('vit_mini:x', 'write NETWORK'),
    ('vit_mini:1:2:3', 'write NETWORK'), ('vit_mini:1:0', 'at least 1')])
def test_a_wrong_run_is_refused_before_training(text, reason, tmp_path):
    with pytest.raises(UsageError, match=re.escape(reason)):
        compare.parse_run(text, 10)
