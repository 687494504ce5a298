"""Catches optimizer steps, decay, rates and clipping that differ from PyTorch's or formulas."""

import math
import re

import numpy as np
import paddle
import pytest
from conftest import ROOT
from paddle import nn
from paddle.nn import functional as F
from support.official import VARIANTS

import build
import zoo
from common import ImageClassifier
from config import ConfigError, load_config
from recipe.optimizer import build_optimizer, clip_gradients, decays, rate_scales
from scheduler import Schedule
from training.checkpoint import capture, restore
from weights.container import read_checkpoint, write_checkpoint
from zoo.names import unfilled

TORCH = np.load(ROOT / 'tests' / 'fixtures' / 'optimizer.npz')
STEPS = 30
# As in make_optimizer_fixtures.py: options, limit of the gradient norm.
CASES = {
    'sgd': (dict(kind='sgd'), 0),
    'sgd_excluded': (dict(kind='sgd', decay_all=False), 0),
    'sgd_clipped': (dict(kind='sgd', momentum=0.8), 0.3),
    'sgd_backbone': (dict(kind='sgd', backbone_scale=0.01), 0),
    'adamw': (dict(kind='adamw'), 0),
    'adamw_excluded': (dict(kind='adamw', decay_all=False), 0.02),
    'adamw_backbone': (dict(kind='adamw', decay_all=False, backbone_scale=0.01), 0),
}


class Small(ImageClassifier):
    """The fixtures' network: `[B, N, 6]` to `[B, N, 4]`."""

    no_weight_decay = ('cls_token', 'pos_embed')

    def __init__(self):
        super().__init__()
        self.cls_token = self.create_parameter([1, 1, 6])
        self.pos_embed = self.create_parameter([1, 5, 6])
        self.fc1, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        for name, parameter in self.named_parameters():
            shape = parameter.shape[::-1] if parameter.ndim == 2 else parameter.shape
            parameter.set_value(np.ascontiguousarray(_start(name, shape).T)
                                if parameter.ndim == 2 else _start(name, shape))

    def forward(self, x):
        return self.head(paddle.tanh(self.fc1(x + self.cls_token + self.pos_embed)))


def _start(name, shape):
    seed = sum(map(ord, name))
    return np.random.default_rng(seed).standard_normal(shape).astype('float32')


def step_on(network, optimizer, limit=0):
    """One training step; returns loss and gradient norm."""
    inputs, targets = (paddle.to_tensor(_start(name, (3, 5, width)))
                       for name, width in (('inputs', 6), ('targets', 4)))
    loss = (network(inputs) - targets).square().mean()
    loss.backward()
    norm = clip_gradients(network.parameters(), limit)
    optimizer.step()
    optimizer.clear_grad()
    return loss.item(), norm


@pytest.mark.parametrize('case', sorted(CASES))
def test_thirty_steps_equal_pytorchs(case):
    options, limit = CASES[case]
    rate, decay = (0.05, 0.1) if options['kind'] == 'sgd' else (0.01, 0.3)
    schedule = Schedule(lambda step: rate * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
    network = Small()
    optimizer = build_optimizer(network, schedule, decay, **options)
    figures = []
    for step in range(STEPS):
        schedule.step(step)
        figures.append(step_on(network, optimizer, limit))
    compare(case, figures, network)


def compare(case, figures, network):
    losses, norms = zip(*figures)
    np.testing.assert_allclose(losses, TORCH[f'{case}/losses'], rtol=1e-5)
    np.testing.assert_allclose(norms, TORCH[f'{case}/norms'], rtol=1e-5)
    for name, parameter in network.named_parameters():
        value = parameter.numpy().T if parameter.ndim == 2 else parameter.numpy()
        np.testing.assert_allclose(value, TORCH[f'{case}/{name}'], rtol=1e-5, atol=2e-6,
                                   err_msg=name)


@pytest.mark.parametrize('name', [f't2t_vit_{depth}_cifar{classes}'
                                  for depth in (14, 19) for classes in (10, 100)])
def test_forty_steps_of_the_transfer_equal_pytorchs_two_groups(name):
    """The head's rate falls from 0.05, the others' from 5e-4, both to 2e-4; a step is an epoch."""
    config = load_config(f'config/{name}.yaml', ['SCHEDULER.NUM_EPOCHS=40'])
    network, schedule = Small(), build.schedule(config)
    optimizer = build.optimizer(config, network, schedule)
    figures = []
    for step in range(40):
        schedule.step(step)
        figures.append(step_on(network, optimizer))
    compare('sgd_one_floor', figures, network)


def test_the_floor_of_the_transfer_is_that_of_every_parameter():
    config = load_config('config/t2t_vit_14_cifar10.yaml')
    network, schedule = Small(), build.schedule(config)
    build.optimizer(config, network, schedule)
    actual = []
    for epoch in (0, 30, 60):
        schedule.step(epoch)
        actual.append([schedule() * p.optimize_attr['learning_rate']
                      for p in (network.head.weight, network.fc1.weight)])
    np.testing.assert_allclose(actual, [[0.05, 5e-4], [0.0251, 3.5e-4], [2e-4, 2e-4]], rtol=1e-12)


# ---- weight decay

def test_parameters_without_weight_decay_in_t2t_vit_7():
    network = zoo.create_model('t2t_vit_7', frozen=True)
    trainable = {name: p for name, p in network.named_parameters() if not p.stop_gradient}
    excluded = set(trainable) - decays(network)
    shapes = VARIANTS['t2t_vit_7']['state']
    assert excluded == {name for name, shape in shapes.items()
                        if len(shape) == 1 or name == 'cls_token'}
    # Numbers of values: norms and biases of proj, fc1 and fc2 in a block; norms and biases of kqv,
    # proj and mlp in the Performers; last norm, bias of project, class token, bias of the head.
    block = 4 * 256 + 256 + 512 + 256
    performers = sum(2 * width + 3 * 64 + 64 + 2 * 64 + 2 * 64 for width in (147, 576))
    rest = 2 * 256 + 256 + 256 + 1000
    sizes = {name: math.prod(p.shape) for name, p in trainable.items()}
    assert sum(sizes.values()) == 4_255_694
    assert sum(sizes[name] for name in excluded) == 7 * block + performers + rest
    free = zoo.create_model('t2t_vit_7', frozen=False)
    names = decays(free)
    assert 'pos_embed' not in names and 'tokens_to_token.attention1.w' in names


@pytest.mark.parametrize('name', sorted(
    {'vit_tiny_patch16_224', 'pit_ti', 'deit_tiny_distilled_patch16_224'} & set(VARIANTS)))
def test_parameters_without_weight_decay_in_other_networks(name):
    excluded = set(VARIANTS[name]['state']) - decays(unfilled(name))
    assert excluded == {
        parameter for parameter, shape in VARIANTS[name]['state'].items()
        if len(shape) == 1 or parameter in ('cls_token', 'dist_token', 'pos_embed')}


@pytest.mark.parametrize('kind', ['adamw', 'sgd'])
def test_an_excluded_parameter_takes_its_step_without_decay(kind):
    """The same step with and without decay: only parameters with weight decay differ."""
    images = paddle.to_tensor(_start('images', (2, 3, 32, 32)))

    def weights_after_a_step(decay):
        paddle.seed(0)
        network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=16, frozen=False)
        network.eval()
        before = {name: p.numpy() for name, p in network.named_parameters()}
        optimizer = build_optimizer(network, 0.1, decay, decay_all=False, kind=kind)
        F.cross_entropy(network(images), paddle.to_tensor([3, 7])).backward()
        optimizer.step()
        return before, {name: p.numpy() for name, p in network.named_parameters()}

    (before, plain), (_, decayed) = weights_after_a_step(0.0), weights_after_a_step(0.5)
    excluded = {name for name, value in plain.items()
                if value.ndim == 1 or name in ('cls_token', 'pos_embed')}
    # Blocks, Performers, project, last norm, head, class token and position table.
    assert len(excluded) == 7 * 7 + 2 * 8 + 1 + 2 + 1 + 2
    for name in plain:
        assert (plain[name] == decayed[name]).all() == (name in excluded), name
    assert all((before[name] != plain[name]).any() for name in ('pos_embed', 'norm.bias'))
    name = 'blocks.3.mlp.fc1.weight'
    np.testing.assert_allclose(decayed[name] - plain[name], -0.1 * 0.5 * before[name], atol=1e-7)


# ---- rates

def test_rates_decay_by_layer():
    network = zoo.create_model('t2t_vit_7', img_size=32, num_classes=16)
    scales = rate_scales(network, layer_decay=0.5)
    assert set(scales) == {name for name, _ in network.named_parameters()}
    for name, power in {'head.weight': 0, 'norm.bias': 0, 'blocks.6.attn.qkv.weight': 1,
                        'blocks.0.norm1.weight': 7, 'cls_token': 8, 'pos_embed': 8,
                        'tokens_to_token.project.weight': 8,
                        'tokens_to_token.attention1.mlp.0.weight': 8}.items():
        assert scales[name] == 0.5 ** power, name
    pit = rate_scales(unfilled('pit_ti_distilled'), 0.01, layer_decay=0.5)
    for name, power in {'transformers.2.blocks.3.norm1.bias': 1,
                        'transformers.2.blocks.0.norm1.bias': 4,
                        'pools.1.conv.weight': 5, 'transformers.1.blocks.5.norm1.bias': 5,
                        'pools.0.fc.bias': 11, 'transformers.0.blocks.0.norm1.bias': 12,
                        'patch_embed.conv.weight': 13, 'pos_embed': 13}.items():
        assert pit[name] == pytest.approx(0.01 * 0.5 ** power), name
    assert pit['head.weight'] == pit['head_dist.weight'] == 1.0
    assert set(rate_scales(network).values()) == {1.0}


@pytest.mark.parametrize('kind', ['adamw', 'sgd'])
def test_a_parameters_step_has_the_size_of_its_rate(kind):
    def update(**rates):
        network = Small()
        before = [p.numpy() for p in network.parameters()]
        step_on(network, build_optimizer(network, 0.01, 0.1, kind=kind, **rates))
        return {name: p.numpy() - old for (name, p), old
                in zip(network.named_parameters(), before)}

    plain, scaled = update(), update(backbone_scale=0.01, layer_decay=0.5)
    for name in plain:    # no blocks: all other parameters are one layer below the head
        factor = 1.0 if name.startswith('head') else 0.005
        np.testing.assert_allclose(scaled[name], factor * plain[name], atol=3e-7, err_msg=name)
        assert np.abs(plain[name]).max() > 1e-3


# ---- clipping

def gradients_of(values):
    parameters = []
    for value in values:
        value = paddle.to_tensor(np.array(value, dtype='float32'))
        parameters.append(paddle.create_parameter(value.shape, 'float32'))
        (parameters[-1] * value).sum().backward()
    return parameters


@pytest.mark.parametrize('limit, wanted', [
    (0.0, [[3, -4], [12]]), (20.0, [[3, -4], [12]]), (1.3, [[0.3, -0.4], [1.2]])])
@pytest.mark.parametrize('loss_scale', [1.0, 1024.0])
def test_clipping(limit, wanted, loss_scale):
    parameters = gradients_of([[3 * loss_scale, -4 * loss_scale], [12 * loss_scale]])
    parameters.append(paddle.create_parameter([2], 'float32'))    # has no gradient
    assert clip_gradients(parameters, limit, loss_scale) == pytest.approx(13)
    for parameter, value in zip(parameters, wanted):
        np.testing.assert_allclose(parameter.grad.numpy(), value, rtol=1e-6)


@pytest.mark.parametrize('bad', [math.inf, math.nan])
def test_gradients_that_are_not_finite_are_returned_in_the_norm_and_not_clipped(bad):
    parameters = gradients_of([[3.0, bad], [12.0]])
    assert not math.isfinite(clip_gradients(parameters, 1.0, 8.0))
    assert parameters[1].grad.item() == 12


# ---- checkpoints

@pytest.mark.parametrize('kind', ['adamw', 'sgd'])
def test_a_checkpoint_restores_the_state_under_other_automatic_names(tmp_path, kind):
    def start(before):
        for _ in range(before):
            nn.Linear(7, 7)
            other = Small()
            step_on(other, build_optimizer(other, 0.01, 0.1, kind=kind))
        network = Small()
        return network, build_optimizer(network, 0.01, 0.1, kind=kind, layer_decay=0.5)

    network, optimizer = start(0)
    for _ in range(3):
        step_on(network, optimizer)
    arrays = capture(network, optimizer)
    kinds = {name.split('/')[1] for name in arrays if name.startswith('optimizer/')}
    assert kinds == ({'velocity'} if kind == 'sgd' else
                     {'moment1', 'moment2', 'beta1_pow_acc', 'beta2_pow_acc'})
    assert f'optimizer/{min(kinds - {"beta1_pow_acc"})}/fc1.weight' in arrays
    write_checkpoint(tmp_path / 'a.ckpt', arrays, {})
    wanted = [step_on(network, optimizer) for _ in range(3)]
    other, other_optimizer = start(2)
    restore(other, other_optimizer, read_checkpoint(tmp_path / 'a.ckpt')[0], 'a.ckpt')
    assert [step_on(other, other_optimizer) for _ in range(3)] == wanted
    for mine, theirs in zip(network.parameters(), other.parameters()):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


# ---- from the configuration

def test_keys_reach_the_optimizer(tmp_path):
    """Compare two steps of a configuration's optimizer with their formula."""
    (tmp_path / 'a.yaml').write_text(
        'TRAIN: {OPTIMIZER: sgd, MOMENTUM: 0.8, DECAY_ALL: false}\n'
        'SCHEDULER: {WEIGHT_DECAY: 0.1, BACKBONE_LR_SCALE: 0.5, LAYER_DECAY: 0.5}\n')
    network = Small()
    before = network.fc1.weight.numpy(), network.fc1.bias.numpy()
    optimizer = build.optimizer(load_config(tmp_path / 'a.yaml'), network, 0.01)
    for _ in range(2):
        for parameter in network.parameters():
            (parameter.sum() * 2).backward()
        optimizer.step()
        optimizer.clear_grad()
    for parameter, old, decay in zip((network.fc1.weight, network.fc1.bias), before, (0.1, 0.0)):
        first = 2 + decay * old
        value = old - 0.0025 * first
        value = value - 0.0025 * (0.8 * first + 2 + decay * value)
        np.testing.assert_allclose(parameter.numpy(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('text, said', [
    ('TRAIN: {OPTIMIZER: adam}', r'TRAIN.OPTIMIZER must be one of .*did you mean adamw'),
    ('TRAIN: {CLIP_MODE: value}', 'TRAIN.CLIP_MODE was removed'),
    ('TRAIN: {CLIP_NORM: -1}', 'TRAIN.CLIP_NORM must be at least 0'),
    ('TRAIN: {MOMENTUM: 1}', 'TRAIN.MOMENTUM must be less than 1'),
    ('SCHEDULER: {BACKBONE_LR_SCALE: 0}', 'SCHEDULER.BACKBONE_LR_SCALE must be more than 0'),
    ('SCHEDULER: {LAYER_DECAY: 1.1}', 'SCHEDULER.LAYER_DECAY must be at most 1'),
])
def test_the_error_for_an_invalid_value_is_one_line(tmp_path, text, said):
    (tmp_path / 'a.yaml').write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(tmp_path / 'a.yaml')
    assert re.search(said, str(refusal.value)) and '\n' not in str(refusal.value)
    assert refusal.value.exit_code == 2
