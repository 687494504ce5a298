"""Catches published weights that are loaded, evaluated or listed wrongly.

The files come from a server on this machine (tests/support/offers.py): the shipped weights, under
names and with figures made up here.
"""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from conftest import ROOT
from support.offers import CERTIFICATE, Offers

import build
import convert
import val
from system.command import UsageError
from weights.files import WeightsError, read_weights
from zoo import published
from zoo.published import PUBLISHED, Published

WEIGHTS = ROOT / 'output' / 't2t_vit_7_lit_data.pdparams'
# The best accuracy of log/lit_data.log, that of the shipped weights.
TOP1 = re.search(r'best val acc: (\d\.\d{4})', (ROOT / 'log' / 'lit_data.log').read_text())[1]
SAVED = str(ROOT / 'output' / 't2t_vit_7_lit_data.yaml')
LISTS = ['-o', 'TRAIN.VAL_NUM_WORKS=0']


@pytest.fixture
def offers(monkeypatch, tmp_path):
    """A server; published:one and published:two are the shipped weights, published:other is not."""
    monkeypatch.setenv('SSL_CERT_FILE', str(CERTIFICATE))
    monkeypatch.setenv('T2T_CACHE', str(tmp_path / 'cache'))
    for name in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    content = WEIGHTS.read_bytes()
    squash = tmp_path / 'squash.yaml'
    squash.write_text(f'BASE: {SAVED}\nDATA: {{EVAL_TRANSFORM: squash}}\n')
    with Offers({'/one.pdparams': content, '/two.pdparams': content}) as running:
        monkeypatch.setattr(published, 'PUBLISHED', {
            'one': Published('t2t_vit_7', running.address('/one.pdparams'), 98.5, SAVED),
            'two': Published('t2t_vit_7', running.address('/two.pdparams'), 97, str(squash)),
            'other': Published('t2t_vit_14_se', running.address('/no'), 80.0,
                               't2t_vit_14_cifar10.yaml'),
            'few': Published('t2t_vit_7', running.address('/no'), 80.0, 't2t_vit_cifar.yaml')})
        yield running


def test_every_row_has_a_network_a_configuration_and_a_file_of_its_own():
    assert len(PUBLISHED) == 17
    assert len({row.address.rpartition('/')[2] for row in PUBLISHED.values()}) == len(PUBLISHED)
    for name, row in PUBLISHED.items():
        config = build.published_config(row)
        assert row.address.startswith('https://github.com/'), name
        assert config.MODEL.NAME == row.model, name
        if 'yitu-opensource' in row.address:    # the authors write the figure into the name
            assert re.search(rf'\b{row.top1}_|_{row.top1}\.pth', row.address), name
        classes = re.search(r'cifar(\d+)', name)
        assert config.MODEL.NUM_CLASSES == (int(classes[1]) if classes else 1000), name


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    for name in ('T2T_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    assert published.cache_folder() == Path('/home/me/.cache/t2t_vit')
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')    # invalid by the specification
    assert published.cache_folder() == Path('/home/me/.cache/t2t_vit')
    monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
    assert published.cache_folder() == Path('/xdg/t2t_vit')
    monkeypatch.setenv('T2T_CACHE', '~/mine')
    assert published.cache_folder() == Path('/home/me/mine')
    assert published.cache_folder('/given') == Path('/given')


def test_validation_prints_the_published_figure_beside_the_measured_one(offers, capsys, tmp_path):
    config = ['-c', SAVED, '--weights', 'published:one', *LISTS]
    val.main(config)
    said, errors = capsys.readouterr()
    percent = f'{100 * float(TOP1):.2f}'
    assert (f'published: 98.5 % with 48 pixels, center_crop 1, bicubic; measured: {percent} % with '
            '48 pixels, center_crop 1, bicubic, 128 images') in said
    assert f'ImageNet final val acc is:{TOP1}' in said
    assert 'SHA-256 ' in errors and offers.address('/one.pdparams') in errors
    assert (tmp_path / 'cache' / 'one.pdparams').read_bytes() == WEIGHTS.read_bytes()
    val.main(['-c', SAVED, *LISTS, 'MODEL_PATH=published:one', 'DATA.EVAL_TRANSFORM=squash',
              f'MODEL.CACHE={tmp_path}/cache'])
    said, errors = capsys.readouterr()
    assert '% with 48 pixels, squash, bilinear, 128 images' in said and not errors
    assert len(offers.seen) == 1


def test_all_published_weights_with_a_table_that_can_be_continued(offers, capsys, tmp_path):
    results = tmp_path / 'new' / 'results.jsonl'
    command = ['-c', SAVED, '--weights', 'published:all', '--results', str(results), *LISTS]
    offers.faults = ['404']
    assert val.main(command) == 1
    said = capsys.readouterr().out
    assert 'published:one: ' in said and '404' in said
    table = said[said.rindex('weights  '):].splitlines()
    assert [line.split()[0] for line in table] == ['weights', 'one', 'two']
    assert table[1].split()[1:] == ['98.50', 'not', 'run']
    row = table[2].split()
    assert row[1] == '97.00' and float(row[2]) > 90 and float(row[4]) > 0
    [line] = map(json.loads, results.read_text().splitlines())
    assert line['name'] == 'two' and f'{100 * line["top1"]:.2f}' == row[2]

    assert val.main(command) == 0
    said = capsys.readouterr().out
    table = [line.split() for line in said[said.rindex('weights  '):].splitlines()]
    assert table[2] == row and table[1][2] == f'{100 * float(TOP1):.2f}'
    assert said.count('ImageNet final val acc') == 1    # two was not validated again
    assert val.main([*command, 'TRAIN.VAL_BATCH_SIZE=9']) == 0
    assert 'ImageNet final' not in capsys.readouterr().out

    some = tmp_path / 'some.txt'    # other images: the results do not count
    some.write_text(''.join((ROOT / 'lit_data' / 'val.txt').open().readlines()[:5]))
    val.main([*command, f'DATA_PATH.VAL_DATASET_LABEL_PATH={some}'])
    assert capsys.readouterr().out.count('ImageNet final val acc') == 2
    results.write_text('{"name": "one", "data": 3\n')
    with pytest.raises(UsageError, match=rf'{results}:1: is no line of results'):
        val.main(command)
    few = tmp_path / 'few.yaml'
    few.write_text(f'BASE: {SAVED}\nMODEL: {{NUM_CLASSES: 7}}\n')
    with pytest.raises(UsageError, match='published:all: none have 7 classes'):
        val.main(['-c', str(few), '--weights', 'published:all'])


def test_names_that_do_not_fit_are_refused_before_anything_is_downloaded(offers):
    config = build.load_config(SAVED)
    for given, message in [
            ('published:oen', 'published:oen: no published weights of this name, did you mean one'),
            ('published:', 'convert.py --list shows all'),
            ('published:all', 'no published weights of this name'),
            ('published:other', 'published:other: is of t2t_vit_14_se, not of t2t_vit_7: use -c '
                                'config/t2t_vit_14_cifar10.yaml')]:
        with pytest.raises(WeightsError, match=re.escape(message)):
            build.weights_path(config, given)
    assert not offers.seen


def test_training_and_teachers_take_published_weights(offers):
    overrides = ['MODEL.PRETRAINED=published:one', 'MODEL.NUM_CLASSES=3']
    loaded = build.load_start(config := build.load_config(SAVED, overrides), build.network(config))
    assert loaded.fresh == ['head.weight', 'head.bias'] and len(loaded.taken) == 109
    config = build.load_config(SAVED, [
        'DISTILL.TYPE=soft', 'DISTILL.TEACHER=t2t_vit_7', 'DISTILL.WEIGHTS=published:one'])
    assert not build.teacher(config).training
    assert len(offers.seen) == 1


def test_paddle_hub_takes_published_weights(offers, monkeypatch):
    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    published.PUBLISHED['t2t_vit_7'] = published.PUBLISHED['two']
    for given in ('published:one', True):
        network = hubconf.t2t_vit_7(pretrained=given)
        assert (network.img_size, network.num_classes) == (48, 1000)
        state = read_weights(WEIGHTS)[0]
        assert (network.head.bias.numpy() == state['head.bias']).all()
    assert [path for path, _ in offers.seen] == ['/one.pdparams', '/two.pdparams']
    with pytest.raises(WeightsError, match='holds weights of t2t_vit_7, not of|looks like'):
        hubconf.t2t_vit_10(pretrained='published:one')


def test_convert_lists_and_reads_published_weights(offers, capsys, tmp_path):
    convert.main(['published:one', str(tmp_path / 'a.safetensors')])
    assert 'read again, 111 arrays and the logits of two' in capsys.readouterr().out
    convert.main(['--list'])
    said = capsys.readouterr().out
    assert re.search('published:one +98.5 % of 1000 classes, t2t_vit_7 at 48 pixels, center', said)
    assert offers.address('/two.pdparams') in said
    assert f'in {tmp_path}/cache/one.pdparams' in said and 'cache/two' not in said
    assert sorted(os.listdir(tmp_path / 'cache')) == ['one.pdparams', 'one.pdparams.json']
