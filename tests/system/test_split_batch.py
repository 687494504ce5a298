"""Catches processes on a CPU that together train on other batches than one process would."""

import json
import subprocess

import pytest
from conftest import ROOT
from support.runs import command

import build
import launch
from config import ConfigError
from system import distributed, start
from training.checkpoint import IncompatibleRun, compare_runs

MIXUP = 'MIXUP.MIXUP_ALPHA=0.8'
SIXTEEN = ['TRAIN.TRAIN_BATCH_SIZE=16', 'MODEL.IMAGE_SIZE=224']    # pixels enough to be shared


@pytest.mark.parametrize('cores, given, overrides, count', [
    (1, None, [], 1), (2, None, [], 2), (3, None, [], 2), (6, None, [], 4), (64, None, [], 16),
    (16, None, [MIXUP, 'TRAIN.TRAIN_BATCH_SIZE=48'], 12),
    (2, None, ['TRAIN.TRAIN_BATCH_SIZE=15'], 1),
    (15, None, ['TRAIN.TRAIN_BATCH_SIZE=15'], 15), (2, None, ['MODEL.IMAGE_SIZE=48'], 1),
    (2, 4, ['MODEL.IMAGE_SIZE=48'], 4), (2, 3, [], 3), (2, 1, [], 1)])
def test_the_number_of_processes(monkeypatch, cores, given, overrides, count):
    monkeypatch.setattr(start, 'available_cores', lambda: cores)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    arguments = ['-c', 'config/lit_data.yaml', '-o', *SIXTEEN, *overrides]
    split = ['-o', 'TRAIN.SPLIT_BATCH=true', *arguments] if count > 1 else arguments
    assert launch.split_batch(given, arguments, per_core=True) == (count, split)
    same = (given, split) if given and given > 1 else (1, arguments)
    assert launch.split_batch(given, arguments) == same


@pytest.mark.parametrize('arguments', [
    ['-c', 'config/nothing.yaml'], ['-c', 'config/lit_data.yaml', '-o', 'TRAIN.SPLIT_BATCH=false']])
def test_arguments_without_a_batch_to_split_stay(monkeypatch, arguments):
    monkeypatch.setattr(start, 'available_cores', lambda: 4)
    assert launch.split_batch(None, arguments, per_core=True) == (1, arguments)
    assert launch.split_batch(3, arguments, per_core=True) == (3, arguments)


def test_threads_that_are_set_take_cores(monkeypatch):
    monkeypatch.setattr(start, 'available_cores', lambda: 4)
    for threads, count in (('2', 2), ('4', 1), ('8', 1), ('', 4)):
        monkeypatch.setenv('OMP_NUM_THREADS', threads)
        arguments = ['-c', 'config/lit_data.yaml', '-o', *SIXTEEN]
        assert launch.split_batch(None, arguments, per_core=True)[0] == count


@pytest.mark.parametrize('files, cores', [
    ({'cpu.max': '150000 100000\n'}, 1.5), ({'cpu.max': 'max 100000\n'}, None), ({}, None),
    ({'cpu/cpu.cfs_quota_us': '400000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 4),
    ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, None)])
def test_the_quota_of_a_container(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert start.cpu_quota(tmp_path) == cores


def loaders(monkeypatch, rank, processes, *overrides):
    monkeypatch.setattr(distributed, 'rank', lambda: rank)
    monkeypatch.setattr(distributed, 'world_size', lambda: processes)
    config = build.load_config('config/lit_data.yaml', [
        'TRAIN.SPLIT_BATCH=true', 'TRAIN.TRAIN_NUM_WORKS=5', 'TRAIN.VAL_NUM_WORKS=0', *overrides])
    return config, build.train_loader(config), build.eval_loader(config)


@pytest.mark.parametrize('processes', [2, 4])
def test_the_parts_of_a_batch_are_those_of_one_process(monkeypatch, processes):
    batch = 'TRAIN.TRAIN_BATCH_SIZE=24'    # the last batch of 2,720 images has 8
    config, one, _ = loaders(monkeypatch, 0, 1, batch)
    images = build.images_a_step(config)
    parts = []
    for rank in range(processes):
        config, train, val = loaders(monkeypatch, rank, processes, batch)
        parts.append(list(train.batch_sampler))
        assert build.images_a_step(config) == images == 24
        assert (train.num_workers, val.num_workers) == ({2: 3, 4: 2}[processes], 0)
        assert val.batch_sampler.batch_size == config.TRAIN.VAL_BATCH_SIZE // processes
    whole = list(one.batch_sampler)
    assert len(whole) == 114 and [sum(step, []) for step in zip(*parts)] == whole


@pytest.mark.parametrize('processes, overrides', [
    (3, []), (2, ['TRAIN.TRAIN_BATCH_SIZE=6', MIXUP])])
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch, processes, overrides):
    with pytest.raises(ConfigError, match=rf'TRAIN_BATCH_SIZE is \d+, which {processes} processes'):
        loaders(monkeypatch, 0, processes, *overrides)


def test_runs_with_the_same_images_a_step_go_on(monkeypatch):
    def identity(processes, batch, split):
        return dict(processes=processes,
                    config={'TRAIN': {'TRAIN_BATCH_SIZE': batch, 'SPLIT_BATCH': split}})

    same = [(1, 16, False), (1, 16, True), (2, 16, True), (2, 8, False), (4, 16, True)]
    for before in same:
        for now in same:
            notes = compare_runs(identity(*before), identity(*now), 'a.ckpt', False)
            assert len(notes) == (before[0] != now[0])
        for now in ((2, 16, False), (2, 8, True), (1, 8, False)):
            with pytest.raises(IncompatibleRun):
                compare_runs(identity(*before), identity(*now), 'a.ckpt', False)


def test_two_processes_log_the_steps_of_one_which_goes_on(recipe, uninterrupted, tmp_path):
    folder = tmp_path / 'run'

    def train(processes):
        python, program, *arguments = command(recipe, folder)
        done = subprocess.run(
            [python, 'tools/launch.py', program, '--split-batch', '--nproc', processes, '--logs',
             tmp_path / 'logs', *arguments], cwd=ROOT, text=True, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def steps(run):
        records = map(json.loads, (run / 'log.jsonl').read_text().splitlines())
        return [(record['event'], record['step'], record.get('lr')) for record in records]

    assert '2 process(es) of 4 images a step, ' in train('2')
    assert steps(folder) == steps(uninterrupted)
    said = train('1')
    assert '2 processes are now 1, at the same 8 images a step' in said and 'Step [' not in said
