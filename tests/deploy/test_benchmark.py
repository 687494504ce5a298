"""Catches wrong MACs, ratios and tables of the benchmark, and failures that affect other rows."""

import copy
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT

import benchmark
import zoo
from benchmark import Row, Worker, WorkerError
from zoo.macs import count_macs, total_macs

# One network of each class, as the others differ only in size.
ONE_OF_EACH = {network: name for name, (network, _) in reversed(list(zoo.MODELS.items()))}
NETWORKS = [(name, {}) for name in ONE_OF_EACH.values()] + [
    ('t2t_vit_t_14', {}), ('t2t_vit_7', {'tokens_type': 'convolution'})]


def products_computed(network, size, monkeypatch):
    """Reference MACs: from the shapes of all products that Paddle computes."""
    seen = dict(linear=0, attention=0)
    functional = paddle.nn.functional
    linear, convolution, matmul = functional.linear, functional.conv._conv_nd, paddle.matmul

    def seen_linear(x, weight, *args, **kwargs):
        seen['linear'] += math.prod(x.shape) * weight.shape[1]
        return linear(x, weight, *args, **kwargs)

    def seen_convolution(x, weight, *args, **kwargs):
        output = convolution(x, weight, *args, **kwargs)
        seen['linear'] += math.prod(output.shape) * math.prod(weight.shape[1:])
        return output

    def seen_matmul(x, y, transpose_x=False, transpose_y=False):
        output = matmul(x, y, transpose_x, transpose_y)
        shared = x.shape[-2] if transpose_x else x.shape[-1]
        seen['attention'] += math.prod(output.shape) * shared
        return output

    with monkeypatch.context() as patch, paddle.no_grad():
        patch.setattr(functional, 'linear', seen_linear)
        patch.setattr(functional.conv, '_conv_nd', seen_convolution)
        patch.setattr(paddle, 'matmul', seen_matmul)
        network(paddle.zeros([1, 3, size, size]))
    return seen


@pytest.mark.parametrize('name, options', NETWORKS)
def test_macs_are_those_of_the_products_that_paddle_computes(name, options, monkeypatch):
    network = zoo.create_model(name, img_size=64, num_classes=10, **options)
    network.eval()
    found = total_macs(count_macs(network, 64))
    seen = products_computed(network, 64, monkeypatch)
    attends = any(hasattr(layer, 'attention_macs') for layer in network.sublayers())
    assert seen['linear'] > 0 and bool(seen['attention']) == attends
    assert found == dict(seen, total=seen['linear'] + seen['attention'])


def without_random_weights(name):
    """Build a network of zeros, as random weights take seconds to draw."""
    with paddle.LazyGuard():
        network = zoo.create_model(name)
    for parameter in network.parameters():
        parameter.set_value(np.zeros(parameter.shape, np.float32))
    return network


@pytest.mark.parametrize('name, published', [
    ('t2t_vit_7', 1.1), ('t2t_vit_10', 1.5), ('t2t_vit_12', 1.8), ('t2t_vit_14', 4.8),
    ('t2t_vit_19', 8.5), ('t2t_vit_t_14', 6.1), ('t2t_vit_t_19', 9.8), ('t2t_vit_t_24', 15.0)])
def test_macs_are_the_papers(name, published):
    network = without_random_weights(name)
    layers = count_macs(network, 224)
    macs = total_macs(layers)
    assert round(macs['total'] / 1e9, 1) == published
    assert network.training and sum(layer.macs for layer in layers) == macs['total']
    if name == 't2t_vit_7':
        assert macs['linear'] == 975_534_080    # what paddle.flops gives


def test_no_way_to_count_gives_the_papers_macs_of_t2t_vit_24():
    def by_layer(name):
        sums = {}
        for layer in count_macs(without_random_weights(name), 224):
            kind = re.sub(r'\d+', '', layer.name), layer.kind
            sums[kind] = sums.get(kind, 0) + layer.macs
        return sums

    small, large = by_layer('t2t_vit_7'), by_layer('t2t_vit_24')
    assert small.keys() == large.keys()
    missing = 13.75e9 - sum(large.values())    # to what rounds to 13.8
    room = 1.15e9 - sum(small.values())        # before T2T-ViT-7 is no longer 1.1
    growth = max(large[kind] / small[kind] for kind in small)
    assert round(missing / 1e6) == 88 and round(room / 1e6) == 3 and 20 < growth < 21
    assert round(room * growth / 1e6) == 65


@pytest.mark.skipif(int(np.__version__.split('.')[0]) > 1, reason='paddle.flops needs numpy 1')
def test_linear_macs_are_those_of_paddle_flops():
    network = zoo.create_model('t2t_vit_7', num_classes=7)
    linear = total_macs(count_macs(network, 224))['linear']
    assert linear == paddle.flops(network, [1, 3, 224, 224], custom_ops={
        layer: lambda *_: None for layer in (paddle.nn.LayerNorm, paddle.nn.GELU)})


# ---- processes

def process(program, timeout=30):
    """A function that makes Workers of a Python program in place of benchmark_worker.py."""
    return lambda request, threads, _: Worker(request, threads, timeout,
                                              (sys.executable, '-c', program))


ANSWERS = '''
import json, sys
sys.stdin.readline()
print(json.dumps(dict(device='cpu', macs=10)), flush=True)
for line in sys.stdin:
    repeats = json.loads(line)['repeats']
    print(json.dumps(dict(seconds=[0.5] * repeats, peak_memory=1.0)), flush=True)
'''
DIES_LATER = '''
import json, os, sys
sys.stdin.readline()
print(json.dumps(dict(device='cpu')), flush=True)
sys.stdin.readline()
print('a last line', file=sys.stderr, flush=True)
os.abort()
'''


def test_a_failing_engine_does_not_affect_other_rows(capfd):
    programs = dict(good=ANSWERS, dead='raise SystemExit("no engine")', late=DIES_LATER,
                    silent='import time; time.sleep(60)', babbles='print("hello")', fine=ANSWERS)
    rows = [Row(name, dict(name=name), ('latency',)) for name in programs]
    started = []

    def make_worker(request, threads, timeout):
        name = request['name']
        worker = process(programs[name], 1 if name == 'silent' else 30)(request, threads, timeout)
        started.append(worker.process)
        return worker

    options = SimpleNamespace(threads=1, timeout=30, rounds=2, repeats=3)
    benchmark.measure(rows, options, make_worker)
    errors = {row.name: row.error for row in rows}
    assert errors['good'] is None and errors['fine'] is None
    assert 'exit code 1' in errors['dead'] and 'no engine' in errors['dead']
    assert 'SIGABRT' in errors['late'] and 'a last line' in errors['late']
    assert 'no answer within 1 s' in errors['silent']
    assert 'cannot be read' in errors['babbles'] or 'exit code' in errors['babbles']
    for row in rows:
        wanted = [[0.5] * 3] * 2 if row.error is None else None
        assert row.rounds.get('latency') == wanted
    assert all(child.poll() is not None for child in started)    # all have ended
    assert 'no engine' in capfd.readouterr().err


def test_a_worker_reports_the_error_of_an_engine():
    worker = Worker(dict(run='engine', engine='onnxruntime', export='nowhere.onnx', threads=1),
                    threads=1, timeout=120)
    with pytest.raises(WorkerError, match='^nowhere.onnx: no such export$'):
        worker.answer()
    worker.close()


@pytest.mark.parametrize('name', ['t2t_vit_7', 't2t_vit_t_14'])
def test_pytorch_has_the_same_network(name, tmp_path):
    """Logits of the PyTorch side from weights written for it, where PyTorch is installed."""
    python = os.environ.get('T2T_PYTORCH')
    if not python:
        pytest.skip('T2T_PYTORCH names no interpreter with torch')
    request = dict(config='config/lit_data.yaml', weights=None, threads=1, batch_size=2,
                   override=[f'MODEL.NAME={name}', 'MODEL.IMAGE_SIZE=32'], network='plain',
                   engine='pytorch', precision='float32', python=python,
                   export=str(tmp_path / 'weights.npz'))
    rows = [Row('pytorch', dict(request, run='engine'), ('latency',)),
            Row('paddle', dict(request, run='engine', engine='paddle'), ('latency',))]
    options = SimpleNamespace(threads=1, timeout=120, rounds=1, repeats=1)
    benchmark.make_exports(rows, options)
    benchmark.measure(rows, options)
    ours, theirs = (np.array(row.about['logits']) for row in rows)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


# ---- the report

def row_of(name, precision, seconds, call, **about):
    request = dict(engine='paddle', network='plain', precision=precision)
    return Row(name, request, (call,), about=dict(device='cpu', **about),
               rounds={call: [[value] for value in seconds]})


def test_ratios_and_limits_are_taken_round_by_round():
    """In the second round the machine has half the speed, which changes no ratio or share."""
    rows = dict(
        limits=[row_of('slow', 'float32', [8, 16], 'limit', macs=10 ** 9),
                row_of('best', 'float32', [1, 2], 'limit', macs=10 ** 9),
                row_of('other', 'bfloat16', [0.1, 0.2], 'limit', macs=10 ** 9)],
        engines=[row_of('one', 'float32', [2, 4], 'throughput', logits=[[1.0, -4.0]]),
                 row_of('two', 'float32', [1, 2], 'throughput', logits=[[1.0, -3.0]])],
        training=[], loader=[])
    options = SimpleNamespace(batch_size=5, config='', override=[], weights=None, rounds=2,
                              repeats=1, parts=('throughput',))
    content = benchmark.report(rows, {}, dict(macs=dict(total=10 ** 8)), options)
    one, two = content['engines']
    assert content['compared_with'] == 'one'
    assert [one['throughput']['speed_ratio'], two['throughput']['speed_ratio']] == [1.0, 2.0]
    # 5 images of 0.2 GFLOP in 2 s, where 2 GFLOP/s are possible
    assert math.isclose(one['throughput']['share_of_limit'], 0.25)
    assert math.isclose(two['throughput']['share_of_limit'], 0.5)
    assert two['difference'] == 0.25
    assert two['throughput']['images_per_second']['median'] == 3.75
    assert [limit['gflops']['range'] for limit in content['limits'][:2]] == [[0.125, 0.25], [1, 2]]
    assert content['limits'][1]['images_per_second']['range'] == [5, 10]


# ---- the command

@pytest.fixture(scope='module')
def tiny_run(tmp_path_factory):
    """A finished command and its JSON, without an ONNX Runtime that can be imported."""
    folder = tmp_path_factory.mktemp('benchmark')
    (folder / 'onnxruntime.py').write_text('raise ImportError("broken")')
    broken = {'PYTHONPATH': str(folder)} if importlib.util.find_spec('onnxruntime') else {}
    done = subprocess.run(
        [sys.executable, 'tools/benchmark.py', '-o', 'MODEL.IMAGE_SIZE=32', '--batch-size', '2',
         '--rounds', '1', '--repeats', '1', '--threads', '1', '--workers', '0', '--per-layer',
         '--engines', 'paddle,inference,onnxruntime', '--json', str(folder / 'speed.json')],
        cwd=ROOT, env={**os.environ, **broken}, capture_output=True, text=True,
        timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads((folder / 'speed.json').read_text())


def test_a_tiny_run_writes_all_results(tiny_run):
    _, content = tiny_run
    assert set(content) == {'schema', 'machine', 'model', 'settings', 'compared_with', 'limits',
                            'engines', 'training', 'loader'}
    assert content['schema'] == 4 and content['settings']['weights'] == 'random'
    about = content['machine']
    assert about['threads'] == 1 and about['versions']['python'] and about['cpu']
    model = content['model']
    assert model['trainable_parameters'] == 4_255_694
    assert model['macs']['total'] == sum(layer['macs'] for layer in model['layers'])
    assert any(layer['name'] == 'blocks.0.attn.qkv' for layer in model['layers'])
    assert {row['precision'] for row in content['limits']} == (
        {'float32', 'bfloat16'} if about['bfloat16'] else {'float32'})
    # Paddle 2.6 cannot run this graph in bfloat16.
    running = [row for row in content['engines'] if row['engine'] != 'onnxruntime'
               and (row['precision'] == 'float32' or not row['error'])]
    for row in running + content['training'] + content['loader'] + content['limits']:
        assert row['error'] is None, row
    assert [row['name'] for row in running[:3]] == [
        'paddle, plain, float32', 'inference, plain, float32', 'inference, fast, float32']
    for row in running:
        assert row['device'] in ('cpu', 'gpu') and row['peak_memory_mib'] > 50
        assert row['difference'] < (1e-4 if row['precision'] == 'float32' else 0.2)
        for call in ('latency', 'throughput'):
            figures = row[call]
            assert figures['speed_ratio'] > 0 and figures['share_of_limit'] > 0
            for spread in (figures['seconds'], figures['images_per_second']):
                low, high = spread['range']
                assert 0 < low <= spread['median'] <= high and spread['count'] == 1
    assert [row['name'] for row in content['training']] == ['paddle']
    for row in content['training']:
        assert row['images_a_step'] == 2 and row['peak_memory_mib'] > 50
        assert row['images_per_second']['median'] > 0 and row['share_of_limit'] > 0
    assert content['training'][0]['speed_ratio'] == 1
    assert [row['name'] for row in content['loader']] == ['0 processes', '0 processes, validation']


def test_the_figure_of_cost_takes_the_fastest_way_of_a_report(tiny_run, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'docs')
    import draw_cost
    content = copy.deepcopy(tiny_run[1])
    found = draw_cost.speeds(content)
    assert found['inference']['pytorch'] is None and found['training']['pytorch'] is None
    content['engines'].append(dict(
        name='pytorch, plain, float32', precision='float32',
        throughput=dict(images_per_second=dict(median=1e9))))
    content['training'].insert(0, dict(name='pytorch', images_per_second=dict(median=1e8)))
    again = draw_cost.speeds(content)
    assert (again['inference']['pytorch'], again['training']['pytorch']) == (1e9, 1e8)
    assert again['macs'] == content['model']['macs']['total']
    rates = [row['throughput']['images_per_second']['median'] for row in content['engines'][:-1]
             if row['precision'] == 'float32' and not row['error']]
    assert again['inference']['ours'] == found['inference']['ours'] == max(rates)
    assert again['training']['ours'] == max(
        row['images_per_second']['median'] for row in content['training'][1:])
    assert again['inference']['limit'] == pytest.approx(3 * again['training']['limit'])


def test_the_table_and_the_figure_of_cost_are_the_shipped_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'docs')
    import draw_cost
    results = json.loads((ROOT / 'docs' / 'cost.json').read_text(encoding='utf-8'))
    page = (ROOT / 'docs' / 'performance.md').read_text(encoding='utf-8')
    assert draw_cost.table(results) in page
    drawn = draw_cost.draw(results)
    for axes, points in zip(drawn.axes, draw_cost.PANELS.values()):
        lines = axes.get_lines()
        assert len(lines) == 6 and len(lines[0].get_ydata()) == len(points)
        for (_, network, side, batch), speed in zip(points, lines[0].get_ydata()):
            found = results[f'{network}, {side} pixels, {batch} a batch']
            assert speed == found['inference']['ours']


def test_a_tiny_run_prints_tables_on_stdout_and_progress_on_stderr(tiny_run):
    done, content = tiny_run
    lines = done.stdout.splitlines()
    assert '4,255,694 of them trainable' in done.stdout
    assert any(line.startswith('tokens_to_token.project ') for line in lines)
    assert any(line.startswith('training, 2 images a step ') for line in lines)
    for row in content['engines'] + content['limits']:
        assert sum(line.startswith(row['name']) for line in lines) == 1
    assert 'round 1 of 1' in done.stderr and 'round 1 of 1' not in done.stdout


def test_a_missing_engine_is_reported_in_its_rows(tiny_run):
    done, content = tiny_run
    broken = [row for row in content['engines'] if row['engine'] == 'onnxruntime']
    assert [row['network'] for row in broken] == ['plain', 'fast']
    for row in broken:
        assert row['error'].startswith('export: ')
        assert row['latency']['seconds'] is None and row['throughput']['share_of_limit'] is None
        assert re.search(f'^{re.escape(row["name"])} +FAILED: {re.escape(row["error"])}$',
                         done.stdout, re.MULTILINE)


@pytest.mark.parametrize('arguments, words', [
    (['--engines', 'tensorrt'], 'tensorrt is none of pytorch, paddle'),
    (['--parts', ''], 'nothing is none of model'),
    (['--rounds', '0'], 'no whole number from 1 on'),
    (['--engines', 'pytorch'], 'name the interpreter that has torch'),
    (['--json', 'no/such/folder/speed.json'], 'its folder does not exist'),
    (['--weights', 'nowhere.pdparams', '--parts', 'model'], 'nowhere.pdparams')])
def test_wrong_input_is_refused_before_anything_is_measured(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.command, 'leave', sys.exit)
    with pytest.raises(SystemExit) as caught:
        benchmark.command.run(benchmark.main, arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
