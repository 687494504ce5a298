"""Catches wrong averages and wrong accumulated gradients, in one process and in two."""

import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn
from support.plain import Plain
from support.runs import launch, learn

import zoo
from config import ConfigError, load_config
from recipe.ema import Ema
from train import Training
from training.checkpoint import capture, restore
from weights.container import CheckpointError, read_checkpoint, write_checkpoint


class Everything(nn.Layer):
    """All kinds of tensors in a state dict: trained, frozen, float and integer buffers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.frozen = self.create_parameter([5])
        self.frozen.stop_gradient = True
        self.frozen.set_value(np.float32([0.1, 1 / 3, 1e-8, 3e7, -2.7]))
        self.register_buffer('running', paddle.ones([2]))
        self.register_buffer('count', paddle.zeros([1], 'int64'))

    def forward(self, x):
        return self.linear(x)


def walk(network, ema, steps, seed=0):
    """Change the weights and average them, by `ema` and independently in float64."""
    rng = np.random.default_rng(seed)
    average = {name: value.numpy().astype('float64')
               for name, value in network.state_dict().items()}
    for step in range(1, steps + 1):
        for value in (network.linear.weight, network.linear.bias, network.running):
            value.set_value(rng.normal(size=value.shape).astype('float32'))
        network.count.set_value(np.int64([step]))
        ema.update()
        decay = min(ema.decay, (1 + step) / (10 + step)) if ema.warmup else ema.decay
        for name, value in network.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value.numpy()
    return average


@pytest.mark.parametrize('decay, warmup', [(0.9, False), (0.9, True), (0.2, True), (0.9999, True)])
def test_averages_follow_the_formula(decay, warmup):
    network = Everything()
    ema = Ema(network, decay, warmup)
    expected = walk(network, ema, steps=20)
    assert set(ema.average) == set(expected) and ema.updates == 20
    for name in ('linear.weight', 'linear.bias', 'running'):
        np.testing.assert_allclose(ema.average[name], expected[name], rtol=1e-5, atol=1e-6)
    assert ema.average['count'].item() == 20, 'integers are copied'
    np.testing.assert_array_equal(ema.average['frozen'], network.frozen)


def test_half_precision_is_averaged_in_float32():
    network = nn.Linear(2, 2).to(dtype='float16')
    ema = Ema(network, 0.9999, warmup=False)
    start = ema.average['weight'].numpy()
    network.weight.set_value((network.weight.numpy() + 1).astype('float16'))
    ema.update()
    moved = ema.average['weight'].numpy() - start
    assert moved.dtype == np.float32 and (abs(moved - 1e-4) < 1e-5).all()
    with ema.in_network():
        assert network.weight.dtype == paddle.float16
    assert (ema.average['weight'].numpy() - start == moved).all()


def test_in_network_swaps_the_averages_in_and_restores_the_weights():
    network = Everything()
    ema = Ema(network, 0.9)
    walk(network, ema, steps=3)
    own = {name: value.numpy() for name, value in network.state_dict().items()}
    average = {name: value.numpy() for name, value in ema.average.items()}
    x = paddle.ones([1, 3])
    for error in (None, RuntimeError):
        try:
            with ema.in_network():
                inside = {name: value.numpy() for name, value in network.state_dict().items()}
                actual = network(x).numpy()
                if error:
                    raise error
        except RuntimeError:
            pass
        for name in own:
            np.testing.assert_array_equal(inside[name], average[name], err_msg=name)
            np.testing.assert_array_equal(network.state_dict()[name], own[name], err_msg=name)
            np.testing.assert_array_equal(ema.average[name], average[name], err_msg=name)
        expected = average['linear.weight'].sum(axis=0) + average['linear.bias']
        np.testing.assert_allclose(actual[0], expected, rtol=1e-5)
    network(x).sum().backward()    # training continues
    assert network.linear.weight.grad is not None and network.frozen.stop_gradient


def test_a_checkpoint_holds_the_averages_to_the_bit(tmp_path):
    network = Everything()
    optimizer = paddle.optimizer.AdamW(parameters=network.linear.parameters())
    ema = Ema(network, 0.99)
    walk(network, ema, steps=5)
    write_checkpoint(tmp_path / 'a.ckpt', capture(network, optimizer, ema=ema), {})
    arrays, _ = read_checkpoint(tmp_path / 'a.ckpt')
    assert {'ema/linear.weight', 'ema/frozen', 'ema/count'} <= set(arrays)

    other = Everything()
    other_ema = Ema(other, 0.99)
    other_optimizer = paddle.optimizer.AdamW(parameters=other.linear.parameters())
    restore(other, other_optimizer, arrays, 'a.ckpt', other_ema)
    for _ in range(2):
        assert ema.updates == other_ema.updates
        for name, value in ema.state_dict().items():
            np.testing.assert_array_equal(other_ema.state_dict()[name], value, err_msg=name)
        walk(network, ema, steps=4, seed=1)
        walk(other, other_ema, steps=4, seed=1)

    without = {name: array for name, array in arrays.items() if not name.startswith('ema/')}
    restore(other, other_optimizer, without, 'a.ckpt', other_ema)
    assert other_ema.updates == 0, 'a checkpoint without averages: they start from its weights'
    np.testing.assert_array_equal(other_ema.average['linear.weight'],
                                  arrays['network/linear.weight'])
    for wrong in ({'ema/linear.weight': np.zeros((1, 1))}, {'ema/more': np.zeros(1)}):
        with pytest.raises(CheckpointError, match='a.ckpt: has averages of another network'):
            restore(other, other_optimizer, {**arrays, **wrong}, 'a.ckpt', other_ema)


@pytest.mark.parametrize('decay', [1, -0.1, 1.5])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ConfigError, match='EMA.DECAY must be'):
        load_config('config/lit_data.yaml', [f'EMA.DECAY={decay}'])


# ---- optimizer steps of several batches

@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a run of a small network on 38 images."""
    monkeypatch.setitem(zoo.MODELS, 'plain', (Plain, {}))
    lines = (ROOT / 'lit_data' / 'train.txt').read_text().splitlines()
    (tmp_path / 'train.txt').write_text('\n'.join(lines[::len(lines) // 38][:38]) + '\n')
    return lambda *overrides: Training(load_config('config/lit_data.yaml', [
        'MODEL.NAME=plain', 'MODEL.IMAGE_SIZE=16', 'TRAIN.TRAIN_NUM_WORKS=0', 'EMA.DECAY=0.99',
        f'TRAIN.OUTPUT_DIR={tmp_path}/run', 'TRAIN.VISUALDL=false', 'TRAIN.LABEL_SMOOTHING=0.1',
        'SCHEDULER.WARMUP_START_LR=1e-4',
        f'DATA_PATH.TRAIN_DATASET_LABEL_PATH={tmp_path}/train.txt', *overrides]))


def steps_of(run):
    """Gradients and rate of every optimizer step of an epoch, without changing the weights."""
    steps = []

    def update(epoch, step):
        steps.append(([p.grad.numpy() for p in run.stepper.trainable], run.stepper.rate))
        run.stepper.optimizer.clear_grad()
        return []

    run.stepper.update = update
    for images, labels in run.train_loader:
        learn(run, images, labels)
    return steps


@pytest.mark.parametrize('batch_size, accumulate', [(4, 4), (2, 8), (1, 16), (6, 100)])
def test_accumulated_gradients_equal_those_of_one_batch(start, batch_size, accumulate):
    """The last group of an epoch is smaller; with (4, 4) it has a batch of 4 and one of 2."""
    whole = batch_size * accumulate
    expected = steps_of(start(f'TRAIN.TRAIN_BATCH_SIZE={whole}'))
    run = start(f'TRAIN.TRAIN_BATCH_SIZE={batch_size}', f'TRAIN.ACCUMULATE={accumulate}')
    actual = steps_of(run)
    assert len(actual) == len(expected) == -(-38 // whole)
    for number, ((gradients, rate), (expected_gradients, _)) in enumerate(zip(actual, expected)):
        for one, other in zip(gradients, expected_gradients):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * abs(other).max())
        # The rate of a group is that of its first batch.
        assert rate == run.stepper.schedule.rate(number * accumulate / run.steps)


def test_a_skipped_step_changes_no_weights_averages_or_meter(start):
    run = start('TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.ACCUMULATE=3')
    stepper = run.stepper
    plain_loss, head, ema = stepper.loss, stepper.network.head, stepper.ema
    for bad_batch, updates in ((None, 1), (1, 1), (None, 2)):
        before = head.weight.numpy(), ema.average['head.weight'].numpy()
        for number, (images, labels) in zip(range(3), run.train_loader):
            factor = np.inf if number == bad_batch else 1.0
            stepper.loss = lambda *arguments, factor=factor: plain_loss(*arguments) * factor
            learn(run, images, labels)
        assert ema.updates == updates
        same = [np.array_equal(one, other) for one, other in zip(
            before, (head.weight.numpy(), ema.average['head.weight'].numpy()))]
        assert same == [bad_batch is not None] * 2
    assert stepper.skipped_steps == 1
    sums = run.meter.state()
    assert sums['seen'] == 2 * 3 * 4 and np.isfinite(sums['loss_sum'])


def test_log_lines_and_checkpoints_come_after_optimizer_steps(start, tmp_path):
    run = start('TRAIN.TRAIN_BATCH_SIZE=2', 'TRAIN.ACCUMULATE=4', 'TRAIN.LOG_EVERY=3',
                'TRAIN.SAVE_STEPS=5', 'TRAIN.KEEP_CHECKPOINTS=99', 'SCHEDULER.NUM_EPOCHS=1',
                'TRAIN.VAL_BATCH_SIZE=16')
    run.run()
    log = (tmp_path / 'run' / 'train.log').read_text()
    # 19 batches, optimizer steps after 4, 8, 12, 16 and 19. The first ones after a multiple of
    # LOG_EVERY = 3 are logged, after a multiple of SAVE_STEPS = 5 saved.
    assert [int(line.split('/')[1].split('[')[1]) for line in log.splitlines()
            if 'Step [' in line] == [4, 8, 12, 16, 19]
    assert sorted(int(path.stem[5:]) for path in (
        tmp_path / 'run' / 'checkpoints').iterdir()) == [8, 12, 16, 19]
    assert run.stepper.ema.updates == 5


def test_two_processes_have_the_gradients_and_averages_of_one(tmp_path):
    """Two processes with two batches of 4 for each step, one with a batch of 16."""
    options = ['EMA.DECAY=0.9', 'EMA.WARMUP=false']
    subprocess.run([sys.executable, 'tests/support/ema_ranks.py', str(tmp_path / 'one'), *options,
                    'TRAIN.TRAIN_BATCH_SIZE=16'], cwd=ROOT, check=True, timeout=300)
    launch(2, tmp_path, 'tests/support/ema_ranks.py', tmp_path / 'two', *options,
           'TRAIN.TRAIN_BATCH_SIZE=4', 'TRAIN.ACCUMULATE=2')
    one, two, other = (dict(np.load(tmp_path / name))
                       for name in ('one.0.npz', 'two.0.npz', 'two.1.npz'))

    def relative_difference(kind, first, second):
        first, second = (np.concatenate([part[name].astype('float64').ravel() for name in one
                                         if name.startswith(kind)]) for part in (first, second))
        assert len(first) > 4_000_000
        return np.linalg.norm(first - second) / np.linalg.norm(first)

    for kind in ('gradient/', 'ema/', 'network/'):
        assert relative_difference(kind, two, other) == 0, f'ranks differ: {kind}'
        assert relative_difference(kind, one, two) <= 1e-6, kind
    alone = [name for name in two if name.startswith('alone/')]
    assert len(alone) == 108 and (two['alone/head.bias'] != other['alone/head.bias']).any()
