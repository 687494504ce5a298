"""Catches a graph that computes in place of a network without being checked, or other scores."""

import csv
import os
import subprocess
import sys
import tempfile

import pytest

import build
import val
from config import ROOT, load_config
from data import loader
from deploy import fast
from system import start


@pytest.fixture(scope='module')
def shipped():
    """The shipped network, its configuration, and the description of its graph."""
    config = load_config('config/lit_data.yaml', ['TRAIN.VAL_NUM_WORKS=0'])
    network, metadata = build.trained_network(config, build.weights_path(config))
    network.eval()
    return network, config, build.description(config, metadata)


@pytest.fixture(scope='module')
def graph(shipped):
    """An engine of the shipped network."""
    network, _, description = shipped
    return fast.fast_network(network, description, lambda line: None)._engine


def test_the_graph_gives_the_scores_of_the_network_and_leaves_no_files(monkeypatch, tmp_path,
                                                                       capsys):
    monkeypatch.setattr(fast, 'FEWEST_PIXELS', 128 * 48 ** 2)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    outputs = []
    for options in ([], ['--engine', 'paddle']):
        val.main([*options, '-o', 'TRAIN.VAL_NUM_WORKS=0'])
        outputs.append(capsys.readouterr().out.splitlines())
    by_graph, plain = outputs
    assert any('the graph computes: on the first 8 images' in line for line in by_graph)
    assert not any('graph' in line for line in plain)
    scores = [next(line for line in lines if line.startswith('top-1')).rpartition(', 128 images')[0]
              for lines in outputs]
    assert scores[0] == scores[1]
    assert by_graph[-1] == plain[-1]
    assert os.listdir(tmp_path) == []


def test_each_process_computes_its_part_by_a_graph_on_cores_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/launch.py', 'tests/support/graph_ranks.py', '--nproc', '2',
         '--logs', tmp_path, '--', '-o', 'TRAIN.VAL_NUM_WORKS=0', 'TRAIN.SPLIT_BATCH=true',
         '--predictions', tmp_path / 'graph.csv'], cwd=ROOT, text=True, capture_output=True,
        timeout=200)
    assert done.returncode == 0, done.stderr
    assert 'the graph computes: on the first 4 images' in done.stdout
    cores = [(tmp_path / f'workerlog.{number}').read_text().splitlines()[-1]
             for number in range(2)]
    assert all(line.startswith('cores: [') for line in cores)
    if start.available_cores() > 1:
        assert cores[0] != cores[1]
    val.main(['--engine', 'paddle', '-o', 'TRAIN.VAL_NUM_WORKS=0', '--predictions',
              str(tmp_path / 'network.csv')])
    graph, network = (list(csv.DictReader((tmp_path / name).read_text().splitlines()))
                      for name in ('graph.csv', 'network.csv'))
    assert len(graph) == len(network) == 128
    for mine, theirs in zip(graph, network):
        assert (mine['path'], mine['class_1']) == (theirs['path'], theirs['class_1'])
        assert float(mine['probability_1']) == pytest.approx(float(theirs['probability_1']),
                                                             abs=1e-5)


@pytest.mark.parametrize('cores', [1, 2])
def test_with_one_core_no_other_process_reads(monkeypatch, capsys, cores):
    started, monitored = [], loader.Workers
    monkeypatch.setattr(start, 'available_cores', lambda: cores)
    monkeypatch.setattr(loader, 'Workers', lambda *arguments: (
        started.append(arguments[1]), monitored(*arguments))[1])
    val.main(['--engine', 'paddle', '-o', 'TRAIN.VAL_NUM_WORKS=3'])
    assert started == [3] * (cores > 1)
    assert '128 images' in capsys.readouterr().out


def test_a_graph_that_fails_in_one_process_computes_in_none(shipped, graph, monkeypatch):
    network, config, _ = shipped
    monkeypatch.setattr(fast.distributed, 'gather_objects', lambda problem: [problem, 'is wrong'])
    said, (images, _) = [], next(iter(build.eval_loader(config)))
    fast_network = fast.FastNetwork(network, graph, said.append)
    assert (fast_network(images).numpy() == network(images).numpy()).all()
    assert said == ['the network computes layer by layer, as its graph is wrong']


def test_a_graph_pays_for_many_or_large_images_on_a_cpu(monkeypatch):
    assert fast.graph_pays(50000, 224) and fast.graph_pays(10000, 64)
    assert not fast.graph_pays(128, 48) and not fast.graph_pays(24, 224)
    monkeypatch.setattr(fast.paddle.device, 'get_device', lambda: 'gpu:0')
    assert not fast.graph_pays(50000, 224)


def test_a_graph_with_other_logits_is_not_used(shipped, graph):
    network, config, _ = shipped
    said, asked = [], []

    def other(images):
        asked.append(len(images))
        return graph(images[:, ::-1])    # blue, green, red

    images, _ = next(iter(build.eval_loader(config)))
    fast_network = fast.FastNetwork(network, other, said.append)
    for _ in range(2):
        assert (fast_network(images).numpy() == network(images).numpy()).all()
    assert 'layer by layer, as its graph differs' in said[0]
    assert asked == [len(images)] and len(said) == 1


def test_the_network_computes_the_first_images_only(shipped, graph):
    network, config, _ = shipped
    said, asked = [], []

    def layer_by_layer(images):
        asked.append(len(images))
        return network(images)

    images, _ = next(iter(build.eval_loader(config)))
    fast_network = fast.FastNetwork(layer_by_layer, graph, said.append)
    for _ in range(2):
        assert fast_network(images).shape == [len(images), config.MODEL.NUM_CLASSES]
    assert len(images) > fast.CHECKED_IMAGES
    assert asked == [fast.CHECKED_IMAGES] and len(said) == 1


def test_a_network_that_cannot_be_a_graph_computes_itself(shipped, monkeypatch):
    network, _, description = shipped

    def refuse(*_):
        raise RuntimeError('no such operator')

    monkeypatch.setattr(fast.exports, 'write_graph', refuse)
    said = []
    assert fast.fast_network(network, description, said.append) is network
    assert said == ['the network computes layer by layer, as it cannot be a graph: '
                    'no such operator']
