"""Catches any difference from the official PyTorch networks, whose results are in tests/golden."""

import numpy as np
import paddle
import pytest
from paddle.nn import functional as F
from support.official import FORWARDS, GOLDEN, LABELS, VARIANTS, golden_network, image_batch

from recipe.optimizer import build_optimizer, clip_gradients
from training.fast import speed_up
from zoo.golden import name_and_size
from zoo.names import unfilled


def plain(network):
    """Leave the layers of a network as they are written."""
    return network


@pytest.mark.parametrize('variant', FORWARDS)
def test_forward(variant):
    golden = np.load(GOLDEN / f'forward_{variant}.npz')
    network, size = golden_network(variant)
    network.eval()
    images, seen = image_batch(size), []
    if variant.startswith('t2t'):
        network.tokens_to_token.register_forward_post_hook(lambda *call: seen.append(call[-1]))
    with paddle.no_grad():
        prefix = network.forward_prefix(images)
        network.forward_prefix = lambda _: prefix    # computed once for both
        actual = {'logits': network(images).numpy(),
                 'features': network.forward_features(images).numpy()}
    if variant.startswith('t2t'):
        tokens = seen[0].numpy()
        actual.update(tokens_mean=tokens.mean(axis=1), tokens_std=tokens.std(axis=1, ddof=1),
                      token_first=tokens[:, 0], token_last=tokens[:, -1])
    assert set(golden.files) == set(actual)
    for name in golden.files:
        np.testing.assert_allclose(actual[name], golden[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('variant', sorted(VARIANTS))
def test_parameter_counts(variant):
    name, size = name_and_size(variant)
    network = unfilled(name, img_size=size)
    sizes = [(int(np.prod(p.shape)), p.stop_gradient) for p in network.parameters()]
    assert sum(size for size, _ in sizes) == VARIANTS[variant]['params']
    assert sum(size for size, frozen in sizes if not frozen) == VARIANTS[variant]['trainable']
    assert len(network.state_dict()) == VARIANTS[variant]['tensors']


def test_every_official_figure_is_compared():
    assert set(FORWARDS) == set(VARIANTS)
    assert len([name for name in VARIANTS if name.startswith('t2t')]) == 16
    assert len([name for name in VARIANTS if name.startswith(('vit', 'pit'))]) == 8


@pytest.mark.parametrize('variant', ['t2t_vit_7', 't2t_vit_t_14'])
@pytest.mark.parametrize('computed', [plain, speed_up])
def test_gradients(variant, computed):
    golden = np.load(GOLDEN / f'grad_{variant}.npz')
    network, size = golden_network(variant)
    computed(network)
    network.eval()
    images = image_batch(size)
    images.stop_gradient = False
    loss = F.cross_entropy(network(images), LABELS)
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden['loss'], rtol=1e-5)
    norms = {name: np.linalg.norm(p.grad.numpy().astype('float64'))
             for name, p in network.named_parameters() if not p.stop_gradient}
    norms['input_grad_l2'] = np.linalg.norm(images.grad.numpy().astype('float64'))
    assert set(golden.files) == set(norms) | {'loss'}
    for name, norm in norms.items():
        np.testing.assert_allclose(norm, golden[name], rtol=1e-4, err_msg=name)


RECIPES = {
    # official: decay 0.03 on matrices only, frozen tables; seed: the Paddle repository's recipe.
    'official': dict(frozen=True, weight_decay=0.03, decay_all=False, clip_norm=0.0),
    'seed': dict(frozen=False, weight_decay=0.3, decay_all=True, clip_norm=1.0),
}


@pytest.mark.parametrize('recipe', sorted(RECIPES))
@pytest.mark.parametrize('computed', [plain, speed_up])
def test_six_steps_of_adamw(recipe, computed):
    golden = np.load(GOLDEN / f'adamw_{recipe}_t2t_vit_7.npz')
    options = dict(RECIPES[recipe])
    network, _ = golden_network('t2t_vit_7', frozen=options.pop('frozen'))
    computed(network)
    network.eval()
    clip_norm = options.pop('clip_norm')
    optimizer = build_optimizer(network, learning_rate=1e-4, **options)
    images, losses = image_batch(), []
    for _ in range(6):
        loss = F.cross_entropy(network(images), LABELS)
        loss.backward()
        clip_gradients(network.parameters(), clip_norm)
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden['losses'], rtol=0, atol=1e-4)
    state = network.state_dict()
    assert set(golden.files) == set(state) | {'losses'}
    for name, tensor in state.items():
        np.testing.assert_allclose(np.linalg.norm(tensor.numpy().astype('float64')),
                                   golden[name], rtol=1e-5, err_msg=name)
